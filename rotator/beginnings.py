"""When the steps in flight began, by the clock that steps and by the one that never does."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from rotator.model import Step
from rotator.ports import Clock
from rotator.rotation import Rotation

# A difference below this is the slow correction of a clock, not a step.
_STEP = timedelta(seconds=2)


# Steps that are run at once, and again after a pause that is stored by itself.
_MEASURES_NOTHING = frozenset(
    {Step.PREFLIGHT, Step.PROMOTE, Step.DELIVER, Step.RESTART, Step.CONFIRM, Step.FINISH, Step.CLEAN}
)


class Beginnings:
    """Keeps spans that a rotation measures from `step_since` (its grace, a platform's propagation) as long as they are.

    Only in memory: what the wall clock does while no daemon runs goes unnoticed.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offsets: dict[str, tuple[object, float]] = {}

    def note(self, rotation: Rotation) -> None:
        """`rotation.step_since` was read from the wall clock just now; only where something is measured from it."""
        if rotation.step in _MEASURES_NOTHING:
            return
        self._offsets[rotation.id] = (rotation.step_since, self._offset())

    def moved(self, rotation: Rotation) -> Rotation:
        """The rotation with its `step_since` moved along with a wall clock that has stepped since."""
        noted, offset = self._offsets.get(rotation.id, (None, 0.0))
        if rotation.step_since is None or noted != rotation.step_since:
            return rotation
        by = timedelta(seconds=self._offset() - offset)
        if abs(by) < _STEP:
            return rotation
        moved = replace(rotation, step_since=rotation.step_since + by)
        self.note(moved)
        return moved

    def forget(self, rotation: Rotation) -> None:
        """The rotation has ended."""
        self._offsets.pop(rotation.id, None)

    def _offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()
