"""Consumers that need no restart: the suite over an application that follows Vault by itself, and tells its version."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import httpx
import pytest

from contract.consumer_application import Application
from contract.consumer_cases import ORDER, ConsumerCases, confirmed, looked
from rotator.clock import SystemClock
from rotator.consumers.none import NoneConsumer
from rotator.model import Order
from rotator.ports import Watch
from rotator.providers import make_client


class NoneStage:
    """An application that has taken up what Vault holds, the order's version, and answers it under /version."""

    kind = "none"

    def __init__(self, client: httpx.Client) -> None:
        self.stop, self._client = threading.Event(), client
        self._wanted: int | None = None
        self.site = Application(lambda: ORDER.version if self._wanted is None else self._wanted)

    def consumer(self, timeout: float = 10) -> NoneConsumer:
        """The adapter."""
        return NoneConsumer("subject", clock=SystemClock())

    def watch(self, order: Order) -> Watch:
        """Asks /version."""
        return self.site.watch(self._client, order)

    def restarts(self) -> list[tuple[str, int]]:
        """Whatever was asked of it beside its version: nothing ever is."""
        return [(request.method, 0) for request in self.site.requests if request.method != "GET"]

    def told(self) -> int:
        """Questions that were answered."""
        return self.site.told()

    def run_on(self, version: int | None) -> None:
        """What the application runs on from now on."""
        self._wanted = version

    def silent(self) -> None:
        """It hangs up instead of answering."""
        self.site.speaks = False

    def crashes(self) -> None:
        """It dies again and again, whoever starts it."""
        self.site.crashes()

    def deaths(self) -> int:
        """How often it has gone."""
        return self.site.deaths

    def mended(self) -> None:
        """It stays up."""
        self.site.mended()

    def _nothing(self, *_: object) -> None:
        raise NotImplementedError

    slow = failing = missing = forbidden = half_down = _nothing


@pytest.fixture
def stage() -> Iterator[NoneStage]:
    """An application that does well."""
    with make_client() as client:
        made = NoneStage(client)
        with made.site:
            yield made


class TestNone(ConsumerCases):
    """The suite, as far as there is something to restart in it."""

    # Nothing is called at a restart that could be slow, fail, be missing or be forbidden, and it has no parts.
    test_slow = None  # type: ignore[assignment]
    test_too_slow = None  # type: ignore[assignment]
    test_failing = None  # type: ignore[assignment]
    test_missing = None  # type: ignore[assignment]
    test_forbidden = None  # type: ignore[assignment]
    test_half_down = None  # type: ignore[assignment]
    test_the_daemon_stops = None  # type: ignore[assignment]

    def test_restart(self, stage: NoneStage) -> None:  # type: ignore[override]  # this stage alone
        """Nobody is asked for anything, and the ticket is of this moment: from then on its proof counts."""
        subject = stage.consumer()
        assert (stage.kind, "subject") == (subject.kind, subject.name)
        subject.preflight()
        before = datetime.now(UTC)
        ticket = subject.restart(ORDER)
        assert before <= ticket.restarted_at <= datetime.now(UTC)
        assert ("subject", {}) == (ticket.consumer, dict(ticket.marks))
        subject.check(ticket)
        assert [] == stage.site.requests

    def test_repeated(self, stage: NoneStage) -> None:  # type: ignore[override]  # this stage alone
        """The same order again is nothing again, at a later moment."""
        subject = stage.consumer()
        first, again = subject.restart(ORDER), subject.restart(ORDER)
        assert first.restarted_at <= again.restarted_at
        assert [] == stage.site.requests

    def test_no_answer(self, stage: NoneStage) -> None:  # type: ignore[override]  # this stage alone
        """An application that hangs up is not confirmed, and that is not the watch's fault; when it speaks, it is."""
        stage.silent()
        with closing(stage.watch(ORDER)) as watch:
            stage.consumer().restart(ORDER)
            looked(watch, lambda: stage.told() >= 2, "it was asked")
            assert () == tuple(watch.sightings())
            assert "" == watch.healthy()
            stage.site.speaks = True
            confirmed(watch)
