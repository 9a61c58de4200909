"""The pure machine, *replace*: a new key beside the old one, the old one's end, and the way back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from play import DAY, LIMITS, NOW, OLD, SECOND, Play, World, at
from rotator.lifecycle import LOOK_AGAIN, RECONFIRM_TRIES, next_step, roll_back
from rotator.model import Result, Step, Strategy, Verdict
from rotator.reasons import Reason
from rotator.rotation import (
    ConfirmDone,
    Failed,
    FinishDone,
    Limits,
    LookDone,
    Outcome,
    ProbeDone,
    ReconfirmDone,
    RestartDone,
    Run,
    SettleDone,
    Wait,
    WayBackDone,
)

REPLACE = Strategy.REPLACE
GONE = Failed(reason=Reason.KEY_UNKNOWN, delay=SECOND)
FAILED = Failed(reason=Reason.PROVIDER_UNREACHABLE, delay=SECOND)
LOST = Failed(reason=Reason.OUTCOME_UNKNOWN, unknown=True)
NOTHING = LookDone(happened=False)
UNSEEN = Failed(reason=Reason.CONSUMER_NOT_CONFIRMED, delay=SECOND)
REFUSED, UNREACHABLE = ProbeDone(verdict=Verdict.REFUSED), ProbeDone(verdict=Verdict.UNREACHABLE)
STAYS = replace(LIMITS, deactivates=False)
TO_THE_NEW = [Step.PREFLIGHT, Step.ISSUE, Step.PROBE, Step.PROMOTE]
PROOF = [Step.DELIVER, Step.RESTART, Step.CONFIRM, Step.SETTLE]
RETIRED = [Step.DEACTIVATE, Step.RECONFIRM, Step.DELETE, Step.FINISH]
BACK = [Step.WAY_BACK, Step.REVERT, *PROOF, Step.CLEAN]


def arrived(step: Step | None, *, limits: Limits = LIMITS, world: World | None = None) -> Play:
    """A *replace* that has come so far without trouble, with the steps counted from there."""
    play = at(step, REPLACE, limits=limits, world=world)
    play.steps.clear()
    return play


def rolled_back(play: Play) -> Play:
    """Turned around by a person."""
    back = roll_back(play.rotation, Reason.ROLLBACK_REQUESTED, "", play.now)
    assert back is not None
    play.rotation = back
    return play


def unconfirmed(play: Play) -> Play:
    """The consumers never come up with the new secret."""
    while play.rotation.rolling_back is None:
        names = [c.name for c in play.rotation.consumers]
        lost = ConfirmDone(seen=[], unseen=names, failed=UNSEEN)
        play.turn(lambda step, lost=lost: lost if step is Step.CONFIRM else play.effect(step))  # type: ignore[misc]
        assert len(play.steps) < 30
    return play


def keeps_both(play: Play) -> bool:
    """Whether a failed rollback left both keys, and a quarantine (design, "Rolling back")."""
    ended = play.rotation
    assert {OLD, "new-1"} == play.world.keys.keys()
    return (Result.FAILED, Reason.ROLLBACK_FAILED) == (ended.result, ended.quarantine)


# --- the way to the new key --------------------------------------------------------------------------------------


def test_all_good_goes_through_every_step_once() -> None:
    """The order of *replace*: proven before it is promoted, the old key last."""
    play = at(None, REPLACE)
    assert [*TO_THE_NEW, *PROOF, *RETIRED] == play.steps
    ended = play.rotation
    assert (Result.SUCCEEDED, None, "new-1") == (ended.result, ended.quarantine, ended.target.id)
    assert ({"new-1": True}, "new-1") == (play.world.keys, play.world.vault)


def test_a_key_that_cannot_be_deactivated_is_confirmed_again_and_deleted() -> None:
    """The same without the step in between."""
    play = at(None, REPLACE, limits=STAYS)
    assert [*TO_THE_NEW, *PROOF, Step.RECONFIRM, Step.DELETE, Step.FINISH] == play.steps
    assert Result.SUCCEEDED == play.rotation.result


def test_a_refused_key_is_never_promoted() -> None:
    """Rule 2: the propagation time, then it is deleted; Vault and the consumers notice nothing."""
    play = arrived(Step.PROBE)
    while play.rotation.step is Step.PROBE:
        play.told(REFUSED)
    assert play.now - (play.rotation.answered_at or play.now) >= LIMITS.propagation
    play.until(None)
    assert [Step.CLEAN] == [step for step in play.steps if step is not Step.PROBE]
    ended = play.rotation
    assert (Result.ROLLED_BACK, Reason.SECRET_REFUSED, False) == (ended.result, ended.quarantine, ended.sealed)
    assert ({OLD: True}, OLD) == (play.world.keys, play.world.vault)


def test_a_broker_that_is_away_is_waited_for_until_the_old_key_dies() -> None:
    """The old secret works, so there is time (rule 2); in the last twentieth of its life waiting costs more."""
    play = arrived(Step.PROBE, world=World(old_ends=NOW + 10 * DAY)).told(*[UNREACHABLE] * 20)
    assert (Step.PROBE, timedelta(seconds=64)) == (play.rotation.step, (play.rotation.not_before or NOW) - play.now)
    play.now = NOW + 5.6 * DAY  # 95 % of 90 days are over
    assert Step.PROMOTE is play.told(UNREACHABLE).rotation.step


def test_a_refused_key_is_not_promoted_because_the_broker_went_away() -> None:
    """Not even when the old one dies: a refusal stands until the broker says otherwise."""
    play = arrived(Step.PROBE, world=World(old_ends=NOW + 10 * DAY)).told(REFUSED)
    play.now = NOW + 5.6 * DAY
    assert Step.PROBE is play.told(*[UNREACHABLE] * 5).rotation.step


def test_without_a_broker_the_key_is_promoted_as_it_is() -> None:
    """There is nobody to ask."""
    assert Result.SUCCEEDED == at(None, REPLACE, world=World(broker=False)).rotation.result


def test_a_dead_expiry_that_nobody_can_prove_is_cleaned_up() -> None:
    """No broker, and an expiry in the past."""
    play = arrived(Step.ISSUE, world=World(broker=False))
    play.turn(lambda _: play.answer(-DAY))
    ended = play.until(None).rotation
    assert (Result.ROLLED_BACK, Reason.EXPIRY_IMPLAUSIBLE) == (ended.result, ended.quarantine)
    assert ({OLD: True}, OLD) == (play.world.keys, play.world.vault)


# --- lost calls and orphans --------------------------------------------------------------------------------------


def lose(play: Play, *, made: bool) -> None:
    """A call whose answer never comes."""
    if made:
        play.call()
    play.told(LOST)


def test_the_key_of_a_lost_call_is_deleted_and_another_one_made() -> None:
    """Nobody has its secret; the marker finds it."""
    play = arrived(Step.ISSUE)
    lose(play, made=True)
    play.until(None)
    assert [Step.ISSUE, Step.LOOK, Step.CLEAN, Step.PREFLIGHT, Step.ISSUE] == play.steps[:5]
    assert (Result.SUCCEEDED, {"new-2": True}) == (play.rotation.result, play.world.keys)


def test_calls_that_are_all_lost_end_rolled_back() -> None:
    """The old key works: nothing is left at the provider, and a person looks."""
    play = arrived(Step.ISSUE)
    for _ in range(LIMITS.max_attempts):
        lose(play.until(Step.ISSUE), made=True)
    ended = play.until(None).rotation
    assert (Result.ROLLED_BACK, Reason.ANSWER_LOST) == (ended.result, ended.quarantine)
    assert {OLD: True} == play.world.keys


def test_a_key_that_appears_late_is_found_at_the_end() -> None:
    """Two looks saw nothing of it."""
    play = arrived(Step.ISSUE)
    lose(play, made=False)
    play.told(NOTHING, NOTHING).until(Step.DELETE)
    play.call()
    play.until(None)
    assert [Step.DELETE, Step.FINISH, Step.CLEAN, Step.FINISH] == play.steps[-4:]
    assert (Result.SUCCEEDED, {"new-1": True}) == (play.rotation.result, play.world.keys)


def test_a_list_that_shows_deleted_keys_is_not_asked_without_a_pause() -> None:
    """Some platforms' lists lag behind; and neither the key nor the new one is ever an orphan."""
    play = arrived(Step.FINISH).told(FinishDone(orphans=["late", OLD, "new-1"]))
    assert (Step.CLEAN, ("late",)) == (play.rotation.step, play.rotation.orphans)
    assert Wait(until=play.now + LOOK_AGAIN) == next_step(play.rotation, play.now, LIMITS)


