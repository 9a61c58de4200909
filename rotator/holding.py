"""What keeps a key waiting that is due, or its rotation between two steps: something outside of that rotation."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from rotator.aftermath import told
from rotator.claims import ConsumerClaims, ProviderHolds
from rotator.draft import Drafts, or_blank
from rotator.frozen import replace
from rotator.keys import KeyRecord, may_be_cut_short, past
from rotator.managed import ManagedKey
from rotator.model import RotationEvent, Step
from rotator.reasons import Reason
from rotator.rotation import Rotation
from rotator.world import World

log = structlog.get_logger(__name__)

# How long a key waits at most for a consumer that another key is restarting; it is woken when that one is done.
SHARED_PAUSE = timedelta(seconds=30)
# How soon a clock that is off is looked at again.
SKEW_PAUSE = timedelta(seconds=30)
# How soon a key that came due with too many others is looked at again.
STAMPEDE_PAUSE = timedelta(minutes=5)
# What makes a key due by itself.
_BY_THE_CLOCK = frozenset({Reason.NEAR_EXPIRY, Reason.MAX_AGE, Reason.EXPIRED})


class Holding:
    """Says until when, and tells people why, once."""

    def __init__(
        self,
        world: World,
        drafts: Drafts,
        sharing: ConsumerClaims,
        providers: ProviderHolds,
        emit: Callable[[RotationEvent], None],
    ) -> None:
        self._world, self._drafts, self._sharing, self._providers = world, drafts, sharing, providers
        self._emit = emit

    def stampede(self, key: ManagedKey, record: KeyRecord) -> None:
        """Too many keys came due against the plan: say so once, and look again from time to time (rule 11)."""
        now = self._world.clock.now()
        event = RotationEvent(
            at=now,
            key=key.name,
            provider=key.provider.name,
            name="held",
            step=Step.PREFLIGHT,
            reason=Reason.STAMPEDE,
        )
        first = record.held_back is not Reason.STAMPEDE
        self._drafts.save(
            key,
            change=lambda old: replace(or_blank(old, key), wake_at=now + STAMPEDE_PAUSE, held_back=Reason.STAMPEDE),
            history=[event] if first else [],
        )
        if first:
            log.error("held", key=key.name, reason=Reason.STAMPEDE.value)
            self._emit(event)

    def until(self, key: ManagedKey, rotation: Rotation, step: Step) -> datetime | None:
        """Until when this step has to wait; None: it may be run."""
        now = self._world.clock.now()
        if step in {Step.PREFLIGHT, Step.ISSUE} and not rotation.forced:
            hold = self._providers.until(rotation.provider)
            if hold is not None:
                return self._held(key, rotation, hold[1], hold[0])
            if (peer := self._world.skew.off(rotation.provider, "vault")) is not None:
                log.warning("held", key=key.name, reason=Reason.CLOCK_SKEW.value, peer=peer)
                return self._held(key, rotation, Reason.CLOCK_SKEW, now + SKEW_PAUSE)
        if step in {Step.ISSUE, Step.RESTART} and not self._sharing.take(key, now):
            return now + SHARED_PAUSE
        return None

    def begun_too_early(self, record: KeyRecord, rotation: Rotation) -> bool:
        """Whether a clock that was wrong made this key due, and the right one does not (rule 11).

        A host that dreamt of next year must not issue for its whole fleet as soon as it wakes.
        """
        held = rotation.reason is Reason.CLOCK_SKEW and rotation.trigger in _BY_THE_CLOCK
        if not held or rotation.forced or not may_be_cut_short(rotation):
            return False
        now = self._world.clock.now()
        due = past(record.rotate_at, now) or past(record.expires_at, now)
        return not due and self._world.skew.off(rotation.provider, "vault") is None

    def _held(self, key: ManagedKey, rotation: Rotation, reason: Reason, until: datetime) -> datetime:
        """Say once why a due key does not move: a rotation that only waits is no rotation under way."""
        if rotation.reason is not reason:
            held = replace(rotation, reason=reason, detail="", attempts=max(1, rotation.attempts))
            if rotation.issues == 0:
                held = replace(held, step=Step.PREFLIGHT)  # what was checked before the wait is old after it (rule 8)
            event = told(held, "held", self._world.clock.now(), step=rotation.step, reason=reason)
            self._drafts.save(
                key,
                held,
                lambda old: replace(or_blank(old, key), last_reason=reason, last_detail=""),
                history=[event],
            )
            self._emit(event)
        return until
