"""The daemon on fakes, in real time: it wakes keys on time, drops none, and ends in order."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from rotator.clock import SystemClock
from rotator.daemon import Daemon
from rotator.engine import Engine
from rotator.errors import JournalFailed
from rotator.journal.seal import Fingerprints, Seal
from rotator.journal.spool import Spool
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import ISSUE_NOW, KeyRecord
from rotator.managed import ConsumerLink, ManagedKey
from rotator.metrics import Metrics
from rotator.model import (
    Abilities,
    Identity,
    Issued,
    Order,
    ProbeResult,
    ProbeTarget,
    Result,
    RotationEvent,
    Secret,
    StoredSecret,
    Strategy,
    Ticket,
    UpstreamKey,
    Verdict,
)
from rotator.policy import Policy
from rotator.ports import Judge
from rotator.reasons import Reason
from rotator.rotation import Limits, Rotation
from rotator.watcher import Watcher
from rotator.world import World

DAY = timedelta(days=1)
PATIENCE = 20.0


class Platform:
    """Many keys; `hold` keeps an issue call inside until the test lets it go."""

    name = "acme"
    strategy = Strategy.IN_PLACE
    abilities = Abilities(strategy=strategy, kills_old=True, expires=True)
    issue_deadline = timedelta(seconds=30)

    def __init__(self, clock: SystemClock) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self.issued_at: dict[str, datetime] = {}
        self.calls: list[str] = []
        self.inside, self.go = threading.Event(), threading.Event()
        self.go.set()

    def identity(self, id: str) -> Identity:
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        with self._lock:
            return [UpstreamKey(id=id, issued_at=at, expires_at=at + 90 * DAY) for id, at in self.issued_at.items()]

    def issue(self, identity: Identity) -> Issued:
        self.inside.set()
        assert self.go.wait(PATIENCE)
        with self._lock:
            self.calls.append(identity.id)
            now = self.issued_at[identity.id] = self._clock.now()
        secret = Secret(f"{identity.id}-{len(self.calls)}")
        return Issued(identity=identity, secret=secret, issued_at=now, expires_at=now + 90 * DAY)

    def close(self) -> None:
        """Nothing to give back."""


class Shelf:
    """Vault in memory, many paths."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.versions: dict[str, list[dict[str, str]]] = {}

    def ready(self) -> None:
        """Always."""

    def preflight(self, path: str, *, lasting: timedelta = timedelta(0), versions: int = 1) -> StoredSecret:
        return self.read(path)

    def read(self, path: str, version: int | None = None) -> StoredSecret:
        with self._lock:
            versions = self.versions[path]
            return StoredSecret(version=len(versions), data=versions[-1])

    def put(self, path: str, fields: Mapping[str, str], *, judge: Judge | None = None, known: int | None = None) -> int:
        with self._lock:
            self.versions[path].append(dict(fields))
            return len(self.versions[path])

    def undelete(self, path: str, version: int) -> None:
        raise AssertionError("nobody asked for this")

    def annotate(self, path: str, facts: Mapping[str, str]) -> None:
        """Nobody reads it."""

    def renew(self) -> datetime | None:
        return None

    def close(self) -> None:
        """Nothing to give back."""


class Gatekeeper:
    """A broker that lets everybody in."""

    def probe(self, target: ProbeTarget) -> ProbeResult:
        return ProbeResult(verdict=Verdict.ACCEPTED)


class Program:
    """A consumer that is restarted in no time, or when the test lets it."""

    kind = "command"

    def __init__(self, name: str, clock: SystemClock) -> None:
        self.name, self._clock = name, clock
        self.inside, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.restarts = 0

    def preflight(self) -> None:
        """Always."""

    def restart(self, order: Order) -> Ticket:
        self.inside.set()
        assert self.go.wait(PATIENCE)
        self.restarts += 1
        return Ticket(consumer=self.name, restarted_at=self._clock.now())

    def check(self, ticket: Ticket) -> None:
        """It stays up."""


FULL = JournalFailed("disk full", reason=Reason.JOURNAL_UNWRITABLE)


class CountedJournal(SqliteJournal):
    """A journal that can be made unwritable, and counts the writes that failed."""

    broken = False
    refused = 0
    tried = 0

    @property
    def unwritable(self) -> JournalFailed | None:
        return FULL if self.broken and self.refused else None

    def try_writing(self) -> None:
        self.tried += 1
        super().try_writing()

    def save(self, **parts: Any) -> KeyRecord | None:
        if self.broken:
            self.refused += 1
            raise FULL
        try:
            return super().save(**parts)
        except JournalFailed:
            self.refused += 1
            raise


