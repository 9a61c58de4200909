"""One thread that owns the journal's writing connection and commits together what waits together.

A durable commit costs a disk flush; sixteen rotations that wait for one each pay for one between them
(measured.md, "Journal").
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from rotator.errors import JournalFailed
from rotator.reasons import Reason

T = TypeVar("T")
Work = Callable[[Connection], Any]
_Item = tuple[Work, Future[Any]]
_BATCH = 64


class Writer:
    """Runs writes one batch at a time; a caller's `write` returns when its batch is durable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing is queued behind the word to end
        self._closed = False
        self._truncate = threading.Event()
        self._truncate.set()  # a process that died may have left an erased blob in the log
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction and return its result once it is committed.

        Raises: JournalFailed JOURNAL_UNWRITABLE where the database refuses.
        """
        done: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise JournalFailed("the journal is closed", reason=Reason.JOURNAL_UNWRITABLE)
            self._waiting.put((work, done))
        return done.result()

    def truncate_log(self) -> None:
        """Empty the write-ahead log; where a reader holds it, after the next commits until it is empty."""
        self._truncate.set()
        self.write(lambda _connection: None)

    def close(self) -> None:
        """Commit what waits and end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._waiting.put(None)
        self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._commit(batch)

    def _next_batch(self) -> list[_Item] | None:
        first = self._waiting.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < _BATCH:
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._waiting.put(None)  # for the next round, after this batch
                break
            batch.append(item)
        return batch

    def _commit(self, batch: list[_Item]) -> None:
        try:
            with self._engine.begin() as connection:
                results = [(done, _one(connection, work, done)) for work, done in batch]
        except Exception as exc:  # noqa: BLE001 - this thread must outlive anything, or every caller waits for ever
            for _, done in batch:
                if not done.done():
                    done.set_exception(_unwritable(exc))
            return
        self._empty_log()
        for done, result in results:
            if not done.done():
                done.set_result(result)

    def _empty_log(self) -> None:
        """A checkpoint that leaves nothing behind; not inside a transaction, and never by two threads."""
        if not self._truncate.is_set():
            return
        try:
            with closing(self._engine.raw_connection()) as raw:
                cursor = raw.cursor()
                cursor.execute("PRAGMA busy_timeout=50")
                busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                cursor.execute("PRAGMA busy_timeout=10000")
        except (SQLAlchemyError, sqlite3.Error):
            return  # the batch is committed all the same; the log is emptied after a later one
        if not busy:
            self._truncate.clear()


def _one(connection: Connection, work: Work, done: Future[Any]) -> object:
    """One caller's work in a savepoint of its own: its mistake is not its neighbours'."""
    savepoint = connection.begin_nested()
    try:
        result = work(connection)
    except SQLAlchemyError as exc:
        savepoint.rollback()  # fails where the whole transaction is gone (disk full): then so does the batch
        done.set_exception(_unwritable(exc))
        return None
    except Exception as exc:  # noqa: BLE001 - handed to the caller whose work it was
        savepoint.rollback()
        done.set_exception(exc)
        return None
    savepoint.commit()
    return result


def _unwritable(exc: Exception) -> JournalFailed:
    """The driver's own words, without SQLAlchemy's statement and parameters (which may hold a sealed blob)."""
    words = getattr(exc, "orig", None) or type(exc).__name__
    return JournalFailed(f"the journal can't be written: {words}", reason=Reason.JOURNAL_UNWRITABLE)
