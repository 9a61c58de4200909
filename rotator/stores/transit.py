"""Vault's transit engine as what wraps the seal's data keys (Vault API docs, "Transit secrets engine").

The wrapping key never leaves Vault. Requests go out with the store's own login and count as its requests do.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Final

import requests
from hvac.adapters import RawAdapter
from hvac.api.secrets_engines import Transit as TransitApi

from rotator.errors import Permanent, RotatorError
from rotator.reasons import Reason
from rotator.stores.vault import VaultStore
from rotator.stores.vault_login import VaultLogin
from rotator.stores.vault_wire import VaultAnswer, raw, status_error

DATA_KEY_BITS: Final = 256
# What Vault and OpenBao say of a ciphertext that the named key did not make.
_NOT_OURS: Final = ("authentication failed", "unable to decrypt", "invalid ciphertext")


class Transit:
    """One key of a transit engine; wraps data keys (journal.seal.Wrapping). Thread safe.

    Args:
        store: gives the store whose login is used, when it is first needed: the seal is opened before the store is
            made, and without asking anybody.
        mount: the engine's path, such as `transit`.
        key: the key's name.
    """

    def __init__(self, store: Callable[[], VaultStore], *, mount: str, key: str) -> None:
        self._store = store
        self._mount = mount.strip("/")
        self._key = key

    def __repr__(self) -> str:
        return f"Transit({self.id})"

    @property
    def id(self) -> str:
        """Where the key is: what the journal notes, and a person is asked to bring back."""
        return f"vault-transit:{self._mount}/{self._key}"

    def new(self) -> tuple[bytes, bytes]:
        """A fresh data key of 32 bytes: plain, and wrapped.

        Raises:
            Transient: VAULT_UNREACHABLE, VAULT_SEALED, VAULT_UNAVAILABLE, VAULT_RATE_LIMITED.
            Permanent: VAULT_AUTH, VAULT_DENIED; VAULT_TRANSIT where there is no such key.
        """

        def send(api: TransitApi) -> requests.Response:
            made = api.generate_data_key(  # type: ignore[no-untyped-call]  # hvac's stub
                self._key, key_type="plaintext", bits=DATA_KEY_BITS, mount_point=self._mount
            )
            return raw(made)

        found = self._call("datakey", send)
        return self._plain(found, "datakey"), self._wrapped(found, "datakey")

    def unwrap(self, wrapped: bytes) -> bytes:
        """The plain data key.

        Raises: as `new`; Permanent SEAL_BROKEN where another key wrapped it.
        """
        text = _text(wrapped)

        def send(api: TransitApi) -> requests.Response:
            return raw(api.decrypt_data(self._key, ciphertext=text, mount_point=self._mount))

        return self._plain(self._call("decrypt", send), "decrypt")

    def rewrap(self, wrapped: bytes) -> bytes:
        """The same data key under the newest version of the key; its plaintext stays inside Vault.

        Raises: as `unwrap`.
        """
        text = _text(wrapped)

        def send(api: TransitApi) -> requests.Response:
            made = api.rewrap_data(  # type: ignore[no-untyped-call]  # hvac's stub
                self._key, ciphertext=text, mount_point=self._mount
            )
            return raw(made)

        return self._wrapped(self._call("rewrap", send), "rewrap")

    def _call(self, operation: str, send: Callable[[TransitApi], requests.Response]) -> Mapping[str, object]:
        what = f"{operation} with {self._mount}/{self._key}"
        # the store's own login: one token for both
        login: VaultLogin = self._store()._login
        answer = login.call(operation, lambda adapter: send(_api(adapter)), what=what)
        if not answer.ok:
            raise self._refused(answer, what)
        return answer.part("data")

    def _plain(self, found: Mapping[str, object], operation: str) -> bytes:
        """The data key that an answer holds; nothing of it gets into an error."""
        text = found.get("plaintext")
        try:
            plain = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except (binascii.Error, ValueError):
            plain = b""
        if len(plain) * 8 != DATA_KEY_BITS:
            raise self._wrong(f"{operation}: the answer holds no data key of {DATA_KEY_BITS} bits")
        return plain

    def _wrapped(self, found: Mapping[str, object], operation: str) -> bytes:
        text = found.get("ciphertext")
        if not isinstance(text, str) or not text or not text.isascii():
            raise self._wrong(f"{operation}: the answer holds no ciphertext")
        return text.encode("ascii")

    def _refused(self, answer: VaultAnswer, what: str) -> RotatorError:
        text = answer.text
        if answer.denied and answer.status == 400:
            return Permanent(f"vault: {what}: {text}", reason=Reason.VAULT_AUTH)
        if answer.denied:
            return status_error(answer.status, text, what=what)
        if any(words in text for words in _NOT_OURS):
            return Permanent(f"vault: {what}: another key wrapped this: {text}", reason=Reason.SEAL_BROKEN)
        return self._wrong(f"{what}: HTTP {answer.status}: {text or 'no transit engine answers there'}")

    def _wrong(self, text: str) -> Permanent:
        return Permanent(f"vault: {text}", reason=Reason.VAULT_TRANSIT)


def _api(adapter: RawAdapter) -> TransitApi:
    return TransitApi(adapter)


def _text(wrapped: bytes) -> str:
    """What Vault wrapped is plain text; anything else was wrapped by a key file."""
    try:
        return wrapped.decode("ascii")
    except UnicodeDecodeError:
        raise Permanent("a data key was not wrapped by Vault's transit engine", reason=Reason.SEAL_BROKEN) from None