def test_a_lost_call_keeps_the_last_look_open() -> None:
    """A provider that is down can't say whether a key of ours is left there."""
    play = arrived(Step.ISSUE)
    lose(play, made=False)
    play.told(NOTHING, NOTHING).until(Step.FINISH).told(*[FAILED] * 20)
    assert (Step.FINISH, None) == (play.rotation.step, play.rotation.finished_at)


# --- the old key's end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("consumers", "deactivates", "waiting"),
    [(2, True, Step.DELETE), (0, True, Step.DEACTIVATE), (2, False, Step.RECONFIRM), (0, False, Step.RECONFIRM)],
)
def test_the_grace_period_stands_before_what_can_hurt(consumers: int, deactivates: bool, waiting: Step) -> None:
    """With proof the old key waits inactive; without any it goes on working; nothing else waits."""
    names = ["ingest", "dashboards"][:consumers]
    limits = replace(LIMITS, deactivates=deactivates, grace=timedelta(hours=1))
    play = at(Step.PREFLIGHT, REPLACE, consumers=names, limits=limits)
    waits = {}
    while play.due() is not None:
        step, since = play.due(), play.now
        play.turn()
        waits[step] = play.now - SECOND - since
    assert [waiting] == [step for step, waited in waits.items() if waited > timedelta(minutes=1)]
    assert timedelta(hours=1) == waits[waiting]


