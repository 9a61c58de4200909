"""A broker that answers dynamic security commands as a test wrote down, fault by fault, over real sockets (MQTT 5).

It knows just the packets that one admin's connection sends; what Mosquitto itself does is asked of Mosquitto.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

ANSWERS = b"$CONTROL/dynamic-security/v1/response"
Command = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What follows a command: a PUBACK or none, messages on the answers' topic, perhaps the end of the connection.

    `said` holds JSON values or raw bytes. `answer_first` turns the order of PUBACK and messages round.
    """

    said: tuple[object, ...] = ()
    taken: bool = True
    cut: bool = False
    answer_first: bool = False
    after: threading.Event | None = None  # wait for this before anything of it
    hold: threading.Event | None = None  # wait for this before the connection's end


def told(command: Command, **fields: object) -> dict[str, list[object]]:
    """The plugin's answer to a command: success, unless `error` is among the fields."""
    return {"responses": [{"command": command["command"], "correlationData": command.get("correlationData"), **fields}]}


def agree(command: Command) -> Reply:
    """Success, whatever was asked."""
    return Reply(said=(told(command),))


@dataclass
class ControlDouble:
    """Serves on a free port of 127.0.0.1 until the block's end.

    Attributes:
        script: command → what follows it.
        connack: the code of each CONNACK.
        commands: what came, in order.
        logins: username and password of each CONNECT.
        packets: type and QoS of each SUBSCRIBE and PUBLISH.
    """

    script: Callable[[Command], Reply] = agree
    connack: int = 0
    commands: list[Command] = field(default_factory=list)
    logins: list[tuple[str, str]] = field(default_factory=list)
    packets: list[tuple[str, int]] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def names(self) -> list[str]:
        """The commands' names, in order."""
        return [each["command"] for each in self.commands]

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
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
                self._answer(connection, kind, body)

    def _answer(self, connection: socket.socket, kind: int, body: bytes) -> None:
        match kind >> 4:
            case 1:
                username, password = _texts(body[11 + body[10] :])[-2:]  # 10: the length of the properties
                self.logins.append((username, password))
                connection.sendall(bytes([0x20, 3, 0, self.connack, 0]))
            case 8:
                self.packets.append(("SUBSCRIBE", body[-1]))
                connection.sendall(bytes([0x90, 4]) + body[:2] + b"\0" + body[-1:])
            case 3:
                self.packets.append(("PUBLISH", kind >> 1 & 3))
                length = struct.unpack("!H", body[:2])[0]
                identifier, payload = body[2 + length : 4 + length], body[5 + length :]
                for command in json.loads(payload)["commands"]:
                    self.commands.append(command)
                    self._follow(connection, identifier, self.script(command))
            case 14:
                raise EOFError

    def _follow(self, connection: socket.socket, identifier: bytes, reply: Reply) -> None:
        if reply.after is not None:
            reply.after.wait(10)
        taken = b"\x40\x02" + identifier if reply.taken else b""
        said = b"".join(_message(each) for each in reply.said)
        connection.sendall(said + taken if reply.answer_first else taken + said)
        if reply.hold is not None:
            reply.hold.wait(10)
        if reply.cut:
            raise EOFError


def _packets(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """First byte and body of each packet."""
    with connection.makefile("rb") as stream:
        while first := stream.read(1):
            length = shift = 0
            while True:
                byte = stream.read(1)[0]
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            yield first[0], stream.read(length)


def _texts(body: bytes) -> list[str]:
    """The length-prefixed texts of a CONNECT's payload."""
    texts = []
    while body:
        end = 2 + struct.unpack("!H", body[:2])[0]
        texts.append(body[2:end].decode())
        body = body[end:]
    return texts


def _message(said: object) -> bytes:
    """A PUBLISH with QoS 0 on the answers' topic."""
    payload = said if isinstance(said, bytes) else json.dumps(said).encode()
    body = struct.pack("!H", len(ANSWERS)) + ANSWERS + b"\0" + payload
    length, prefix = len(body), b""
    while True:
        length, digit = divmod(length, 128)
        prefix += bytes([digit | (0x80 if length else 0)])
        if not length:
            return b"\x30" + prefix + body
