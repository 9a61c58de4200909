"""Windows that contradict one another: a key that is issued in place takes its consumers down at once, so it may only
be rotated while all of them may be restarted (design, "The way a rotation goes").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Protocol

from rotator.policy import Window, next_opening, open_until

# Any year does: crons repeat, and a check must say the same today and tomorrow.
_FROM: Final = datetime(2027, 1, 1, tzinfo=UTC)
_LONG_ENOUGH: Final = timedelta(days=371)
_MOST: Final = 2000  # openings that are looked at: a window that opens every minute has half a million a year


class WindowLike(Protocol):
    """As the configuration has it."""

    @property
    def cron(self) -> str: ...
    @property
    def duration(self) -> timedelta: ...
    @property
    def timezone(self) -> str: ...


def outside(key: Sequence[WindowLike], consumer: Sequence[WindowLike]) -> datetime | None:
    """An opening of the key's windows during which the consumer's are not open all the time; None where there is none.

    A key without windows may be rotated at any time: the moment that is given is then one at which the consumer's are
    closed.
    """
    return _outside(tuple(map(as_window, key)), tuple(map(as_window, consumer)))


@lru_cache(1024)  # a fleet has few different windows, and a year of them is a third of a second's work
def _outside(key: tuple[Window, ...], theirs: tuple[Window, ...]) -> datetime | None:
    if not theirs:
        return None
    if not key:
        return _closed(theirs, _FROM, _FROM + _LONG_ENOUGH)
    for start, end in _openings(key):
        if _closed(theirs, start, end) is not None:
            return start
    return None


def _closed(windows: Sequence[Window], at: datetime, until: datetime) -> datetime | None:
    """The first moment from `at` on, and before `until`, at which none is open; None where one always is."""
    for _ in range(_MOST):
        if at >= until:
            return None
        ends = [end for window in windows if (end := open_until(window, at)) is not None]
        if not ends:
            return at
        at = max(ends)
    return None


def _openings(windows: Sequence[Window]) -> Iterator[tuple[datetime, datetime]]:
    for window in windows:
        at = _FROM
        for _ in range(_MOST):
            opening = next_opening([window], at)
            if opening is None or opening > _FROM + _LONG_ENOUGH:
                break
            yield opening, opening + window.duration
            at = opening


def as_window(window: WindowLike) -> Window:
    """A window of the configuration as the policy knows it."""
    return Window(cron=window.cron, duration=window.duration, timezone=window.timezone)
