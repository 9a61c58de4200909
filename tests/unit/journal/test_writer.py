"""The journal's one writer: what waits together is committed together, and nobody pays for a neighbour's mistake."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from rotator.errors import JournalFailed
from rotator.journal.database import driver_of, memory_connection, writing_connection
from rotator.journal.writer import Writer
from rotator.reasons import Reason

PATIENCE = 3.0  # seconds until a caller that still waits counts as forgotten


class Site:
    """A writer on a connection, and what it told about its commits."""

    def __init__(self, connection: Connection) -> None:
        self.told: list[str] = []
        self.writer = Writer(
            connection, committed=lambda: self.told.append("committed"), doubted=lambda: self.told.append("doubted")
        )

    def stored(self) -> set[str]:
        """The names of all facts."""
        with self.writer.between() as connection:
            return {row[0] for row in connection.execute(text("SELECT name FROM facts"))}


@pytest.fixture(params=["file", "memory"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    in_memory = request.param == "memory"
    site = Site(memory_connection() if in_memory else writing_connection(tmp_path / "rotator.db"))
    yield site
    ending = threading.Thread(target=site.writer.close, daemon=True)
    ending.start()
    ending.join(PATIENCE)


@pytest.fixture
def writer(site: Site) -> Writer:
    return site.writer


def put(name: str) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        connection.execute(text("INSERT INTO facts VALUES (:name, x'00')"), {"name": name})
        return name

    return work


def started(writer: Writer, work: Callable[[Connection], Any]) -> Future[Any]:
    """Call `write` in a thread of its own, as rotations do."""
    done: Future[Any] = Future()

    def call() -> None:
        try:
            done.set_result(writer.write(work))
        except BaseException as exc:  # noqa: BLE001 - handed on to the test
            done.set_exception(exc)

    threading.Thread(target=call, daemon=True).start()
    return done


class Gate:
    """Holds the writer inside one piece of work, so that others queue up behind it."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._inside, self._go = threading.Event(), threading.Event()
        self._held = started(writer, self._work)
        assert self._inside.wait(PATIENCE)

    def _work(self, connection: Connection) -> None:
        self._inside.set()
        assert self._go.wait(PATIENCE)

    def queue(self, *works: Callable[[Connection], Any]) -> list[Future[Any]]:
        """All of them wait behind the gate, in this order, when this returns."""
        futures = []
        for work in works:
            before = len(self._writer._waiting)
            futures.append(started(self._writer, work))
            while len(self._writer._waiting) == before:
                threading.Event().wait(0.001)
        return futures

    def open(self) -> None:
        self._go.set()
        self._held.result(PATIENCE)


def outcome(future: Future[Any]) -> object:
    """What a caller got: its result, or its exception; a caller that hangs fails the test."""
    try:
        return future.exception(PATIENCE) or future.result(PATIENCE)
    except TimeoutError:
        pytest.fail("a caller of `write` was never answered")


def test_a_write_returns_what_the_work_returned_once_it_is_committed(site: Site) -> None:
    """And has told so before."""
    assert "a" == site.writer.write(put("a"))
    assert {"a"} == site.stored()
    assert "committed" == site.told[-1]


def test_a_write_is_seen_by_other_connections_when_it_returns(tmp_path: Path) -> None:
    """Committed, and not only done."""
    path = tmp_path / "rotator.db"
    site = Site(writing_connection(path))
    site.writer.write(put("a"))
    with closing(sqlite3.connect(path)) as other:
        assert [("a",)] == other.execute("SELECT name FROM facts").fetchall()
    site.writer.close()


def test_what_waits_together_is_one_commit(site: Site) -> None:
    """Sixteen that wait for the disk pay for one flush."""
    gate = Gate(site.writer)
    futures = gate.queue(*(put(str(n)) for n in range(16)))
    site.told.clear()
    gate.open()
    assert [str(n) for n in range(16)] == [outcome(future) for future in futures]
    assert ["committed"] * 2 == site.told  # the gate's own, and one for the sixteen


def test_more_than_a_batch_is_lost_to_nobody(site: Site) -> None:
    """Two hundred at once, in several batches."""
    gate = Gate(site.writer)
    futures = gate.queue(*(put(str(n)) for n in range(200)))
    gate.open()
    assert {str(n) for n in range(200)} == {outcome(future) for future in futures} == site.stored()


def test_sixteen_threads_lose_nothing(site: Site) -> None:
    """Each writes again and again, as rotations do; a lost turn would leave one waiting for ever."""

    def write_all(thread: int) -> list[str]:
        return [site.writer.write(put(f"{thread}-{number}")) for number in range(25)]

    with ThreadPoolExecutor(16) as pool:
        written = [name for names in pool.map(write_all, range(16), timeout=30) for name in names]
    assert 400 == len(set(written))
    assert set(written) == site.stored()


