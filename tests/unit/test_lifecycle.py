"""The pure machine: the steps that all strategies share, and *in place*; each step's outcomes.

`test_lifecycle_replace` and `test_lifecycle_chosen` have the other two, `test_lifecycle_properties` everything
in any order.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import Stage
from play import BORN, DAY, LIMITS, NOW, SECOND, Play, World, at, begun
from rotator.errors import Transient
from rotator.lifecycle import (
    FINISH_TRIES,
    LOOK_AGAIN,
    MAX_ANSWERS,
    PREFLIGHT_HOLDS,
    UNREACHABLE_PROBES,
    advance,
    backoff,
    begin_call,
    next_step,
    roll_back,
)
from rotator.model import Identity, Issued, Result, Step, Strategy, Ticket, Verdict
from rotator.reasons import Reason
from rotator.rotation import (
    ConfirmDone,
    Ended,
    Failed,
    FinishDone,
    LookDone,
    PreflightDone,
    ProbeDone,
    RestartDone,
    Run,
    SettleDone,
    Wait,
)

FAILED = Failed(reason=Reason.VAULT_UNREACHABLE, detail="gone", delay=2 * SECOND)
LOST = Failed(reason=Reason.OUTCOME_UNKNOWN, unknown=True)
CONFLICT = Failed(reason=Reason.VAULT_CONFLICT, delay=SECOND)
NOTHING, HAPPENED = LookDone(happened=False), LookDone(happened=True)
REFUSED, FILTER_REFUSED, UNREACHABLE = (
    ProbeDone(verdict=verdict) for verdict in (Verdict.REFUSED, Verdict.SUBSCRIPTION_REFUSED, Verdict.UNREACHABLE)
)
CHECKED = PreflightDone(issued_before=BORN, expected="print")
GOOD_WAY = [
    Step.PREFLIGHT,
    Step.ISSUE,
    Step.PROMOTE,
    Step.PROBE,
    Step.DELIVER,
    Step.RESTART,
    Step.CONFIRM,
    Step.SETTLE,
    Step.FINISH,
]


def test_all_good_goes_through_every_step_once() -> None:
    """The order of *in place*, one answer, all consumers confirmed."""
    play = at(None)
    ended = play.rotation
    assert GOOD_WAY == play.steps
    assert (Result.SUCCEEDED, None, 1, 1, False) == (
        ended.result,
        ended.reason,
        ended.issues,
        ended.answers,
        ended.sealed,
    )
    assert all(c.confirmed_at is not None for c in ended.consumers)


def test_an_ended_rotation_has_nothing_left_to_do() -> None:
    """At any time, earlier or later."""
    play = at(None)
    assert [Ended()] * 2 == [next_step(play.rotation, play.now + by, LIMITS) for by in (-DAY, 400 * DAY)]


@pytest.mark.parametrize("step", GOOD_WAY)
def test_in_place_never_turns_around(step: Step) -> None:
    """The old secret is dead, or nothing has happened that could be taken back."""
    play = at(step)
    assert roll_back(play.rotation, Reason.ROLLBACK_REQUESTED, "", play.now) is None


# --- preflight and issue -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [0, 2, 50])
def test_preflight_is_never_given_up(attempts: int) -> None:
    """Nothing happened yet: an expiring key goes on being tried."""
    again = advance(replace(begun(), attempts=attempts), FAILED, NOW, LIMITS)
    assert (Step.PREFLIGHT, attempts + 1, NOW + 2 * SECOND, None) == (
        again.step,
        again.attempts,
        again.not_before,
        again.finished_at,
    )
    assert Wait(until=NOW + 2 * SECOND) == next_step(again, NOW, LIMITS)


def test_a_refused_issue_call_is_checked_anew() -> None:
    """What the next call needs is looked at again (rule 8), and the call counts."""
    again = at(Step.ISSUE).told(FAILED).rotation
    assert (Step.PREFLIGHT, None, 1) == (again.step, again.calling_since, again.issues)


@pytest.mark.parametrize("step", [Step.ISSUE, Step.CHOOSE])
def test_a_preflight_of_yesterday_is_done_again(step: Step) -> None:
    """The daemon died between preflight and call, and was away for hours; a call that is out is looked for instead."""
    ready = replace(begun(Strategy.CHOSEN), step=step, step_since=NOW)
    soon, late = NOW + PREFLIGHT_HOLDS, NOW + 5 * timedelta(hours=1)
    assert [Run(step=step), Run(step=Step.PREFLIGHT)] == [next_step(ready, at, LIMITS) for at in (soon, late)]
    out = begin_call(replace(begun(), step=Step.ISSUE, step_since=NOW), NOW)
    assert Run(step=Step.LOOK) == next_step(out, late, LIMITS)


@pytest.mark.parametrize("strategy", Strategy)
def test_refused_issue_calls_end_the_rotation_in_quarantine(strategy: Strategy) -> None:
    """After `max_attempts` calls that did nothing."""
    play = at(Step.ISSUE, strategy).told(FAILED, CHECKED, FAILED, CHECKED, FAILED)
    ended = play.rotation
    assert (Result.FAILED, FAILED.reason, FAILED.reason, 3) == (
        ended.result,
        ended.reason,
        ended.quarantine,
        play.steps.count(Step.ISSUE),
    )


def test_a_process_that_died_in_the_call_looks_first() -> None:
    """The journal says that a call went out and not what came of it (rule 9)."""
    assert Run(step=Step.LOOK) == next_step(begin_call(at(Step.ISSUE).rotation, NOW), NOW + DAY, LIMITS)


def test_a_look_that_fails_after_a_crash_is_no_refusal(tmp_path: Path) -> None:
    """The process died in the call and the provider is away at the next start: still no blind second call (rule 9)."""
    stage = Stage(tmp_path)
    stage.introduce()
    with pytest.raises(Killed):
        _die_in_the_call(stage)
    stage.shut_down()
    stage.boot()
    stage.platform.list_failures = [Transient("away", reason=Reason.PROVIDER_UNREACHABLE)]
    stage.work(60)
    story = [(event.step, event.result) for event in stage.events if event.name == "step"]
    stage.shut_down()
    assert [(Step.PREFLIGHT, "ok"), (Step.LOOK, "failed"), (Step.LOOK, "ok")] == story[:3]
    assert (2, "secret-2") == (stage.platform.issued, stage.current)


class Killed(BaseException):
    """What no `except Exception` sees: the process is gone."""


def _die_in_the_call(stage: Stage) -> None:
    issue = stage.platform.issue

    def issue_and_die(identity: Identity) -> Issued:
        issue(identity)
        raise Killed

    stage.platform.issue = issue_and_die  # type: ignore[method-assign]
    try:
        stage.work()
    finally:
        stage.platform.issue = issue  # type: ignore[method-assign]


# --- look --------------------------------------------------------------------------------------------------------


def test_no_sign_of_a_lost_call_is_looked_for_twice() -> None:
    """With a pause in between; only then the call is made again."""
    play = at(Step.ISSUE).told(LOST)
    assert Run(step=Step.LOOK) == next_step(play.rotation, play.now, LIMITS)
    play.told(NOTHING)
    assert Wait(until=play.now + LOOK_AGAIN) == next_step(play.rotation, play.now, LIMITS)
    twice = play.told(NOTHING).rotation
    assert (Step.PREFLIGHT, None) == (twice.step, twice.calling_since)


def test_the_pause_between_two_looks_is_the_providers() -> None:
    """Where its list is slow to show a new key."""
    play = at(Step.ISSUE).told(LOST, LookDone(happened=False, again_in=timedelta(minutes=2)))
    assert Wait(until=play.now + timedelta(minutes=2)) == next_step(play.rotation, play.now, LIMITS)


@pytest.mark.parametrize("failed", [FAILED, replace(FAILED, unknown=True)], ids=["refused", "unknown"])
def test_a_look_that_fails_is_tried_again_after_a_pause(failed: Failed) -> None:
    """For ever, and whatever became of the look: it changes nothing, and it is not the issue call."""
    play = at(Step.ISSUE).told(LOST, *[failed] * 20)
    assert (Step.LOOK, 1) == (play.rotation.step, play.rotation.issues)
    assert Wait(until=play.now + failed.delay) == next_step(play.rotation, play.now, LIMITS)


def test_a_lost_answer_that_was_issued_is_issued_anew_at_once() -> None:
    """The old secret is dead: no second preflight stands in the way, and what Vault holds is nobody's base."""
    play = at(Step.ISSUE).told(LOST)
    called = play.rotation.calling_since
    found = play.told(HAPPENED).rotation
    assert (None, None, called) == (found.calling_since, found.expected, found.died_at)
    assert Run(step=Step.ISSUE) == next_step(found, play.now, LIMITS)


