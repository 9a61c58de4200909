"""The write-ahead log: emptied, so that an erased blob does not live on in it, and kept long, so that commits are fast.

Both a moment later and in a thread of its own: emptying costs as much as several commits, and rotations that end
together need it once.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from sqlite3 import Connection as DriverConnection

from rotator.journal.database import BUSY_SECONDS, driver_of
from rotator.journal.writer import Writer

# Seconds from the commit that erased a blob until the log is emptied, and between two tries where a reader holds it.
DELAY = 0.1
# The length of the log after which its pages go to the database, and to which it is brought when it is empty.
PAGES = 120


class WriteAheadLog:
    """Looks after the log of one writer."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._asked, self._ending = threading.Event(), threading.Event()
        self._asked.set()  # a process that died may have left an erased blob in the log
        self._thread = threading.Thread(target=self._run, name="journal-log", daemon=True)
        self._thread.start()

    def empty(self) -> bool:
        """Empty the log; False where a reader still needs it, or the disk refuses."""
        with suppress(sqlite3.Error), self._writer.between() as connection:
            return _truncated(driver_of(connection))
        return False

    def empty_soon(self) -> None:
        """Ask for an empty log, and for its usual length; returns at once."""
        self._asked.set()

    def close(self) -> None:
        """Do at once what was asked for, and end."""
        self._ending.set()
        self._asked.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._asked.wait()
            self._ending.wait(DELAY)
            self._asked.clear()
            if not self.empty():
                self._asked.set()
            elif not self._ending.is_set():
                with suppress(sqlite3.Error), self._writer.between() as connection:
                    _lengthen(driver_of(connection))


def _truncated(driver: DriverConnection) -> bool:
    """A checkpoint that waits for nobody and leaves nothing behind."""
    driver.execute("PRAGMA busy_timeout=0")
    try:
        busy = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        driver.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000:.0f}")
    return not busy


def _lengthen(driver: DriverConnection) -> None:
    """Give an empty log its usual length again.

    A commit that makes the file longer waits for two flushes of the disk, one over pages that are there for one. So
    more is written than SQLite's cache holds, which spills into the log, and taken back: zeros stay there.
    """
    driver.execute(f"PRAGMA wal_autocheckpoint={PAGES}")
    before = driver.execute("PRAGMA cache_size").fetchone()[0]
    driver.execute("PRAGMA cache_size=8")
    with suppress(sqlite3.Error):  # a full disk, or somebody else writes: the next commits make the file longer
        driver.execute("BEGIN IMMEDIATE")
        driver.execute("INSERT INTO facts VALUES ('', zeroblob(?))", (PAGES * 4096,))
    if driver.in_transaction:
        driver.execute("ROLLBACK")
    driver.execute(f"PRAGMA cache_size={before}")
    driver.execute("PRAGMA user_version=0")  # a commit, so that its flush is not the next caller's
