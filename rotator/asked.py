"""What a person, or the key's own date, asks of a rotation in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from rotator.aftermath import key_after, told
from rotator.closing import Closing, erase_when_done
from rotator.draft import Drafts, or_blank
from rotator.frozen import replace
from rotator.keys import COMPROMISED, FORCED, RESUMED, ROLL_BACK, KeyRecord, past, resting
from rotator.lifecycle import LOOK_AGAIN, MAX_ANSWERS, roll_back
from rotator.managed import ManagedKey
from rotator.model import RotationEvent, Step
from rotator.ports import Clock
from rotator.reasons import Reason
from rotator.rotation import Rotation


class Asked:
    """Takes up what the key's record asks for. Each request is over when it is journaled with its effect."""

    def __init__(
        self,
        clock: Clock,
        drafts: Drafts,
        closing: Closing,
        *,
        draw: Callable[[], float],
        emit: Callable[[RotationEvent], None],
    ) -> None:
        self._clock, self._drafts, self._closing = clock, drafts, closing
        self._draw, self._emit = draw, emit

    def heard(self, key: ManagedKey, record: KeyRecord, rotation: Rotation) -> Rotation:
        """The rotation as it goes on; ended, where there was nothing left to do on the way back."""
        now = self._clock.now()
        unheard = set(record.vouched) & {c.name for c in rotation.consumers if not c.vouched}
        if unheard and rotation.rolling_back is None:
            rotation = self._vouched(key, rotation, record.vouched, now)
        waiting = resting(rotation) and not rotation.no_grace
        asked = record.requested in FORCED - {ROLL_BACK} or past(record.rotate_at, now)
        if waiting and (record.requested == COMPROMISED or (asked and rotation.consumers)):
            # The consumers are proven on the new secret; the next rotation begins as soon as the old key is gone. Where
            # there are none, nobody has proven anything, and the grace is kept (rule 5).
            rotation = replace(rotation, no_grace=True)
            self._drafts.save(key, rotation)
        proven = resting(rotation) or (rotation.reconfirmed_at is not None and rotation.rolling_back is None)
        if not record.requested or (proven and record.requested not in {ROLL_BACK, RESUMED}):
            return rotation  # asked for anew: begun when the old key is gone
        if record.requested == ROLL_BACK:
            return self._turn_around(key, rotation, now)
        return self._hurry(key, rotation, record.requested, now)

    def _vouched(self, key: ManagedKey, rotation: Rotation, names: Iterable[str], now: datetime) -> Rotation:
        """`rotator confirm`: a person has seen these consumers on the new secret."""
        consumers = tuple(
            replace(c, vouched=True, touched=True, restarted_at=c.restarted_at or now, seen_at=c.seen_at or now)
            if c.name in names
            else c
            for c in rotation.consumers
        )
        rotation = replace(rotation, consumers=consumers, not_before=None)
        self._drafts.save(key, rotation)
        return rotation

    def _turn_around(self, key: ManagedKey, rotation: Rotation, now: datetime) -> Rotation:
        """`rotator rollback`: where there is no way back, the rotation goes on and the request is over."""
        back = roll_back(rotation, Reason.ROLLBACK_REQUESTED, "", now)
        turned = back if back is not None else rotation
        event = told(turned, "rolling_back", now, reason=None if back is not None else Reason.ROLLBACK_IMPOSSIBLE)
        draw, pause = self._draw(), self._draw()

        def change(old: KeyRecord | None) -> KeyRecord:
            record = replace(or_blank(old, key), requested="")
            return key_after(record, key, turned, now, draw=draw, pause=pause) if turned.finished_at else record

        self._drafts.save(key, turned, change, blob=erase_when_done(turned), history=[event])
        if turned.finished_at is not None:
            self._closing.let_go(key, turned)
        self._emit(event)
        return turned

    def _hurry(self, key: ManagedKey, rotation: Rotation, requested: str, now: datetime) -> Rotation:
        """Somebody asked for this key while it rotates: what waits is tried now, and no second rotation follows."""
        forced = requested in FORCED
        # A person may have one more secret issued where the broker refused the last one.
        answers = min(rotation.answers, MAX_ANSWERS - 1) if forced else rotation.answers
        hurried = replace(
            rotation,
            # the pause between two looks after a lost answer is no backoff
            not_before=_soon(rotation.not_before, now) if rotation.step is Step.LOOK else None,
            attempts=0,
            reason=None,  # of the tries before this one
            detail="",
            quarantine=None,
            answers=answers,
            # after a conflict, a person who insists accepts what somebody else wrote as the base to write over
            expected=None if forced and rotation.reason is Reason.VAULT_CONFLICT else rotation.expected,
            forced=rotation.forced or forced,
            no_grace=rotation.no_grace or requested == COMPROMISED,
        )
        self._drafts.save(key, hurried, lambda old: replace(or_blank(old, key), requested=""))
        return hurried


def _soon(moment: datetime | None, now: datetime) -> datetime | None:
    """A pause between two looks, never longer than it was given, whatever the clock did since."""
    return min(moment, now + LOOK_AGAIN) if moment is not None else None
