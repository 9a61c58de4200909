"""Stands between a command and Vault, and lets no secret be written while it is closed."""

from __future__ import annotations

import threading
from typing import Self

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rotator.sandbox.web_server import WebServer

METHODS = ["GET", "POST", "PUT", "LIST", "DELETE"]
_LONGEST = 30.0  # seconds that a write is held; the command is killed long before


class VaultGate:
    """Forwards all requests to `upstream`; while `closed` is set, writes of secrets wait. Use it as a context manager.

    Attributes:
        closed: set it to hold writes.
        reached: set once a write is held.
    """

    def __init__(self, upstream: str) -> None:
        self._client = httpx.Client(base_url=upstream, timeout=10)
        self._server = WebServer(Starlette(routes=[Route("/{path:path}", self._forward, methods=METHODS)]))
        self.closed, self.reached, self._over = threading.Event(), threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._server.url

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._server.stop()
        self._client.close()

    async def _forward(self, request: Request) -> Response:
        body = await request.body()
        return await run_in_threadpool(self._ask, request, body)

    def _ask(self, request: Request, body: bytes) -> Response:
        if self.closed.is_set() and request.method in {"POST", "PUT"} and "/data/" in request.url.path:
            self.reached.set()
            self._over.wait(_LONGEST)
            return Response(status_code=503)
        headers = {name: value for name, value in request.headers.items() if name.startswith(("x-vault", "content-t"))}
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        answer = self._client.request(request.method, path, content=body, headers=headers)
        kept = {name: answer.headers[name] for name in ("date", "content-type") if name in answer.headers}
        return Response(answer.content, status_code=answer.status_code, headers=kept)
