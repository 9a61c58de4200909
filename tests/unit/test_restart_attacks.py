"""What may go wrong between two batches: kills, people, the clock, a changed configuration; and missed restarts.

The same house as in `test_restart_order`: a whole engine over a real journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rotator.claims import ConsumerClaims
from rotator.errors import Permanent, RotatorError, Transient
from rotator.keys import versions_behind
from rotator.model import Order, Result, Step, StoredSecret, Strategy, Ticket
from rotator.policy import Window
from rotator.reasons import Reason
from simulation.world import AFTER, BEFORE, Consumer, Killed, managed
from unit.restart_house import DAY, HOUR, KEY, OLD, SECOND, Build, Copier, House, Worker, building, rebooted, restarts

PATH = f"mqtt/{KEY}"
MINUTE = timedelta(minutes=1)
Plans = Mapping[str, Mapping[str, object]]
IN_TURN: Plans = {
    "a": {"canary": True},
    "b": {"max_unavailable": 1},
    "c": {"max_unavailable": 1},
}
IN_JUNE = (Window(cron="0 2 1 6 *", duration=HOUR),)
WAITING: Plans = {"a": {"canary": True}, "b": {"windows": IN_JUNE}, "c": {"windows": IN_JUNE}}


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Makes houses; their journals are closed at the end."""
    with building(tmp_path) as make:
        yield make


def rotating(build: Build, strategy: Strategy = Strategy.REPLACE, plans: Plans | None = None) -> House:
    """A key of three consumers whose rotation was asked for."""
    house = build(strategy, "a", "b", "c")
    house.plan(**(plans or {}))
    house.boot()
    house.ask()
    return house


def change(house: House, **fields: Any) -> None:
    """Change the key's record, as a person's request does."""
    record = replace(house.record, **fields)
    house.journal.save(key=KEY, change=lambda _: record)


# --- between two batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["consumer.restart", "consumer.check", "provider.list"])
@pytest.mark.parametrize("when", [BEFORE, AFTER])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_kill_between_batches_repeats_one_and_skips_nobody(build: Build, point: str, when: str, number: int) -> None:
    """Only the turn that was not proven is made again; the old key goes when all have proven themselves."""
    house = rotating(build, plans=IN_TURN)
    passed: list[str] = []

    def kill(at: str, now: str, whose: str) -> None:
        if (at, now) == (point, when):
            passed.append(whose)
            if len(passed) == number:
                raise Killed

    house.world.hook = kill
    for _ in range(3):
        try:
            house.work(3 * MINUTE)
        except Killed:
            rebooted(house)
    rotation = house.rotation
    deactivated = rotation.deactivated_at
    assert (Step.DELETE, None) == (rotation.step, rotation.rolling_back)
    assert deactivated is not None
    firsts = {name: [at for at in worker.at if at < deactivated] for name, worker in house.workers.items()}
    assert all(firsts.values()), "skipped"
    assert sum(map(len, firsts.values())) <= len(firsts) + 1, "more than one turn was made again"
    assert min(firsts["a"]) < min(firsts["b"]) < min(firsts["c"])
    assert all(worker.runs_on[0] == rotation.target.username for worker in house.workers.values())


def test_a_canary_that_crashes_after_it_was_seen_stops_the_rest(build: Build) -> None:
    """It connected, and did not stay up."""
    house = rotating(build, plans=IN_TURN)

    def crashed(ticket: Ticket) -> None:
        if house.workers["a"].runs_on[0] != OLD:
            raise Permanent("a crashed", reason=Reason.CONSUMER_CRASHED)

    house.workers["a"].check = crashed  # type: ignore[method-assign]
    house.work(30 * MINUTE)
    assert (Result.ROLLED_BACK, Reason.CONSUMER_CRASHED) == (house.rotation.result, house.rotation.reason)
    assert (0, 0) == (restarts(house)["b"], restarts(house)["c"])
    assert [OLD] == list(house.platform.keys)


