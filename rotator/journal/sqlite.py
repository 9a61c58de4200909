"""The journal in SQLite (WAL, synchronous=FULL, secure_delete)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from sqlite3 import Connection as DriverConnection
from typing import Any, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import Connection, RowMapping, delete, func, insert, not_, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import SQLAlchemyError

from rotator.errors import JournalFailed
from rotator.journal import rows, statements
from rotator.journal.cache import MISSING, Cache, Missing
from rotator.journal.database import (
    database_path,
    driver_of,
    locked,
    memory_connection,
    no_journal,
    reading_engine,
    reason_of,
    writing_connection,
)
from rotator.journal.rows import ERASE, ERASE_SOON, Blob, Erase, SealedRow, WrappedKey
from rotator.journal.tables import events, facts, keys, rotations
from rotator.journal.wal import WriteAheadLog
from rotator.journal.writer import Writer, words_of
from rotator.keys import KeyRecord
from rotator.model import RotationEvent
from rotator.reasons import Reason
from rotator.rotation import Rotation

__all__ = [
    "ERASE",
    "ERASE_SOON",
    "Blob",
    "Change",
    "Erase",
    "SealedRow",
    "SqliteJournal",
    "WrappedKey",
    "database_path",
    "locked",
]

T = TypeVar("T")
Change = Callable[[KeyRecord | None], KeyRecord]
IN_MEMORY = "sqlite://"
# How many keys' records are kept in memory as well, a few kilobytes each.
CACHED = 2000


class SqliteJournal:
    """Keys, rotations, history and sealed secrets in one file.

    Reads see the last commit; writes return when they are durable. `sqlite://` is a journal in memory, for tests and
    the simulation.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self._path = None if url == IN_MEMORY else database_path(url)
        self.is_new = self._path is None or not self._path.exists()
        if read_only and self.is_new:
            raise no_journal(database_path(url))
        # What another process writes is not seen by a cache.
        self._keys: Cache[KeyRecord] = Cache(0 if read_only else CACHED)
        self._open: Cache[Rotation] = Cache(0 if read_only else CACHED)
        self._engine = None if self._path is None else reading_engine(self._path)
        self._writer: Writer | None = None
        self._log: WriteAheadLog | None = None
        if not read_only:
            connection = memory_connection() if self._path is None else writing_connection(self._path)
            self._writer = Writer(connection, committed=self._publish, doubted=self._doubt)
            self._log = WriteAheadLog(self._writer) if self._path is not None else None

    @property
    def path(self) -> Path:
        """The file.

        Raises: JournalFailed where the journal is in memory.
        """
        if self._path is None:
            raise JournalFailed("a journal in memory has no file", reason=Reason.JOURNAL_UNREADABLE)
        return self._path

    # --- writing ---------------------------------------------------------------------------------------------

    @property
    def unwritable(self) -> JournalFailed | None:
        """Why the last write failed; None after one that is durable."""
        return self._writer.failed if self._writer is not None else None

    def try_writing(self) -> None:
        """Commit what changes nothing, to see whether the disk takes it.

        Raises: JournalFailed JOURNAL_UNWRITABLE.
        """
        self._writing().write(lambda connection: driver_of(connection).execute("PRAGMA user_version=0"))

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
        """Commit what one step changed, all of it or nothing.

        Args:
            key: whose record `change` is applied to, inside the transaction: what somebody else wrote to it in the
                meantime (a pause, a look at the provider's list) is not lost.
            change: old record → new record; pure, since another caller's thread may run it.

        Returns: the key's record as committed.
        """

        if rotation is None and blob is None and not history and key is not None and change is not None:
            known = self._keys.get(key)
            # most looks at a platform or at Vault find what is known: nothing to be made durable
            if not isinstance(known, Missing) and known is not None and change(known) == known:
                return known

        def work(connection: Connection) -> KeyRecord | None:
            driver, record, current = driver_of(connection), None, None
            if key is not None and change is not None:
                before = self._latest_key(driver, key)
                record = change(before)
                statements.save_key(driver, record, before)
            if rotation is not None:
                current = self._open.latest(rotation.key)
                statements.save_rotation(driver, rotation, data_key, blob, is_open=_same(current, rotation))
            if history:
                statements.save_history(driver, history)
            # last: what a statement that fails has taken back must not be published
            if rotation is not None:
                self._open.stage(rotation.key, _open_after(current, rotation))
            if record is not None:
                self._keys.stage(record.name, record)
            return record

        committed = self._writing().write(work)
        if isinstance(blob, Erase):
            self._empty_log(soon=blob.soon)  # an erased blob must not live on in the write-ahead log
        return committed

    def forget_keys(self, names: Sequence[str]) -> None:
        """Drop the records of keys that the configuration no longer has; their rotations stay as history."""
        self._write(lambda connection: connection.execute(delete(keys).where(keys.c.name.in_(names))))

    def set_fact(self, name: str, value: bytes) -> None:
        """Keep a small fact of the journal's own (the wrapped fingerprint key, the seal's id)."""
        statement = upsert(facts).values(name=name, value=value)
        statement = statement.on_conflict_do_update(index_elements=["name"], set_={"value": value})
        self._write(lambda connection: connection.execute(statement))

    def rewrap(self, data_keys: Mapping[str, bytes | None], named: Mapping[str, bytes | None]) -> None:
        """Put other wrapped data keys (by rotation) and facts in the place of the old ones, all in one commit.

        None drops one. Data keys of rotations that ended without a blob sealed nothing and are dropped as well.
        """

        def work(connection: Connection) -> None:
            used = or_(rotations.c.finished_at.is_(None), rotations.c.sealed.is_not(None))
            connection.execute(update(rotations).where(not_(used)).values(data_key=None))
            for rotation, wrapped in data_keys.items():
                connection.execute(update(rotations).where(rotations.c.id == rotation).values(data_key=wrapped))
            for name, value in named.items():
                connection.execute(delete(facts).where(facts.c.name == name))
                if value is not None:
                    connection.execute(insert(facts).values(name=name, value=value))

        self._write(work)
        self._empty_log()  # what the old key opens must not live on in the write-ahead log

    def prune(self, before: datetime) -> None:
        """Drop history that is older than `before`."""

        def work(connection: Connection) -> None:
            connection.execute(delete(events).where(events.c.at < rows.seconds(before)))
            connection.execute(
                delete(rotations).where(rotations.c.finished_at < rows.seconds(before), rotations.c.sealed.is_(None))
            )

        self._write(work)

    # --- reading ---------------------------------------------------------------------------------------------

    def key(self, name: str) -> KeyRecord | None:
        """The record of one key."""
        return self._cached(self._keys, name, statements.KEY, rows.KEY)

    def all_keys(self) -> list[KeyRecord]:
        return [rows.read(rows.KEY, row["record"]) for row in self._all(select(keys.c.record).order_by(keys.c.name))]

    def upcoming(self, limit: int) -> list[tuple[str, datetime]]:
        """(key, when it wants attention) of the keys that come next, the longest waiting first."""
        return [(name, rows.moment(wake_at)) for name, wake_at in self._first(limit, statements.UPCOMING)]

    def rotation(self, id: str) -> Rotation | None:
        """One rotation."""
        row = self._one(select(rotations.c.record).where(rotations.c.id == id))
        return rows.read(rows.ROTATION, row["record"]) if row else None

    def open_rotation(self, key: str) -> Rotation | None:
        """The rotation of this key that has not ended."""
        return self._cached(self._open, key, statements.OPEN_ROTATION, rows.ROTATION)

    def open_rotations(self) -> dict[str, Rotation]:
        """All rotations in flight, by key."""
        found = self._all(select(rotations.c.record).where(rotations.c.finished_at.is_(None)))
        return {rotation.key: rotation for row in found for rotation in [rows.read(rows.ROTATION, row["record"])]}

    def recent_rotations(self, *, key: str | None = None, limit: int = 50) -> list[Rotation]:
        """The last rotations, the newest first."""
        statement = select(rotations.c.record).order_by(rotations.c.started_at.desc()).limit(limit)
        if key is not None:
            statement = statement.where(rotations.c.key == key)
        return [rows.read(rows.ROTATION, row["record"]) for row in self._all(statement)]

    def history(self, *, key: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """The last events, the newest first, as plain values."""
        statement = select(events).order_by(events.c.id.desc()).limit(limit)
        if key is not None:
            statement = statement.where(events.c.key == key)
        return [{**row, "at": rows.moment(row["at"])} for row in self._all(statement)]

    def last_events(self) -> dict[str, dict[str, Any]]:
        """The newest event of each key."""
        newest = select(func.max(events.c.id)).group_by(events.c.key)
        found = self._all(select(events).where(events.c.id.in_(newest)))
        return {row["key"]: {**row, "at": rows.moment(row["at"])} for row in found}

    def data_key(self, rotation: str) -> bytes | None:
        """The wrapped data key that preflight journaled."""
        found = self._first(1, statements.DATA_KEY, name=rotation)
        return found[0][0] if found else None

    def sealed(self, rotation: str) -> SealedRow | None:
        """The sealed blob of one rotation."""
        row = self._one(select(rotations).where(rotations.c.id == rotation, rotations.c.sealed.is_not(None)))
        return rows.sealed_row(row) if row else None

    def sealed_rows(self, key: str) -> list[SealedRow]:
        """All blobs of one key, the oldest first."""
        statement = select(rotations).where(rotations.c.key == key, rotations.c.sealed.is_not(None))
        return [rows.sealed_row(row) for row in self._all(statement.order_by(rotations.c.sealed_at))]

    def wrapped_keys(self) -> list[WrappedKey]:
        """The data keys of rotations in flight, and of blobs."""
        used = or_(rotations.c.finished_at.is_(None), rotations.c.sealed.is_not(None))
        statement = select(
            rotations.c.id,
            rotations.c.data_key,
            rotations.c.sealed.is_not(None).label("sealed"),
            rotations.c.holds_secret,
        ).where(rotations.c.data_key.is_not(None), used)
        return [
            WrappedKey(
                rotation=row["id"], data_key=row["data_key"], sealed=row["sealed"], holds_secret=row["holds_secret"]
            )
            for row in self._all(statement)
        ]

    def waiting_secrets(self) -> list[tuple[str, datetime]]:
        """(key, since when) of the secrets that wait sealed for Vault, the oldest first."""
        statement = (
            select(rotations.c.key, rotations.c.sealed_at)
            .where(rotations.c.holds_secret.is_(True), rotations.c.sealed.is_not(None))
            .order_by(rotations.c.sealed_at)
        )
        return [(row["key"], rows.moment(row["sealed_at"])) for row in self._all(statement)]

    def waiting_rotations(self) -> list[Rotation]:
        """The rotations whose secrets wait sealed for Vault, the oldest secret first."""
        statement = (
            select(rotations.c.record)
            .where(rotations.c.holds_secret.is_(True), rotations.c.sealed.is_not(None))
            .order_by(rotations.c.sealed_at)
        )
        return [rows.read(rows.ROTATION, row["record"]) for row in self._all(statement)]

    def fact(self, name: str) -> bytes | None:
        row = self._one(select(facts.c.value).where(facts.c.name == name))
        return row["value"] if row else None

    def close(self) -> None:
        """Commit what waits and close the file."""
        if self._log is not None:
            self._log.close()
        if self._engine is not None:
            self._engine.dispose()
        if self._writer is not None:
            self._writer.close()  # the last connection, since it may remove the log

    # --- inside ----------------------------------------------------------------------------------------------

    def _writing(self) -> Writer:
        if self._writer is None:
            raise JournalFailed("the journal is open for reading only", reason=Reason.JOURNAL_UNWRITABLE)
        return self._writer

    def _write(self, work: Callable[[Connection], object]) -> None:
        """A write that may change any record."""

        def doubted(connection: Connection) -> None:
            self._keys.doubt()
            self._open.doubt()
            work(connection)

        self._writing().write(doubted)

    def _empty_log(self, *, soon: bool = False) -> None:
        if self._log is None:
            return
        if not soon:
            self._log.empty()
        self._log.empty_soon()

    def _publish(self) -> None:
        self._keys.publish()
        self._open.publish()

    def _doubt(self) -> None:
        self._keys.clear()
        self._open.clear()

    def _latest_key(self, driver: DriverConnection, name: str) -> KeyRecord | None:
        """The record as the transaction under way sees it."""
        known = self._keys.latest(name)
        if not isinstance(known, Missing):
            return known
        row = driver.execute(statements.KEY, {"name": name}).fetchone()
        return rows.read(rows.KEY, row[0]) if row else None

    def _cached(self, cache: Cache[T], name: str, statement: str, adapter: TypeAdapter[T]) -> T | None:
        known = cache.get(name)
        if not isinstance(known, Missing):
            return known
        generation = cache.generation
        found = self._first(1, statement, name=name)
        value = rows.read(adapter, found[0][0]) if found else None
        cache.offer(name, value, generation)
        return value

    def _first(self, limit: int, statement: str, **parameters: object) -> list[Any]:
        """Up to `limit` rows of one of `statements`, as tuples."""
        with self._reading() as connection:
            return driver_of(connection).execute(statement, parameters).fetchmany(limit)

    def _all(self, statement: Any) -> list[RowMapping]:
        with self._reading() as connection:
            return list(connection.execute(statement).mappings())

    def _one(self, statement: Any) -> RowMapping | None:
        return next(iter(self._all(statement)), None)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A connection that reads; in memory, where no other connection sees the tables, the writer's own."""
        try:
            with self._engine.connect() if self._engine is not None else self._writing().between() as connection:
                yield connection
        except (SQLAlchemyError, sqlite3.Error) as exc:
            raise JournalFailed(f"the journal can't be read: {words_of(exc)}", reason=reason_of(exc)) from exc


def _same(current: Rotation | Missing | None, rotation: Rotation) -> bool:
    """Whether this rotation is known to be the open one of its key."""
    return isinstance(current, Rotation) and current.id == rotation.id


def _open_after(current: Rotation | Missing | None, rotation: Rotation) -> Rotation | Missing:
    """The open rotation of a key once `rotation` is saved; MISSING where only the file can tell."""
    only = current is None or _same(current, rotation)
    return rotation if only and rotation.finished_at is None else MISSING
