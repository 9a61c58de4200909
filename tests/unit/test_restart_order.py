"""Who is restarted when: canaries, batches, windows, pairs, delivery, missed restarts; and the negative proof.

A whole engine over a real journal; the platform, Vault, the broker and the consumers are those of the simulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from rotator.errors import Transient
from rotator.keys import versions_behind
from rotator.model import Result, Step, Strategy, Ticket
from rotator.policy import Window
from rotator.reasons import Reason
from simulation.world import managed
from unit.restart_house import DAY, HOUR, KEY, OLD, SECOND, Build, Copier, Worker, building


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Makes houses; their journals are closed at the end."""
    with building(tmp_path) as make:
        yield make


def test_a_failed_canary_stops_the_rest_and_rolls_back(build: Build) -> None:
    """A canary that does not come back with the old secret either: nobody retires a key on its word."""
    names = [f"worker-{number}" for number in range(12)]
    house = build(Strategy.REPLACE, *names)
    house.plan(**{"worker-7": {"canary": True}})
    house.workers["worker-7"].broken = True
    house.boot()
    house.ask()
    house.work(timedelta(minutes=30))
    assert (Result.FAILED, Reason.ROLLBACK_FAILED) == (house.rotation.result, house.rotation.quarantine)
    assert ["worker-7"] == [name for name, worker in house.workers.items() if worker.at]
    assert 2 == len(house.platform.keys)
    assert OLD == house.vault.current(f"mqtt/{KEY}")["username"]


def test_a_canary_that_runs_on_the_old_key_only_ends_the_rollback(build: Build) -> None:
    """It comes back with the previous version; the new key is retired, and nobody else has noticed anything."""
    names = [f"worker-{number}" for number in range(12)]
    house = build(Strategy.REPLACE, *names)
    house.plan(**{"worker-0": {"canary": True}, "worker-1": {"canary": True}})
    canary = house.workers["worker-0"]
    connect = canary.connect
    canary.connect = lambda: connect() if canary.runs_on[0] == OLD else None  # type: ignore[method-assign]
    house.boot()
    house.ask()
    house.work(timedelta(minutes=30))
    assert (Result.ROLLED_BACK, Reason.CONSUMER_NOT_CONFIRMED) == (house.rotation.result, house.rotation.reason)
    assert {"worker-0", "worker-1"} == {name for name, worker in house.workers.items() if worker.at}
    assert all(worker.runs_on[0] == OLD and worker.connected for worker in house.workers.values())
    assert [OLD] == list(house.platform.keys)
    assert OLD == house.vault.current(f"mqtt/{KEY}")["username"]
    assert house.record.quarantine is not None


def test_batches_keep_to_max_unavailable(build: Build) -> None:
    """The canary alone, then at most three at once, the next ones only when those are proven."""
    house = build(Strategy.REPLACE, *[f"worker-{number}" for number in range(8)])
    house.plan(**{f"worker-{n}": {"canary": n == 5, "max_unavailable": 3} for n in range(8)})
    house.boot()
    house.ask()
    house.work(timedelta(minutes=10))
    first = sorted(min(worker.at) for worker in house.workers.values())
    batches = [e for e in house.events if e.name == "step" and e.step is Step.RESTART]
    sizes = [0] * len(batches)
    for at in first:
        sizes[sum(event.at < at for event in batches)] += 1
    assert [1, 3, 3, 1] == sizes
    assert [1] * 8 == [len(worker.at) for worker in house.workers.values()]
    assert first[0] == house.workers["worker-5"].at[0]


def test_in_place_restarts_all_at_once(build: Build) -> None:
    """They are down already: no canary, no batches, no windows."""
    house = build(Strategy.IN_PLACE, "a", "b", "c")
    shut = (Window(cron="0 2 29 2 *", duration=HOUR),)
    house.plan(a={"canary": True}, b={"max_unavailable": 1}, c={"windows": shut})
    house.boot()
    house.ask()
    house.work(timedelta(minutes=2))
    assert Result.SUCCEEDED is house.rotation.result
    assert 1 == len([event for event in house.events if event.name == "step" and event.step is Step.RESTART])


def test_a_consumers_windows_are_waited_for(build: Build) -> None:
    """Those whose window is open go first; `rotate --now` waits for none."""
    house = build(Strategy.REPLACE, "a", "b")
    opens = (house.now + 5 * HOUR).replace(minute=0, second=0, microsecond=0)
    house.plan(b={"windows": (Window(cron=f"0 {opens.hour} * * *", duration=HOUR),)})
    house.boot()
    house.ask()
    house.work(6 * HOUR, step=timedelta(seconds=20))
    assert house.workers["a"].at[0] < opens <= house.workers["b"].at[0] < opens + HOUR
    assert OLD in house.platform.keys
    assert house.rotation.step in {Step.DELETE, Step.DEACTIVATE}


def test_nobody_is_restarted_before_the_secret_is_delivered(build: Build) -> None:
    """A copier that takes a minute."""
    house = build(Strategy.IN_PLACE, "a", "b")
    copier = Copier(house, takes=timedelta(seconds=60))
    house.link("a", lambda link: replace(link, delivery=copier))
    house.boot()
    house.ask()
    house.work(timedelta(minutes=3))
    promoted = house.rotation.promoted_at
    assert promoted is not None
    assert Result.SUCCEEDED is house.rotation.result
    assert all(min(worker.at) >= promoted + copier.takes for worker in house.workers.values())
    assert {2} == {order.version for order in copier.asked}


