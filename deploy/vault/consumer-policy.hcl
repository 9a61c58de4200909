# What an MQTT consumer may do: read the current secrets below secret/mqtt/. Give each consumer a policy of its own with
# its own path (secret/data/mqtt/building-a) where they should not see each other's.
path "secret/data/mqtt/*" {
  capabilities = ["read"]
}

# Its own token.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
