"""Reading the times that platforms send: timestamps in all their habits, HTTP dates, `Retry-After`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

# An epoch number says its unit only by its size: 1e11 seconds is the year 5138, 1e11 milliseconds is 1973.
_MILLISECONDS_FROM: Final = 1e11
_MICROSECONDS_FROM: Final = 1e14
_NANOSECONDS_FROM: Final = 1e17
_LONGEST_TEXT: Final = 200  # characters; on a long one, the patterns below would search for hours
_BEYOND: Final = 1e21  # nanoseconds of the year 33658: no calendar goes there

# Eight digits are a date (20260324); an epoch of any use has at least nine (1973 in seconds).
_EPOCH_TEXT: Final = re.compile(r"\d{9,20}(\.\d+)?")
# PostgreSQL writes "+00" and some servers write " UTC" or a blank before the offset.
_ZONE_NAME: Final = re.compile(r"\s*(?:UTC|GMT)$", re.IGNORECASE)
_BLANK_BEFORE_OFFSET: Final = re.compile(r"\s+(?=[+-]\d{2}(?::?\d{2})?$)")

# A typing error in a header must not let a key expire.
LONGEST_RETRY_AFTER: Final = timedelta(days=1)
# One number with an optional unit, alone or at the end of a sentence ("try again in 30 seconds").
_AMOUNT: Final = re.compile(
    r"(?:^|[^\w:.,-])(?P<number>\d{1,12}(?:\.\d{1,9})?)\s*(?P<unit>[a-z]{1,12})?\.?$", re.IGNORECASE
)
_SECONDS_IN: Final[Mapping[str, float]] = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("", "s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
}


def parse_timestamp(value: object) -> datetime | None:
    """An aware UTC datetime from what a platform sent, or None where it holds no usable instant.

    Reads epoch numbers in seconds, milli-, micro- or nanoseconds (as numbers or digits in a string) and ISO 8601 with
    `Z`, an offset, a blank for the `T`, any number of fraction digits, or no zone at all, which means UTC (platforms,
    item 7). Fractions beyond microseconds are cut off. Zero, negative numbers and the year 1 are how programs write
    "not set", so they give None as well.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return _from_epoch(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    if len(text) > _LONGEST_TEXT:
        return None
    if _EPOCH_TEXT.fullmatch(text):
        return _from_epoch(float(text) if "." in text else int(text))
    return _from_iso(text)


def _from_epoch(number: int | float) -> datetime | None:
    if not 0 < number < _BEYOND:  # false for nan as well
        return None
    scale = 1
    for start, divisor in ((_NANOSECONDS_FROM, 10**9), (_MICROSECONDS_FROM, 10**6), (_MILLISECONDS_FROM, 10**3)):
        if number >= start:
            scale = divisor
            break
    try:
        if isinstance(number, int):
            # whole numbers stay exact: a float of nanoseconds has lost its last digits
            seconds, rest = divmod(number, scale)
            return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 10**6 // scale)
        return datetime.fromtimestamp(number / scale, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _from_iso(text: str) -> datetime | None:
    text = _BLANK_BEFORE_OFFSET.sub("", _ZONE_NAME.sub("Z", text))
    try:
        moment = datetime.fromisoformat(text.upper())
        aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return aware if aware.year > 1 else None


def retry_after(value: str | None, now: datetime) -> timedelta | None:
    """The delay that a `Retry-After` asks for, or None where it says nothing readable.

    Reads seconds (`30`, `1.5`), an HTTP date (RFC 9110, 10.2.3), and what some platforms send in its place:
    `30 seconds`, `2m`, `1 hour`. Never negative, never more than `LONGEST_RETRY_AFTER`.
    """
    text = (value or "").strip()
    if not text or len(text) > _LONGEST_TEXT:
        return None
    delay: timedelta | None = None
    found = _AMOUNT.search(text)
    if found and (scale := _SECONDS_IN.get((found["unit"] or "").lower())):
        delay = timedelta(seconds=min(float(found["number"]) * scale, LONGEST_RETRY_AFTER.total_seconds()))
    elif at := parse_http_date(text):
        delay = at - now
    return None if delay is None else min(max(delay, timedelta(0)), LONGEST_RETRY_AFTER)


def parse_http_date(text: str) -> datetime | None:
    """An HTTP date (RFC 9110, 5.6.7) as aware UTC, or None."""
    try:
        at = parsedate_to_datetime(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None  # the standard library's parser fails in each of these ways on odd text
