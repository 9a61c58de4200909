"""A copier that hands each secret on a minute late: in 1,000 rotations nobody is restarted onto the old one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest

from rotator.engine import Engine
from rotator.journal.seal import Fingerprints, Seal
from rotator.journal.spool import Spool
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import KeyRecord
from rotator.model import Order, Result, RotationEvent, Strategy, Ticket
from rotator.taking_up import introduce
from rotator.world import World as EngineWorld
from simulation.delivery import Copy, Versions
from simulation.world import Broker, Consumer, Platform, Vault, World, managed

KEY, PATH, OLD = "building-a", "mqtt/building-a", "old"
LATE = timedelta(seconds=60)


@dataclass
class Reader(Consumer):
    """Reads the copy, and counts how often it was restarted onto another secret than Vault's."""

    stale: int = 0

    def restart(self, order: Order) -> Ticket:
        ticket = super().restart(order)
        self.stale += self.runs_on[1] != self.vault.current(PATH)["password"]
        return ticket


class Late:
    """One key, two readers of the copy, and the engine."""

    def __init__(self, directory: Path, strategy: Strategy, *, delivered: bool) -> None:
        self.world = World()
        self.clock = self.world.clock
        self.platform = Platform(self.world, strategy)
        self.vault = Vault(self.world)
        key = self.platform.add(OLD)
        versions = Versions(self.world, [{"username": OLD, "password": key.secret}])
        self.vault.paths[PATH] = versions
        copy = Copy(self.world, KEY, versions, LATE)
        readers = [Reader(n, self.world, self.vault, self.platform, PATH, reads=copy.held) for n in ("a", "b")]
        self.readers = readers
        deliveries = {reader.name: copy for reader in readers} if delivered else None
        made = managed(KEY, OLD, self.platform, readers, deliveries=deliveries)
        self.made = replace(made, limits=replace(made.limits, grace=timedelta(seconds=5)))
        self.events: list[RotationEvent] = []
        self.journal = SqliteJournal(f"sqlite:///{directory}/rotator.db")
        introduce(self.journal, {KEY: self.made}, self.clock)
        world = EngineWorld(
            clock=self.clock,
            store=self.vault,
            prober=Broker(self.world, self.platform),
            journal=self.journal,
            seal=Seal(b"k" * 32),
            fingerprints=Fingerprints(b"f" * 32),
            stop=Event(),
        )
        dice, spool = random.Random(7), Spool(directory / "spool")
        self.engine = Engine({KEY: self.made}, world, observers=[self.events.append], spool=spool, dice=dice)

    def rotate(self) -> None:
        """Ask for one, and let time pass from one wake-up to the next until it has ended."""

        def asked(old: KeyRecord | None) -> KeyRecord:
            assert old is not None
            now = self.clock.now()
            return replace(
                old, adopted=True, listed_at=now, requested="now", wake_at=now, issued_at=old.issued_at or now
            )

        self.journal.save(key=KEY, change=asked)
        for _ in range(200):
            self.engine.work(KEY)
            record = self.journal.key(KEY)
            assert record is not None
            if self.journal.open_rotation(KEY) is None and not record.requested:
                return
            ahead = record.wake_at - self.clock.now() if record.wake_at is not None else timedelta(0)
            self.clock.pass_time(max(ahead, timedelta(milliseconds=100)))
        raise AssertionError(f"no end: {self.journal.open_rotation(KEY)}")

    def ended(self) -> list[str]:
        """How the rotations ended."""
        return [event.result for event in self.events if event.name == "rotation_ended"]


@pytest.fixture
def journals() -> Iterator[list[Late]]:
    """Closed at the end."""
    made: list[Late] = []
    yield made
    for late in made:
        late.journal.close()


@pytest.mark.parametrize("rotations", [30, pytest.param(500, marks=pytest.mark.long)])
@pytest.mark.parametrize("strategy", [Strategy.IN_PLACE, Strategy.REPLACE])
def test_nobody_is_restarted_onto_the_old_secret(
    tmp_path: Path, journals: list[Late], strategy: Strategy, rotations: int
) -> None:
    """Nor confirmed falsely: each restart reads what Vault holds, however late the copy is."""
    late = Late(tmp_path, strategy, delivered=True)
    journals.append(late)
    for _ in range(rotations):
        late.rotate()
        assert all(reader.runs_on[1] == late.vault.current(PATH)["password"] for reader in late.readers)
    assert [Result.SUCCEEDED] * rotations == late.ended()
    assert [0, 0] == [reader.stale for reader in late.readers]
    assert [rotations] * 2 == [reader.restarts for reader in late.readers]


def test_without_waiting_they_would_be(tmp_path: Path, journals: list[Late]) -> None:
    """The same copier with `deliver: direct`: what the test above would see."""
    late = Late(tmp_path, Strategy.IN_PLACE, delivered=False)
    journals.append(late)
    late.rotate()
    assert all(reader.stale for reader in late.readers)
