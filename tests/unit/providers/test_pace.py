"""The token bucket and the places: what is let through at once, what waits, what is told to come later."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from rotator.errors import Transient
from rotator.providers.pace import Pace
from rotator.reasons import Reason

PATIENCE = 20.0


class SetClock:
    """A clock that a test sets; each reading of a waiting thread moves it by a tenth of a second."""

    def __init__(self) -> None:
        self.seconds, self.step = 1000.0, 0.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        return datetime(2026, 11, 21, tzinfo=UTC)

    def monotonic(self) -> float:
        with self._lock:
            self.seconds += self.step
            return self.seconds


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


def refused(pace: Pace, deadline: float) -> Transient:
    with pytest.raises(Transient) as caught, pace.turn(deadline):
        pass
    return caught.value


def test_a_burst_goes_through_and_the_next_one_comes_later(clock: SetClock) -> None:
    """Three at once, then one every ten seconds: who can't wait is told how long it would have been."""
    pace = Pace("acme", clock=clock, requests=6, per=timedelta(minutes=1), burst=3)
    for _ in range(3):
        with pace.turn(clock.seconds + 1):
            pass
    late = refused(pace, clock.seconds + 1)
    assert (Reason.PROVIDER_RATE_LIMITED, timedelta(seconds=10)) == (late.reason, late.retry_after)
    assert "acme" in late.message
    clock.seconds += 10
    with pace.turn(clock.seconds + 1):
        pass
    refused(pace, clock.seconds + 1)


def test_a_bucket_is_never_fuller_than_its_burst(clock: SetClock) -> None:
    """A quiet night does not pay for a stampede in the morning."""
    pace = Pace("acme", clock=clock, requests=60, per=timedelta(minutes=1), burst=2)
    clock.seconds += 36000
    for _ in range(2):
        with pace.turn(clock.seconds):
            pass
    refused(pace, clock.seconds)


def test_who_gives_up_takes_no_token(clock: SetClock) -> None:
    """A hundred that can't wait do not make the next one wait longer."""
    pace = Pace("acme", clock=clock, requests=60, per=timedelta(minutes=1), burst=1)
    with pace.turn(clock.seconds):
        pass
    waits = {refused(pace, clock.seconds).retry_after for _ in range(100)}
    assert {timedelta(seconds=1)} == waits


def test_who_can_wait_is_let_through_in_time(clock: SetClock) -> None:
    """The wait is by the clock that never steps."""
    pace = Pace("acme", clock=clock, requests=60, per=timedelta(minutes=1), burst=1)
    with pace.turn(clock.seconds):
        pass
    clock.step, began = 0.5, clock.seconds
    with pace.turn(clock.seconds + 5):
        assert 1 <= clock.seconds - began < 5


def test_so_many_at_once_and_no_more(clock: SetClock) -> None:
    """The third of two waits for a place, and gets one when the first has ended."""
    pace = Pace("acme", clock=clock, concurrency=2)
    inside, go, third = threading.Semaphore(0), threading.Event(), threading.Event()

    def hold() -> None:
        with pace.turn(clock.seconds + 5):
            inside.release()
            assert go.wait(PATIENCE)

    def come_third() -> None:
        with pace.turn(clock.seconds + 5):
            third.set()

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert all(inside.acquire(timeout=PATIENCE) for _ in threads)
    late = refused(pace, clock.seconds)
    assert (Reason.PROVIDER_RATE_LIMITED, timedelta(0)) == (late.reason, late.retry_after)
    threads.append(threading.Thread(target=come_third))
    threads[-1].start()
    assert not third.is_set()
    go.set()
    assert third.wait(PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)


def test_a_place_is_given_back_by_a_request_that_fails(clock: SetClock) -> None:
    """An exception inside a turn ends it."""
    pace = Pace("acme", clock=clock, concurrency=1)
    for _ in range(3):
        with pytest.raises(OSError, match="gone"), pace.turn(clock.seconds):
            raise OSError("gone")


def test_without_a_limit_nothing_waits(clock: SetClock) -> None:
    """A clock that stands still lets all of them through."""
    pace = Pace("acme", clock=clock)
    for _ in range(1000):
        with pace.turn(clock.seconds):
            pass
