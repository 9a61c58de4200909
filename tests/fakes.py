"""Fakes that implement the Protocols of `rotator.ports` and fail on what a test did not expect."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rotator.engine import Engine
from rotator.errors import RotatorError
from rotator.journal.seal import Fingerprints, Seal
from rotator.journal.spool import Spool
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import KeyRecord
from rotator.managed import ConsumerLink, ManagedKey
from rotator.model import (
    Abilities,
    Identity,
    Issued,
    Order,
    ProbeResult,
    ProbeTarget,
    RotationEvent,
    Secret,
    Sighting,
    StoredSecret,
    Strategy,
    Ticket,
    UpstreamKey,
    Verdict,
)
from rotator.policy import Policy
from rotator.ports import Judge
from rotator.rotation import Limits
from rotator.world import World

START = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)


class FakeClock:
    """Stands still until it is moved; every reading moves it by a millisecond, so that moments differ."""

    def __init__(self) -> None:
        self._now = START
        self._lock = threading.Lock()

    def now(self) -> datetime:
        with self._lock:
            self._now += timedelta(milliseconds=1)
            return self._now

    def monotonic(self) -> float:
        return (self.now() - START).total_seconds()

    def pass_time(self, span: timedelta) -> None:
        with self._lock:
            self._now += span


@dataclass
class FakePlatform:
    """A provider in memory: one key, secrets by number."""

    clock: FakeClock
    name: str = "acme"
    issue_deadline: timedelta = timedelta(seconds=30)
    lifetime: timedelta = timedelta(days=90)
    live: str = "secret-0"
    issued: int = 0
    issued_at: datetime = START - timedelta(days=80)
    problem: object = None
    listed: bool = True
    failures: list[RotatorError] = field(default_factory=list)  # raised by `issue`, before the effect
    lost_answers: list[RotatorError] = field(default_factory=list)  # raised after the effect
    list_failures: list[RotatorError] = field(default_factory=list)
    expires_at: Callable[[datetime], datetime | None] | None = None

    @property
    def abilities(self) -> Abilities:
        return Abilities(strategy=self.strategy, kills_old=True, expires=True)

    @property
    def strategy(self) -> Strategy:
        return Strategy.IN_PLACE

    def identity(self, id: str) -> Identity:
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        if self.list_failures:
            raise self.list_failures.pop(0)
        if not self.listed:
            return []
        expires = self.issued_at + self.lifetime
        return [UpstreamKey(id="id-1", issued_at=self.issued_at, expires_at=expires, problem=self.problem)]  # type: ignore[arg-type]

    def issue(self, identity: Identity) -> Issued:
        if self.failures:
            raise self.failures.pop(0)
        self.issued += 1
        self.live = f"secret-{self.issued}"
        self.issued_at = self.clock.now()
        if self.lost_answers:
            raise self.lost_answers.pop(0)
        expires = self.expires_at(self.issued_at) if self.expires_at else self.issued_at + self.lifetime
        return Issued(identity=identity, secret=Secret(self.live), issued_at=self.issued_at, expires_at=expires)

    def close(self) -> None:
        """Nothing to give back."""


@dataclass
class FakeStore:
    """Vault in memory: versions of one path. A write is a read and a `cas` write, so that somebody may come in between.

    `gone`: versions that somebody deleted (False) or destroyed (True).
    """

    versions: list[dict[str, str]] = field(default_factory=list)
    failures: list[RotatorError] = field(default_factory=list)
    down: RotatorError | None = None
    gone: dict[int, bool] = field(default_factory=dict)
    undeleted: list[int] = field(default_factory=list)
    annotated: list[Mapping[str, str]] = field(default_factory=list)
    reads: int = 0
    between: list[Callable[[], None]] = field(default_factory=list)  # what others do before the next `cas` writes

    def _answer(self) -> None:
        if self.down is not None:
            raise self.down
        if self.failures:
            raise self.failures.pop(0)

    def _held(self, version: int) -> StoredSecret:
        if not 0 < version <= len(self.versions):
            return StoredSecret(version=0, data=None)
        data = self.versions[version - 1] if version not in self.gone else None
        return StoredSecret(version=version, data=data, destroyed=self.gone.get(version, False))

    def ready(self) -> None:
        self._answer()

    def preflight(self, path: str, *, lasting: timedelta = timedelta(0), versions: int = 1) -> StoredSecret:
        self._answer()
        return self.read(path)

    def read(self, path: str, version: int | None = None) -> StoredSecret:
        self._answer()
        self.reads += 1
        return self._held(len(self.versions) if version is None else version)

    def put(self, path: str, fields: Mapping[str, str], *, judge: Judge | None = None, known: int | None = None) -> int:
        self._answer()
        if known is not None and self._write(dict(fields), cas=known):
            return len(self.versions)
        while True:
            self.reads += 1
            current = self._held(len(self.versions))
            held = current.data or {}
            if current.data is not None and all(held.get(name) == value for name, value in fields.items()):
                return current.version
            if judge is not None:
                judge(current)
            if self._write({**held, **fields}, cas=current.version):
                return len(self.versions)

    def _write(self, data: dict[str, str], *, cas: int) -> bool:
        if self.between:
            self.between.pop(0)()
        if cas != len(self.versions):
            return False
        self.versions.append(data)
        return True

    def undelete(self, path: str, version: int) -> None:
        self._answer()
        self.undeleted.append(version)
        if self.gone.get(version) is False:
            del self.gone[version]

    def annotate(self, path: str, facts: Mapping[str, str]) -> None:
        self.annotated.append(facts)

    def renew(self) -> datetime | None:
        return None

    def close(self) -> None:
        """Nothing to give back."""


@dataclass
class FakeBroker:
    """The probe: accepts exactly the platform's live secret, unless verdicts are queued."""

    platform: FakePlatform
    verdicts: list[Verdict] = field(default_factory=list)

    def probe(self, target: ProbeTarget) -> ProbeResult:
        if self.verdicts:
            return ProbeResult(verdict=self.verdicts.pop(0))
        accepted = target.password.reveal() == self.platform.live
        return ProbeResult(verdict=Verdict.ACCEPTED if accepted else Verdict.REFUSED)


