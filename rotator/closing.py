"""The end of a rotation, however it comes: what it held is given back, and who waited for that is woken."""

from __future__ import annotations

from collections.abc import Callable

from rotator.aftermath import told
from rotator.beginnings import Beginnings
from rotator.claims import ConsumerClaims
from rotator.draft import Drafts, or_blank
from rotator.frozen import replace
from rotator.issuing import Issuing
from rotator.journal.sqlite import ERASE_SOON, Change, Erase
from rotator.keys import KeyRecord
from rotator.managed import Fleet, ManagedKey
from rotator.model import Result, RotationEvent
from rotator.reasons import Reason
from rotator.rotation import Rotation
from rotator.steps import Steps
from rotator.world import World


class Closing:
    """Ends rotations."""

    def __init__(
        self,
        world: World,
        keys: Fleet,
        *,
        drafts: Drafts,
        steps: Steps,
        issuing: Issuing,
        sharing: ConsumerClaims,
        beginnings: Beginnings,
        emit: Callable[[RotationEvent], None],
    ) -> None:
        self._world, self._keys, self._drafts = world, keys, drafts
        self._steps, self._issuing, self._sharing, self._beginnings = steps, issuing, sharing, beginnings
        self._emit = emit

    def give_up(self, key: ManagedKey, rotation: Rotation) -> None:
        """A secret that was refused to the end of its life: close its rotation, so that one more may be begun."""
        self._fail(
            key, rotation, lambda old: replace(or_blank(old, key), quarantine=rotation.quarantine), rotation.quarantine
        )

    def call_off(self, key: ManagedKey, rotation: Rotation) -> None:
        """Nothing was issued: end it, and begin another one when the key is due."""

        def change(old: KeyRecord | None) -> KeyRecord:
            record = or_blank(old, key)
            return replace(record, last_chance_used=record.last_chance_used and record.quarantine is None)

        # a chosen secret of which nobody has heard waits for nobody
        self._fail(key, replace(rotation, sealed=False), change, rotation.reason)

    def let_go(self, key: ManagedKey, rotation: Rotation) -> None:
        """Give back what an ended or failing rotation held, and wake the keys that waited for it."""
        if rotation.finished_at is not None:
            self._steps.forget(rotation)
            self._beginnings.forget(rotation)
            if rotation.issues == 0:
                self._world.seal.forget(self._world.journal.data_key(rotation.id))
                self._issuing.forget(rotation)
            if self._issuing.spool.holds(rotation.id):
                self._issuing.spool.release(rotation.id)
        now = self._world.clock.now()
        settled = now + key.limits.settle
        for name in self._sharing.give_back(key, now, settled):
            self._world.journal.save(
                key=name,
                change=lambda old, name=name: replace(or_blank(old, self._keys[name]), wake_at=settled),  # type: ignore[misc]
            )

    def _fail(self, key: ManagedKey, rotation: Rotation, change: Change, reason: Reason | None) -> None:
        now = self._world.clock.now()
        ended = replace(rotation, finished_at=now, result=Result.FAILED, not_before=None)
        event = told(ended, "rotation_ended", now, result=Result.FAILED.value, reason=reason)
        self._drafts.save(key, ended, change, history=[event])
        self.let_go(key, ended)
        self._emit(event)


def erase_when_done(rotation: Rotation) -> Erase | None:
    """Erased from the journal when done: the secret is in Vault, or it was taken back and nobody uses it."""
    if rotation.finished_at is None or rotation.sealed:
        return None
    return ERASE_SOON if rotation.vault_version is not None or rotation.result is Result.ROLLED_BACK else None