def test_a_lost_answer_that_the_next_call_would_need_leaves_it_to_a_person() -> None:
    """Where a new secret is given only for the current one, and that was the lost answer."""
    lost = replace(begin_call(at(Step.ISSUE).rotation, NOW), step=Step.LOOK, looked=1)
    ended = advance(lost, HAPPENED, NOW, replace(LIMITS, needs_current=True))
    reason = Reason.CURRENT_LOST
    assert (Result.FAILED, reason, reason) == (ended.result, ended.reason, ended.quarantine)


def test_who_loses_every_answer_is_not_hammered() -> None:
    """The pauses between the calls grow."""
    play = at(Step.ISSUE, limits=replace(LIMITS, max_attempts=10))
    pauses = []
    for _ in range(9):
        play.told(LOST, HAPPENED)
        pauses.append(max(timedelta(0), (play.rotation.not_before or play.now) - play.now))
    assert [0, 5, 10, 20, 40, 80, 160, 300, 300] == [pause.total_seconds() for pause in pauses]


@pytest.mark.parametrize(
    ("looks", "reason"),
    [([HAPPENED], Reason.ANSWER_LOST), ([NOTHING, NOTHING, CHECKED], Reason.OUTCOME_UNKNOWN)],
    ids=["lost", "swallowed"],
)
def test_calls_without_an_answer_end_in_quarantine(looks: list[LookDone | PreflightDone], reason: Reason) -> None:
    """Answers that are always lost, or calls that never arrive: after `max_attempts` of them a person has to look."""
    play = at(Step.ISSUE)
    for _ in range(3):
        for outcome in (LOST, *looks):
            if play.due() is not None:
                play.told(outcome)
    ended = play.rotation
    assert (Result.FAILED, reason, reason, 3) == (
        ended.result,
        ended.reason,
        ended.quarantine,
        play.steps.count(Step.ISSUE),
    )


