"""A GraphQL endpoint that answers what a test wrote down, fault by fault, over a real socket.

It says nothing about GraphQL itself: whether a document fits the schema is asked of the sandbox's platform.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

OPERATIONS = (
    "refreshApiKeyToken",
    "refreshToken",
    "apiKeys",
    "logout",
    "login",
    "mqttSubscriptionIntegration",
    "createMqttSubscriptionIntegration",
    "createApiKey",
    "assignApiKeyOrganizationRole",
    "assignMqttSubscriptionIntegrationApiKey",
    "deleteApiKey",
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request as it arrived."""

    operation: str
    variables: Mapping[str, str]
    document: str
    authorization: str | None


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """One answer: `body` as JSON unless it is bytes; `cut` resets the connection after `cut` bytes of the answer."""

    body: object = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    drip: float | None = None  # seconds between single bytes of the body
    hold: threading.Event | None = None  # answer only when this is set

    def payload(self) -> bytes:
        """The body's bytes."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def data(**fields: object) -> Scripted:
    """HTTP 200 with `data`."""
    return Scripted(body={"data": fields})


def errors(message: str, code: str | None = None, **more: object) -> Scripted:
    """HTTP 200 with one error."""
    error: dict[str, object] = {"message": message}
    if code is not None:
        error["extensions"] = {"path": "$", "code": code}
    return Scripted(body={"errors": [error], **more})


def login(access: str = "access-1", **more: object) -> Scripted:
    """A login that works."""
    fields: dict[str, object] = {
        "accessToken": access,
        "expiresIn": 900,
        "refreshToken": "refresh-1",
        "refreshExpiresIn": 43200,
        "organizationId": "2a749da0-5512-4f3e-9a55-111111111111",
    }
    return data(login={**fields, **more})


class GraphqlDouble:
    """Serves `script[operation]` in order, the last answer again and again; an operation without a script gets 418."""

    def __init__(self) -> None:
        self.script: dict[str, list[Scripted | Callable[[Call], Scripted]]] = {"login": [login()]}
        self.calls: list[Call] = []
        self._lock = threading.Lock()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                double._serve(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # the default of 5 overflows under 16 threads: stalls of a second, even resets

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/graphql"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def count(self, operation: str) -> int:
        """How often this operation was asked for."""
        with self._lock:
            return sum(call.operation == operation for call in self.calls)

    def _serve(self, http: BaseHTTPRequestHandler) -> None:
        payload = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        root = payload["query"].partition("{")[2]
        operation = next(name for name in OPERATIONS if root.strip().startswith(name))
        call = Call(
            operation=operation,
            variables=payload["variables"],
            document=payload["query"],
            authorization=http.headers.get("Authorization"),
        )
        with self._lock:
            self.calls.append(call)
            answers = self.script.get(operation) or [Scripted(status=418, body=b"no script")]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        scripted = answer if isinstance(answer, Scripted) else answer(call)
        if scripted.hold is not None:
            scripted.hold.wait(30)
        self._answer(http, scripted)

    def _answer(self, http: BaseHTTPRequestHandler, scripted: Scripted) -> None:
        if scripted.cut == 0:
            self._reset(http)
            return
        body = scripted.payload()
        http.send_response_only(scripted.status)  # send_response would add a Date of its own
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **scripted.headers,
        }.items():
            http.send_header(name, value)
        http.end_headers()
        try:
            if scripted.drip is not None:
                pause = threading.Event()
                for byte in body:
                    http.wfile.write(bytes([byte]))
                    pause.wait(scripted.drip)
            else:
                http.wfile.write(body if scripted.cut is None else body[: scripted.cut])
        except OSError:
            http.close_connection = True
            return
        if scripted.cut is not None:
            http.close_connection = True

    @staticmethod
    def _reset(http: BaseHTTPRequestHandler) -> None:
        http.close_connection = True
        http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        http.connection.close()
