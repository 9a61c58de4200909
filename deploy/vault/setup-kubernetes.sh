#!/bin/sh
# Lets pods log in at Vault or OpenBao with their service accounts: Kubernetes auth, the daemon's policy, and a role for
# it. With CONSUMER, the same for one consumer: a pod of its own, or External Secrets in its name. No secret is made.
#
#   VAULT_ADDR=https://vault.example:8200 VAULT_TOKEN=… KUBE_HOST=… deploy/vault/setup-kubernetes.sh
#
# The token needs rights on sys/auth, sys/policies/acl and auth/kubernetes; BAO_ADDR and BAO_TOKEN do as well. May be
# run again, and again for each consumer.
#
#   KUBE_HOST=https://…       the cluster's API, as Vault reaches it; https://kubernetes.default.svc where Vault runs in
#                             the cluster. Without it, the configuration of the auth method is left as it is.
#   KUBE_CA_FILE=ca.crt       its authority, where Vault runs outside the cluster
#   REVIEWER_JWT_FILE=jwt     the token of a service account with the ClusterRole system:auth-delegator, by which Vault
#                             asks the cluster about others. Default: Vault's own in the cluster; outside of it, each
#                             service account that logs in, which then needs that ClusterRole itself.
#   KUBE_NAMESPACE=iot        the namespace of the daemon's service account
#   SERVICE_ACCOUNT=rotator   its name
#   AUDIENCE=vault            whom the accounts' tokens must be for. Default: anybody, such as the cluster's API, whose
#                             tokens are mounted everywhere; better name one, and project tokens for it.
#   KUBERNETES=kubernetes     where Kubernetes auth is mounted
#   VAULT_CLI=bao             the client (default: `vault`, else `bao`)
#   VAULT_NAMESPACE=team      Vault's namespace that holds the engine (BAO_NAMESPACE does as well)
#   MOUNT=secret              the KV version 2 engine
#   PREFIX=mqtt               the folder of the managed secrets in it
#   ROLE=rotator              the name of the role and of its policy
#   CONSUMER=ingest           also a role $ROLE-consumer-ingest and its policy, for a consumer that reads …
#   CONSUMER_PATH=building-a  … this secret below PREFIX, as …
#   CONSUMER_SERVICE_ACCOUNT  … this service account (default: named as the consumer) …
#   CONSUMER_NAMESPACE        … in this namespace (default: KUBE_NAMESPACE)
set -eu

program=setup-kubernetes
here=$(cd "$(dirname "$0")" && pwd)
kubernetes=${KUBERNETES:-kubernetes}
namespace=${KUBE_NAMESPACE:-iot}
. "$here/common.sh"

service_account=${SERVICE_ACCOUNT:-rotator}
consumer_account=${CONSUMER_SERVICE_ACCOUNT:-$consumer}
consumer_namespace=${CONSUMER_NAMESPACE:-$namespace}
case "$kubernetes$namespace$service_account$consumer_account$consumer_namespace" in
  *[!A-Za-z0-9/_.-]*) fail "KUBERNETES, and names of service accounts and namespaces, may hold letters, digits and / _ . - only" ;;
esac
for file in "${KUBE_CA_FILE:-}" "${REVIEWER_JWT_FILE:-}"; do
  [ -z "$file" ] || [ -r "$file" ] || fail "can't read $file"
done

configure() { # files go in by name: neither stands in an argument list
  set -- "auth/$kubernetes/config" kubernetes_host="$KUBE_HOST"
  if [ -n "${KUBE_CA_FILE:-}" ]; then
    set -- "$@" kubernetes_ca_cert="@$KUBE_CA_FILE" disable_local_ca_jwt=true
  fi
  if [ -n "${REVIEWER_JWT_FILE:-}" ]; then
    set -- "$@" token_reviewer_jwt="@$REVIEWER_JWT_FILE"
  fi
  "$cli" write "$@" >/dev/null
}

# A periodic token lives as long as it is renewed, and ends an hour after its owner did. No `default` policy.
login() { # login ROLE ACCOUNT NAMESPACE: a role of that name with the policy of that name
  "$cli" write "auth/$kubernetes/role/$1" bound_service_account_names="$2" bound_service_account_namespaces="$3" \
    audience="${AUDIENCE:-}" token_policies="$1" token_no_default_policy=true token_type=service token_period=1h \
    >/dev/null
}

engine
enabled kubernetes "$kubernetes"
if [ -n "${KUBE_HOST:-}" ]; then
  configure
elif ! "$cli" read "auth/$kubernetes/config" >/dev/null 2>&1; then
  fail "auth/$kubernetes has no configuration yet: set KUBE_HOST, the cluster's API as Vault reaches it"
fi
policies
login "$role" "$service_account" "$namespace"
if [ -n "$consumer" ]; then
  login "$consumer_role" "$consumer_account" "$consumer_namespace"
  echo "Done: policy and role auth/$kubernetes/role/$consumer_role: $consumer_namespace/$consumer_account reads $mount/$prefix/$consumer_path."
fi
echo "Done: policy $role, role auth/$kubernetes/role/$role for $namespace/$service_account. In rotator.yaml:"
echo
shown
cat <<END
  auth:
    method: kubernetes
    mount: $kubernetes
    role: $role
END