@pytest.mark.parametrize(
    ("grace", "life", "old_ends", "no_grace", "expected"),
    [
        (None, 90 * DAY, None, False, DAY),
        (None, 5 * DAY, None, False, DAY / 2),
        (None, None, None, False, DAY),
        (timedelta(hours=6), 5 * DAY, None, False, timedelta(hours=6)),
        (None, 90 * DAY, NOW + timedelta(hours=3), False, timedelta(hours=3)),
        (None, 90 * DAY, None, True, None),
        (timedelta(0), 90 * DAY, None, False, None),
    ],
    ids=["a day", "a tenth of the life", "no expiry", "its own", "the old key ends first", "compromised", "none"],
)
def test_how_long_the_grace_period_is(
    grace: timedelta | None,
    life: timedelta | None,
    old_ends: datetime | None,
    no_grace: bool,
    expected: timedelta | None,
) -> None:
    """A day, or a tenth of the new secret's life where that is shorter; never past the old key's own end."""
    limits, world = replace(LIMITS, grace=grace), World(life=life, old_ends=old_ends)
    play = at(Step.DELETE, REPLACE, limits=limits, world=world, no_grace=no_grace)
    step = next_step(play.rotation, play.now, limits)
    if expected is None:
        assert Run(step=Step.DELETE) == step
    else:
        assert isinstance(step, Wait)
        since = NOW if old_ends is not None else play.now
        assert since + expected == step.until


def test_a_failed_try_does_not_cut_the_grace_period_short() -> None:
    """The clock was a day ahead, the delete was held because of that, and then the clock was mended."""
    play = arrived(Step.DELETE)
    begins = play.now
    play.now += 2 * DAY
    play.told(Failed(reason=Reason.CLOCK_SKEW))
    play.now -= 2 * DAY
    assert Wait(until=begins + DAY) == next_step(replace(play.rotation, not_before=None), play.now, LIMITS)


@pytest.mark.parametrize("step", [Step.DEACTIVATE, Step.DELETE])
def test_an_old_key_is_never_forgotten(step: Step) -> None:
    """Its end is tried for ever."""
    play = arrived(step).told(*[FAILED] * 50)
    assert (step, 50, None) == (play.rotation.step, play.rotation.attempts, play.rotation.finished_at)
    assert Result.SUCCEEDED == play.until(None).rotation.result