class Fleet:
    """A daemon over any number of keys."""

    def __init__(
        self,
        directory: Path,
        size: int,
        *,
        grace: timedelta = timedelta(seconds=10),
        settle: timedelta = timedelta(0),
        shared: bool = False,
    ) -> None:
        self.clock = SystemClock()
        self.platform, self.shelf = Platform(self.clock), Shelf()
        self.program = Program("ingest", self.clock)  # of the first key; each has its own unless they share it
        self.shared = shared
        self.names = [f"key-{number:03}" for number in range(size)]
        self.events: list[RotationEvent] = []
        self.directory, self.grace, self.settle = directory, grace, settle
        for name in self.names:
            self.platform.issued_at[name] = self.clock.now() - 80 * DAY
            self.shelf.versions[name] = [{"password": "old"}]
        self.boot()

    def boot(self) -> None:
        """What `app` does."""
        self.journal = CountedJournal(f"sqlite:///{self.directory}/rotator.db")
        world = World(
            clock=self.clock,
            store=self.shelf,
            prober=Gatekeeper(),
            journal=self.journal,
            seal=Seal(b"k" * 32),
            fingerprints=Fingerprints(b"f" * 32),
            stop=threading.Event(),
        )
        keys = {name: self._key(name, own=number > 0 and not self.shared) for number, name in enumerate(self.names)}
        self.engine = Engine(keys, world, observers=[self.events.append], spool=Spool(self.directory / "spool"))
        self.watcher = Watcher(self.engine, {"acme": self.platform}, watch=DAY, drift_interval=DAY)
        self.registry = CollectorRegistry()
        self.daemon = Daemon(self.engine, self.watcher, Metrics(self.registry, keys), shutdown_grace=self.grace)

    def introduce(self, name: str, *, rotate_at: datetime, wake_at: datetime | None) -> None:
        """Give a key its record, as after its first looks."""
        issued = self.platform.issued_at[name]
        record = KeyRecord(
            name=name,
            provider="acme",
            id=name,
            listed_at=issued,
            first_seen_at=issued,
            issued_at=issued,
            expires_at=issued + 90 * DAY,
            draw=0.0,
            drawn_for=issued,
            rotate_at=rotate_at,
            adopted=True,
            wake_at=wake_at,
        )
        self.journal.save(key=name, change=lambda _old: record)

    def due(self, at: datetime) -> None:
        """All keys due at one instant. The provider's list must agree, since the daemon looks at it."""
        for name in self.names:
            self.platform.issued_at[name] = at - 76 * DAY
            self.introduce(name, rotate_at=at, wake_at=at)

    def rotated(self) -> list[Rotation]:
        return [r for r in self.journal.recent_rotations(limit=1000) if r.result is Result.SUCCEEDED]

    def sample(self, name: str) -> float:
        value = self.registry.get_sample_value(name)
        assert value is not None
        return value

    def end(self) -> None:
        self.platform.go.set()
        self.program.go.set()
        if self.daemon._scheduler.running:
            self.daemon.stop(lambda: True)
        self.journal.close()

    def _key(self, name: str, *, own: bool) -> ManagedKey:
        program = Program(f"program-{name}", self.clock) if own else self.program
        link = ConsumerLink(consumer=program, timeout=timedelta(seconds=5), settle=self.settle)
        return ManagedKey(
            name=name,
            provider=self.platform,
            id=name,
            policy=Policy(before_expiry=14 * DAY),
            limits=Limits(settle=self.settle),
            path=name,
            fields={"password": "{secret}"},
            consumers=(link,),
        )


MakeFleet = Callable[..., Fleet]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[MakeFleet]:
    with ExitStack() as stack:

        def make(size: int = 1, **more: Any) -> Fleet:
            fleet = Fleet(tmp_path, size, **more)
            stack.callback(fleet.end)
            return fleet

        yield make


