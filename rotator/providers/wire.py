"""Connections on which a whole answer, its head and all interim answers included, is bounded in time and in bytes.

httpx's read timeout is for each piece that a socket gives, and httpcore reads interim answers (1xx) until another one
comes: a server that trickles its head, or sends nothing but 103, would hold a request for hours, whatever its deadline.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from typing import Any, Final

import httpcore
import httpx

LONGEST: Final = 11 * 1024 * 1024  # bytes from one write to the next; the longest body that is read, and its framing


def bound(transport: httpx.BaseTransport | None) -> None:
    """Put the bounds on all connections that a transport will open; one without connections has none to bound."""
    if isinstance(transport, httpx.HTTPTransport):
        # httpx passes no backend on, though httpcore takes one; should the attributes be renamed, this raises
        pool = transport._pool
        pool._network_backend = _Backend(pool._network_backend)


class _Stream(httpcore.NetworkStream):
    """Counts what is read since the last write, and measures how long that took."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._ends_at: float | None = None
        self._taken = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        now = time.monotonic()
        if timeout is not None:
            # the first read after a write may take what is left of the request's deadline, and all later ones its rest
            self._ends_at = now + timeout if self._ends_at is None else self._ends_at
            timeout = min(timeout, self._ends_at - now)
            if timeout <= 0:
                raise httpcore.ReadTimeout("the deadline passed while the answer came")
        piece = self._stream.read(max_bytes, timeout)
        self._taken += len(piece)
        if self._taken > LONGEST:
            raise httpcore.ReadError(f"the answer is longer than {LONGEST} bytes")
        return piece

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._ends_at, self._taken = None, 0
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._backend.connect_tcp(host, port, timeout, local_address, socket_options))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._backend.connect_unix_socket(path, timeout, socket_options))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)