# --- promote and probe -------------------------------------------------------------------------------------------


def test_a_promote_that_fails_is_tried_for_ever() -> None:
    """The secret is sealed and the old one dead: nothing but going on helps."""
    again = at(Step.PROMOTE).told(*[FAILED] * 50).rotation
    assert (Step.PROMOTE, None, True, None) == (again.step, again.finished_at, again.sealed, again.quarantine)


def test_a_conflict_at_promote_waits_for_a_person() -> None:
    """Quarantined and sealed, also after another failure; a promote that gets through later lifts it."""
    play = at(Step.PROMOTE).told(CONFLICT, FAILED)
    assert (Reason.VAULT_CONFLICT, True) == (play.rotation.quarantine, play.rotation.sealed)
    ended = play.until(None).rotation
    assert (Result.SUCCEEDED, None) == (ended.result, ended.quarantine)


@pytest.mark.parametrize("life", [-DAY, timedelta(0), None], ids=["past", "now", "none"])
def test_an_expiry_that_cannot_be_right_is_probed_before_it_is_promoted(life: timedelta | None) -> None:
    """And the end says so; with a provider that is down at the end as well."""
    for tries in (0, FINISH_TRIES):
        play = at(Step.ISSUE)
        play.turn(lambda _, play=play: play.answer(life))  # type: ignore[misc]
        play.until(Step.FINISH).told(*[FAILED] * tries).until(None)
        assert [Step.ISSUE, Step.PROBE, Step.PROMOTE, Step.DELIVER] == play.steps[1:5]
        assert (Result.SUCCEEDED, Reason.EXPIRY_IMPLAUSIBLE) == (play.rotation.result, play.rotation.reason)


