"""Sealed rows as a whole: another key, everything rewrapped, what is forgotten and what is erased."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rotator.errors import JournalFailed, Permanent, Transient
from rotator.journal.keeping import fingerprint_key, forget_secret, rewrap_all, seal_id, start_anew, waiting_keys
from rotator.journal.seal import Fingerprints, KeyWrap, Seal
from rotator.journal.sqlite import ERASE, Blob, SqliteJournal
from rotator.keys import ISSUE_NOW, KeyRecord
from rotator.model import ExpirySource, Identity, Result, Step, Strategy
from rotator.reasons import Reason
from rotator.rotation import Rotation

NOW = datetime(2026, 3, 24, 12, 0, tzinfo=UTC)
OLD, NEW = KeyWrap(b"o" * 32), KeyWrap(b"n" * 32)
SECRET = b'{"secret": "hunter2"}'


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    """A journal that is sealed by the old key."""
    with closing(SqliteJournal(f"sqlite:///{tmp_path}/rotator.db")) as made:
        start_anew(made, OLD.id)
        yield made


def on_disk(journal: SqliteJournal) -> bytes:
    """The journal's bytes, with its write-ahead log."""
    return b"".join(path.read_bytes() for path in journal.path.parent.glob("rotator.db*"))


def rotation(id: str = "r1", key: str = "building-a", **facts: Any) -> Rotation:
    """A rotation whose answer is there, and which is about to promote."""
    made = Rotation(
        id=id,
        key=key,
        provider="acme",
        identity=Identity(id="id-1", username="id-1"),
        trigger=Reason.NEAR_EXPIRY,
        started_at=NOW,
        step=Step.PROMOTE,
        issues=1,
        answers=1,
        answered_at=NOW,
        expected="print-of-old",
        sealed=True,
    )
    return replace(made, **facts)


def record(name: str = "building-a", **facts: Any) -> KeyRecord:
    """A key as its lost answer left it."""
    made = KeyRecord(
        name=name,
        provider="acme",
        id="id-1",
        listed_at=NOW,
        issued_at=NOW,
        expires_at=NOW + timedelta(days=90),
        expiry_source=ExpirySource.JWT,
        last_issue_at=NOW,
        rotate_at=NOW + timedelta(days=60),
        adopted=True,
        fingerprint="print-of-old",
        vault_version=3,
        paused=True,
    )
    return replace(made, **facts)


def put(journal: SqliteJournal, made: KeyRecord) -> None:
    """Keep a key's record."""
    journal.save(key=made.name, change=lambda _old: made)


def put_sealed(journal: SqliteJournal, made: Rotation, plain: bytes = SECRET, by: KeyWrap = OLD) -> bytes:
    """Keep a rotation with a sealed blob; returns the blob."""
    seal = Seal(by)
    wrapped = seal.new_data_key()
    sealed = seal.seal(wrapped, plain, bound_to=f"{made.key}/{made.id}")
    journal.save(rotation=made, data_key=wrapped, blob=Blob(at=NOW, sealed=sealed))
    return sealed


def opened(journal: SqliteJournal, id: str, by: KeyWrap) -> bytes:
    """What lies sealed for a rotation, as the steps open it."""
    row = journal.sealed(id)
    assert row is not None
    return Seal(by).open(row.data_key, row.sealed, bound_to=f"{row.rotation.key}/{row.rotation.id}")


def key_of(journal: SqliteJournal, name: str = "building-a") -> KeyRecord:
    """A key's record."""
    found = journal.key(name)
    assert found is not None
    return found


def rotation_of(journal: SqliteJournal, id: str = "r1") -> Rotation:
    """A rotation's record."""
    found = journal.rotation(id)
    assert found is not None
    return found


# --- the key of the fingerprints ---------------------------------------------------------------------------------


def test_the_key_of_the_fingerprints_is_made_once(journal: SqliteJournal) -> None:
    """It lies wrapped in the journal, and the next process finds the same."""
    made = fingerprint_key(journal, Seal(OLD))
    assert made == fingerprint_key(journal, Seal(OLD))
    assert (32, False) == (len(made), made in on_disk(journal))


