"""TCP connections that need no peer: each is answered from a script, and one of them breaks where a test says.

The errors are raised by the socket itself, so that every library on top of it does to them what it does to real ones.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import pytest

Answer = Callable[[bytes], bytes]  # all that was sent so far → all that comes back

CONNECT: Final = "connect"
HANDSHAKE: Final = "handshake"
WRITE: Final = "write"
READ: Final = "read"
BODY: Final = "body"  # inside an HTTP answer, one byte behind its headers
PHASES: Final = (CONNECT, HANDSHAKE, WRITE, READ, BODY)
NEVER: Final = AssertionError("no phase raises this")
BEFORE_ANYTHING_IS_SENT: Final = frozenset({CONNECT, HANDSHAKE})


class PlayedSocket(socket.socket):
    """A socket that was never connected, and behaves as if it were.

    Args:
        answer: what comes back.
        breaks: the phase in which `error` is raised; "" for a connection that works.
        ends: whether the connection ends behind the answer, or stands and is silent.
    """

    def __init__(self, answer: Answer, breaks: str, error: BaseException, *, ends: bool = False) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.breaks, self.error, self._ends = breaks, error, ends
        self._answer, self._asked, self._given = answer, b"", 0

    def __del__(self) -> None:
        # a library that was made to raise in its own middle has not come to close it
        if (descriptor := self.detach()) >= 0:
            socket.close(descriptor)

    def fail(self, *phases: str) -> None:
        """Raise the error where it belongs into one of these phases."""
        if self.breaks in phases:
            raise self.error

    def do_handshake(self, block: bool = False) -> None:
        """Of TLS, for a library that does it apart."""
        self.fail(HANDSHAKE)

    def send(self, data: Any, flags: int = 0) -> int:
        self.fail(WRITE)
        self._asked += bytes(data)
        return len(data)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.send(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        self.fail(WRITE, READ)  # what broke while it was written to is not mended when it is read
        answer = self._answer(self._asked)
        if self.breaks == BODY:
            answer = answer[: answer.index(b"\r\n\r\n") + 5]
        if self._given == len(answer):
            self.fail(BODY)
            if self._ends:
                return b""
            raise BlockingIOError
        chunk = answer[self._given : self._given + size]
        self._given += len(chunk)
        return chunk

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        chunk = self.recv(nbytes or len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


class Wire:
    """Plays all connections that are opened while it is in place.

    Args:
        answer: what comes back on each.
        number: which connection breaks, from 0 on; by default none.
        phase: where it does.
        error: what its socket raises there.
        ends: whether connections end behind the answer, or stand and are silent.
    """

    def __init__(
        self, answer: Answer, *, number: int = -1, phase: str = "", error: BaseException = NEVER, ends: bool = False
    ) -> None:
        self._answer, self._number, self._phase, self._error, self._ends = answer, number, phase, error, ends
        self.opened = 0

    def put_in_place(self, monkeypatch: pytest.MonkeyPatch, *connectors: str) -> None:
        """Open connections here instead of by these functions (names, as `monkeypatch.setattr` takes them)."""
        for name in connectors:
            monkeypatch.setattr(name, self._connect)
        monkeypatch.setattr(ssl.SSLContext, "wrap_socket", _wrap)
        # nothing is verified here, and reading the authorities anew takes longer than all else
        monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_args, **_options: None)

    def _connect(self, *_args: object, **_options: object) -> PlayedSocket:
        breaks = self._phase if self.opened == self._number else ""
        self.opened += 1
        played = PlayedSocket(self._answer, breaks, self._error, ends=self._ends)
        try:
            played.fail(CONNECT)
        except BaseException:
            played.close()
            raise
        return played


def _wrap(_context: ssl.SSLContext, sock: PlayedSocket, *_args: object, **options: object) -> PlayedSocket:
    if options.get("do_handshake_on_connect", True):
        sock.fail(HANDSHAKE)
    return sock