def test_a_persons_word_for_the_canary_lets_the_others_go_on(build: Build) -> None:
    """It is restarted once; what can't be seen of it is believed."""
    house = rotating(build, plans=IN_TURN)
    house.workers["a"].broken = True
    vouched = False

    def vouch(point: str, when: str, whose: str) -> None:
        nonlocal vouched
        if (point, when, whose, vouched) == ("consumer.restart", AFTER, "a", False):
            vouched = True
            change(house, vouched=("a",))

    house.world.hook = vouch
    house.work(2 * MINUTE)
    assert house.rotation.rolling_back is None
    assert {"a": 1, "b": 1, "c": 1} == restarts(house)
    assert next(c for c in house.rotation.consumers if c.name == "a").vouched


def test_the_untouched_are_told_of_no_restart(build: Build) -> None:
    """A consumer whose turn has not come did not fail to restart."""
    house = rotating(build, plans=IN_TURN)
    house.work(2 * MINUTE)
    told = [(e.extra["consumer"], e.result) for e in house.events if e.name == "restart"]
    assert [("a", "ok"), ("b", "ok"), ("c", "ok")] == told


def test_a_person_rolls_back_while_batches_wait(build: Build) -> None:
    """Only the canary is restarted again; the others are not behind, and no later start restarts them."""
    house = rotating(build, plans=WAITING)
    house.work(2 * MINUTE)
    assert {"a": 1, "b": 0, "c": 0} == restarts(house)
    change(house, requested="rollback")
    house.work(5 * MINUTE)
    assert Result.ROLLED_BACK is house.rotation.result
    assert {"a": 2, "b": 0, "c": 0} == restarts(house)
    assert [0, 0, 0] == [versions_behind(house.record, name) for name in house.workers]


def test_the_way_back_reaches_whom_another_key_restarted_meanwhile(build: Build) -> None:
    """A shared consumer read Vault when its other key was rotated: it would be left on the key that is deleted."""
    house = build(Strategy.REPLACE, "a", "b", "c")
    house.plan(**WAITING)
    two_keys(house, ["b"])
    house.work(2 * MINUTE)
    house.work(2 * MINUTE, name="building-b")
    assert house.workers["b"].runs_on[0] != OLD
    change(house, requested="rollback")
    house.work(5 * MINUTE)
    assert Result.ROLLED_BACK is house.rotation.result
    assert [OLD, OLD, OLD] == [worker.runs_on[0] for worker in house.workers.values()]
    assert 0 == restarts(house)["c"]


@pytest.mark.parametrize("identified", [True, False])
def test_the_way_back_reaches_who_came_up_by_itself(build: Build, identified: bool) -> None:
    """It crashed after the promote and read the new secret; who is not known by its client id can't be told apart."""
    house = build(Strategy.REPLACE, "a", "b", "c")
    house.plan(**WAITING)
    for name in house.workers:
        house.link(name, lambda link: replace(link, identified=identified))
    house.boot()
    house.ask()
    house.work(2 * MINUTE)
    Consumer.restart(house.workers["b"], Order(key=KEY, version=2))
    assert house.workers["b"].runs_on[0] != OLD
    change(house, requested="rollback")
    house.work(5 * MINUTE)
    assert Result.ROLLED_BACK is house.rotation.result
    assert [OLD] == list(house.platform.keys)
    assert {"a": 2, "b": 1 if identified else 0, "c": 0} == restarts(house)
    if identified:
        assert [OLD, OLD, OLD] == [worker.runs_on[0] for worker in house.workers.values()]


def test_after_a_rollback_no_start_restarts_the_untouched(build: Build) -> None:
    """They run on what the reverted version holds, though that has a higher number."""
    house = rotating(build)
    house.work(26 * HOUR, step=MINUTE)
    assert Result.SUCCEEDED == house.rotation.result
    house.plan(**WAITING)
    rebooted(house)
    house.ask()
    house.work(2 * MINUTE)
    before = restarts(house)
    change(house, requested="rollback")
    house.work(10 * MINUTE)
    assert [Result.ROLLED_BACK] == [house.rotation.result]
    assert before["b"] == restarts(house)["b"]
    assert [0, 0, 0] == [versions_behind(house.record, name) for name in house.workers]
    change(house, quarantine=None)
    before = restarts(house)
    rebooted(house).work(5 * MINUTE)
    assert before == restarts(house)


@pytest.mark.parametrize("requested", ["now", "compromised"])
def test_a_person_insists_while_batches_wait(build: Build, requested: str) -> None:
    """Windows count no more."""
    house = rotating(build, plans=WAITING)
    house.work(2 * MINUTE)
    change(house, requested=requested)
    house.work(2 * MINUTE)
    assert {"a": 1, "b": 1, "c": 1} == restarts(house)
    assert 1 == house.platform.calls