def test_a_transit_key_made_again_under_its_name_costs_the_fingerprints_only(journal: SqliteJournal) -> None:
    """Nothing can be compared any more: Vault is looked at as at first contact, and the daemon goes on."""
    lost = fingerprint_key(journal, Seal(OLD))
    put(journal, record())
    waiting = rotation(step=Step.ISSUE, answers=0, answered_at=None, sealed=False, calling_since=NOW)
    journal.save(rotation=waiting, data_key=Seal(OLD).new_data_key())
    assert lost != fingerprint_key(journal, Seal(NEW)) == fingerprint_key(journal, Seal(NEW))
    # its data key could seal nothing any more; the rotation itself is left to the engine, which is at work
    assert (waiting, None) == (rotation_of(journal), journal.data_key("r1"))
    assert (None, None) == (key_of(journal).fingerprint, key_of(journal).adopted)


def test_while_secrets_wait_the_right_key_is_insisted_on(journal: SqliteJournal) -> None:
    """Another one is refused, and nothing is dropped."""
    kept = fingerprint_key(journal, Seal(OLD))
    put(journal, record())
    put_sealed(journal, rotation())
    with pytest.raises(Permanent) as caught:
        fingerprint_key(journal, Seal(NEW))
    assert Reason.SEAL_BROKEN == caught.value.reason
    assert ("print-of-old", kept) == (key_of(journal).fingerprint, fingerprint_key(journal, Seal(OLD)))


# --- another key -------------------------------------------------------------------------------------------------


def test_starting_anew_sends_what_was_not_issued_back_to_preflight(journal: SqliteJournal) -> None:
    """Its data key and its print belong to the lost key; one that was promoted only loses its print."""
    seal = Seal(OLD)
    journal.save(
        rotation=rotation(step=Step.ISSUE, issues=0, answers=0, answered_at=None, sealed=False),
        data_key=seal.new_data_key(),
    )
    promoted = rotation("r2", "building-b", step=Step.RESTART, promoted_at=NOW, sealed=False)
    put_sealed(journal, promoted)
    fingerprint_key(journal, seal)
    put(journal, record())
    start_anew(journal, NEW.id)
    assert (NEW.id, None) == (seal_id(journal), journal.fact("fingerprint_key"))
    found = rotation_of(journal)
    assert (Step.PREFLIGHT, None, None) == (found.step, found.expected, journal.data_key("r1"))
    assert replace(promoted, expected=None) == rotation_of(journal, "r2")
    assert (None, None) == (key_of(journal).fingerprint, key_of(journal).adopted)


def test_a_call_that_is_out_is_not_forgotten(journal: SqliteJournal) -> None:
    """Starting anew never makes an unknown outcome a known one (rule 9)."""
    calling = rotation(step=Step.ISSUE, answers=0, answered_at=None, sealed=False, calling_since=NOW)
    journal.save(rotation=calling)
    start_anew(journal, NEW.id)
    assert replace(calling, expected=None) == rotation_of(journal)


# --- rewrapped ---------------------------------------------------------------------------------------------------


def rewrapped(wrapped: bytes) -> bytes:
    """From the old key to the new one."""
    return NEW.wrap(OLD.unwrap(wrapped))


def test_everything_opens_with_the_new_key_and_nothing_with_the_old(journal: SqliteJournal) -> None:
    """A secret that waits, a rotation that is about to issue, the fingerprints; no old wrapping is left on the disk."""
    put_sealed(journal, rotation())
    about_to = Seal(OLD).new_data_key()
    journal.save(rotation=rotation("r2", "building-b", step=Step.ISSUE, answers=0, sealed=False), data_key=about_to)
    ended = Seal(OLD).new_data_key()
    journal.save(rotation=rotation("r3", "building-c", finished_at=NOW, answers=0, sealed=False), data_key=ended)
    printed = Fingerprints(fingerprint_key(journal, Seal(OLD))).of({"password": "hunter2"})
    before = [journal.data_key("r1"), about_to, ended, journal.fact("fingerprint_key")]

    assert 3 == rewrap_all(journal, rewrapped, NEW.id)

    assert (NEW.id, SECRET) == (seal_id(journal), opened(journal, "r1", NEW))
    assert OLD.unwrap(about_to) == NEW.unwrap(journal.data_key("r2") or b"")
    assert journal.data_key("r3") is None
    assert printed == Fingerprints(fingerprint_key(journal, Seal(NEW))).of({"password": "hunter2"})
    disk = on_disk(journal)
    assert [False] * 4 == [wrapped is None or wrapped in disk for wrapped in before]
    with pytest.raises(Permanent):
        opened(journal, "r1", OLD)


