"""Engines that are broken on purpose, to see that the simulation catches them. Nothing of this is in the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rotator.engine import Engine
from rotator.issuing import Issuing
from rotator.journal.sqlite import Blob
from rotator.lifecycle import advance
from rotator.managed import ManagedKey
from rotator.model import Step, StoredSecret, Strategy
from rotator.ports import Judge, Store
from rotator.rotation import DeactivateDone, IssueDone, Outcome, Rotation
from simulation.fleet import SimVault
from simulation.simulate import Parts


class PromotesBeforeSealing(Engine):
    """Writes the answer to Vault first, and seals it in the journal afterwards."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._issuing.__class__ = _VaultFirst


class _VaultFirst(Issuing):
    def call(self, key: ManagedKey, rotation: Rotation, wrapped: bytes) -> tuple[Outcome, Blob | None]:
        outcome, blob = super().call(key, rotation, wrapped)
        if isinstance(outcome, IssueDone):
            answered = advance(rotation, outcome, self._world.clock.now(), key.limits)
            self._steps.table()[Step.PROMOTE](key, answered)
        return outcome, blob


class RetiresBeforeConfirming(Engine):
    """Makes the old key useless as soon as Vault holds the new one."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        promote, deactivate = self._table[Step.PROMOTE], self._table[Step.DEACTIVATE]

        def both(key: ManagedKey, rotation: Rotation) -> Outcome:
            done = promote(key, rotation)
            if rotation.strategy is Strategy.REPLACE and key.limits.deactivates:
                deactivate(key, rotation)
            return done

        self._table[Step.PROMOTE] = both
        self._table[Step.DEACTIVATE] = lambda key, rotation: DeactivateDone(at=self.world.clock.now())


class RestartsAllAtOnce(Engine):
    """Knows no canaries, batches and windows."""

    def __init__(self, keys: Mapping[str, ManagedKey], *given: Any, **options: Any) -> None:
        hasty = {name: replace(key, limits=replace(key.limits, plans=())) for name, key in keys.items()}
        super().__init__(hasty, *given, **options)


class RestartsBeforeDelivery(Engine):
    """Takes what Vault holds for what consumers read."""

    def __init__(self, keys: Mapping[str, ManagedKey], *given: Any, **options: Any) -> None:
        direct = {
            name: replace(key, consumers=tuple(replace(link, delivery=None) for link in key.consumers))
            for name, key in keys.items()
        }
        super().__init__(direct, *given, **options)


class WithoutCas:
    """A store that writes what it read before, whatever has become of it since: the whole secret, without `cas`."""

    def __init__(self, vault: SimVault) -> None:
        self._vault = vault
        self._seen: dict[str, dict[str, str]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vault, name)

    def read(self, path: str, version: int | None = None) -> StoredSecret:
        stored = self._vault.read(path, version)
        if version is None:
            self._seen.setdefault(path, dict(stored.data or {}))
        return stored

    def put(self, path: str, fields: Mapping[str, str], *, judge: Judge | None = None, known: int | None = None) -> int:
        whole = {**self._seen.get(path, {}), **fields}
        held = self._vault.paths.get(path, [{}])[-1]
        gone = [name for name in held if name not in whole]
        version = self._vault.put(path, whole)
        for name in gone:
            self._vault.paths[path][-1].pop(name, None)
        return version


def without_cas(vault: SimVault) -> Store:
    """That store."""
    broken: Any = WithoutCas(vault)
    store: Store = broken
    return store


BROKEN: Mapping[str, Parts] = {
    "promote before seal": Parts(engine=PromotesBeforeSealing),
    "retire before confirm": Parts(engine=RetiresBeforeConfirming),
    "restart all at once": Parts(engine=RestartsAllAtOnce),
    "restart before delivery": Parts(engine=RestartsBeforeDelivery),
    "write without cas": Parts(store=without_cas),
}
