"""Keys that a `discover` entry stands for: taken on when the platform lists them, known again after a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import structlog

from rotator.config_keys import Selection
from rotator.config_models import KeySettings
from rotator.discovery import called, ids_of, name_for
from rotator.engine import Engine
from rotator.journal.sqlite import SqliteJournal
from rotator.managed import ManagedKey
from rotator.model import UpstreamKey
from rotator.reasons import ADVICE, Reason
from rotator.rotation import Rotation
from rotator.settings import Settings

log = structlog.get_logger(__name__)

# The name of the new key, its settings, and what the platform calls it.
MakeKey = Callable[[str, KeySettings, str], ManagedKey]


def remembered(settings: Settings, journal: SqliteJournal, make: MakeKey) -> Iterator[ManagedKey]:
    """The keys that were found earlier and that a selection still stands for; no platform need answer for them.

    One whose id has an entry of its own now belongs to that entry.
    """
    named = {(key.provider, key.id) for key in settings.keys.values()}
    for record in journal.all_keys():
        selection = settings.selection_of(record.provider, record.listed_as) if record.listed_as else None
        ids = record.ids or (record.id,)
        if selection is None or record.name in settings.keys or any((record.provider, id) in named for id in ids):
            continue
        key = selection.discover.template.key(record.name, record.provider, ids[0])
        yield make(record.name, key, record.listed_as)


class Selections:
    """Keeps the managed keys in step with the platforms' lists.

    Keys are only added: one that vanishes from the list has the problem KEY_UNKNOWN, as any other key has, until
    somebody excludes it from the selection.

    Args:
        settings: with the selections.
        engine: takes on what is found.
        make: wires a key.
    """

    def __init__(self, settings: Settings, engine: Engine, make: MakeKey) -> None:
        self._settings, self._engine, self._make = settings, engine, make
        self._told: set[tuple[str, str]] = set()

    def follow(self, provider: str, listed: Sequence[UpstreamKey]) -> None:
        """Take on the keys of this list that a selection covers and nobody manages yet."""
        if not any(selection.provider == provider for selection in self._settings.selections.values()):
            return
        managed = self._managed(provider)
        owned = {called(upstream) for upstream in listed if upstream.id in managed}
        stems = [rotation.marker_stem for rotation in self._engine.world.journal.open_rotations().values()]
        # those that no rotation made come first: beside its copy, the original is the key
        for upstream in sorted(listed, key=lambda each: bool(each.marker)):
            name = called(upstream)
            selection = self._settings.selection_of(provider, name)
            if selection is None or upstream.id in managed:
                self._tell_of_doubles(provider, upstream, managed.get(upstream.id))
            elif upstream.problem is not None:
                self._tell(provider, upstream, upstream.problem, "not taken on while it can't serve")
            elif not (upstream.marker and (name in owned or upstream.marker.startswith(tuple(stems)))):
                self._take_on(provider, upstream, name, selection)
                owned.add(name)

    def _managed(self, provider: str) -> dict[str, ManagedKey]:
        """By id: all that the keys of this provider have or ever had."""
        journal = self._engine.world.journal
        rotations: dict[str, Rotation] = dict(journal.open_rotations())
        found: dict[str, ManagedKey] = {}
        for key in self._engine.keys.values():
            record = journal.key(key.name) if key.provider.name == provider else None
            if record is not None:
                ids = {key.id, *record.ids, *ids_of(record, rotations.get(key.name))}
                found.update(dict.fromkeys(ids, key))
        return found

    def _take_on(self, provider: str, upstream: UpstreamKey, called: str, selection: Selection) -> None:
        taken = {*self._settings.keys, *self._settings.selections, *self._engine.keys}
        template = selection.discover.template
        while True:
            name = name_for(upstream, taken)
            settings = template.key(name, provider, upstream.id)
            if not self._writes_anothers_field(settings):
                break
            taken.add(name)
        self._engine.take_on(self._make(name, settings, called))

    def _writes_anothers_field(self, settings: KeySettings) -> bool:
        """Whether some other key has a field at this path in Vault that this one would write."""
        target = settings.vault
        return any(
            key.path == target.path and key.fields.keys() & target.fields.keys() for key in self._engine.keys.values()
        )

    def _tell_of_doubles(self, provider: str, upstream: UpstreamKey, owner: ManagedKey | None) -> None:
        """A key that a selection covers, and that an entry of its own manages."""
        covered = self._settings.selection_of(provider, called(upstream)) is not None
        if covered and owner is not None and not owner.listed_as:
            self._tell(provider, upstream, None, f"keys.{owner.name} manages it already")

    def _tell(self, provider: str, upstream: UpstreamKey, reason: Reason | None, why: str) -> None:
        """Once for each key and cause."""
        if (upstream.id, why) in self._told:
            return
        self._told.add((upstream.id, why))
        tell = partial(log.warning, "discover_skipped", provider=provider, id=upstream.id, name=called(upstream))
        if reason is None:
            tell(detail=why)
        else:
            tell(reason=reason.value, detail=why, advice=ADVICE[reason])