@dataclass
class FakeConsumer:
    """Reads the store at each restart and connects with what it finds."""

    name: str
    clock: FakeClock
    store: FakeStore
    kind: str = "command"
    runs_on: str = "secret-0"
    restarts: int = 0
    failures: list[RotatorError] = field(default_factory=list)
    crashes: list[RotatorError] = field(default_factory=list)
    connects: list[Sighting] = field(default_factory=list)
    mute: int = 0  # restarts after which it does not come back

    def preflight(self) -> None:
        """Can always be restarted."""

    def restart(self, order: Order) -> Ticket:
        if self.failures:
            raise self.failures.pop(0)
        at = self.clock.now()
        self.restarts += 1
        if self.mute:
            self.mute -= 1
        else:
            self.runs_on = self.store.versions[-1]["password"]
            self.connects.append(Sighting(at=self.clock.now(), client_id=self.name))
        return Ticket(consumer=self.name, restarted_at=at)

    def check(self, ticket: Ticket) -> None:
        if self.crashes:
            raise self.crashes.pop(0)


@dataclass
class FakeWatch:
    """Sees what the fake consumer does from the time it was opened."""

    consumer: FakeConsumer
    since: int
    open: bool = True

    def sightings(self) -> Sequence[Sighting]:
        return self.consumer.connects[self.since :]

    def losses(self) -> Sequence[Sighting]:
        return ()

    def wait(self, timeout: float) -> None:
        self.consumer.clock.pass_time(timedelta(seconds=timeout))

    def healthy(self) -> str:
        return ""

    def close(self) -> None:
        self.open = False


class Stage:
    """A whole engine on fakes, over a real journal in a file."""

    def __init__(self, directory: Path, *, limits: Limits | None = None, policy: Policy | None = None) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.platform = FakePlatform(clock=self.clock)
        self.store = FakeStore(versions=[{"username": "id-1", "password": "secret-0", "theirs": "kept"}])
        self.broker = FakeBroker(platform=self.platform)
        self.consumer = FakeConsumer(name="ingest", clock=self.clock, store=self.store)
        self.watches: list[FakeWatch] = []
        self.events: list[RotationEvent] = []
        self.seal = Seal(b"k" * 32)
        self.limits = limits or Limits(settle=timedelta(0), propagation=timedelta(seconds=5))
        self.policy = policy or Policy(before_expiry=timedelta(days=14))
        self.with_verify = True
        self.take_over = False
        self.boot()

    def boot(self) -> None:
        """Start the engine anew on the same journal and world, as a restarted daemon does."""
        self.journal = SqliteJournal(f"sqlite:///{self.directory}/rotator.db")
        self.stop = threading.Event()
        world = World(
            clock=self.clock,
            store=self.store,
            prober=self.broker,
            journal=self.journal,
            seal=self.seal,
            fingerprints=Fingerprints(b"f" * 32),
            stop=self.stop,
            on_conflict_take_over=self.take_over,
        )
        self.key = self._managed()
        self.engine = Engine(
            {"building-a": self.key},
            world,
            observers=[self.events.append],
            spool=Spool(self.directory / "spool"),
        )

    def shut_down(self) -> None:
        """Close the journal; the next `boot` reads what it holds."""
        self.journal.close()

    def introduce(self, **facts: object) -> None:
        """Give the key a record, as the watcher does after its first looks."""
        record = KeyRecord(
            name="building-a",
            provider="acme",
            id="id-1",
            listed_at=self.clock.now(),
            issued_at=self.platform.issued_at,
            expires_at=self.platform.issued_at + self.platform.lifetime,
            adopted=True,
            rotate_at=START,
        )
        record = replace(record, **facts)  # type: ignore[arg-type]
        self.journal.save(key="building-a", change=lambda _old: record)

    def work(self, rounds: int = 1, step: timedelta = timedelta(seconds=1)) -> None:
        """Let the engine work, time passing in between."""
        for _ in range(rounds):
            self.engine.work("building-a")
            self.clock.pass_time(step)

    @property
    def record(self) -> KeyRecord:
        found = self.journal.key("building-a")
        assert found is not None
        return found

    @property
    def current(self) -> str:
        """The password that is current in Vault."""
        return self.store.versions[-1]["password"]

    def _managed(self) -> ManagedKey:
        def open_watch(_identity: Identity, _secret: Secret | None, _order: Order | None) -> FakeWatch:
            self.watches.append(FakeWatch(consumer=self.consumer, since=len(self.consumer.connects)))
            return self.watches[-1]

        def target(identity: Identity, secret: Secret) -> ProbeTarget:
            return ProbeTarget(host="broker.example", port=1883, username=identity.username, password=secret)

        link = ConsumerLink(
            consumer=self.consumer, timeout=timedelta(seconds=5), settle=timedelta(0), open_watch=open_watch
        )
        return ManagedKey(
            name="building-a",
            provider=self.platform,
            id="id-1",
            policy=self.policy,
            limits=self.limits,
            path="mqtt/building-a",
            fields={"username": "{id}", "password": "{secret}"},
            probe=target if self.with_verify else None,
            consumers=(link,),
        )
