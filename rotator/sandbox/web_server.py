"""An ASGI application on a real socket of 127.0.0.1, served by uvicorn in a thread, that can cut connections."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any, Self

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rotator.sandbox.processes import wait_until

# Where the transports of open connections are found by the address of their client; ASGI itself has no way to say
# "drop this connection without an answer".
_open: dict[tuple[str, int], asyncio.Transport] = {}


class _CuttableProtocol(H11Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None:
            _open[self.client] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.client is not None:
            _open.pop(self.client, None)
        super().connection_lost(exc)


class CutConnection(Response):
    """Answers nothing: the connection is closed under the client's request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = _open.get(tuple(scope["client"]))
        if transport is None:
            return
        transport.abort()
        while (await receive())["type"] != "http.disconnect":
            continue


class WebServer:
    """Serves `app` on 127.0.0.1. The port is chosen at the first start and kept over later ones.

    Use it as a context manager, or call `start` and `stop`, each of which may be repeated.
    """

    def __init__(self, app: ASGIApp, *, port: int = 0) -> None:
        self._app = app
        self.port = port
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Serve; returns when the first request would be answered."""
        if self._server is not None:
            return self
        # with the protocol named, asyncio turns Nagle's algorithm off, which costs 40 ms an answer
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = int(listener.getsockname()[1])
        settings: dict[str, Any] = {"lifespan": "off", "ws": "none", "log_config": None, "access_log": False}
        # The application sends its own `Date`, so that a test can give it another clock.
        config = uvicorn.Config(
            self._app, http=_CuttableProtocol, date_header=False, timeout_graceful_shutdown=1, **settings
        )
        server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="sandbox-web", daemon=True
        )
        self._server = server
        self._thread.start()
        wait_until("the sandbox's web server", lambda: server.started, timeout=10, interval=0.005)
        return self

    def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(10)
        self._server = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
