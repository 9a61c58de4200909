"""One connection that writes the journal, one transaction at a time, for all who wait at that moment.

A durable commit costs a disk flush; sixteen rotations that wait for one each pay for one between them. The caller
whose turn it is does the work of all: handing it to a thread of its own and back would cost as much as the commit.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from rotator.errors import JournalFailed
from rotator.journal.database import driver_of
from rotator.reasons import Reason

T = TypeVar("T")
Work = Callable[[Connection], Any]
_BATCH = 64


@dataclass(slots=True)
class _Item:
    """One caller's work, and what became of it."""

    work: Work
    done: bool = False
    result: Any = None
    error: Exception | None = None


class Writer:
    """Runs writes in batches; a caller's `write` returns when its batch is durable.

    Args:
        connection: nobody else uses it.
        committed: called after each commit, before its callers return.
        doubted: called when a commit failed, and when another connection has written: nothing known is certain.
    """

    def __init__(self, connection: Connection, *, committed: Callable[[], None], doubted: Callable[[], None]) -> None:
        self._connection = connection
        self._driver = driver_of(connection)
        self._committed, self._doubted = committed, doubted
        self._waiting: deque[_Item] = deque()
        self._turn = threading.RLock()  # held by the one that uses the connection
        self._version = 0  # changes when another connection commits
        self.failed: JournalFailed | None = None  # of the last transaction, None where it was committed

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction and return its result once it is committed.

        Raises: JournalFailed JOURNAL_UNWRITABLE where the database refuses.
        """
        item = _Item(work)
        self._waiting.append(item)
        with self._turn:
            while not item.done:
                self._commit([self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))])
        if item.error is not None:
            raise item.error
        return item.result  # type: ignore[no-any-return]

    @contextmanager
    def between(self) -> Iterator[Connection]:
        """The connection, between two transactions."""
        with self._turn:
            yield self._connection

    def close(self) -> None:
        """Close the connection; what comes later is refused."""
        with self._turn:
            engine = self._connection.engine
            self._connection.close()
            engine.dispose()

    def _commit(self, batch: list[_Item]) -> None:
        try:
            self._begin()
            for item in batch:
                self._run(item, alone=len(batch) == 1)
            if self._driver.in_transaction:
                self._driver.execute("COMMIT")
                self.failed = None
            self._committed()
        except BaseException as exc:
            self._give_up(batch, exc)
            if not isinstance(exc, Exception):
                raise
        finally:
            for item in batch:
                item.done = True

    def _begin(self) -> None:
        self._roll_back()  # what an interrupted caller left
        self._driver.execute("BEGIN IMMEDIATE")
        version = self._driver.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._version = version
            self._doubted()

    def _run(self, item: _Item, *, alone: bool) -> None:
        """One caller's work; among others in a savepoint of its own: its mistake is not its neighbours'."""
        if not alone:
            self._driver.execute("SAVEPOINT one")
        try:
            item.result = item.work(self._connection)
        except Exception as exc:  # noqa: BLE001 - handed to the caller whose work it was
            item.error = exc
            if isinstance(exc, SQLAlchemyError | sqlite3.Error):
                item.error, self.failed = _unwritable(exc), _failed(exc)
            if alone:
                self._roll_back()
            else:
                # fails where the whole transaction is gone (disk full): then so does the batch
                self._driver.execute("ROLLBACK TO one")
        if not alone:
            self._driver.execute("RELEASE one")

    def _give_up(self, batch: list[_Item], exc: BaseException) -> None:
        self._doubted()
        self.failed = _failed(exc)
        for item in batch:
            item.error = item.error or _unwritable(exc)
        with suppress(sqlite3.Error):  # tried again before the next transaction
            self._roll_back()

    def _roll_back(self) -> None:
        if self._driver.in_transaction:
            self._driver.execute("ROLLBACK")


def _unwritable(exc: BaseException) -> JournalFailed:
    failed = _failed(exc)
    failed.__cause__ = exc  # raised later, in its caller's thread
    return failed


def _failed(exc: BaseException) -> JournalFailed:
    """Without the cause, whose frames hold what was to be written: this one is kept for as long as the disk is full."""
    return JournalFailed(f"the journal can't be written: {words_of(exc)}", reason=Reason.JOURNAL_UNWRITABLE)


def words_of(exc: BaseException) -> str:
    """The driver's own words, without SQLAlchemy's statement and parameters (which may hold a sealed blob)."""
    if isinstance(exc, sqlite3.Error | OSError):
        return str(exc)
    return str(getattr(exc, "orig", None) or type(exc).__name__)
