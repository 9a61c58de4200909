"""One consumer's trouble is not everybody's, and lasts no longer than itself: timeouts, outages, watches.

The same house as in `test_restart_order`: a whole engine over a real journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from rotator.errors import Permanent, Transient
from rotator.keys import versions_behind
from rotator.managed import ConsumerLink
from rotator.model import Identity, Order, Result, Secret, Strategy, Ticket
from rotator.ports import Watch
from rotator.reasons import Reason
from rotator.views import key_view
from unit.restart_house import DAY, HOUR, SECOND, Build, House, building, rebooted, restarts

MINUTE = timedelta(minutes=1)


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Makes houses; their journals are closed at the end."""
    with building(tmp_path) as make:
        yield make


def rotating(house: House) -> House:
    """Its process is started, and a rotation asked for."""
    house.boot()
    house.ask()
    return house


def refusing(house: House, name: str, error: Exception, *, until: Callable[[], bool] = lambda: False) -> list[str]:
    """This consumer's restarts fail with `error` until that is over; the ids of the orders that it got."""
    worker, orders = house.workers[name], list[str]()
    restart = worker.restart

    def asked(order: Order) -> Ticket:
        orders.append(order.id)
        if not until():
            raise error
        return restart(order)

    worker.restart = asked  # type: ignore[method-assign]
    return orders


# --- the order ---------------------------------------------------------------------------------------------------


@dataclass
class Opened:
    """Counts the watches that are opened."""

    link: ConsumerLink
    orders: list[str]

    def __call__(self, identity: Identity, secret: Secret | None, order: Order | None) -> Watch:
        assert order is not None
        assert self.link.open_watch is not None
        self.orders.append(order.id)
        return self.link.open_watch(identity, secret, order)


def counted(house: House, name: str) -> list[str]:
    """Make this consumer one whose proof names versions; the ids of the orders for which it was watched."""
    opened: list[str] = []

    def change(link: ConsumerLink) -> ConsumerLink:
        return replace(link, versioned=True, early=False, open_watch=Opened(link, opened))

    house.link(name, change)
    return opened


def test_a_restart_that_timed_out_is_asked_for_by_the_same_order(build: Build) -> None:
    """The rollout goes on, and is found again; the watch that was opened for it stays open."""
    house = build(Strategy.IN_PLACE, "a")
    opened = counted(house, "a")
    orders: list[str] = refusing(
        house, "a", Transient("it goes on", reason=Reason.CONSUMER_TIMEOUT), until=lambda: len(orders) == 4
    )
    rotating(house).work(5 * MINUTE)
    assert (Result.SUCCEEDED, 4, 1) == (house.rotation.result, len(orders), len(set(orders)))
    assert orders[:1] == opened


def test_a_repetition_of_what_went_through_is_another_order(build: Build) -> None:
    """It proved nothing: the same order again would be found done; an answer to the first is none to the second."""
    house = build(Strategy.IN_PLACE, "a")
    opened = counted(house, "a")
    worker = house.workers["a"]
    worker.broken = True
    rotating(house).work(MINUTE)
    worker.broken = False
    house.work(MINUTE)
    orders = [order.id for order in worker.orders]
    assert Result.SUCCEEDED is house.rotation.result
    assert 1 < len(orders) == len(set(orders))
    assert orders == opened


# --- one holds up nobody else ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [Reason.CONSUMER_RESTART_FAILED, Reason.CONSUMER_FORBIDDEN])
def test_who_can_not_be_watched_keeps_nobody_else_down(build: Build, reason: Reason) -> None:
    """In place: the others are restarted at once, and it is tried again."""
    house = build(Strategy.IN_PLACE, "a", "b", "c")
    until = house.now + MINUTE

    def change(link: ConsumerLink) -> ConsumerLink:
        def open_watch(identity: Identity, secret: Secret | None, order: Order | None) -> Watch:
            if house.now < until:
                raise Transient("acks can't be heard", reason=reason)
            assert link.open_watch is not None
            return link.open_watch(identity, secret, order)

        return replace(link, open_watch=open_watch, early=False)

    house.link("a", change)
    rotating(house).work(10 * SECOND)
    assert {"a": 0, "b": 1, "c": 1} == restarts(house)
    house.work(5 * MINUTE)
    assert {"a": 1, "b": 1, "c": 1} == restarts(house)
    assert Result.SUCCEEDED is house.rotation.result


