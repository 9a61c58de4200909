#!/bin/sh
# Installs the Debian packages that the tests need when it may, and names the missing ones when it may not.
set -eu
missing=
need() { # need FILE-OR-COMMAND PACKAGE
  if ! { command -v "$1" || [ -e "$1" ]; } >/dev/null 2>&1; then missing="$missing $2"; fi
}
PATH="$PATH:/usr/sbin:/sbin"
need mosquitto mosquitto
need /usr/lib/rabbitmq/bin/rabbitmq-server rabbitmq-server
need promtool prometheus
need dbus-daemon dbus
need /usr/lib/systemd/systemd systemd
need unshare util-linux
need /usr/lib/polkit-1/polkitd polkitd
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing the Debian packages:$missing"
  export DEBIAN_FRONTEND=noninteractive
  # The tests start their own servers: no package shall start one of the system's (mosquitto, rabbitmq, prometheus).
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
  fi
  # shellcheck disable=SC2086  # one word a package
  { apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } >/tmp/rotator-apt.$$.log 2>&1 || {
    tail -n 20 /tmp/rotator-apt.$$.log >&2; rm -f /tmp/rotator-apt.$$.log; exit 1; }
  rm -f /tmp/rotator-apt.$$.log
else
  echo "The tests need these Debian packages, which are missing:$missing" >&2
  echo "Install them with: sudo apt-get install$missing" >&2
  exit 1
fi
