"""One key on the real engine and journal over the small world: a fault put in at one step, kills, restarts, time.

A kill leaves behind what a dead process leaves: the files as they are at that moment, and nothing closed in order. They
are copied into a new folder, and a fresh engine starts on the copy as `app.build` starts one.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

from rotator.engine import Engine
from rotator.errors import RotatorError
from rotator.keys import ROLL_BACK, KeyRecord
from rotator.model import Identity, Order, RotationEvent, Step, Strategy
from rotator.rotation import ConsumerPlan, Rotation
from rotator.sealing import open_seal
from rotator.settings import FileSeal
from rotator.taking_up import introduce, take_back
from rotator.watcher import Watcher
from rotator.world import World as EngineWorld
from simulation.crash_journal import Commit, TappedJournal, TappedSpool
from simulation.delivery import Copy, Versions
from simulation.world import AFTER, BEFORE, Broker, Consumer, Killed, Platform, SimClock, Vault, World, managed

ORDER = Order(key="building-a", version=1)

NAME, ORIGINAL, PATH = "building-a", "id-1", "mqtt/building-a"
# After this long somebody has mended what was broken.
VAULT_MENDED_AFTER, CLOCK_MENDED_AFTER = timedelta(seconds=15), timedelta(minutes=10)
# Engine calls within which a rotation must have ended, whatever the fault.
MOST_WAKES = 50
# What a `Killed` carries that takes the end of the journal's log with it.
DAMAGE = ("damage",)

BEGIN, INTENT, EFFECT, RECORD, TAKEN_BACK = "begin", "intent", "effect", "record", "taken back"


@dataclass(frozen=True, slots=True)
class Variant:
    """A strategy, and what its platform can do."""

    name: str
    strategy: Strategy
    dated: bool = True
    deactivates: bool = True
    expires: bool | None = None  # what the platform's documents say of dates; None: what it does
    alone: bool = False  # nobody else keeps a field in the same secret, so that Vault is not read before a write
    plans: tuple[ConsumerPlan, ...] = ()  # of all consumers, in the order of their names; else there are two, without
    late: timedelta | None = None  # so long after Vault the consumers' own way to the secret has it

    @property
    def names(self) -> tuple[str, ...]:
        """Of the consumers."""
        return tuple(plan.name for plan in self.plans) or ("ingest", "archive")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fault strikes inside the step with this number on the route.

    `begin`: the step before was just done. `intent`: the commit that some steps make before their effect. `effect`: at
    `point` of the world. `record`: the commit of the step's outcome, and maybe of others'; `point` is the step. `taken
    back`: the commit of a spooled answer.
    """

    index: int
    kind: str
    when: str = BEFORE
    point: str = ""


@dataclass(slots=True)
class Trap:
    """What waits at a place, and how often it will still be done."""

    place: Place
    action: Callable[[Stage, int], None]
    times: int


class SimStop(threading.Event):
    """The daemon's stop flag; who waits for it passes the world's time, not ours."""

    def __init__(self, clock: SimClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.pass_time(timedelta(seconds=timeout or 0))
        return self.is_set()


@dataclass(slots=True)
class Tally:
    """What the stage has seen happen. Moments are of true time."""

    trace: list[Step] = field(default_factory=list)  # recorded steps
    points: dict[Step, set[str]] = field(default_factory=dict)  # of the world, touched by them
    issued: list[str] = field(default_factory=list)  # all new secrets that were ever live at the platform
    kept: list[str] = field(default_factory=list)  # those whose answers the journal or the spool took
    damaged: int = 0  # answers that the journal took and that its damaged log lost
    proven: datetime | None = None  # when all consumers were first up on a new key
    useless: dict[str, datetime] = field(default_factory=dict)  # id → when it was deactivated
    deleted: dict[str, datetime] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)  # rotations
    restarts: list[str] = field(default_factory=list)  # of consumers, by name, until the old key is retired
    broken: list[str] = field(default_factory=list)  # what was seen to be wrong on the way
    wakes: int = 0
    kills: int = 0


