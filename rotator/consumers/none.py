"""Consumers that need no restart, since they follow Vault by themselves: there is only their proof to wait for."""

from __future__ import annotations

import threading
from datetime import timedelta

from rotator.model import Order, Ticket
from rotator.ports import Clock


class NoneConsumer:
    """Restarts nothing.

    Args:
        name: the name in the configuration.
        clock: the source of `Ticket.restarted_at`: from then on the consumer is expected to be seen.
        timeout, stop: what all kinds are given; there is nothing to wait for.
    """

    def __init__(
        self, name: str, *, clock: Clock, timeout: timedelta | None = None, stop: threading.Event | None = None
    ) -> None:
        self._name, self._clock = name, clock

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def kind(self) -> str:
        """`none`."""
        return "none"

    def preflight(self) -> None:
        """Nothing can be missing."""

    def restart(self, order: Order) -> Ticket:
        """Nothing happens, now."""
        return Ticket(consumer=self._name, restarted_at=self._clock.now())

    def check(self, ticket: Ticket) -> None:
        """Nothing was restarted, so nothing can have died of it."""
