"""An engine, a watcher and `Control` over the small world of tests/simulation."""

from __future__ import annotations

import random
import threading
from datetime import timedelta
from pathlib import Path

from rotator.control import Control
from rotator.engine import Engine
from rotator.journal.seal import Fingerprints, Seal
from rotator.journal.spool import Spool
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import KeyRecord
from rotator.managed import ManagedKey
from rotator.model import RotationEvent, Strategy
from rotator.policy import Policy
from rotator.rotation import Limits, Rotation
from rotator.taking_up import introduce
from rotator.watcher import Watcher
from rotator.world import World as Parts
from simulation.world import BEFORE, START, Broker, Consumer, Hook, Platform, Vault, World, managed


class ControlStage:
    """Keys `key-0`, `key-1`, … at one platform, each with one consumer of its own."""

    def __init__(
        self,
        directory: Path,
        strategy: Strategy,
        *,
        keys: int = 1,
        policy: Policy | None = None,
        max_due_share: float = 0.1,
    ) -> None:
        self.directory = directory
        self.strategy, self.max_due_share = strategy, max_due_share
        self.world = World()
        self.platform = Platform(self.world, strategy)
        self.vault = Vault(self.world)
        self.policy = policy or Policy(before_expiry=timedelta(days=30))
        self.consumers: dict[str, Consumer] = {}
        for number in range(keys):
            self._add(number)
        self.platform.on_change = self._cut_off
        self.events: list[RotationEvent] = []
        self.journal = SqliteJournal(f"sqlite:///{directory}/rotator.db")
        self.boot()

    def _add(self, number: int) -> None:
        name, id = f"key-{number}", f"id-{number}"
        key = self.platform.add(id)
        path = f"mqtt/{name}"
        self.vault.paths[path] = [{"username": id, "password": key.secret}]
        consumer = Consumer(f"app-{number}", self.world, self.vault, self.platform, path)
        consumer.runs_on = (id, key.secret)
        consumer.connect()
        self.consumers[name] = consumer

    def _cut_off(self) -> None:
        for consumer in self.consumers.values():
            consumer.cut_off()

    def boot(self, *, policy: Policy | None = None) -> None:
        """Start an engine on the journal as it is, with a changed policy perhaps."""
        self.policy = policy or self.policy
        self.keys: dict[str, ManagedKey] = {
            name: managed(
                name,
                name.replace("key", "id"),
                self.platform,
                [consumer],
                policy=self.policy,
                limits=Limits(settle=timedelta(0), propagation=timedelta(seconds=5), grace=timedelta(hours=1)),
            )
            for name, consumer in self.consumers.items()
        }
        parts = Parts(
            clock=self.world.clock,
            store=self.vault,
            prober=Broker(self.world, self.platform),
            journal=self.journal,
            seal=Seal(b"k" * 32),
            fingerprints=Fingerprints(b"f" * 32),
            stop=threading.Event(),
        )
        introduce(self.journal, self.keys, self.world.clock)
        self.engine = Engine(
            self.keys,
            parts,
            observers=[self.events.append],
            spool=Spool(self.directory / "spool"),
            max_due_share=self.max_due_share,
            dice=random.Random(7),
        )
        self.platform.on_request = self.engine.skew.seen
        self.watcher = Watcher(
            self.engine,
            {self.platform.name: self.platform},
            watch=timedelta(seconds=1),
            drift_interval=timedelta(seconds=1),
        )
        self.control = Control(engine=self.engine, watcher=self.watcher, poke=lambda: None)
        self.look()

    def look(self) -> None:
        """What the daemon's jobs do."""
        self.world.clock.pass_time(timedelta(seconds=10))
        self.watcher.keep_vault_login()
        self.watcher.look_at_providers()
        self.watcher.look_at_vault()

    def work(self, name: str = "key-0", *, until: timedelta = timedelta(minutes=30)) -> None:
        """Let the engine work on a key, time passing as it asks, for `until` at most."""
        end = self.world.clock.true + until
        for _ in range(200):
            self.engine.work(name)
            wake = self.record(name).wake_at
            if wake is None or wake > end or self.rotation(name) is None:
                return
            self.world.clock.pass_time(max(timedelta(milliseconds=1), wake - self.world.clock.true))
        raise AssertionError(f"{name} never rests: {self.rotation(name)}")

    def on(self, point: str, whose: str, error: Exception) -> Hook:
        """From now on, this fails at one point of the world."""

        def hook(at: str, when: str, of: str) -> None:
            if (at, when) == (point, BEFORE) and whose in {of, ""}:
                raise error

        self.world.hook = hook
        return hook

    def record(self, name: str = "key-0") -> KeyRecord:
        """What the journal says of a key."""
        record = self.journal.key(name)
        assert record is not None
        return record

    def rotation(self, name: str = "key-0") -> Rotation | None:
        """The rotation in flight."""
        return self.journal.open_rotation(name)

    def last(self, name: str = "key-0") -> Rotation:
        """The newest rotation."""
        return self.journal.recent_rotations(key=name, limit=1)[0]

    def age(self) -> timedelta:
        """How much true time has passed."""
        return self.world.clock.true - START
