"""Whose turn is it to be restarted? Pure (design, "The way a rotation goes").

*Replace* can take its time: canaries first, then batches that keep to `max_unavailable`, each consumer in its own
windows. Where the old secret is dead, or dies soon, everybody is restarted at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rotator.frozen import replace
from rotator.model import Step, Strategy
from rotator.policy import next_opening, open_until
from rotator.rotation import ConsumerPlan, ConsumerProgress, Rotation

Plans = Sequence[ConsumerPlan]
_BEFORE_THE_PROOF = frozenset(
    {
        *(Step.PREFLIGHT, Step.CHOOSE, Step.ISSUE, Step.LOOK, Step.PROBE, Step.PROMOTE),
        *(Step.DELIVER, Step.RESTART, Step.CONFIRM, Step.SETTLE),
    }
)


def pending(rotation: Rotation, plans: Plans) -> list[ConsumerProgress]:
    """Who is still to be restarted; on the way back of *replace* only those who may run on the new secret.

    With a secret of our choice the old one was dead meanwhile: everybody has to prove that it is back.
    """
    only_touched = rotation.rolling_back is not None and rotation.strategy is Strategy.REPLACE
    return [
        c
        for c in rotation.consumers
        if c.restarted_at is None and (not only_touched or c.touched or _plan(plans, c.name).follows)
    ]


def next_batch(rotation: Rotation, now: datetime, plans: Plans, *, hurry: bool) -> list[str] | datetime:
    """Who is restarted next, by name; or the moment at which the next window opens. Empty where all have been.

    Args:
        hurry: the old secret is dead, or near its end: everybody at once.
    """
    left = pending(rotation, plans)
    if hurry or rotation.strategy is not Strategy.REPLACE or rotation.rolling_back is not None or rotation.restart_only:
        return [c.name for c in left]
    again = [c.name for c in left if c.in_turn]
    if again:
        return again  # they were restarted and are not proven: nobody else's turn before that
    canaries = [c for c in left if _plan(plans, c.name).canary]
    turn = canaries or left
    open_now = [c.name for c in turn if rotation.forced or _open(_plan(plans, c.name), now)]
    if turn and not open_now:
        openings = [next_opening(_plan(plans, c.name).windows, now) for c in turn]
        known = [opening for opening in openings if opening is not None]
        if known:
            return min(known)
        open_now = [c.name for c in turn]  # a window that never opens would keep the old key for ever
    return _within_limits(open_now, plans)


def begin_restart(rotation: Rotation, now: datetime, plans: Plans, *, hurry: bool) -> Rotation:
    """The record to journal before a batch is restarted: whose restart may have happened is known from then on."""
    turn = next_batch(rotation, now, plans, hurry=hurry)
    names = set(turn) if isinstance(turn, list) else set()
    consumers = tuple(replace(c, touched=True, in_turn=True) if c.name in names else c for c in rotation.consumers)
    return replace(rotation, consumers=consumers)


def turn_of(rotation: Rotation, plans: Plans) -> list[str]:
    """Whom the restart that has begun is for."""
    return [c.name for c in pending(rotation, plans) if c.in_turn]


def as_configured(rotation: Rotation, names: Sequence[str]) -> Rotation:
    """With the consumers that the key has now: a restart of the daemon between two batches may have changed them.

    Who is gone is waited for no more; who is new takes its turn, and may run on either secret. After the proof nothing
    changes: how the old key ends depends on whether there were any.
    """
    if rotation.step not in _BEFORE_THE_PROOF or names == [c.name for c in rotation.consumers]:
        return rotation
    kept = [c for c in rotation.consumers if c.name in names]
    known = {c.name for c in rotation.consumers}
    new = [name for name in names if name not in known and not rotation.restart_only]
    if len(kept) == len(known) and not new:
        return rotation
    added = [ConsumerProgress(name=name, touched=rotation.promoted_at is not None) for name in new]
    return replace(rotation, consumers=(*kept, *added))


def _plan(plans: Plans, name: str) -> ConsumerPlan:
    return next((plan for plan in plans if plan.name == name), ConsumerPlan(name=name))


def _open(plan: ConsumerPlan, now: datetime) -> bool:
    return not plan.windows or any(open_until(window, now) is not None for window in plan.windows)


def _within_limits(names: list[str], plans: Plans) -> list[str]:
    """As many, in the order of the configuration, as all of them allow to be away at once."""
    batch: list[str] = []
    limit: int | None = None
    for name in names:
        own = _plan(plans, name).max_unavailable
        tighter = min((each for each in (limit, own) if each is not None), default=None)
        if tighter is None or len(batch) < tighter:
            batch.append(name)
            limit = tighter
    return batch
