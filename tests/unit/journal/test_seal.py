"""The seal: what a blob needs to be opened, and the key file it hangs on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_wrap import RemoteWrap
from rotator.errors import Permanent, Transient
from rotator.journal.seal import KEY_BYTES, Fingerprints, KeyWrap, Seal
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
    assert f"KeyWrap(id={SEAL.id})" == repr(KeyWrap(b"k" * KEY_BYTES))
    assert b"k" * 4 not in repr(SEAL).encode()


# --- a key that somebody else keeps ------------------------------------------------------------------------------


@pytest.fixture
def remote() -> RemoteWrap:
    """Whoever keeps the key, at home."""
    return RemoteWrap()


def test_sealing_after_the_answer_needs_nobody(remote: RemoteWrap) -> None:
    """From preflight on the data key is in memory: Vault may be down when the answer comes."""
    seal = Seal(remote)
    wrapped = seal.new_data_key()
    remote.away = True
    assert b"secret" == seal.open(wrapped, seal.seal(wrapped, b"secret", bound_to=ROW), bound_to=ROW)
    assert 1 == remote.asked


def test_a_restarted_process_gets_ready_before_the_call(remote: RemoteWrap) -> None:
    """The journaled data key is unwrapped once, and sealing needs nobody from then on."""
    wrapped = Seal(remote).new_data_key()
    restarted = Seal(remote)
    restarted.ready(wrapped)
    restarted.ready(wrapped)
    assert 2 == remote.asked
    remote.away = True
    restarted.ready(wrapped)
    sealed = restarted.seal(wrapped, b"secret", bound_to=ROW)
    remote.away = False
    assert b"secret" == Seal(remote).open(wrapped, sealed, bound_to=ROW)


def test_who_is_not_ready_hears_it_before_the_call(remote: RemoteWrap) -> None:
    """Neither a new data key nor an old one while Vault is away: Transient, with Vault's own reason."""
    wrapped = Seal(remote).new_data_key()
    remote.away = True
    seal = Seal(remote)
    for refused in (seal.new_data_key, lambda: seal.ready(wrapped)):
        with pytest.raises(Transient) as caught:
            refused()
        assert Reason.VAULT_SEALED == caught.value.reason


def test_a_forgotten_data_key_is_out_of_memory(remote: RemoteWrap) -> None:
    """After `forget` it has to be unwrapped again; what was never known may be forgotten too."""
    seal = Seal(remote)
    wrapped = seal.new_data_key()
    seal.forget(wrapped)
    seal.forget(wrapped)
    seal.forget(None)
    remote.away = True
    with pytest.raises(Transient):
        seal.seal(wrapped, b"secret", bound_to=ROW)


def test_ready_refuses_what_another_key_wrapped() -> None:
    """Before the issue call, not after it."""
    with pytest.raises(Permanent) as caught:
        SEAL.ready(OTHER.new_data_key())
    assert Reason.SEAL_BROKEN == caught.value.reason


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


def test_the_key_of_the_fingerprints_is_got_when_it_is_needed(remote: RemoteWrap) -> None:
    """A daemon starts while Vault is down; what needs a print meanwhile is Transient, and later ones are as ever."""
    wrapped = Seal(remote).new_data_key()
    seal = Seal(remote)
    prints = Fingerprints(lambda: seal.unwrap(wrapped))
    remote.away = True
    with pytest.raises(Transient) as caught:
        prints.of({"password": "hunter2"})
    assert Reason.VAULT_SEALED == caught.value.reason
    remote.away = False
    assert prints.of({"password": "hunter2"}) == Fingerprints(seal.unwrap(wrapped)).of({"password": "hunter2"})


def test_threads_share_one_key_of_the_fingerprints() -> None:
    """It is got once, however many ask at the same moment."""
    got: list[bytes] = []
    together, meeting = threading.Barrier(8), threading.Barrier(2)

    def obtain() -> bytes:
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.2)  # whoever is let in as well makes a key of its own
        got.append(b"%d" % len(got) * 32)
        return got[-1]

    prints = Fingerprints(obtain)

    def take(_number: int) -> str:
        together.wait(10)
        return prints.of({"a": "1"})

    with ThreadPoolExecutor(8) as pool:
        assert 1 == len(set(pool.map(take, range(8))))
    assert 1 == len(got)
