# What setup-approle.sh and setup-kubernetes.sh share; they source this file. $program is the script's name.

fail() {
  echo "$program: $*" >&2
  exit 1
}

mount=${MOUNT:-secret}
prefix=${PREFIX:-mqtt}
role=${ROLE:-rotator}
consumer=${CONSUMER:-}
consumer_path=${CONSUMER_PATH:-}
consumer_role=$role-consumer-$consumer

cli=${VAULT_CLI:-$(command -v vault || command -v bao || true)}
[ -n "$cli" ] || fail "neither vault nor bao is installed; name the client with VAULT_CLI"
case "$mount$prefix$role$consumer$consumer_path" in
  *[!A-Za-z0-9/_.-]*) fail "MOUNT, PREFIX, ROLE, CONSUMER and CONSUMER_PATH may hold letters, digits and / _ . - only" ;;
esac
case "$consumer:$consumer_path" in
  : | ?*:?*) ;;
  *) fail "CONSUMER and CONSUMER_PATH belong together: a consumer's name, and the path of its secret below $prefix/" ;;
esac

engine() { # the KV engine is there, and is version 2
  options=$("$cli" read -field=options "sys/mounts/$mount/tune") ||
    fail "can't read the engine at $mount/; is it there ($cli secrets enable -path=$mount kv-v2), are address and token right?"
  case $options in
    *version:2*) ;;
    *) fail "the engine at $mount/ is not KV version 2: $cli kv enable-versioning $mount" ;;
  esac
}

enabled() { # enabled TYPE PATH: the auth method is there, made where it is not
  "$cli" read "sys/auth/$2/tune" >/dev/null 2>&1 || "$cli" auth enable -path="$2" "$1" >/dev/null
}

policies() { # the daemon's policy, and the consumer's where there is one, with this mount and prefix
  sed -e "s|\"secret/data/mqtt/|\"$mount/data/$prefix/|" -e "s|\"secret/metadata/mqtt/|\"$mount/metadata/$prefix/|" \
    -e "s|\"secret/undelete/mqtt/|\"$mount/undelete/$prefix/|" -e "s|\"secret/config\"|\"$mount/config\"|" \
    "$here/rotator-policy.hcl" | "$cli" policy write "$role" - >/dev/null
  if [ -n "$consumer" ]; then
    sed -e "s|\"secret/data/mqtt/building-a\"|\"$mount/data/$prefix/$consumer_path\"|" "$here/consumer-policy.hcl" |
      "$cli" policy write "$consumer_role" - >/dev/null
  fi
}

# The vault section's beginning, for the text at the end.
shown() {
  echo "vault:"
  echo "  url: ${VAULT_ADDR:-${BAO_ADDR:-https://vault.example:8200}}"
  if [ -n "${VAULT_NAMESPACE:-${BAO_NAMESPACE:-}}" ]; then
    echo "  namespace: ${VAULT_NAMESPACE:-${BAO_NAMESPACE:-}}"
  fi
  echo "  mount: $mount"
}