def implausible(world: World | None = None) -> Play:
    """A secret that is dead by its own date, and not in Vault yet."""
    play = at(Step.ISSUE, world=world)
    play.turn(lambda _: play.answer(-DAY))
    return play


def test_an_implausible_expiry_without_a_broker_is_not_promoted() -> None:
    """Nothing proves the secret: failed, quarantined, sealed."""
    play = implausible(World(broker=False)).until(None)
    ended = play.rotation
    assert (Result.FAILED, Reason.EXPIRY_IMPLAUSIBLE, True) == (ended.result, ended.quarantine, ended.sealed)
    assert Step.PROMOTE not in play.steps


def test_a_probe_that_can_never_run_leaves_a_quarantine() -> None:
    """Sealed and not in Vault, the old one dead: nothing is issued by itself on top of that."""
    ended = implausible().told(*[FAILED] * 3).rotation
    assert (Result.FAILED, FAILED.reason, True) == (ended.result, ended.quarantine, ended.sealed)
    proven = at(Step.PROBE).told(*[FAILED] * 3).rotation
    assert (Result.FAILED, FAILED.reason) == (proven.result, proven.quarantine)


def test_a_broker_that_is_away_holds_a_promoted_secret_only_so_long() -> None:
    """It refused nothing (rule 2): the restarts go on after a few tries."""
    play = at(Step.PROBE).told(*[UNREACHABLE] * UNREACHABLE_PROBES).until(None)
    assert (UNREACHABLE_PROBES, Result.SUCCEEDED) == (play.steps.count(Step.PROBE), play.rotation.result)


def test_a_broker_that_is_away_keeps_an_implausible_secret_back() -> None:
    """Nothing is promoted without its word then, however long it takes."""
    waiting = implausible().told(*[UNREACHABLE] * 3 * UNREACHABLE_PROBES).rotation
    assert (Step.PROBE, None) == (waiting.step, waiting.finished_at)


@pytest.mark.parametrize("refused", [REFUSED, FILTER_REFUSED], ids=["secret", "filter"])
def test_a_broker_that_refused_and_went_away_takes_nothing_back(refused: ProbeDone) -> None:
    """The restarts are held back until it accepts (rule 2), with a pause between the tries."""
    play = at(Step.PROBE).told(refused, *[UNREACHABLE] * 3 * UNREACHABLE_PROBES)
    assert (Step.PROBE, refused.verdict) == (play.rotation.step, play.rotation.verdict)
    assert isinstance(next_step(play.rotation, play.now, LIMITS), Wait)
    assert Result.SUCCEEDED == play.until(None).rotation.result


def test_a_refusal_is_waited_out_then_issued_once_more_then_quarantined() -> None:
    """Rule 2: restarts are held back, propagation is waited for, a second answer, then only looking."""
    play = at(Step.PROBE)
    for _ in range(60):
        play.turn(lambda step: REFUSED if step is Step.PROBE else play.effect(step))
    assert {Step.PREFLIGHT, Step.ISSUE, Step.PROMOTE, Step.PROBE} == set(play.steps)
    assert (MAX_ANSWERS, Reason.SECRET_REFUSED) == (play.rotation.issues, play.rotation.quarantine)
    first = play.steps[: play.steps.index(Step.ISSUE, 2)]
    assert 4 == first.count(Step.PROBE), "10 s of propagation, and a probe of one second every 2 s"
    ended = play.until(None).rotation
    assert (Result.SUCCEEDED, None, MAX_ANSWERS) == (ended.result, ended.quarantine, ended.answers)


