"""What every kind of consumer must do: one suite, which a kind's own test file runs over a stage of its own.

A kind that can't get into a case takes it out, `test_half_down = None`, and says why in test_every_consumer.py.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Protocol

import pytest

from integration.broker_fixture import until
from rotator.errors import Permanent, RotatorError, Stopping, Transient
from rotator.model import Order, Ticket
from rotator.ports import Watch
from rotator.reasons import Reason

ORDER = Order(key="building-a", version=7, id="4f2a-7")


class Subject(Protocol):
    """A consumer, as ports.Consumer has it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    def preflight(self) -> None: ...
    def restart(self, order: Order, /) -> Ticket: ...
    def check(self, ticket: Ticket) -> None: ...


class Stage(Protocol):
    """A world with one consumer in it, which does well until it is told otherwise."""

    kind: str
    stop: threading.Event

    def consumer(self, timeout: float = 10) -> Subject:
        """The adapter, aimed at this world."""
        ...

    def watch(self, order: Order) -> Watch:
        """What proves the order's version, opened."""
        ...

    def restarts(self) -> list[tuple[str, int]]:
        """Key and version of each restart that the world has seen."""
        ...

    def told(self) -> int:
        """How often the world has said which version it runs on."""
        ...

    def run_on(self, version: int | None) -> None:
        """From now on a restart leaves the consumer on this version; None: on the order's."""
        ...

    def slow(self, seconds: float) -> None:
        """A restart takes this long."""
        ...

    def failing(self) -> None:
        """A restart fails in a way that may pass."""
        ...

    def missing(self) -> None:
        """What is to be restarted is not there."""
        ...

    def forbidden(self) -> None:
        """This login, or this user, may not."""
        ...

    def silent(self) -> None:
        """Nobody says anything any more about the version; restarts still work."""
        ...

    def half_down(self) -> None:
        """Of what is restarted, half is down."""
        ...

    def crashes(self) -> None:
        """What is restarted comes up, dies before it runs on the order's version, and comes up again, over and over."""
        ...

    def deaths(self) -> int:
        """How often it has died since it crashes."""
        ...

    def mended(self) -> None:
        """What is restarted from now on stays up."""
        ...


def confirmed(watch: Watch) -> datetime:
    """Wait for the first sighting, as evidence does; returns when it was."""
    deadline = time.monotonic() + 20
    while not (found := watch.sightings()):
        assert time.monotonic() < deadline, f"never confirmed: {watch.healthy()}"
        watch.wait(0.1)
    return found[0].at


