"""Consumers that live in the test's own process: a fleet that is told over MQTT, and one behind a webhook.

Each reads Vault when it is told to, logs in at the broker with what it has read, and says so only once it was let in.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from acceptance.daemon_process import until
from acceptance.daemon_site import Site, SiteKey
from contract.consumer_site import Reply, Request
from contract.consumer_site import Site as WebSite
from rotator.sandbox.consumer import Credentials, read_vault
from rotator.sandbox.mosquitto import MosquittoBroker


class Member:
    """Something that runs on a secret. `orders` counts how often it was told to take up another."""

    def __init__(self, site: Site, key: SiteKey, name: str) -> None:
        self.name, self._site, self._key = name, site, key
        self.orders = 0
        self.running_on: Credentials | None = None
        self._client: mqtt.Client | None = None
        self.take_up()
        until(lambda: self.running_on, f"{name} is let in")

    def take_up(self, then: Callable[[int], None] = lambda _version: None) -> None:
        """Read Vault and log in anew; `then` gets the version once the broker has let it in."""
        held = read_vault(self._site.vault.url, self._site.vault.root_token, self._key.path)
        self.close()

        def connected(_client: mqtt.Client, _data: Any, _flags: Any, code: Any, _rest: Any) -> None:
            if code == 0:
                self.running_on = held
                then(held.version)

        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=self.name, reconnect_on_failure=False)
        self._client.username_pw_set(held.username, held.password)
        self._client.on_connect = connected
        self._client.connect(self._site.broker.host, self._site.broker.port)
        self._client.loop_start()

    def close(self) -> None:
        """Leave the broker."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None


class FleetMember(Member):
    """One that hears orders on `fleet/control`, by a login of its own, and acknowledges them on `fleet/ack/NAME`."""

    def __init__(self, site: Site, key: SiteKey, name: str, login: tuple[str, str]) -> None:
        super().__init__(site, key, name)
        ready = threading.Event()
        self._control = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"{name}-control")
        self._control.username_pw_set(*login)
        self._control.on_connect = lambda client, *_: client.subscribe("fleet/control", 1)
        self._control.on_subscribe = lambda *_: ready.set()
        self._control.on_message = self._told
        self._control.connect(site.broker.host, site.broker.port)
        self._control.loop_start()
        assert ready.wait(10), f"{name} does not hear its orders"

    def close_all(self) -> None:
        """Leave for good."""
        self._control.disconnect()
        self._control.loop_stop()
        self.close()

    def _told(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        self.orders += 1
        order = json.loads(message.payload)
        self.take_up(lambda version: self._acknowledge(order["key"], version))

    def _acknowledge(self, key: str, version: int) -> None:
        self._control.publish(f"fleet/ack/{self.name}", json.dumps({"key": key, "version": version}), qos=1)


def fleet_login(broker: MosquittoBroker) -> tuple[str, str]:
    """An account of the control channel's own, since the keys' secrets die."""
    name, password = "fleet", "made-up-fleet-password"
    kinds = ("publishClientSend", "subscribePattern")
    acls = [{"acltype": kind, "topic": "fleet/#", "allow": True} for kind in kinds]
    role = {"command": "createRole", "rolename": name, "acls": acls}
    roles = [{"rolename": name}]
    broker.command([role, {"command": "createClient", "username": name, "password": password, "roles": roles}])
    return name, password


class Hook:
    """A consumer behind `POST /restart`, signed, and `GET /version`. A context manager."""

    SECRET = "made-up-hook-secret"

    def __init__(self, site: Site, key: SiteKey) -> None:
        self.member = Member(site, key, "hook")
        self.refused = 0
        self._web = WebSite(self._answer)

    @property
    def url(self) -> str:
        """Of the server."""
        return self._web.url

    def __enter__(self) -> Self:
        self._web.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._web.__exit__(*exc)
        self.member.close()

    def _answer(self, request: Request) -> Reply:
        if request.method == "GET":
            held = self.member.running_on
            return Reply(body=json.dumps({"version": held.version if held is not None else 0}).encode())
        if request.method == "POST":
            signed = request.headers["rotator-timestamp"].encode() + b"." + request.body
            wanted = "sha256=" + hmac.new(self.SECRET.encode(), signed, hashlib.sha256).hexdigest()
            if not hmac.compare_digest(wanted, request.headers["rotator-signature"]):
                self.refused += 1
                return Reply(status=401)
            self.member.orders += 1
            self.member.take_up()
        return Reply(status=204)