@pytest.mark.parametrize("strategy", [Strategy.IN_PLACE, Strategy.REPLACE])
def test_a_delivery_that_never_comes_has_a_name(build: Build, strategy: Strategy) -> None:
    """Replace rolls back; in place waits on, named and in quarantine, and goes on when it comes after all."""
    house = build(strategy, "a")
    copier = Copier(house, takes=DAY)
    house.link("a", lambda link: replace(link, delivery=copier, deliver_timeout=timedelta(minutes=2)))
    house.boot()
    house.ask()
    house.work(6 * HOUR, step=timedelta(seconds=5))
    assert [] == house.workers["a"].at
    if strategy is Strategy.REPLACE:
        assert (Result.ROLLED_BACK, Reason.DELIVERY_LATE) == (house.rotation.result, house.rotation.reason)
        return
    assert (None, Reason.DELIVERY_LATE) == (house.rotation.result, house.rotation.quarantine)
    copier.takes = timedelta(0)
    house.work(timedelta(minutes=10), step=timedelta(seconds=5))
    assert Result.SUCCEEDED is house.rotation.result


def test_an_old_secret_that_still_works_is_said(build: Build) -> None:
    """The negative proof: after the propagation time the rotation ends with that reason, and has succeeded."""
    house = build(Strategy.IN_PLACE, "a")
    old = house.vault.current(f"mqtt/{KEY}")["password"]
    accepts = house.platform.accepts
    house.platform.accepts = lambda username, secret: secret == old or accepts(username, secret)  # type: ignore[method-assign]
    house.boot()
    house.ask()
    house.work(timedelta(minutes=2))
    assert (Result.SUCCEEDED, Reason.OLD_SECRET_ALIVE) == (house.rotation.result, house.rotation.reason)
    assert 0 == house.record.failures


def test_a_missed_restart_is_made_up_for_once(build: Build) -> None:
    """The consumer that did not confirm the current version, by itself; a second start restarts nobody."""
    house = build(Strategy.IN_PLACE, "a", "b")
    house.boot()
    house.ask()
    house.work(timedelta(minutes=2))
    before = house.record
    behind = replace(before.consumers["b"], confirmed_version=1)
    changed = replace(before, consumers={**before.consumers, "b": behind})
    house.journal.save(key=KEY, change=lambda _: changed)
    for _ in range(2):
        house.journal.close()
        house.boot().catch_up()
        house.work(timedelta(minutes=2))
    assert (1, 2) == (len(house.workers["a"].at), len(house.workers["b"].at))
    assert 0 == versions_behind(house.record, "b")
    assert (Result.SUCCEEDED, Reason.RESTART_MISSED) == (house.rotation.result, house.rotation.trigger)
    assert before.last_success_at == house.record.last_success_at
    assert 1 == house.platform.calls


def test_who_has_no_replicas_proves_nothing_and_is_not_waited_for(build: Build) -> None:
    """The others are proven; it is not, and is not counted as behind."""
    house = build(Strategy.REPLACE, "a", "b")
    house.workers["b"].replicas = 0
    house.workers["b"].broken = True
    house.boot()
    house.ask()
    house.work(timedelta(minutes=1))
    assert Step.DELETE is house.rotation.step
    assert (True, None) == (house.record.consumers["b"].idle, house.record.consumers["b"].confirmed_at)
    assert 0 == versions_behind(house.record, "b")


def test_an_order_says_key_and_version_and_is_the_same_for_the_same_restart(build: Build) -> None:
    """Never the secret."""
    house = build(Strategy.IN_PLACE, "a", "b")
    house.boot()
    house.ask()
    house.work(timedelta(minutes=1))
    (first,), (second,) = house.workers["a"].orders, house.workers["b"].orders
    assert first == second
    assert (KEY, 2) == (first.key, first.version)
    assert house.vault.current(f"mqtt/{KEY}")["password"] not in repr(first)


def test_keys_of_a_pair_are_never_rotated_within_each_others_settle_time(build: Build) -> None:
    """Though they share no consumer."""
    house = build(Strategy.IN_PLACE, "a")
    settle = timedelta(seconds=40)
    limits = replace(house.key.limits, settle=settle)
    house.key = replace(house.key, pair="primary", limits=limits)
    house.platform.add("other", age=59 * DAY)
    house.vault.paths["mqtt/building-b"] = [{"username": "other", "password": house.platform.keys["other"].secret}]
    worker = Worker("c", house.world, house.vault, house.platform, "mqtt/building-b")
    other = replace(managed("building-b", "other", house.platform, [worker]), pair="primary", limits=limits)
    house.boot(other)
    house.ask()
    house.ask("building-b")
    for _ in range(300):
        house.engine.work(KEY)
        house.engine.work("building-b")
        house.world.clock.pass_time(SECOND)
    ends = {event.key: event.at for event in house.events if event.name == "rotation_ended"}
    issues = {e.key: e.at for e in house.events if e.name == "step" and e.step is Step.ISSUE}
    assert ends.keys() == {KEY, "building-b"}
    assert issues["building-b"] >= ends[KEY] + settle


@pytest.mark.parametrize("reason", [Reason.CONSUMER_RESTART_FAILED, Reason.CONSUMER_CRASHED])
def test_who_is_proven_and_can_not_be_asked_is_left_alone(build: Build, reason: Reason) -> None:
    """A later batch's settle finds no D-Bus: nobody of an earlier batch goes down for that; who crashed does."""
    house = build(Strategy.REPLACE, "a", "b")
    house.plan(a={"max_unavailable": 1}, b={"max_unavailable": 1})
    house.boot()
    house.ask()
    first = house.workers["a"]
    asked: list[Ticket] = []

    def check(ticket: Ticket) -> None:
        asked.append(ticket)
        if len(asked) == 2:
            raise Transient("at the second look", reason=reason)

    first.check = check  # type: ignore[method-assign]
    house.work(timedelta(minutes=2))
    assert (1 + (reason is Reason.CONSUMER_CRASHED), 1) == (len(first.at), len(house.workers["b"].at))
