"""How fast a provider is asked: a token bucket and a number of requests at once, both per provider. Thread safe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from rotator.errors import Transient
from rotator.ports import Clock
from rotator.reasons import Reason

# A wait for a place is looked at again this often (seconds of real time), since the clock may be a test's.
_LOOK: Final = 0.05


class Pace:
    """A token bucket: `burst` requests at once after a quiet time, `requests` in each `per` in the long run.

    Args:
        name: the provider's name in the configuration, for messages.
        clock: its monotonic side.
        requests, per, burst: the bucket; `requests` None: none.
        concurrency: how many requests may be under way at once.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Clock,
        requests: int | None = None,
        per: timedelta = timedelta(minutes=1),
        burst: int = 1,
        concurrency: int = 16,
    ) -> None:
        self._name = name
        self._clock = clock
        self._interval = per.total_seconds() / requests if requests is not None else 0.0  # seconds for one token
        self._burst = burst
        self._lock = threading.Lock()
        # When the bucket would be full again: it holds (now - full_at + burst * interval) / interval tokens.
        self._full_at = clock.monotonic()
        self._places = threading.BoundedSemaphore(concurrency)

    @contextmanager
    def turn(self, deadline: float) -> Iterator[None]:
        """Wait for a token and a place, hold the place until the request has ended.

        Args:
            deadline: on the clock's monotonic scale, in seconds.

        Raises: Transient PROVIDER_RATE_LIMITED where the turn would come after `deadline`; nothing is sent then.
        """
        self._wait(deadline)
        while not self._places.acquire(timeout=_LOOK):
            if self._clock.monotonic() >= deadline:
                raise self._late("too many requests are under way", timedelta(0))
        try:
            yield
        finally:
            self._places.release()

    def _wait(self, deadline: float) -> None:
        """Take a token, and wait until it is there."""
        if not self._interval:
            return
        with self._lock:
            now = self._clock.monotonic()
            full_at = max(self._full_at, now) + self._interval
            turn = full_at - self._burst * self._interval
            if turn > deadline:
                # not taken: whoever comes later with a longer deadline must not wait for one who gave up
                raise self._late("its rate limit is used up", timedelta(seconds=turn - now))
            self._full_at = full_at
        pause = threading.Event()
        while (left := turn - self._clock.monotonic()) > 0:
            pause.wait(min(left, _LOOK))

    def _late(self, why: str, retry_after: timedelta) -> Transient:
        return Transient(
            f"{self._name}: {why}, so nothing was sent", reason=Reason.PROVIDER_RATE_LIMITED, retry_after=retry_after
        )
