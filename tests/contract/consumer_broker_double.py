"""A broker that speaks just enough MQTT to misbehave: late or no PUBACKs, and no MQTT 5."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

CONNECT, PUBLISH, SUBSCRIBE = 0x10, 0x30, 0x82


class BrokerDouble:
    """Takes any login on a free port.

    Args:
        delay: seconds from a PUBLISH to its PUBACK; None: no PUBACK at all.
        old: refuse MQTT 5, as RabbitMQ before 3.13 does.
        code: the reason code of each PUBACK.
    """

    def __init__(self, *, delay: float | None = 0.0, old: bool = False, code: int = 0) -> None:
        self._delay, self._old, self._code = delay, old, code
        self.levels: list[int] = []  # the protocol level of each CONNECT
        self.published: list[bytes] = []  # the whole packets
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._serving = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._serving.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()  # so that accept returns
        self._serving.join(10)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._closing.is_set():
            connection, _ = self._listener.accept()
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, IndexError):
            level = 0
            while packet := _packet(connection):
                kind, body = packet
                if kind == CONNECT:
                    level = body[6]
                    self.levels.append(level)
                    if self._old and level == 5:
                        connection.sendall(b"\x20\x02\x00\x01")
                        return
                    connection.sendall(b"\x20\x03\x00\x00\x00" if level == 5 else b"\x20\x02\x00\x00")
                elif kind & 0xF0 == PUBLISH:
                    self.published.append(body)
                    self._acknowledge(connection, body, level)
                elif kind == SUBSCRIBE:
                    connection.sendall(
                        b"\x90\x04" + body[:2] + b"\x00\x00" if level == 5 else b"\x90\x03" + body[:2] + b"\0"
                    )

    def _acknowledge(self, connection: socket.socket, body: bytes, level: int) -> None:
        if self._delay is None or self._closing.wait(self._delay):
            return
        length = int.from_bytes(body[:2], "big")
        message = body[2 + length : 4 + length]
        if level == 5 and self._code:
            connection.sendall(b"\x40\x03" + message + bytes([self._code]))
        else:
            connection.sendall(b"\x40\x02" + message)


def _packet(connection: socket.socket) -> tuple[int, bytes] | None:
    """One whole packet shorter than 128 bytes of each length byte; None at the end of the connection."""
    head = connection.recv(1)
    if not head:
        return None
    length, shift = 0, 0
    while True:
        byte = connection.recv(1)[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return head[0], body
