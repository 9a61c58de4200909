"""An application behind a URL, for the suites of the kinds whose proof comes over HTTP: a webhook's, and `none`'s."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import httpx

from contract.consumer_cases import ORDER
from contract.consumer_site import Reply, Request, Site
from rotator.clock import SystemClock
from rotator.consumers.asking import Ask, AskingWatch
from rotator.consumers.http_evidence import ask_http
from rotator.model import Order
from rotator.sandbox.processes import free_port

NEW = str(ORDER.version).encode()
# What a crash-looping application does with one question after the other, and each time that it dies nobody listens:
# it is not up yet; it dies in the middle of the right answer; it is still the old one; it dies without a word.
LIVES = (
    Reply(status=503, body=NEW),
    Reply(body=NEW, headers={"Content-Length": str(len(NEW) + 1)}, dies=True),
    Reply(body=b"6"),
    Reply(cut=True, dies=True),
)


class Application(Site):
    """Answers its version under /version; `version` tells it. A supervisor starts it again whenever it has died."""

    def __init__(self, version: Callable[[], int]) -> None:
        super().__init__(self._told, port=free_port())
        self._version = version
        self._lives: Iterator[Reply] | None = None
        self.speaks = True

    def watch(self, client: httpx.Client, order: Order) -> AskingWatch:
        """Asks it, ten times as often as the daemon does."""
        ask = ask_http("subject", client=client, url=f"{self.url}/version", field="version", headers=dict, order=order)
        clock, stop = SystemClock(), threading.Event()
        return AskingWatch("subject", ask=self._supervised(ask), clock=clock, stop=stop, pause=0.1)

    def told(self) -> int:
        """Questions that were answered, all but the last surely."""
        return len(self.of("GET")) - 1

    def crashes(self) -> None:
        """From now on it lives as LIVES says, over and over."""
        self._lives = itertools.cycle(LIVES)

    def mended(self) -> None:
        """From now on it stays up, once it is started again."""
        self._lives = None

    def _told(self, request: Request) -> Reply:
        if (lives := self._lives) is not None:
            return next(lives)
        return Reply(body=str(self._version()).encode(), cut=not self.speaks)

    def _supervised(self, ask: Ask) -> Ask:
        """The same question; where it found nobody, the supervisor starts the application again after it."""

        def asked() -> str | None:
            down = not self.listens
            try:
                return ask()
            finally:
                if down:
                    self.listen()

        return asked
