# What the daemon may do in Vault or OpenBao, and nothing else. Its keys lie below secret/mqtt/ here: setup-approle.sh
# puts other names in by MOUNT and PREFIX; by hand, change `secret` and `mqtt` in every path.

# Read, write by cas. No delete, no patch, no list: it knows its paths from its configuration.
path "secret/data/mqtt/*" {
  capabilities = ["create", "update", "read"]
}

# Versions, and who wrote them last: drift, and whether max_versions is about to push the way back out.
path "secret/metadata/mqtt/*" {
  capabilities = ["read"]
}

# Preflight: is the mount KV version 2, and may this token write the path?
path "sys/internal/ui/mounts/secret" {
  capabilities = ["read"]
}
path "sys/internal/ui/mounts/secret/*" {
  capabilities = ["read"]
}
path "sys/capabilities-self" {
  capabilities = ["update"]
}

# The daemon's own token: how long it lives, and renewing it. Its role leaves the `default` policy out.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}

# Only with `state.seal: {kind: vault-transit}`: data keys are made, opened and rewrapped there.
# path "transit/datakey/plaintext/rotator" { capabilities = ["update"] }
# path "transit/decrypt/rotator" { capabilities = ["update"] }
# path "transit/rewrap/rotator" { capabilities = ["update"] }