def test_a_refused_filter_is_not_mended_by_another_secret() -> None:
    """A missing role stays missing: wait, then quarantine, and never a second issue call."""
    rotation = at(Step.PROBE).told(*[FILTER_REFUSED] * 60).rotation
    assert (Step.PROBE, Reason.SUBSCRIPTION_REFUSED, 1) == (rotation.step, rotation.quarantine, rotation.issues)


# --- deliver, restart, confirm, settle ---------------------------------------------------------------------------

SLOW = replace(LIMITS, deliver_delay=timedelta(minutes=6))


def test_delivery_is_waited_for_from_the_promote_on() -> None:
    """`{delay: 6m}`: no consumer is restarted onto the old secret."""
    play = at(Step.DELIVER, limits=SLOW)
    promoted = play.rotation.promoted_at
    assert promoted is not None
    assert Wait(until=promoted + SLOW.deliver_delay) == next_step(play.rotation, promoted, SLOW)
    assert Run(step=Step.DELIVER) == next_step(play.rotation, promoted + SLOW.deliver_delay, SLOW)


@pytest.mark.parametrize("step", [Step.DELIVER, Step.SETTLE])
def test_a_clock_that_stepped_back_neither_skips_a_wait_nor_makes_it_a_day(step: Step) -> None:
    """A second's correction leaves the wait as it was; after a day's nobody can tell, and consumers may be down."""
    play = at(step, limits=SLOW)
    rotation = play.rotation
    since = rotation.promoted_at if step is Step.DELIVER else max(c.seen_at for c in rotation.consumers if c.seen_at)
    assert since is not None
    span = SLOW.deliver_delay if step is Step.DELIVER else SLOW.settle
    assert Wait(until=since + span) == next_step(rotation, since - SECOND, SLOW)
    assert Run(step=step) == next_step(rotation, since - DAY, SLOW)


def test_only_the_consumer_that_failed_is_restarted_again() -> None:
    """The other one keeps its ticket."""
    ticket = Ticket(consumer="ingest", restarted_at=NOW)
    half = at(Step.RESTART).told(RestartDone(tickets=[ticket], failed=FAILED)).rotation
    assert (Step.RESTART, 1) == (half.step, half.attempts)
    assert {"ingest": NOW, "dashboards": None} == {c.name: c.restarted_at for c in half.consumers}


def test_a_blind_watch_restarts_nobody() -> None:
    """It proves nothing either way: the consumer keeps its restart, and is waited for again."""
    blind = ConfirmDone(seen=[], failed=Failed(reason=Reason.CONSUMER_NOT_CONFIRMED, delay=SECOND))
    waiting = at(Step.CONFIRM).told(blind).rotation
    assert all(c.restarted_at is not None and c.seen_at is None for c in waiting.consumers)


def test_restart_and_confirm_are_one_loop_that_ends() -> None:
    """A consumer that never proves itself: failed after `max_attempts`, with no second issue call."""
    play = at(Step.RESTART)
    seen = [("ingest", NOW)]
    unseen = ConfirmDone(seen=seen, unseen=["dashboards"], failed=Failed(reason=Reason.CONSUMER_NOT_CONFIRMED))
    while play.due() is not None:
        play.turn(lambda step: unseen if step is Step.CONFIRM else play.effect(step))
        assert len(play.steps) < 20
    assert (Result.FAILED, Reason.CONSUMER_NOT_CONFIRMED, 3, 1) == (
        play.rotation.result,
        play.rotation.reason,
        play.steps.count(Step.CONFIRM),
        play.rotation.issues,
    )


