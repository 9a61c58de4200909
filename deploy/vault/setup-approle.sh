#!/bin/sh
# Gives rotator its way into Vault or OpenBao: AppRole, its policy, a role, and the two files to log in with. With
# CONSUMER, the same for one consumer, such as Vault Agent or a program of one's own.
#
#   VAULT_ADDR=https://vault.example:8200 VAULT_TOKEN=… deploy/vault/setup-approle.sh [DIRECTORY]
#
# The token needs rights on sys/auth, sys/policies/acl and auth/approle; BAO_ADDR and BAO_TOKEN do as well. DIRECTORY
# (default: the current one) gets `vault-role-id` and `vault-secret-id`, both 0600. May be run again: a secret id that
# is there is kept; delete the file to have a new one made.
#
#   VAULT_CLI=bao             the client (default: `vault`, else `bao`)
#   VAULT_NAMESPACE=team      the namespace that holds the engine (BAO_NAMESPACE does as well)
#   MOUNT=secret              the KV version 2 engine
#   PREFIX=mqtt               the folder of the managed secrets in it
#   ROLE=rotator              the name of the role and of its policy
#   APPROLE=approle           where AppRole is mounted
#   CIDRS=10.0.0.7/32         addresses that may log in (default: any)
#   WRAP_TTL=10m              do not write the secret id, but a wrapping token for it, into `vault-wrapped-secret-id`:
#                             it works once, and for so long
#   CONSUMER=ingest           also a role $ROLE-consumer-ingest and its policy, with `ingest-role-id` and
#                             `ingest-secret-id`, for a consumer that reads …
#   CONSUMER_PATH=building-a  … this secret below PREFIX
set -eu

program=setup-approle
here=$(cd "$(dirname "$0")" && pwd)
directory=${1:-.}
approle=${APPROLE:-approle}
wrap_ttl=${WRAP_TTL:-}
. "$here/common.sh"

[ -d "$directory" ] || fail "$directory is not a directory"
case "$approle$wrap_ttl" in
  *[!A-Za-z0-9/_.-]*) fail "APPROLE and WRAP_TTL may hold letters, digits and / _ . - only" ;;
esac

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

keep_once() { # the same, where FILE is not there yet
  if [ -s "$1" ]; then
    echo "kept $1"
  else
    keep "$@"
  fi
}

# A periodic token lives as long as it is renewed, and ends an hour after its owner did. No `default` policy.
login() { # login ROLE: a role of that name with the policy of that name
  "$cli" write "auth/$approle/role/$1" token_policies="$1" token_no_default_policy=true token_type=service \
    token_period=1h token_bound_cidrs="${CIDRS:-}" secret_id_bound_cidrs="${CIDRS:-}" \
    secret_id_ttl=0 secret_id_num_uses=0 >/dev/null
}

engine
enabled approle "$approle"
policies
login "$role"
keep "$directory/vault-role-id" "$cli" read -field=role_id "auth/$approle/role/$role/role-id"
secret_id=vault-secret-id
if [ -n "$wrap_ttl" ]; then
  secret_id=vault-wrapped-secret-id
  keep_once "$directory/$secret_id" \
    "$cli" write -f -wrap-ttl="$wrap_ttl" -field=wrapping_token "auth/$approle/role/$role/secret-id"
else
  keep_once "$directory/$secret_id" "$cli" write -f -field=secret_id "auth/$approle/role/$role/secret-id"
fi
if [ -n "$consumer" ]; then
  login "$consumer_role"
  keep "$directory/$consumer-role-id" "$cli" read -field=role_id "auth/$approle/role/$consumer_role/role-id"
  keep_once "$directory/$consumer-secret-id" \
    "$cli" write -f -field=secret_id "auth/$approle/role/$consumer_role/secret-id"
  echo "Done: policy and role auth/$approle/role/$consumer_role, which reads $mount/$prefix/$consumer_path."
fi
echo "Done: policy $role, role auth/$approle/role/$role. In rotator.yaml:"
echo
shown
cat <<END
  auth:
    method: approle
    mount: $approle
    role_id: {file: $directory/vault-role-id}
    secret_id: {file: $directory/$secret_id}
END
if [ -n "$wrap_ttl" ]; then
  echo "    wrapped: true   # start the daemon within $wrap_ttl of the file's making"
fi
