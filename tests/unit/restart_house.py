"""One key, its consumers, and the process that looks after them: a whole engine over a real journal; the platform,
Vault, the broker and the consumers are those of the simulation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event

from rotator.engine import Engine
from rotator.errors import RotatorError
from rotator.journal.seal import Fingerprints, Seal
from rotator.journal.spool import Spool
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import KeyRecord
from rotator.managed import ConsumerLink, ManagedKey
from rotator.model import Order, RotationEvent, Secret, Strategy, Ticket
from rotator.rotation import ConsumerPlan, Rotation
from rotator.taking_up import introduce
from rotator.world import World as EngineWorld
from simulation.world import Broker, Consumer, Platform, Vault, World, managed

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
KEY, OLD = "building-a", "old"


@dataclass
class Worker(Consumer):
    """A consumer that keeps the times of its restarts, and may be broken."""

    broken: bool = False  # comes up with nothing
    replicas: int = 1
    at: list[datetime] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)

    def restart(self, order: Order) -> Ticket:
        self.at.append(self.world.clock.now())
        self.orders.append(order)
        if not self.replicas:
            return Ticket(consumer=self.name, restarted_at=self.world.clock.now(), marks={"replicas": 0})
        return super().restart(order)

    def connect(self) -> None:
        if not self.broken:
            super().connect()


@dataclass
class Copier:
    """Hands a secret on some time after Vault got it (ports.Delivery)."""

    house: House
    takes: timedelta
    asked: list[Order] = field(default_factory=list)
    missing: RotatorError | None = None

    def preflight(self) -> None:
        if self.missing is not None:
            raise self.missing

    def ask(self, order: Order) -> None:
        self.asked.append(order)

    def arrived(self, order: Order, secret: Secret, since: datetime) -> bool:
        assert secret.reveal() == self.house.vault.current(f"mqtt/{KEY}")["password"]
        return self.house.now >= since + self.takes


class House:
    """One key, its consumers, and the process that looks after them."""

    def __init__(self, directory: Path, strategy: Strategy, names: list[str]) -> None:
        self.world = World()
        self.platform = Platform(self.world, strategy)
        self.vault = Vault(self.world)
        self.broker = Broker(self.world, self.platform)
        self.directory = directory
        old = self.platform.add(OLD, age=59 * DAY)
        self.vault.paths[f"mqtt/{KEY}"] = [{"username": OLD, "password": old.secret}]
        self.workers = {name: Worker(name, self.world, self.vault, self.platform, f"mqtt/{KEY}") for name in names}
        for worker in self.workers.values():
            Consumer.restart(worker, Order(key=KEY, version=1))
        self.platform.on_change = lambda: [worker.cut_off() for worker in self.workers.values()]  # type: ignore[assignment,func-returns-value]
        self.events: list[RotationEvent] = []
        self.key = managed(KEY, OLD, self.platform, list(self.workers.values()))

    def plan(self, **plans: Mapping[str, object]) -> None:
        """How consumers want to be restarted, by name."""
        made = tuple(ConsumerPlan(name=name, **plan) for name, plan in plans.items())  # type: ignore[arg-type]
        self.key = replace(self.key, limits=replace(self.key.limits, plans=made))

    def link(self, name: str, change: Callable[[ConsumerLink], ConsumerLink]) -> None:
        """Wire one consumer otherwise."""
        links = tuple(change(link) if link.consumer.name == name else link for link in self.key.consumers)
        self.key = replace(self.key, consumers=links)

    def boot(self, *more: ManagedKey) -> Engine:
        """Start a process on the journal."""
        self.journal = SqliteJournal(f"sqlite:///{self.directory}/rotator.db")
        keys = {key.name: key for key in (self.key, *more)}
        introduce(self.journal, keys, self.world.clock)
        world = EngineWorld(
            clock=self.world.clock,
            store=self.vault,
            prober=self.broker,
            journal=self.journal,
            seal=Seal(b"k" * 32),
            fingerprints=Fingerprints(b"f" * 32),
            stop=Event(),
        )
        spool = Spool(self.directory / "spool")
        dice = random.Random(1)
        self.engine = Engine(keys, world, observers=[self.events.append], spool=spool, dice=dice)
        return self.engine

    def ask(self, name: str = KEY, requested: str = "window") -> None:
        """Ask for a rotation in the windows, as `rotator rotate` does."""

        def change(old: KeyRecord | None) -> KeyRecord:
            assert old is not None
            now = self.now
            return replace(old, adopted=True, listed_at=now, issued_at=now - DAY, requested=requested)

        self.journal.save(key=name, change=change)

    def work(self, span: timedelta, *, name: str = KEY, step: timedelta = SECOND) -> None:
        """Let the engine work while time passes, until it has nothing to do or the span is over."""
        end = self.now + span
        while self.now < end:
            self.engine.work(name)
            self.world.clock.pass_time(step)

    @property
    def now(self) -> datetime:
        """The wall clock."""
        return self.world.clock.now()

    @property
    def rotation(self) -> Rotation:
        """The last one."""
        return self.journal.recent_rotations(key=KEY, limit=1)[0]

    @property
    def record(self) -> KeyRecord:
        """The key's."""
        found = self.journal.key(KEY)
        assert found is not None
        return found


Build = Callable[..., House]


@contextmanager
def building(directory: Path) -> Iterator[Build]:
    """Makes houses; their journals are closed at the end."""
    made: list[House] = []

    def make(strategy: Strategy, *names: str) -> House:
        made.append(House(directory, strategy, list(names)))
        return made[-1]

    yield make
    for house in made:
        house.journal.close()


def rebooted(house: House) -> House:
    """The process ends, and another one is started on the journal."""
    house.journal.close()
    house.boot().catch_up()
    return house


def restarts(house: House) -> dict[str, int]:
    """How often each consumer was restarted."""
    return {name: len(worker.at) for name, worker in house.workers.items()}
