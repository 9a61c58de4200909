# Vault Agent (or `bao agent`) beside one consumer: logs in by AppRole, keeps the secret in a file of environment
# variables, and restarts the consumer when the file has changed. README.md says what happens at a rotation.
#
#   vault agent -config=/etc/ingest/agent.hcl
#
# The two files come from CONSUMER=ingest CONSUMER_PATH=building-a deploy/vault/setup-approle.sh /etc/ingest

vault {
  address = "https://vault.example:8200"
}

auto_auth {
  method "approle" {
    mount_path = "auth/approle"
    config = {
      role_id_file_path   = "/etc/ingest/ingest-role-id"
      secret_id_file_path = "/etc/ingest/ingest-secret-id"

      # The default deletes it, and the next start of the agent would find none.
      remove_secret_id_file_after_reading = false
    }
  }
}

template_config {
  # How often a KV secret is looked at: a consumer learns of a rotation so much later, at most.
  static_secret_render_interval = "1m"

  # Ends the agent where Vault stays away, so that its unit shows it; the file stays as it is.
  exit_on_retry_failure = true
}

template {
  # For a unit's EnvironmentFile=. In single quotes nothing is special but the single quote itself.
  contents = <<EOT
{{ with secret "secret/data/mqtt/building-a" -}}
MQTT_USERNAME='{{ .Data.data.username }}'
MQTT_PASSWORD='{{ .Data.data.password }}'
{{ end -}}
EOT

  # 0640 and a group for `deliver: {file: …}`, which has the daemon read it.
  destination          = "/run/ingest/mqtt.env"
  perms                = "0600"
  error_on_missing_key = true

  # Runs only when the file has changed. Leave it out where rotator restarts the consumer itself.
  exec {
    command = ["systemctl", "try-restart", "ingest.service"]
    timeout = "30s"
  }
}
