"""The journal in SQLite (WAL, synchronous=FULL, secure_delete)."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from sqlite3 import Connection as DriverConnection
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, Engine, RowMapping, create_engine, delete, event, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from rotator.errors import JournalFailed, JournalLocked
from rotator.journal.tables import events, facts, keys, rotations
from rotator.journal.writer import Writer
from rotator.keys import KeyRecord
from rotator.lifecycle import Rotation
from rotator.model import RotationEvent
from rotator.reasons import Reason

Change = Callable[[KeyRecord | None], KeyRecord]
# How long a connection waits for another's lock.
BUSY_SECONDS = 10.0
_KEY = TypeAdapter(KeyRecord)
_ROTATION = TypeAdapter(Rotation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A sealed record on its way into the journal: a secret, or an answer that holds no usable one."""

    at: datetime
    sealed: bytes = field(repr=False)


class Erase:
    """Asks `save` to erase the sealed blob of the rotation."""


ERASE = Erase()


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRow:
    """A sealed blob as it lies in the journal."""

    rotation: Rotation
    data_key: bytes = field(repr=False)
    sealed: bytes = field(repr=False)
    sealed_at: datetime
    holds_secret: bool


class SqliteJournal:
    """Keys, rotations, history and sealed secrets in one file.

    Reads see the last commit; writes go through the writer thread and return when they are durable.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.path = database_path(url)
        self.is_new = not self.path.exists()
        self._read_only = read_only
        if read_only and self.is_new:
            raise JournalFailed(f"there is no journal at {self.path}", reason=Reason.JOURNAL_UNREADABLE)
        if not read_only:
            _make_file(self.path)
        self._engine = _engine(self.path, read_only=read_only)
        self._writer: Writer | None = None
        if not read_only:
            try:
                writing = _engine(self.path, immediately=True)
                _migrate(writing)
            except CommandError as exc:
                raise JournalFailed(
                    f"the journal {self.path} was written by a newer rotator: {exc}", reason=Reason.JOURNAL_UNREADABLE
                ) from exc
            except (SQLAlchemyError, OSError) as exc:
                raise JournalFailed(
                    f"the journal {self.path} can't be opened: {getattr(exc, 'orig', None) or exc}",
                    reason=Reason.JOURNAL_UNREADABLE,
                ) from exc
            self._writer = Writer(writing)

    # --- writing ---------------------------------------------------------------------------------------------

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
            change: old record → new record; pure, since the writer thread runs it.

        Returns: the key's record as committed.
        """

        def work(connection: Connection) -> KeyRecord | None:
            record = None
            if key is not None and change is not None:
                row = connection.execute(select(keys.c.record).where(keys.c.name == key)).mappings().first()
                record = change(_read(_KEY, row["record"]) if row else None)
                _save_key(connection, record)
            if rotation is not None:
                _save_rotation(connection, rotation, data_key, blob)
            if history:
                connection.execute(insert(events), [_event_row(item) for item in history])
            return record

        committed: KeyRecord | None = self._write(work)
        if isinstance(blob, Erase) and self._writer is not None:
            self._writer.truncate_log()  # an erased blob must not live on in the write-ahead log
        return committed

    def forget_keys(self, names: Sequence[str]) -> None:
        """Drop the records of keys that the configuration no longer has; their rotations stay as history."""
        self._write(lambda connection: connection.execute(delete(keys).where(keys.c.name.in_(names))))

    def set_fact(self, name: str, value: bytes) -> None:
        """Keep a small fact of the journal's own (the wrapped fingerprint key, the seal's id)."""
        statement = upsert(facts).values(name=name, value=value)
        statement = statement.on_conflict_do_update(index_elements=["name"], set_={"value": value})
        self._write(lambda connection: connection.execute(statement))

    def prune(self, before: datetime) -> None:
        """Drop history that is older than `before`."""

        def work(connection: Connection) -> None:
            connection.execute(delete(events).where(events.c.at < _seconds(before)))
            connection.execute(
                delete(rotations).where(rotations.c.finished_at < _seconds(before), rotations.c.sealed.is_(None))
            )

        self._write(work)

    # --- reading ---------------------------------------------------------------------------------------------

    def key(self, name: str) -> KeyRecord | None:
        row = self._one(select(keys.c.record).where(keys.c.name == name))
        return _read(_KEY, row["record"]) if row else None

    def all_keys(self) -> list[KeyRecord]:
        return [_read(_KEY, row["record"]) for row in self._all(select(keys.c.record).order_by(keys.c.name))]

    def upcoming(self, limit: int) -> list[tuple[str, datetime]]:
        """(key, when it wants attention) of the keys that come next, the longest waiting first."""
        statement = (
            select(keys.c.name, keys.c.wake_at).where(keys.c.wake_at.is_not(None)).order_by(keys.c.wake_at).limit(limit)
        )
        return [(row["name"], _moment(row["wake_at"])) for row in self._all(statement)]

    def rotation(self, id: str) -> Rotation | None:
        """One rotation."""
        row = self._one(select(rotations.c.record).where(rotations.c.id == id))
        return _read(_ROTATION, row["record"]) if row else None

    def open_rotation(self, key: str) -> Rotation | None:
        """The rotation of this key that has not ended."""
        row = self._one(
            select(rotations.c.record).where(rotations.c.key == key, rotations.c.finished_at.is_(None)).limit(1)
        )
        return _read(_ROTATION, row["record"]) if row else None

    def open_rotations(self) -> dict[str, Rotation]:
        """All rotations in flight, by key."""
        rows = self._all(select(rotations.c.record).where(rotations.c.finished_at.is_(None)))
        return {rotation.key: rotation for row in rows for rotation in [_read(_ROTATION, row["record"])]}

    def recent_rotations(self, *, key: str | None = None, limit: int = 50) -> list[Rotation]:
        """The last rotations, the newest first."""
        statement = select(rotations.c.record).order_by(rotations.c.started_at.desc()).limit(limit)
        if key is not None:
            statement = statement.where(rotations.c.key == key)
        return [_read(_ROTATION, row["record"]) for row in self._all(statement)]

    def history(self, *, key: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """The last events, the newest first, as plain values."""
        statement = select(events).order_by(events.c.id.desc()).limit(limit)
        if key is not None:
            statement = statement.where(events.c.key == key)
        return [{**row, "at": _moment(row["at"])} for row in self._all(statement)]

    def last_events(self) -> dict[str, dict[str, Any]]:
        """The newest event of each key."""
        newest = select(func.max(events.c.id)).group_by(events.c.key)
        rows = self._all(select(events).where(events.c.id.in_(newest)))
        return {row["key"]: {**row, "at": _moment(row["at"])} for row in rows}

    def data_key(self, rotation: str) -> bytes | None:
        """The wrapped data key that preflight journaled."""
        row = self._one(select(rotations.c.data_key).where(rotations.c.id == rotation))
        return row["data_key"] if row else None

    def sealed(self, rotation: str) -> SealedRow | None:
        """The sealed blob of one rotation."""
        row = self._one(select(rotations).where(rotations.c.id == rotation, rotations.c.sealed.is_not(None)))
        return _sealed_row(row) if row else None

    def waiting_secrets(self) -> list[tuple[str, datetime]]:
        """(key, since when) of the secrets that wait sealed for Vault, the oldest first."""
        statement = (
            select(rotations.c.key, rotations.c.sealed_at)
            .where(rotations.c.holds_secret.is_(True), rotations.c.sealed.is_not(None))
            .order_by(rotations.c.sealed_at)
        )
        return [(row["key"], _moment(row["sealed_at"])) for row in self._all(statement)]

    def fact(self, name: str) -> bytes | None:
        row = self._one(select(facts.c.value).where(facts.c.name == name))
        return row["value"] if row else None

    def close(self) -> None:
        """Commit what waits and close the file."""
        if self._writer is not None:
            self._writer.close()
        self._engine.dispose()

    # --- inside ----------------------------------------------------------------------------------------------

    def _write(self, work: Any) -> Any:
        if self._writer is None:
            raise JournalFailed("the journal is open for reading only", reason=Reason.JOURNAL_UNWRITABLE)
        return self._writer.write(work)

    def _all(self, statement: Any) -> list[RowMapping]:
        try:
            with self._engine.connect() as connection:
                return list(connection.execute(statement).mappings())
        except SQLAlchemyError as exc:
            raise JournalFailed(
                f"the journal can't be read: {getattr(exc, 'orig', None) or type(exc).__name__}",
                reason=Reason.JOURNAL_UNREADABLE,
            ) from exc

    def _one(self, statement: Any) -> RowMapping | None:
        return next(iter(self._all(statement)), None)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the journal's lock file: one daemon a journal.

    Raises: JournalLocked where another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = path.with_name(path.name + ".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "another process"
            raise JournalLocked(
                f"the journal {path} is held by process {holder}", reason=Reason.JOURNAL_LOCKED
            ) from exc
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def database_path(url: str) -> Path:
    """The file of a `sqlite:///` URL."""
    database = url.removeprefix("sqlite:///")
    if not database or database == url:
        raise JournalFailed("state.url must name a file", reason=Reason.JOURNAL_UNREADABLE)
    return Path(database)


def _make_file(path: Path) -> None:
    """An empty database with the mode that SQLite gives to its -wal and -shm files as well: for the owner only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
    except OSError as exc:
        raise JournalFailed(
            f"the journal {path} can't be opened: {exc.strerror}", reason=Reason.JOURNAL_UNREADABLE
        ) from exc


def _engine(path: Path, *, read_only: bool = False, immediately: bool = False) -> Engine:
    """An SQLAlchemy engine on the file.

    `immediately`: transactions begin with the write lock. A deferred one that meets another writer, or a checkpoint,
    when it first writes fails at once, however long it may wait.
    """
    name = f"file:{quote(str(path.absolute()))}?mode={'ro' if read_only else 'rw'}"

    def connect() -> DriverConnection:
        return sqlite3.connect(name, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _connected(connection: DriverConnection, _: object) -> None:
        connection.isolation_level = None  # BEGIN is ours (below), so that savepoints work
        if read_only:
            return
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediately else "BEGIN")

    return engine


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _save_key(connection: Connection, record: KeyRecord) -> None:
    values: dict[str, Any] = {
        "wake_at": _seconds(record.wake_at) if record.wake_at is not None else None,
        "record": _KEY.dump_json(record).decode(),
    }
    statement = upsert(keys).values(name=record.name, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def _save_rotation(
    connection: Connection, rotation: Rotation, data_key: bytes | None, blob: Blob | Erase | None
) -> None:
    values: dict[str, Any] = {
        "key": rotation.key,
        "started_at": _seconds(rotation.started_at),
        "finished_at": _seconds(rotation.finished_at) if rotation.finished_at is not None else None,
        "record": _ROTATION.dump_json(rotation).decode(),
        "holds_secret": rotation.sealed,
    }
    if data_key is not None:
        values["data_key"] = data_key
    match blob:
        case Blob():
            values |= {"sealed": blob.sealed, "sealed_at": _seconds(blob.at)}
        case Erase():
            # also what older rotations of this key left behind: their secrets are dead now
            connection.execute(
                update(rotations)
                .where(rotations.c.key == rotation.key, rotations.c.sealed.is_not(None))
                .values(sealed=None, sealed_at=None, holds_secret=False, data_key=None)
            )
            values |= {"sealed": None, "sealed_at": None, "data_key": None}
        case None:
            pass
    changed = connection.execute(update(rotations).where(rotations.c.id == rotation.id).values(**values))
    if changed.rowcount == 0:
        connection.execute(insert(rotations).values(id=rotation.id, **values))


def _event_row(item: RotationEvent) -> Mapping[str, Any]:
    extra = f" {json.dumps(dict(item.extra))}" if item.extra else ""
    return {
        "at": _seconds(item.at),
        "key": item.key,
        "rotation": item.rotation,
        "name": item.name,
        "step": item.step.value if item.step else None,
        "result": item.result,
        "reason": item.reason.value if item.reason else None,
        "seconds": item.seconds,
        "detail": (item.detail + extra).strip(),
    }


def _sealed_row(row: RowMapping) -> SealedRow:
    return SealedRow(
        rotation=_read(_ROTATION, row["record"]),
        data_key=row["data_key"],
        sealed=row["sealed"],
        sealed_at=_moment(row["sealed_at"]),
        holds_secret=row["holds_secret"],
    )


def _read(adapter: TypeAdapter[Any], record: str) -> Any:
    try:
        return adapter.validate_json(record)
    except ValidationError as exc:
        raise JournalFailed("a record of the journal can't be read", reason=Reason.JOURNAL_UNREADABLE) from exc


def _seconds(moment: datetime) -> float:
    return moment.timestamp()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
