"""Two keys whose fields lie in one secret of Vault, on the whole engine: each keeps to its own fields."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from rotator.engine import Engine
from rotator.journal.seal import Fingerprints, Seal
from rotator.journal.spool import Spool
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import COMPROMISED, ISSUE_NOW, ROLL_BACK, KeyRecord, resting, versions_behind
from rotator.managed import ManagedKey
from rotator.model import Identity, Issued, Order, Result, Strategy
from rotator.reasons import Reason
from rotator.rotation import Rotation
from rotator.taking_up import introduce
from rotator.watcher import Watcher
from rotator.world import World
from simulation.world import Broker, Consumer, Platform, Vault, managed
from simulation.world import World as SimWorld

PATH = "mqtt/shared"
FIELDS = {
    "a": {"username": "{username}", "password": "{secret}"},
    "b": {"b_username": "{username}", "b_password": "{secret}"},
}
HOUR = timedelta(hours=1)


class Pair:
    """Keys a and b of one platform, in one secret; a has a consumer."""

    def __init__(self, directory: Path, strategy: Strategy) -> None:
        self.world = SimWorld()
        self.clock = self.world.clock
        self.platform = Platform(self.world, strategy)
        self.broker = Broker(self.world, self.platform)
        self.vault = Vault(self.world)
        born = {name: self.platform.add(f"id-{name}") for name in FIELDS}
        self.vault.paths[PATH] = [
            {
                "username": "id-a",
                "password": born["a"].secret,
                "b_username": "id-b",
                "b_password": born["b"].secret,
                "theirs": "kept",
            }
        ]
        self.consumer = Consumer("ingest", self.world, self.vault, self.platform, PATH)
        self.consumer.restart(Order(key="a", version=1))
        self.platform.on_change = self.consumer.cut_off
        self.journal = SqliteJournal(f"sqlite:///{directory}/rotator.db")
        world = World(
            clock=self.clock,
            store=self.vault,
            prober=self.broker,
            journal=self.journal,
            seal=Seal(b"k" * 32),
            fingerprints=Fingerprints(b"f" * 32),
            stop=threading.Event(),
        )
        keys = {name: self._key(name) for name in FIELDS}
        introduce(self.journal, keys, self.clock)
        self.engine = Engine(keys, world, spool=Spool(directory / "spool"), dice=random.Random(1))
        peers = {self.platform.name: self.platform}
        self.watcher = Watcher(self.engine, peers, watch=HOUR, drift_interval=HOUR, restore=True)
        self.look()

    def _key(self, name: str) -> ManagedKey:
        consumers = [self.consumer] if name == "a" else []
        key = managed(name, f"id-{name}", self.platform, consumers)
        return replace(key, path=PATH, fields=FIELDS[name], neighbours=1)

    def look(self) -> None:
        """What the watcher does now and then."""
        self.clock.pass_time(HOUR)
        self.watcher.look_at_provider(self.platform.name)
        self.watcher.keep_vault_login()
        self.watcher.look_at_vault()

    def ask(self, name: str, what: str) -> None:
        """A person asks, and the engine goes as far as it can."""
        self.change(name, requested=what)
        self.work(name)

    def work(self, name: str) -> None:
        """Until the key rests, or has no rotation."""
        for _ in range(10):
            self.engine.work(name)
            self.clock.pass_time(timedelta(seconds=5))

    def change(self, name: str, **facts: object) -> None:
        """Somebody changes a key's record."""

        def changed(old: KeyRecord | None) -> KeyRecord:
            assert old is not None
            return replace(old, **facts)  # type: ignore[arg-type]

        self.journal.save(key=name, change=changed)

    def record(self, name: str) -> KeyRecord:
        found = self.journal.key(name)
        assert found is not None
        return found

    def rotation(self, name: str) -> Rotation | None:
        return self.journal.open_rotation(name)

    def held(self, name: str) -> dict[str, str]:
        """This key's fields as they are now."""
        return {field: self.vault.current(PATH)[field] for field in FIELDS[name]}

    def works(self, name: str) -> bool:
        username, password = self.held(name).values()
        return self.platform.accepts(username, password)


def pair(tmp_path: Path, strategy: Strategy) -> Iterator[Pair]:
    made = Pair(tmp_path, strategy)
    yield made
    made.journal.close()


@pytest.fixture
def clones(tmp_path: Path) -> Iterator[Pair]:
    yield from pair(tmp_path, Strategy.REPLACE)


@pytest.fixture
def chosen(tmp_path: Path) -> Iterator[Pair]:
    yield from pair(tmp_path, Strategy.CHOSEN)


def test_rolling_one_back_keeps_what_the_other_got_since(clones: Pair) -> None:
    """Replace: a is new, then b is new, then a goes back; b stays new, and the third party's field too."""
    before = clones.held("a")
    clones.ask("a", ISSUE_NOW)
    first = clones.rotation("a")
    assert first is not None
    assert resting(first)
    clones.ask("b", ISSUE_NOW)
    newer = clones.held("b")
    assert "id-b" != newer["b_username"]
    clones.ask("a", ROLL_BACK)
    assert Result.ROLLED_BACK is clones.journal.recent_rotations(key="a")[0].result
    assert (before, newer, "kept") == (clones.held("a"), clones.held("b"), clones.vault.current(PATH)["theirs"])
    assert (clones.works("a"), clones.works("b")) == (True, True)
    assert ("id-a", before["password"]) == clones.consumer.runs_on


