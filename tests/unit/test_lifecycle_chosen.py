"""The pure machine, *chosen by the caller*: a secret of our own, set again where nobody knows, and the way back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from play import DAY, LIMITS, NOW, OLD, SECOND, Play, World, at
from rotator.lifecycle import begin_call, next_step, roll_back
from rotator.model import Result, Step, Strategy, Verdict
from rotator.reasons import Reason
from rotator.rotation import ConfirmDone, Failed, ProbeDone, Run, Wait, WayBackDone

CHOSEN = Strategy.CHOSEN
FAILED = Failed(reason=Reason.PROVIDER_REFUSED, delay=SECOND)
LOST = Failed(reason=Reason.OUTCOME_UNKNOWN, unknown=True, delay=SECOND)
UNSEEN = Failed(reason=Reason.CONSUMER_NOT_CONFIRMED, delay=SECOND)
REFUSED = ProbeDone(verdict=Verdict.REFUSED)
NOT_HELD = WayBackDone(verdict=None, held=False)
PROOF = [Step.DELIVER, Step.RESTART, Step.CONFIRM, Step.SETTLE]
SET = [Step.ISSUE, Step.PROMOTE, Step.PROBE, *PROOF, Step.FINISH]
BACK = [Step.WAY_BACK, Step.REVERT, *PROOF]


def arrived(step: Step | None, world: World | None = None) -> Play:
    """A *chosen* rotation that has come so far without trouble, with the steps counted from there."""
    play = at(step, CHOSEN, world=world)
    play.steps.clear()
    return play


def rolled_back(play: Play) -> Play:
    """Turned around by a person."""
    back = roll_back(play.rotation, Reason.ROLLBACK_REQUESTED, "", play.now)
    assert back is not None
    play.rotation = back
    return play


def refused_late(play: Play) -> Play:
    """The broker refuses the new secret for all of the propagation time."""
    while play.due() is Step.PROBE and play.rotation.quarantine is None:
        play.told(REFUSED)
        assert len(play.steps) < 60
    return play


# --- the way to the new secret -----------------------------------------------------------------------------------


def test_all_good_goes_through_every_step_once() -> None:
    """The order of *chosen*: sealed before anybody hears of it."""
    play = at(None, CHOSEN)
    assert [Step.PREFLIGHT, Step.CHOOSE, *SET] == play.steps
    ended = play.rotation
    assert (Result.SUCCEEDED, None, False) == (ended.result, ended.quarantine, ended.sealed)
    assert ("chosen", "chosen") == (play.world.live, play.world.vault)


def test_a_secret_is_sealed_from_the_moment_it_is_chosen() -> None:
    """Before the first call, and until Vault has it."""
    sealed = {step: arrived(step).rotation.sealed for step in (Step.CHOOSE, *SET)}
    assert {Step.ISSUE, Step.PROMOTE} == {step for step, there in sealed.items() if there}


def test_a_refused_call_is_checked_anew_and_repeated_with_the_same_secret() -> None:
    """Chosen once."""
    play = arrived(Step.ISSUE).told(FAILED).until(None)
    assert [Step.ISSUE, Step.PREFLIGHT, *SET] == play.steps


def test_a_secret_without_an_expiry_goes_by_its_age() -> None:
    """Where the old one had none either; otherwise the broker decides about the promote."""
    aged = at(None, CHOSEN, world=World(life=None))
    assert (Result.SUCCEEDED, None) == (aged.rotation.result, aged.rotation.reason)
    odd = at(None, CHOSEN, world=World(life=None, old_ends=NOW + 10 * DAY))
    assert Reason.EXPIRY_IMPLAUSIBLE is odd.rotation.reason
    assert odd.steps.index(Step.PROBE) < odd.steps.index(Step.PROMOTE)


# --- the unknown outcome -----------------------------------------------------------------------------------------


def test_a_call_without_an_answer_is_made_again() -> None:
    """Safe to repeat: nobody has to look."""
    play = arrived(Step.ISSUE).told(LOST, LOST).until(None)
    assert [Step.ISSUE, Step.ISSUE, *SET] == play.steps
    assert (Result.SUCCEEDED, 3, 1) == (play.rotation.result, play.rotation.issues, play.rotation.answers)


def test_a_process_that_died_in_the_call_makes_it_again() -> None:
    """And knows that it may have had its effect."""
    calling = begin_call(arrived(Step.ISSUE).rotation, NOW)
    assert (Run(step=Step.ISSUE), False) == (next_step(calling, NOW + DAY, LIMITS), calling.unsettled)
    assert begin_call(calling, NOW + SECOND).unsettled


@pytest.mark.parametrize("then", [FAILED, LOST], ids=["refused", "lost"])
def test_a_secret_that_may_have_been_set_is_set_for_ever(then: Failed) -> None:
    """A refusal after a lost call settles nothing; after `max_attempts` it is quarantined, and goes on with pauses."""
    play = arrived(Step.ISSUE).told(LOST, *[then] * 20)
    stuck = play.rotation
    assert (Step.ISSUE, None, then.reason, True) == (stuck.step, stuck.finished_at, stuck.quarantine, stuck.sealed)
    assert isinstance(next_step(stuck, play.now, LIMITS), Wait)
    ended = play.until(None).rotation
    assert (Result.SUCCEEDED, None) == (ended.result, ended.quarantine)


# --- the way back ------------------------------------------------------------------------------------------------


def test_a_refused_secret_is_taken_back() -> None:
    """The previous one is set again, put back into Vault, and proven; after that a person."""
    play = refused_late(arrived(Step.PROBE))
    play.steps.clear()
    ended = play.until(None).rotation
    assert BACK == play.steps
    assert (Result.ROLLED_BACK, Reason.SECRET_REFUSED, False) == (ended.result, ended.quarantine, ended.sealed)
    assert (OLD, OLD) == (play.world.live, play.world.vault)


def closed(step: Step = Step.CONFIRM) -> Play:
    """Not confirmed, or refused, and Vault has forgotten the previous secret."""
    play = refused_late(arrived(step)) if step is Step.PROBE else rolled_back(arrived(step))
    play.steps.clear()
    return play.told(NOT_HELD)


@pytest.mark.parametrize("step", [Step.PROMOTE, Step.PROBE, *PROOF, Step.FINISH])
def test_where_the_way_back_is_closed_it_goes_forward(step: Step) -> None:
    """The new secret is set again, since nobody knows which one is live; whoever was restarted is restarted again."""
    play = closed(step)
    assert play.rotation.sealed, "it is not in Vault for sure"
    play.until(None)
    assert [Step.WAY_BACK, *SET] == play.steps
    assert (Result.SUCCEEDED, None) == (play.rotation.result, play.rotation.quarantine)
    assert ("chosen", "chosen") == (play.world.live, play.world.vault)
    promoted = play.rotation.promoted_at
    assert promoted is not None
    assert all((c.restarted_at or NOW) > promoted and (c.seen_at or NOW) > promoted for c in play.rotation.consumers)


@pytest.mark.parametrize(
    "report",
    [
        WayBackDone(verdict=Verdict.REFUSED, held=True),
        WayBackDone(verdict=Verdict.UNREACHABLE, held=True),
        FAILED,
        Failed(reason=Reason.KEY_UNKNOWN),
    ],
    ids=["refused", "unreachable", "failed", "unknown key"],
)
def test_what_closes_the_way_back(report: WayBackDone | Failed) -> None:
    """After the propagation time, or all tries."""
    play = rolled_back(arrived(Step.CONFIRM))
    while play.due() is Step.WAY_BACK:
        play.told(report)
        assert len(play.steps) < 60
    assert (Step.ISSUE, True) == (play.rotation.step, play.rotation.no_way_back)


def test_with_no_way_back_a_refusal_waits_for_a_person() -> None:
    """Quarantined, probing on; when the broker accepts, it is lifted."""
    play = refused_late(closed(Step.PROBE).until(Step.PROBE)).told(*[REFUSED] * 20)
    assert (Step.PROBE, Reason.SECRET_REFUSED) == (play.rotation.step, play.rotation.quarantine)
    assert Result.SUCCEEDED == play.until(None).rotation.result


def test_with_no_way_back_what_fails_ends_in_quarantine() -> None:
    """A consumer that never comes up: it does not turn around a second time by itself."""
    play = closed().until(Step.CONFIRM)
    lost = ConfirmDone(seen=[], unseen=["ingest"], failed=UNSEEN)
    while play.due() is not None:
        play.turn(lambda step: lost if step is Step.CONFIRM else play.effect(step))
        assert len(play.steps) < 60
    assert (Result.FAILED, UNSEEN.reason, UNSEEN.reason) == (
        play.rotation.result,
        play.rotation.reason,
        play.rotation.quarantine,
    )


def test_a_dead_expiry_that_nobody_can_prove_is_taken_back() -> None:
    """And where that is impossible, it ends sealed and quarantined."""
    for held, result in ((True, Result.ROLLED_BACK), (False, Result.FAILED)):
        play = arrived(Step.ISSUE, World(broker=False, held=held, life=-DAY)).until(None)
        assert (result, Reason.EXPIRY_IMPLAUSIBLE) == (play.rotation.result, play.rotation.quarantine)
        assert (OLD, not held) == (play.world.vault, play.rotation.sealed)


# --- a person turns it around ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "then"),
    [
        *[(step, []) for step in (Step.PREFLIGHT, Step.CHOOSE, Step.ISSUE)],
        *[(step, BACK) for step in (Step.PROMOTE, Step.PROBE, *PROOF, Step.FINISH)],
    ],
)
def test_a_person_turns_it_around(step: Step, then: list[Step]) -> None:
    """From every step; where nothing was set nothing is touched."""
    play = rolled_back(arrived(step)).until(None)
    assert then == play.steps
    ended = play.rotation
    assert (Result.ROLLED_BACK, Reason.ROLLBACK_REQUESTED) == (ended.result, ended.quarantine)
    assert (OLD, OLD, False) == (play.world.live, play.world.vault, ended.sealed)


def test_a_refused_call_leaves_nothing_to_take_back() -> None:
    """With a closed way back it would go forward, against the person's word."""
    ended = rolled_back(arrived(Step.ISSUE).told(FAILED)).rotation
    assert Result.ROLLED_BACK == ended.result


