"""A copy of the journal while it is in use, by SQLite's online backup (sqlite.org/backup.html)."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rotator.errors import JournalFailed
from rotator.journal.database import no_journal, reason_of
from rotator.journal.seal import sync_directory
from rotator.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A backup: bytes, and the id of the key without which what is sealed in it stays closed."""

    size: int
    sealed_by: str | None


def back_up(journal: Path, target: Path) -> Copy:
    """Copy the journal as of its last commit, check the copy, and give it its name; for the owner only.

    A daemon that runs goes on meanwhile. The copy is one file, without a write-ahead log beside it.

    Raises: FileExistsError where there is something at `target`; JournalFailed, JOURNAL_MISSING where there is
        none and JOURNAL_UNREADABLE where it or its copy is damaged; OSError.
    """
    if not journal.exists():
        raise no_journal(journal)
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # the name is ours now
    part = target.with_name(target.name + ".part")
    try:
        # a part that a crash left is begun again
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        part.chmod(0o600)
        sealed_by = _copy(journal, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        target.unlink()
        raise
    sync_directory(target.absolute().parent)
    return Copy(size=target.stat().st_size, sealed_by=sealed_by)


def _copy(journal: Path, part: Path) -> str | None:
    """The copy itself; returns the id of the key that it is sealed by."""
    try:
        with (
            closing(sqlite3.connect(_uri(journal, "ro"), uri=True, timeout=10)) as source,
            closing(sqlite3.connect(_uri(part, "rw"), uri=True)) as copy,
        ):
            source.backup(copy)  # all pages in one go: one snapshot, however fast the daemon writes
            copy.execute("PRAGMA journal_mode=DELETE")
            found = copy.execute("PRAGMA integrity_check").fetchone()[0]
            sealed_by = copy.execute("SELECT value FROM facts WHERE name = 'seal_id'").fetchone()
    except sqlite3.Error as exc:
        raise JournalFailed(f"the journal {journal} can't be copied: {exc}", reason=reason_of(exc)) from exc
    if found != "ok":
        raise JournalFailed(f"the copy of the journal {journal} is damaged: {found}", reason=Reason.JOURNAL_UNREADABLE)
    return bytes(sealed_by[0]).decode() if sealed_by is not None else None


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path.absolute()))}?mode={mode}"
