"""Stands between the daemon and a platform, and edits the platform's answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Self

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rotator.sandbox.web_server import WebServer

Edit = Callable[[dict[str, Any]], None]


class EditingProxy:
    """Forwards each POST to `upstream` and lets `edit` change the JSON that comes back.

    Use it as a context manager; `url` is the address for the daemon's configuration.
    """

    def __init__(self, upstream: str, edit: Edit) -> None:
        self._upstream, self._edit = upstream, edit
        self._client = httpx.Client(timeout=10)
        self._server = WebServer(Starlette(routes=[Route("/", self._forward, methods=["POST"])]))

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._server.url + "/"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.stop()
        self._client.close()

    async def _forward(self, request: Request) -> Response:
        names = ("authorization", "content-type")
        headers = {name: value for name in names if (value := request.headers.get(name)) is not None}
        body = await request.body()
        return await run_in_threadpool(self._ask, body, headers)

    def _ask(self, body: bytes, headers: dict[str, str]) -> Response:
        answer = self._client.post(self._upstream, content=body, headers=headers)
        content = answer.json()
        self._edit(content)
        kept = {"date": answer.headers["date"], "content-type": "application/json"}
        return Response(json.dumps(content).encode(), status_code=answer.status_code, headers=kept)
