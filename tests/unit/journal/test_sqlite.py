"""What goes into a journal comes out of it; a step is committed whole or not at all, and never forgotten."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete

from journal_records import KEY, NOW, ROTATION, as_it_is, event, known, writing
from rotator.errors import JournalFailed
from rotator.journal.seal import Seal
from rotator.journal.sqlite import ERASE, Blob, SqliteJournal
from rotator.journal.tables import rotations
from rotator.keys import KeyRecord
from rotator.model import Result, Step
from rotator.reasons import Reason

SEAL = Seal(b"k" * 32)


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


def test_a_key_is_woken_when_its_record_says_so(journal: SqliteJournal) -> None:
    """After each change: set, moved, not touched, taken away."""
    later = NOW + timedelta(hours=1)
    for change, expected in (
        ({"wake_at": NOW}, [("building-a", NOW)]),
        ({"wake_at": later}, [("building-a", later)]),
        ({"failures": 3}, [("building-a", later)]),
        ({"wake_at": None}, []),
        ({"wake_at": NOW}, [("building-a", NOW)]),
    ):
        journal.save(key=KEY.name, change=lambda old, change=change: replace(old or KEY, **change))  # type: ignore[misc]
        assert expected == journal.upcoming(10)


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


def test_a_record_that_can_not_be_read_is_named(journal: SqliteJournal, url: str) -> None:
    """Somebody edited the file by hand while the daemon was stopped."""
    journal.save(key=KEY.name, change=as_it_is(KEY))
    journal.close()
    with closing(sqlite3.connect(journal.path)) as connection, connection:
        connection.execute("UPDATE keys SET record = '{\"name\": 7}'")
    with closing(SqliteJournal(url)) as again, pytest.raises(JournalFailed) as caught:
        again.key(KEY.name)
    assert Reason.JOURNAL_UNREADABLE == caught.value.reason


def test_a_database_that_takes_no_more_says_so_and_recovers(journal: SqliteJournal, url: str) -> None:
    """A full disk, here SQLite's own limit of pages: JournalFailed, nothing changed, and the next write succeeds."""
    journal.save(key=KEY.name, change=as_it_is(KEY), rotation=ROTATION)
    with writing(journal) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalFailed) as caught:
        journal.save(
            key=KEY.name,
            change=lambda old: replace(known(old), failures=7),
            rotation=replace(ROTATION, attempts=7),
            data_key=b"key",
            blob=Blob(at=NOW, sealed=bytes(200_000)),
        )
    assert Reason.JOURNAL_UNWRITABLE == caught.value.reason
    assert journal.unwritable is not None
    assert caught.value.message == journal.unwritable.message
    with closing(SqliteJournal(url, read_only=True)) as reader:
        for eyes in (journal, reader):
            assert (KEY, ROTATION) == (eyes.key(KEY.name), eyes.open_rotation(KEY.name))
    with writing(journal) as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    counted = journal.save(key=KEY.name, change=lambda old: replace(known(old), failures=known(old).failures + 1))
    assert KEY.failures + 1 == known(counted).failures
    assert journal.unwritable is None


def test_a_trial_says_whether_a_write_would_succeed(journal: SqliteJournal) -> None:
    """It fails where a write would, is durable where it would be, and changes nothing."""
    journal.save(key=KEY.name, change=as_it_is(KEY))
    with writing(journal) as connection:
        connection.execute("PRAGMA query_only=ON")
    with pytest.raises(JournalFailed):
        journal.try_writing()
    assert journal.unwritable is not None
    with writing(journal) as connection:
        connection.execute("PRAGMA query_only=OFF")
    log = Path(f"{journal.path}-wal")
    before = log.stat().st_size, log.read_bytes()
    journal.try_writing()
    assert ([KEY], True) == (journal.all_keys(), before != (log.stat().st_size, log.read_bytes()))
    assert journal.unwritable is None


# --- in memory ---------------------------------------------------------------------------------------------------


def test_a_journal_in_memory_is_a_journal(tmp_path: Path) -> None:
    """For the simulation: what goes in comes out, each journal for itself, and no file is made."""
    with closing(SqliteJournal("sqlite://")) as journal, closing(SqliteJournal("sqlite://")) as other:
        journal.save(key=KEY.name, change=as_it_is(KEY), rotation=ROTATION, data_key=b"key", history=[event()])
        assert (KEY, ROTATION) == (journal.key(KEY.name), journal.open_rotation(KEY.name))
        assert b"key" == journal.data_key("r1")
        assert [("building-a", NOW)] == journal.upcoming(10)
        assert ["step"] == [e["name"] for e in journal.history()]
        ended = replace(ROTATION, finished_at=NOW, result=Result.SUCCEEDED)
        journal.save(rotation=ended, blob=ERASE)
        assert (None, [ended]) == (journal.open_rotation(KEY.name), journal.recent_rotations())
        assert ([], None) == (other.all_keys(), other.key(KEY.name))
        with pytest.raises(JournalFailed, match="in memory"):
            _ = journal.path


