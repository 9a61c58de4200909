"""What can't be seen is no ground for going back; and what is seen at the second confirmation.

The same house as in `test_restart_order`: a whole engine over a real journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from rotator.errors import Transient
from rotator.managed import ConsumerLink
from rotator.model import Identity, Order, Result, Secret, Sighting, Step, Strategy, Ticket
from rotator.policy import Window
from rotator.ports import Watch
from rotator.reasons import Reason
from unit.restart_house import DAY, HOUR, KEY, OLD, SECOND, Build, House, building, rebooted, restarts

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


# --- blindness ---------------------------------------------------------------------------------------------------


@dataclass
class Blinking:
    """A watch that sees nothing while its observer is away; `beats`: it sees whoever runs, at each look."""

    inner: Watch
    away: Callable[[], bool]
    beats: Callable[[], datetime | None] | None = None

    def sightings(self) -> Sequence[Sighting]:
        if self.away():
            return []
        if self.beats is None:
            return self.inner.sightings()
        at = self.beats()
        return [Sighting(at=at, detail="a beat")] if at is not None else []

    def losses(self) -> Sequence[Sighting]:
        return [] if self.away() else self.inner.losses()

    def wait(self, timeout: float) -> None:
        self.inner.wait(timeout)

    def healthy(self) -> str:
        return "the log can't be read" if self.away() else ""

    def close(self) -> None:
        self.inner.close()


def blinking(house: House, away: Callable[[], bool], *, periodic: bool = False) -> None:
    """The observer of all consumers is away from time to time."""

    def change(link: ConsumerLink) -> ConsumerLink:
        worker = house.workers[link.consumer.name]

        def beats() -> datetime | None:
            return house.now if worker.connected and worker.runs_on[0] != OLD else None

        def open_watch(identity: Identity, secret: Secret | None, order: Order | None) -> Watch:
            assert link.open_watch is not None
            return Blinking(link.open_watch(identity, secret, order), away, beats if periodic else None)

        return replace(link, open_watch=open_watch, periodic=periodic)

    for name in house.workers:
        house.link(name, change)


@pytest.mark.parametrize("strategy", [Strategy.REPLACE, Strategy.CHOSEN])
def test_an_observer_that_is_away_is_no_ground_for_going_back(build: Build, strategy: Strategy) -> None:
    """It says nothing of the new secret: nobody is restarted again, and it goes on when it is back."""
    house = build(strategy, "a", "b")
    until = house.now + 2 * HOUR
    blinking(house, lambda: house.now < until)
    rotating(house).work(HOUR, step=10 * SECOND)
    rotation = house.rotation
    assert (Step.CONFIRM, None, None) == (rotation.step, rotation.result, rotation.rolling_back)
    assert Reason.CONSUMER_NOT_CONFIRMED is house.record.last_reason
    house.work(2 * HOUR, step=10 * SECOND)
    assert {"a": 1, "b": 1} == restarts(house)
    assert house.rotation.rolling_back is None
    assert house.rotation.result is Result.SUCCEEDED or house.rotation.step is Step.DELETE


def test_blindness_is_waited_out_only_while_the_old_secret_lasts(build: Build) -> None:
    """Near its end the tries are counted, and it ends."""
    house = build(Strategy.REPLACE, "a")
    blinking(house, lambda: True)
    rotating(house).work(32 * DAY, step=HOUR)
    assert house.rotation.result is not None


def test_who_is_seen_to_fail_goes_back_though_another_can_not_be_seen(build: Build) -> None:
    """Only what nobody can see is waited for."""
    house = build(Strategy.REPLACE, "a", "b")
    blinking(house, lambda: False)
    house.workers["b"].broken = True
    rotating(house).work(HOUR, step=10 * SECOND)
    assert Reason.CONSUMER_NOT_CONFIRMED is (house.rotation.rolling_back or house.rotation.reason)
    assert OLD == house.vault.current(f"mqtt/{KEY}")["username"]


def test_an_observer_that_blinks_at_the_second_confirmation_is_waited_for(build: Build) -> None:
    """Heartbeats can't be heard for minutes from the deactivation on."""
    house = build(Strategy.REPLACE, "a", "b")

    def away() -> bool:
        since = house.journal.recent_rotations(key=KEY, limit=1)[0].deactivated_at
        return since is not None and house.now < since + 5 * MINUTE

    blinking(house, away, periodic=True)
    rotating(house).work(HOUR, step=5 * SECOND)
    assert (None, Step.DELETE) == (house.rotation.rolling_back, house.rotation.step)
    assert {"a": 1, "b": 1} == restarts(house)


