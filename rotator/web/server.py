"""uvicorn in a thread: one event loop, one server for TCP and one for the Unix socket."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from rotator.errors import Permanent
from rotator.reasons import Reason

_START_LIMIT = 10.0


class Listener:
    """Serves applications on sockets that were bound beforehand, so that a refusal to bind is seen at once."""

    def __init__(self, served: Sequence[tuple[Starlette, socket.socket]]) -> None:
        self._servers = [
            (uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")), sock)
            for app, sock in served
        ]
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Serve; returns when requests are answered."""
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(_START_LIMIT / 0.02)):
            if all(server.started for server, _ in self._servers):
                return
            waited.wait(0.02)
        raise Permanent("the HTTP listener did not start", reason=Reason.LISTEN_FAILED)

    def close(self) -> None:
        """Answer what is under way, then end."""
        for server, _ in self._servers:
            server.should_exit = True
        self._thread.join(timeout=_START_LIMIT)
        for _, sock in self._servers:
            sock.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        await asyncio.gather(*(server.serve(sockets=[sock]) for server, sock in self._servers))


def bind_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises: Permanent with the address where it can't be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        raise Permanent(
            f"http.listen {host}:{port} can't be bound: {exc.strerror}", reason=Reason.LISTEN_FAILED
        ) from exc
    return sock


def bind_unix(path: Path) -> socket.socket:
    """A Unix socket that only this user may open (0600); one left behind by a dead daemon is replaced.

    The caller holds the journal's lock, so no living daemon is behind it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # from the first moment on, not only after a chmod
    try:
        sock.bind(str(path))
    except OSError as exc:
        sock.close()
        raise Permanent(f"the socket {path} can't be made: {exc}", reason=Reason.LISTEN_FAILED) from exc
    finally:
        os.umask(before)
    return sock
