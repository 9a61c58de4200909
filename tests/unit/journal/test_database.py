"""The journal's file: who may open it, who may write it, and what it is refused for."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from journal_records import KEY, as_it_is, event, known, writing
from rotator.errors import JournalFailed, JournalLocked
from rotator.journal.database import locked, reason_of
from rotator.journal.sqlite import SqliteJournal
from rotator.reasons import Reason


def test_files_are_for_their_owner_only(journal: SqliteJournal) -> None:
    """The database, its log and its shared memory."""
    journal.save(history=[event()])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in journal.path.parent.iterdir()}
    assert dict.fromkeys(("rotator.db", "rotator.db-wal", "rotator.db-shm"), 0o600) == modes


def test_durability_is_what_the_rules_ask_for(journal: SqliteJournal) -> None:
    """WAL, synchronous=FULL (2), secure_delete: on the connection that writes."""
    with writing(journal) as connection:
        found = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "secure_delete")
        }
    assert {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1} == found


def test_a_reader_sees_commits_while_the_daemon_writes(journal: SqliteJournal, url: str) -> None:
    """Opened before the writes; it neither blocks them nor is blocked."""
    with closing(SqliteJournal(url, read_only=True)) as reader:
        for number in range(20):
            journal.save(key=KEY.name, change=as_it_is(replace(KEY, failures=number)), history=[event()])
            assert number == known(reader.key(KEY.name)).failures
        assert 20 == len(reader.history())


def test_a_reader_opens_the_journal_of_a_daemon_that_has_ended(journal: SqliteJournal, url: str) -> None:
    """The log and the shared memory are gone then."""
    journal.save(key=KEY.name, change=as_it_is(KEY))
    journal.close()
    with closing(SqliteJournal(url, read_only=True)) as reader:
        assert KEY == reader.key("building-a")


def test_a_reader_may_not_write(journal: SqliteJournal, url: str) -> None:
    """Neither through the journal nor through SQLite itself."""
    with closing(SqliteJournal(url, read_only=True)) as reader:
        with pytest.raises(JournalFailed) as caught:
            reader.save(history=[event()])
        assert reader._engine is not None
        with pytest.raises(Exception, match="readonly"), reader._engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM events")
    assert Reason.JOURNAL_UNWRITABLE == caught.value.reason


def test_a_reader_makes_no_journal(url: str, tmp_path: Path) -> None:
    """`status` before the first start leaves nothing behind."""
    with pytest.raises(JournalFailed) as caught:
        SqliteJournal(url, read_only=True)
    assert Reason.JOURNAL_MISSING == caught.value.reason
    assert [] == list(tmp_path.iterdir())


def test_a_missing_journal_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs `status` in another directory than the daemon's has to see where it was looked for."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JournalFailed) as caught:
        SqliteJournal("sqlite:///state/rotator.db", read_only=True)
    assert f"there is no journal at {tmp_path}/state/rotator.db" == caught.value.message


def test_a_full_disk_is_named_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing that a start writes is the lock file."""

    def full(*_anything: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    words = r"rotator\.db\.lock.*No space left"
    with pytest.raises(JournalFailed, match=words) as caught, locked(tmp_path / "rotator.db"):
        pass
    assert Reason.JOURNAL_UNWRITABLE == caught.value.reason


def test_a_folder_that_can_not_be_written_is_at_fault(url: str, tmp_path: Path) -> None:
    """And not the journal, which nobody should move aside because of that."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "rotator.db.lock").mkdir()  # as root no mode keeps us out
    with pytest.raises(JournalFailed) as caught, locked(tmp_path / "state" / "rotator.db"):
        pass
    assert Reason.JOURNAL_UNWRITABLE == caught.value.reason
    (tmp_path / "state" / "rotator.db").mkdir()
    with pytest.raises(JournalFailed) as caught:
        SqliteJournal(url)
    assert Reason.JOURNAL_UNWRITABLE == caught.value.reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (sqlite3.SQLITE_CANTOPEN, Reason.JOURNAL_UNWRITABLE),
        (sqlite3.SQLITE_READONLY_DIRECTORY, Reason.JOURNAL_UNWRITABLE),
        (sqlite3.SQLITE_IOERR_READ, Reason.JOURNAL_UNWRITABLE),
        (sqlite3.SQLITE_CORRUPT, Reason.JOURNAL_UNREADABLE),
        (sqlite3.SQLITE_NOTADB, Reason.JOURNAL_UNREADABLE),
    ],
)
def test_what_sqlite_says_tells_the_disk_from_the_journal(code: int, reason: Reason) -> None:
    """Its own code or an extended one, alone or below SQLAlchemy's error."""
    told = sqlite3.OperationalError("made up")
    told.sqlite_errorcode = code
    assert [reason, reason] == [reason_of(told), reason_of(DBAPIError("SELECT", {}, told))]


@pytest.mark.parametrize("folder", ["with space", "50%25 off", "a#b", "übung"])
def test_odd_names_of_folders_are_only_names(tmp_path: Path, folder: str) -> None:
    """A URI is made of the path, and its special characters must not change where the journal lies."""
    path = tmp_path / folder / "rotator.db"
    with closing(SqliteJournal(f"sqlite:///{path}")) as journal:
        journal.save(key=KEY.name, change=as_it_is(KEY))
        assert KEY == journal.key(KEY.name)
    assert path.is_file()
    assert [path.parent] == list(tmp_path.iterdir())


def test_a_file_that_is_no_journal_is_refused_and_kept(url: str, tmp_path: Path) -> None:
    """Named, and not overwritten."""
    path = tmp_path / "state" / "rotator.db"
    path.parent.mkdir()
    path.write_bytes(b"this is a letter to my aunt " * 100)
    with pytest.raises(JournalFailed) as caught:
        SqliteJournal(url)
    assert Reason.JOURNAL_UNREADABLE == caught.value.reason
    assert str(path) in caught.value.message
    assert path.read_bytes().startswith(b"this is a letter")


def test_a_journal_of_a_newer_rotator_is_refused_by_name(journal: SqliteJournal, url: str) -> None:
    """After a downgrade: an error of ours, not alembic's traceback."""
    journal.close()
    with closing(sqlite3.connect(journal.path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(JournalFailed) as caught:
        SqliteJournal(url)
    assert Reason.JOURNAL_UNREADABLE == caught.value.reason


def test_one_process_holds_the_journal(tmp_path: Path) -> None:
    """The other is told who it is, under a name of its own, and gets it as soon as it is free."""
    path = tmp_path / "state" / "rotator.db"
    with locked(path):
        with pytest.raises(JournalLocked) as caught, locked(path):
            pass
        assert str(os.getpid()) in caught.value.message
    with locked(path):
        pass
    assert Reason.UNFORESEEN != caught.value.reason, "its advice would be: a fault in rotator itself"


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    """The lock dies with it; nothing has to be cleaned up by hand."""
    path = tmp_path / "rotator.db"
    program = (
        "import sys, pathlib; from rotator.journal.sqlite import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert "held\n" == child.stdout.readline()
            with pytest.raises(JournalLocked, match=str(child.pid)), locked(path):
                pass
        finally:
            child.kill()
    with locked(path):
        assert path.with_name("rotator.db.lock").is_file()
