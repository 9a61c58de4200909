"""The seal: what a blob needs to be opened, and the key file it hangs on."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator.errors import JournalFailed, Permanent
from rotator.journal.seal import KEY_BYTES, Fingerprints, Seal, load_seal
from rotator.reasons import Reason

SEAL = Seal(b"k" * KEY_BYTES)
OTHER = Seal(b"o" * KEY_BYTES)
ROW = "building-a/r1"


@given(plain=st.binary(max_size=4096))
def test_what_was_sealed_opens_again(plain: bytes) -> None:
    """Bytes in, the same bytes out; never in clear in between."""
    wrapped = SEAL.new_data_key()
    sealed = SEAL.seal(wrapped, plain, bound_to=ROW)
    assert plain == SEAL.open(wrapped, sealed, bound_to=ROW)
    assert len(plain) < 8 or plain not in sealed


def test_the_same_secret_never_looks_the_same_twice() -> None:
    """Neither the data key nor the blob tells that two rotations got the same answer."""
    first, second = SEAL.new_data_key(), SEAL.new_data_key()
    assert first != second
    assert SEAL.seal(first, b"secret", bound_to=ROW) != SEAL.seal(first, b"secret", bound_to=ROW)


@pytest.mark.parametrize("row", ["building-a/r2", "building-b/r1", "", "building-a/r1 "])
def test_a_blob_moved_to_another_row_does_not_open(row: str) -> None:
    """It is bound to its key and rotation."""
    wrapped = SEAL.new_data_key()
    sealed = SEAL.seal(wrapped, b"secret", bound_to=ROW)
    with pytest.raises(Permanent) as caught:
        SEAL.open(wrapped, sealed, bound_to=row)
    assert Reason.SEAL_BROKEN == caught.value.reason


def test_another_seal_key_or_data_key_opens_nothing() -> None:
    """The wrong key file, or the data key of another rotation."""
    wrapped = SEAL.new_data_key()
    sealed = SEAL.seal(wrapped, b"secret", bound_to=ROW)
    for seal, key in ((OTHER, wrapped), (SEAL, SEAL.new_data_key()), (SEAL, OTHER.new_data_key())):
        with pytest.raises(Permanent) as caught:
            seal.open(key, sealed, bound_to=ROW)
        assert Reason.SEAL_BROKEN == caught.value.reason


@given(place=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_a_changed_bit_is_noticed(place: int, bit: int) -> None:
    """In the nonce, in the text, in the tag."""
    wrapped = SEAL.new_data_key()
    sealed = bytearray(SEAL.seal(wrapped, b"secret", bound_to=ROW))
    sealed[place % len(sealed)] ^= 1 << bit
    with pytest.raises(Permanent):
        SEAL.open(wrapped, bytes(sealed), bound_to=ROW)


@pytest.mark.parametrize("blob", [b"", b"short", bytes(12), bytes(27)])
def test_a_truncated_blob_is_named_not_a_crash(blob: bytes) -> None:
    """What a broken disk leaves behind, or a data key that was never journaled."""
    for wrapped, sealed in ((SEAL.new_data_key(), blob), (blob, SEAL.new_data_key())):
        with pytest.raises(Permanent) as caught:
            SEAL.open(wrapped, sealed, bound_to=ROW)
        assert Reason.SEAL_BROKEN == caught.value.reason


def test_a_wrapped_data_key_is_no_sealed_secret() -> None:
    """The two uses of the key can't be taken for each other."""
    with pytest.raises(Permanent):
        SEAL.open(SEAL.new_data_key(), SEAL.new_data_key(), bound_to="data key")


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_the_wrong_length_is_refused(size: int) -> None:
    """AES-256 or nothing."""
    with pytest.raises(Permanent):
        Seal(bytes(size))


def test_a_seal_shows_its_id_and_not_its_key() -> None:
    """The id tells keys apart and gives nothing away."""
    assert SEAL.id != OTHER.id
    assert f"Seal(id={SEAL.id})" == repr(SEAL)
    assert b"k" * 4 not in repr(SEAL).encode()


# --- the key file ------------------------------------------------------------------------------------------------


def test_the_key_file_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    """0600 whatever the umask, in a folder of its own; the next start reads the same key."""
    path = tmp_path / "state" / "seal.key"
    before = os.umask(0)
    try:
        made = load_seal(path, create=True)
    finally:
        os.umask(before)
    assert (0o600, 0o700) == (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode))
    assert made.id == load_seal(path, create=True).id == load_seal(path, create=False).id


def test_a_missing_key_is_not_replaced_while_secrets_wait(tmp_path: Path) -> None:
    """A new key could open none of them."""
    with pytest.raises(JournalFailed) as caught:
        load_seal(tmp_path / "seal.key", create=False)
    assert Reason.SEAL_KEY_MISSING == caught.value.reason
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [b"", b"not base64 at all!", base64.b64encode(b"too short"), b"\xff\xfe", bytes(32)],
    ids=["empty", "words", "short", "binary", "zeros"],
)
def test_a_file_that_is_no_seal_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    """Named, without its content, and never overwritten."""
    path = tmp_path / "seal.key"
    path.write_bytes(content)
    with pytest.raises(JournalFailed) as caught:
        load_seal(path, create=True)
    assert str(path) in caught.value.message
    assert caught.value.reason in {Reason.SEAL_BROKEN, Reason.SEAL_KEY_MISSING}
    assert content == path.read_bytes()


def test_a_place_where_no_key_can_be_made_is_named() -> None:
    """A folder that takes no files: JournalFailed with the path, not a traceback."""
    path = Path("/proc/rotator-test/seal.key")
    with pytest.raises(JournalFailed) as caught:
        load_seal(path, create=True)
    assert str(path) in caught.value.message


# --- fingerprints ------------------------------------------------------------------------------------------------

PRINTS = Fingerprints(b"f" * 32)


def test_fingerprints_compare_fields_whatever_their_order() -> None:
    """Equal fields, equal prints; any difference shows."""
    assert PRINTS.of({"a": "1", "b": "2"}) == PRINTS.of({"b": "2", "a": "1"})
    others = [{}, {"a": "1"}, {"a": "1", "b": "3"}, {"a": "1b", "": "2"}, {"ab": "12"}, {"a": "1", "b": "2", "c": ""}]
    assert len(others) == len({PRINTS.of(other) for other in others} - {PRINTS.of({"a": "1", "b": "2"})})


def test_a_fingerprint_needs_its_key() -> None:
    """Nobody without the key can try passwords against it."""
    assert PRINTS.of({"password": "hunter2"}) != Fingerprints(b"g" * 32).of({"password": "hunter2"})
    assert "hunter2" not in PRINTS.of({"password": "hunter2"})