def test_a_pause_while_batches_wait_changes_nothing(build: Build) -> None:
    """What has issued goes on (`rotator pause`), when the window opens."""
    house = rotating(build, plans=WAITING)
    house.work(2 * MINUTE)
    change(house, paused=True)
    house.world.clock.pass_time(house.now.replace(month=6, day=1, hour=2) - house.now + SECOND)
    house.platform.keys = {i: replace(k, expires_at=None) for i, k in house.platform.keys.items()}
    house.work(2 * MINUTE)
    assert {"a": 1, "b": 1, "c": 1} == restarts(house)


def test_nobody_waits_for_a_window_beyond_the_old_secrets_end(build: Build) -> None:
    """The key wakes by itself when the last twentieth begins."""
    house = rotating(build, plans=WAITING)
    house.work(2 * MINUTE)
    ends, wake = house.rotation.expired_before, house.record.wake_at
    assert ends is not None
    assert wake is not None
    assert wake < ends - DAY
    house.world.clock.pass_time(wake - house.now)
    house.work(2 * MINUTE)
    assert {"a": 1, "b": 1, "c": 1} == restarts(house)


def test_who_is_configured_no_more_is_waited_for_no_more(build: Build) -> None:
    """And who is new has its turn before the old key goes; the journal does not spin."""
    house = rotating(build, plans=WAITING)
    house.work(2 * MINUTE)
    assert {"a": 1, "b": 0, "c": 0} == restarts(house)
    worker = Worker("d", house.world, house.vault, house.platform, PATH)
    house.workers["d"] = worker
    other = managed(KEY, OLD, house.platform, [house.workers["a"], worker])
    house.key = replace(other, limits=house.key.limits)
    rebooted(house).work(2 * MINUTE)
    assert (0, 0, 1) == (restarts(house)["b"], restarts(house)["c"], restarts(house)["d"])
    assert Step.DELETE is house.rotation.step


# --- delivery ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Transient, Permanent])
@pytest.mark.parametrize("strategy", [Strategy.IN_PLACE, Strategy.REPLACE])
def test_a_delivery_that_fails(build: Build, strategy: Strategy, error: type[RotatorError]) -> None:
    """Nobody is restarted; replace goes back, in place stays at it, in quarantine, until it works again."""
    house = build(strategy, "a")
    copier = Copier(house, takes=timedelta(0))
    house.link("a", lambda link: replace(link, delivery=copier))
    house.boot()
    house.ask()
    ask = copier.ask

    def failing(order: Order) -> None:
        raise error("no such thing", reason=Reason.CONSUMER_FORBIDDEN)

    copier.ask = failing  # type: ignore[method-assign]
    house.work(4 * HOUR, step=timedelta(seconds=10))
    assert {"a": 0} == restarts(house)
    if strategy is Strategy.REPLACE:
        assert (Result.ROLLED_BACK, [OLD]) == (house.rotation.result, list(house.platform.keys))
        return
    assert (None, Reason.CONSUMER_FORBIDDEN) == (house.rotation.result, house.rotation.quarantine)
    copier.ask = ask  # type: ignore[method-assign]
    house.work(HOUR, step=timedelta(seconds=10))
    assert Result.SUCCEEDED is house.rotation.result


def test_the_way_back_waits_for_the_delivery_of_the_old_secret(build: Build) -> None:
    """The canary is not restarted onto the new one again."""
    house = build(Strategy.REPLACE, "a", "b")
    house.plan(a={"canary": True})
    copier = Copier(house, takes=timedelta(seconds=30))
    house.link("a", lambda link: replace(link, delivery=copier))
    canary = house.workers["a"]
    connect = canary.connect
    canary.connect = lambda: connect() if canary.runs_on[0] == OLD else None  # type: ignore[method-assign]
    house.boot()
    house.ask()
    house.work(30 * MINUTE)
    reverted = house.rotation.promoted_at
    assert reverted is not None
    assert Result.ROLLED_BACK is house.rotation.result
    assert canary.at[-1] >= reverted + copier.takes
    assert [3] == [at.version for at in canary.orders[-1:]]
    assert {"a", "b"} == {name for name, worker in house.workers.items() if worker.runs_on[0] == OLD}


