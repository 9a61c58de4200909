# What one MQTT consumer may do: read the current version of its own secret, secret/mqtt/building-a here. The set-up
# scripts put other names in by MOUNT, PREFIX and CONSUMER_PATH. A consumer of several keys gets one such block a key.
path "secret/data/mqtt/building-a" {
  capabilities = ["read"]
}

# Its own token: Vault Agent looks it up and renews it; External Secrets looks it up and ends it after each sync.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
