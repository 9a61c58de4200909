"""The pure machine: each step's outcomes, and two properties over everything that may happen in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import Stage
from rotator.errors import Transient
from rotator.lifecycle import (
    FINISH_TRIES,
    LOOK_AGAIN,
    MAX_ANSWERS,
    UNREACHABLE_PROBES,
    advance,
    backoff,
    begin_call,
    next_step,
)
from rotator.model import Identity, Issued, Result, Step, Ticket, Verdict
from rotator.reasons import Reason
from rotator.rotation import (
    ConfirmDone,
    ConsumerProgress,
    DeliverDone,
    Ended,
    Failed,
    FinishDone,
    IssueDone,
    Limits,
    LookDone,
    Outcome,
    PreflightDone,
    ProbeDone,
    PromoteDone,
    RestartDone,
    Rotation,
    Run,
    SettleDone,
    Wait,
)

NOW = datetime(2026, 3, 24, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
LIMITS = Limits(max_attempts=3, propagation=10 * SECOND, settle=3 * SECOND, deliver_delay=timedelta(0))
BEGUN = Rotation(
    id="r1",
    key="building-a",
    provider="acme",
    identity=Identity(id="id-1", username="id-1"),
    trigger=Reason.NEAR_EXPIRY,
    started_at=NOW,
    step_since=NOW,
    consumers=(ConsumerProgress(name="ingest"), ConsumerProgress(name="dashboards")),
)
NAMES = tuple(c.name for c in BEGUN.consumers)
FAILED = Failed(reason=Reason.VAULT_UNREACHABLE, detail="gone", delay=2 * SECOND)


def answer(now: datetime, *, plausible: bool = True) -> IssueDone:
    expires = now + timedelta(days=90) if plausible else now - timedelta(days=1)
    return IssueDone(answered_at=now, issued_at=now, expires_at=expires, expiry_source=None)


def good(rotation: Rotation, step: Step, now: datetime) -> Outcome:
    """The outcome of `step` when nothing is wrong."""
    outcomes: dict[Step, Outcome] = {
        Step.PREFLIGHT: PreflightDone(issued_before=NOW - timedelta(days=80), expected="print"),
        Step.ISSUE: answer(now),
        Step.LOOK: LookDone(happened=False),
        Step.PROBE: ProbeDone(verdict=Verdict.ACCEPTED),
        Step.PROMOTE: PromoteDone(version=2, expected="new print"),
        Step.DELIVER: DeliverDone(),
        Step.RESTART: RestartDone(
            tickets=[Ticket(consumer=c.name, restarted_at=now) for c in rotation.consumers if c.restarted_at is None]
        ),
        Step.CONFIRM: ConfirmDone(seen=[(c.name, now) for c in rotation.consumers if c.seen_at is None]),
        Step.SETTLE: SettleDone(confirmed=NAMES),
        Step.FINISH: FinishDone(),
    }
    return outcomes[step]


def play(
    rotation: Rotation, now: datetime, *outcomes: Outcome, limits: Limits = LIMITS, until: Step | None = None
) -> tuple[Rotation, datetime, list[Step]]:
    """Run the machine: the given outcomes first, then good ones, to the end or to the step `until`."""
    queue = list(outcomes)
    steps: list[Step] = []
    for _ in range(60):
        match next_step(rotation, now, limits):
            case Ended():
                return rotation, now, steps
            case Wait(until=then):
                now = then
            case Run(step=step):
                if step is until and not queue:
                    return rotation, now, steps
                steps.append(step)
                if step is Step.ISSUE:
                    rotation = begin_call(rotation, now)
                now += SECOND
                rotation = advance(rotation, queue.pop(0) if queue else good(rotation, step, now), now, limits)
    raise AssertionError(f"no end after {steps}")


def at(step: Step) -> Rotation:
    """A rotation that has come to `step` without any trouble."""
    return play(BEGUN, NOW, until=step)[0]


def test_all_good_goes_through_every_step_once() -> None:
    """The order of *in place*, one answer, all consumers confirmed."""
    ended, _, steps = play(BEGUN, NOW)
    assert [
        Step.PREFLIGHT,
        Step.ISSUE,
        Step.PROMOTE,
        Step.PROBE,
        Step.DELIVER,
        Step.RESTART,
        Step.CONFIRM,
        Step.SETTLE,
        Step.FINISH,
    ] == steps
    assert (Result.SUCCEEDED, None, 1, 1, False) == (
        ended.result,
        ended.reason,
        ended.issues,
        ended.answers,
        ended.sealed,
    )
    assert all(c.confirmed_at is not None for c in ended.consumers)


def test_an_ended_rotation_has_nothing_left_to_do() -> None:
    """At any later time."""
    ended, now, _ = play(BEGUN, NOW)
    assert Ended() == next_step(ended, now + timedelta(days=400), LIMITS)


@pytest.mark.parametrize("attempts", [0, 2, 50])
def test_preflight_is_never_given_up(attempts: int) -> None:
    """Nothing happened yet: an expiring key goes on being tried."""
    again = advance(replace(BEGUN, attempts=attempts), FAILED, NOW, LIMITS)
    assert (Step.PREFLIGHT, attempts + 1, NOW + 2 * SECOND, None) == (
        again.step,
        again.attempts,
        again.not_before,
        again.finished_at,
    )
    assert Wait(until=NOW + 2 * SECOND) == next_step(again, NOW, LIMITS)


def test_a_refused_issue_call_is_checked_anew() -> None:
    """What the next call needs is looked at again (rule 8), and the call counts."""
    calling = begin_call(at(Step.ISSUE), NOW)
    again = advance(calling, FAILED, NOW, LIMITS)
    assert (Step.PREFLIGHT, None, 1) == (again.step, again.calling_since, again.issues)


def test_refused_issue_calls_end_the_rotation_in_quarantine() -> None:
    """After `max_attempts` calls."""
    refusals: list[Outcome] = [FAILED, good(BEGUN, Step.PREFLIGHT, NOW)] * 3
    ended, _, steps = play(at(Step.ISSUE), NOW, *refusals)
    assert (Result.FAILED, FAILED.reason, 3) == (ended.result, ended.quarantine, steps.count(Step.ISSUE))


def test_a_process_that_died_in_the_call_looks_first() -> None:
    """The journal says that a call went out and not what came of it (rule 9)."""
    calling = begin_call(at(Step.ISSUE), NOW)
    assert Run(step=Step.LOOK) == next_step(calling, NOW, LIMITS)


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


def test_no_sign_of_a_lost_call_is_looked_for_twice() -> None:
    """With a pause in between; only then the call is made again."""
    lost = Failed(reason=Reason.OUTCOME_UNKNOWN, unknown=True)
    looking = advance(begin_call(at(Step.ISSUE), NOW), lost, NOW, LIMITS)
    assert Run(step=Step.LOOK) == next_step(looking, NOW, LIMITS)
    once = advance(looking, LookDone(happened=False), NOW, LIMITS)
    assert Wait(until=NOW + LOOK_AGAIN) == next_step(once, NOW, LIMITS)
    twice = advance(once, LookDone(happened=False), NOW + LOOK_AGAIN, LIMITS)
    assert (Step.PREFLIGHT, None) == (twice.step, twice.calling_since)


def test_a_lost_answer_that_was_issued_is_issued_anew_at_once() -> None:
    """The old secret is dead: no second preflight stands in the way."""
    lost = Failed(reason=Reason.OUTCOME_UNKNOWN, unknown=True)
    looking = advance(begin_call(at(Step.ISSUE), NOW), lost, NOW, LIMITS)
    found = advance(looking, LookDone(happened=True), NOW, LIMITS)
    assert (Step.ISSUE, None, Run(step=Step.ISSUE)) == (found.step, found.calling_since, next_step(found, NOW, LIMITS))


def test_answers_that_are_always_lost_end_in_quarantine() -> None:
    """After `max_attempts` of them a person has to look."""
    lost = Failed(reason=Reason.OUTCOME_UNKNOWN, unknown=True)
    answers: list[Outcome] = [lost, LookDone(happened=True)] * 3
    ended, _, steps = play(at(Step.ISSUE), NOW, *answers)
    assert (Result.FAILED, Reason.ANSWER_LOST, Reason.ANSWER_LOST, 3) == (
        ended.result,
        ended.reason,
        ended.quarantine,
        steps.count(Step.ISSUE),
    )


def test_calls_that_never_arrive_end_in_quarantine_too() -> None:
    """Nobody goes on for ever on a wire that swallows them."""
    lost, nothing = Failed(reason=Reason.OUTCOME_UNKNOWN, unknown=True), LookDone(happened=False)
    again: list[Outcome] = [lost, nothing, nothing, good(BEGUN, Step.PREFLIGHT, NOW)] * 3
    ended, _, steps = play(at(Step.ISSUE), NOW, *again[:-1])
    assert (Result.FAILED, Reason.OUTCOME_UNKNOWN, 3) == (ended.result, ended.quarantine, steps.count(Step.ISSUE))


def test_a_promote_that_fails_is_tried_for_ever() -> None:
    """The secret is sealed and the old one dead: nothing but going on helps."""
    waiting = replace(at(Step.PROMOTE), attempts=500)
    again = advance(waiting, FAILED, NOW, LIMITS)
    assert (Step.PROMOTE, None, True, None) == (again.step, again.finished_at, again.sealed, again.quarantine)


def test_a_conflict_at_promote_waits_for_a_person() -> None:
    """Quarantined and sealed; a promote that gets through later lifts it."""
    conflict = Failed(reason=Reason.VAULT_CONFLICT, delay=SECOND)
    stuck = advance(at(Step.PROMOTE), conflict, NOW, LIMITS)
    assert (Reason.VAULT_CONFLICT, True) == (stuck.quarantine, stuck.sealed)
    ended, _, _ = play(stuck, NOW)
    assert (Result.SUCCEEDED, None) == (ended.result, ended.quarantine)


def test_an_implausible_expiry_is_probed_before_it_is_promoted() -> None:
    """And the end says so."""
    issue = at(Step.ISSUE)
    ended, _, steps = play(issue, NOW, answer(NOW + SECOND, plausible=False))
    assert [Step.ISSUE, Step.PROBE, Step.PROMOTE, Step.DELIVER] == steps[:4]
    assert (Result.SUCCEEDED, Reason.EXPIRY_IMPLAUSIBLE) == (ended.result, ended.reason)


def test_an_implausible_expiry_without_a_broker_is_not_promoted() -> None:
    """Nothing proves the secret: failed, quarantined, sealed."""
    ended, _, steps = play(at(Step.ISSUE), NOW, answer(NOW + SECOND, plausible=False), ProbeDone(verdict=None))
    assert (Result.FAILED, Reason.EXPIRY_IMPLAUSIBLE, True) == (ended.result, ended.quarantine, ended.sealed)
    assert Step.PROMOTE not in steps


def test_an_expiry_at_the_moment_of_the_answer_is_implausible() -> None:
    """It must lie in the future."""
    at_once = IssueDone(answered_at=NOW, issued_at=NOW, expires_at=NOW, expiry_source=None)
    assert advance(at(Step.ISSUE), at_once, NOW, LIMITS).plausible is False


def test_a_broker_that_is_away_holds_a_promoted_secret_only_so_long() -> None:
    """It refused nothing (rule 2): the restarts go on after a few tries."""
    unreachable = [ProbeDone(verdict=Verdict.UNREACHABLE)] * UNREACHABLE_PROBES
    ended, _, steps = play(at(Step.PROBE), NOW, *unreachable)
    assert (UNREACHABLE_PROBES, Result.SUCCEEDED) == (steps.count(Step.PROBE), ended.result)


def test_a_broker_that_is_away_keeps_an_implausible_secret_back() -> None:
    """Nothing is promoted without its word then, however long it takes."""
    waiting = advance(at(Step.ISSUE), answer(NOW, plausible=False), NOW, LIMITS)
    for _ in range(3 * UNREACHABLE_PROBES):
        waiting = advance(waiting, ProbeDone(verdict=Verdict.UNREACHABLE), NOW, LIMITS)
        assert (Step.PROBE, None) == (waiting.step, waiting.finished_at)


def test_a_refusal_is_waited_out_then_issued_once_more_then_quarantined() -> None:
    """Rule 2: restarts are held back, propagation is waited for, a second answer, then only looking."""
    refused = ProbeDone(verdict=Verdict.REFUSED)
    rotation, now, issues = at(Step.PROBE), NOW + 10 * SECOND, 1
    rotation = replace(rotation, step_since=now)
    for _ in range(60):
        match next_step(rotation, now, LIMITS):
            case Wait(until=then):
                now = then
            case Run(step=Step.ISSUE):
                issues += 1
                rotation = advance(begin_call(rotation, now), answer(now), now, LIMITS)
            case Run(step=Step.PROBE):
                rotation = advance(rotation, refused, now, LIMITS)
            case Run(step=step):
                assert Step.PROMOTE is step
                rotation = advance(rotation, PromoteDone(version=3), now, LIMITS)
            case Ended():
                raise AssertionError("given up")
    assert (MAX_ANSWERS, Reason.SECRET_REFUSED) == (issues, rotation.quarantine)
    ended, _, steps = play(rotation, now)
    assert (Result.SUCCEEDED, None) == (ended.result, ended.quarantine)
    assert Step.ISSUE not in steps


def test_a_refused_filter_is_not_mended_by_another_secret() -> None:
    """A missing role stays missing: wait, then quarantine, and never a second issue call."""
    rotation = at(Step.PROBE)
    for seconds in range(60):
        now = NOW + 10 * SECOND + seconds * SECOND
        rotation = advance(rotation, ProbeDone(verdict=Verdict.SUBSCRIPTION_REFUSED), now, LIMITS)
        assert Step.PROBE == rotation.step
    assert (Reason.SUBSCRIPTION_REFUSED, 1) == (rotation.quarantine, rotation.issues)


def test_delivery_is_waited_for_from_the_promote_on() -> None:
    """`{delay: 6m}`: no consumer is restarted onto the old secret."""
    slow = replace(LIMITS, deliver_delay=timedelta(minutes=6))
    delivering, now, _ = play(at(Step.PROMOTE), NOW, limits=slow, until=Step.DELIVER)
    assert delivering.promoted_at is not None
    assert delivering.promoted_at + timedelta(minutes=6) == now


def test_only_the_consumer_that_failed_is_restarted_again() -> None:
    """The other one keeps its ticket."""
    ticket = Ticket(consumer="ingest", restarted_at=NOW)
    half = advance(at(Step.RESTART), RestartDone(tickets=[ticket], failed=FAILED), NOW, LIMITS)
    assert (Step.RESTART, 1) == (half.step, half.attempts)
    assert {"ingest": NOW, "dashboards": None} == {c.name: c.restarted_at for c in half.consumers}


def test_restart_and_confirm_are_one_loop_that_ends() -> None:
    """A consumer that never proves itself: failed after `max_attempts`, with no second issue call."""
    unseen = ConfirmDone(
        seen=[("ingest", NOW)], unseen=["dashboards"], failed=Failed(reason=Reason.CONSUMER_NOT_CONFIRMED)
    )
    rotation, now, confirms = at(Step.RESTART), NOW + timedelta(minutes=1), 0
    while rotation.finished_at is None:
        assert confirms < 10
        now += SECOND
        if rotation.step is Step.CONFIRM:
            confirms += 1
            rotation = advance(rotation, unseen, now, LIMITS)
        else:
            rotation = advance(rotation, good(rotation, rotation.step, now), now, LIMITS)
    assert (Result.FAILED, Reason.CONSUMER_NOT_CONFIRMED, 3, 1) == (
        rotation.result,
        rotation.reason,
        confirms,
        rotation.issues,
    )


def test_a_consumer_that_crashes_after_it_was_seen_is_restarted_again() -> None:
    """Settle finds it; what was seen of it does not count any more."""
    crashed = SettleDone(confirmed=["ingest"], crashed=["dashboards"], failed=Failed(reason=Reason.CONSUMER_CRASHED))
    again = advance(at(Step.SETTLE), crashed, NOW, LIMITS)
    facts = {c.name: (c.restarted_at is None, c.seen_at is None, c.confirmed_at is None) for c in again.consumers}
    assert {"ingest": (False, False, False), "dashboards": (True, True, True)} == facts
    assert Step.RESTART == again.step


def test_settling_is_counted_from_the_last_sighting() -> None:
    """Three seconds after the slower of the two."""
    settling = at(Step.SETTLE)
    seen = [c.seen_at for c in settling.consumers if c.seen_at is not None]
    assert Wait(until=max(seen) + LIMITS.settle) == next_step(settling, max(seen), LIMITS)


def test_a_rotation_without_consumers_needs_none() -> None:
    """Restart, confirm and settle have nothing to do."""
    alone = replace(BEGUN, consumers=())
    ended, _, _ = play(alone, NOW)
    assert Result.SUCCEEDED == ended.result


def test_somebody_who_issued_after_us_makes_it_fail() -> None:
    """Named, at the last look (rule 4)."""
    ended = advance(at(Step.FINISH), FinishDone(issued_elsewhere=True), NOW, LIMITS)
    assert (Result.FAILED, Reason.ISSUED_ELSEWHERE) == (ended.result, ended.reason)


def test_a_provider_that_is_down_does_not_keep_a_proven_rotation_open() -> None:
    """The last look is tried a few times."""
    ended, _, steps = play(at(Step.FINISH), NOW, *([FAILED] * FINISH_TRIES))
    assert (Result.SUCCEEDED, FINISH_TRIES) == (ended.result, steps.count(Step.FINISH))


# --- backoff -----------------------------------------------------------------------------------------------------


@given(
    step=st.sampled_from(Step),
    reason=st.sampled_from(Reason),
    attempts=st.integers(min_value=0, max_value=10**6),
    draw=st.floats(min_value=0, max_value=1, exclude_max=True),
)
def test_every_wait_is_a_real_one_and_bounded(step: Step, reason: Reason, attempts: int, draw: float) -> None:
    """Never zero, so that nothing spins; half an hour at most."""
    assert timedelta(milliseconds=100) <= backoff(step, reason, attempts, draw) <= timedelta(minutes=30)


def test_a_secret_that_waits_for_vault_comes_back_within_seconds() -> None:
    """Issue 2: in Vault within 5 s of Vault's return."""
    assert timedelta(seconds=2) >= backoff(Step.PROMOTE, Reason.VAULT_SEALED, 10**4, 0.999)