def test_all_who_failed_are_told(build: Build) -> None:
    """What only a person mends comes first; of many the names are enough."""
    names = ["a", "b", "c", "d", "e"]
    house = build(Strategy.IN_PLACE, *names, "f")
    for name in names:
        timeout = Transient(f"{name}: not done", reason=Reason.CONSUMER_TIMEOUT)
        masked = Permanent(f"{name}: masked", reason=Reason.CONSUMER_MISSING)
        refusing(house, name, masked if name == "c" else timeout)
    rotating(house).work(30 * MINUTE)
    words = "c: masked; a: not done; b: not done; and d, e"
    assert (Reason.CONSUMER_MISSING, words) == (house.rotation.reason, house.rotation.detail)


def test_a_long_retry_after_is_kept_for_a_minute_at_most(build: Build) -> None:
    """It is down all that time, and so is everybody who failed with it."""
    house = build(Strategy.IN_PLACE, "a", "b")
    asked = Transient("503", reason=Reason.CONSUMER_RESTART_FAILED, retry_after=DAY)
    orders: list[str] = refusing(house, "a", asked, until=lambda: len(orders) == 2)
    rotating(house).work(50 * SECOND)
    assert 1 == len(orders), "what it asked for is heard"
    house.work(20 * SECOND)
    assert Result.SUCCEEDED is house.rotation.result


def test_an_expired_key_is_renewed_though_a_consumer_is_missing(build: Build) -> None:
    """Nobody is served by the old one; what is missing is shown."""
    house = build(Strategy.IN_PLACE, "a", "b")

    def masked() -> None:
        raise Permanent("b is masked", reason=Reason.CONSUMER_MISSING)

    house.workers["b"].preflight = masked  # type: ignore[method-assign]
    rotating(house).work(HOUR, step=MINUTE)
    assert 0 == house.platform.calls
    assert Reason.CONSUMER_MISSING is house.record.last_reason
    house.work(32 * DAY, step=HOUR)
    assert 1 == house.platform.calls
    assert 1 == restarts(house)["a"]
    assert house.workers["a"].connected


# --- after an outage ---------------------------------------------------------------------------------------------


def outage(build: Build, *, before: bool) -> tuple[House, list[str]]:
    """In place; `c` could not be restarted, until the rotation had failed. `before`: it was rotated before."""
    house = build(Strategy.IN_PLACE, "a", "b", "c")
    house.boot()
    if before:
        house.ask()
        house.work(MINUTE)
        assert Result.SUCCEEDED is house.rotation.result
    over: list[str] = []
    error = Transient("the API server is away", reason=Reason.CONSUMER_RESTART_FAILED)
    refusing(house, "c", error, until=lambda: bool(over))
    house.ask()
    house.work(30 * MINUTE)
    assert (Result.FAILED, Reason.CONSUMER_RESTART_FAILED) == (house.rotation.result, house.rotation.reason)
    assert not house.workers["c"].connected
    return house, over


@pytest.mark.parametrize("before", [False, True], ids=["first rotation", "later one"])
def test_who_was_never_restarted_is_behind_and_brought_along_later(build: Build, before: bool) -> None:
    """By the job of every hour, without a start of the daemon; the others stay as they are."""
    house, over = outage(build, before=before)
    assert [0, 0, 1] == [versions_behind(house.record, name) for name in house.workers]
    others = restarts(house)
    over.append("it is back")
    house.engine.catch_up(unproven=False)
    house.work(MINUTE)
    assert house.workers["c"].connected
    assert [0, 0, 0] == [versions_behind(house.record, name) for name in house.workers]
    assert {"a": others["a"], "b": others["b"], "c": others["c"] + 1} == restarts(house)


def test_an_unprovable_consumer_that_was_never_restarted_is_brought_along_too(build: Build) -> None:
    """Its restart is all that can be said of it, and that never went through."""
    house = build(Strategy.IN_PLACE, "a", "c")
    for name in house.workers:
        house.link(name, lambda link: replace(link, open_watch=None))
    over: list[str] = []
    refusing(house, "c", Transient("away", reason=Reason.CONSUMER_RESTART_FAILED), until=lambda: bool(over))
    rotating(house).work(30 * MINUTE)
    assert Result.FAILED is house.rotation.result
    assert [0, 1] == [versions_behind(house.record, name, seen=False) for name in house.workers]
    over.append("it is back")
    house.engine.catch_up(unproven=False)
    house.work(MINUTE)
    assert {"a": 1, "c": 1} == restarts(house)


