"""A consumer that reads its secret from Vault when it starts, and again when the broker refuses it.

pip install hvac paho-mqtt; its role and files come from setup-approle.sh with CONSUMER and CONSUMER_PATH. README.md
says what happens at a rotation.
"""

import logging
import os
from pathlib import Path

import hvac
import paho.mqtt.client as mqtt
import requests
from hvac.exceptions import VaultError
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

FOLDER = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/etc/ingest"))
REFUSED = {"Bad user name or password", "Not authorized"}


def read_secret() -> dict[str, str]:
    """Log in, read the current version, end the login: nothing is kept that somebody could take."""
    vault = hvac.Client(url=os.environ["VAULT_ADDR"])
    role_id, secret_id = ((FOLDER / f"ingest-{name}-id").read_text().strip() for name in ("role", "secret"))
    vault.auth.approle.login(role_id=role_id, secret_id=secret_id)
    try:
        path = os.environ.get("VAULT_SECRET", "mqtt/building-a")
        found = vault.secrets.kv.v2.read_secret_version(path, mount_point="secret", raise_on_deleted_version=True)
        return dict(found["data"]["data"])
    finally:
        vault.logout(revoke_token=True)


def use(client: mqtt.Client, secret: dict[str, str]) -> None:
    """The next connection logs in with this."""
    client.username_pw_set(secret["username"], secret["password"])


def on_connect(client: mqtt.Client, _data: object, _flags: object, reason: ReasonCode, _properties: object) -> None:
    """Let in: subscribe. Refused: read the secret again; paho tries once more after its delay."""
    if not reason.is_failure:
        logging.info("connected")
        client.subscribe(os.environ.get("MQTT_TOPIC", "data/#"))
        return
    logging.warning("refused: %s", reason)
    if reason.getName() in REFUSED:
        try:
            use(client, read_secret())
        except (VaultError, requests.RequestException) as exc:
            logging.warning("Vault is away, asked again at the next refusal: %s", type(exc).__name__)


def main() -> None:
    """Run until somebody ends it."""
    logging.basicConfig(level=logging.INFO)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=os.environ.get("MQTT_CLIENT_ID", "ingest-1"))
    client.on_connect = on_connect
    client.on_message = lambda _client, _data, message: logging.info("a message at %s", message.topic)
    client.reconnect_delay_set(min_delay=1, max_delay=60)
    use(client, read_secret())
    client.connect(os.environ.get("MQTT_HOST", "localhost"), int(os.environ.get("MQTT_PORT", "1883")))
    client.loop_forever()


if __name__ == "__main__":
    main()
