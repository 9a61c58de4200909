"""A REST endpoint that answers what a test wrote down, method by method, over a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from contract.graphql_double import Scripted


@dataclass(frozen=True, kw_only=True)
class RestCall:
    """One request as it arrived; `body` is None where there was none."""

    method: str
    path: str
    body: object
    authorization: str | None


class RestDouble:
    """Serves `script[method]` in order, the last answer again and again; a method without a script gets 418."""

    def __init__(self) -> None:
        self.script: dict[str, list[Scripted | Callable[[RestCall], Scripted]]] = {}
        self.calls: list[RestCall] = []
        self._lock = threading.Lock()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _serve(self) -> None:
                double._serve(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # the default of 5 overflows under many threads

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def methods(self) -> list[str]:
        """The methods of all requests so far, in order."""
        with self._lock:
            return [call.method for call in self.calls]

    def _serve(self, http: BaseHTTPRequestHandler) -> None:
        content = http.rfile.read(int(http.headers.get("Content-Length") or 0))
        call = RestCall(
            method=http.command,
            path=http.path,
            body=json.loads(content) if content else None,
            authorization=http.headers.get("Authorization"),
        )
        with self._lock:
            self.calls.append(call)
            answers = self.script.get(call.method) or [Scripted(status=418, body=b"no script")]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        scripted = answer if isinstance(answer, Scripted) else answer(call)
        body = scripted.payload()
        http.send_response_only(scripted.status)
        for name, value in {"Content-Length": str(len(body)), **scripted.headers}.items():
            http.send_header(name, value)
        http.end_headers()
        http.wfile.write(body)
