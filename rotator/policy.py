"""When is a key due, and may it be rotated now? Pure functions of facts, policy and a given time.

The dice for the jitter are thrown elsewhere, once for every secret, and stored (rule 10): here they are an argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

from rotator.durations import Share
from rotator.model import ZERO
from rotator.reasons import Reason

# A `before_expiry` as long as the life itself would make a fresh secret due at once, for ever.
FALLBACK_SHARE = 0.33
# Jitter is at most this share of the life (rule 10).
JITTER_SHARE = 0.1
# How far back the last window before a moment is looked for: near first, since a cron of every minute has many.
_LOOK_BACK_DAYS = (1, 8, 32, 370)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A recurring stretch of time: it opens whenever `cron` fires in `timezone`, and stays open for `duration`."""

    cron: str
    duration: timedelta
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When a key is due and when it may be touched."""

    before_expiry: timedelta | Share | None = None
    max_age: timedelta | None = None
    jitter: timedelta = ZERO
    windows: Sequence[Window] = ()
    blackouts: Sequence[Window] = ()
    min_interval: timedelta = ZERO


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """The moment from which a key is due, and why."""

    at: datetime
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Why a due key is not rotated now, and when to look again (None: only a person changes it)."""

    reason: Reason
    until: datetime | None


def rotate_at(policy: Policy, *, issued_at: datetime | None, expires_at: datetime | None, draw: float) -> Due | None:
    """The moment from which the secret issued at `issued_at` is due.

    Args:
        issued_at: when the secret was made, or first seen where the provider does not say.
        expires_at: when it dies; None where that is unknown or implausible.
        draw: the stored throw of the dice, 0 ≤ draw < 1; jitter only ever moves the moment forward in time.

    Returns:
        None when nothing makes this key due: no expiry and no `max_age`.
    """
    candidates: list[Due] = []
    life = expires_at - issued_at if expires_at is not None and issued_at is not None else None
    if expires_at is not None and policy.before_expiry is not None:
        candidates.append(Due(at=expires_at - _before(policy.before_expiry, life), reason=Reason.NEAR_EXPIRY))
    if issued_at is not None and policy.max_age is not None:
        candidates.append(Due(at=issued_at + policy.max_age, reason=Reason.MAX_AGE))
    if not candidates:
        return None
    first = min(candidates, key=lambda due: due.at)
    span = life if life is not None and life > ZERO else policy.max_age
    jitter = min(policy.jitter, span * JITTER_SHARE) if span is not None else ZERO
    if issued_at is not None and first.at > issued_at:
        jitter = min(jitter, (first.at - issued_at) / 2)  # a fresh secret is never due at once
    at = first.at - jitter * draw
    if policy.windows and expires_at is not None:
        at = _move_into_last_window(policy.windows, at, expires_at, issued_at)
    return Due(at=at, reason=first.reason)


def held(policy: Policy, *, now: datetime, last_issue_at: datetime | None, ignore_windows: bool = False) -> Held | None:
    """Why a due key has to wait at `now`; None when it may be rotated.

    `ignore_windows` is `rotate --now`: windows, blackouts and `min_interval` do not count.
    """
    if ignore_windows:
        return None
    if last_issue_at is not None and now < last_issue_at + policy.min_interval:
        return Held(reason=Reason.MIN_INTERVAL, until=last_issue_at + policy.min_interval)
    for blackout in policy.blackouts:
        if (end := open_until(blackout, now)) is not None:
            return Held(reason=Reason.BLACKOUT, until=end)
    if policy.windows and all(open_until(window, now) is None for window in policy.windows):
        return Held(reason=Reason.OUTSIDE_WINDOW, until=next_opening(policy.windows, now))
    return None


def open_until(window: Window, now: datetime) -> datetime | None:
    """When the window that is open at `now` closes; None when it is not open."""
    end = None
    for start in _openings(window, now - window.duration):
        if start > now:
            break
        end = start + window.duration
    return end if end is not None and end > now else None


def next_opening(windows: Sequence[Window], now: datetime) -> datetime | None:
    """The next time after `now` that one of the windows opens; None when none ever does."""
    starts = [start for window in windows if (start := next(_openings(window, now), None)) is not None]
    return min(starts, default=None)


def _before(before: timedelta | Share, life: timedelta | None) -> timedelta:
    if isinstance(before, Share):
        return life * before.of_life if life is not None and life > ZERO else ZERO
    if life is not None and before >= life:
        return max(life, ZERO) * FALLBACK_SHARE
    return before


def _move_into_last_window(
    windows: Sequence[Window], at: datetime, expires_at: datetime, issued_at: datetime | None
) -> datetime:
    """Move `at` forward to the last window before it, when the next one would open only after the expiry."""
    if any(open_until(window, at) is not None for window in windows):
        return at
    following = next_opening(windows, at)
    if following is not None and following < expires_at:
        return at
    for days in _LOOK_BACK_DAYS:
        earliest = at - timedelta(days=days)
        if issued_at is not None:
            earliest = max(earliest, issued_at)
        starts = [start for window in windows for start in _openings_until(window, earliest, at)]
        if starts:
            return max(starts)
    return at


def _openings_until(window: Window, after: datetime, before: datetime) -> Iterator[datetime]:
    for start in _openings(window, after):
        if start >= before:
            return
        yield start


def _openings(window: Window, after: datetime) -> Iterator[datetime]:
    """All openings strictly after `after`, in UTC; cronsim knows what a zone's clock changes do to a schedule."""
    for start in CronSim(window.cron, after.astimezone(ZoneInfo(window.timezone))):
        yield start.astimezone(UTC)
