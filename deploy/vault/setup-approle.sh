#!/bin/sh
# Gives rotator its way into Vault or OpenBao: AppRole, the two policies, a role, and the two files to log in with.
#
#   VAULT_ADDR=https://vault.example:8200 VAULT_TOKEN=… deploy/vault/setup-approle.sh [DIRECTORY]
#
# The token needs rights on sys/auth, sys/policies/acl and auth/approle; BAO_ADDR and BAO_TOKEN do as well. DIRECTORY
# (default: the current one) gets `vault-role-id` and `vault-secret-id`, both 0600. May be run again: a secret id that
# is there is kept; delete the file to have a new one made.
#
#   VAULT_CLI=bao           the client (default: `vault`, else `bao`)
#   MOUNT=secret            the KV version 2 engine
#   PREFIX=mqtt             the folder of the managed secrets in it
#   ROLE=rotator            the name of the role and of its policy; the consumers' policy is $ROLE-consumer
#   APPROLE=approle         where AppRole is mounted
#   CIDRS=10.0.0.7/32       addresses that may log in (default: any)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
directory=${1:-.}
mount=${MOUNT:-secret}
prefix=${PREFIX:-mqtt}
role=${ROLE:-rotator}
approle=${APPROLE:-approle}

fail() {
  echo "setup-approle: $*" >&2
  exit 1
}

cli=${VAULT_CLI:-$(command -v vault || command -v bao || true)}
[ -n "$cli" ] || fail "neither vault nor bao is installed; name the client with VAULT_CLI"
[ -d "$directory" ] || fail "$directory is not a directory"
case "$mount$prefix$role$approle" in
  *[!A-Za-z0-9/_.-]*) fail "MOUNT, PREFIX, ROLE and APPROLE may hold letters, digits and / _ . - only" ;;
esac

policy() { # policy FILE: the policy with this mount and prefix
  sed -e "s|\"secret/data/mqtt/|\"$mount/data/$prefix/|" -e "s|\"secret/metadata/mqtt/|\"$mount/metadata/$prefix/|" \
    -e "s|/mounts/secret|/mounts/$mount|" "$here/$1"
}

# A secret never stands in an argument list or in the output: it goes from the client into the file.
keep() { # keep FILE COMMAND…: the command's output in FILE, 0600, whole or not at all
  file=$1
  shift
  (
    umask 077
    rm -f "$file.new"
    if "$@" >"$file.new" && [ -s "$file.new" ]; then
      mv "$file.new" "$file"
    else
      rm -f "$file.new"
      fail "could not write $file"
    fi
  )
}

options=$("$cli" read -field=options "sys/mounts/$mount/tune") ||
  fail "can't read the engine at $mount/; is it there ($cli secrets enable -path=$mount kv-v2), are address and token right?"
case $options in
  *version:2*) ;;
  *) fail "the engine at $mount/ is not KV version 2: $cli kv enable-versioning $mount" ;;
esac
if ! "$cli" read "sys/auth/$approle/tune" >/dev/null 2>&1; then
  "$cli" auth enable -path="$approle" approle >/dev/null
fi
policy rotator-policy.hcl | "$cli" policy write "$role" - >/dev/null
policy consumer-policy.hcl | "$cli" policy write "$role-consumer" - >/dev/null
# A periodic token lives as long as it is renewed, and ends an hour after the daemon did. No `default` policy.
"$cli" write "auth/$approle/role/$role" token_policies="$role" token_no_default_policy=true token_type=service \
  token_period=1h token_bound_cidrs="${CIDRS:-}" secret_id_bound_cidrs="${CIDRS:-}" \
  secret_id_ttl=0 secret_id_num_uses=0 >/dev/null
keep "$directory/vault-role-id" "$cli" read -field=role_id "auth/$approle/role/$role/role-id"
if [ -s "$directory/vault-secret-id" ]; then
  echo "kept $directory/vault-secret-id"
else
  keep "$directory/vault-secret-id" "$cli" write -f -field=secret_id "auth/$approle/role/$role/secret-id"
fi
cat <<END
Done: policies $role and $role-consumer, role auth/$approle/role/$role. In rotator.yaml:

vault:
  url: ${VAULT_ADDR:-${BAO_ADDR:-https://vault.example:8200}}
  mount: $mount
  auth:
    method: approle
    mount: $approle
    role_id: {file: $directory/vault-role-id}
    secret_id: {file: $directory/vault-secret-id}
END
