"""Plays back single exchanges that were recorded at a real API server, each request checked against the recording."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

RECORDED = Path(__file__).parent.parent / "data" / "kube-contract" / "exchanges.json"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What was asked, and what was answered."""

    note: str
    method: str
    path: str
    token: str | None
    content_type: str
    body: Any
    status: int
    answer: Any


@cache
def recorded() -> dict[str, Exchange]:
    """All exchanges, by their notes."""
    return {
        each["note"]: Exchange(
            note=each["note"],
            method=each["request"]["method"],
            path=each["request"]["path"],
            token=each["request"]["token"],
            content_type=each["request"]["content_type"],
            body=each["request"]["json"],
            status=each["response"]["status"],
            answer=each["response"]["json"],
        )
        for each in json.loads(RECORDED.read_text())["exchanges"]
    }


class KubeReplay:
    """Answers one exchange, as often as it is asked for; what differs from the recording is kept in `surprises`.

    `body` False: what was sent with the recorded request is not compared.
    """

    def __init__(self, exchange: Exchange, *, body: bool = True) -> None:
        self._exchange, self._body = exchange, body
        self.surprises: list[object] = []
        self.times = 0
        replay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _serve(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                replay._compare(self, json.loads(raw) if raw else None)
                sent = json.dumps(replay._exchange.answer).encode()
                self.send_response(replay._exchange.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            do_GET = do_POST = do_PATCH = do_PUT = _serve

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def _compare(self, request: BaseHTTPRequestHandler, body: Any) -> None:
        """A review may say what kind of object it is, which the recorded one left out."""
        self.times += 1
        wanted = self._exchange
        authorization = f"Bearer {wanted.token}" if wanted.token is not None else None
        pairs: list[tuple[object, object]] = [
            (wanted.method, request.command),
            (wanted.path, request.path),
            (authorization, request.headers.get("Authorization")),
        ]
        if wanted.method != "GET" and self._body:
            kept = {name: value for name, value in (body or {}).items() if name in wanted.body}
            pairs += [(wanted.content_type, request.headers.get("Content-Type")), (wanted.body, kept)]
        self.surprises += [pair for pair in pairs if pair[0] != pair[1]]
