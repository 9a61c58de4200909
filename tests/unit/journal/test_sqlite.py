"""The journal's file: what is committed, what is erased, who may read and who may write."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy import event as sql

from rotator.errors import JournalFailed, JournalLocked
from rotator.journal.seal import Seal
from rotator.journal.sqlite import ERASE, Blob, SqliteJournal, locked
from rotator.keys import ConsumerFacts, KeyRecord
from rotator.lifecycle import ConsumerProgress, Rotation
from rotator.model import Identity, Result, RotationEvent, Step, Ticket, Verdict
from rotator.reasons import Reason

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
SEAL = Seal(b"k" * 32)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/rotator.db"


@pytest.fixture
def journal(url: str) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(url)
    yield journal
    journal.close()


def event(name: str = "step", at: datetime = NOW, key: str = "building-a") -> RotationEvent:
    return RotationEvent(at=at, key=key, provider="acme", name=name, step=Step.PROBE, result="ok", detail="well")


def known(record: KeyRecord | None) -> KeyRecord:
    assert record is not None
    return record


def as_it_is(record: KeyRecord) -> Callable[[KeyRecord | None], KeyRecord]:
    return lambda _old: record


def writing_engine(journal: SqliteJournal) -> Engine:
    assert journal._writer is not None
    return journal._writer._engine


def everything_on_disk(journal: SqliteJournal) -> bytes:
    return b"".join(path.read_bytes() for path in journal.path.parent.glob("rotator.db*"))


# --- what goes in comes out --------------------------------------------------------------------------------------


def test_records_come_back_to_the_last_field(journal: SqliteJournal, url: str) -> None:
    """Microseconds, floats, enums, mappings; in another process's eyes too."""
    journal.save(key=KEY.name, change=as_it_is(KEY), rotation=ROTATION, history=[event()])
    with closing(SqliteJournal(url, read_only=True)) as reader:
        assert KEY == reader.key("building-a")
        assert [KEY] == reader.all_keys()
        assert ROTATION == reader.open_rotation("building-a")
        assert [("building-a", NOW)] == reader.upcoming(10)
        assert NOW == reader.history()[0]["at"]


def test_a_journal_survives_its_process(journal: SqliteJournal, url: str) -> None:
    """Closed and opened again, with the migrations run a second time."""
    journal.save(key=KEY.name, change=as_it_is(KEY))
    journal.close()
    with closing(SqliteJournal(url)) as again:
        assert again.is_new is False
        assert KEY == again.key("building-a")


def test_a_step_is_committed_whole_or_not_at_all(journal: SqliteJournal) -> None:
    """A change that fails takes its rotation and its history with it."""

    def broken(_old: KeyRecord | None) -> KeyRecord:
        raise ValueError("naive")

    with pytest.raises(ValueError, match="naive"):
        journal.save(key=KEY.name, change=broken, rotation=ROTATION, history=[event()])
    assert (None, None, []) == (journal.key(KEY.name), journal.open_rotation(KEY.name), journal.history())


