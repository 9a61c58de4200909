"""A server that sends what no HTTP server should, over real sockets, and counts how much of it was taken."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import socket
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Final, Self

import httpx

from rotator.providers.wire import bound

MEGABYTE: Final = 1024 * 1024
BIG: Final = 50 * MEGABYTE
# What may be on its way when the client hangs up: its socket's receive buffer, and this server's send buffer.
SLACK: Final = 8 * MEGABYTE
_PIECE: Final = b'{"id": "a", "name": "b"}, ' * 2520  # 64 KB of a list's entries
_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_GZIP: Final = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"


def _entries() -> Iterator[bytes]:
    """50 MB of a JSON list."""
    yield b"["
    yield from itertools.repeat(_PIECE, BIG // len(_PIECE))


def _chunks() -> Iterator[bytes]:
    for piece in _entries():
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


@cache
def _bomb(times: int) -> bytes:
    """50 MB of blanks, packed so many times."""
    packed = b" " * BIG
    for _ in range(times):
        packed = gzip.compress(packed, 9)
    return packed


@cache
def _deflated() -> bytes:
    return zlib.compress(b" " * BIG, 9)


def _packed(encoding: bytes, body: bytes) -> Iterable[bytes]:
    return [_OK, b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body)), body]


def _endless(first: bytes, again: bytes) -> Iterator[bytes]:
    return itertools.chain([first], itertools.repeat(again, BIG // len(again)))


# Too much, in each form that it may come in.
LARGE: Final[Mapping[str, Callable[[], Iterable[bytes]]]] = {
    "content_length": lambda: itertools.chain([_OK, b"Content-Length: %d\r\n\r\n" % BIG], _entries()),
    "until_close": lambda: itertools.chain([_OK, b"Connection: close\r\n\r\n"], _entries()),
    "chunked": lambda: itertools.chain([_OK, b"Transfer-Encoding: chunked\r\n\r\n"], _chunks()),
    "gzip": lambda: _packed(b"gzip", _bomb(1)),
    "gzip_twice": lambda: _packed(b"gzip, gzip", _bomb(2)),
    "deflate": lambda: _packed(b"deflate", _deflated()),
    "headers": lambda: _endless(b"HTTP/1.1 200 OK\r\n", b"X-Odd: " + b"x" * 1000 + b"\r\n"),
    "one_header": lambda: _endless(b"HTTP/1.1 200 OK\r\nX-Odd: ", b"x" * 65536),
    "status_line": lambda: _endless(b"HTTP/1.1 200 ", b"x" * 65536),
    "chunk_extension": lambda: _endless(_OK + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x" * 65536),
    "trailers": lambda: _endless(_OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Odd: " + b"x" * 1000 + b"\r\n"),
}

# Bounded by the deadline alone: httpcore drops each of these and reads on.
INTERIM: Final[Iterable[bytes]] = [b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100] * (BIG // 2800)

# No HTTP, or not quite.
BROKEN: Final[Mapping[str, bytes]] = {
    "nothing": b"",
    "no_http": b"220 mail.example ESMTP\r\n",
    "tls_alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "odd_version": b"HTTP/9.9 200 OK\r\n\r\n{}",
    "status_of_letters": b"HTTP/1.1 abc OK\r\n\r\n{}",
    "status_0": b"HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\n{}",
    "status_999": b"HTTP/1.1 999 OK\r\nContent-Length: 2\r\n\r\n{}",
    "no_colon": b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n{}",
    "nul_in_a_header": b"HTTP/1.1 200 OK\r\nX-Odd: a\x00b\r\n\r\n{}",
    "two_lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "negative_length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    "huge_length": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n{}",
    "too_few_bytes": b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n{}",
    "odd_transfer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: utter, nonsense\r\n\r\n{}",
    "no_chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "negative_chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "huge_chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"F" * 16 + b"\r\n{}",
    "chunk_without_end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}xx0\r\n\r\n",
    "garbage_as_gzip": _GZIP % 14 + b"\x1f\x8b\x08" + b"\xff" * 11,
    "plain_as_gzip": _GZIP % 2 + b"{}",
    "half_a_gzip": _GZIP % 12 + gzip.compress(b"{}")[:12],
    "unknown_encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
    "switching_protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n\x00\x01",
    "early_hints_only": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "latin_1_headers": b"HTTP/1.1 200 OK\r\nRetry-After: \xff\xfe\r\nDate: \xe4\r\nContent-Length: 2\r\n\r\n{}",
    "odd_dates": b"HTTP/1.1 503 x\r\nRetry-After: Fri, 99 Xyz 9999 99 GMT\r\nDate: 1e400\r\nContent-Length: 0\r\n\r\n",
}  # fmt: skip


class RawServer:
    """Answers each request on a free port of 127.0.0.1 by the bytes of `script`, then closes the connection.

    Attributes:
        script: makes the bytes.
        sent: how many of them the other side's socket took, of the answer of which it took most.
    """

    def __init__(self) -> None:
        self.script: Callable[[], Iterable[bytes]] = lambda: [b""]
        self.sent = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        self._thread = threading.Thread(target=self._accept)
        self._connection: socket.socket | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()
        assert not self._thread.is_alive()

    @property
    def url(self) -> httpx.URL:
        """Where it listens."""
        return httpx.URL(f"http://127.0.0.1:{self._listener.getsockname()[1]}")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connection, _ = self._listener.accept()
                with self._connection as connection, contextlib.suppress(OSError):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        _read_request(connection)
        sent = 0
        for piece in self.script():
            connection.sendall(piece)
            sent += len(piece)
            self.sent = max(self.sent, sent)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):  # until the client has gone, so that none of it is lost to a reset
            continue


class Redirected(httpx.BaseTransport):
    """Sends the tape's request number such and such to a server, and has the tape answer the others."""

    def __init__(self, tape: httpx.BaseTransport, number: int, server: RawServer) -> None:
        self._tape, self._number, self._server = tape, number, server
        self._wire = httpx.HTTPTransport()
        bound(self._wire)  # as `make_client` does
        self._asked = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._asked += 1
        if self._asked - 1 < self._number:
            return self._tape.handle_request(request)
        url = request.url.copy_with(scheme="http", host=self._server.url.host, port=self._server.url.port)
        request.read()
        sent = httpx.Request(
            request.method, url, headers=request.headers, content=request.content, extensions=request.extensions
        )
        return self._wire.handle_request(sent)

    def close(self) -> None:
        self._wire.close()


def _read_request(connection: socket.socket) -> None:
    """Take one whole request, so that closing the connection does not reset it."""
    with connection.makefile("rb") as stream:
        length = 0
        while line := stream.readline().strip().lower():
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        stream.read(length)
