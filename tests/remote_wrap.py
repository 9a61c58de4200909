"""A key for the seal that somebody else keeps, who may be away: Vault's transit engine, in memory."""

from __future__ import annotations

from rotator.errors import Transient
from rotator.journal.seal import KEY_BYTES, KeyWrap
from rotator.reasons import Reason


class RemoteWrap:
    """Wraps data keys (journal.seal.Wrapping). `away` makes it refuse; `asked` counts what it was asked."""

    id = "remote"

    def __init__(self) -> None:
        self._key = KeyWrap(b"r" * KEY_BYTES)
        self.away = False
        self.asked = 0

    def _ask(self) -> KeyWrap:
        if self.away:
            raise Transient("vault: it is sealed", reason=Reason.VAULT_SEALED)
        self.asked += 1
        return self._key

    def new(self) -> tuple[bytes, bytes]:
        """A data key."""
        return self._ask().new()

    def unwrap(self, wrapped: bytes) -> bytes:
        """The plain data key."""
        return self._ask().unwrap(wrapped)
