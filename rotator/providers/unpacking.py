"""A compressed answer unpacked within a bound: httpx unpacks a whole piece at once, and 64 KB of it may be 64 MB."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Final

import httpx

# Content-Encoding (RFC 9110, 8.4.1) → zlib's window bits; those below are tried where the first ones don't fit, since
# servers send `deflate` with and without zlib's header. What stands in neither is nothing that we asked for.
_WINDOWS: Final = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}


class TooLong(httpx.DecodingError):
    """The answer is longer than is read of any."""


def unpacked(response: httpx.Response, most: int) -> Iterator[bytes]:
    """The pieces of an answer's body, of which neither the packed nor the unpacked bytes are more than `most`.

    Raises: TooLong; httpx.DecodingError for what is not packed as the answer says; what `iter_raw` raises.
    """
    codings = [each.strip().lower() for each in response.headers.get("content-encoding", "").split(",")]
    known = [each for each in codings if each in _WINDOWS]
    if len(known) > 1:
        raise httpx.DecodingError("the answer is packed more than once")
    unpacker = _Unpacker(_WINDOWS[known[0]]) if known else None
    taken = given = 0
    for packed in response.iter_raw():
        taken += len(packed)
        piece = packed if unpacker is None else unpacker.take(packed, most + 1 - given)
        given += len(piece)
        if taken > most or given > most:
            raise TooLong(f"the answer is longer than {most} bytes")
        yield piece
    if unpacker is not None and taken and not unpacker.whole:
        raise httpx.DecodingError("the packed answer ends too early")


class _Unpacker:
    def __init__(self, windows: tuple[int, ...]) -> None:
        self._windows = windows
        self._zlib: Any = None  # zlib gives its class no name

    @property
    def whole(self) -> bool:
        """Whether the end was reached."""
        return self._zlib is not None and bool(self._zlib.eof)

    def take(self, packed: bytes, room: int) -> bytes:
        """What comes out, of which `room` bytes are the most."""
        first = self._zlib is None
        for bits in self._windows if first else (0,):
            if first:
                self._zlib = zlib.decompressobj(bits)
            try:
                return bytes(self._zlib.decompress(packed, room))
            except zlib.error as exc:
                failed = exc
        raise httpx.DecodingError("the answer is not packed as it says") from failed
