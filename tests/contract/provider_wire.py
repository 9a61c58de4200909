"""A wire to a real broker that breaks, or stalls, at one request: the faults that a broker has no switches for."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from rotator.sandbox.faults import Cut, Faults


@dataclass(slots=True)
class _Passage:
    """One connection: both of its ends, and what the request that was struck makes of the answer."""

    near: socket.socket
    far: socket.socket
    swallow: bool = False
    delay: float = 0.0

    def end(self) -> None:
        """Break it, at both ends."""
        for each in (self.near, self.far):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Wire:
    """Passes everything on to a port of this machine, until the block's end.

    Attributes:
        faults: `cut`, `latency_after` and `times` of them; `operations` are texts by which a request is known.
    """

    def __init__(self, port: int) -> None:
        self.faults = Faults(operations=frozenset())
        self._far = port
        self._passages: list[_Passage] = []
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    @property
    def port(self) -> int:
        """Its near end."""
        port: int = self._listener.getsockname()[1]
        return port

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._run(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(5)
        self._listener.close()
        for passage in self._passages:
            passage.end()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        for passage in self._passages:
            passage.near.close()
            passage.far.close()

    def _run(self, target: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=target, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                passage = _Passage(near, socket.create_connection(("127.0.0.1", self._far)))
                self._passages.append(passage)
                self._run(self._pass_on, passage)
                self._run(self._pass_back, passage)

    def _pass_on(self, passage: _Passage) -> None:
        with contextlib.suppress(OSError):
            while data := passage.near.recv(65536):
                fault = self._struck(data)
                if fault is not None and fault.cut is Cut.BEFORE_EFFECT:
                    break
                if fault is not None:
                    passage.swallow, passage.delay = fault.cut is Cut.AFTER_EFFECT, fault.latency_after
                passage.far.sendall(data)
        passage.end()

    def _pass_back(self, passage: _Passage) -> None:
        with contextlib.suppress(OSError):
            while data := passage.far.recv(65536):
                if passage.swallow:
                    break
                self._stopping.wait(passage.delay)
                passage.near.sendall(data)
        passage.end()

    def _struck(self, data: bytes) -> Faults | None:
        faults = self.faults
        if not faults.times or not any(text.encode() in data for text in faults.operations):
            return None
        if faults.cut is Cut.NEVER and not faults.latency_after:
            return None
        faults.times -= 1
        return faults