def test_a_start_leaves_alone_who_was_seen_though_another_failed(build: Build) -> None:
    """`a` and `b` were seen on the new secret before the rotation failed by `c`."""
    house, _ = outage(build, before=True)
    before = restarts(house)
    rebooted(house).work(20 * MINUTE)
    assert before == restarts(house)


def test_who_proved_nothing_is_restarted_at_a_start_and_not_every_hour(build: Build) -> None:
    """Its restarts went through; one more each hour would take down what may well run."""
    house = build(Strategy.IN_PLACE, "a", "b")
    rotating(house).work(MINUTE)
    house.workers["b"].broken = True
    house.ask()
    house.work(HOUR)
    assert (Result.FAILED, Reason.CONSUMER_NOT_CONFIRMED) == (house.rotation.result, house.rotation.reason)
    assert [0, 1] == [versions_behind(house.record, name) for name in house.workers]
    before = restarts(house)
    house.engine.catch_up(unproven=False)
    house.work(20 * MINUTE)
    assert before == restarts(house)
    house.workers["b"].broken = False
    rebooted(house).engine.catch_up(unproven=False)  # the job runs at the start as well
    house.work(20 * MINUTE)
    assert {"a": before["a"], "b": before["b"] + 1} == restarts(house)
    assert 0 == versions_behind(house.record, "b")


def test_who_can_be_seen_no_more_counts_as_behind_nowhere(build: Build) -> None:
    """Its `confirm` was taken out: the next rotation proves nothing of it, and no alert fires for ever."""
    house = build(Strategy.IN_PLACE, "a")
    rotating(house).work(MINUTE)
    house.link("a", lambda link: replace(link, open_watch=None))
    house.journal.close()
    rotating(house).work(MINUTE)
    (shown,) = key_view(house.record, None, None, house.key, house.now)["consumers"]
    assert (3, 2, 0) == (shown["version"], shown["confirmed_version"], shown["lag"])


def test_every_hour_nobody_is_restarted_for_anothers_sake(build: Build) -> None:
    """`c` was never restarted, `b` was and proved nothing: what is tried each hour for the one is not for the other."""
    house = build(Strategy.IN_PLACE, "a", "b", "c")
    rotating(house).work(MINUTE)
    house.workers["b"].broken = True
    refusing(house, "c", Transient("away", reason=Reason.CONSUMER_RESTART_FAILED))
    house.ask()
    house.work(30 * MINUTE)
    assert [0, 1, 1] == [versions_behind(house.record, name) for name in house.workers]
    before = restarts(house)
    house.engine.catch_up(unproven=False)
    house.work(30 * MINUTE)
    assert Reason.RESTART_MISSED is house.rotation.trigger
    assert before == restarts(house)
    house.workers["b"].broken = False
    rebooted(house).engine.catch_up(unproven=False)
    house.work(30 * MINUTE)
    assert before | {"b": before["b"] + 1} == restarts(house), "a start, though, is for both"


def test_one_client_proves_one_consumer_where_another_failed(build: Build) -> None:
    """`a` and `b` share a username and only one of them came up: who it was can't be told, nor counted twice."""
    house = build(Strategy.IN_PLACE, "a", "b", "c")
    shared, other = house.workers["a"], house.workers["b"]
    other.connects = shared.connects  # one broker's log, in which both are looked for
    other.broken = True

    def comes_again() -> bool:
        shared.connect()  # after both were restarted
        return False

    refusing(house, "c", Transient("away", reason=Reason.CONSUMER_RESTART_FAILED), until=comes_again)
    rotating(house).work(30 * MINUTE)
    assert Result.FAILED is house.rotation.result
    assert [True, False] == [c.confirmed_at is not None for c in house.rotation.consumers[:2]]


def test_the_gap_is_measured_though_another_consumer_failed_first(build: Build) -> None:
    """Who came up while `c` was tried again is counted when all are confirmed."""
    house = build(Strategy.IN_PLACE, "a", "c")
    error = Transient("away", reason=Reason.CONSUMER_RESTART_FAILED)
    orders: list[str] = refusing(house, "c", error, until=lambda: len(orders) == 3)
    rotating(house).work(5 * MINUTE)
    assert Result.SUCCEEDED is house.rotation.result
    assert {"a", "c"} == {event.extra["consumer"] for event in house.events if event.name == "gap"}
