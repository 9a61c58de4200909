"""How the journal's SQLite file, or its stand-in in memory, is opened, migrated and locked."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from sqlite3 import Connection as DriverConnection
from typing import cast
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool, StaticPool

from rotator.errors import JournalFailed, JournalLocked
from rotator.reasons import Reason

# How long a connection waits for another's lock.
BUSY_SECONDS = 10.0
# What SQLite says when the folder, the disk or their permissions are at fault, and not what stands in the file.
_DISK_AT_FAULT = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY}
)


def database_path(url: str) -> Path:
    """The file of a `sqlite:///` URL."""
    database = url.removeprefix("sqlite:///")
    if not database or database == url:
        raise JournalFailed("state.url must name a file", reason=Reason.JOURNAL_UNREADABLE)
    return Path(database)


def no_journal(path: Path) -> JournalFailed:
    """There is none at `path`; said with the whole path, since a relative one depends on where a command is run."""
    return JournalFailed(f"there is no journal at {path.absolute()}", reason=Reason.JOURNAL_MISSING)


def reason_of(exc: BaseException) -> Reason:
    """Whether the journal's content is at fault, or what it lies on: nobody should move a sound journal aside."""
    found = getattr(exc, "orig", None) or exc
    # the low byte is the primary code (sqlite.org/rescode.html)
    disk = isinstance(found, OSError) or getattr(found, "sqlite_errorcode", 0) & 0xFF in _DISK_AT_FAULT
    return Reason.JOURNAL_UNWRITABLE if disk else Reason.JOURNAL_UNREADABLE


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the journal's lock file: one daemon a journal.

    Raises: JournalLocked where another process holds it; JournalFailed.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        words = f"the journal's lock file {lock} can't be opened: {exc.strerror}"
        raise JournalFailed(words, reason=Reason.JOURNAL_UNWRITABLE) from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "another process"
            raise JournalLocked(
                f"the journal {path} is held by process {holder}", reason=Reason.JOURNAL_LOCKED
            ) from exc
        _sign(descriptor, lock)
        yield
    finally:
        os.close(descriptor)


def _sign(descriptor: int, lock: Path) -> None:
    """Say in the lock file who holds it."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as exc:
        words = f"the journal's lock file {lock} can't be written: {exc.strerror}"
        raise JournalFailed(words, reason=Reason.JOURNAL_UNWRITABLE) from exc


def reading_engine(path: Path) -> Engine:
    """Connections that read the file, one for each thread that reads at once."""
    return create_engine("sqlite://", creator=lambda: _connect(path, "ro"), poolclass=QueuePool, hide_parameters=True)


def writing_connection(path: Path) -> Connection:
    """The one connection that writes the file, made and migrated where needed.

    SQLAlchemy believes it to be in one transaction that never ends; BEGIN and COMMIT go to the driver's connection,
    which costs a tenth of SQLAlchemy's own.

    Raises: JournalFailed JOURNAL_UNREADABLE, or JOURNAL_UNWRITABLE where the disk or its permissions are in the way.
    """
    try:
        with ExitStack() as closing:
            _make_file(path)
            driver = _connect(path, "rw")
            closing.callback(driver.close)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):
                driver.execute(f"PRAGMA {pragma}")
            connection = _shared(driver)
            closing.callback(connection.close)
            _migrate(connection)
            closing.pop_all()
    except CommandError as exc:
        raise JournalFailed(
            f"the journal {path} was written by a newer rotator: {exc}", reason=Reason.JOURNAL_UNREADABLE
        ) from exc
    except (SQLAlchemyError, sqlite3.Error, OSError) as exc:
        words = getattr(exc, "orig", None) or getattr(exc, "strerror", None) or exc
        raise JournalFailed(f"the journal {path} can't be opened: {words}", reason=reason_of(exc)) from exc
    return connection


def memory_connection() -> Connection:
    """An empty journal in memory, which is gone when it is closed."""
    driver = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    _empty_tables().backup(driver)
    return _shared(driver)


def driver_of(connection: Connection) -> DriverConnection:
    """The driver's connection below an SQLAlchemy one: for the statements that run at every step."""
    return cast(DriverConnection, connection.connection.driver_connection)


def _make_file(path: Path) -> None:
    """An empty database with the mode that SQLite gives to its -wal and -shm files as well: for the owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


def _migrate(connection: Connection) -> None:
    """Bring the tables up to date, in one transaction."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    command.upgrade(config, "head")
    connection.commit()


def _connect(path: Path, mode: str) -> DriverConnection:
    name = f"file:{quote(str(path.absolute()))}?mode={mode}"
    # isolation_level None: the driver begins no transaction of its own
    return sqlite3.connect(name, uri=True, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)


def _shared(driver: DriverConnection) -> Connection:
    """An SQLAlchemy connection over this very driver connection."""
    engine: Engine = create_engine("sqlite://", creator=lambda: driver, poolclass=StaticPool, hide_parameters=True)
    return engine.connect()


@cache
def _empty_tables() -> DriverConnection:
    """The migrated tables, made once a process: Alembic takes longer than a simulated year of a key."""
    driver = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    with _shared(driver) as connection:
        _migrate(connection)
    return driver
