"""The journal's one writer: what waits together is committed together, and nobody pays for a neighbour's mistake."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from rotator.errors import JournalFailed
from rotator.journal.sqlite import SqliteJournal
from rotator.journal.writer import Writer
from rotator.reasons import Reason

PATIENCE = 3.0  # seconds until a caller that still waits counts as forgotten


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(f"sqlite:///{tmp_path}/rotator.db")
    yield journal
    journal.close()


@pytest.fixture
def engine(journal: SqliteJournal) -> Engine:
    """The engine as the journal sets it up for its own writer: WAL, FULL, savepoints, the write lock first."""
    assert journal._writer is not None
    return journal._writer._engine


@pytest.fixture
def writer(engine: Engine) -> Iterator[Writer]:
    writer = Writer(engine)
    yield writer
    closing = threading.Thread(target=writer.close, daemon=True)
    closing.start()
    closing.join(PATIENCE)


def put(name: str) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        connection.execute(text("INSERT INTO facts VALUES (:name, x'00')"), {"name": name})
        return name

    return work


def stored(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return {row[0] for row in connection.execute(text("SELECT name FROM facts"))}


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
            before = self._writer._waiting.qsize()
            futures.append(started(self._writer, work))
            while self._writer._waiting.qsize() == before:
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


def test_a_write_returns_what_the_work_returned_once_it_is_committed(writer: Writer, engine: Engine) -> None:
    """Durable for every other connection when `write` returns."""
    assert "a" == writer.write(put("a"))
    assert {"a"} == stored(engine)


def test_what_waits_together_is_one_commit(writer: Writer, engine: Engine) -> None:
    """Sixteen that wait for the disk pay for one flush."""
    commits: list[Connection] = []

    def count(connection: Connection) -> None:
        commits.append(connection)

    gate = Gate(writer)
    event.listen(engine, "commit", count)
    futures = gate.queue(*(put(str(n)) for n in range(16)))
    gate.open()
    assert [str(n) for n in range(16)] == [outcome(future) for future in futures]
    event.remove(engine, "commit", count)
    assert 2 == len(commits)  # the gate's own, and one for the sixteen


def test_more_than_a_batch_is_lost_to_nobody(writer: Writer, engine: Engine) -> None:
    """Two hundred at once, in several batches."""
    gate = Gate(writer)
    futures = gate.queue(*(put(str(n)) for n in range(200)))
    gate.open()
    assert {str(n) for n in range(200)} == {outcome(future) for future in futures} == stored(engine)


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
def test_one_failing_writer_in_a_batch_fails_alone(writer: Writer, engine: Engine, mistake: Exception) -> None:
    """Its own changes are taken back, its exception is its own, and its neighbours' work is committed."""

    def fail(connection: Connection) -> None:
        put("half")(connection)
        raise mistake

    gate = Gate(writer)
    first, bad, last = gate.queue(put("first"), fail, put("last"))
    gate.open()
    assert ("first", "last") == (outcome(first), outcome(last))
    assert mistake is outcome(bad)
    assert {"first", "last"} == stored(engine)
    assert "later" == outcome(started(writer, put("later")))


def test_a_row_that_the_database_refuses_fails_alone(writer: Writer, engine: Engine) -> None:
    """The same row twice: JournalFailed for the one who asked, nothing for the others."""
    gate = Gate(writer)
    first, twice, last = gate.queue(put("first"), put("first"), put("last"))
    gate.open()
    assert ("first", "last") == (outcome(first), outcome(last))
    refused = outcome(twice)
    assert isinstance(refused, JournalFailed)
    assert Reason.JOURNAL_UNWRITABLE == refused.reason
    assert {"first", "last"} == stored(engine)


def test_a_refusal_names_no_parameters(writer: Writer) -> None:
    """SQLAlchemy's own words would hold the sealed blob."""
    writer.write(put("hunter2"))
    with pytest.raises(JournalFailed) as caught:
        writer.write(put("hunter2"))
    assert "hunter2" not in str(caught.value)
    assert "INSERT" not in str(caught.value)


def test_closing_commits_what_waits(writer: Writer, engine: Engine) -> None:
    """The last steps of a shutdown are not lost."""
    gate = Gate(writer)
    futures = gate.queue(put("a"), put("b"))
    closing = threading.Thread(target=writer.close, daemon=True)
    closing.start()
    gate.open()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert ["a", "b"] == [outcome(future) for future in futures]
    assert {"a", "b"} == stored(engine)


def test_a_write_after_the_end_is_refused(writer: Writer) -> None:
    """And not forgotten in a queue that nobody reads."""
    writer.close()
    refused = outcome(started(writer, put("late")))
    assert isinstance(refused, JournalFailed)


def test_a_write_that_races_with_the_end_is_answered(writer: Writer) -> None:
    """It comes after `close` was called and before the thread ended: committed or refused, never left waiting."""
    gate = Gate(writer)
    before = writer._waiting.qsize()
    closing = threading.Thread(target=writer.close, daemon=True)
    closing.start()
    while writer._waiting.qsize() == before:
        threading.Event().wait(0.001)
    late = started(writer, put("late"))
    gate.open()
    closing.join(PATIENCE)
    assert isinstance(outcome(late), JournalFailed | str)