def test_two_threads_lose_no_update_of_one_record(journal: SqliteJournal) -> None:
    """A pause by a person and a look at the list at the same moment: both are kept."""
    journal.save(key=KEY.name, change=as_it_is(replace(KEY, failures=0, not_before=NOW)))

    def count_failures() -> None:
        for _ in range(40):
            journal.save(key=KEY.name, change=lambda old: replace(known(old), failures=known(old).failures + 1))

    def move_time() -> None:
        for _ in range(40):
            journal.save(
                key=KEY.name,
                change=lambda old: replace(known(old), not_before=(known(old).not_before or NOW) + timedelta(hours=1)),
            )

    threads = [threading.Thread(target=work) for work in (count_failures, count_failures, move_time)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = known(journal.key(KEY.name))
    assert (80, NOW + timedelta(hours=40)) == (record.failures, record.not_before)


def test_the_key_that_waits_longest_comes_first(journal: SqliteJournal) -> None:
    """Keys that want nothing are left out; a limit keeps the most urgent ones."""
    for name, wake in (("b", NOW), ("a", NOW + timedelta(seconds=1)), ("c", None), ("d", NOW - timedelta(days=1))):
        journal.save(key=name, change=as_it_is(replace(KEY, name=name, wake_at=wake)))
    assert ["d", "b"] == [name for name, _ in journal.upcoming(2)]
    assert ["d", "b", "a"] == [name for name, _ in journal.upcoming(10)]


def test_an_ended_rotation_is_open_no_more(journal: SqliteJournal) -> None:
    """It moves to the history of rotations, the newest first."""
    ended = replace(ROTATION, finished_at=NOW, result=Result.SUCCEEDED)
    second = replace(ROTATION, id="r2", started_at=NOW + timedelta(minutes=1))
    journal.save(rotation=ROTATION)
    journal.save(rotation=ended)
    journal.save(rotation=second)
    assert second == journal.open_rotation("building-a")
    assert {"building-a": second} == journal.open_rotations()
    assert [second, ended] == journal.recent_rotations()
    assert [] == journal.recent_rotations(key="building-b")


def test_the_newest_event_of_each_key(journal: SqliteJournal) -> None:
    """What stands beside the key on the status page."""
    journal.save(history=[event("first"), event("second"), event("other", key="building-b")])
    assert {"building-a": "second", "building-b": "other"} == {k: e["name"] for k, e in journal.last_events().items()}
    assert ["second", "first"] == [e["name"] for e in journal.history(key="building-a")]


def test_forgotten_keys_leave_their_rotations(journal: SqliteJournal) -> None:
    """History outlives the configuration."""
    journal.save(key=KEY.name, change=as_it_is(KEY), rotation=replace(ROTATION, finished_at=NOW))
    journal.forget_keys([KEY.name, "never heard of"])
    assert ([], 1) == (journal.all_keys(), len(journal.recent_rotations()))


def test_pruning_keeps_what_is_young_open_or_sealed(journal: SqliteJournal) -> None:
    """A sealed answer is never thrown away because it is old."""
    old, young = NOW - timedelta(days=400), NOW
    journal.save(rotation=replace(ROTATION, id="old", started_at=old, finished_at=old), history=[event("old", old)])
    journal.save(rotation=replace(ROTATION, id="open", started_at=old))
    sealed = replace(ROTATION, id="sealed", started_at=old, finished_at=old, sealed=True)
    journal.save(rotation=sealed, data_key=b"key", blob=Blob(at=old, sealed=b"blob"))
    journal.save(rotation=replace(ROTATION, id="young", finished_at=young), history=[event("young")])
    journal.prune(NOW - timedelta(days=365))
    assert {"open", "sealed", "young"} == {rotation.id for rotation in journal.recent_rotations()}
    assert ["young"] == [e["name"] for e in journal.history()]


def test_facts_are_overwritten(journal: SqliteJournal) -> None:
    """One value a name."""
    journal.set_fact("seal_id", b"one")
    journal.set_fact("seal_id", b"two")
    assert (b"two", None) == (journal.fact("seal_id"), journal.fact("nothing"))


# --- sealed secrets ----------------------------------------------------------------------------------------------


def test_a_sealed_secret_waits_with_its_data_key(journal: SqliteJournal) -> None:
    """Later steps of the rotation leave it alone; what waits is counted, the oldest first."""
    data_key = SEAL.new_data_key()
    sealed = SEAL.seal(data_key, b"hunter2", bound_to="building-a/r1")
    waiting = replace(ROTATION, sealed=True, step=Step.PROMOTE)
    journal.save(rotation=waiting, data_key=data_key, blob=Blob(at=NOW, sealed=sealed))
    journal.save(rotation=replace(waiting, attempts=1))
    later = NOW + timedelta(seconds=1)
    other = replace(waiting, id="r2", key="building-b")
    journal.save(rotation=other, data_key=data_key, blob=Blob(at=later, sealed=sealed))
    row = journal.sealed("r1")
    assert row is not None
    assert (1, data_key, NOW, True) == (row.rotation.attempts, row.data_key, row.sealed_at, row.holds_secret)
    assert b"hunter2" == SEAL.open(row.data_key, row.sealed, bound_to="building-a/r1")
    assert [("building-a", NOW), ("building-b", later)] == journal.waiting_secrets()


def test_an_answer_without_a_secret_is_kept_but_does_not_count(journal: SqliteJournal) -> None:
    """`rotator_sealed_secrets` counts secrets, not every sealed answer."""
    journal.save(rotation=ROTATION, data_key=b"key", blob=Blob(at=NOW, sealed=b"an answer"))
    row = journal.sealed("r1")
    assert row is not None
    assert (False, []) == (row.holds_secret, journal.waiting_secrets())


def test_erasing_leaves_no_byte_of_the_blob(journal: SqliteJournal) -> None:
    """Not in the file, not in the write-ahead log, not in the shared memory; nor its data key, nor older ones."""
    blobs = [os.urandom(5000) for _ in range(3)]
    keys = [os.urandom(60) for _ in range(3)]
    for number, (blob, data_key) in enumerate(zip(blobs, keys, strict=True)):
        rotation = replace(ROTATION, id=f"r{number}", sealed=True)
        journal.save(rotation=rotation, data_key=data_key, blob=Blob(at=NOW, sealed=blob))
    found = everything_on_disk(journal)
    assert all(any(blob[at : at + 16] in found for at in range(0, 5000, 100)) for blob in blobs)
    ended = replace(ROTATION, id="r2", finished_at=NOW, result=Result.SUCCEEDED)
    journal.save(rotation=ended, blob=ERASE)
    left = everything_on_disk(journal)
    assert [] == [at for blob in blobs for at in range(0, 5000, 100) if blob[at : at + 16] in left]
    assert [] == [number for number, data_key in enumerate(keys) if data_key in left]
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
    """`rotator history` is reading while a rotation ends: once it is done, the next commits wipe what it held."""
    blob = os.urandom(3000)
    journal.save(rotation=replace(ROTATION, sealed=True), data_key=b"key", blob=Blob(at=NOW, sealed=blob))
    with closing(sqlite3.connect(journal.path)) as reader:
        reader.isolation_level = None
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM rotations").fetchone()
        journal.save(rotation=replace(ROTATION, finished_at=NOW), blob=ERASE)
        reader.execute("COMMIT")
    for _ in range(3):
        journal.save(history=[event()])
    assert blob[:16] not in everything_on_disk(journal)


# --- who may open it ---------------------------------------------------------------------------------------------


def test_files_are_for_their_owner_only(journal: SqliteJournal) -> None:
    """The database, its log and its shared memory."""
    journal.save(history=[event()])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in journal.path.parent.iterdir()}
    assert dict.fromkeys(("rotator.db", "rotator.db-wal", "rotator.db-shm"), 0o600) == modes