class Stage:
    """The world, the process that runs now, and the fault that waits for its place.

    Args:
        directory: an empty folder.
        start: a folder that `prepared` left, to begin from; None to begin with an empty journal.
    """

    def __init__(self, directory: Path, variant: Variant, *, start: Path | None = None) -> None:
        self.variant, self.directory = variant, directory / "life-0"
        self.world = World()
        self.clock = self.world.clock
        self.platform = Platform(
            self.world,
            variant.strategy,
            dated=variant.dated,
            deactivates=variant.deactivates,
            expires=variant.expires,
        )
        self.vault = Vault(self.world)
        self.broker = Broker(self.world, self.platform)
        self.tally = Tally()
        self.recorded = 0  # steps, by the journal
        self.spool_refuses = False
        self.broker_refuses_first = False  # the first new secret, for ever
        self.rollback_at: Step | None = None  # a person asks for it when this step is about to be run
        self._traps: list[Trap] = []
        self._by_others: list[dict[str, str]] = []  # versions whose secret somebody else wrote
        self._points: set[str] = set()
        self._vault_fault: tuple[datetime, RotatorError] | None = None
        self._clock_mended_at: datetime | None = None
        self._last: Commit | None = None
        self.old_secret = self.platform.add(ORIGINAL).secret
        others = {} if variant.alone else {"theirs": "kept"}
        versions = Versions(self.world, [{"username": ORIGINAL, "password": self.old_secret, **others}])
        self.vault.paths[PATH] = versions
        copy = Copy(self.world, NAME, versions, variant.late) if variant.late is not None else None
        reads = copy.held if copy is not None else None
        self.consumers = [
            Consumer(name, self.world, self.vault, self.platform, PATH, reads=reads) for name in variant.names
        ]
        for consumer in self.consumers:
            consumer.restart(ORDER)
        deliveries = dict.fromkeys(variant.names, copy) if copy is not None else None
        patience = (variant.late or timedelta(0)) * 10
        key = managed(NAME, ORIGINAL, self.platform, self.consumers, deliveries=deliveries, deliver_timeout=patience)
        self.key = replace(key, limits=replace(key.limits, plans=variant.plans))
        self.platform.on_change = self._cut_off
        self.platform.on_request = lambda done: self.engine.skew.seen(done)
        if start is None:
            self.directory.mkdir()
        else:
            shutil.copytree(start, self.directory)
        self.boot()
        if start is None:
            self.look()
        self.world.hook = self._at

    # --- a process -------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start a process on the files, as `app.build` does."""
        self.journal = TappedJournal(self.directory, self)
        self.spool = TappedSpool(self.directory / "spool", self)
        take_back(self.spool, self.journal)
        seal = FileSeal(kind="file", path=str(self.directory / "seal.key"))
        sealing, fingerprints = open_seal(seal, self.journal, _no_vault)
        introduce(self.journal, {NAME: self.key}, self.clock)
        world = EngineWorld(
            clock=self.clock,
            store=self.vault,
            prober=self.broker,
            journal=self.journal,
            seal=sealing,
            fingerprints=fingerprints,
            stop=SimStop(self.clock),
        )
        dice = random.Random(self.tally.kills)
        self.engine = Engine({NAME: self.key}, world, observers=[self._told], spool=self.spool, dice=dice)

    def reboot(self, death: Killed) -> None:
        """The process is dead: start another one on the files as they are now, which may kill it again."""
        while True:
            self.tally.kills += 1
            dead, left = self.journal, self.directory
            self.directory = left.with_name(f"life-{self.tally.kills}")
            with dead._writing().between():  # its log is not emptied half way through the copy
                shutil.copytree(left, self.directory, ignore=shutil.ignore_patterns("*-shm"))
            if death.args == DAMAGE:
                self._damage(self.directory / "rotator.db-wal", dead.end_of_log())
            dead.close()
            try:
                self.boot()
            except Killed as again:
                death = again
            else:
                return

    def _damage(self, log: Path, end: int) -> None:
        """Overwrite the last bytes of the write-ahead log: its last commit is gone."""
        if not end:
            self.tally.broken.append("there is nothing in the log to damage")
        content = bytearray(log.read_bytes())
        content[end - 64 : end] = bytes(64)
        log.write_bytes(content)
        if self._last is not None and self._last.holds_answer:
            self.tally.damaged += 1
            self.tally.kept.pop()

    def close(self) -> None:
        """End the process."""
        self.journal.close()

    def look(self) -> None:
        """What the watcher does now and then; no fault strikes it."""
        with_faults, self.world.hook = self.world.hook, lambda point, when, whose: None
        peers = {self.platform.name: self.platform}
        watcher = Watcher(self.engine, peers, watch=timedelta(hours=1), drift_interval=timedelta(hours=1))
        watcher.look_at_provider(self.platform.name)
        watcher.keep_vault_login()
        watcher.look_at_vault()
        self.world.hook = with_faults

    # --- time ------------------------------------------------------------------------------------------------

    def go_on(self) -> bool:
        """Let the daemon work until one more rotation has ended; False where only a person, or for ever, goes on."""
        ended = len(self.tally.ended)
        for wakes in range(1, MOST_WAKES + 1):
            self._sleep()
            self.wake()
            self.tally.wakes = max(self.tally.wakes, wakes)
            rotation = self.rotation
            if rotation is None and len(self.tally.ended) > ended:
                return True
            if rotation is not None and rotation.quarantine is not None:
                return False
        return False

    def wake(self) -> None:
        """Hand the key to the engine, which may be killed at it."""
        try:
            self.engine.work(NAME)
        except Killed as death:
            self.reboot(death)

    def _sleep(self) -> None:
        """Until the key wants attention, or somebody mends the clock."""
        span = max(timedelta(0), (self.record.wake_at or self.clock.now()) - self.clock.now())
        mended = self._clock_mended_at
        if mended is None or mended - self.clock.true > span:
            self.clock.pass_time(span)
            return
        self.clock.pass_time(max(timedelta(0), mended - self.clock.true))
        self._clock_mended_at = None
        self._step_clock(-self.clock.error)
        self.look()  # the watcher's next look, within minutes, sees that the clocks agree again

    def _step_clock(self, span: timedelta) -> None:
        """The host's clock steps; the daemon does what it does then (`Daemon._mind_the_clock`)."""
        self.clock.step(span)
        if span < timedelta(0):
            self.engine.wake_all()

    # --- what faults do --------------------------------------------------------------------------------------

    def vault_fails(self, error: RotatorError) -> None:
        """From now on, until somebody has mended it."""
        self._vault_fault = (self.clock.true + VAULT_MENDED_AFTER, error)

    def clock_steps(self, span: timedelta) -> None:
        """Now, and back again when somebody has mended it."""
        self._clock_mended_at = self.clock.true + CLOCK_MENDED_AFTER
        self._step_clock(span)

    def somebody_writes(self, fields: dict[str, str], *, works: bool = False) -> None:
        """Somebody else changes fields of our path in Vault; `works`: the broker lets in who comes with them."""
        self.vault.paths[PATH].append({**self.vault.current(PATH), **fields})
        if "password" in fields:
            self._by_others.append(self.vault.current(PATH))
        if works:
            self.broker.strangers.add((fields["username"], fields["password"]))

    def person_asks(self, what: str) -> None:
        """As `Control` notes it."""
        now = self.clock.now()
        self.journal.save(key=NAME, change=lambda old: replace(_there(old), requested=what, wake_at=now))

    def person_deletes(self, made: Identity | None) -> None:
        """Somebody deletes the key that a rotation made and nobody uses, at the platform."""
        if made is not None:
            self.platform.keys.pop(made.id, None)

    # --- where faults strike ---------------------------------------------------------------------------------

    def set_trap(self, place: Place, action: Callable[[Stage, int], None], times: int = 1) -> Trap:
        """Do `action` when the rotation comes to `place`, so often; it is told how often it will be done after that."""
        self._traps.append(Trap(place, action, times))
        return self._traps[-1]

    @property
    def index(self) -> int:
        """The number of the step that runs now: of those before it, some may only be noted."""
        draft = self.engine.drafts.get(NAME)
        return self.recorded + (sum(event.name == "step" for event in draft.history) if draft is not None else 0)

    def _strike(self, kind: str, when: str, point: str = "", index: int | None = None) -> None:
        here = Place(self.index if index is None else index, kind, when, point)
        for trap in self._traps:
            if trap.times and trap.place == here:
                trap.times -= 1
                trap.action(self, trap.times)

    def saving(self, commit: Commit) -> None:
        """The journal is about to commit."""
        for number, step in enumerate(commit.steps):
            self._strike(RECORD, BEFORE, step, self.recorded + number)
        if commit.is_intent:
            self._strike(INTENT, BEFORE, index=self.recorded + len(commit.steps))

    def saved(self, commit: Commit) -> None:
        """The journal has committed."""
        self._last = commit
        ended = commit.rotation is not None and commit.rotation.finished_at is not None
        if commit.rotation is not None and ended:
            self.tally.ended.add(commit.rotation.id)
        if commit.rotation is not None and commit.holds_answer:
            self.kept_answer(commit.rotation)
        self.tally.trace += commit.steps
        before, self.recorded = self.recorded, self.recorded + len(commit.steps)
        if commit.takes_back:
            self._strike(TAKEN_BACK, AFTER)
        for number, step in enumerate(commit.steps):
            self._strike(RECORD, AFTER, step, before + number)
        if commit.is_intent:
            self._strike(INTENT, AFTER, index=self.recorded)

    def not_saved(self, commit: Commit) -> None:
        """The journal has refused: what it says must be what its file holds."""
        rotation = self.rotation
        written = self.journal.rotation(commit.rotation.id) if commit.rotation is not None else rotation
        if rotation != written or [self.record] != self.journal.all_keys():
            self.tally.broken.append("after a commit that failed, the journal says what its file does not hold")

    def kept_answer(self, rotation: Rotation) -> None:
        """Journal or spool hold the answer of this rotation's last call."""
        secret = self.platform.keys[(rotation.new_identity or rotation.identity).id].secret
        if rotation.sealed and secret not in self.tally.kept:
            self.tally.kept.append(secret)

    def _told(self, event: RotationEvent) -> None:
        """The engine tells of a step as soon as it is done, written down or not."""
        if event.name == "step" and event.step is not None:
            self.tally.points.setdefault(event.step, set()).update(self._points)
            self._points.clear()
        if event.name in {"rotation_started", "step"}:
            draft = self.engine.drafts.get(NAME)
            rotation = draft.rotation if draft is not None else self.rotation
            if rotation is not None and rotation.finished_at is None:
                self._begun(rotation.step)

    def _begun(self, step: Step) -> None:
        if step is self.rollback_at:
            self.rollback_at = None
            self.person_asks(ROLL_BACK)
        self._strike(BEGIN, BEFORE)

    def _at(self, point: str, when: str, whose: str) -> None:
        self._points.add(point)
        self._note(point, when, whose)
        if point.startswith("vault.") and when == BEFORE and self._vault_fault is not None:
            until, error = self._vault_fault
            if self.clock.true < until:
                raise error
        if not point.startswith("consumer.") or self.variant.plans or whose == "ingest":
            self._strike(EFFECT, when, point)
        if point == "broker.probe" and self.broker_refuses_first:
            tried = [key.secret for key in self.platform.keys.values() if key.id == whose]
            if tried == self.tally.issued[:1]:
                raise PermissionError("refused")

    # --- what is noted on the way ----------------------------------------------------------------------------

    def _note(self, point: str, when: str, whose: str) -> None:
        """What happened, and what must not be so at this very moment."""
        tally, true = self.tally, self.clock.true
        if tally.proven is None and all(c.connected and c.runs_on[0] != ORIGINAL for c in self.consumers):
            tally.proven = true
        if point == "consumer.restart":
            self._restarting(when, whose)
        elif when == BEFORE:
            if point in {"provider.deactivate", "provider.delete"}:
                self._must_be_unused(point, whose)
        elif point == "provider.issue":
            known = (self.old_secret, *tally.issued)
            tally.issued += [key.secret for key in self.platform.keys.values() if key.secret not in known]
        elif point == "provider.deactivate":
            tally.useless.setdefault(whose, true)
        elif point == "provider.delete":
            tally.deleted.setdefault(whose, true)

    def _restarting(self, when: str, name: str) -> None:
        """Before: is it written down that this one may run on another secret? After: is it what Vault holds by us?"""
        if when == BEFORE:
            rotation = self.rotation
            noted = rotation is not None and any(c.name == name and c.touched and c.in_turn for c in rotation.consumers)
            self.tally.broken += [] if noted else [f"{name} is restarted, and the journal does not say so"]
            return
        if not self.tally.useless:
            self.tally.restarts.append(name)
        runs_on = next(consumer.runs_on for consumer in self.consumers if consumer.name == name)
        ours = next(held for held in reversed(self.vault.paths[PATH]) if held not in self._by_others)
        if runs_on not in {(held["username"], held["password"]) for held in (ours, self.vault.current(PATH))}:
            self.tally.broken.append(f"{name} was restarted onto {runs_on}, which Vault does not hold")

    def _must_be_unused(self, point: str, id: str) -> None:
        used = [c.name for c in self.consumers if c.connected and c.runs_on[0] == id]
        if used:
            self.tally.broken.append(f"{point} of {id}, which {used} still use")
        if self.vault.current(PATH)["username"] == id:
            self.tally.broken.append(f"{point} of {id}, which is current in Vault")

    def _cut_off(self) -> None:
        for consumer in self.consumers:
            consumer.cut_off()

    # --- what is looked at -----------------------------------------------------------------------------------

    @property
    def record(self) -> KeyRecord:
        """The key's record in the journal."""
        return _there(self.journal.key(NAME))

    @property
    def rotation(self) -> Rotation | None:
        """The one in flight."""
        return self.journal.open_rotation(NAME)

    @property
    def last(self) -> Rotation:
        """The newest one."""
        return self.journal.recent_rotations(limit=1)[0]


def prepared(directory: Path, variant: Variant) -> Path:
    """The files of a process that has seen its key and sleeps until the key is due: where all rows begin."""
    stage = Stage(directory, variant)
    stage.close()
    return stage.directory


def _there(record: KeyRecord | None) -> KeyRecord:
    assert record is not None
    return record


def _no_vault() -> NoReturn:
    raise AssertionError("the seal is a file")