def test_a_refused_login_backs_off_further_than_an_outage() -> None:
    """Platforms lock accounts."""
    auth, outage = (
        backoff(Step.PREFLIGHT, reason, 10, 0.9) for reason in (Reason.PROVIDER_AUTH, Reason.PROVIDER_UNREACHABLE)
    )
    assert timedelta(minutes=27) == auth
    assert timedelta(minutes=4.5) == outage


# --- properties --------------------------------------------------------------------------------------------------

REASONS = st.sampled_from(
    [Reason.PROVIDER_AUTH, Reason.VAULT_CONFLICT, Reason.VAULT_SEALED, Reason.CONSUMER_CRASHED, Reason.UNFORESEEN]
)
FAILURES = st.builds(
    Failed,
    reason=REASONS,
    delay=st.sampled_from([timedelta(0), SECOND, timedelta(hours=1)]),
    permanent=st.booleans(),
    unknown=st.booleans(),
)
SOME = st.lists(st.sampled_from(NAMES), unique=True)


def outcomes(rotation: Rotation, step: Step, now: datetime) -> st.SearchStrategy[Outcome]:
    """Everything that may come of a step."""
    failed = FAILURES.filter(lambda f: not f.unknown or step in {Step.ISSUE, Step.LOOK, Step.PROMOTE})
    todo = [c.name for c in rotation.consumers if c.restarted_at is None]
    own: dict[Step, st.SearchStrategy[Outcome]] = {
        Step.ISSUE: st.booleans().map(lambda plausible: answer(now, plausible=plausible)),
        Step.LOOK: st.builds(LookDone, happened=st.booleans()),
        Step.PROBE: st.builds(ProbeDone, verdict=st.sampled_from([None, *Verdict])),
        Step.RESTART: st.builds(
            lambda names, why: RestartDone(
                tickets=[Ticket(consumer=name, restarted_at=now) for name in names], failed=why
            ),
            st.lists(st.sampled_from(todo), unique=True) if todo else st.just([]),
            FAILURES,
        ),
        Step.CONFIRM: st.builds(
            lambda seen, why: ConfirmDone(
                seen=[(name, now) for name in seen], unseen=[n for n in NAMES if n not in seen], failed=why
            ),
            SOME,
            FAILURES,
        ),
        Step.SETTLE: st.builds(
            lambda up, why: SettleDone(confirmed=up, crashed=[n for n in NAMES if n not in up], failed=why),
            SOME,
            FAILURES,
        ),
        Step.FINISH: st.builds(FinishDone, issued_elsewhere=st.booleans()),
    }
    return st.one_of(st.just(good(rotation, step, now)), failed, own.get(step, failed))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_happens_success_stays_reachable_and_nothing_is_issued_blindly(data: st.DataObject) -> None:
    """From any state any outcome leads to one from which success is reachable, or to an end that says why.

    Between two issue calls lies an answer, a look for it, or a refusal (rule 9); a secret that was refused, or that
    nobody proved though its expiry is implausible, is never promoted without the broker's word (rule 2).
    """
    rotation, now = BEGUN, NOW
    settled = True  # what became of the last issue call is known
    crashes = data.draw(st.sets(st.integers(min_value=0, max_value=25), max_size=3), label="the process dies at")
    for turn in range(25):
        match next_step(rotation, now, LIMITS):
            case Ended():
                assert rotation.result is not None
                assert rotation.result is Result.SUCCEEDED or rotation.reason is not None
                return
            case Wait(until=then):
                assert then > now
                now = then
            case Run(step=step):
                now += SECOND
                if step is Step.ISSUE:
                    assert settled
                    assert rotation.calling_since is None
                    rotation, settled = begin_call(rotation, now), False
                    if turn in crashes:
                        continue
                if step is Step.PROMOTE:
                    assert rotation.sealed
                    assert rotation.plausible or rotation.verdict is Verdict.ACCEPTED
                outcome = data.draw(outcomes(rotation, step, now), label=step.value)
                settled = settled or not _unknown(outcome, step)
                # the step that ran, not the one that a dead process wrote down: see the test with the engine above
                rotation = advance(replace(rotation, step=step), outcome, now, LIMITS)
                if rotation.finished_at is None:
                    ended, _, _ = play(rotation, now)
                    called_out = ended.issues >= LIMITS.max_attempts and ended.quarantine is not None
                    assert Result.SUCCEEDED == ended.result or called_out
                else:
                    assert rotation.result is Result.SUCCEEDED or rotation.reason is not None


