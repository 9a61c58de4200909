"""The key file: 32 bytes in base64, mode 0600, made once and never overwritten.

While the key is being replaced there are two files, `seal.key` and `seal.key.new`; the seal id in the journal says
which of them is the key (`settled_key`), so that a crash at any moment of `replace_key` needs nobody to mend it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rotator.errors import JournalFailed, Permanent
from rotator.journal.seal import KeyWrap, sync_directory
from rotator.reasons import Reason


def read_key(path: Path) -> KeyWrap:
    """Read a key file.

    Raises: JournalFailed SEAL_KEY_MISSING where it is not there or can't be read, SEAL_BROKEN where it is no key file
        or everybody can read it.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
        mode = path.stat().st_mode
    except FileNotFoundError as exc:
        raise JournalFailed(f"the seal key {path} is missing", reason=Reason.SEAL_KEY_MISSING) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise JournalFailed(f"the seal key {path} can't be read: {exc}", reason=Reason.SEAL_KEY_MISSING) from exc
    if mode & 0o004:
        raise JournalFailed(f"the seal key {path} is readable by everybody: chmod 600", reason=Reason.SEAL_BROKEN)
    try:
        return KeyWrap(base64.b64decode(text, validate=True))
    except (ValueError, Permanent):
        # not chained: the exception would carry what stands in the file
        raise JournalFailed(f"the seal key {path} is not a seal key", reason=Reason.SEAL_BROKEN) from None


def make_key(path: Path) -> KeyWrap:
    """Make a key file, durably.

    Raises: JournalFailed SEAL_KEY_MISSING where none can be made, or something is there already.
    """
    key = AESGCM.generate_key(256)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # O_EXCL: a key that somebody else has just made is never overwritten
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(key) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except OSError as exc:
        raise JournalFailed(
            f"no seal key can be made at {path}: {exc.strerror}", reason=Reason.SEAL_KEY_MISSING
        ) from exc
    return KeyWrap(key)


def settled_key(path: Path, wanted: str | None) -> KeyWrap | None:
    """The key at `path`, after what a crash in `replace_key` left undone; None where there is no file.

    Only for who holds the journal's lock.

    Args:
        wanted: the id of the key that the journal is sealed by; None where it has none yet.

    Raises: as `read_key`.
    """
    path, new = _both(path)
    if wanted is not None and new.exists() and _id_of(new) == wanted:
        _put_in_place(new, path)  # the journal has gone over to it
    key = read_key(path) if path.exists() else None
    if key is not None and key.id == wanted:
        new.unlink(missing_ok=True)  # the journal never went over to it
    return key


def replace_key(path: Path, go_over: Callable[[KeyWrap], None]) -> KeyWrap:
    """Make a new key, have the journal go over to it, and put it in the place of the old one.

    Args:
        path: settled (`settled_key`).
        go_over: wraps everything under the new key and notes its id, all in one transaction.
    """
    path, new = _both(path)
    key = make_key(new)
    # When this raises, nobody knows whether it was committed: the new key stays, and the next start decides.
    go_over(key)
    _put_in_place(new, path)
    return key


def _both(path: Path) -> tuple[Path, Path]:
    """The file itself, if `path` is a link to it, and its successor beside it."""
    real = Path(os.path.realpath(path))
    return real, real.with_name(real.name + ".new")


def _id_of(path: Path) -> str | None:
    try:
        return read_key(path).id
    except JournalFailed:
        return None  # half written: nothing was ever wrapped by it


def _put_in_place(new: Path, path: Path) -> None:
    try:
        new.rename(path)
        sync_directory(path.parent)
    except OSError as exc:
        raise JournalFailed(
            f"the new seal key {new} can't take the place of {path}: {exc.strerror}", reason=Reason.SEAL_KEY_MISSING
        ) from exc
