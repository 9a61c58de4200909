"""The real journal and the real spool, tapped: the stage hears of each commit, and can let them meet real troubles."""

from __future__ import annotations

import errno
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rotator.errors import JournalFailed
from rotator.journal.database import driver_of
from rotator.journal.spool import Spool
from rotator.journal.sqlite import Blob, Change, Erase, SqliteJournal
from rotator.keys import KeyRecord
from rotator.model import RotationEvent, Step
from rotator.rotation import Rotation
from simulation.world import START

FULL, LOCKED = "full", "locked"
_NO_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class Commit:
    """What one `save` is about to write, or has written."""

    key: str | None
    rotation: Rotation | None
    blob: Blob | Erase | None
    history: Sequence[RotationEvent]

    @property
    def steps(self) -> list[Step]:
        """The steps whose outcomes it records, in their order."""
        return [event.step for event in self.history if event.name == "step" and event.step is not None]

    @property
    def is_intent(self) -> bool:
        """Whether it says, before its effect, that a step is about to be run; it may record the steps before that."""
        rotation = self.rotation
        if rotation is None or rotation.finished_at is not None or rotation.reason is not None:
            return False
        if rotation.step is Step.ISSUE:
            return rotation.calling_since is not None and Step.ISSUE not in self.steps
        return rotation.step is Step.RESTART and Step.RESTART not in self.steps

    @property
    def takes_back(self) -> bool:
        """Whether it brings a spooled answer back into the journal."""
        return self.key is None and isinstance(self.blob, Blob)

    @property
    def holds_answer(self) -> bool:
        """Whether it seals the secret that a provider has just issued."""
        return isinstance(self.blob, Blob) and self.rotation is not None and self.rotation.answers > 0


class Listener(Protocol):
    """Who hears of commits."""

    spool_refuses: bool

    def saving(self, commit: Commit) -> None: ...

    def saved(self, commit: Commit) -> None: ...

    def not_saved(self, commit: Commit) -> None: ...

    def kept_answer(self, rotation: Rotation) -> None: ...


class TappedJournal(SqliteJournal):
    """The journal. `trouble` is what the next commit meets."""

    def __init__(self, directory: Path, listener: Listener) -> None:
        self._listener = listener
        self.trouble = ""
        super().__init__(f"sqlite:///{directory}/rotator.db")

    def save(
        self,
        *,
        key: str | None = None,
        change: Change | None = None,
        rotation: Rotation | None = None,
        data_key: bytes | None = None,
        blob: Blob | Erase | None = None,
        history: Sequence[RotationEvent] = (),
    ) -> KeyRecord | None:
        commit = Commit(key, rotation, blob, history)
        self._listener.saving(commit)
        try:
            with self._trouble_met() as padding:
                record = super().save(
                    key=key,
                    change=change,
                    rotation=rotation,
                    data_key=data_key,
                    blob=blob,
                    history=[*history, *padding],
                )
        except JournalFailed:
            self._listener.not_saved(commit)
            raise
        self._listener.saved(commit)
        return record

    def end_of_log(self) -> int:
        """Where the last commit ends in the write-ahead log, whose file is longer; 0 for an empty log."""
        index = self.path.with_name("rotator.db-shm").read_bytes()
        page, frames = struct.unpack_from("=HI", index, 14)  # SQLite's WalIndexHdr: szPage, mxFrame
        return 32 + frames * (24 + page) if frames else 0

    @contextmanager
    def _trouble_met(self) -> Iterator[Sequence[RotationEvent]]:
        """SQLite's own SQLITE_FULL or SQLITE_BUSY for one commit; yields what makes it too large for the full file."""
        trouble, self.trouble = self.trouble, ""
        if trouble == FULL:
            with self._limited("max_page_count", self._pragma("page_count"), _NO_LIMIT):
                yield [RotationEvent(at=START, key="", provider="", name="large", detail="x" * 100_000)]
        elif trouble == LOCKED:
            with self._limited("busy_timeout", 10, 10_000), closing(sqlite3.connect(self.path)) as other:
                other.execute("BEGIN IMMEDIATE")
                yield ()
        else:
            yield ()

    @contextmanager
    def _limited(self, pragma: str, limit: int, usual: int) -> Iterator[None]:
        self._pragma(f"{pragma}={limit}")
        try:
            yield
        finally:
            self._pragma(f"{pragma}={usual}")

    def _pragma(self, statement: str) -> int:
        with self._writing().between() as connection:
            row = driver_of(connection).execute(f"PRAGMA {statement}").fetchone()
        return int(row[0]) if row else 0


class TappedSpool(Spool):
    """The spool. `has_room` False: the next time that room is set aside there is none."""

    def __init__(self, directory: Path, listener: Listener) -> None:
        super().__init__(directory)
        self._listener = listener
        self.has_room = True

    def reserve(self, rotation: str) -> None:
        if not self.has_room:
            self.has_room = True
            raise OSError(errno.ENOSPC, "no space left on device")
        super().reserve(rotation)

    def write(self, rotation: Rotation, data_key: bytes, blob: Blob) -> bool:
        written = not self._listener.spool_refuses and super().write(rotation, data_key, blob)
        if written:
            self._listener.kept_answer(rotation)
        return written
