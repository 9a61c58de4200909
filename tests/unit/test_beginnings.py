"""Spans measured from a step's beginning, by a wall clock that steps."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from rotator.beginnings import Beginnings
from rotator.model import Identity, Step
from rotator.reasons import Reason
from rotator.rotation import Rotation

NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
DAY = timedelta(days=1)


class TwoClocks:
    """A wall clock that a test steps, and one that it does not."""

    def __init__(self) -> None:
        self.true, self.error = NOW, timedelta(0)

    def now(self) -> datetime:
        return self.true + self.error

    def monotonic(self) -> float:
        return (self.true - NOW).total_seconds()


@pytest.fixture
def clock() -> TwoClocks:
    return TwoClocks()


@pytest.fixture
def beginnings(clock: TwoClocks) -> Beginnings:
    return Beginnings(clock)


@pytest.fixture
def rotation() -> Rotation:
    identity = Identity(id="id-1", username="id-1")
    rotation = Rotation(id="r", key="k", provider="p", identity=identity, trigger=Reason.REQUESTED, started_at=NOW)
    return replace(rotation, step=Step.DELETE, step_since=NOW)


@pytest.mark.parametrize("step", [DAY, -DAY], ids=["forward", "back"])
def test_a_beginning_moves_with_the_wall_clock(
    clock: TwoClocks, beginnings: Beginnings, rotation: Rotation, step: timedelta
) -> None:
    """What has passed since is what has truly passed, also when somebody mends the clock again."""
    beginnings.note(rotation)
    clock.true += timedelta(hours=1)
    clock.error += step
    moved = beginnings.moved(rotation)
    assert replace(rotation, step_since=NOW + step) == moved
    assert moved is beginnings.moved(moved)
    clock.error -= step
    assert rotation == beginnings.moved(moved)


def test_a_slow_correction_is_no_step(clock: TwoClocks, beginnings: Beginnings, rotation: Rotation) -> None:
    """Less than two seconds move nothing."""
    beginnings.note(rotation)
    clock.error += timedelta(seconds=1.9)
    assert rotation is beginnings.moved(rotation)


def test_a_beginning_that_was_not_noted_stays(clock: TwoClocks, beginnings: Beginnings, rotation: Rotation) -> None:
    """Of another process, of another step, or of a rotation that has ended: nobody knows by which clock it was read."""
    clock.error += DAY
    assert rotation is beginnings.moved(rotation)
    beginnings.note(rotation)
    clock.error += DAY
    other = replace(rotation, step_since=NOW + timedelta(seconds=1))
    assert other is beginnings.moved(other)
    beginnings.forget(rotation)
    assert rotation is beginnings.moved(rotation)


def test_a_step_without_a_beginning_has_nothing_to_move(
    clock: TwoClocks, beginnings: Beginnings, rotation: Rotation
) -> None:
    """An old journal may not say when its step began."""
    bare = replace(rotation, step_since=None)
    beginnings.note(bare)
    clock.error += DAY
    assert bare is beginnings.moved(bare)


def test_a_step_that_nothing_is_measured_from_is_left_alone(
    clock: TwoClocks, beginnings: Beginnings, rotation: Rotation
) -> None:
    """A restart is run at once, or after a pause that is stored by itself."""
    rotation = replace(rotation, step=Step.RESTART)
    beginnings.note(rotation)
    clock.error += DAY
    assert rotation is beginnings.moved(rotation)