def test_rewrapping_changes_all_or_nothing(journal: SqliteJournal) -> None:
    """Vault goes away in the middle: everything is as it was."""
    put_sealed(journal, rotation())
    put_sealed(journal, rotation("r2", "building-b"))
    before = journal.wrapped_keys()
    asked: list[bytes] = []

    def away(wrapped: bytes) -> bytes:
        asked.append(wrapped)
        if len(asked) == 2:
            raise Transient("vault: it is sealed", reason=Reason.VAULT_SEALED)
        return rewrapped(wrapped)

    with pytest.raises(Transient):
        rewrap_all(journal, away, NEW.id)
    assert (2, before, OLD.id) == (len(asked), journal.wrapped_keys(), seal_id(journal))


def test_rewrapped_keys_are_one_commit_with_the_id(journal: SqliteJournal) -> None:
    """What the journal refuses in the middle takes all of it back."""
    put_sealed(journal, rotation())
    before = journal.wrapped_keys()
    refused: dict[Any, bytes | None] = {"seal_id": b"another", None: b"no name"}
    with pytest.raises(JournalFailed):
        journal.rewrap({"r1": b"another"}, refused)
    assert (before, OLD.id) == (journal.wrapped_keys(), seal_id(journal))


def test_an_answer_that_was_lost_before_does_not_stop_it(journal: SqliteJournal) -> None:
    """An answer without a secret, sealed by a key that was lost long ago, stays closed; a secret would stop it."""
    put_sealed(journal, rotation(answers=0, answered_at=None, sealed=False, step=Step.PREFLIGHT), by=KeyWrap(b"x" * 32))
    put_sealed(journal, rotation("r2", "building-b"))
    assert 1 == rewrap_all(journal, rewrapped, NEW.id)
    assert SECRET == opened(journal, "r2", NEW)
    put_sealed(journal, rotation("r3", "building-c"), by=KeyWrap(b"x" * 32))
    with pytest.raises(Permanent):
        rewrap_all(journal, lambda wrapped: OLD.wrap(NEW.unwrap(wrapped)), OLD.id)
    assert (NEW.id, SECRET) == (seal_id(journal), opened(journal, "r2", NEW))


# --- forgotten ---------------------------------------------------------------------------------------------------


def test_a_forgotten_secret_is_erased_and_its_rotation_ended(journal: SqliteJournal) -> None:
    """No byte of the blob or its data key is left; the history says who is to blame; other keys keep theirs."""
    put(journal, record())
    blob, other = put_sealed(journal, rotation()), put_sealed(journal, rotation("r2", "building-b"))
    wrapped = journal.data_key("r1")
    assert (True, True) == (blob in on_disk(journal), (wrapped or b"?") in on_disk(journal))

    done = forget_secret(journal, "building-a", NOW + timedelta(hours=1))

    assert (1, True, "") == (done.blobs, done.rotates, done.orphan)
    disk = on_disk(journal)
    assert (False, False, True) == (blob in disk, (wrapped or b"?") in disk, other in disk)
    ended = rotation_of(journal)
    assert (Result.FAILED, Reason.SECRET_FORGOTTEN, False) == (ended.result, ended.reason, ended.sealed)
    assert NOW + timedelta(hours=1) == ended.finished_at
    assert (None, ["building-b"]) == (journal.open_rotation("building-a"), waiting_keys(journal))
    told = [(event["name"], event["reason"], event["rotation"]) for event in journal.history(key="building-a")]
    assert [(name, "secret_forgotten", "r1") for name in ("rotation_ended", "secret_forgotten")] == told


