"""A broker that lets everybody in and passes on what a test publishes (MQTT 3.1.1, over real sockets)."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Self


class KeyBroker:
    """Serves on a free port of 127.0.0.1 until the block's end.

    Attributes:
        ends: whether each message is the connection's last, so that nobody waits for another.
    """

    def __init__(self) -> None:
        self.ends = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._subscribed: dict[str, socket.socket] = {}
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def publish(self, topic: str, payload: str | bytes) -> None:
        """To whoever subscribed to this topic last."""
        with self._lock:
            connection = self._subscribed.get(topic)
        if connection is None:
            return
        body = _text(topic.encode()) + (payload if isinstance(payload, bytes) else payload.encode())
        with contextlib.suppress(OSError):
            connection.sendall(b"\x30" + _length(len(body)) + body)
            if self.ends:
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(5)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            for kind, body in _packets(connection):
                match kind >> 4:
                    case 1:
                        connection.sendall(b"\x20\x02\0\0")
                    case 8:
                        length = struct.unpack("!H", body[2:4])[0]
                        with self._lock:
                            self._subscribed[body[4 : 4 + length].decode()] = connection
                        connection.sendall(b"\x90\x03" + body[:2] + b"\0")
                    case 14:
                        raise EOFError


def _packets(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    with connection.makefile("rb") as stream:
        while first := stream.read(1):
            length, shift = 0, 0
            while True:
                byte = stream.read(1)[0]
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            yield first[0], stream.read(length)


def _text(text: bytes) -> bytes:
    return struct.pack("!H", len(text)) + text


def _length(length: int) -> bytes:
    digits = b""
    while True:
        length, digit = divmod(length, 128)
        digits += bytes([digit | (0x80 if length else 0)])
        if not length:
            return digits
