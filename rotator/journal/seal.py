"""The seal: how a secret waits in the journal.

AES-256-GCM with a fresh data key for each secret; the data key is wrapped by the key file's key. The associated data
binds a blob to its key and rotation, so that a blob moved to another row does not open. The key file is made with the
first journal, mode 0600.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rotator.errors import JournalFailed, Permanent
from rotator.reasons import Reason

KEY_BYTES = 32
_NONCE = 12


class Seal:
    """Seals and opens blobs under one key-encryption key."""

    __slots__ = ("__key", "id")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise Permanent("the seal key must be 32 bytes", reason=Reason.SEAL_BROKEN)
        self.__key = key
        self.id = hashlib.sha256(b"rotator seal id" + key).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Seal(id={self.id})"

    def new_data_key(self) -> bytes:
        """A fresh data key, wrapped: what preflight journals, so that sealing after the answer needs nobody."""
        return _encrypt(self.__key, os.urandom(KEY_BYTES), b"data key")

    def seal(self, wrapped: bytes, plain: bytes, *, bound_to: str) -> bytes:
        """Encrypt `plain` under a wrapped data key. `bound_to` names the key and the rotation."""
        return _encrypt(self.unwrap(wrapped), plain, bound_to.encode())

    def open(self, wrapped: bytes, blob: bytes, *, bound_to: str) -> bytes:
        """Decrypt a blob.

        Raises: Permanent SEAL_BROKEN where this key, or this row, did not seal it.
        """
        return _decrypt(self.unwrap(wrapped), blob, bound_to.encode())

    def unwrap(self, wrapped: bytes) -> bytes:
        return _decrypt(self.__key, wrapped, b"data key")


class Fingerprints:
    """Keyed fingerprints of secrets: equal values give equal prints, and nobody without the key learns more."""

    __slots__ = ("__key",)

    def __init__(self, key: bytes) -> None:
        self.__key = key

    def of(self, fields: Mapping[str, object]) -> str:
        """The print of some fields of a Vault secret; absent fields are left out by the caller."""
        digest = hmac.new(self.__key, digestmod=hashlib.sha256)
        for name in sorted(fields):
            for part in (name, str(fields[name])):
                encoded = part.encode()
                digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.hexdigest()


def load_seal(path: Path, *, create: bool) -> Seal:
    """Read the key file, or make it.

    Raises: JournalFailed SEAL_KEY_MISSING where it is not there and may not be made.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        if not create:
            raise JournalFailed(
                f"the seal key {path} is missing, and secrets wait in the journal that only it can open",
                reason=Reason.SEAL_KEY_MISSING,
            ) from None
        try:
            return _make(path)
        except OSError as exc:
            raise JournalFailed(
                f"no seal key can be made at {path}: {exc.strerror}", reason=Reason.SEAL_KEY_MISSING
            ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise JournalFailed(f"the seal key {path} can't be read: {exc}", reason=Reason.SEAL_KEY_MISSING) from exc
    if path.stat().st_mode & 0o004:
        raise JournalFailed(f"the seal key {path} is readable by everybody: chmod 600", reason=Reason.SEAL_BROKEN)
    try:
        return Seal(base64.b64decode(text, validate=True))
    except (ValueError, Permanent) as exc:
        raise JournalFailed(f"the seal key {path} is not a seal key", reason=Reason.SEAL_BROKEN) from exc


def _make(path: Path) -> Seal:
    key = AESGCM.generate_key(256)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # O_EXCL: a key that somebody else has just made is never overwritten
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(key) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)
    return Seal(key)


def sync_directory(directory: Path) -> None:
    """Make a rename or a new name in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encrypt(key: bytes, plain: bytes, bound_to: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, plain, bound_to)


def _decrypt(key: bytes, blob: bytes, bound_to: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(blob[:_NONCE], blob[_NONCE:], bound_to)
    except (InvalidTag, ValueError) as exc:
        raise Permanent("a sealed record can't be opened with this seal key", reason=Reason.SEAL_BROKEN) from exc
