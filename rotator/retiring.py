"""The steps that take something away: the old key's end (replace), and the way back to the old secret.

Each may be repeated: what is done already is success.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import cast

from rotator.errors import Permanent, Transient, UnknownOutcome
from rotator.keys import later
from rotator.managed import ManagedKey
from rotator.model import Step, Strategy, Verdict
from rotator.ports import Evicting
from rotator.promoting import write
from rotator.reasons import Reason
from rotator.rotation import (
    CleanDone,
    DeactivateDone,
    DeleteDone,
    Failed,
    FinishDone,
    Outcome,
    ReactivateDone,
    ReconfirmDone,
    RevertDone,
    Rotation,
    WayBackDone,
)
from rotator.steps import Steps, choosing, find, marked, replacing, stayed_up
from rotator.world import World

# How soon a clock that is off is looked at again.
_SKEW_PAUSE = timedelta(seconds=30)


class Retiring:
    """Runs these steps."""

    def __init__(self, world: World, steps: Steps) -> None:
        self._world, self._steps = world, steps

    def table(self) -> dict[Step, Callable[[ManagedKey, Rotation], Outcome]]:
        """Step → what does it."""
        return {
            Step.DEACTIVATE: self._deactivate,
            Step.RECONFIRM: self._reconfirm,
            Step.DELETE: self._delete,
            Step.REACTIVATE: self._reactivate,
            Step.WAY_BACK: self._way_back,
            Step.REVERT: self._revert,
            Step.CLEAN: self._clean,
            Step.FINISH: self._finish,
        }

    def _deactivate(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        self._new_key_stands(key, rotation)
        if not rotation.consumers:
            self._grace_is_over(key, rotation)
        replacing(key).deactivate(rotation.identity)
        return DeactivateDone(at=self._world.clock.now())

    def _reconfirm(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Each consumer once more, now that the old secret is useless (rule 5)."""
        seen = self._steps.evidence.reconfirm(key, rotation)
        if not isinstance(seen, ReconfirmDone) or seen.blind:
            return seen
        _up, changed, failed = stayed_up(key, rotation)
        if failed is not None and failed.reason is Reason.CONSUMER_CRASHED:
            # the proof was hours ago: a deploy or a reboot since says nothing of the secret, so it is proven anew
            return ReconfirmDone(blind=changed)
        return failed if failed is not None else seen

    def _delete(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """What can't be undone is checked first: the new key is there, and the clock that said so is right."""
        self._new_key_stands(key, rotation)
        self._grace_is_over(key, rotation)
        replacing(key).delete(rotation.identity.id)
        return DeleteDone(at=self._world.clock.now())

    def _grace_is_over(self, key: ManagedKey, rotation: Rotation) -> None:
        """Raise where the clock that says so can't be trusted."""
        peer = self._world.skew.off(key.provider.name, "vault")
        if peer is not None and not rotation.forced:
            words = f"this host's clock and {peer}'s are too far apart to say that the grace period is over"
            raise Transient(words, reason=Reason.CLOCK_SKEW, retry_after=_SKEW_PAUSE)

    def _new_key_stands(self, key: ManagedKey, rotation: Rotation) -> None:
        """Raise where the provider does not show the new key as usable, or Vault holds the old one's secret again."""
        new = find(key.provider.list_keys(), rotation.target.id)
        if new is None:
            raise Permanent(f"{key.provider.name} does not list {rotation.target.id}", reason=Reason.KEY_UNKNOWN)
        if new.problem is not None:
            raise Permanent(f"{key.provider.name}: {rotation.target.id}: {new.problem.value}", reason=new.problem)
        held = key.ours(self._world.store.read(key.path).data)
        if rotation.base_print is not None and self._world.fingerprints.of(held) == rotation.base_print:
            words = (
                f"Vault holds the old key's secret again at {key.path}: retiring it would leave consumers with nothing"
            )
            raise Permanent(words, reason=Reason.VAULT_OVERWRITTEN)

    def _reactivate(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        replacing(key).reactivate(rotation.identity)
        return ReactivateDone()

    def _way_back(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Does the old secret still work? A chosen one is set again first."""
        held = self._steps.secrets.previous(key, rotation)
        if held is None:
            return WayBackDone(verdict=None, held=False)
        if rotation.strategy is Strategy.CHOSEN:
            try:
                choosing(key).set_secret(rotation.identity, held[0])
            except UnknownOutcome as exc:  # safe to repeat
                return Failed(reason=exc.reason, detail=exc.message)
        if not key.provable:
            return WayBackDone(verdict=None, held=True)
        result = key.proof(self._world.prober, rotation.identity, held[0])
        return WayBackDone(verdict=result.verdict, held=True, detail=result.detail)

    def _revert(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """The previous data as a new version, by `cas`; other fields of the path stay as they are."""
        if rotation.promoted_at is None:
            # a promote may have been done whose record was not
            new, secret = rotation.new_identity or rotation.identity, self._steps.secrets.new(rotation)
            fields = key.rendered(new, secret, expires_at=rotation.new_expires_at)
            if key.ours(self._world.store.read(key.path).data) != fields:
                return RevertDone(version=None)
            rotation = replace(rotation, expected=self._world.fingerprints.of(fields))
        held = self._steps.secrets.previous(key, rotation)
        if held is None:
            raise Permanent("Vault no longer holds the previous secret", reason=Reason.ROLLBACK_FAILED)
        version, prints = write(self._world, key, rotation, held[1], held[0])
        return RevertDone(version=version, expected=prints)

    def _clean(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Delete what this rotation made and nobody uses; never the key itself."""
        for id in rotation.orphans:
            if id != rotation.target.id:
                replacing(key).delete(id)
        return CleanDone()

    def _finish(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Old sessions end. Did somebody issue after us (rule 4), and did a key of ours appear late?"""
        if key.provider.abilities.evicts and rotation.promoted_at is not None:
            # the consumers are proven on the new secret; who came in with the old one is somebody else, or one of ours
            # that has to come back with the new one
            cast("Evicting", key.provider).evict(rotation.target, rotation.promoted_at)
        listed = key.provider.list_keys()
        if rotation.strategy is Strategy.REPLACE:
            orphans = marked(listed, rotation)
            return FinishDone(orphans=orphans, old_alive=not orphans and self._old_alive(key, rotation))
        upstream = find(listed, rotation.target.id)
        theirs = upstream.issued_at if upstream is not None else None
        elsewhere = later(theirs, rotation.new_issued_at)
        return FinishDone(issued_elsewhere=elsewhere, old_alive=not elsewhere and self._old_alive(key, rotation))

    def _old_alive(self, key: ManagedKey, rotation: Rotation) -> bool:
        """The negative proof: does the broker still let the old secret in, now that it should be useless?

        Raises: Transient BROKER_UNREACHABLE; the store's.
        """
        done = rotation.answers > 0 and rotation.rolling_back is None
        dead = rotation.strategy is Strategy.REPLACE or key.limits.kills_old
        if not (done and dead and key.provable):
            return False
        held = self._steps.secrets.previous(key, rotation)
        if held is None or held[0] == self._steps.secrets.current(key, rotation):
            return False
        verdict = key.proof(self._world.prober, rotation.identity, held[0]).verdict
        if verdict is Verdict.UNREACHABLE:
            words = "the broker can't be asked whether the old secret is refused"
            raise Transient(words, reason=Reason.BROKER_UNREACHABLE)
        return verdict is not Verdict.REFUSED
