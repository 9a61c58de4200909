"""One rotation under trial: everything that may happen to it, each thing seen by the witness.

Two tests go through these events: one in every order that can be, one at random with all numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, combinations
from typing import ClassVar

from play import DAY, NOW, OLD, SECOND, Play, World, begun
from rotator.batches import turn_of
from rotator.frozen import replace
from rotator.lifecycle import next_step, roll_back
from rotator.model import Result, Step, Strategy, Verdict
from rotator.reasons import Reason
from rotator.rotation import (
    ConfirmDone,
    DeliverLater,
    Ended,
    Failed,
    FinishDone,
    Limits,
    LookDone,
    Outcome,
    ProbeDone,
    ReconfirmDone,
    Rotation,
    SettleDone,
    Wait,
    WayBackDone,
)
from witness import Witness

NAMES = ("ingest", "dashboards", "edge")
NOT_WELL = [verdict for verdict in Verdict if verdict is not Verdict.ACCEPTED]
TWO_TRIES = Limits(max_attempts=2)
Event = Callable[["Trial"], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a rotation is about, before anything happens."""

    strategy: Strategy
    proven: tuple[bool, ...] = (True,)  # for each consumer: whether its connects can be seen
    limits: Limits = TWO_TRIES
    old_life: timedelta | None = 10 * DAY
    broker: bool = True
    no_grace: bool = False
    idle: tuple[str, ...] = ()

    def play(self) -> Play:
        names = NAMES[: len(self.proven)]
        world = World(
            old_ends=NOW + self.old_life if self.old_life is not None else None,
            broker=self.broker,
            proven=frozenset(n for n, proven in zip(names, self.proven, strict=True) if proven and n not in self.idle),
            idle=frozenset(self.idle),
        )
        return Play(rotation=begun(self.strategy, *names, no_grace=self.no_grace), world=world, limits=self.limits)


def shape(rotation: Rotation) -> tuple[object, ...]:
    """A state without its times and numbers: the strategy, the step, the flags."""
    return (
        rotation.strategy,
        rotation.step,
        rotation.result,
        rotation.calling_since is not None,
        rotation.looked,
        rotation.unsettled,
        rotation.new_identity is not None,
        rotation.plausible,
        rotation.sealed,
        rotation.verdict,
        rotation.promoted_at is not None,
        bool(rotation.orphans),
        rotation.deactivated_at is not None,
        rotation.reconfirmed_at is not None,
        rotation.deleted_at is not None,
        rotation.rolling_back is not None,
        rotation.reverted,
        rotation.no_way_back,
        rotation.reason is not None,
        rotation.quarantine is not None,
        tuple((bool(c.restarted_at), bool(c.seen_at), bool(c.confirmed_at)) for c in rotation.consumers),
    )


def turns(play: Play) -> tuple[object, ...]:
    """Whose turn it is and was, where that makes a difference."""
    consumers = play.rotation.consumers if play.limits.plans else ()
    return tuple((c.touched, c.in_turn, c.idle) for c in consumers)