@pytest.mark.parametrize("limits", [LIMITS, STAYS], ids=["inactive", "active"])
def test_who_was_not_watched_proves_it_by_a_restart_and_nothing_waits_twice(limits: Limits) -> None:
    """After a restart of the daemon in the grace period: one restart, no second grace, no loop."""
    play = arrived(Step.RECONFIRM, limits=limits).told(ReconfirmDone(blind=["ingest", "dashboards"]))
    began = play.now
    play.until(Step.DELETE)
    assert [Step.RECONFIRM, Step.RESTART, Step.CONFIRM, Step.SETTLE] == play.steps
    assert play.now - began < timedelta(minutes=1)


def test_who_was_watched_is_asked_again_after_the_others_restart() -> None:
    """A restart of one proves nothing about the other."""
    play = arrived(Step.RECONFIRM, limits=STAYS).told(ReconfirmDone(blind=["ingest"]))
    began = play.now
    play.until(Step.DELETE)
    assert [Step.RECONFIRM, Step.RESTART, Step.CONFIRM, Step.SETTLE, Step.RECONFIRM] == play.steps
    assert play.now - began < timedelta(minutes=1), "the grace period is over already"


# --- the way back ------------------------------------------------------------------------------------------------


def test_consumers_that_are_not_confirmed_are_taken_back() -> None:
    """Put back, delivered, restarted, proven; then the new key goes, and nobody tries again by himself."""
    play = unconfirmed(arrived(Step.RESTART))
    play.steps.clear()
    ended = play.until(None).rotation
    assert BACK == play.steps
    assert (Result.ROLLED_BACK, Reason.CONSUMER_NOT_CONFIRMED, False) == (
        ended.result,
        ended.quarantine,
        ended.sealed,
    )
    assert ({OLD: True}, OLD, OLD) == (play.world.keys, play.world.vault, ended.target.id)
    assert {OLD} == set(play.world.running.values())


def test_a_failed_second_confirmation_brings_the_old_key_back() -> None:
    """Rule 5: reactivated first, since consumers are down."""
    play = arrived(Step.RECONFIRM).told(*[UNSEEN] * RECONFIRM_TRIES)
    play.steps.clear()
    assert [Step.REACTIVATE, *BACK] == play.until(None).steps
    assert (Result.ROLLED_BACK, {OLD: True}) == (play.rotation.result, play.world.keys)


def test_a_failed_proof_by_restart_brings_the_old_key_back_too() -> None:
    """Deactivated, not watched, and then not confirmed."""
    play = unconfirmed(arrived(Step.RECONFIRM).told(ReconfirmDone(blind=["ingest"])))
    assert Step.REACTIVATE is play.due()


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (WayBackDone(verdict=None, held=False), "no longer holds"),
        (WayBackDone(verdict=Verdict.REFUSED, held=True), "refuses"),
        (WayBackDone(verdict=Verdict.UNREACHABLE, held=True), "can't be asked"),
        (FAILED, ""),
    ],
    ids=["pushed out", "refused", "unreachable", "failed"],
)
def test_a_closed_way_back_retires_neither_key(report: WayBackDone | Failed, why: str) -> None:
    """Quarantine, and a person looks; the reason of the rollback stays the reason."""
    play = unconfirmed(arrived(Step.RESTART))
    while play.due() is Step.WAY_BACK:
        play.told(report)
    assert keeps_both(play)
    assert Reason.CONSUMER_NOT_CONFIRMED is play.rotation.reason
    assert why in play.rotation.detail


def test_there_is_no_way_back_to_a_secret_that_ends_before_another_attempt() -> None:
    """Design, "Rolling back": it has to outlive the next one."""
    play = unconfirmed(arrived(Step.RESTART, world=World(old_ends=NOW + 5 * DAY)))
    play.now = NOW + DAY
    assert keeps_both(play.until(None))


def test_an_old_key_that_is_gone_cannot_be_brought_back() -> None:
    """At once, not after all tries."""
    play = arrived(Step.RECONFIRM).told(*[UNSEEN] * RECONFIRM_TRIES, GONE)
    assert (Result.FAILED, Reason.ROLLBACK_FAILED) == (play.rotation.result, play.rotation.quarantine)


