"""The key file: made once, for its owner only, and never lost while another takes its place."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest

from rotator.errors import JournalFailed
from rotator.journal.seal import KeyWrap
from rotator.journal.seal_file import make_key, read_key, replace_key, settled_key
from rotator.reasons import Reason


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the key is to be, in a folder that is not there yet."""
    return tmp_path / "state" / "seal.key"


def names(path: Path) -> list[str]:
    """What lies in the key's folder."""
    return sorted(file.name for file in path.parent.iterdir())


def test_the_key_file_is_made_for_its_owner_only(path: Path) -> None:
    """0600 whatever the umask, in a folder of its own; the next start reads the same key."""
    before = os.umask(0)
    try:
        made = make_key(path)
    finally:
        os.umask(before)
    assert (0o600, 0o700) == (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode))
    assert made.id == read_key(path).id
    assert 32 == len(base64.b64decode(path.read_bytes()))


def test_a_key_file_is_never_overwritten(path: Path) -> None:
    """Somebody else was faster, or asks for a second one."""
    made = make_key(path)
    with pytest.raises(JournalFailed) as caught:
        make_key(path)
    assert str(path) in caught.value.message
    assert made.id == read_key(path).id


def test_a_missing_key_is_named(path: Path) -> None:
    """Reading makes nothing."""
    with pytest.raises(JournalFailed) as caught:
        read_key(path)
    assert (Reason.SEAL_KEY_MISSING, True) == (caught.value.reason, str(path) in caught.value.message)
    assert settled_key(path, None) is None
    assert not path.exists()


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
        settled_key(path, None)
    assert str(path) in caught.value.message
    assert caught.value.reason in {Reason.SEAL_BROKEN, Reason.SEAL_KEY_MISSING}
    assert content == path.read_bytes()


def test_a_key_that_everybody_can_read_is_refused(path: Path) -> None:
    """It says how to mend that."""
    make_key(path)
    path.chmod(0o604)
    with pytest.raises(JournalFailed, match="chmod 600") as caught:
        read_key(path)
    assert Reason.SEAL_BROKEN == caught.value.reason


def test_a_place_where_no_key_can_be_made_is_named() -> None:
    """A folder that takes no files: JournalFailed with the path, not a traceback."""
    path = Path("/proc/rotator-test/seal.key")
    with pytest.raises(JournalFailed) as caught:
        make_key(path)
    assert str(path) in caught.value.message


# --- another in its place ----------------------------------------------------------------------------------------


def test_a_new_key_takes_the_place_of_the_old_one(path: Path) -> None:
    """The journal goes over while both are there; then one file is left, 0600, and the old key is in it no more."""
    old, before = make_key(path), path.read_bytes()
    seen: list[tuple[list[str], str]] = []

    def go_over(new: KeyWrap) -> None:
        seen.append((names(path), read_key(path).id))
        assert new.id == read_key(path.with_name("seal.key.new")).id

    new = replace_key(path, go_over)
    assert [(["seal.key", "seal.key.new"], old.id)] == seen
    assert (new.id, ["seal.key"], 0o600) == (read_key(path).id, names(path), stat.S_IMODE(path.stat().st_mode))
    assert before not in path.read_bytes()


@pytest.mark.parametrize("committed", [True, False])
def test_the_journal_says_which_of_two_files_is_the_key(path: Path, committed: bool) -> None:
    """Died around the commit: whichever the journal is sealed by stays, and the other one goes."""
    old, new = make_key(path), make_key(path.with_name("seal.key.new"))
    wanted = new if committed else old
    found = settled_key(path, wanted.id)
    assert found is not None
    assert (wanted.id, wanted.id, ["seal.key"]) == (found.id, read_key(path).id, names(path))


@pytest.mark.parametrize("content", [b"", b"3q2+7w=="], ids=["empty", "half"])
def test_a_half_written_successor_was_never_used(path: Path, content: bytes) -> None:
    """Died while it was written: the old key is the key."""
    old = make_key(path)
    path.with_name("seal.key.new").write_bytes(content)
    found = settled_key(path, old.id)
    assert found is not None
    assert (old.id, ["seal.key"]) == (found.id, names(path))


def test_a_broken_successor_is_not_taken_for_a_new_journals_key(path: Path) -> None:
    """A journal that is sealed by nothing yet wants no file in particular."""
    old = make_key(path)
    path.with_name("seal.key.new").write_bytes(b"half")
    found = settled_key(path, None)
    assert found is not None
    assert (old.id, old.id) == (found.id, read_key(path).id)


@pytest.mark.parametrize("wanted", [None, "0123456789abcdef"])
def test_a_successor_that_the_journal_does_not_know_is_left_alone(path: Path, wanted: str | None) -> None:
    """It may be the key of another journal: nothing is renamed, nothing deleted."""
    old, new = make_key(path), make_key(path.with_name("seal.key.new"))
    found = settled_key(path, wanted)
    assert found is not None
    assert (old.id, new.id) == (found.id, read_key(path.with_name("seal.key.new")).id)
    path.unlink()
    assert settled_key(path, wanted) is None
    assert ["seal.key.new"] == names(path)


def test_both_files_stay_when_nobody_knows_what_was_committed(path: Path) -> None:
    """A commit that raised may have been made all the same."""
    make_key(path)

    def go_over(_new: KeyWrap) -> None:
        raise JournalFailed("the disk is gone", reason=Reason.JOURNAL_UNWRITABLE)

    with pytest.raises(JournalFailed, match="the disk is gone"):
        replace_key(path, go_over)
    assert ["seal.key", "seal.key.new"] == names(path)


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    """The key that it leads to is replaced, where it lies."""
    make_key(path)
    link = tmp_path / "link.key"
    link.symlink_to(path)
    new = replace_key(link, lambda _new: None)
    assert (True, new.id, new.id) == (link.is_symlink(), read_key(link).id, read_key(path).id)