class Trial:
    """A play, its witness, and the step that is next (None: it has ended)."""

    visited: ClassVar[set[tuple[object, ...]]] = set()  # shapes, of all trials
    reached: ClassVar[set[tuple[object, ...]]] = set()  # states from which a good end was found

    def __init__(self, case: Case) -> None:
        self.play = case.play()
        self.witness = Witness(self.play)
        self.looked_at()

    def copy(self) -> Trial:
        other = object.__new__(Trial)
        other.play, other.step = self.play.copy(), self.step
        other.witness = self.witness.copy(other.play)
        return other

    @property
    def ended(self) -> bool:
        return self.step is None

    @property
    def consumers(self) -> list[str]:
        return [c.name for c in self.play.rotation.consumers]

    def looked_at(self) -> None:
        """In every state: no wait that is over, and a way to a good end."""
        self.step = self.play.due()
        match waits := next_step(self.play.rotation, self.play.now, self.play.limits):
            case Wait():
                assert waits.until > self.play.now, "a wait that is over"
            case Ended():
                assert self.play.rotation.result is not None
                assert self.turned_round() is None, "an end is an end"
        self.visited.add(shape(self.play.rotation))
        if not self.ended:
            self.success_is_reachable()

    def success_is_reachable(self) -> None:
        play, rotation = self.play, self.play.rotation
        tries = (min(rotation.attempts, play.limits.max_attempts), rotation.issues)
        known = (shape(rotation), turns(play), tries, play.limits, play.world.account())
        if known not in self.reached:
            play = play.copy()
            ended = play.until(None).rotation
            if ended.result is Result.FAILED:
                assert no_success_to_be_had(play), f"no way to success: {play.steps}"
                assert ended.reason is not None, "failed, and nobody knows why"
                assert ended.quarantine is not None, "failed, and it may issue again"
            self.reached.add(known)

    def turn(self, report: Callable[[Step], Outcome | None] | None = None) -> None:
        """One step; `report` says what came of it instead of what truly did."""
        step, old = self.step, self.play.rotation
        assert step is not None

        def seen(step: Step) -> Outcome | None:
            self.witness.before(step)
            return (report or self.play.effect)(step)

        outcome = self.play.turn(seen)
        self.witness.after(step, old, outcome)
        self.looked_at()

    # --- what may come of any step -------------------------------------------------------------------------------

    def goes_well(self, turns: int = 1) -> None:
        for _ in range(turns):
            if not self.ended:
                self.turn()

    def fails(self, reason: Reason, delay: timedelta = SECOND) -> None:
        """Nothing happened, and that is known."""
        self.turn(lambda _: Failed(reason=reason, delay=delay))

    def times_out(self, *, effect: bool, times: int = 1) -> None:
        """Nobody can say whether it had its effect."""
        step = self.step
        for _ in range(times):
            if self.step is step:
                self.turn(lambda step: self._no_answer(step, effect=effect))

    def dies(self, *, effect: bool) -> None:
        """The process is gone before the step's record."""
        self.turn(lambda step: self._no_record(step, effect=effect))

    def _no_answer(self, step: Step, *, effect: bool) -> Outcome:
        self._no_record(step, effect=effect)
        looks = step in {Step.ISSUE, Step.LOOK}
        return Failed(reason=Reason.OUTCOME_UNKNOWN, unknown=True, delay=SECOND * (step is not Step.ISSUE or not looks))

    def _no_record(self, step: Step, *, effect: bool) -> None:
        if step is Step.ISSUE and effect:
            self.play.call()
        elif step is Step.ISSUE and self.play.strategy is Strategy.REPLACE:
            self.play.world.late.append(self.play.world.name_next(Strategy.REPLACE))
        elif effect and step is not Step.LOOK:
            self.play.effect(step)

    # --- what may come of one step -------------------------------------------------------------------------------

    def answers(self, life: timedelta | None) -> None:
        """*Issue*, with an expiry that can't be right, or none."""
        self.turn(lambda _: self.play.answer(life))

    def conflicts(self) -> None:
        """*Promote*, *revert*: somebody else wrote."""
        self.fails(Reason.VAULT_CONFLICT)

    def broker_says(self, verdict: Verdict, *, late: bool = False) -> None:
        """*Probe*, *way back*, whatever is true; `late`: after the propagation time."""
        self.play.now += self.play.limits.propagation * late
        back = WayBackDone(verdict=verdict, held=True)
        self.turn(lambda step: back if step is Step.WAY_BACK else ProbeDone(verdict=verdict))

    def delivery_is_slow(self) -> None:
        """*Deliver*: not yet where the consumers read it."""
        self.turn(lambda _: DeliverLater(detail="not yet"))

    def old_one_works(self, *, late: bool) -> None:
        """*Finish*: the broker lets the old secret in; `late`: after the propagation time."""
        self.play.now += self.play.limits.propagation * late
        self.turn(lambda _: FinishDone(old_alive=True))

    def vault_forgot(self) -> None:
        """*Way back*: the version from before was pushed out."""
        self.play.world.held = False
        self.turn()

    def restarts(self, which: set[str], reason: Reason = Reason.CONSUMER_CRASHED) -> None:
        """*Restart*: only these."""

        def some(_: Step) -> Outcome:
            turn = turn_of(self.play.rotation, self.play.limits.plans)
            return self.play.restart([n for n in turn if n in which], Failed(reason=reason, delay=SECOND))

        self.turn(some)

    def sees(self, which: set[str], *, blind: bool = False, times: int = 1) -> None:
        """*Confirm*: only these. The others are restarted, unless their watches were blind."""
        for turn in range(times):
            if self.step is Step.RESTART and turn:
                self.turn()
            if self.step is Step.CONFIRM:
                self.turn(lambda _: self._seen(which, blind=blind))

    def _seen(self, which: set[str], *, blind: bool) -> Outcome:
        pending = self.play.asked()
        seen = [(name, self.play.now) for name in pending if name in which and self.play.up(name)]
        unseen = [name for name in pending if name not in dict(seen)]
        failed = Failed(reason=Reason.CONSUMER_NOT_CONFIRMED, delay=SECOND) if unseen else None
        return ConfirmDone(seen=seen, unseen=[] if blind else unseen, failed=failed)

    def crashes(self, which: set[str]) -> None:
        """*Settle*: these did not stay up."""
        running = [c.name for c in self.play.rotation.consumers if c.restarted_at is not None]
        crashed = [name for name in running if name in which]
        confirmed = [name for name in running if name not in which]
        failed = Failed(reason=Reason.CONSUMER_CRASHED, delay=SECOND) if crashed else None
        self.turn(lambda _: SettleDone(confirmed=confirmed, crashed=crashed, failed=failed))

    def was_not_watched(self, which: set[str]) -> None:
        """*Reconfirm*, after a restart of the daemon."""
        self.turn(lambda _: ReconfirmDone(blind=sorted(which & self.play.world.proven)))

    def list_lies(self) -> None:
        """*Look*, *finish* (replace): it shows a deleted key still, and our marker on the keys that go on."""
        new = self.play.rotation.new_identity
        shown = [*self.play.lost(), "deleted", OLD, *([new.id] if new is not None else [])]
        looks = self.step is Step.LOOK
        self.turn(lambda _: LookDone(happened=True, orphans=shown) if looks else FinishDone(orphans=shown))

    def issued_elsewhere(self) -> None:
        """*Finish*: somebody issued after us."""
        self.turn(lambda _: FinishDone(issued_elsewhere=True))

    # --- what may happen at any time -----------------------------------------------------------------------------

    def lost_call_arrives(self) -> None:
        """A call that nobody saw any sign of makes its key after all."""
        name = self.play.world.late.pop()
        self.play.world.keys[name] = True
        self.witness.late.add(name)
        self.looked_at()

    def clock_steps(self, by: timedelta) -> None:
        self.play.now += by
        self.witness.looks = [at + by for at in self.witness.looks]
        self.looked_at()

    def turned_round(self) -> Rotation | None:
        return roll_back(self.play.rotation, Reason.ROLLBACK_REQUESTED, "", self.play.now)

    def is_rolled_back(self) -> None:
        """By a person."""
        back = self.turned_round()
        assert back is not None
        self._becomes(back)

    def is_hurried(self) -> None:
        """`rotate`, `resume`, or a clock that stepped back: what waits for another try is tried now (engine)."""
        old = self.play.rotation
        soon = old.not_before if old.step is Step.LOOK else None
        self._becomes(replace(old, not_before=soon, attempts=0, reason=None, detail="", quarantine=None))

    def _becomes(self, new: Rotation) -> None:
        old, self.play.rotation = self.play.rotation, new
        self.witness.after(None, old, None)
        self.looked_at()


