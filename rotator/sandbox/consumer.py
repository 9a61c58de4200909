"""A consumer, written as the document's Python example is: read the secret, connect by paho, subscribe, print.

    VAULT_ADDR=http://127.0.0.1:8200 python -m rotator.sandbox.consumer --name dashboards \
        --broker 127.0.0.1:1883 --token-file vault.token \
        --secret 'mqtt/building-a=haltian-iot/events/31efcae6-…/{username}/#'

It reads Vault once, at its start, which is why somebody has to restart it when a secret changes. A refused login ends
it with exit code 1, as a systemd unit with `Restart=on-failure` would want it; SIGTERM ends it with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

REFUSED = ("Bad user name or password", "Not authorized")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What one Vault secret gave."""

    username: str
    version: int
    password: str = field(repr=False)


def read_vault(address: str, token: str, path: str) -> Credentials:
    """The current version of the KV v2 secret `secret/{path}`, fields `username` and `password`.

    Raises:
        OSError: Vault did not answer, or not with 200.
        KeyError: the secret lacks a field.
    """
    request = urllib.request.Request(f"{address}/v1/secret/data/{path}", headers={"X-Vault-Token": token})  # noqa: S310
    with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310  # VAULT_ADDR is the operator's word
        found = json.load(response)["data"]
    data, version = found["data"], int(found["metadata"]["version"])
    return Credentials(username=data["username"], password=data["password"], version=version)


class Consumer:
    """One connection for each secret; `ends` gets the exit code when it is time to go."""

    def __init__(self, name: str, host: str, port: int, *, heartbeat: float) -> None:
        self._name, self._host, self._port, self._heartbeat = name, host, port, heartbeat
        # Put from signal handlers and from paho's threads, so it must be re-entrant; an Event is not.
        self.ends: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._clients: list[tuple[mqtt.Client, Credentials]] = []

    def connect(self, credentials: Credentials, client_id: str, topic: str) -> None:
        """Connect, and from then on print what arrives."""

        def on_connect(client: mqtt.Client, userdata: Any, flags: Any, rc: ReasonCode, properties: Any) -> None:
            if rc == 0:
                client.subscribe(topic, qos=1)
                self._beat(client, credentials)
            else:
                print(f"Connection failed: {rc}", flush=True)
                if rc.getName() in REFUSED:
                    self.ends.put(1)

        def on_subscribe(client: mqtt.Client, userdata: Any, mid: int, rcs: list[ReasonCode], properties: Any) -> None:
            if any(rc.is_failure for rc in rcs):
                print(f"Subscription failed: {topic}: {rcs[0]}", flush=True)
            else:
                print(f"Connected and subscribed to: {topic} (Vault version {credentials.version})", flush=True)

        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id)
        client.username_pw_set(credentials.username, credentials.password)
        client.on_connect, client.on_subscribe = on_connect, on_subscribe
        client.on_message = _print_message
        client.connect(self._host, self._port)
        client.loop_start()
        self._clients.append((client, credentials))

    def run(self) -> int:
        """Wait for the end; returns the exit code."""
        while True:
            try:
                return self.ends.get(timeout=self._heartbeat or None)
            except queue.Empty:
                for client, credentials in self._clients:
                    self._beat(client, credentials)

    def close(self) -> None:
        """Say goodbye to the broker."""
        for client, _ in self._clients:
            client.disconnect()
            client.loop_stop()

    def _beat(self, client: mqtt.Client, credentials: Credentials) -> None:
        if self._heartbeat:
            payload = {"consumer": self._name, "username": credentials.username, "version": credentials.version}
            client.publish(f"heartbeat/{self._name}", json.dumps(payload))


def _print_message(client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
    payload = json.loads(message.payload.decode())
    print(f"{message.topic}: {json.dumps(payload, indent=2)}", flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rotator.sandbox.consumer", description="a sandbox consumer")
    parser.add_argument("--name", required=True)
    parser.add_argument("--broker", required=True, metavar="HOST:PORT")
    parser.add_argument("--token-file", required=True, type=Path, help="a file with a Vault token")
    parser.add_argument(
        "--secret",
        required=True,
        action="append",
        metavar="PATH=FILTER",
        help="may be repeated; {username} is filled in",
    )
    parser.add_argument("--client-id", default="{name}-{key}", help="{key}: the last part of PATH")
    parser.add_argument("--heartbeat", type=float, default=0.0, metavar="SECONDS", help="publish to heartbeat/NAME")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM (0) or a refused login (1)."""
    options = _arguments(argv)
    host, _, port = options.broker.rpartition(":")
    consumer = Consumer(options.name, host, int(port), heartbeat=options.heartbeat)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: consumer.ends.put(0))
    try:
        token = options.token_file.read_text().strip()
        for secret in options.secret:
            path, _, topic = secret.partition("=")
            credentials = read_vault(os.environ["VAULT_ADDR"], token, path)
            client_id = options.client_id.format(name=options.name, key=path.rpartition("/")[2])
            consumer.connect(credentials, client_id, topic.format(username=credentials.username))
    except (OSError, KeyError) as exc:
        print(f"{options.name} can't start: {exc!r}", flush=True)
        return 1
    try:
        return consumer.run()
    finally:
        consumer.close()


if __name__ == "__main__":
    sys.exit(main())
