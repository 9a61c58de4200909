"""`rotator recover`: sealed secrets that never reached Vault are written there, while no daemon runs.

A secret is written only where it is the one that counts: a broker that is named must accept it, and the write carries
`cas` as always. Consumers are not restarted here; an open rotation goes on from there with the daemon's next start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rotator.engine import Engine
from rotator.errors import Permanent, RotatorError, Transient
from rotator.journal.sqlite import ERASE
from rotator.keys import KeyRecord
from rotator.managed import ManagedKey
from rotator.model import VERDICT_REASONS, RotationEvent, Verdict
from rotator.promoting import write
from rotator.reasons import Reason
from rotator.rotation import Rotation
from rotator.steps import Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Brings waiting secrets to Vault, over the parts that a daemon would use."""

    engine: Engine

    def recover(self, name: str | None = None) -> list[dict[str, Any]]:
        """Each secret that waits sealed (of one key, or of all), and what became of it; the oldest first.

        A secret that its broker refuses stays sealed where it is.
        """
        journal = self.engine.world.journal
        waiting = [
            rotation
            for rotation in journal.waiting_rotations()
            # a chosen secret that no platform knows yet belongs nowhere
            if rotation.answered_at is not None and (name is None or rotation.key == name)
        ]
        return [self._told(rotation) for rotation in waiting]

    def _told(self, rotation: Rotation) -> dict[str, Any]:
        told: dict[str, Any] = {"key": rotation.key, "rotation": rotation.id, "ok": True, "reason": None, "detail": ""}
        key = self.engine.keys.get(rotation.key)
        if key is None:
            words = "the configuration has no key of this name"
            return {**told, "ok": False, "reason": Reason.NO_SUCH_KEY.value, "detail": words}
        try:
            version = self._bring(key, rotation)
        except RotatorError as exc:
            return {**told, "ok": False, "reason": exc.reason.value, "detail": exc.message, "advice": exc.advice}
        return {**told, "detail": f"{key.path} version {version}", "version": version}

    def _bring(self, key: ManagedKey, rotation: Rotation) -> int:
        """Write one secret; the version that holds it."""
        if rotation.finished_at is None:
            return self.engine.bring_to_vault(key.name)
        world = self.engine.world
        steps = Steps(world)
        secret = steps.secrets.new(rotation)
        if not key.provable:
            words = "its rotation has ended, and there is no `verify` to prove that this secret is still the right one"
            raise Permanent(words, reason=Reason.ROLLBACK_IMPOSSIBLE)
        verdict = key.proof(world.prober, rotation.target, secret).verdict
        reason = VERDICT_REASONS[verdict]
        if reason is not None:
            kind = Transient if verdict is Verdict.UNREACHABLE else Permanent
            raise kind(f"not written, the broker says {verdict.value}", reason=reason)
        fields = key.rendered(rotation.target, secret, expires_at=rotation.new_expires_at)
        version, prints = write(world, key, replace(rotation, expected=None), fields, secret)
        written = replace(rotation, sealed=False, vault_version=version, expected=prints)
        now = world.clock.now()
        event = RotationEvent(at=now, key=key.name, provider=key.provider.name, name="recovered", rotation=rotation.id)

        def change(old: KeyRecord | None) -> KeyRecord:
            known = old if old is not None else KeyRecord(name=key.name, provider=key.provider.name, id=key.id)
            mine = tuple(sorted(key.fields))
            return replace(
                known, adopted=True, vault_version=version, fingerprint=prints, fields=mine, drift=None, wake_at=now
            )

        world.journal.save(key=key.name, change=change, rotation=written, blob=ERASE, history=[event])
        return version