def looked(watch: Watch, condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, and look at the watch meanwhile, as evidence does."""

    def met() -> bool:
        watch.sightings()
        return condition()

    until(met, what, 20)


def refused(call: Callable[..., object], *args: object) -> tuple[type[RotatorError], Reason]:
    """The error of a call that must not work; its message begins with the consumer's name."""
    with pytest.raises(RotatorError) as caught:
        call(*args)
    assert caught.value.message.startswith("subject")
    return type(caught.value), caught.value.reason


def trouble(call: Callable[..., object], *args: object) -> RotatorError | None:
    """The error of a call; None where it went well."""
    try:
        call(*args)
    except RotatorError as exc:
        return exc
    return None


class ConsumerCases:
    """The suite; a subclass brings the fixture `stage`."""

    MISSING: tuple[type[RotatorError], Reason] = (Permanent, Reason.CONSUMER_MISSING)
    # Whether the adapter sees what it restarted: then `restart`, or `check` afterwards, tells of a crash.
    SEES_CRASHES = False

    def test_restart(self, stage: Stage) -> None:
        """A restart reaches the consumer once, with key and version; the ticket can be journaled."""
        subject = stage.consumer()
        assert (stage.kind, "subject") == (subject.kind, subject.name)
        subject.preflight()
        assert [] == stage.restarts()
        before = datetime.now(UTC)
        ticket = subject.restart(ORDER)
        assert "subject" == ticket.consumer
        assert before <= ticket.restarted_at <= datetime.now(UTC)
        assert json.loads(json.dumps(dict(ticket.marks))) == dict(ticket.marks)
        until(lambda: [("building-a", 7)] == stage.restarts(), "the restart is seen")
        subject.check(ticket)

    def test_repeated(self, stage: Stage) -> None:
        """The same order may be given again, by a daemon that does not know what came of it."""
        subject = stage.consumer()
        subject.restart(ORDER)
        subject.restart(ORDER)
        until(lambda: [("building-a", 7)] * 2 == stage.restarts(), "both restarts are seen")

    def test_confirm(self, stage: Stage) -> None:
        """The proof comes after the restart began, and the watch sees well."""
        watch = stage.watch(ORDER)
        try:
            ticket = stage.consumer().restart(ORDER)
            assert ticket.restarted_at <= confirmed(watch)
            assert "" == watch.healthy()
            assert () == tuple(watch.losses())
        finally:
            watch.close()

    def test_confirmed_again(self, stage: Stage) -> None:
        """A watch that stays open proves the repetition of a restart as well."""
        watch = stage.watch(ORDER)
        try:
            stage.consumer().restart(ORDER)
            first = confirmed(watch)
            again = stage.consumer().restart(ORDER)
            looked(watch, lambda: watch.sightings()[-1].at >= again.restarted_at > first, "it is proven again")
        finally:
            watch.close()

    @pytest.mark.parametrize("version", [6, 8])
    def test_confirmed_on_another_version(self, stage: Stage, version: int) -> None:
        """A consumer that says that it runs on the old version, or on somebody else's, proves nothing."""
        stage.run_on(version)
        watch = stage.watch(ORDER)
        try:
            stage.consumer().restart(ORDER)
            looked(watch, lambda: stage.told() >= 2, "it has spoken")
            looked(watch, lambda: stage.told() >= 3, "and again")  # so the first ones are read
            assert () == tuple(watch.sightings())
            stage.run_on(None)
            stage.consumer().restart(ORDER)
            confirmed(watch)
        finally:
            watch.close()

    def test_no_answer(self, stage: Stage) -> None:
        """A consumer that says nothing is not confirmed, and that is not the watch's fault."""
        stage.silent()
        watch = stage.watch(ORDER)
        try:
            stage.consumer().restart(ORDER)
            until(lambda: bool(stage.restarts()), "the restart is seen")
            for _ in range(5):
                watch.wait(0.1)
                assert () == tuple(watch.sightings())
            assert "" == watch.healthy()
        finally:
            watch.close()

    def test_half_down(self, stage: Stage) -> None:
        """Half of a consumer is no proof; the other half's coming is."""
        stage.half_down()
        watch = stage.watch(ORDER)
        try:
            stage.consumer().restart(ORDER)
            looked(watch, lambda: stage.told() >= 1, "the half that is up has spoken")
            for _ in range(5):
                watch.wait(0.1)
                assert () == tuple(watch.sightings())
            stage.run_on(None)
            stage.consumer().restart(ORDER)
            confirmed(watch)
        finally:
            watch.close()

    def test_crash_looping(self, stage: Stage) -> None:
        """What dies whenever it comes up is told where that is seen, and never confirmed; once it stays up, it is."""
        stage.crashes()
        subject = stage.consumer()
        with closing(stage.watch(ORDER)) as watch:
            tickets: list[Ticket] = []
            found = trouble(lambda: tickets.append(subject.restart(ORDER)))
            looked(watch, lambda: stage.deaths() >= 3, "it has died three times")
            if found is None and self.SEES_CRASHES:  # it was up when the job was done
                looked(watch, lambda: trouble(subject.check, tickets[0]) is not None, "it is found dead")
            if found is None:
                found = trouble(subject.check, tickets[0])
            expected = (Transient, Reason.CONSUMER_CRASHED) if self.SEES_CRASHES else None
            assert expected == (found and (type(found), found.reason))
            for _ in range(5):
                watch.wait(0.1)
                assert () == tuple(watch.sightings())
            assert "" == watch.healthy()
            stage.mended()
            ticket = subject.restart(ORDER)
            looked(watch, lambda: any(each.at >= ticket.restarted_at for each in watch.sightings()), "it is confirmed")

    def test_slow(self, stage: Stage) -> None:
        """A restart that takes its time is waited for."""
        stage.slow(0.5)
        began = time.monotonic()
        stage.consumer().restart(ORDER)
        assert time.monotonic() - began >= 0.45

    def test_too_slow(self, stage: Stage) -> None:
        """One that takes longer than its timeout costs no more than that, and may be tried again."""
        stage.slow(20)
        began = time.monotonic()
        assert (Transient, Reason.CONSUMER_TIMEOUT) == refused(stage.consumer(timeout=0.5).restart, ORDER)
        assert 0.4 <= time.monotonic() - began < 8

    def test_failing(self, stage: Stage) -> None:
        """A failure that may pass is worth another try."""
        stage.failing()
        assert (Transient, Reason.CONSUMER_RESTART_FAILED) == refused(stage.consumer(timeout=2).restart, ORDER)

    def test_missing(self, stage: Stage) -> None:
        """What is not there is named as that."""
        stage.missing()
        assert self.MISSING == refused(stage.consumer().restart, ORDER)
        assert [] == stage.restarts()

    def test_forbidden(self, stage: Stage) -> None:
        """What this login may not do is not tried again."""
        stage.forbidden()
        assert (Permanent, Reason.CONSUMER_FORBIDDEN) == refused(stage.consumer().restart, ORDER)
        assert [] == stage.restarts()

    def test_the_daemon_stops(self, stage: Stage) -> None:
        """A daemon that goes down does not wait for a restart's end."""
        stage.slow(20)
        stop = threading.Timer(0.2, stage.stop.set)
        stop.start()
        began = time.monotonic()
        with pytest.raises(Stopping):
            stage.consumer(timeout=15).restart(ORDER)
        assert time.monotonic() - began < 8
        stop.join(10)
