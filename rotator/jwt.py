"""Looking into a JWT without trusting it (RFC 7519): a provider's token often says itself when it ends. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Final

from rotator.timestamps import parse_timestamp

_LONGEST: Final = 64 * 1024  # no broker takes a longer password; MQTT's own limit is 65,535 bytes


def unverified_expiry(token: str) -> datetime | None:
    """The `exp` claim of `token`, aware UTC, or None where there is none to read.

    The signature is not checked: the key is the provider's, and the claim only ever brings the next rotation forward.
    """
    if len(token) > _LONGEST:
        return None
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = json.loads(payload)
    except (binascii.Error, ValueError, RecursionError):
        return None
    return parse_timestamp(claims.get("exp")) if isinstance(claims, dict) else None
