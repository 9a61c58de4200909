"""Token strings of JWT shape. The key that signs them is made up at start and known to nobody."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Signer:
    """Makes tokens that nobody else can make (HS256)."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def sign(self, claims: Mapping[str, str | int]) -> str:
        """A JWT with these claims, `iat` and `exp` in whole seconds as RFC 7519 has them, and a random `jti`."""
        header = _part(b'{"alg":"HS256","typ":"JWT"}')
        body = _part(json.dumps({**claims, "jti": secrets.token_hex(8)}, separators=(",", ":")).encode())
        signature = hmac.new(self._key, f"{header}.{body}".encode(), hashlib.sha256).digest()
        return f"{header}.{body}.{_part(signature)}"


def opaque() -> str:
    """A token that is no JWT."""
    return f"opaque-{secrets.token_hex(24)}"
