"""A small web server for the tests of webhooks and of proof over HTTP: it records what comes, headers and bytes."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it arrived; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer; `after` is waited for before it is sent."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0.0
    cut: bool = False  # close the connection instead of answering
    dies: bool = False  # then nobody listens any more, and the connection is reset behind what was sent


class Site:
    """Answers each request by `answer`, over a real socket on a free port.

    Args:
        port: 0 is any free one; one that is to `listen` again after it died must be `free_port`'s.
    """

    def __init__(self, answer: Callable[[Request], Reply], *, port: int = 0) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.deaths = 0
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._starting = threading.Lock()
        site = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _serve(self) -> None:
                site._serve(self)

            do_GET = do_POST = do_OPTIONS = _serve

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that gave up

        self._make: Callable[[int], ThreadingHTTPServer] = lambda port: Server(("127.0.0.1", port), Answering)
        self._server: ThreadingHTTPServer | None = self._make(port)
        self._port = self._server.server_port
        self._thread = self._serving(self._server)
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._end()

    @property
    def listens(self) -> bool:
        """Whether it can be connected to; False from its death on."""
        return self._server is not None

    def listen(self) -> None:
        """Be there again after a death, at the same port."""
        with self._starting:
            if self._server is None and not self._closing.is_set():
                self._server = self._make(self._port)
                self._thread = self._serving(self._server)
                self._thread.start()

    def of(self, method: str) -> list[Request]:
        """The requests so far with this method, in order."""
        with self._lock:
            return [request for request in self.requests if request.method == method]

    def _serving(self, server: ThreadingHTTPServer) -> threading.Thread:
        return threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})

    def _end(self) -> None:
        with self._starting:
            if self._server is not None:
                self._server.shutdown()
                self._thread.join(10)
                self._server.server_close()
                self._server = None

    def _die(self, connection: socket.socket) -> None:
        """Nobody listens from here on, and this connection will be reset when it is closed."""
        self._end()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with self._lock:
            self.deaths += 1

    def _serve(self, http: BaseHTTPRequestHandler) -> None:
        body = http.rfile.read(int(http.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in http.headers.items()}
        request = Request(method=http.command, path=http.path, headers=headers, body=body)
        with self._lock:
            self.requests.append(request)
        reply = self.answer(request)
        self._closing.wait(reply.after)
        if reply.dies:
            self._die(http.connection)
        if reply.dies or reply.cut:
            http.close_connection = True
        if not reply.cut:
            self._send(http, reply)
        if reply.dies:
            http.connection.close()  # by itself, as the end of a process does; the server would say goodbye first

    def _send(self, http: BaseHTTPRequestHandler, reply: Reply) -> None:
        http.send_response_only(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            http.send_header(name, value)
        http.end_headers()
        http.wfile.write(reply.body)
