"""Simulated years: the real engine, policy, lifecycle and journal on a simulated world, one seed in, one history out.

Time jumps to the key that wants attention next (`wake_at`), to the next fault, or to whatever else comes first.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog

from rotator.control import Control
from rotator.engine import Engine
from rotator.errors import JournalFailed, RotatorError, UnknownOutcome
from rotator.journal.seal import Fingerprints, Seal
from rotator.keys import resting
from rotator.managed import ManagedKey
from rotator.model import RotationEvent, Step
from rotator.ports import Provider, Store
from rotator.taking_up import introduce, take_back
from rotator.watcher import Watcher
from rotator.world import World
from simulation import faults
from simulation.facts import Violation
from simulation.faults import DAY, Fault
from simulation.fleet import Fleet, SimKey, SimVault
from simulation.history import History
from simulation.keeping import SimJournal, SimSpool, SimStop
from simulation.person import Person
from simulation.strikes import Strikes
from simulation.truth import Truth
from simulation.world import AFTER, BEFORE, START, Killed

# What one call of `Engine.work` may touch at most before it counts as spinning.
MOST_POINTS = 3000
# The most calls of `Engine.work` for one key: in a minute, whatever happens; in a day without any fault.
MOST_IN_A_MINUTE, MOST_IN_A_QUIET_DAY = 300, 12
# How often a look at everything is worth its time, in simulated days; the daemon looks every few minutes.
LOOK_EVERY = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a history follows from. `numbers` of keys, `days` in all."""

    seed: int
    numbers: tuple[int, ...]
    days: float
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a test may put in the place of the real thing, to see that it is caught."""

    engine: Callable[..., Engine] = Engine
    store: Callable[[SimVault], Store] = lambda vault: vault


@dataclass(slots=True, kw_only=True)
class Run:
    """What came of a plan."""

    plan: Plan
    history: History
    violation: Violation | None = None
    days: float = 0.0
    works: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    struck: dict[Fault, str] = field(default_factory=dict)  # the faults that struck, and which key

    @property
    def key_years(self) -> float:
        return len(self.plan.numbers) * self.days / 365


def planned(seed: int, *, keys: int = 100, days: float = 365.0, count: int | None = None) -> Plan:
    """The plan of a seed. `count` of faults; None: the usual, which is 60 for 100 keys in a year."""
    numbers = tuple(range(keys))
    usual = round(60 * max(keys, 40) / 100 * days / 365)
    drawn = faults.draw(seed, numbers, days, usual if count is None else count)
    return Plan(seed=seed, numbers=numbers, days=days, faults=drawn)


def simulate(plan: Plan, parts: Parts | None = None, *, url: str = "sqlite://") -> Run:
    """Live through a plan. A broken rule ends it, and is in the result."""
    with _in_simulated_time():
        return Simulation(plan, parts or Parts(), url).run()


class _InTurn:
    """A pool that does one thing after the other, so that a history is always the same."""

    def __init__(self, **_options: object) -> None: ...

    def __enter__(self) -> _InTurn:
        return self

    def __exit__(self, *_exc: object) -> None: ...

    def map(self, work: Callable[[Any], Any], todo: Iterable[Any]) -> Iterator[Any]:
        return iter([work(one) for one in todo])


@contextmanager
def _in_simulated_time() -> Iterator[None]:
    """Two places of the engine wait, or work, outside the world's time: in here they do not. Nor is anything logged."""
    logging = structlog.get_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rotator.steps.ThreadPoolExecutor", _InTurn)
        patch.setattr("rotator.issuing._AGAIN", 0.0)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"), processors=[_unsaid])
        try:
            yield
        finally:
            structlog.configure(**logging)


def _unsaid(_logger: object, _method: str, _event: MutableMapping[str, Any]) -> str:
    raise structlog.DropEvent


