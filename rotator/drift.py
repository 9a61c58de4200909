"""Drift: Vault no longer holds what this daemon left there. What happened to it has a name; it may be put back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rotator.errors import Conflict
from rotator.frozen import replace
from rotator.keys import KeyRecord, brought_along
from rotator.managed import ManagedKey
from rotator.model import Identity, Secret, StoredSecret, Verdict
from rotator.reasons import Reason
from rotator.world import World

# What the look at Vault finds; every other drift is somebody else's to take away.
IN_VAULT: Final = frozenset(
    {
        Reason.VAULT_DRIFT,
        Reason.VAULT_DELETED,
        Reason.VAULT_DESTROYED,
        Reason.VAULT_OVERWRITTEN,
        Reason.VAULT_CONFLICT,
    }
)
# How many versions below the current one are looked through for ours.
LOOK_BACK: Final = 10


def named(record: KeyRecord, stored: StoredSecret) -> Reason:
    """What became of the version that our last promote made."""
    if stored.data is None:
        return Reason.VAULT_DESTROYED if stored.destroyed or not stored.version else Reason.VAULT_DELETED
    behind = record.vault_version is not None and stored.version < record.vault_version
    return Reason.VAULT_DRIFT if behind else Reason.VAULT_OVERWRITTEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What came of an attempt. `version`: Vault holds ours again, in this one. `rotate`: only a new secret helps."""

    version: int | None = None
    rotate: bool = False
    detail: str = ""


def restore(world: World, key: ManagedKey, record: KeyRecord, stored: StoredSecret) -> Restored:
    """Put our fields back: undelete our version, or copy the newest one whose fingerprint is ours.

    Nothing is put back that the broker refuses, and nothing that works is written over without the broker's word. What
    was deleted can't be read, so it is undeleted before the broker is asked; a version whose secret the last probe
    refused is not.

    Args:
        stored: the current version, which is not as we left it.

    Raises: the store's.
    """
    found, theirs = _ours(world, key, record, stored), key.secret_of(stored.data)
    if found is not None:
        held = key.secret_of(found.data)
        verdict = _verdict(world, key, _who(key, record), held) if held is not None else Verdict.REFUSED
        if found.version == stored.version and verdict is not Verdict.REFUSED:
            return _undeleted(world, key, found)
        if verdict in {Verdict.UNREACHABLE, Verdict.SUBSCRIPTION_REFUSED}:
            return Restored(detail=f"the broker does not say that the previous value still works: {verdict.value}")
        if verdict is None and theirs is not None and theirs != held:
            return Restored(detail="without `verify` nobody can say whether the value that is there now works")
        if verdict in {None, Verdict.ACCEPTED}:
            return _put_back(world, key, stored, found)
    if theirs is not None:
        named = key.identity_in(stored.data, _who(key, record))
        if _verdict(world, key, named, theirs) is not Verdict.REFUSED:
            return Restored(detail="what Vault holds is not ours, and may work: nothing is written over it")
    if key.limits.needs_current:
        return Restored(detail="the platform gives a new secret only for the current one, which Vault no longer holds")
    return Restored(rotate=True, detail="no version that Vault still holds is ours and works")


def restored(record: KeyRecord, version: int) -> KeyRecord:
    """The record where Vault holds our fields again, in `version`.

    The version that counts stays the one that our last promote made: nobody is behind for a copy of it, and what was
    before it is what a rollback goes back to, not what somebody else wrote in between. A Vault that was set back counts
    lower than that; then whoever ran on ours runs on the copy.
    """
    before = record.vault_version
    if before is not None and version >= before:
        return replace(record, drift=None)

    consumers = {name: brought_along(facts, before, version) for name, facts in record.consumers.items()}
    return replace(record, drift=None, vault_version=version, consumers=consumers)


def _ours(world: World, key: ManagedKey, record: KeyRecord, stored: StoredSecret) -> StoredSecret | None:
    """The newest version that holds what we left; our own, where it is only deleted, is undeleted for that."""
    own = record.vault_version or 0
    newest = max(stored.version, own)
    looked = range(newest, max(0, newest - LOOK_BACK), -1)
    for version in (*looked, *([own] if own and own not in looked else [])):  # ours, however deep it lies
        found = stored if version == stored.version else world.store.read(key.path, version)
        deleted = found.version == version and found.data is None and not found.destroyed
        if deleted and version == own and record.verdict is not Verdict.REFUSED:
            world.store.undelete(key.path, version)
            found = world.store.read(key.path, version)
        if found.data is not None and world.fingerprints.of(key.ours(found.data)) == record.fingerprint:
            return found
    return None


def _undeleted(world: World, key: ManagedKey, found: StoredSecret) -> Restored:
    if world.store.read(key.path).version != found.version:
        raise Conflict(f"{key.path} was written again", reason=Reason.VAULT_CONFLICT)
    return Restored(version=found.version, detail=f"version {found.version} was undeleted")


def _put_back(world: World, key: ManagedKey, stored: StoredSecret, found: StoredSecret) -> Restored:
    def judge(current: StoredSecret) -> None:
        if current.version != stored.version:
            raise Conflict(f"{key.path} was written again", reason=Reason.VAULT_CONFLICT)

    ours = {name: value for name, value in key.ours(found.data).items() if isinstance(value, str)}
    version = world.store.put(key.path, ours, judge=judge)
    return Restored(version=version, detail=f"version {found.version} was copied to version {version}")


def _who(key: ManagedKey, record: KeyRecord) -> Identity:
    return record.identity or key.provider.identity(record.id)


def _verdict(world: World, key: ManagedKey, identity: Identity, secret: Secret) -> Verdict | None:
    return key.proof(world.prober, identity, secret).verdict if key.provable else None
