"""Plays back exchanges that were recorded at a real Vault 1.8, each request checked against the recording: `Tape`
inside hvac's own HTTP session, `VaultReplay` as a server on loopback.
"""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import requests
from requests.adapters import HTTPAdapter
from urllib3.response import HTTPResponse

from rotator.stores import VaultStore

RECORDED = Path(__file__).parent.parent / "data" / "vault-contract" / "exchanges.json"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What must be asked, and what is answered; `body` None: whatever was asked. `cut`: reset, no answer.

    `note` is that of the recording; where `exact`, body and token must be the recorded ones too (`token` "": none).
    """

    method: str
    path: str
    status: int = 200
    answer: object = None
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    note: str = ""
    token: str = ""
    exact: bool = False

    @property
    def payload(self) -> bytes:
        """The answer's body as it goes over the wire."""
        if isinstance(self.answer, bytes):
            return self.answer
        return b"" if self.answer is None else json.dumps(self.answer).encode()


def notes() -> list[str]:
    """The notes of all recorded exchanges, in their order."""
    return [str(each["note"]) for each in json.loads(RECORDED.read_text())["exchanges"]]


def recorded(note: str) -> Exchange:
    """The recorded exchange with this note."""
    for each in json.loads(RECORDED.read_text())["exchanges"]:
        if each["note"] == note:
            asked, answered = each["request"], each["response"]
            return Exchange(
                method=asked["method"],
                path=asked["path"],
                body=asked["json"],
                status=answered["status"],
                answer=answered["json"],
                headers=answered["headers"],
                note=note,
                token=asked["token"] or "",
                exact=True,
            )
    raise KeyError(note)


def answer_of(note: str, **changes: Any) -> Exchange:
    """A recorded answer, to another request than the recorded one."""
    return replace(recorded(note), **{"exact": False, "body": None, **changes})


class Tape(HTTPAdapter):
    """A transport of `requests` that plays exchanges in order; `asked` are the requests, `played` the notes.

    It takes the place of the socket in the session that hvac sends by: hvac, requests and urllib3's answers are real.
    """

    def __init__(self, *exchanges: Exchange) -> None:
        super().__init__()
        self.left = list(exchanges)
        self.played: list[str] = []

    def into(self, store: VaultStore) -> None:
        """Stand between the store's HTTP session and the network."""
        for scheme in ("http://", "https://"):
            store._wire._session.mount(scheme, self)

    def send(self, request: requests.PreparedRequest, *args: object, **more: object) -> requests.Response:
        """The answer to a request, as it would come from the socket."""
        found = self.answer(request)
        if found.cut:
            raise requests.exceptions.ConnectionError("cut")
        raw = HTTPResponse(
            body=io.BytesIO(found.payload), headers=dict(found.headers), status=found.status, preload_content=False
        )
        return self.build_response(request, raw)

    def answer(self, request: requests.PreparedRequest) -> Exchange:
        """The next exchange, where its request is the one that was made."""
        text = request.body or b""
        assert isinstance(text, str | bytes)
        body = json.loads(text) if text else None
        asked = (request.method, request.path_url, body, request.headers.get("X-Vault-Token", ""))
        assert self.left, f"nothing more was to be asked, but {asked}"
        found = self.left.pop(0)
        wanted = (found.method, found.path, found.body, found.token)
        if found.exact:
            assert wanted == asked
        else:
            assert (wanted[:2], True) == (asked[:2], found.body in (None, body))
        self.played.append(found.note)
        return found


class VaultReplay:
    """Answers the exchanges in order; anything else asked is kept in `surprises` and answered with 599."""

    def __init__(self, *exchanges: Exchange) -> None:
        self._left = list(exchanges)
        self.surprises: list[str] = []
        self.tokens: list[str | None] = []
        self._lock = threading.Lock()
        replay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                replay._serve(self)

            do_GET = do_POST = do_PUT = _any

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # the default of 5 overflows under 16 threads: stalls of a second, even resets

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
        if exc[0] is None:
            assert not self.surprises, self.surprises
            assert not self._left, f"never asked: {self._left}"

    def _serve(self, http: BaseHTTPRequestHandler) -> None:
        text = http.rfile.read(int(http.headers.get("Content-Length") or 0))
        body: Any = json.loads(text) if text else None
        with self._lock:
            self.tokens.append(http.headers.get("X-Vault-Token"))
            expected = self._left[0] if self._left else None
            fits = (
                expected is not None
                and (expected.method, expected.path) == (http.command, http.path)
                and expected.body in (None, body)
            )
            if fits:
                self._left.pop(0)
            else:
                self.surprises.append(f"{http.command} {http.path} {body}, not {expected}")
        if not fits or expected is None:
            expected = Exchange(method="", path="", status=599)
        if expected.cut:
            http.close_connection = True
            http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            http.connection.close()
            return
        payload = expected.payload
        http.send_response(expected.status)
        for name, value in {**expected.headers, "Content-Length": str(len(payload))}.items():
            http.send_header(name, value)
        http.end_headers()
        http.wfile.write(payload)
