"""The seal that the configuration asks for: opened, refused with the name of the key to bring, and replaced."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rotator.errors import JournalFailed, Permanent
from rotator.journal.keeping import seal_id
from rotator.journal.seal import KeyWrap, Seal
from rotator.journal.seal_file import make_key, read_key
from rotator.journal.sqlite import Blob, SqliteJournal
from rotator.keys import KeyRecord
from rotator.model import Identity, Step
from rotator.reasons import Reason
from rotator.rotation import Rotation
from rotator.sealing import open_seal, prove, refuse_while_secrets_wait, rotate_key
from rotator.settings import FileSeal, TransitSeal

NOW = datetime(2026, 3, 24, 12, 0, tzinfo=UTC)
FIELDS = {"username": "id-1", "password": "hunter2"}
ROW = "building-a/r1"


def no_store() -> Any:
    """Vault is not asked."""
    raise AssertionError("Vault was asked")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state folder."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def journal(state: Path) -> Iterator[SqliteJournal]:
    """A journal, open and new."""
    with closing(SqliteJournal(f"sqlite:///{state}/rotator.db")) as made:
        yield made


def settings(state: Path) -> FileSeal:
    """A key file in the state folder."""
    return FileSeal(path=str(state / "seal.key"))


def seal_something(journal: SqliteJournal, seal: Seal) -> None:
    """A secret waits, and so does a key whose print is known."""
    rotation = Rotation(
        id="r1",
        key="building-a",
        provider="acme",
        identity=Identity(id="id-1", username="id-1"),
        trigger=Reason.NEAR_EXPIRY,
        started_at=NOW,
        step=Step.PROMOTE,
        answers=1,
        sealed=True,
    )
    wrapped = seal.new_data_key()
    sealed = seal.seal(wrapped, b"secret", bound_to=ROW)
    journal.save(rotation=rotation, data_key=wrapped, blob=Blob(at=NOW, sealed=sealed))


def opened(journal: SqliteJournal, seal: Seal) -> bytes:
    """What waits, opened."""
    row = journal.sealed("r1")
    assert row is not None
    return seal.open(row.data_key, row.sealed, bound_to=ROW)


# --- opened ------------------------------------------------------------------------------------------------------


def test_the_key_is_made_with_the_first_journal(state: Path, journal: SqliteJournal) -> None:
    """The journal notes its id; the next start finds the same key, and the same prints."""
    seal, prints = open_seal(settings(state), journal, no_store)
    again, same = open_seal(settings(state), journal, no_store)
    assert {seal.id} == {again.id, seal_id(journal), read_key(state / "seal.key").id}
    assert prints.of(FIELDS) == same.of(FIELDS)


def test_a_key_that_was_made_before_is_taken(state: Path, journal: SqliteJournal) -> None:
    """`rotator seal init`, or an operator's own file."""
    made = make_key(state / "seal.key")
    assert made.id == open_seal(settings(state), journal, no_store)[0].id


def test_a_missing_key_and_a_waiting_secret(state: Path, journal: SqliteJournal) -> None:
    """The refusal names the file, the id of the key to bring, and the keys that wait; nothing is made."""
    seal, _ = open_seal(settings(state), journal, no_store)
    seal_something(journal, seal)
    (state / "seal.key").unlink()
    with pytest.raises(JournalFailed) as caught:
        open_seal(settings(state), journal, no_store)
    assert Reason.SEAL_KEY_MISSING == caught.value.reason
    assert all(word in caught.value.message for word in (str(state / "seal.key"), "missing", seal.id, "building-a"))
    assert not (state / "seal.key").exists()


def test_another_key_and_a_waiting_secret(state: Path, journal: SqliteJournal) -> None:
    """The refusal names both keys, and changes nothing: with the right one back, everything opens."""
    seal, _ = open_seal(settings(state), journal, no_store)
    seal_something(journal, seal)
    right = (state / "seal.key").rename(state / "kept.key")
    other = make_key(state / "seal.key")
    with pytest.raises(JournalFailed) as caught:
        open_seal(settings(state), journal, no_store)
    assert Reason.SEAL_KEY_MISSING == caught.value.reason
    assert all(word in caught.value.message for word in (other.id, seal.id, "building-a"))
    right.rename(state / "seal.key")
    assert b"secret" == opened(journal, open_seal(settings(state), journal, no_store)[0])


def test_a_broken_key_and_a_waiting_secret(state: Path, journal: SqliteJournal) -> None:
    """What is wrong with the file stands beside what it is needed for."""
    seal, _ = open_seal(settings(state), journal, no_store)
    seal_something(journal, seal)
    (state / "seal.key").write_text("something else\n")
    with pytest.raises(JournalFailed) as caught:
        open_seal(settings(state), journal, no_store)
    assert Reason.SEAL_BROKEN == caught.value.reason
    assert all(word in caught.value.message for word in ("not a seal key", seal.id, "building-a"))