# --- what is kept in memory --------------------------------------------------------------------------------------


def test_what_is_kept_in_memory_is_what_the_file_holds(journal: SqliteJournal, url: str) -> None:
    """Through a rotation's life, an ERASE, forgotten keys, silent writes: both are asked after each commit."""
    ended = replace(ROTATION, finished_at=NOW, result=Result.SUCCEEDED)
    second = replace(ROTATION, id="r2")
    commits: list[Callable[[], object]] = [
        lambda: journal.open_rotation(KEY.name),
        lambda: journal.save(key=KEY.name, change=as_it_is(KEY)),
        lambda: journal.save(rotation=ROTATION, data_key=b"key"),
        lambda: journal.save(key=KEY.name, change=lambda old: replace(known(old), failures=3)),
        lambda: journal.save(rotation=replace(ROTATION, attempts=1), blob=Blob(at=NOW, sealed=b"blob")),
        lambda: journal.save(rotation=second),  # two that have not ended: never the engine's, but the file's to decide
        lambda: journal.save(rotation=ended, blob=ERASE),
        lambda: journal.save(rotation=replace(second, finished_at=NOW)),
        lambda: journal.save(rotation=replace(second, finished_at=None)),  # taken back from the spool
        lambda: journal.rewrap({"r2": b"other"}, {}),
        lambda: journal.save(key=KEY.name, change=lambda old: replace(known(old), wake_at=None)),
        lambda: journal.forget_keys([KEY.name]),
        lambda: journal.save(key=KEY.name, change=lambda old: KEY if old is None else old),
        lambda: journal.prune(NOW + timedelta(days=1)),
        lambda: journal._write(lambda connection: connection.execute(delete(rotations))),
    ]
    with closing(SqliteJournal(url, read_only=True)) as reader:
        for commit in commits:
            commit()
            for _ in range(2):  # the second time from memory
                assert reader.key(KEY.name) == journal.key(KEY.name)
                assert reader.open_rotation(KEY.name) == journal.open_rotation(KEY.name)
            assert reader.upcoming(5) == journal.upcoming(5)


def test_a_change_sees_what_another_connection_wrote(journal: SqliteJournal) -> None:
    """The lock file forbids it; where it happens all the same, nothing is overwritten by what was remembered."""
    journal.save(key=KEY.name, change=as_it_is(KEY))
    with closing(SqliteJournal(f"sqlite:///{journal.path}")) as other:
        other.save(key=KEY.name, change=lambda old: replace(known(old), paused=True))
    changed = journal.save(key=KEY.name, change=lambda old: replace(known(old), failures=2))
    assert (True, 2) == (known(changed).paused, known(changed).failures)
    assert changed == journal.key(KEY.name)


def test_a_reader_that_is_overtaken_does_not_bring_back_the_past(journal: SqliteJournal) -> None:
    """It read the file before a commit, and is about to remember what it read after it."""
    journal.save(key=KEY.name, change=as_it_is(KEY))
    journal.forget_keys([])  # nothing is remembered now
    read = journal._first

    def overtaken(limit: int, statement: str, **parameters: object) -> list[object]:
        found = read(limit, statement, **parameters)
        journal.save(key=KEY.name, change=lambda old: replace(known(old), failures=9))
        return found

    journal._first = overtaken  # type: ignore[method-assign]
    assert KEY == journal.key(KEY.name), "as of the moment at which it read"
    journal._first = read  # type: ignore[method-assign]
    assert 9 == known(journal.key(KEY.name)).failures


def test_many_threads_read_what_they_wrote(journal: SqliteJournal, url: str) -> None:
    """Sixteen rotations at once, and a watcher that changes the same records."""

    def rotate(name: str) -> None:
        for attempt in range(15):
            rotation = replace(ROTATION, id=name, key=name, attempts=attempt)
            journal.save(key=name, change=lambda old: replace(known(old), failures=known(old).failures + 1))
            journal.save(rotation=rotation, history=[event(key=name)])
            assert rotation == journal.open_rotation(name)

    def watch(names: list[str]) -> None:
        for name in names * 5:
            journal.save(
                key=name, change=lambda old: replace(known(old), vault_version=(known(old).vault_version or 0) + 1)
            )

    names = [f"key-{number}" for number in range(16)]
    for name in names:
        journal.save(key=name, change=as_it_is(replace(KEY, name=name, vault_version=0)))
    with ThreadPoolExecutor(17) as pool:
        for work in [pool.submit(watch, names), *(pool.submit(rotate, name) for name in names)]:
            work.result(timeout=30)
    with closing(SqliteJournal(url, read_only=True)) as reader:
        for eyes in (journal, reader):
            found = [known(eyes.key(name)) for name in names]
            assert [(15, 5)] * 16 == [(record.failures, record.vault_version) for record in found]
