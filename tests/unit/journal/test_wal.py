"""The write-ahead log: what was erased is gone from every file, whoever reads and whoever dies."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from journal_records import KEY, NOW, ROTATION, as_it_is, event, everything_on_disk, until, writing
from rotator.journal.sqlite import ERASE, ERASE_SOON, Blob, Erase, SqliteJournal
from rotator.journal.wal import PAGES, WriteAheadLog
from rotator.model import Result


def log_of(journal: SqliteJournal) -> WriteAheadLog:
    assert journal._log is not None
    return journal._log


def log_is_long(journal: SqliteJournal) -> bool:
    """Whether the log has been emptied, and brought to its usual length."""
    return journal.path.with_name("rotator.db-wal").stat().st_size > PAGES * 4096 * 0.9


@pytest.mark.parametrize("erase", [ERASE, ERASE_SOON], ids=["at once", "soon"])
def test_erasing_leaves_no_byte_of_the_blob(journal: SqliteJournal, erase: Erase) -> None:
    """Not in the file, not in the write-ahead log, not in the shared memory; nor its data key, nor older ones."""
    until(lambda: log_is_long(journal))  # what is done at the start is over
    blobs = [os.urandom(5000) for _ in range(3)]
    keys = [os.urandom(60) for _ in range(3)]
    for number, (blob, data_key) in enumerate(zip(blobs, keys, strict=True)):
        rotation = replace(ROTATION, id=f"r{number}", sealed=True)
        journal.save(rotation=rotation, data_key=data_key, blob=Blob(at=NOW, sealed=blob))
    found = everything_on_disk(journal)
    assert all(any(blob[at : at + 16] in found for at in range(0, 5000, 100)) for blob in blobs)
    ended = replace(ROTATION, id="r2", finished_at=NOW, result=Result.SUCCEEDED)
    journal.save(rotation=ended, blob=erase)
    parts = [*keys, *(blob[at : at + 16] for blob in blobs for at in range(0, 5000, 100))]
    if erase is ERASE_SOON:
        until(lambda: not any(part in left for left in [everything_on_disk(journal)] for part in parts))
    left = everything_on_disk(journal)
    assert [] == [part for part in parts if part in left]
    assert (None, []) == (journal.sealed("r2"), journal.waiting_secrets())


def test_a_replaced_blob_is_gone_with_the_last_one(journal: SqliteJournal) -> None:
    """A second answer of the same rotation overwrites the first, and neither survives the end."""
    first, second = os.urandom(300), os.urandom(300)
    open_ = replace(ROTATION, sealed=True)
    journal.save(rotation=open_, data_key=b"key", blob=Blob(at=NOW, sealed=first))
    journal.save(rotation=open_, blob=Blob(at=NOW, sealed=second))
    row = journal.sealed("r1")
    assert row is not None
    assert second == row.sealed
    journal.save(rotation=replace(ROTATION, finished_at=NOW), blob=ERASE)
    left = everything_on_disk(journal)
    assert (False, False) == (first[:16] in left, second[:16] in left)


def test_a_reader_that_holds_the_log_does_not_keep_an_erased_blob_for_ever(journal: SqliteJournal) -> None:
    """`rotator history` is reading while a rotation ends: it is tried again until the reader is done."""
    blob, log, refused = os.urandom(3000), log_of(journal), threading.Semaphore(0)
    empty = log.empty

    def observed() -> bool:
        emptied = empty()
        if not emptied:
            refused.release()
        return emptied

    log.empty = observed  # type: ignore[method-assign]
    journal.save(rotation=replace(ROTATION, sealed=True), data_key=b"key", blob=Blob(at=NOW, sealed=blob))
    with closing(sqlite3.connect(journal.path)) as reader:
        reader.isolation_level = None
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM rotations").fetchone()
        journal.save(rotation=replace(ROTATION, finished_at=NOW), blob=ERASE)
        for _ in range(3):
            assert refused.acquire(timeout=5)
        journal.save(history=[event()])  # a reader keeps nobody from writing
        reader.execute("COMMIT")
    until(lambda: blob[:16] not in everything_on_disk(journal))


def test_a_process_that_was_killed_leaves_no_erased_blob(url: str, tmp_path: Path) -> None:
    """It died after the commit and before its log was emptied: the next start does it, without another rotation."""
    blob = os.urandom(3000)
    with closing(SqliteJournal(url)) as journal, writing(journal):  # so that the log is not emptied
        journal.save(rotation=replace(ROTATION, sealed=True), data_key=b"key", blob=Blob(at=NOW, sealed=blob))
        journal.save(rotation=replace(ROTATION, finished_at=NOW), blob=ERASE_SOON)
        shutil.copytree(tmp_path / "state", tmp_path / "left")
    with closing(SqliteJournal(f"sqlite:///{tmp_path}/left/rotator.db")) as again:
        assert blob[:16] in everything_on_disk(again)
        until(lambda: blob[:16] not in everything_on_disk(again))


def test_a_closed_journal_holds_no_erased_blob(url: str, tmp_path: Path) -> None:
    """`rotator once` ends right after the last rotation, while somebody reads."""
    blob = os.urandom(3000)
    with closing(SqliteJournal(url)) as journal, closing(SqliteJournal(url, read_only=True)) as reader:
        reader.all_keys()
        journal.save(rotation=replace(ROTATION, sealed=True), data_key=b"key", blob=Blob(at=NOW, sealed=blob))
        journal.save(rotation=replace(ROTATION, finished_at=NOW), blob=ERASE_SOON)
        journal.close()
        assert blob[:16] not in everything_on_disk(journal)


def test_the_log_is_as_long_as_before_when_it_was_emptied(journal: SqliteJournal) -> None:
    """A commit into a log that has to grow takes twice as long; the room is in no way part of the database."""
    until(lambda: log_is_long(journal))
    journal.save(key=KEY.name, change=as_it_is(KEY))
    with closing(sqlite3.connect(journal.path)) as other:
        assert ("ok",) == other.execute("PRAGMA integrity_check").fetchone()
        assert [] == other.execute("SELECT name FROM facts").fetchall()
    assert PAGES * 4096 * 0.5 > journal.path.stat().st_size
