"""The broker's side of a platform: who may come in, and with which secret."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol


class TokenSink(Protocol):
    """What a platform tells its broker.

    A key's username may subscribe to, and receive, `haltian-iot/events/{any}/{username}/#` and `telemetry/#`, and may
    publish to `heartbeat/#`; nothing else.
    """

    def grant(self, username: str, token: str) -> None:
        """From now on exactly this token lets this username in; sessions that came in with another one end."""
        ...

    def revoke(self, username: str) -> None:
        """From now on nothing lets this username in; its sessions end. Absent is success."""
        ...


class ForgetfulSink:
    """A sink without a broker behind it."""

    def grant(self, username: str, token: str) -> None:
        """Nothing."""

    def revoke(self, username: str) -> None:
        """Nothing."""


class Follower:
    """Keeps a broker in step with a platform that tells all its logins at each change. Thread safe.

    Several platforms may share a broker, each with a follower of its own, as long as they don't share usernames.
    """

    def __init__(self, sink: TokenSink) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._live: dict[str, str] = {}

    def __call__(self, live: Mapping[str, str]) -> None:
        """From now on exactly these usernames and passwords are let in."""
        with self._lock:
            before, self._live = self._live, dict(live)
            for username in before.keys() - self._live.keys():
                self._sink.revoke(username)
            for username, password in self._live.items():
                if before.get(username) != password:
                    self._sink.grant(username, password)


EVENTS_PREFIX = "haltian-iot/events"
# What a key may read where the platform's usernames change with the secret, and so can stand in no topic.
TELEMETRY_PREFIX = "telemetry"
HEARTBEAT_PREFIX = "heartbeat"


def events_topic(integration_id: str, username: str) -> str:
    """The topic below which a key's events are published (seed 000, step 5)."""
    return f"{EVENTS_PREFIX}/{integration_id}/{username}"