def test_durability_is_what_the_rules_ask_for(journal: SqliteJournal) -> None:
    """WAL, synchronous=FULL (2), secure_delete: on the connection that writes."""
    with writing_engine(journal).connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "secure_delete")
        }
    assert {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1} == found


def test_a_reader_sees_commits_while_the_daemon_writes(journal: SqliteJournal, url: str) -> None:
    """Opened before the writes; it neither blocks them nor is blocked."""
    with closing(SqliteJournal(url, read_only=True)) as reader:
        for number in range(20):
            journal.save(key=KEY.name, change=as_it_is(replace(KEY, failures=number)), history=[event()])
            assert number == known(reader.key(KEY.name)).failures
        assert 20 == len(reader.history())


def test_a_reader_opens_the_journal_of_a_daemon_that_has_ended(journal: SqliteJournal, url: str) -> None:
    """The log and the shared memory are gone then."""
    journal.save(key=KEY.name, change=as_it_is(KEY))
    journal.close()
    with closing(SqliteJournal(url, read_only=True)) as reader:
        assert KEY == reader.key("building-a")


def test_a_reader_may_not_write(journal: SqliteJournal, url: str) -> None:
    """Neither through the journal nor through SQLite itself."""
    with closing(SqliteJournal(url, read_only=True)) as reader:
        with pytest.raises(JournalFailed) as caught:
            reader.save(history=[event()])
        with pytest.raises(Exception, match="readonly"), reader._engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM events")
    assert Reason.JOURNAL_UNWRITABLE == caught.value.reason