def two_keys(house: House, names: list[str]) -> None:
    """One more key, `building-b`, of some of the house's consumers; both are asked for."""
    house.platform.add("other", age=59 * DAY)
    house.vault.paths["mqtt/building-b"] = [{"username": "other", "password": house.platform.keys["other"].secret}]
    other = managed("building-b", "other", house.platform, [house.workers[name] for name in names], with_verify=False)
    links = tuple(replace(link, open_watch=None) for link in other.consumers)
    house.boot(replace(other, consumers=links))
    house.ask()
    house.ask("building-b")


def test_a_key_that_waits_for_its_delivery_keeps_its_consumers(build: Build) -> None:
    """A neighbour would take them down a second time, in the middle of the outage."""
    house = build(Strategy.IN_PLACE, "a")
    copier = Copier(house, takes=MINUTE)
    house.link("a", lambda link: replace(link, delivery=copier))
    two_keys(house, ["a"])
    for _ in range(300):
        house.engine.work(KEY)
        house.engine.work("building-b")
        house.world.clock.pass_time(SECOND)
    ends = {event.key: event.at for event in house.events if event.name == "rotation_ended"}
    issues = {e.key: e.at for e in house.events if e.name == "step" and e.step is Step.ISSUE}
    assert {KEY, "building-b"} == ends.keys()
    assert issues["building-b"] > ends[KEY]


def test_two_keys_that_share_two_consumers_never_block_each_other(build: Build) -> None:
    """Whatever the order in which they name them."""
    house = build(Strategy.IN_PLACE, "a", "b")
    two_keys(house, ["b", "a"])
    for _ in range(200):
        house.engine.work("building-b")
        house.engine.work(KEY)
        house.world.clock.pass_time(SECOND)
    ends = {event.key: event.result for event in house.events if event.name == "rotation_ended"}
    assert {KEY: "succeeded", "building-b": "succeeded"} == ends


def test_a_clock_that_stepped_back_keeps_no_neighbour_waiting(build: Build) -> None:
    """The settle time is seconds, whatever the clock does."""
    house = build(Strategy.IN_PLACE, "a")
    house.boot()
    claims, other = ConsumerClaims(), replace(house.key, name="building-b")
    assert claims.take(house.key, house.now)
    given = house.now
    claims.give_back(house.key, given, given + MINUTE)
    assert not claims.take(other, given + SECOND)
    assert claims.take(other, given - DAY)


# --- missed restarts ---------------------------------------------------------------------------------------------


def behind(build: Build, **fields: Any) -> House:
    """A key in place whose consumer `b` did not confirm the current version."""
    house = build(Strategy.IN_PLACE, "a", "b")
    house.boot()
    house.ask()
    house.work(2 * MINUTE)
    assert Result.SUCCEEDED is house.rotation.result
    known = house.record.consumers
    change(house, consumers={**known, "b": replace(known["b"], confirmed_version=1)}, **fields)
    return house