def until(true: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Poll until something holds, with a deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        threading.Event().wait(0.01)


def test_a_hundred_keys_due_at_one_instant_are_all_rotated(fleet: MakeFleet) -> None:
    """None is dropped, none twice, though sixteen workers take them (measured.md: APScheduler drops jobs)."""
    many = fleet(100)
    many.due(many.clock.now() + timedelta(seconds=1))
    many.daemon.start()
    until(lambda: len(many.rotated()) >= 100, "a hundred rotations", 50)
    assert 0 == many.journal.refused, "writes that the journal refused, though nothing was wrong with it"
    assert many.names == sorted(many.platform.calls)
    assert [2] * 100 == [len(versions) for versions in many.shelf.versions.values()]
    assert {} == many.journal.open_rotations()
    assert [] == [event for event in many.events if event.result == "failed"]


def test_keys_that_share_a_consumer_are_rotated_one_after_the_other(fleet: MakeFleet) -> None:
    """Each is woken as soon as the one before it is done, and no restart undoes another's proof."""
    some = fleet(8, shared=True)
    some.due(some.clock.now())
    some.daemon.start()
    until(lambda: len(some.rotated()) >= 8, "eight rotations", 20)
    assert (some.names, 8) == (sorted(some.platform.calls), some.program.restarts)


def test_a_key_is_woken_on_time(fleet: MakeFleet) -> None:
    """Not before it is due, and within a second of it, though nobody pokes."""
    one = fleet()
    at = one.clock.now() + timedelta(seconds=1.5)
    one.due(at)
    one.daemon.start()
    until(lambda: bool(one.rotated()), "the rotation")
    (rotation,) = one.rotated()
    assert timedelta(0) <= rotation.started_at - at < timedelta(seconds=1)


def test_a_poke_is_heard_at_once(fleet: MakeFleet) -> None:
    """Somebody asks for a key that is not due for weeks, while the scheduler sleeps."""
    one = fleet()
    one.platform.issued_at["key-000"] = one.clock.now() - DAY
    one.introduce("key-000", rotate_at=one.clock.now() + 75 * DAY, wake_at=one.clock.now() + DAY)
    one.daemon.start()
    until(lambda: one.watcher.health()["acme"].reason is None, "the first look")
    assert [] == one.platform.calls
    asked = one.clock.now()
    one.journal.save(
        key="key-000", change=lambda old: replace(known(old), requested=ISSUE_NOW, wake_at=one.clock.now())
    )
    one.daemon.poke()
    until(lambda: bool(one.rotated()), "the rotation that was asked for", 5)
    assert one.rotated()[0].started_at - asked < timedelta(seconds=1)


def known(record: KeyRecord | None) -> KeyRecord:
    assert record is not None
    return record


def test_a_key_that_is_due_at_the_start_is_rotated(fleet: MakeFleet) -> None:
    """As `app` introduces it after a restart: known, due, and nothing changed at the provider since."""
    one = fleet()
    due = one.clock.now()
    one.due(due)
    one.introduce("key-000", rotate_at=due, wake_at=one.clock.now())
    one.daemon.start()
    until(lambda: bool(one.rotated()), "the rotation of a key that was due when the daemon started", 6)


def test_a_rotation_in_flight_is_resumed(fleet: MakeFleet) -> None:
    """What the last process left open goes on at the start, with no second issue call."""
    one = fleet()
    one.due(one.clock.now())
    one.program.go.clear()
    one.daemon.start()
    assert one.program.inside.wait(PATIENCE)
    stopping = threading.Thread(target=one.daemon.stop, args=[lambda: True])  # as after a second signal
    stopping.start()
    until(one.engine.world.stop.is_set, "the end of the grace that nobody waits for", 3)
    one.program.go.set()
    stopping.join(PATIENCE)
    one.journal.close()
    assert ["key-000"] == one.platform.calls
    one.boot()
    rotation = one.journal.open_rotation("key-000")
    if rotation is not None:  # else the last step before the end was the last one at all
        one.journal.save(key="key-000", change=lambda old: replace(known(old), wake_at=one.clock.now()))
    one.daemon.start()
    until(lambda: 1 == len(one.rotated()), "the end of the rotation")
    assert ["key-000"] == one.platform.calls


def test_stopping_lets_a_rotation_end_within_the_grace(fleet: MakeFleet) -> None:
    """SIGTERM during the issue call: answer, Vault, restart and confirm are done before the process ends."""
    one = fleet()
    one.due(one.clock.now())
    one.platform.go.clear()
    one.daemon.start()
    assert one.platform.inside.wait(PATIENCE)
    stopping = threading.Thread(target=one.daemon.stop)
    stopping.start()
    one.platform.go.set()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert (1, {}) == (len(one.rotated()), one.journal.open_rotations())


def test_stopping_begins_nothing_new(fleet: MakeFleet) -> None:
    """A hundred are due; the ones that wait for a worker stay as they are and lose nothing."""
    many = fleet(100)
    many.platform.go.clear()
    many.due(many.clock.now())
    many.daemon.start()
    assert many.platform.inside.wait(PATIENCE)
    stopping = threading.Thread(target=many.daemon.stop)
    stopping.start()
    until(lambda: many.engine._draining.is_set(), "the drain")
    begun = {*many.engine.drafts, *many.journal.open_rotations()}
    many.platform.go.set()
    stopping.join(40)
    assert not stopping.is_alive()
    assert set(many.platform.calls) <= begun
    assert len(begun) < 100
    assert {} == {name: r for name, r in many.journal.open_rotations().items() if r.issues > 0}


def test_a_grace_that_is_over_leaves_the_rotation_resumable(fleet: MakeFleet) -> None:
    """A consumer that takes too long: the secret is in Vault, the rotation open, the stop not endless."""
    one = fleet(grace=timedelta(seconds=0.3))
    one.due(one.clock.now())
    one.program.go.clear()
    one.daemon.start()
    assert one.program.inside.wait(PATIENCE)
    stopping = threading.Thread(target=one.daemon.stop)
    stopping.start()
    until(one.engine.world.stop.is_set, "the end of the grace", 5)
    one.program.go.set()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert 2 == len(one.shelf.versions["key-000"])
    rotation = one.journal.open_rotation("key-000")
    assert rotation is not None
    assert 1 == rotation.issues


def test_an_issue_call_on_its_way_is_waited_for(fleet: MakeFleet) -> None:
    """Even when the grace is over: its answer must be sealed (rule 1)."""
    one = fleet(grace=timedelta(seconds=0.2))
    one.due(one.clock.now())
    one.platform.go.clear()
    one.daemon.start()
    assert one.platform.inside.wait(PATIENCE)
    stopping = threading.Thread(target=one.daemon.stop)
    stopping.start()
    until(one.engine.world.stop.is_set, "the end of the grace", 5)
    assert stopping.is_alive()
    one.platform.go.set()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    rotation = one.journal.open_rotation("key-000")
    assert rotation is not None
    row = one.journal.sealed(rotation.id)
    assert (True, True) == (rotation.sealed, row is not None)


def test_stop_without_work_is_quick(fleet: MakeFleet) -> None:
    """Nothing in flight, nothing to wait for; a poke afterwards is no fault."""
    one = fleet()
    one.introduce("key-000", rotate_at=one.clock.now() + 70 * DAY, wake_at=one.clock.now() + DAY)
    one.daemon.start()
    until(one.daemon.alive, "the first tick", 5)
    began = time.monotonic()
    one.daemon.stop()
    assert time.monotonic() - began < 3
    one.daemon.poke()
    assert [] == [t.name for t in threading.enumerate() if t.name.startswith(("rotation", "APScheduler"))]


def test_alive_means_that_it_has_ticked_lately(fleet: MakeFleet) -> None:
    """What /livez says; and Prometheus sees the tick."""
    one = fleet()
    assert one.daemon.alive() is False
    one.daemon.start()
    until(one.daemon.alive, "the first tick", 5)
    assert abs(one.sample("rotator_scheduler_last_tick_timestamp_seconds") - datetime.now(UTC).timestamp()) < 5


def test_a_journal_that_can_not_be_written_is_not_hammered(fleet: MakeFleet) -> None:
    """A full disk: the key stays due, and it is tried again a few times a second at most, not fifty."""
    one = fleet()
    one.due(one.clock.now() + timedelta(seconds=0.5))
    one.journal.broken = True
    one.daemon.start()
    until(lambda: one.journal.refused > 0, "the first refusal")
    first = one.journal.refused
    threading.Event().wait(1.5)  # the time over which is counted, not a synchronisation
    tried = one.journal.refused - first
    one.journal.broken = False
    until(lambda: bool(one.rotated()), "the rotation, as soon as the disk has room again")
    assert tried <= 15


def test_a_full_disk_does_not_keep_the_daemon_from_stopping(fleet: MakeFleet) -> None:
    """Due keys that can't be begun are not waited for, and not tried again and again, for the whole grace."""
    many = fleet(40, grace=timedelta(seconds=15))
    many.due(many.clock.now() + timedelta(seconds=0.2))
    many.journal.broken = True
    many.daemon.start()
    until(lambda: len(many.daemon._busy) == 40 and many.journal.refused >= 40, "all of them are refused")
    before, began = many.journal.refused, time.monotonic()
    many.daemon.stop()
    assert (True, True) == (time.monotonic() - began < 4, many.journal.refused - before <= 40)


def test_a_daemon_that_stops_on_a_full_disk_takes_up_nothing(fleet: MakeFleet) -> None:
    """A key whose record can't be moved on would come back as it is until the grace is over."""
    one = fleet()
    one.due(one.clock.now())
    one.journal.broken, one.journal.refused = True, 1
    one.engine.drain()
    one.daemon._wake()
    one.daemon._pool.shutdown(wait=True)
    assert 1 == one.journal.refused


def test_a_journal_that_failed_is_tried_until_it_takes_something(fleet: MakeFleet) -> None:
    """The next write of its own may be an hour away; a journal that is well is left alone."""
    one = fleet()
    (job,) = (job for job in one.daemon._jobs() if job.name == "journal")
    job.run()
    assert 0 == one.journal.tried
    one.journal.broken, one.journal.refused = True, 1
    job.run()
    assert 1 == one.journal.tried


def test_stopping_names_the_keys_that_are_waited_for(fleet: MakeFleet) -> None:
    """Also one whose rotation waits for a time to pass while no thread works on it: not an empty list for a minute."""
    one = fleet(settle=timedelta(seconds=5))
    one.due(one.clock.now())
    one.daemon.start()
    until(lambda: one.program.restarts == 1 and not one.daemon._busy, "the restart is done, and settles")
    with capture_logs() as lines:
        one.daemon.stop(lambda: True)
    (stopping,) = (line for line in lines if line["event"] == "stopping")
    assert ["key-000"] == stopping["in_flight"]


def test_a_job_that_fails_does_not_stop_the_others(fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider's list can't be read by name; due keys are rotated all the same."""
    one = fleet()
    one.due(one.clock.now() + timedelta(seconds=0.3))

    def broken() -> None:
        raise JournalFailed("a record can't be read", reason=Reason.JOURNAL_UNREADABLE)

    monkeypatch.setattr(one.watcher, "look_at_vault", broken)
    one.daemon.start()
    until(lambda: bool(one.rotated()), "the rotation")


SIGNALLED = """
import sys, threading
from pathlib import Path
from unit_daemon import Fleet
fleet = Fleet(Path(sys.argv[1]), 1)
fleet.introduce("key-000", rotate_at=fleet.clock.now(), wake_at=None)
fleet.daemon.start()
print("started", flush=True)
fleet.daemon.run_until_signalled()
fleet.journal.close()
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [2, 15], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_process_in_order(tmp_path: Path, number: int) -> None:
    """A real process: it tells systemd READY and STOPPING, and ends by itself with code 0."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        program = SIGNALLED.replace("from unit_daemon import Fleet", _LOAD.format(path=str(Path(__file__))))
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
        ) as child:
            try:
                told = [manager.recv(4096).decode()]
                child.send_signal(number)
                while not told[-1].startswith("STOPPING"):
                    told.append(manager.recv(4096).decode())
                output, _ = child.communicate(timeout=PATIENCE)
            finally:
                child.kill()
    assert ["READY=1", "STOPPING=1"] == [text.splitlines()[0] for text in (told[0], told[-1])]
    assert (["started", "ended"], 0) == (
        [line for line in output.splitlines() if line in {"started", "ended"}],
        child.returncode,
    )


def test_a_hangup_is_survived_and_logged(tmp_path: Path) -> None:
    """SIGHUP, by which others reload: the process lives on and says so; SIGTERM still ends it in order."""
    program = SIGNALLED.replace("from unit_daemon import Fleet", _LOAD.format(path=str(Path(__file__))))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        (tmp_path / "output").open("w") as written,
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], env=environment, stdout=written, stderr=subprocess.STDOUT
        ) as child,
    ):
        try:
            until(lambda: _handles(child.pid, signal.SIGHUP), "the daemon listens to signals")
            child.send_signal(signal.SIGHUP)
            until(lambda: "hangup_ignored" in (tmp_path / "output").read_text(), "the line of the log")
            assert child.poll() is None
            child.send_signal(signal.SIGTERM)
            assert 0 == child.wait(PATIENCE)
        finally:
            child.kill()
    output = (tmp_path / "output").read_text()
    assert ("restart the daemon" in output, "ended" in output.splitlines()) == (True, True)


def _handles(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal (proc(5), SigCgt)."""
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


_LOAD = """
import importlib.util
spec = importlib.util.spec_from_file_location("unit_daemon", {path!r})
unit_daemon = importlib.util.module_from_spec(spec)
sys.modules["unit_daemon"] = unit_daemon
spec.loader.exec_module(unit_daemon)
Fleet = unit_daemon.Fleet
"""