@pytest.mark.parametrize("step", PROOF)
def test_a_rollback_that_fails_itself_retires_neither_key(step: Step) -> None:
    """The consumers do not come up with the old secret either."""
    play = unconfirmed(arrived(Step.RESTART)).until(step)
    bad: dict[Step, Outcome] = {
        Step.DELIVER: FAILED,
        Step.RESTART: RestartDone(tickets=[], failed=FAILED),
        Step.CONFIRM: ConfirmDone(seen=[], unseen=["ingest"], failed=UNSEEN),
        Step.SETTLE: SettleDone(confirmed=[], crashed=["ingest"], failed=FAILED),
    }
    while play.due() is not None:
        play.turn(lambda now: bad[step] if now is step else play.effect(now))
        assert len(play.steps) < 60
    assert keeps_both(play)


# --- a person turns it around ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "then"),
    [
        (Step.PREFLIGHT, []),
        (Step.ISSUE, []),
        (Step.PROBE, [Step.CLEAN]),
        (Step.PROMOTE, BACK),  # Vault may hold the new secret already
        *[(step, BACK) for step in PROOF],
        *[(step, [Step.REACTIVATE, *BACK]) for step in RETIRED[:3]],  # the old key may be inactive already
    ],
)
def test_a_person_turns_it_around(step: Step, then: list[Step]) -> None:
    """From every step, to the old key alone."""
    play = rolled_back(arrived(step)).until(None)
    assert then == play.steps
    ended = play.rotation
    assert (Result.ROLLED_BACK, Reason.ROLLBACK_REQUESTED) == (ended.result, ended.quarantine)
    assert ({OLD: True}, OLD) == (play.world.keys, play.world.vault)


@pytest.mark.parametrize("step", [Step.FINISH, None])
def test_nothing_is_taken_back_when_the_old_key_is_gone(step: Step | None) -> None:
    """Or when the rotation has ended."""
    play = arrived(step)
    assert roll_back(play.rotation, Reason.ROLLBACK_REQUESTED, "", play.now) is None


def test_a_promote_without_a_record_is_taken_back_in_vault() -> None:
    """It timed out and had its effect: the key that Vault holds is not deleted before Vault is put right."""
    play = arrived(Step.PROMOTE)
    play.effect(Step.PROMOTE)
    play.told(FAILED)
    assert BACK == rolled_back(play).until(None).steps[1:]
    assert ({OLD: True}, OLD) == (play.world.keys, play.world.vault)


@pytest.mark.parametrize("limits", [LIMITS, STAYS], ids=["inactive", "active"])
def test_a_delete_without_a_record_closes_the_way_back(limits: Limits) -> None:
    """The old key may be gone, and no broker can tell: it is asked for at the provider, and Vault stays as it is."""
    play = arrived(Step.DELETE, limits=limits, world=World(broker=False))
    play.effect(Step.DELETE)
    play.told(FAILED)
    ended = rolled_back(play).until(None).rotation
    assert (Result.FAILED, Reason.ROLLBACK_FAILED) == (ended.result, ended.quarantine)
    assert ("new-1", {"new-1": True}) == (play.world.vault, play.world.keys)


@pytest.mark.parametrize("looks", [0, 1])
def test_a_call_that_is_out_is_looked_for_twice_before_the_end(looks: int) -> None:
    """However many looks there were before: a key of it would be forgotten."""
    play = arrived(Step.ISSUE).told(LOST, *[NOTHING] * looks)
    rolled_back(play).told(NOTHING)
    assert Wait(until=play.now + LOOK_AGAIN) == next_step(play.rotation, play.now, LIMITS)
    assert Result.ROLLED_BACK == play.told(NOTHING).rotation.result


def test_the_key_of_a_lost_call_is_deleted_on_the_way_back() -> None:
    """The marker finds it."""
    play = arrived(Step.ISSUE)
    lose(play, made=True)
    ended = rolled_back(play).until(None).rotation
    assert (Result.ROLLED_BACK, {OLD: True}) == (ended.result, play.world.keys)


def test_a_lost_call_is_looked_for_once_more_at_the_end_of_a_rollback() -> None:
    """Its key may have come meanwhile."""
    play = arrived(Step.ISSUE)
    lose(play, made=False)
    play.told(NOTHING, NOTHING).until(Step.CONFIRM)
    play.call()
    play.steps.clear()
    rolled_back(play).until(None)
    assert [*BACK, Step.FINISH, Step.CLEAN, Step.FINISH] == play.steps
    assert (Result.ROLLED_BACK, {OLD: True}) == (play.rotation.result, play.world.keys)
