"""The copy of the journal: whole, checked, for the owner only, and made while somebody writes."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rotator.errors import JournalFailed
from rotator.journal.backup import back_up
from rotator.journal.keeping import start_anew
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import KeyRecord
from rotator.model import RotationEvent
from rotator.reasons import Reason

NOW = datetime(2026, 3, 24, 12, 0, tzinfo=UTC)
KEY = KeyRecord(name="building-a", provider="acme", id="id-1", vault_version=3)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    """A journal with one key, open."""
    with closing(SqliteJournal(f"sqlite:///{tmp_path}/state/rotator.db")) as made:
        made.save(key=KEY.name, change=lambda _old: KEY)
        start_anew(made, "0123456789abcdef")
        yield made


def test_a_copy_is_a_whole_journal(journal: SqliteJournal, tmp_path: Path) -> None:
    """One file, 0600, with everything that was committed; it says which seal key belongs to it."""
    target = tmp_path / "backups" / "monday.db"
    target.parent.mkdir()
    made = back_up(journal.path, target)
    assert (target.stat().st_size, "0123456789abcdef") == (made.size, made.sealed_by)
    assert ([target], 0o600) == (list(target.parent.iterdir()), stat.S_IMODE(target.stat().st_mode))
    assert b"\1\1" == target.read_bytes()[18:20]  # its format: without a write-ahead log (sqlite.org/fileformat.html)
    with closing(SqliteJournal(f"sqlite:///{target}")) as copy:
        assert [KEY] == copy.all_keys()


def test_a_copy_is_made_beside_a_writer(journal: SqliteJournal, tmp_path: Path) -> None:
    """Writes go on meanwhile, and the copy is the journal as of one commit: its events have no hole."""
    written, done = threading.Event(), threading.Event()

    def write() -> None:
        for number in range(100_000):
            event = RotationEvent(at=NOW, key="building-a", provider="acme", name="step", detail=str(number))
            journal.save(history=[event])
            if number == 20:
                written.set()
            if done.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(30)
        back_up(journal.path, tmp_path / "copy.db")
    finally:
        done.set()
        writer.join(30)
    with closing(SqliteJournal(f"sqlite:///{tmp_path}/copy.db")) as copy:
        numbers = [int(event["detail"]) for event in copy.history(limit=1_000_000)]
    assert numbers == list(range(len(numbers)))[::-1]
    assert 20 < len(numbers) <= len(journal.history(limit=1_000_000))


def test_nothing_is_overwritten(journal: SqliteJournal, tmp_path: Path) -> None:
    """A backup of yesterday stays as it is, and so does the journal itself."""
    target = tmp_path / "copy.db"
    target.write_bytes(b"yesterday")
    for there in (target, journal.path):
        with pytest.raises(FileExistsError):
            back_up(journal.path, there)
    assert (b"yesterday", [KEY]) == (target.read_bytes(), journal.all_keys())
    assert not target.with_name("copy.db.part").exists()


def test_a_part_that_a_crash_left_is_no_hindrance(journal: SqliteJournal, tmp_path: Path) -> None:
    """It is begun again, and for the owner only, whoever could read the old one."""
    part = tmp_path / "copy.db.part"
    part.write_bytes(b"half of it")
    part.chmod(0o644)
    back_up(journal.path, tmp_path / "copy.db")
    assert (False, 0o600) == (part.exists(), stat.S_IMODE((tmp_path / "copy.db").stat().st_mode))


def test_without_a_journal_nothing_is_made(tmp_path: Path) -> None:
    """Neither a journal nor an empty copy of one."""
    with pytest.raises(JournalFailed) as caught:
        back_up(tmp_path / "rotator.db", tmp_path / "copy.db")
    assert (Reason.JOURNAL_MISSING, []) == (caught.value.reason, list(tmp_path.iterdir()))


def test_a_damaged_journal_is_not_passed_on(journal: SqliteJournal, tmp_path: Path) -> None:
    """The copy is checked before it gets its name, and nothing of it is left."""
    events = [RotationEvent(at=NOW, key=f"key-{number % 7}", provider="acme", name="step") for number in range(200)]
    journal.save(history=events)
    journal.close()
    with closing(sqlite3.connect(journal.path)) as database:
        (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_events_key'").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with journal.path.open("rb+") as file:
        file.seek((root - 1) * size + size // 2)
        file.write(b"\xff" * (size // 2))
    with pytest.raises(JournalFailed) as caught:
        back_up(journal.path, tmp_path / "copy.db")
    assert Reason.JOURNAL_UNREADABLE == caught.value.reason
    assert [] == list(tmp_path.glob("copy*"))


def test_what_is_no_journal_is_not_copied(tmp_path: Path) -> None:
    """A file of something else."""
    other = tmp_path / "rotator.db"
    other.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(JournalFailed):
        back_up(other, tmp_path / "copy.db")
    assert [other] == list(tmp_path.iterdir())
