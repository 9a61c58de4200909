"""What a key's steps have changed and the journal has not been told yet: written with the next step that can't wait.

A durable commit costs as much as all else that the engine does in a step. A step that may run again at no cost (a look,
a write of the same version) is written with the one after it; what a dead process left unwritten runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rotator.errors import JournalFailed
from rotator.journal.rows import Blob, Erase
from rotator.journal.sqlite import Change, SqliteJournal
from rotator.keys import KeyRecord
from rotator.managed import ManagedKey
from rotator.model import RotationEvent, Step, Strategy
from rotator.rotation import Rotation

# Steps whose record may wait: running one again finds what it did before, or does it again to no harm.
REPEATABLE = frozenset({Step.PREFLIGHT, Step.CHOOSE, Step.PROBE, Step.PROMOTE, Step.DELIVER, Step.CONFIRM, Step.SETTLE})
# Steps that may run before the ones ahead of them are written; ISSUE and RESTART write them with their own intent.
_UNGUARDED = REPEATABLE | {Step.ISSUE, Step.RESTART, Step.FINISH}


def must_be_written(rotation: Rotation, step: Step) -> bool:
    """Whether what came before `step` has to be durable first."""
    if step is Step.ISSUE:
        # An orphan is found by its rotation's id, and a secret of our choice by its blob: neither may be lost with the
        # intent of the call.
        return rotation.strategy is not Strategy.IN_PLACE
    if step is Step.PROMOTE:
        # A probe that were to run again might be refused by then, and the rotation taken back as if Vault had never
        # heard of it.
        return rotation.strategy is Strategy.REPLACE
    return step not in _UNGUARDED


@dataclass(slots=True)
class Draft:
    """Collects what one `save` will write."""

    rotation: Rotation | None = None
    data_key: bytes | None = None
    blob: Blob | Erase | None = None
    begins: bool = False  # the journal does not know the rotation at all yet
    history: list[RotationEvent] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    step: Change | None = None  # what the last step means for its key; says all that the steps before it said
    _applied: tuple[KeyRecord | None, KeyRecord | None] | None = None  # a committed record, and what becomes of it

    def add(
        self,
        *,
        change: Change | None = None,
        step: Change | None = None,
        rotation: Rotation | None = None,
        data_key: bytes | None = None,
        blob: Blob | Erase | None = None,
        history: Sequence[RotationEvent] = (),
    ) -> None:
        """What one more step changed; later values take the place of earlier ones."""
        if change is not None:
            # after a step's, which no later one speaks for then
            self.changes += [change] if self.step is None else [self.step, change]
            self.step = self._applied = None
        self.step = step or self.step
        self.rotation = rotation or self.rotation
        self.data_key = data_key or self.data_key
        self.blob = blob or self.blob
        self.history += history

    def commit(self, journal: SqliteJournal, key: str) -> None:
        """Write it, all or nothing. Raises: JournalFailed."""
        if not self.changes and self.step is None:
            journal.save(rotation=self.rotation, data_key=self.data_key, blob=self.blob, history=self.history)
            return
        journal.save(
            key=key,
            change=self._changed,
            rotation=self.rotation,
            data_key=self.data_key,
            blob=self.blob,
            history=self.history,
        )

    def _changed(self, committed: KeyRecord | None) -> KeyRecord:
        record = self.record(committed)
        record = record if self.step is None else self.step(record)
        assert record is not None, "each change makes a record"
        return record

    def record(self, committed: KeyRecord | None) -> KeyRecord | None:
        """`committed`, which somebody else may have changed, as it will be but for what the last step says."""
        if self._applied is None or self._applied[0] is not committed:
            record = committed
            for change in self.changes:
                record = change(record)
            self._applied = (committed, record)
        return self._applied[1]


class Drafts:
    """The drafts of all keys that are worked on now, by name; each is its worker's alone."""

    def __init__(self, journal: SqliteJournal, abandon: Callable[[Rotation], None]) -> None:
        """`abandon`: told of a rotation that the journal did not take, so that it never came to be."""
        self._journal, self._abandon = journal, abandon
        self._drafts: dict[str, Draft] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._drafts))

    def get(self, name: str) -> Draft | None:
        """What waits to be written for a key."""
        return self._drafts.get(name)

    def drop(self, name: str) -> None:
        """Forget what waits for a key: it is written, or its steps run again."""
        self._drafts.pop(name, None)

    def now(self, key: ManagedKey) -> tuple[KeyRecord | None, Rotation | None]:
        """The key and its open rotation, as the steps so far have left them."""
        draft = self._drafts.get(key.name)
        record, rotation = self._journal.key(key.name), draft.rotation if draft is not None else None
        if draft is not None and draft.changes:
            record = draft.record(record)  # what the steps say of it is of no matter to what comes next
        return record, rotation or self._journal.open_rotation(key.name)

    def note(self, key: ManagedKey, rotation: Rotation | None, change: Change | None = None, **more: Any) -> Draft:
        """Keep what a step did until the next `save`; `more` as `Draft.add` has it."""
        draft = self._drafts.setdefault(key.name, Draft())
        draft.add(rotation=rotation, change=change, **more)
        return draft

    def save(
        self, key: ManagedKey, rotation: Rotation | None = None, change: Change | None = None, **more: Any
    ) -> None:
        """Commit this, and with it what was noted before. Raises: JournalFailed."""
        self.note(key, rotation, change, **more)
        self.write(key)

    def write(self, key: ManagedKey) -> None:
        """Commit what was noted. A journal that refuses it has it forgotten: the steps run again.

        Raises: JournalFailed.
        """
        draft = self._drafts.get(key.name)
        if draft is None:
            return
        try:
            draft.commit(self._journal, key.name)
        except JournalFailed:
            if draft.begins and draft.rotation is not None:
                self._abandon(draft.rotation)
            raise
        finally:
            self.drop(key.name)


def or_blank(record: KeyRecord | None, key: ManagedKey) -> KeyRecord:
    """A key's record, or a blank one where somebody has just dropped it."""
    return record if record is not None else KeyRecord(name=key.name, provider=key.provider.name, id=key.id)
