"""The seal: how a secret waits in the journal.

AES-256-GCM with a fresh data key for each secret; the data key lies beside the blob, wrapped by a key file's key
(`KeyWrap`) or by Vault's transit engine. The associated data binds a blob to its key and rotation, so that a blob
moved to another row does not open.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rotator.errors import Permanent
from rotator.reasons import Reason

KEY_BYTES = 32
_NONCE = 12
_DATA_KEY = b"data key"  # the associated data of a wrapped data key, so that it can't pass for a sealed secret


class Wrapping(Protocol):
    """What wraps data keys. Raises only errors of `rotator.errors`."""

    @property
    def id(self) -> str:
        """Tells one wrapping key from another, and gives nothing away."""
        ...

    def new(self) -> tuple[bytes, bytes]:
        """A fresh data key of 32 bytes: plain, and wrapped."""
        ...

    def unwrap(self, wrapped: bytes) -> bytes:
        """The plain data key.

        Raises: Permanent SEAL_BROKEN where this key did not wrap it.
        """
        ...


class KeyWrap:
    """Wraps data keys under 32 bytes of our own; asks nobody."""

    __slots__ = ("__key", "id")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise Permanent("the seal key must be 32 bytes", reason=Reason.SEAL_BROKEN)
        self.__key = key
        self.id = hashlib.sha256(b"rotator seal id" + key).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"KeyWrap(id={self.id})"

    def new(self) -> tuple[bytes, bytes]:
        """A fresh data key: plain, and wrapped."""
        plain = os.urandom(KEY_BYTES)
        return plain, self.wrap(plain)

    def wrap(self, plain: bytes) -> bytes:
        """Wrap a data key that exists already."""
        return _encrypt(self.__key, plain, _DATA_KEY)

    def unwrap(self, wrapped: bytes) -> bytes:
        """The plain data key.

        Raises: Permanent SEAL_BROKEN.
        """
        return _decrypt(self.__key, wrapped, _DATA_KEY)


class Seal:
    """Seals and opens blobs. Thread safe.

    Plain data keys of rotations in flight stay in memory, from `new_data_key` or `ready` until `forget`, so that
    sealing an answer needs nobody: Vault may be down by then.
    """

    __slots__ = ("__plain", "__wrapping", "id")

    def __init__(self, wrapping: Wrapping | bytes) -> None:
        self.__wrapping: Wrapping = KeyWrap(wrapping) if isinstance(wrapping, bytes) else wrapping
        self.__plain: dict[bytes, bytes] = {}
        self.id = self.__wrapping.id

    def __repr__(self) -> str:
        return f"Seal(id={self.id})"

    def new_data_key(self) -> bytes:
        """A fresh data key, wrapped: what preflight journals. Its plaintext stays in memory until `forget`.

        Raises: Transient, Permanent where Vault wraps and can't be asked.
        """
        plain, wrapped = self.__wrapping.new()
        self.__plain[wrapped] = plain
        return wrapped

    def ready(self, wrapped: bytes) -> None:
        """Make sure that sealing under this data key needs nobody: unwrap it now, before the issue call.

        Raises: Permanent SEAL_BROKEN where this seal did not wrap it; Transient, Permanent as `new_data_key`.
        """
        if wrapped not in self.__plain:
            self.__plain[wrapped] = self.__wrapping.unwrap(wrapped)

    def forget(self, wrapped: bytes | None) -> None:
        """Drop the plaintext of a data key; one that is not known is fine."""
        if wrapped is not None:
            self.__plain.pop(wrapped, None)

    def seal(self, wrapped: bytes, plain: bytes, *, bound_to: str) -> bytes:
        """Encrypt `plain` under a wrapped data key. `bound_to` names the key and the rotation.

        Raises: nothing after `new_data_key` or `ready`; else as `ready`.
        """
        return _encrypt(self.unwrap(wrapped), plain, bound_to.encode())

    def open(self, wrapped: bytes, sealed: bytes, *, bound_to: str) -> bytes:
        """Decrypt a blob.

        Raises: Permanent SEAL_BROKEN where this key, or this row, did not seal it; else as `ready`.
        """
        return _decrypt(self.unwrap(wrapped), sealed, bound_to.encode())

    def unwrap(self, wrapped: bytes) -> bytes:
        """The plain data key, from memory or from what wrapped it; raises as `ready`."""
        known = self.__plain.get(wrapped)
        return known if known is not None else self.__wrapping.unwrap(wrapped)


class Fingerprints:
    """Keyed fingerprints of secrets: equal values give equal prints, and nobody without the key learns more.

    Args:
        key: 32 bytes, or what gets them when the first print is taken, so that a daemon can start while Vault is down.
    """

    __slots__ = ("__key", "__lock", "__obtain")

    def __init__(self, key: bytes | Callable[[], bytes]) -> None:
        self.__key = key if isinstance(key, bytes) else None
        self.__obtain = None if isinstance(key, bytes) else key
        self.__lock = threading.Lock()

    def of(self, fields: Mapping[str, object]) -> str:
        """The print of some fields of a Vault secret; absent fields are left out by the caller.

        Raises: Transient, Permanent where the key of the prints can't be got now.
        """
        digest = hmac.new(self._key(), digestmod=hashlib.sha256)
        for name in sorted(fields):
            for part in (name, str(fields[name])):
                encoded = part.encode()
                digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.hexdigest()

    def _key(self) -> bytes:
        with self.__lock:  # two threads must not make two keys
            if self.__key is None:
                assert self.__obtain is not None
                self.__key = self.__obtain()
            return self.__key


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