@pytest.mark.parametrize(
    "mistake",
    [
        ValueError("a naive datetime"),
        JournalFailed("the record is gone", reason=Reason.JOURNAL_UNREADABLE),
        AttributeError("a fault of our own"),
        ZeroDivisionError(),
        AssertionError(),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_one_failing_writer_in_a_batch_fails_alone(site: Site, mistake: Exception) -> None:
    """Its own changes are taken back, its exception is its own, and its neighbours' work is committed."""

    def fail(connection: Connection) -> None:
        put("half")(connection)
        raise mistake

    gate = Gate(site.writer)
    first, bad, last = gate.queue(put("first"), fail, put("last"))
    gate.open()
    assert ("first", "last") == (outcome(first), outcome(last))
    assert mistake is outcome(bad)
    assert {"first", "last"} == site.stored()
    assert "later" == outcome(started(site.writer, put("later")))


def test_one_failing_writer_on_its_own_changes_nothing(site: Site) -> None:
    """Without neighbours there is no savepoint: the whole transaction goes."""

    def fail(connection: Connection) -> None:
        put("half")(connection)
        raise ValueError("naive")

    with pytest.raises(ValueError, match="naive"):
        site.writer.write(fail)
    assert set() == site.stored()
    assert "later" == site.writer.write(put("later"))


def test_a_row_that_the_database_refuses_fails_alone(site: Site) -> None:
    """The same row twice: JournalFailed for the one who asked, nothing for the others."""
    gate = Gate(site.writer)
    first, twice, last = gate.queue(put("first"), put("first"), put("last"))
    gate.open()
    assert ("first", "last") == (outcome(first), outcome(last))
    refused = outcome(twice)
    assert isinstance(refused, JournalFailed)
    assert Reason.JOURNAL_UNWRITABLE == refused.reason
    assert {"first", "last"} == site.stored()


def test_a_transaction_that_is_gone_fails_all_who_waited(site: Site) -> None:
    """SQLite takes it back by itself when a disk is full: nobody is told that his part is committed."""

    def lose_it(connection: Connection) -> None:
        driver_of(connection).execute("ROLLBACK")
        raise sqlite3.OperationalError("database or disk is full")

    gate = Gate(site.writer)
    futures = gate.queue(put("first"), lose_it, put("last"))
    site.told.clear()
    gate.open()
    assert [Reason.JOURNAL_UNWRITABLE] * 3 == [getattr(outcome(future), "reason", None) for future in futures]
    assert set() == site.stored()
    assert ["committed", "doubted"] == site.told  # the gate's own, and the batch
    assert "later" == site.writer.write(put("later"))


def test_an_interrupted_caller_leaves_nobody_waiting(site: Site) -> None:
    """Ctrl-C reaches the thread that commits for the others: they are answered, and the next write succeeds."""

    def interrupt(_connection: Connection) -> None:
        raise KeyboardInterrupt

    gate = Gate(site.writer)
    futures = gate.queue(put("first"), interrupt, put("last"))
    gate.open()
    found = [future.exception(PATIENCE) for future in futures]
    assert {KeyboardInterrupt: 1, JournalFailed: 2} == Counter(type(exc) for exc in found)
    assert set() == site.stored()
    assert "later" == site.writer.write(put("later"))


def test_a_refusal_names_no_parameters(writer: Writer) -> None:
    """SQLAlchemy's own words would hold the sealed blob."""
    writer.write(put("hunter2"))
    with pytest.raises(JournalFailed) as caught:
        writer.write(put("hunter2"))
    assert "hunter2" not in str(caught.value)
    assert "INSERT" not in str(caught.value)


def test_what_another_connection_wrote_is_doubted(tmp_path: Path) -> None:
    """Told inside the next transaction, before its work, and never for what the writer wrote itself."""
    path = tmp_path / "rotator.db"
    site = Site(writing_connection(path))
    site.writer.write(put("a"))
    site.told.clear()
    site.writer.write(put("b"))
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("DELETE FROM facts")
    site.writer.write(lambda _connection: site.told.append("work"))
    assert ["committed", "doubted", "work", "committed"] == site.told
    site.writer.close()


def test_a_lock_of_another_connection_is_an_error_and_then_over(tmp_path: Path) -> None:
    """Somebody holds the file for longer than we wait: JournalFailed, and nothing is known for certain."""
    path = tmp_path / "rotator.db"
    connection = writing_connection(path)
    driver_of(connection).execute("PRAGMA busy_timeout=10")
    site = Site(connection)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalFailed, match="locked") as caught:
            site.writer.write(put("a"))
        other.execute("ROLLBACK")
    assert (Reason.JOURNAL_UNWRITABLE, ["doubted"]) == (caught.value.reason, site.told)
    assert "b" == site.writer.write(put("b"))
    assert {"b"} == site.stored()
    site.writer.close()


def test_closing_waits_for_the_work_under_way(site: Site) -> None:
    """The step of a rotation that is being committed is not lost."""
    gate = Gate(site.writer)
    ending = threading.Thread(target=site.writer.close, daemon=True)
    ending.start()
    gate.open()
    ending.join(PATIENCE)
    assert not ending.is_alive()


def test_a_write_after_the_end_is_refused(writer: Writer) -> None:
    """And not forgotten in a queue that nobody reads."""
    writer.close()
    refused = outcome(started(writer, put("late")))
    assert isinstance(refused, JournalFailed)


def test_a_write_that_races_with_the_end_is_answered(site: Site) -> None:
    """It comes while `close` waits for its turn: committed or refused, never left waiting."""
    gate = Gate(site.writer)
    ending = threading.Thread(target=site.writer.close, daemon=True)
    ending.start()
    (late,) = gate.queue(put("late"))
    gate.open()
    ending.join(PATIENCE)
    assert not ending.is_alive()
    assert isinstance(outcome(late), JournalFailed | str)