class Simulation:
    """One history."""

    engine: Engine
    watcher: Watcher
    control: Control

    def __init__(self, plan: Plan, parts: Parts, url: str) -> None:
        self.plan, self._parts = plan, parts
        self.fleet = Fleet(plan.seed, plan.numbers)
        self.clock = self.fleet.world.clock
        self.history = History()
        self.truth = Truth(self.fleet, self.tell)
        self.truth.restores = plan.seed % 2 == 1  # `on_drift: restore`, in every other history
        self.strikes = Strikes(self.fleet, self.truth, self)
        self.person = Person(self.fleet, self.truth, self, plan.seed)
        self.down_for = 0.0
        self._dice = random.Random(f"{plan.seed}/engine")
        self._journal = SimJournal(url, self.fleet.world, self.truth.saved)
        self._spool = SimSpool(lambda: self.strikes.spool_refuses, self.truth.saved)
        self._keys: dict[str, ManagedKey] = {name: key.managed for name, key in self.fleet.keys.items()}
        self._agenda: list[tuple[datetime, int, str, str]] = []
        self._entered = 0
        self._points = 0
        self._works = 0
        self._in_minute: dict[str, tuple[int, int]] = {}
        self._quiet: dict[str, int] | None = None  # calls of `work` since nothing fails any more
        self._asked: list[tuple[str, str]] = []
        for platform in self.fleet.platforms.values():
            platform.on_request = lambda done: self.engine.skew.seen(done)
        self.fleet.world.hook = self._met
        self.engine, self.watcher, self.control = self._boot()

    # --- the world's side --------------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        """Write it into the history."""
        self.history.tell(self.clock.true, text)

    def later(self, seconds: float, what: str, whom: str) -> None:
        """Have something done after so many seconds."""
        self._entered += 1
        heapq.heappush(self._agenda, (self.clock.true + timedelta(seconds=seconds), self._entered, what, whom))

    def ask(self, name: str, what: str) -> None:
        """A person asks for something, as soon as the engine has finished what it is at."""
        self._asked.append((name, what))

    def outage_ends(self) -> datetime | None:
        """When the last of the outages ends that are there now."""
        return self.strikes.outage_ends()

    def _met(self, point: str, when: str, whose: str) -> None:
        """The engine touches the world: what is true is noted, and what fails fails."""
        self._points += 1
        if self._points > MOST_POINTS:
            raise Violation("no busy loop", whose, f"{MOST_POINTS} steps without a pause, last {point}")
        truth = self.truth
        if point == "provider.issue":
            self._issuing(when, whose)
            return
        self.strikes.met(point, when, whose)
        if when == AFTER:
            if point == "provider.list":
                truth.looked(whose.partition(":")[0])
        elif point == "vault.preflight":
            truth.preflighted(self.fleet.by_path[whose])
        elif point in {"provider.deactivate", "provider.delete"}:
            id = whose.partition(":")[2]
            key = self.fleet.by_family[id.partition(".")[0]]
            (truth.deactivating if point == "provider.deactivate" else truth.deleting)(key, id)

    def _issuing(self, when: str, whose: str) -> None:
        id = whose.partition(":")[2]
        key = self.fleet.by_family[id.partition(".")[0]]
        if when == BEFORE:
            try:
                self.strikes.met("provider.issue", when, whose)
            except (UnknownOutcome, Killed):
                self.truth.facts[key.name].unknown = True
                raise
            self.truth.may_issue(key, id)
            return
        self.truth.issued(key)
        try:
            self.strikes.met("provider.issue", when, whose)
        except (RotatorError, Killed) as exc:
            self.truth.facts[key.name].unknown = True
            self.truth.answer_lost(key, unknown=isinstance(exc, UnknownOutcome | Killed))
            raise
        newest = max(key.platform.family(key.family), key=lambda held: held.issued_at)
        self.truth.answered(key, newest.secret)

    # --- the daemon's side -------------------------------------------------------------------------------------

    def _boot(self) -> tuple[Engine, Watcher, Control]:
        """A new process on the same journal, as `app.build` and the daemon's first minute have it."""
        while True:
            try:
                return self._start()
            except JournalFailed:
                self.clock.pass_time(timedelta(seconds=60))
            except Killed:
                self._dies()

    def _start(self) -> tuple[Engine, Watcher, Control]:
        self._points = 0
        take_back(self._spool, self._journal)
        introduce(self._journal, self._keys, self.clock)
        world = World(
            clock=self.clock,
            store=self._parts.store(self.fleet.vault),
            prober=self.fleet.broker,
            journal=self._journal,
            seal=Seal(b"k" * 32),
            fingerprints=Fingerprints(b"f" * 32),
            stop=SimStop(self.clock),
        )
        engine = self._parts.engine(self._keys, world, observers=[self._heard], spool=self._spool, dice=self._dice)
        providers: dict[str, Provider] = dict(self.fleet.platforms)
        watcher = Watcher(
            engine,
            providers,
            watch=timedelta(minutes=1),
            drift_interval=timedelta(hours=1),
            restore=self.truth.restores,
        )
        self.engine, self.watcher = engine, watcher
        self.tell("the daemon has started")
        self._look()
        return engine, watcher, Control(engine=engine, watcher=watcher, poke=lambda: None)

    def _dies(self) -> None:
        self.truth.died()
        self.tell(f"the daemon is dead, for {self.down_for:.0f} s")
        self.clock.pass_time(timedelta(seconds=self.down_for))

    def _look(self) -> None:
        """What the watcher does all the time."""
        for name in self.fleet.platforms:
            self._points = 0
            self.watcher.look_at_provider(name)
        self.watcher.keep_vault_login()
        self._points = -len(self._keys)
        self.watcher.look_at_vault()

    def _as_a_process(self, work: Callable[[], None]) -> None:
        """Do something that the process may die of."""
        self._points = 0
        try:
            work()
        except Killed:
            self._dies()
            self.engine, self.watcher, self.control = self._boot()
        except JournalFailed:
            self.clock.pass_time(timedelta(seconds=1))

    def _heard(self, event: RotationEvent) -> None:
        if not event.repeated:
            words = (event.name, event.step, event.result, event.reason, event.detail)
            self.tell(f"{event.key}: {' '.join(str(word) for word in words if word)}")
        self.truth.heard(event)
        self.person.heard(event)

    # --- time --------------------------------------------------------------------------------------------------

    def run(self) -> Run:
        """From the first day to the last."""
        self._enter_plan()
        run = Run(plan=self.plan, history=self.history)
        try:
            while self._next():
                pass
        except Violation as violation:
            self.tell(f"!!! {violation}")
            run.violation = violation
        self._journal.close()
        run.struck = self.strikes.keys_struck
        run.days, run.works = self.clock.monotonic() / DAY, self._works
        truth = self.truth
        run.counts = {
            "issued": truth.effective,
            "lost": truth.lost,
            "promoted": truth.promoted,
            "ended": truth.ended,
            "struck": self.strikes.struck,
            "restored": truth.restored,
            "restarts": truth.turns.restarts,
            "in batches": truth.turns.in_batches,
            "on the way back": truth.turns.on_the_way_back,
            "late looks": truth.turns.late,
        }
        return run

    def _enter_plan(self) -> None:
        for number, fault in enumerate(self.plan.faults):
            self._at(fault.day, "fault", str(number))
        for last, end in faults.chapter_ends(self.plan.days):
            self._at(last, "no more faults", "")
            self._at((last + end) / 2, "quiet", "")
            self._at(end, "well", "")
        for day in range(LOOK_EVERY, int(self.plan.days), LOOK_EVERY):
            self._at(day, "look", "")
        self._at(self.plan.days, "end", "")

    def _at(self, day: float, what: str, whom: str) -> None:
        self._entered += 1
        heapq.heappush(self._agenda, (START + timedelta(days=day), self._entered, what, whom))

    def _next(self) -> bool:
        """Go to the next moment at which something happens."""
        coming = self._journal.upcoming(1)
        at, _, what, whom = self._agenda[0]
        if coming:
            name, wall = coming[0]
            wake = wall - self.clock.error
            if wake <= at:
                self._advance(wake)
                self._work(name)
                return True
        heapq.heappop(self._agenda)
        self._advance(at)
        return self._happens(what, whom)

    def _advance(self, to: datetime) -> None:
        if to > self.clock.true:
            self.clock.true = to

    def _work(self, name: str) -> None:
        self._works += 1
        minute = int(self.clock.monotonic() // 60)
        last, count = self._in_minute.get(name, (minute, 0))
        count = count + 1 if last == minute else 1
        self._in_minute[name] = (minute, count)
        if count > MOST_IN_A_MINUTE:
            raise Violation("no busy loop", name, f"{count} calls within a minute")
        if self._quiet is not None:
            self._quiet[name] = self._quiet.get(name, 0) + 1
        self._as_a_process(lambda: self.engine.work(name))
        while self._asked:
            self._request(*self._asked.pop())

    def _happens(self, what: str, whom: str) -> bool:
        match what:
            case "fault":
                self.strikes.arm(self.plan.faults[int(whom)])
                while self._asked:
                    self._request(*self._asked.pop())
            case "over":
                self.strikes.over(whom)
            case "clock":
                self._step_clock(float(whom))
            case "person":
                self._as_a_process(lambda: self.person.visits(whom))
            case "look" | "look at providers" | "look at vault":
                self._as_a_process(self._look)
            case "no more faults":
                self.strikes.disarm()
                self._as_a_process(self.person.looks_at_all)
                self._as_a_process(self._look)
            case "quiet":
                self._quiet = {}
                self._as_a_process(self.person.looks_at_all)
            case "well":
                self._all_is_well()
                self._quiet = None
            case "end":
                return False
        return True

    def _step_clock(self, seconds: float) -> None:
        """The host's clock jumps; the daemon notices a jump back within a second, and the provider's `Date` soon."""
        self.clock.step(timedelta(seconds=seconds))
        self.tell(f"the clock jumps by {seconds:.0f} s, and is {self.clock.error} off")
        if seconds < 0:
            self._as_a_process(self.engine.wake_all)
        self.later(30, "look at providers", "")

    def _request(self, name: str, what: str) -> None:
        """A person asks the daemon for something, without need."""
        facts = self.truth.facts[name]
        self.tell(f"{name}: a person asks: {what}")

        def work() -> None:
            try:
                match what:
                    case "rollback":
                        self.control.rollback(name)
                    case "pause":
                        self.control.pause(name)
                    case "rotate":
                        self.control.rotate(name, now=False)
                    case "rotate now" | "compromised":
                        facts.hurried = True
                        self.control.rotate(name, now=True, compromised=what == "compromised")
            except JournalFailed:
                raise
            except RotatorError as exc:
                self.tell(f"{name}: refused: {exc.message}")

        facts.asked += what in {"rotate", "rotate now", "compromised", "rollback"}
        facts.accepted_version = len(self.fleet.vault.paths[self.fleet.keys[name].path])
        self._as_a_process(work)

    # --- after a quiet time --------------------------------------------------------------------------------------

    def _all_is_well(self) -> None:
        """Nothing has failed for days, and a person has looked at what asked for one: everything must be healed."""
        waiting = self._journal.waiting_secrets()
        if waiting:
            raise Violation("not healed", waiting[0][0], f"a secret waits sealed since {waiting[0][1]}")
        running = self._journal.open_rotations()
        for key in self.fleet.keys.values():
            rotation = running.get(key.name)
            rests = rotation is not None and resting(rotation)
            if rotation is not None and rotation.step is Step.RESTART and self._within_a_day(rotation.step_since):
                continue  # a consumer's window is waited for
            if rotation is not None and not rests and self.clock.now() - rotation.started_at > timedelta(hours=1):
                words = f"its rotation is still at {rotation.step.value}: {rotation.reason}, {rotation.quarantine}"
                raise Violation("not healed", key.name, words)
            if rotation is None or rests:
                self._is_well(key, rests)
        for name, works in (self._quiet or {}).items():
            # the quiet days, and a rotation's own steps
            if works > MOST_IN_A_QUIET_DAY * self.plan.days / len(faults.chapter_ends(self.plan.days)) * 0.2 + 20:
                raise Violation("no busy loop", name, f"{works} calls in the quiet days")
        self.tell("all is well")

    def _within_a_day(self, moment: datetime | None) -> bool:
        return moment is not None and self.clock.now() - moment < timedelta(days=1)

    def _is_well(self, key: SimKey, rests: bool) -> None:
        platform, data = key.platform, self.fleet.vault.current(key.path)
        if self.fleet.vault.held(key.path).data is None:
            raise Violation("not healed", key.name, "Vault's current version is gone")
        username, secret = data["username"], data["password"]
        if not platform.accepts(username, secret):
            raise Violation("not healed", key.name, f"Vault's {username} {secret} is not let in")
        record = self._journal.key(key.name)
        if record is None or record.id != username:
            raise Violation("not healed", key.name, f"Vault holds {username}, the journal {record and record.id}")
        for consumer in key.consumers:
            source = consumer.runs(key.path)
            if not source.connected or source.runs_on != (username, secret):
                raise Violation("not healed", key.name, f"{consumer.name} runs on {source.runs_on}")
        left = [held.id for held in platform.family(key.family) if held.id != username]
        if left and not rests:
            raise Violation("no orphans", key.name, f"left at the platform: {', '.join(left)}")
        if len(left) > 1:
            raise Violation("no orphans", key.name, f"left at the platform beside the old one: {', '.join(left)}")
