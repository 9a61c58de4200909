"""The spool: room set aside before the call, a sealed file that survives, and a way back into the journal."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rotator.journal.seal import Seal
from rotator.journal.spool import RESERVED_BYTES, Spool
from rotator.journal.sqlite import Blob, SqliteJournal
from rotator.model import Identity, Step, Ticket
from rotator.reasons import Reason
from rotator.rotation import ConsumerProgress, Rotation

NOW = datetime(2026, 3, 24, 12, 0, tzinfo=UTC)
SEAL = Seal(b"k" * 32)
SECRET = b'{"secret": "hunter2-hunter2"}'
ROTATION = Rotation(
    id="r1",
    key="building-a",
    provider="acme",
    identity=Identity(id="id-1", username="id-1"),
    trigger=Reason.NEAR_EXPIRY,
    started_at=NOW,
    step=Step.PROMOTE,
    answered_at=NOW + timedelta(microseconds=1),
    sealed=True,
    consumers=(ConsumerProgress(name="ingest", ticket=Ticket(consumer="ingest", restarted_at=NOW, marks={"pid": 7})),),
)


def sealed() -> tuple[bytes, Blob]:
    wrapped = SEAL.new_data_key()
    return wrapped, Blob(at=NOW, sealed=SEAL.seal(wrapped, SECRET, bound_to="building-a/r1"))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "state" / "spool")


def test_room_is_really_set_aside(spool: Spool, tmp_path: Path) -> None:
    """Blocks on the disk, not a hole in a file; for the owner only."""
    spool.reserve("r1")
    (file,) = (tmp_path / "state" / "spool").iterdir()
    assert RESERVED_BYTES <= file.stat().st_blocks * 512
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert 0o700 == stat.S_IMODE(file.parent.stat().st_mode)
    spool.reserve("r1")
    assert 1 == len(list(file.parent.iterdir()))


def test_it_is_remembered_that_there_was_no_room(spool: Spool, tmp_path: Path) -> None:
    """Until there is some; the trial keeps none of it."""
    (tmp_path / "state").write_text("no folder")
    with pytest.raises(OSError, match="state"):
        spool.reserve("r1")
    assert str(tmp_path / "state" / "spool") in spool.refused
    with pytest.raises(OSError, match="state"):
        spool.try_reserving()
    (tmp_path / "state").unlink()
    spool.try_reserving()
    assert ("", False) == (spool.refused, spool.holds("trial"))


def test_what_is_spooled_survives_the_process(spool: Spool, tmp_path: Path) -> None:
    """Another process reads it from the same folder, to the last field, and only the seal opens it."""
    data_key, blob = sealed()
    spool.reserve("r1")
    assert spool.write(ROTATION, data_key, blob) is True
    found = list(Spool(tmp_path / "state" / "spool").waiting())
    assert [(ROTATION, data_key, blob)] == found
    assert SECRET == SEAL.open(found[0][1], found[0][2].sealed, bound_to="building-a/r1")


def test_the_file_shows_no_secret_and_keeps_no_padding(spool: Spool, tmp_path: Path) -> None:
    """Sealed, cut to size, for the owner only."""
    data_key, blob = sealed()
    spool.reserve("r1")
    spool.write(ROTATION, data_key, blob)
    (file,) = (tmp_path / "state" / "spool").iterdir()
    assert b"hunter2" not in file.read_bytes()
    assert b"\0" not in file.read_bytes()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)


def test_it_is_written_without_a_reservation_as_well(spool: Spool, tmp_path: Path) -> None:
    """Better unreserved than lost."""
    (tmp_path / "state" / "spool").mkdir(parents=True)
    data_key, blob = sealed()
    assert spool.write(ROTATION, data_key, blob) is True
    assert 1 == len(list(spool.waiting()))


def test_a_spool_that_can_not_be_written_says_so(tmp_path: Path) -> None:
    """The process then keeps the answer and tries on; it must not believe that a file holds it."""
    (tmp_path / "spool").write_text("a file where the folder should be")
    data_key, blob = sealed()
    assert Spool(tmp_path / "spool").write(ROTATION, data_key, blob) is False


def test_releasing_gives_everything_back(spool: Spool, tmp_path: Path) -> None:
    """What was written as well as the reserved room, which stays for the next one; releasing nothing is fine."""
    data_key, blob = sealed()
    spool.reserve("r1")
    spool.write(ROTATION, data_key, blob)
    spool.reserve("r2")
    spool.release("r1")
    assert ["r2.reserved"] == os.listdir(tmp_path / "state" / "spool")
    spool.release("r2")
    spool.release("r3")
    assert ["idle-r2.reserved"] == os.listdir(tmp_path / "state" / "spool")
    spool.reserve("r4")
    assert ["r4.reserved"] == os.listdir(tmp_path / "state" / "spool")
    assert RESERVED_BYTES == (tmp_path / "state" / "spool" / "r4.reserved").stat().st_size


def test_an_empty_or_missing_folder_waits_for_nothing(spool: Spool, tmp_path: Path) -> None:
    """The usual start."""
    assert [] == list(spool.waiting())
    spool.reserve("r1")
    assert [] == list(spool.waiting())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"rotation": {}}', b"\xff"])
def test_a_broken_file_does_not_hide_the_others(spool: Spool, tmp_path: Path, content: bytes) -> None:
    """It stays where it is, for a person, and the good one is taken."""
    data_key, blob = sealed()
    spool.reserve("r1")
    spool.write(ROTATION, data_key, blob)
    broken = tmp_path / "state" / "spool" / "a.sealed"
    broken.write_bytes(content)
    assert [ROTATION] == [rotation for rotation, _, _ in spool.waiting()]
    assert content == broken.read_bytes()


def test_the_journal_takes_back_what_was_spooled(spool: Spool, tmp_path: Path) -> None:
    """As the next start does: the row holds the secret, and the file is gone."""
    data_key, blob = sealed()
    spool.reserve("r1")
    spool.write(ROTATION, data_key, blob)
    journal = SqliteJournal(f"sqlite:///{tmp_path}/rotator.db")
    for rotation, key, waiting in spool.waiting():
        journal.save(rotation=rotation, data_key=key, blob=waiting)
        spool.release(rotation.id)
    row = journal.sealed("r1")
    waiting_secrets = journal.waiting_secrets()
    journal.close()
    assert row is not None
    assert SECRET == SEAL.open(row.data_key, row.sealed, bound_to="building-a/r1")
    assert [("building-a", NOW)] == waiting_secrets
    assert [] == list(spool.waiting())