def test_a_consumer_that_crashes_after_it_was_seen_is_restarted_again() -> None:
    """Settle finds it; what was seen of it, or confirmed before, does not count any more."""
    crashed = SettleDone(confirmed=["ingest"], crashed=["dashboards"], failed=Failed(reason=Reason.CONSUMER_CRASHED))
    settling = at(Step.SETTLE)
    consumers = tuple(replace(c, confirmed_at=NOW) for c in settling.rotation.consumers)
    settling.rotation = replace(settling.rotation, consumers=consumers)
    again = settling.told(crashed).rotation
    facts = {c.name: (c.restarted_at is None, c.seen_at is None, c.confirmed_at is None) for c in again.consumers}
    assert {"ingest": (False, False, False), "dashboards": (True, True, True)} == facts
    assert Step.RESTART == again.step


def test_settling_is_counted_from_the_last_sighting() -> None:
    """Three seconds after the slower of the two."""
    settling = at(Step.SETTLE).rotation
    seen = [c.seen_at for c in settling.consumers if c.seen_at is not None]
    assert Wait(until=max(seen) + LIMITS.settle) == next_step(settling, max(seen), LIMITS)
    assert Run(step=Step.SETTLE) == next_step(settling, max(seen) + LIMITS.settle, LIMITS)


def test_a_rotation_without_consumers_needs_none() -> None:
    """Restart, confirm and settle have nothing to do."""
    assert Result.SUCCEEDED == at(None, consumers=()).rotation.result


# --- finish ------------------------------------------------------------------------------------------------------


def test_somebody_who_issued_after_us_makes_it_fail() -> None:
    """Named, at the last look (rule 4)."""
    ended = at(Step.FINISH).told(FinishDone(issued_elsewhere=True)).rotation
    assert (Result.FAILED, Reason.ISSUED_ELSEWHERE) == (ended.result, ended.reason)


def test_a_provider_that_is_down_does_not_keep_a_proven_rotation_open() -> None:
    """The last look is tried a few times."""
    play = at(Step.FINISH).told(*[FAILED] * FINISH_TRIES)
    assert Result.SUCCEEDED == play.rotation.result


# --- backoff -----------------------------------------------------------------------------------------------------


@given(
    step=st.sampled_from(Step),
    reason=st.sampled_from(Reason),
    attempts=st.integers(min_value=0, max_value=10**6),
    draw=st.floats(min_value=0, max_value=1, exclude_max=True),
    unsettled=st.booleans(),
)
def test_every_wait_is_a_real_one_and_bounded(
    step: Step, reason: Reason, attempts: int, draw: float, unsettled: bool
) -> None:
    """Never zero, so that nothing spins; half an hour at most."""
    pause = backoff(step, reason, attempts, draw, unsettled=unsettled)
    assert timedelta(milliseconds=100) <= pause <= timedelta(minutes=30)


def test_a_secret_that_waits_for_vault_comes_back_within_seconds() -> None:
    """Issue 2: in Vault within 5 s of Vault's return; the same on the way back."""
    for step in (Step.PROMOTE, Step.REVERT):
        assert timedelta(seconds=2) >= backoff(step, Reason.VAULT_SEALED, 10**4, 0.999)


def test_a_chosen_secret_that_may_have_been_set_is_set_within_seconds() -> None:
    """Nobody holds another one that works."""
    usual, unsettled = (backoff(Step.ISSUE, Reason.PROVIDER_UNREACHABLE, 10, 0.9, unsettled=u) for u in (False, True))
    assert (timedelta(minutes=4.5), timedelta(seconds=27)) == (usual, unsettled)


def test_a_refused_login_backs_off_further_than_an_outage() -> None:
    """Platforms lock accounts."""
    auth, outage = (
        backoff(Step.PREFLIGHT, reason, 10, 0.9) for reason in (Reason.PROVIDER_AUTH, Reason.PROVIDER_UNREACHABLE)
    )
    assert timedelta(minutes=27) == auth
    assert timedelta(minutes=4.5) == outage
