"""Looks for secrets where none may be: as they are, and in every form that something may have put them into."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import quote, quote_plus

PIECE: Final = 12  # bytes of a secret that are no chance


def forms(secret: str) -> Mapping[str, bytes]:
    """Name → how the secret would look. A form that says no more than another one is left out."""
    found: dict[str, bytes] = {}
    for name, text in _forms(secret):
        if text and text not in found.values():
            found[name] = text
    return found


def hunt(places: Mapping[str, bytes], secrets: Mapping[str, str]) -> list[str]:
    """Which secret is seen where, and in which form; never the secret itself.

    Args:
        places: name → everything that stands there.
        secrets: name → secret.
    """
    looked_for = {name: forms(secret) for name, secret in secrets.items()}
    return [
        f"{name} ({form}) in {place}"
        for place, content in places.items()
        for name, wanted in looked_for.items()
        for form, text in wanted.items()
        if text in content
    ]


def _forms(secret: str) -> Iterator[tuple[str, bytes]]:
    raw = secret.encode()
    yield "plain", raw
    for offset in range(3):  # inside something longer it begins at one of three places of a group of four
        for name, encode in (("base64", base64.b64encode), ("url-safe base64", base64.urlsafe_b64encode)):
            yield f"{name}, {offset} before it", _inner(encode(bytes(offset) + raw), offset)
    for name, text in (("URL", quote(secret, safe="")), ("path", quote(secret)), ("form", quote_plus(secret))):
        yield name, text.encode()
        yield f"{name}, small letters", _small(text).encode()
    for name, dumped in (("JSON", json.dumps(secret)), ("JSON in UTF-8", json.dumps(secret, ensure_ascii=False))):
        yield name, dumped[1:-1].encode()
        yield f"{name}, slashes escaped", dumped[1:-1].replace("/", "\\/").encode()
        yield f"{name} inside JSON", json.dumps(dumped[1:-1])[1:-1].encode()
    yield "HTML", html.escape(secret).encode()
    yield "repr", repr(secret)[1:-1].encode()
    yield "repr of bytes", repr(raw)[2:-1].encode()
    if len(raw) >= 2 * PIECE:  # cut off, as a long text is in a log
        middle = (len(raw) - PIECE) // 2
        yield from (("beginning", raw[:PIECE]), ("middle", raw[middle : middle + PIECE]), ("end", raw[-PIECE:]))
    yield "hex", raw.hex().encode()
    yield "HEX", raw.hex().upper().encode()


def _inner(encoded: bytes, offset: int) -> bytes:
    """What does not depend on the bytes before and after."""
    start = (0, 2, 3)[offset]
    return encoded.rstrip(b"=")[start : -1 if encoded.endswith(b"=") else None]


def _small(quoted: str) -> str:
    parts = quoted.split("%")
    return "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])