def _unknown(outcome: Outcome, step: Step) -> bool:
    """Whether nobody can say yet what became of the issue call."""
    if step is Step.ISSUE:
        return isinstance(outcome, Failed) and outcome.unknown
    return not isinstance(outcome, LookDone)


@settings(max_examples=60, deadline=None)
@given(verdicts=st.lists(st.sampled_from([v for v in Verdict if v is not Verdict.ACCEPTED]), max_size=40))
def test_a_broker_never_causes_more_than_two_answers(verdicts: Sequence[Verdict]) -> None:
    """Whatever it says and in whatever order: each issue call kills a secret that consumers may run on."""
    queue = [ProbeDone(verdict=verdict) for verdict in verdicts]
    rotation, now = at(Step.PROBE), NOW + timedelta(minutes=1)
    for _ in range(200):
        match next_step(rotation, now, LIMITS):
            case Ended():
                break
            case Wait(until=then):
                now = then
            case Run(step=step):
                now += SECOND
                rotation = begin_call(rotation, now) if step is Step.ISSUE else rotation
                outcome = queue.pop(0) if step is Step.PROBE and queue else good(rotation, step, now)
                rotation = advance(rotation, outcome, now, LIMITS)
    assert rotation.answers <= MAX_ANSWERS
    assert Result.SUCCEEDED == rotation.result
