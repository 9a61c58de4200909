"""A real MQTT client that remembers everything that happens to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion


class Listener:
    """Connects once, without reconnecting; `events` are `(what, …)` tuples in order of arrival.

    `("connect", reason)`, `("disconnect",)`, `("subscribe", [reason, …])`, `("message", topic, payload)`.
    """

    def __init__(self, host: str, port: int, username: str, password: str, client_id: str) -> None:
        self.events: list[tuple[Any, ...]] = []
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False)
        self._client.username_pw_set(username, password)
        self._client.on_connect = lambda c, u, f, reason, p: self._note("connect", str(reason))
        self._client.on_disconnect = lambda c, u, f, reason, p: self._note("disconnect")
        self._client.on_subscribe = lambda c, u, m, reasons, p: self._note("subscribe", [str(r) for r in reasons])
        self._client.on_message = lambda c, u, message: self._note("message", message.topic, message.payload.decode())
        self._client.connect(host, port)
        self._client.loop_start()

    def connected(self) -> Self:
        """Wait until the broker let it in; fails when it did not."""
        self.wait_for("connect")
        assert self.events[0] == ("connect", "Success")
        return self

    def subscribe(self, topic: str) -> str:
        """Subscribe with QoS 1 and return the broker's verdict."""
        before = len([event for event in self.events if event[0] == "subscribe"])
        self._client.subscribe(topic, qos=1)
        self.wait(lambda: len([event for event in self.events if event[0] == "subscribe"]) > before, "a SUBACK")
        return str([event for event in self.events if event[0] == "subscribe"][-1][1][0])

    def publish(self, topic: str, payload: str) -> None:
        """Publish with QoS 1 and wait until the broker has it."""
        self._client.publish(topic, payload, qos=1).wait_for_publish(5)

    def messages(self, prefix: str = "") -> list[tuple[str, str]]:
        """Topic and payload of all messages below `prefix` so far."""
        return [event[1:] for event in list(self.events) if event[0] == "message" and event[1].startswith(prefix)]

    def wait_for(self, what: str) -> None:
        """Wait for an event of that kind."""
        self.wait(lambda: any(event[0] == what for event in self.events), what)

    def wait(self, look: Callable[[], bool], what: str, timeout: float = 10) -> None:
        """Wait until `look` says yes; fails with what was seen instead."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not look():
                left = deadline - time.monotonic()
                assert left > 0, f"no {what}; seen: {self.events}"
                self._changed.wait(left)

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _note(self, *event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()
