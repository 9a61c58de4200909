"""Records, and ways into a journal's inside, for the tests of the journal."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rotator.journal.database import driver_of
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import ConsumerFacts, KeyRecord
from rotator.model import Identity, RotationEvent, Step, Ticket, Verdict
from rotator.reasons import Reason
from rotator.rotation import ConsumerProgress, Rotation

NOW = datetime(2026, 3, 24, 12, 0, 0, 123456, tzinfo=UTC)
KEY = KeyRecord(
    name="building-a",
    provider="acme",
    id="id-1",
    issued_at=NOW,
    draw=0.1 + 0.2,
    quarantine=Reason.SECRET_REFUSED,
    consumers={"ingest": ConsumerFacts(version=3, restarted_at=NOW)},
    verdict=Verdict.ACCEPTED,
    wake_at=NOW,
)
ROTATION = Rotation(
    id="r1",
    key="building-a",
    provider="acme",
    identity=Identity(id="id-1", username="id-1"),
    trigger=Reason.NEAR_EXPIRY,
    started_at=NOW,
    consumers=(ConsumerProgress(name="ingest", ticket=Ticket(consumer="ingest", restarted_at=NOW, marks={"pid": 7})),),
)


def event(name: str = "step", at: datetime = NOW, key: str = "building-a") -> RotationEvent:
    return RotationEvent(at=at, key=key, provider="acme", name=name, step=Step.PROBE, result="ok", detail="well")


def known(record: KeyRecord | None) -> KeyRecord:
    assert record is not None
    return record


def as_it_is(record: KeyRecord) -> Callable[[KeyRecord | None], KeyRecord]:
    return lambda _old: record


@contextmanager
def writing(journal: SqliteJournal) -> Iterator[sqlite3.Connection]:
    """The driver's connection that writes, between two transactions."""
    assert journal._writer is not None
    with journal._writer.between() as connection:
        yield driver_of(connection)


def until(done: Callable[[], bool]) -> None:
    """Wait until `done`, for a few seconds at most."""
    deadline = time.monotonic() + 5
    while not done():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def everything_on_disk(journal: SqliteJournal) -> bytes:
    return b"".join(path.read_bytes() for path in journal.path.parent.glob("rotator.db*"))
