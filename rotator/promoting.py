"""Making a secret Vault's current version without overwriting anybody (rule 3)."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from rotator.errors import Conflict, Permanent, RotatorError, Transient
from rotator.managed import ManagedKey
from rotator.model import Secret, StoredSecret, Verdict
from rotator.ports import Judge
from rotator.reasons import Reason
from rotator.rotation import Rotation
from rotator.world import World

log = structlog.get_logger(__name__)


def write(
    world: World, key: ManagedKey, rotation: Rotation, fields: Mapping[str, str], secret: Secret
) -> tuple[int, str]:
    """Make `fields`, which hold `secret`, current by `cas`; the version, and the fingerprint of our fields now.

    What preflight saw, where it held nothing but our fields, is written over without being read again.

    Raises: Conflict where our fields are neither what the rotation left there nor `fields`, and the broker does not
        say that ours are the right ones; the store's.
    """

    def judge(stored: StoredSecret) -> None:
        if rotation.expected is None or world.on_conflict_take_over:
            return
        if world.fingerprints.of(key.ours(stored.data)) == rotation.expected:
            return
        if not _ours_is_right(world, key, rotation, stored, secret):
            words = f"somebody else changed our fields at {key.path}, in version {stored.version}"
            raise Conflict(words, reason=Reason.VAULT_CONFLICT)
        log.warning("conflict_settled_by_the_broker", key=key.name, path=key.path, version=stored.version)

    untouched = rotation.base_alone and rotation.expected is not None and rotation.expected == rotation.base_print
    known = rotation.base_version if untouched else None
    try:
        version = world.store.put(key.path, fields, judge=judge, known=known)
    except Permanent as exc:
        if exc.reason is not Reason.VAULT_DENIED:
            raise
        raise _explained(world, key, rotation, exc) from exc
    except Transient as exc:
        if exc.reason is not Reason.VAULT_CONFLICT:
            raise
        # others write fields of their own all the time: nobody touched ours, so this is no drift, and is tried soon
        raise Transient(exc.message, reason=Reason.VAULT_UNAVAILABLE, retry_after=exc.retry_after) from exc
    return version, world.fingerprints.of(fields)


def _explained(world: World, key: ManagedKey, rotation: Rotation, refused: Permanent) -> Permanent:
    """A refused write with the policy lines that are missing: preflight knows them, and is asked once."""
    if rotation.reason is Reason.VAULT_DENIED and rotation.detail:
        return Permanent(rotation.detail, reason=Reason.VAULT_DENIED)
    try:
        world.store.preflight(key.path)
    except RotatorError as exc:
        if isinstance(exc, Permanent) and exc.reason is Reason.VAULT_DENIED:
            return exc
    return refused


def _ours_is_right(world: World, key: ManagedKey, rotation: Rotation, stored: StoredSecret, secret: Secret) -> bool:
    """Whether the broker refuses what somebody else left in Vault, and accepts ours."""
    if not key.provable:
        return False
    theirs = key.secret_of(stored.data)
    if theirs is not None:
        # theirs may be a secret of the old identity, or of another key altogether
        names = {key.identity_in(stored.data, usual) for usual in (rotation.target, rotation.identity)}
        if any(key.proof(world.prober, each, theirs).verdict is not Verdict.REFUSED for each in names):
            return False
    return key.proof(world.prober, rotation.target, secret).verdict is Verdict.ACCEPTED


def only_over(path: str, held: Mapping[str, object], names: Mapping[str, object]) -> Judge:
    """Lets a write through only where the fields `names` still hold what they held."""

    def judge(stored: StoredSecret) -> None:
        data = stored.data or {}
        changed = sorted(name for name in names if data.get(name) != held.get(name))
        if changed:
            words = f"version {stored.version} of {path}, by somebody else, changed {', '.join(changed)}"
            raise Conflict(f"vault: {words}", reason=Reason.VAULT_CONFLICT)

    return judge
