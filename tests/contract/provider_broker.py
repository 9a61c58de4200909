"""The broker beside a platform's simulator: whom that lets in now, it lets in. A real socket, MQTT 3.1.1 and 5.

It knows just what the probe and a listener send; what real brokers do is asked of real brokers.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

REFUSED: Final = {4: 5, 5: 0x87}  # "not authorized", by the version of MQTT
USERNAME, PASSWORD = 0x80, 0x40  # flags of a CONNECT


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    version: int = 4
    topics: set[str] = field(default_factory=set)


class LiveBroker:
    """Serves on a free port of 127.0.0.1 until the block's end.

    Args:
        live: usernames → passwords; asked at each CONNECT.
    """

    def __init__(self, live: Callable[[], Mapping[str, str]]) -> None:
        self._live = live
        self._clients: list[_Client] = []
        self._threads: list[threading.Thread] = []

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def publish(self, topic: str, payload: str) -> None:
        """Say something to those who subscribed to just this topic (QoS 0)."""
        for client in [each for each in self._clients if topic in each.topics]:
            properties = b"\0" if client.version == 5 else b""
            with contextlib.suppress(OSError):
                client.connection.sendall(_packet(0x30, _text(topic) + properties + payload.encode()))

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads.append(threading.Thread(target=self._accept))
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(5)
        self._listener.close()
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                client = _Client(connection)
                self._clients.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: _Client) -> None:
        with client.connection, contextlib.suppress(OSError, EOFError):
            for kind, body in _packets(client.connection):
                self._answer(client, kind, body)

    def _answer(self, client: _Client, kind: int, body: bytes) -> None:
        properties = b"\0" if client.version == 5 else b""
        match kind:
            case 1:  # CONNECT
                client.version, username, password = _login(body)
                refused = self._live().get(username) != password or not username
                code = REFUSED[client.version] if refused else 0
                tail = b"\0" if client.version == 5 else b""
                client.connection.sendall(_packet(0x20, bytes([0, code]) + tail))
                if refused:
                    raise EOFError
            case 8:  # SUBSCRIBE to one filter
                start = 2 + len(properties)
                length = struct.unpack("!H", body[start : start + 2])[0]
                client.topics.add(body[start + 2 : start + 2 + length].decode())
                client.connection.sendall(_packet(0x90, body[:2] + properties + b"\0"))
            case 12:  # PINGREQ
                client.connection.sendall(b"\xd0\0")
            case 14:  # DISCONNECT
                raise EOFError


def _login(body: bytes) -> tuple[int, str, str]:
    """Version of MQTT, username and password of a CONNECT without a will."""
    version, flags = body[6], body[7]
    rest = body[10:] if version == 4 else body[11 + body[10] :]
    _, rest = _taken(rest)  # the client id
    username, rest = _taken(rest) if flags & USERNAME else (b"", rest)
    password, rest = _taken(rest) if flags & PASSWORD else (b"", rest)
    return version, username.decode(), password.decode()


def _taken(body: bytes) -> tuple[bytes, bytes]:
    end = 2 + struct.unpack("!H", body[:2])[0]
    return body[2:end], body[end:]


def _text(text: str) -> bytes:
    return struct.pack("!H", len(text.encode())) + text.encode()


def _packet(first: int, body: bytes) -> bytes:
    length, prefix = len(body), b""
    while True:
        length, digit = divmod(length, 128)
        prefix += bytes([digit | (0x80 if length else 0)])
        if not length:
            return bytes([first]) + prefix + body


def _packets(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each packet."""
    with connection.makefile("rb") as stream:
        while first := stream.read(1):
            length = shift = 0
            while True:
                byte = stream.read(1)[0]
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            yield first[0] >> 4, stream.read(length)
