# What the daemon may do in Vault or OpenBao, and nothing else. Its keys lie below secret/mqtt/ here: the set-up scripts
# put other names in by MOUNT and PREFIX; by hand, change `secret` and `mqtt` in every path. With namespaces, write the
# policy into the namespace that holds the engine; its paths stay as they are.

# --- needed

# Read, and write by cas. No delete, no patch, no list: the daemon knows its paths from its configuration.
path "secret/data/mqtt/*" {
  capabilities = ["create", "update", "read"]
}

# What the token may do on a key's paths: asked in preflight, before a secret is issued that could not be written.
path "sys/capabilities-self" {
  capabilities = ["update"]
}

# The daemon's own token: how long it lives, and renewing it. Its role leaves the `default` policy out, which would
# allow these two, and more.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}

# Nothing is needed for sys/health and for sys/internal/ui/mounts/*, where the engine's version stands: Vault shows an
# engine to whoever may do anything in it.

# --- optional: what is lost without it stands beside each

# `read`: the versions of a secret, whether max_versions is about to push the way back out, and whether
# delete_version_after will delete the secret under its consumers. Without: neither is seen before it happens.
# `update`: custom_metadata (which key, provider, rotation; when it expires). Without: it is left out.
path "secret/metadata/mqtt/*" {
  capabilities = ["read", "update"]
}

# The engine's own max_versions, which counts where a secret names fewer. Without: Vault's default of 10 is taken, and
# KV version 1 in a child namespace is not told.
path "secret/config" {
  capabilities = ["read"]
}

# `on_drift: restore` takes a deletion back. Without: the secret stays deleted, and that goes on being reported.
path "secret/undelete/mqtt/*" {
  capabilities = ["update"]
}

# Only with `state.seal: {kind: vault-transit}`: data keys are made, opened and rewrapped there.
# path "transit/datakey/plaintext/rotator" { capabilities = ["update"] }
# path "transit/decrypt/rotator" { capabilities = ["update"] }
# path "transit/rewrap/rotator" { capabilities = ["update"] }
