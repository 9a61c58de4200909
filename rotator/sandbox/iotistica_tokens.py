"""JSON web tokens signed and checked with HS256 (RFC 7515, RFC 7519), for a platform that keeps no sessions."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

_HEADER = {"alg": "HS256", "typ": "JWT"}


class TokenSigner:
    """Signs claims with a key of its own and reads back only what it has signed."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def sign(self, claims: Mapping[str, str | int]) -> str:
        """A JWT of these claims and a random `jti`."""
        head = f"{_part(_HEADER)}.{_part({**claims, 'jti': secrets.token_hex(8)})}"
        return f"{head}.{self._signature(head)}"

    def claims(self, token: str, now: datetime) -> dict[str, Any] | None:
        """The claims of a token that this signer made and that has not ended by `now`; None for any other."""
        head, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(head).encode()):
            return None
        try:
            claims: dict[str, Any] = json.loads(_unpacked(head.partition(".")[2]))
        except (ValueError, binascii.Error):
            return None
        return claims if claims["exp"] > now.timestamp() else None

    def _signature(self, head: str) -> str:
        return _packed(hmac.new(self._key, head.encode(), hashlib.sha256).digest())


def _part(claims: Mapping[str, str | int]) -> str:
    return _packed(json.dumps(claims, separators=(",", ":")).encode())


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unpacked(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