def test_a_reader_makes_no_journal(url: str, tmp_path: Path) -> None:
    """`status` before the first start leaves nothing behind."""
    with pytest.raises(JournalFailed) as caught:
        SqliteJournal(url, read_only=True)
    assert Reason.JOURNAL_UNREADABLE == caught.value.reason
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["with space", "50%25 off", "a#b", "übung"])
def test_odd_names_of_folders_are_only_names(tmp_path: Path, folder: str) -> None:
    """A URI is made of the path, and its special characters must not change where the journal lies."""
    path = tmp_path / folder / "rotator.db"
    with closing(SqliteJournal(f"sqlite:///{path}")) as journal:
        journal.save(key=KEY.name, change=as_it_is(KEY))
        assert KEY == journal.key(KEY.name)
    assert path.is_file()
    assert [path.parent] == list(tmp_path.iterdir())


def test_a_file_that_is_no_journal_is_refused_and_kept(url: str, tmp_path: Path) -> None:
    """Named, and not overwritten."""
    path = tmp_path / "state" / "rotator.db"
    path.parent.mkdir()
    path.write_bytes(b"this is a letter to my aunt " * 100)
    with pytest.raises(JournalFailed) as caught:
        SqliteJournal(url)
    assert Reason.JOURNAL_UNREADABLE == caught.value.reason
    assert str(path) in caught.value.message
    assert path.read_bytes().startswith(b"this is a letter")


def test_a_journal_of_a_newer_rotator_is_refused_by_name(journal: SqliteJournal, url: str) -> None:
    """After a downgrade: an error of ours, not alembic's traceback."""
    journal.close()
    with closing(sqlite3.connect(journal.path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(JournalFailed) as caught:
        SqliteJournal(url)
    assert Reason.JOURNAL_UNREADABLE == caught.value.reason


def test_a_record_that_can_not_be_read_is_named(journal: SqliteJournal) -> None:
    """Somebody edited the file by hand."""
    journal.save(key=KEY.name, change=as_it_is(KEY))
    with closing(sqlite3.connect(journal.path)) as connection, connection:
        connection.execute("UPDATE keys SET record = '{\"name\": 7}'")
    with pytest.raises(JournalFailed) as caught:
        journal.key(KEY.name)
    assert Reason.JOURNAL_UNREADABLE == caught.value.reason


def test_a_database_that_takes_no_more_says_so_and_recovers(journal: SqliteJournal) -> None:
    """A full disk, here SQLite's own limit of pages: JournalFailed, and the next write that fits succeeds."""
    with writing_engine(journal).connect() as connection:
        pages = int(connection.exec_driver_sql("PRAGMA page_count").scalar() or 0)
    full = {"limit": pages}

    def limit(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {full['limit']}")

    sql.listen(writing_engine(journal), "begin", limit)
    with pytest.raises(JournalFailed) as caught:
        journal.save(rotation=ROTATION, data_key=b"key", blob=Blob(at=NOW, sealed=bytes(200_000)))
    assert Reason.JOURNAL_UNWRITABLE == caught.value.reason
    full["limit"] = 1_000_000
    journal.save(rotation=ROTATION, data_key=b"key", blob=Blob(at=NOW, sealed=bytes(200_000)))
    assert ROTATION == journal.open_rotation(ROTATION.key)


# --- the lock ----------------------------------------------------------------------------------------------------


def test_one_process_holds_the_journal(tmp_path: Path) -> None:
    """The other is told who it is, under a name of its own, and gets it as soon as it is free."""
    path = tmp_path / "state" / "rotator.db"
    with locked(path):
        with pytest.raises(JournalLocked) as caught, locked(path):
            pass
        assert str(os.getpid()) in caught.value.message
    with locked(path):
        pass
    assert Reason.UNFORESEEN != caught.value.reason, "its advice would be: a fault in rotator itself"


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    """The lock dies with it; nothing has to be cleaned up by hand."""
    path = tmp_path / "rotator.db"
    program = (
        "import sys, pathlib; from rotator.journal.sqlite import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert "held\n" == child.stdout.readline()
            with pytest.raises(JournalLocked, match=str(child.pid)), locked(path):
                pass
        finally:
            child.kill()
    with locked(path):
        assert path.with_name("rotator.db.lock").is_file()
