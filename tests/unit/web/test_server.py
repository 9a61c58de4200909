"""Listeners on real sockets: TCP and Unix, bound beforehand, closed in order."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from rotator.errors import Permanent, RotatorError
from rotator.reasons import Reason
from rotator.web.server import Listener, bind_tcp, bind_unix


class Hall:
    """An application that answers its name, and holds a request until it is let go."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inside, self.go = threading.Event(), threading.Event()
        self.application = Starlette(routes=[Route("/", self._answer), Route("/slow", self._slow)])

    async def _answer(self, _request: Request) -> Response:
        return PlainTextResponse(self.name)

    async def _slow(self, _request: Request) -> Response:
        self.inside.set()
        await run_in_threadpool(self.go.wait, 10)
        return PlainTextResponse("done")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def over_tcp(stack: ExitStack, sock: socket.socket) -> httpx.Client:
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return stack.enter_context(httpx.Client(base_url=f"http://{shown}:{port}", timeout=10, trust_env=False))


def over_unix(stack: ExitStack, path: Path) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(path))
    return stack.enter_context(httpx.Client(transport=transport, base_url="http://rotator", timeout=10))


def serve(stack: ExitStack, *served: tuple[Hall, socket.socket]) -> Listener:
    listener = Listener([(hall.application, sock) for hall, sock in served])
    stack.callback(listener.close)
    listener.start()
    return listener


def test_both_doors_are_open_when_start_returns(stack: ExitStack, tmp_path: Path) -> None:
    """Each with its own application: the Unix socket's is the trusted one."""
    tcp, unix = bind_tcp("127.0.0.1", 0), bind_unix(tmp_path / "rotator.sock")
    serve(stack, (Hall("tcp"), tcp), (Hall("unix"), unix))
    assert "tcp" == over_tcp(stack, tcp).get("/").text
    assert "unix" == over_unix(stack, tmp_path / "rotator.sock").get("/").text


def test_ipv6_is_served(stack: ExitStack) -> None:
    """`listen: "[::1]:9109"`."""
    tcp = bind_tcp("::1", 0)
    serve(stack, (Hall("six"), tcp))
    assert "six" == over_tcp(stack, tcp).get("/").text


def test_a_taken_port_is_named_at_once(stack: ExitStack) -> None:
    """With the address, before anything is served, and not as a fault in rotator itself."""
    taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = taken.getsockname()[1]
    with pytest.raises(Permanent, match=f"127.0.0.1:{port}") as caught:
        bind_tcp("127.0.0.1", port)
    assert Reason.UNFORESEEN != caught.value.reason


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid"])
def test_an_address_of_somebody_else_is_refused(host: str) -> None:
    """An address that this machine does not have, a name that nobody has."""
    with pytest.raises(Permanent, match=host):
        bind_tcp(host, 0)


def test_the_unix_socket_is_for_its_owner_only(stack: ExitStack, tmp_path: Path) -> None:
    """0600 from the first moment on, whatever the umask, which is left as it was."""
    before = os.umask(0)
    try:
        sock = stack.enter_context(bind_unix(tmp_path / "state" / "rotator.sock"))
        kept = os.umask(0)
    finally:
        os.umask(before)
    mode = (tmp_path / "state" / "rotator.sock").stat().st_mode
    assert (0, True, 0o600) == (kept, stat.S_ISSOCK(mode), stat.S_IMODE(mode))
    assert 0o700 == stat.S_IMODE((tmp_path / "state").stat().st_mode)
    assert socket.AF_UNIX == sock.family


def test_a_socket_of_a_dead_daemon_is_replaced(stack: ExitStack, tmp_path: Path) -> None:
    """What a SIGKILL left behind does not keep the next start away."""
    path = tmp_path / "rotator.sock"
    bind_unix(path).close()
    assert path.exists()
    unix = bind_unix(path)
    serve(stack, (Hall("again"), unix))
    assert "again" == over_unix(stack, path).get("/").text


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    """The kernel takes 107 bytes: an error of ours with the path, not a bare OSError, and no socket left open."""
    path = tmp_path / ("d" * 100) / "rotator.sock"
    with pytest.raises(RotatorError, match=r"rotator\.sock"):
        bind_unix(path)


def test_closing_ends_the_thread_and_gives_the_port_back(stack: ExitStack) -> None:
    """At once, though a client keeps its connection open."""
    tcp = bind_tcp("127.0.0.1", 0)
    host, port = tcp.getsockname()
    listener = serve(stack, (Hall("tcp"), tcp))
    client = over_tcp(stack, tcp)
    assert 200 == client.get("/").status_code
    began = time.monotonic()
    listener.close()
    assert time.monotonic() - began < 5
    assert "http" not in {thread.name for thread in threading.enumerate()}
    bind_tcp(host, port).close()


def test_closing_answers_what_is_under_way(stack: ExitStack) -> None:
    """A request that came before the end gets its answer."""
    hall, tcp = Hall("tcp"), bind_tcp("127.0.0.1", 0)
    listener = serve(stack, (hall, tcp))
    client = over_tcp(stack, tcp)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(client.get("/slow").text))
    asking.start()
    assert hall.inside.wait(5)
    closing = threading.Thread(target=listener.close)
    closing.start()
    hall.go.set()
    closing.join(10)
    asking.join(10)
    assert (["done"], False) == (answers, closing.is_alive())


def test_closing_twice_is_harmless(stack: ExitStack, tmp_path: Path) -> None:
    """An ExitStack may meet a listener that has ended."""
    listener = serve(stack, (Hall("unix"), bind_unix(tmp_path / "rotator.sock")))
    listener.close()
    listener.close()
    # not by httpx: it leaves its own socket open where a connect is refused
    with socket.socket(socket.AF_UNIX) as visitor, pytest.raises(OSError, match="refused"):
        visitor.connect(str(tmp_path / "rotator.sock"))
