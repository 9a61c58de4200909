"""The edge where time comes in."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from freezegun import freeze_time

from rotator.clock import SystemClock


def test_now_is_the_wall_clock_in_aware_utc() -> None:
    """Whatever the host's zone (rule 10)."""
    before = datetime.now(UTC)
    now = SystemClock().now()
    assert before <= now <= datetime.now(UTC)
    assert timedelta(0) == now.utcoffset()


def test_now_follows_a_clock_that_is_set_back() -> None:
    """It remembers nothing: what the host says, it says."""
    clock = SystemClock()
    with freeze_time("2031-01-01T00:00:00Z"):
        ahead = clock.now()
    assert datetime(2031, 1, 1, tzinfo=UTC) == ahead
    assert clock.now() < ahead


def test_monotonic_only_goes_forward() -> None:
    """By the time that passes, not by the wall clock."""
    clock = SystemClock()
    first = clock.monotonic()
    threading.Event().wait(0.02)
    assert 0.015 <= clock.monotonic() - first < 5