def test_nobody_is_accused_of_the_neighbours_writes(clones: Pair) -> None:
    """Versions go up under both; neither drifts, and no consumer is behind."""
    for name in ("a", "b", "a"):
        clones.ask(name, COMPROMISED)
        clones.look()
        clones.work(name)
    assert [None, None] == [clones.record(name).drift for name in FIELDS]
    assert 0 == versions_behind(clones.record("a"), "ingest")
    assert (clones.works("a"), clones.works("b")) == (True, True)


def test_an_ended_rotation_of_a_chosen_secret_goes_back_to_its_own_last_one(chosen: Pair) -> None:
    """The neighbour wrote versions below and above; what is set again is the key's own previous secret."""
    chosen.ask("b", ISSUE_NOW)
    chosen.ask("a", ISSUE_NOW)
    previous = chosen.held("a")["password"]
    chosen.ask("b", ISSUE_NOW)
    chosen.ask("a", ISSUE_NOW)
    chosen.ask("b", ISSUE_NOW)
    newest = chosen.held("b")
    chosen.ask("a", ROLL_BACK)
    assert (previous, newest) == (chosen.held("a")["password"], chosen.held("b"))
    assert (chosen.works("a"), chosen.works("b")) == (True, True)


def test_a_rollback_after_a_restore_sets_no_strangers_words(chosen: Pair) -> None:
    """What lay between our version and its copy is somebody else's slip: the platform never hears of it."""
    chosen.ask("a", ISSUE_NOW)
    previous = chosen.held("a")["password"]
    chosen.ask("a", ISSUE_NOW)
    newest = chosen.held("a")["password"]
    chosen.vault.paths[PATH].append({**chosen.vault.current(PATH), "password": "a slip"})
    chosen.look()
    assert newest == chosen.held("a")["password"]
    chosen.ask("a", ROLL_BACK)
    assert (previous, True) == (chosen.held("a")["password"], chosen.works("a"))


def test_a_restore_while_the_old_key_only_awaits_its_end(clones: Pair) -> None:
    """Somebody spoils Vault in the grace period: put back at once, and when the rotation ends nobody is behind."""
    clones.ask("a", ISSUE_NOW)
    good = clones.held("a")
    clones.vault.paths[PATH].append({**clones.vault.current(PATH), "password": "a slip"})
    clones.look()
    assert (good, None) == (clones.held("a"), clones.record("a").drift)
    assert 0 == versions_behind(clones.record("a"), "ingest")
    for _ in range(30):
        clones.look()
        clones.work("a")
    assert Result.SUCCEEDED is clones.journal.recent_rotations(key="a")[0].result
    assert (good, None) == (clones.held("a"), clones.record("a").drift)
    assert 0 == versions_behind(clones.record("a"), "ingest")


def test_a_rollback_after_a_restore_in_the_grace_period(clones: Pair) -> None:
    """The restored copy is what the rotation left, so the way back is as open as before it."""
    before = clones.held("a")
    clones.ask("a", ISSUE_NOW)
    clones.vault.paths[PATH].append({**clones.vault.current(PATH), "password": "a slip"})
    clones.look()
    clones.ask("a", ROLL_BACK)
    assert (before, True) == (clones.held("a"), clones.works("a"))
    clones.look()
    assert None is clones.record("a").drift


def somebody_writes_at_the_issue_call(clones: Pair, password: str) -> None:
    """Between a's preflight and its promote."""
    create = clones.platform.create

    def create_while_somebody_writes(identity: Identity, marker: str) -> Issued:
        clones.vault.paths[PATH].append({**clones.vault.current(PATH), "password": password})
        return create(identity, marker)

    clones.platform.create = create_while_somebody_writes  # type: ignore[method-assign]


def test_a_conflict_with_what_works_is_a_persons(clones: Pair) -> None:
    """Replace: somebody renewed the old key's secret by hand. It stands, also where the way back fails for it."""
    somebody_writes_at_the_issue_call(clones, "by hand")
    clones.platform.keys["id-a"] = replace(clones.platform.keys["id-a"], secret="by hand")
    clones.ask("a", ISSUE_NOW)
    rotation = clones.rotation("a")
    assert rotation is not None
    assert (Reason.VAULT_CONFLICT, Reason.VAULT_CONFLICT) == (rotation.quarantine, clones.record("a").drift)
    clones.ask("a", ROLL_BACK)
    assert (None, Reason.ROLLBACK_FAILED) == (clones.rotation("a"), clones.record("a").quarantine)
    for _ in range(3):
        clones.look()
        clones.work("a")
    assert ("by hand", Reason.VAULT_OVERWRITTEN) == (clones.held("a")["password"], clones.record("a").drift)
    assert (clones.works("a"), clones.works("b")) == (True, True)


def test_a_conflict_by_a_slip_is_settled(clones: Pair) -> None:
    """Neither key lets it in: the new one's is written, and its rotation goes on as ever."""
    somebody_writes_at_the_issue_call(clones, "a slip")
    clones.ask("a", ISSUE_NOW)
    rotation = clones.rotation("a")
    assert rotation is not None
    assert resting(rotation)
    assert (True, None) == (clones.works("a"), clones.record("a").drift)