def test_a_missed_restart_that_can_not_be_seen_keeps_no_key_from_its_renewal(build: Build) -> None:
    """Nothing ends while its observer is away, so it ends by its tries."""
    house = build(Strategy.REPLACE, "a")
    rotating(house).work(2 * DAY, step=MINUTE)
    assert Result.SUCCEEDED is house.rotation.result
    blinking(house, lambda: True)
    facts = replace(house.record.consumers["a"], confirmed_version=1)
    behind = replace(house.record, consumers={"a": facts})
    house.journal.save(key=KEY, change=lambda _: behind)
    rebooted(house).work(HOUR, step=SECOND)
    assert (Reason.RESTART_MISSED, Result.FAILED) == (house.rotation.trigger, house.rotation.result)


# --- the second confirmation, and another batch's windows --------------------------------------------------------


def undeactivated(build: Build) -> House:
    """A platform that can't deactivate: the second confirmation is at the end of the grace, a day later."""
    house = build(Strategy.REPLACE, "a", "b")
    house.platform.deactivates = False
    house.key = replace(house.key, limits=replace(house.key.limits, deactivates=False))
    rotating(house).work(5 * MINUTE)
    assert Step.RECONFIRM is house.rotation.step
    return house


def test_a_deploy_within_the_grace_is_no_crash(build: Build) -> None:
    """Another process runs than the one that was restarted a day ago: it alone proves itself anew."""
    house = undeactivated(build)
    deployed = house.now

    def check(ticket: Ticket) -> None:
        if ticket.restarted_at < deployed:
            raise Transient("another process runs now", reason=Reason.CONSUMER_CRASHED)

    house.workers["a"].check = check  # type: ignore[method-assign]
    house.work(2 * DAY, step=MINUTE)
    assert (Result.SUCCEEDED, None) == (house.rotation.result, house.rotation.rolling_back)
    assert {"a": 2, "b": 1} == restarts(house)
    assert OLD not in house.platform.keys


def test_a_crash_loop_at_the_second_confirmation_ends_in_the_way_back(build: Build) -> None:
    """It does not stay up on the new secret, however often it is restarted."""
    house = undeactivated(build)

    def check(ticket: Ticket) -> None:
        if house.workers["a"].runs_on[0] != OLD:
            raise Transient("it crashed", reason=Reason.CONSUMER_CRASHED)

    house.workers["a"].check = check  # type: ignore[method-assign]
    house.work(2 * DAY, step=MINUTE)
    assert (Result.ROLLED_BACK, Reason.CONSUMER_CRASHED) == (house.rotation.result, house.rotation.reason)
    assert [OLD] == list(house.platform.keys)


def test_who_crashes_after_its_batch_waits_for_its_window_again(build: Build) -> None:
    """It was proven at two; at fourteen, when `b` settles, it has another process: at two again, not in the day."""
    house = build(Strategy.REPLACE, "a", "b")
    windows = {name: (Window(cron=f"0 {hour} * * *", duration=HOUR),) for name, hour in (("a", 2), ("b", 14))}
    house.plan(**{name: {"windows": opens} for name, opens in windows.items()})
    first = house.workers["a"]

    def check(ticket: Ticket) -> None:
        if len(first.at) == 1 and house.workers["b"].at:
            raise Transient("another process runs now", reason=Reason.CONSUMER_CRASHED)

    first.check = check  # type: ignore[method-assign]
    rotating(house).work(2 * DAY, step=20 * SECOND)
    assert [2, 2] == [at.hour for at in first.at]
    assert [14] == [at.hour for at in house.workers["b"].at]