@pytest.mark.parametrize("done", [True, False])
def test_a_call_that_may_have_been_done_is_taken_back(done: bool) -> None:
    """Whether it was or not: the previous secret is set again."""
    play = arrived(Step.ISSUE)
    if done:
        play.call()
    assert BACK == rolled_back(play.told(LOST)).until(None).steps[1:]
    assert (OLD, OLD) == (play.world.live, play.world.vault)


def test_an_ended_rotation_is_not_turned_around() -> None:
    """Whoever wants the older secret begins a rotation that restores it."""
    play = arrived(None)
    assert roll_back(play.rotation, Reason.ROLLBACK_REQUESTED, "", play.now) is None


def test_a_person_may_insist_on_the_way_back() -> None:
    """After it was closed: Vault may have its versions again."""
    play = rolled_back(closed().until(Step.CONFIRM))
    play.steps.clear()
    assert BACK == play.until(None).steps
    assert Result.ROLLED_BACK == play.rotation.result


def test_nobody_is_sent_back_to_a_secret_that_ends_before_another_attempt() -> None:
    """It goes forward instead."""
    play = arrived(Step.CONFIRM, World(old_ends=NOW + 5 * DAY))
    play.now = NOW + timedelta(days=1)
    ended = rolled_back(play).until(None).rotation
    assert (Result.SUCCEEDED, True) == (ended.result, ended.no_way_back)


def test_a_rollback_that_fails_itself_is_quarantined() -> None:
    """The consumers do not come up with the old secret either."""
    play = rolled_back(arrived(Step.CONFIRM)).until(Step.CONFIRM)
    lost = ConfirmDone(seen=[], unseen=["ingest"], failed=replace(UNSEEN))
    while play.due() is not None:
        play.turn(lambda step: lost if step is Step.CONFIRM else play.effect(step))
        assert len(play.steps) < 60
    assert (Result.FAILED, Reason.ROLLBACK_FAILED) == (play.rotation.result, play.rotation.quarantine)
