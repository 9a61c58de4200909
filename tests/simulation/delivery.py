"""A consumer's own way to its secret that is late: the world's double of an agent, a file or an External Secret."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from rotator.model import Order, Secret
from simulation.world import AFTER, BEFORE, World


class Versions(list[dict[str, str]]):
    """The versions of one path of `Vault`, and when each was written, by true time, whoever wrote it."""

    def __init__(self, world: World, versions: Iterable[dict[str, str]] = ()) -> None:
        super().__init__()
        self._world = world
        self.written: list[datetime] = []
        for version in versions:
            self.append(version)

    def append(self, version: dict[str, str]) -> None:
        """Vault holds one version more."""
        super().append(version)
        self.written.append(self._world.clock.true)

    def as_of(self, moment: datetime) -> dict[str, str]:
        """What was current then; before the first one was written, the first one."""
        return self[max(0, bisect_right(self.written, moment) - 1)]


class Copy:
    """What a consumer reads: the path as it was `late` ago (ports.Delivery).

    Args:
        whose: the name that its points carry.
    """

    def __init__(self, world: World, whose: str, versions: Versions, late: timedelta) -> None:
        self._world, self._whose, self._versions, self.late = world, whose, versions, late

    def held(self) -> Mapping[str, str]:
        """What the copy holds now."""
        return self._versions.as_of(self._world.clock.true - self.late)

    def preflight(self) -> None:
        """It is there."""

    def ask(self, order: Order) -> None:
        self._world.at("delivery.ask", BEFORE, self._whose)
        self._world.at("delivery.ask", AFTER, self._whose)

    def arrived(self, order: Order, secret: Secret, since: datetime) -> bool:
        self._world.at("delivery.arrived", BEFORE, self._whose)
        return self.held()["password"] == secret.reveal()
