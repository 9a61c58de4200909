"""Whose turn it is: canaries, limits, windows, and who is left alone; the pure functions alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from play import NOW, SECOND, begun
from rotator.batches import as_configured, begin_restart, next_batch, pending, turn_of
from rotator.frozen import replace
from rotator.lifecycle import next_step
from rotator.model import Step, Strategy
from rotator.policy import Window
from rotator.reasons import Reason
from rotator.rotation import ConsumerPlan, ConsumerProgress, Limits, Rotation, Run, Wait

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
RARELY = Window(cron="0 0 29 2 1", duration=SECOND)
ALL = ("a", "b", "c", "d", "e")


def plan(name: str, **more: Any) -> ConsumerPlan:
    return ConsumerPlan(name=name, **more)


def rotation(*names: str, **more: Any) -> Rotation:
    """A *replace* whose secret is in Vault, and whose restarts begin."""
    made = begun(Strategy.REPLACE, *(names or ALL))
    return replace(made, step=Step.RESTART, promoted_at=NOW, issued_before=NOW - 80 * DAY, **more)


def with_progress(of: Rotation, *names: str, **more: Any) -> Rotation:
    consumers = tuple(replace(c, **more) if c.name in names else c for c in of.consumers)
    return replace(of, consumers=consumers)


def restarted(of: Rotation, *names: str, at: datetime = NOW) -> Rotation:
    return with_progress(of, *names, restarted_at=at, touched=True, in_turn=True)


def turn(of: Rotation, *plans: ConsumerPlan, now: datetime = NOW, hurry: bool = False) -> list[str] | datetime:
    return next_batch(of, now, plans, hurry=hurry)


def test_without_plans_everybody_is_restarted_at_once() -> None:
    """In the order of the configuration."""
    assert list(ALL) == turn(rotation())


def test_canaries_go_first_and_keep_to_their_limits() -> None:
    """Two canaries of which only one may be away are two turns."""
    plans = [plan("b", canary=True, max_unavailable=1), plan("d", canary=True, max_unavailable=1)]
    begins = rotation()
    assert ["b"] == turn(begins, *plans)
    assert ["d"] == turn(restarted(begins, "b"), *plans)
    assert ["a", "c", "e"] == turn(restarted(begins, "b", "d"), *plans)


def test_who_was_restarted_and_is_not_proven_is_alone_in_its_turn() -> None:
    """A crash in between, or a failed proof: the same ones again, and nobody else."""
    plans = [plan(name, max_unavailable=2) for name in ALL]
    begins = begin_restart(rotation(), NOW, plans, hurry=False)
    assert ["a", "b"] == turn_of(begins, plans) == turn(begins, *plans)
    half = restarted(begins, "a")
    assert ["b"] == turn(half, *plans)
    assert ["c", "d"] == turn(restarted(begins, "a", "b"), *plans)


def test_the_second_proof_keeps_to_the_limits_too() -> None:
    """They all run on the new secret; that nobody watched them is no reason to take all away at once."""
    plans = [plan(name, max_unavailable=2) for name in ALL]
    blind = with_progress(rotation(), *ALL, touched=True)
    assert ["a", "b"] == turn(blind, *plans)


@pytest.mark.parametrize(
    "more",
    [
        {"strategy": Strategy.IN_PLACE},
        {"strategy": Strategy.CHOSEN},
        {"restart_only": True},
        {"strategy": Strategy.CHOSEN, "rolling_back": Reason.REQUESTED},
    ],
    ids=str,
)
def test_where_the_old_secret_is_dead_nobody_waits(more: dict[str, Any]) -> None:
    """No canary, no limit, no window."""
    plans = [plan("a", canary=True), plan("b", max_unavailable=1), plan("c", windows=(RARELY,))]
    assert list(ALL) == turn(rotation(**more), *plans)


def test_in_a_hurry_nobody_waits() -> None:
    """The old secret dies soon."""
    plans = [plan("a", canary=True), plan("b", max_unavailable=1), plan("c", windows=(RARELY,))]
    assert list(ALL) == turn(rotation(), *plans, hurry=True)


def test_the_way_back_is_for_the_touched_and_for_those_who_follow() -> None:
    """Who was never restarted never left the old secret."""
    back = with_progress(rotation(rolling_back=Reason.CONSUMER_CRASHED), "c", touched=True)
    plans = [plan("c", windows=(RARELY,)), plan("e", follows=True)]
    assert ["c", "e"] == [c.name for c in pending(back, plans)] == turn(back, *plans)
    begins = begin_restart(back, NOW, plans, hurry=False)
    assert ["c", "e"] == turn_of(begins, plans)


def test_a_window_is_open_by_the_clock_of_its_own_zone() -> None:
    """02:00 in Helsinki is midnight UTC in winter and 23:00 in summer."""
    windows = (Window(cron="0 2 * * *", duration=HOUR, timezone="Europe/Helsinki"),)
    plans = [plan("a", windows=windows)]
    winter, summer = datetime(2026, 1, 15, 0, 30, tzinfo=UTC), datetime(2026, 7, 15, 23, 30, tzinfo=UTC)
    begins = rotation("a")
    assert ["a"] == turn(begins, *plans, now=winter) == turn(begins, *plans, now=summer)
    assert datetime(2026, 7, 15, 23, 0, tzinfo=UTC) == turn(begins, *plans, now=summer - timedelta(hours=20))
    assert winter.replace(minute=0) + DAY == turn(begins, *plans, now=winter + HOUR)


def test_those_with_an_open_window_do_not_wait_for_the_others() -> None:
    """And the wait is for the first opening of those that are left."""
    soon, late = Window(cron="0 14 * * *", duration=HOUR), Window(cron="0 20 * * *", duration=HOUR)
    plans = [plan("a", windows=(late,)), plan("b", windows=(soon, late))]
    begins = rotation("a", "b", "c")
    assert ["c"] == turn(begins, *plans)
    assert NOW + 2 * HOUR == turn(restarted(begins, "c"), *plans)
    assert ["b"] == turn(restarted(begins, "c"), *plans, now=NOW + 2 * HOUR)
    assert ["a", "b"] == turn(restarted(begins, "c"), *plans, now=NOW + 8 * HOUR)


def test_everybody_waits_for_a_canarys_window_unless_a_person_insists() -> None:
    """`rotate --now` ignores windows, but neither canaries nor limits."""
    window = (Window(cron="0 14 * * *", duration=HOUR),)
    plans = [plan("a", canary=True, windows=window), plan("b", max_unavailable=1, windows=window)]
    begins = rotation("a", "b", "c")
    assert NOW + 2 * HOUR == turn(begins, *plans)
    forced = replace(begins, forced=True)
    assert ["a"] == turn(forced, *plans)
    assert ["b"] == turn(restarted(forced, "a"), *plans)


def test_a_wait_for_a_window_ends_where_the_old_secret_begins_to_die() -> None:
    """Its last twentieth comes long before the window: nobody is left on a secret that ends meanwhile."""
    yearly = Window(cron="0 0 1 1 *", duration=HOUR)
    limits = Limits(plans=(plan("a", windows=(yearly,)),))
    begins = rotation("a", expired_before=NOW + 20 * DAY)
    dying = NOW + 15 * DAY  # of a hundred days, five are the last twentieth
    assert Wait(until=dying) == next_step(begins, NOW, limits)
    assert Run(step=Step.RESTART) == next_step(begins, dying, limits)
    assert next_step(replace(begins, expired_before=None), NOW, limits) == Wait(until=datetime(2027, 1, 1, tzinfo=UTC))


def test_a_changed_configuration_is_followed_until_the_proof() -> None:
    """Who is gone is waited for no more, who is new takes its turn; afterwards nothing changes."""
    begins = restarted(rotation("a", "b"), "a")
    changed = as_configured(begins, ["a", "c"])
    assert ["a", "c"] == [c.name for c in changed.consumers]
    assert ["c"] == turn(changed)
    assert begins.consumers[0] == changed.consumers[0]
    assert begins is as_configured(begins, ["b", "a"])
    for step in (Step.DEACTIVATE, Step.RECONFIRM, Step.DELETE, Step.FINISH, Step.WAY_BACK):
        proven = replace(begins, step=step)
        assert proven is as_configured(proven, [])


def test_a_missed_restart_takes_on_nobody_else() -> None:
    """Only those that missed it, as long as they are configured."""
    catching_up = rotation("b", restart_only=True)
    assert catching_up is as_configured(catching_up, ["a", "b", "c"])
    assert () == as_configured(catching_up, ["a"]).consumers


# --- any plans ---------------------------------------------------------------------------------------------------

WINDOWS = st.sampled_from(
    [
        (),
        (),
        (Window(cron="0 14 * * *", duration=HOUR),),
        (Window(cron="30 1 * * 6", duration=HOUR, timezone="America/New_York"),),
        (RARELY,),
    ]
)
PLAN: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    canary=st.booleans(),
    max_unavailable=st.sampled_from([None, 1, 2, 3]),
    windows=WINDOWS,
    follows=st.just(False),
)
PLANS = st.lists(PLAN, min_size=1, max_size=6).map(lambda all: [plan(f"w{n}", **more) for n, more in enumerate(all)])


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(plans=PLANS, forced=st.booleans(), fails=st.lists(st.integers(0, 5), max_size=4))
def test_whatever_the_plans_everybody_has_its_turn(plans: list[ConsumerPlan], forced: bool, fails: list[int]) -> None:
    """Nobody twice without a failure, never more away than each of them allows, canaries before the others."""
    current, now, done, failing = rotation(*(p.name for p in plans), forced=forced), NOW, list[str](), list(fails)
    known = {p.name: p for p in plans}
    for _ in range(40):
        batch = next_batch(current, now, plans, hurry=False)
        if isinstance(batch, datetime):
            assert batch > now, "a wait that is over"
            assert not forced, "a person insists"
            now = batch
            continue
        if not batch:
            break
        away = [known[name] for name in batch]
        assert all(len(away) <= (p.max_unavailable or len(away)) for p in away), "more away than one of them allows"
        assert not set(batch) & set(done), "restarted again, though it is proven"
        canaries_left = [p for p in plans if p.canary and p.name not in done]
        assert not canaries_left or all(p.canary for p in away), "before the canaries"
        current = begin_restart(current, now, plans, hurry=False)
        assert batch == turn_of(current, plans), "the journal says another turn than is made"
        broken = batch[failing.pop() % len(batch)] if failing else None
        well = [name for name in batch if name != broken]
        current = restarted(current, *well, at=now)
        done += well
        if broken is not None:
            assert [broken] == next_batch(current, now, plans, hurry=False), "somebody else before it is proven"
    assert sorted(done) == sorted(known), "somebody never had a turn"


def test_the_record_of_a_restart_touches_only_its_turn() -> None:
    """What else the record says stays; where a window has closed meanwhile, nobody is touched."""
    plans = [plan("a", canary=True, windows=(Window(cron="0 14 * * *", duration=HOUR),))]
    begins = rotation("a", "b")
    assert begins == begin_restart(begins, NOW, plans, hurry=False)
    opened = begin_restart(begins, NOW + 2 * HOUR, plans, hurry=False)
    expected = (
        ConsumerProgress(name="a", touched=True, in_turn=True),
        ConsumerProgress(name="b"),
    )
    assert expected == opened.consumers
