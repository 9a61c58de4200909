"""Everything that may happen to a rotation: what never becomes false, and that success stays reachable (issue 3).

The machine alone, for all three strategies: `trial` has what may happen, `witness` what must not, `play` the world.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from play import DAY, SECOND
from rotator.frozen import replace
from rotator.lifecycle import next_step
from rotator.model import Step, Strategy, Verdict
from rotator.reasons import Reason
from rotator.rotation import ConsumerPlan, Ended, Limits
from trial import NAMES, NOT_WELL, Case, Trial, events, shape, turns

# --- in every order ----------------------------------------------------------------------------------------------

IN_PLACE, REPLACE, CHOSEN = Strategy.IN_PLACE, Strategy.REPLACE, Strategy.CHOSEN
STAYS = Limits(max_attempts=2, deactivates=False)
PLANS = (ConsumerPlan(name=NAMES[0], canary=True), *(ConsumerPlan(name=name, max_unavailable=1) for name in NAMES[1:]))
IN_TURN = Limits(max_attempts=1, plans=PLANS)
ONE_TRY = Limits(max_attempts=1, deactivates=False)
EXPLORED = [
    Case(strategy=IN_PLACE),
    Case(strategy=CHOSEN),
    Case(strategy=REPLACE),
    Case(strategy=REPLACE, limits=STAYS, broker=False, proven=()),
    Case(strategy=REPLACE, limits=ONE_TRY, proven=(True, True)),
    Case(strategy=REPLACE, proven=()),
    Case(strategy=REPLACE, limits=IN_TURN, proven=(True, True)),
    Case(strategy=REPLACE, limits=replace(IN_TURN, deactivates=False), proven=(True, True, True), idle=NAMES[1:2]),
]


def state(trial: Trial) -> tuple[object, ...]:
    """What makes two trials the same, as far as anything can tell."""
    rotation, play = trial.play.rotation, trial.play
    counts = (min(rotation.attempts, 2), min(rotation.issues, 2), min(rotation.answers, 2))
    world = (play.world.live, tuple(play.world.keys.items()), tuple(play.world.late), play.world.vault, play.world.held)
    running = tuple(play.world.running.items())
    return (shape(rotation), turns(play), counts, world, running, trial.witness.account())


@pytest.mark.parametrize("case", EXPLORED, ids=lambda case: f"{case.strategy.value}-{len(case.proven)}")
def test_every_order_of_events(case: Case) -> None:
    """Breadth first: each new state is looked at, so a failure names the shortest way to it."""
    begin = Trial(case)
    waiting: deque[tuple[Trial, tuple[str, ...]]] = deque([(begin, ())])
    known, tried = {state(begin)}, 0
    while waiting:
        trial, way = waiting.popleft()
        for name, event in () if trial.ended else events(trial):
            after, way_there = trial.copy(), (*way, name)
            tried += 1
            try:
                event(after)
            except AssertionError as exc:
                raise AssertionError(f"{exc} after: {'; '.join(way_there)}") from exc
            if (reached := state(after)) not in known:
                known.add(reached)
                waiting.append((after, way_there))
    print(f"{len(known)} states, {tried} events, none left")  # noqa: T201 - the figures


# --- at random, with all numbers ---------------------------------------------------------------------------------

EXAMPLES, STEPS = 600, 15
REASONS = st.sampled_from(  # one or two of each family: provider, store, broker, consumers, the daemon itself
    [
        Reason.PROVIDER_AUTH,
        Reason.PROVIDER_REFUSED,
        Reason.KEY_UNKNOWN,
        Reason.VAULT_SEALED,
        Reason.VAULT_DENIED,
        Reason.BROKER_UNREACHABLE,
        Reason.CONSUMER_CRASHED,
        Reason.EVIDENCE_LOST,
        Reason.CLOCK_SKEW,
        Reason.SEAL_BROKEN,
        Reason.UNFORESEEN,
    ]
)
SOME = st.sets(st.sampled_from(NAMES))
VERDICTS = st.lists(st.tuples(st.sampled_from(NOT_WELL), st.booleans()), min_size=1, max_size=4)
CASES = st.builds(
    Case,
    strategy=st.sampled_from([REPLACE, CHOSEN, IN_PLACE]),
    proven=st.lists(st.booleans(), max_size=3).map(tuple),
    limits=st.builds(
        Limits,
        max_attempts=st.sampled_from([1, 3, 10]),
        deliver_delay=st.sampled_from([timedelta(0), timedelta(minutes=6)]),
        grace=st.sampled_from([None, timedelta(0), timedelta(hours=1)]),
        deactivates=st.booleans(),
        plans=st.sampled_from([(), PLANS, PLANS[1:]]),
    ),
    idle=st.sampled_from([(), (), NAMES[:1], NAMES[1:2]]),
    old_life=st.sampled_from([10 * DAY, 2 * DAY, None]),
    broker=st.sampled_from([True, True, False]),
    no_grace=st.sampled_from([False, False, True]),
)


class Lifecycle(RuleBasedStateMachine):
    """A rule for each thing that may come of the step that is next, and for what may happen at any time."""

    trial: Trial

    @initialize(case=CASES, turns=st.integers(0, 15))
    def begin(self, case: Case, turns: int) -> None:
        """Anywhere on a way without trouble."""
        self.trial = Trial(case)
        self.trial.goes_well(turns)

    @property
    def step(self) -> Step | None:
        return self.trial.step

    @precondition(lambda self: not self.trial.ended)
    @rule(turns=st.sampled_from([1, 1, 2, 8]))
    def goes_well(self, turns: int) -> None:
        self.trial.goes_well(turns)

    @precondition(lambda self: not self.trial.ended)
    @rule(reason=REASONS, delay=st.sampled_from([timedelta(0), SECOND, timedelta(hours=1)]))
    def fails(self, reason: Reason, delay: timedelta) -> None:
        self.trial.fails(reason, delay)

    @precondition(lambda self: not self.trial.ended)
    @rule(effect=st.booleans(), times=st.sampled_from([1, 3, 10]))
    def times_out(self, effect: bool, times: int) -> None:
        self.trial.times_out(effect=effect, times=times)

    @precondition(lambda self: not self.trial.ended)
    @rule(effect=st.booleans())
    def dies(self, effect: bool) -> None:
        self.trial.dies(effect=effect)

    @precondition(lambda self: not self.trial.ended)
    @rule(by=st.sampled_from([DAY, -DAY, SECOND, -SECOND]))
    def clock_steps(self, by: timedelta) -> None:
        self.trial.clock_steps(by)

    @precondition(lambda self: not self.trial.ended)
    @rule()
    def is_hurried(self) -> None:
        self.trial.is_hurried()

    @precondition(lambda self: not self.trial.ended and self.trial.turned_round() is not None)
    @rule()
    def is_rolled_back(self) -> None:
        self.trial.is_rolled_back()

    @precondition(lambda self: self.trial.play.world.late)
    @rule()
    def lost_call_arrives(self) -> None:
        self.trial.lost_call_arrives()

    @precondition(lambda self: self.step is Step.ISSUE)
    @rule(life=st.sampled_from([-DAY, timedelta(0), None, DAY]))
    def answers(self, life: timedelta | None) -> None:
        self.trial.answers(life)

    @precondition(lambda self: self.step in {Step.PROMOTE, Step.REVERT})
    @rule()
    def conflicts(self) -> None:
        self.trial.conflicts()

    @precondition(lambda self: self.step in {Step.PROBE, Step.WAY_BACK} and self.trial.play.world.broker)
    @rule(verdicts=VERDICTS)
    def broker_says(self, verdicts: list[tuple[Verdict, bool]]) -> None:
        step = self.step
        for verdict, late in verdicts:
            if self.step is step:
                self.trial.broker_says(verdict, late=late)

    @precondition(lambda self: self.step is Step.DELIVER)
    @rule()
    def delivery_is_slow(self) -> None:
        self.trial.delivery_is_slow()

    @precondition(lambda self: self.step is Step.FINISH)
    @rule(late=st.booleans())
    def old_one_works(self, late: bool) -> None:
        self.trial.old_one_works(late=late)

    @precondition(lambda self: self.step is Step.WAY_BACK)
    @rule()
    def vault_forgot(self) -> None:
        self.trial.vault_forgot()

    @precondition(lambda self: self.step is Step.RESTART)
    @rule(which=SOME, reason=REASONS)
    def restarts(self, which: set[str], reason: Reason) -> None:
        self.trial.restarts(which, reason)

    @precondition(lambda self: self.step is Step.CONFIRM and self.trial.play.world.proven)
    @rule(which=SOME, blind=st.booleans(), times=st.sampled_from([1, 3, 10]))
    def sees(self, which: set[str], blind: bool, times: int) -> None:
        self.trial.sees(which, blind=blind, times=times)

    @precondition(lambda self: self.step is Step.SETTLE and self.trial.consumers)
    @rule(which=SOME)
    def crashes(self, which: set[str]) -> None:
        self.trial.crashes(which)

    @precondition(lambda self: self.step is Step.RECONFIRM and self.trial.play.world.proven)
    @rule(which=SOME)
    def was_not_watched(self, which: set[str]) -> None:
        self.trial.was_not_watched(which)

    @precondition(lambda self: self.step in {Step.LOOK, Step.FINISH} and self.trial.play.strategy is REPLACE)
    @rule()
    def list_lies(self) -> None:
        self.trial.list_lies()

    @precondition(lambda self: self.step is Step.FINISH and self.trial.play.strategy is not REPLACE)
    @rule()
    def issued_elsewhere(self) -> None:
        self.trial.issued_elsewhere()

    @precondition(lambda self: self.trial.ended)
    @rule(later=st.sampled_from([-DAY, 400 * DAY]))
    def an_end_is_an_end(self, later: timedelta) -> None:
        play = self.trial.play
        assert Ended() == next_step(play.rotation, play.now + later, play.limits)
        assert self.trial.turned_round() is None


def test_whatever_happens_success_stays_reachable() -> None:
    """Each case of settings, begun anywhere, with clocks that step and all reasons; the same examples every time."""
    Trial.visited.clear()
    run_state_machine_as_test(
        Lifecycle,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=True, database=None
        ),
    )
    steps = {states[:2] for states in Trial.visited}
    print(f"{len(Trial.visited)} states (strategy, step, flags) of {len(steps)} steps")  # noqa: T201 - the figures
