"""The broker's side of a platform: who may come in, and with which secret."""

from __future__ import annotations

from typing import Protocol


class TokenSink(Protocol):
    """What a platform tells its broker.

    A key's username may subscribe to, and receive, `haltian-iot/events/{any}/{username}/#`, and may publish to
    `heartbeat/#`; nothing else.
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


EVENTS_PREFIX = "haltian-iot/events"
HEARTBEAT_PREFIX = "heartbeat"


def events_topic(integration_id: str, username: str) -> str:
    """The topic below which a key's events are published (seed 000, step 5)."""
    return f"{EVENTS_PREFIX}/{integration_id}/{username}"