def test_a_missing_key_that_nobody_needs(state: Path, journal: SqliteJournal) -> None:
    """No secret waits: a new key is made, and Vault is looked at as at first contact."""
    seal, _ = open_seal(settings(state), journal, no_store)
    known = KeyRecord(name="building-a", provider="acme", id="id-1", adopted=True, fingerprint="under the old key")
    journal.save(key=known.name, change=lambda _old: known)
    (state / "seal.key").unlink()
    new, _ = open_seal(settings(state), journal, no_store)
    assert seal.id != new.id == seal_id(journal)
    found = journal.key("building-a")
    assert found is not None
    assert (None, None) == (found.fingerprint, found.adopted)


def test_transit_opens_without_asking_vault(journal: SqliteJournal) -> None:
    """A daemon starts while Vault is down: its key is known by its name."""
    seal, _ = open_seal(TransitSeal(kind="vault-transit"), journal, no_store)
    assert ("vault-transit:transit/rotator",) * 2 == (seal.id, seal_id(journal))


def test_from_a_file_to_transit_while_a_secret_waits(state: Path, journal: SqliteJournal) -> None:
    """The configuration was changed too early: the old key is asked for."""
    seal, _ = open_seal(settings(state), journal, no_store)
    seal_something(journal, seal)
    with pytest.raises(JournalFailed) as caught:
        open_seal(TransitSeal(kind="vault-transit"), journal, no_store)
    assert all(word in caught.value.message for word in ("state.seal", "vault-transit:transit/rotator", seal.id))


def test_a_new_key_is_refused_while_secrets_wait(state: Path, journal: SqliteJournal) -> None:
    """`seal init` would make a key that opens nothing; without a journal, or with nothing waiting, it may."""
    url = f"sqlite:///{state}/rotator.db"
    refuse_while_secrets_wait(f"sqlite:///{state}/none.db")
    seal, _ = open_seal(settings(state), journal, no_store)
    refuse_while_secrets_wait(url)
    seal_something(journal, seal)
    with pytest.raises(JournalFailed, match=seal.id):
        refuse_while_secrets_wait(url)


def test_a_key_that_wraps_and_does_not_unwrap() -> None:
    """Proving it tells."""

    class Forgetful(KeyWrap):
        def unwrap(self, wrapped: bytes) -> bytes:
            return super().unwrap(wrapped)[::-1]

    prove(KeyWrap(b"k" * 32))
    with pytest.raises(JournalFailed):
        prove(Forgetful(b"k" * 32))


# --- replaced ----------------------------------------------------------------------------------------------------


def test_a_new_key_opens_what_the_old_one_sealed(state: Path, journal: SqliteJournal) -> None:
    """The secret opens, the prints are the same, and the old key, which opens nothing any more, is in no file."""
    seal, prints = open_seal(settings(state), journal, no_store)
    seal_something(journal, seal)
    before, old = prints.of(FIELDS), (state / "seal.key").read_bytes().strip()
    done = rotate_key(settings(state), journal, no_store)
    again, same = open_seal(settings(state), journal, no_store)
    assert (seal.id, again.id, again.id, 2) == (done.old, done.new, seal_id(journal), done.rewrapped)
    assert seal.id != again.id
    assert (b"secret", before) == (opened(journal, again), same.of(FIELDS))
    with pytest.raises(Permanent):
        opened(journal, seal)
    files = [file for file in state.rglob("*") if file.is_file()]
    assert not any(old in file.read_bytes() for file in files)
    assert ["seal.key"] == sorted(file.name for file in files if "seal" in file.name)


def test_a_journal_that_needs_another_key_is_not_rotated(state: Path, journal: SqliteJournal) -> None:
    """First bring the right key."""
    seal, _ = open_seal(settings(state), journal, no_store)
    seal_something(journal, seal)
    (state / "seal.key").unlink()
    with pytest.raises(JournalFailed, match=seal.id):
        rotate_key(settings(state), journal, no_store)
    assert not list(state.glob("seal.key*"))


@pytest.mark.timeout(300)
def test_rotate_key_killed_at_every_point(state: Path, tmp_path: Path) -> None:
    """SIGKILL at each thing that it does: the next start goes on by itself with a key that opens everything."""
    url = f"sqlite:///{state}/rotator.db"
    with closing(SqliteJournal(url)) as journal:
        seal, prints = open_seal(settings(state), journal, no_store)
        seal_something(journal, seal)
        before = prints.of(FIELDS)
    tries = tmp_path / "tries"
    tries.mkdir()
    runner = Path(__file__).with_name("sealing_killed.py")
    subprocess.run([sys.executable, str(runner), str(state), str(tries)], check=True, timeout=240)

    ids = []
    for number in range(1, len(list(tries.iterdir())) + 1):
        folder = tries / str(number)
        with closing(SqliteJournal(f"sqlite:///{folder}/rotator.db")) as journal:
            found, same = open_seal(settings(folder), journal, no_store)
            assert (b"secret", before) == (opened(journal, found), same.of(FIELDS)), number
        assert ["seal.key"] == sorted(file.name for file in folder.glob("seal.key*")), number
        ids.append(found.id)
    changed = [id != seal.id for id in ids]
    # killed before the commit the old key is still the one; from there on the new one is
    assert sorted(changed) == changed, changed
    assert (True, True) == (changed.count(False) >= 5, changed.count(True) >= 5), changed
    sys.stdout.write(f"killed at {len(ids) - 1} points: old key {changed.count(False)}, new {changed.count(True)}\n")