@pytest.mark.parametrize(
    "fields",
    [{"paused": True}, {"quarantine": Reason.SECRET_REFUSED}, {"drift": Reason.VAULT_OVERWRITTEN}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_start_leaves_alone_what_a_person_has_to_look_at(build: Build, fields: dict[str, Any]) -> None:
    """And catches up at the first start after that."""
    house = behind(build, **fields)
    rebooted(house).work(2 * MINUTE)
    assert {"a": 1, "b": 1} == restarts(house)
    change(house, **dict.fromkeys(fields, None) | ({"paused": False} if "paused" in fields else {}))
    rebooted(house).work(2 * MINUTE)
    assert {"a": 1, "b": 2} == restarts(house)


def test_a_start_restarts_nobody_onto_what_is_not_ours(build: Build) -> None:
    """Somebody wrote while the daemon was away, and no look at Vault has told yet."""
    house = behind(build)
    house.vault.paths[PATH].append({"username": OLD, "password": "somebody else's"})
    rebooted(house).work(HOUR, step=timedelta(seconds=10))
    assert {"a": 1, "b": 1} == restarts(house)
    assert (Result.FAILED, Reason.VAULT_OVERWRITTEN) == (house.rotation.result, house.rotation.reason)


def test_who_can_be_seen_no_more_is_not_restarted_at_every_start(build: Build) -> None:
    """Its `confirm` was taken out of the configuration: its restart is all that can be said of it."""
    house = behind(build)
    house.link("b", lambda link: replace(link, open_watch=None))
    for _ in range(2):
        rebooted(house).work(2 * MINUTE)
    assert {"a": 1, "b": 1} == restarts(house)


def test_catching_up_keeps_what_stands_beside_the_secret(build: Build) -> None:
    """The dates there are the secret's, not those of a restart."""
    house = behind(build)
    noted: list[Mapping[str, str]] = []
    house.vault.annotate = lambda path, facts: noted.append(facts)  # type: ignore[method-assign]
    rebooted(house).work(2 * MINUTE)
    assert ({"a": 1, "b": 2}, []) == (restarts(house), noted)


def test_a_word_for_somebody_else_does_not_make_a_wait_spin(build: Build) -> None:
    """A person vouches for a consumer that takes no part in catching up, while its delivery is waited for."""
    house = behind(build)
    copier = Copier(house, takes=MINUTE)
    house.link("b", lambda link: replace(link, delivery=copier))
    rebooted(house)
    house.engine.work(KEY)
    change(house, vouched=("a",))
    before = len(copier.asked)
    house.engine.work(KEY)
    assert before == len(copier.asked), "it did not wait"
    house.work(3 * MINUTE)
    assert {"a": 1, "b": 2} == restarts(house)


def test_an_open_rotation_sees_to_its_consumers_itself(build: Build) -> None:
    """A start in the middle of it asks for nothing more."""
    house = rotating(build, plans=WAITING)
    house.work(2 * MINUTE)
    rebooted(house).work(2 * MINUTE)
    assert "" == house.record.requested
    assert {"a": 1, "b": 0, "c": 0} == restarts(house)


# --- the negative proof ------------------------------------------------------------------------------------------


def alive(house: House) -> None:
    """The broker goes on letting the old secret in."""
    old, accepts = house.vault.current(PATH)["password"], house.platform.accepts
    house.platform.accepts = lambda username, secret: secret == old or accepts(username, secret)  # type: ignore[method-assign]


def test_a_broker_that_is_away_at_the_end_keeps_nothing_open(build: Build) -> None:
    """Three tries, then the rotation has succeeded without the negative proof."""
    house = rotating(build, Strategy.IN_PLACE)
    tries: list[str] = []

    def away(point: str, when: str, whose: str) -> None:
        if (point, when) == ("broker.probe", BEFORE) and len(house.workers["c"].at) > 0:
            tries.append(whose)
            raise ConnectionError("away")

    house.world.hook = away
    house.work(10 * MINUTE)
    assert (Result.SUCCEEDED, None) == (house.rotation.result, house.rotation.reason)
    assert 3 == len(tries)


@pytest.mark.parametrize("why", ["pushed out", "no verify", "kills nothing"])
def test_where_the_old_secret_can_not_be_asked_for_nothing_is_said(build: Build, why: str) -> None:
    """It is gone from Vault, there is no broker, or the platform never said that it dies."""
    house = build(Strategy.IN_PLACE, "a")
    alive(house)
    if why == "no verify":
        house.key = replace(house.key, probe=None)
    if why == "kills nothing":
        house.key = replace(house.key, limits=replace(house.key.limits, kills_old=False))
    if why == "pushed out":
        read = house.vault.read

        def pushed_out(path: str, version: int | None = None) -> StoredSecret:
            return read(path, version) if version is None else StoredSecret(version=version, data=None)

        house.vault.read = pushed_out  # type: ignore[method-assign]
    house.boot()
    house.ask()
    house.work(2 * MINUTE)
    assert (Result.SUCCEEDED, None) == (house.rotation.result, house.rotation.reason)


def test_a_deleted_key_that_still_works_is_said(build: Build) -> None:
    """Replace, after the grace; a restart of the daemon at the end changes nothing."""
    house = rotating(build)
    alive(house)
    house.work(25 * HOUR, step=MINUTE)
    rebooted(house).work(HOUR, step=MINUTE)
    assert (Result.SUCCEEDED, Reason.OLD_SECRET_ALIVE) == (house.rotation.result, house.rotation.reason)
    assert "ok" == [e.result for e in house.events if e.name == "step" and e.step is Step.FINISH][-1]