def no_success_to_be_had(play: Play) -> bool:
    """Whether the world, not the machine, stands in the way; each of these ends must be failed and quarantined."""
    rotation, world = play.rotation, play.world
    nobody_can_say = not world.broker and not rotation.plausible
    if play.strategy is Strategy.IN_PLACE:
        return rotation.issues >= play.limits.max_attempts or nobody_can_say
    if play.strategy is Strategy.CHOSEN:
        return rotation.no_way_back and nobody_can_say
    another = play.now + (play.now - NOW)  # the old secret outlives the next attempt, or there is no way back
    return rotation.rolling_back is not None and (OLD not in world.keys or not world.held or world.dying(another))


def events(trial: Trial) -> Iterator[tuple[str, Event]]:
    """Everything that may happen next, by name; of each kind as few as tell states apart, and no clocks."""
    step, world, replaced = trial.step, trial.play.world, trial.play.strategy is Strategy.REPLACE
    yield "goes well", Trial.goes_well
    yield "fails", lambda t: t.fails(Reason.VAULT_SEALED)
    yield "times out, done", lambda t: t.times_out(effect=True)
    yield "dies, done", lambda t: t.dies(effect=True)
    yield "is hurried", Trial.is_hurried
    if trial.turned_round() is not None:
        yield "a person rolls back", Trial.is_rolled_back
    if world.late:
        yield "a lost call arrives", Trial.lost_call_arrives
    match step:
        case Step.ISSUE:
            yield "times out, not done", lambda t: t.times_out(effect=False)
            yield "dies, not done", lambda t: t.dies(effect=False)
            yield "answers, expired", lambda t: t.answers(-DAY)
        case Step.PROMOTE | Step.REVERT:
            yield "conflicts", Trial.conflicts
        case Step.PROBE if world.broker:
            yield "refused", lambda t: t.broker_says(Verdict.REFUSED)
            yield "refused late", lambda t: t.broker_says(Verdict.REFUSED, late=True)
            yield "filter refused late", lambda t: t.broker_says(Verdict.SUBSCRIPTION_REFUSED, late=True)
            yield "unreachable", lambda t: t.broker_says(Verdict.UNREACHABLE)
        case Step.WAY_BACK:
            yield "Vault forgot", Trial.vault_forgot
            if world.broker:
                yield "the old one refused late", lambda t: t.broker_says(Verdict.REFUSED, late=True)
                yield "unreachable", lambda t: t.broker_says(Verdict.UNREACHABLE)
        case Step.REACTIVATE | Step.DELETE:
            yield "is unknown", lambda t: t.fails(Reason.KEY_UNKNOWN)
        case Step.DELIVER:
            yield "delivery is slow", Trial.delivery_is_slow
        case Step.LOOK if replaced:
            yield "the list lies", Trial.list_lies
        case Step.FINISH:
            yield "the old one works", lambda t: t.old_one_works(late=False)
            yield "the old one works late", lambda t: t.old_one_works(late=True)
            yield ("the list lies", Trial.list_lies) if replaced else ("issued elsewhere", Trial.issued_elsewhere)
        case _:
            yield from consumer_events(trial)


def consumer_events(trial: Trial) -> Iterator[tuple[str, Event]]:
    """What may happen to each set of consumers."""
    names = trial.consumers
    for which in map(set, chain.from_iterable(combinations(names, n) for n in range(len(names) + 1))):
        match trial.step:
            case Step.RESTART:
                yield f"restarts {which}", lambda t, which=which: t.restarts(which)  # type: ignore[misc]
            case Step.CONFIRM if trial.play.world.proven:
                yield f"sees {which}", lambda t, which=which: t.sees(which)  # type: ignore[misc]
                yield f"sees {which}, blind", lambda t, which=which: t.sees(which, blind=True)  # type: ignore[misc]
            case Step.SETTLE if which:
                yield f"{which} crashes", lambda t, which=which: t.crashes(which)  # type: ignore[misc]
            case Step.RECONFIRM if which & trial.play.world.proven:
                yield f"{which} was not watched", lambda t, which=which: t.was_not_watched(which)  # type: ignore[misc]
            case _:
                pass