def test_after_it_the_key_is_rotated_and_nothing_is_assumed(journal: SqliteJournal) -> None:
    """What the lost answer said is forgotten too, the provider's list tells anew; a pause and Vault's version stay."""
    put(journal, record())
    put_sealed(journal, rotation())
    forget_secret(journal, "building-a", NOW)
    found = key_of(journal)
    assert (ISSUE_NOW, NOW, Reason.SECRET_FORGOTTEN) == (found.requested, found.wake_at, found.last_reason)
    learnt = (found.listed_at, found.issued_at, found.expires_at, found.rotate_at, found.last_issue_at)
    assert (None,) * 5 == learnt
    assert (True, 3, "print-of-old") == (found.paused, found.vault_version, found.fingerprint)


def test_an_answer_without_a_secret_is_erased_and_nothing_else_happens(journal: SqliteJournal) -> None:
    """Its rotation goes on by itself, and no second one is asked for."""
    put(journal, record())
    going_on = rotation(answers=0, answered_at=None, sealed=False, step=Step.PREFLIGHT)
    blob = put_sealed(journal, going_on, b"not json")
    done = forget_secret(journal, "building-a", NOW)
    assert (1, False) == (done.blobs, done.rotates)
    assert (going_on, record(), False) == (rotation_of(journal), key_of(journal), blob in on_disk(journal))


def test_a_chosen_secret_that_waits_for_its_call_is_a_secret(journal: SqliteJournal) -> None:
    """It was sealed before the call, which may have happened."""
    put(journal, record())
    chosen = rotation(strategy=Strategy.CHOSEN, step=Step.ISSUE, answers=0, answered_at=None, calling_since=NOW)
    put_sealed(journal, chosen)
    assert forget_secret(journal, "building-a", NOW).rotates
    assert Result.FAILED is rotation_of(journal).result


def test_the_key_that_a_lost_answer_made_is_named(journal: SqliteJournal) -> None:
    """*Replace*: it stays at the provider, and only its id is known."""
    put(journal, record())
    made = Identity(id="id-2", username="id-2")
    put_sealed(journal, rotation(strategy=Strategy.REPLACE, new_identity=made))
    assert "id-2" == forget_secret(journal, "building-a", NOW).orphan
    assert "id-2" in rotation_of(journal).detail


def test_a_secret_of_an_id_that_is_configured_no_more(journal: SqliteJournal) -> None:
    """Its rotation ended when the configuration changed; it is erased, and the new id is not rotated for it."""
    put(journal, record(id="id-9"))
    put_sealed(journal, rotation(finished_at=NOW, result=Result.FAILED, reason=Reason.KEY_UNKNOWN))
    assert not forget_secret(journal, "building-a", NOW).rotates
    assert (record(id="id-9"), []) == (key_of(journal), waiting_keys(journal))
    assert Reason.KEY_UNKNOWN is rotation_of(journal).reason


def test_a_key_that_is_configured_no_more(journal: SqliteJournal) -> None:
    """It has no record any more, and what waits for it can be forgotten all the same."""
    put_sealed(journal, rotation())
    assert not forget_secret(journal, "building-a", NOW).rotates
    assert ([], None) == (waiting_keys(journal), journal.key("building-a"))


def test_nothing_to_forget_is_said(journal: SqliteJournal) -> None:
    """A misspelt name, or a key that is well."""
    put(journal, record())
    with pytest.raises(Permanent, match="building-a"):
        forget_secret(journal, "building-a", NOW)
    assert ([], record()) == (journal.history(), key_of(journal))


# --- erased ------------------------------------------------------------------------------------------------------


def test_a_blob_is_gone_from_the_files_when_its_rotation_is_done(journal: SqliteJournal) -> None:
    """Neither the blob nor its data key is in the journal or its log: secure_delete, and the log truncated."""
    blob = put_sealed(journal, rotation())
    wrapped = journal.data_key("r1") or b"?"
    assert (True, True) == (blob in on_disk(journal), wrapped in on_disk(journal))
    journal.save(rotation=rotation(sealed=False, finished_at=NOW, result=Result.SUCCEEDED), blob=ERASE)
    assert (False, False) == (blob in on_disk(journal), wrapped in on_disk(journal))
