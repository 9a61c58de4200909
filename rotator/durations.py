"""Durations as Prometheus writes them (`90s`, `1h30m`, `14d`) and shares of a lifetime (`33%`). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

# Prometheus' own units, largest first: a year is 365 days and a week is 7, whatever the calendar says.
_UNITS: Final = {
    "y": 365 * 86_400_000,
    "w": 7 * 86_400_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
    "ms": 1,
}
DURATION_PATTERN: Final = "^(0|(?=[0-9])([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$"
SHARE_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?%$"
DURATION_EXAMPLE: Final = "write it like 90s, 1h30m or 14d"
SPAN_EXAMPLE: Final = "write it like 14d or 33%"

_DURATION = re.compile(DURATION_PATTERN)
_SHARE = re.compile(SHARE_PATTERN)
_PIECE = re.compile("([0-9]+)(ms|[ywdhms])")
# Prometheus keeps a duration in 64 bits of nanoseconds; the same ceiling keeps `now + duration` inside datetime.
_LONGEST = timedelta(days=292 * 365)


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a secret's life, 0 < of_life ≤ 1."""

    of_life: float

    def __post_init__(self) -> None:
        if not 0 < self.of_life <= 1:
            raise ValueError("a share must be more than 0% and at most 100%")

    def __str__(self) -> str:
        return f"{self.of_life * 100:g}%"


def parse_duration(text: str) -> timedelta:
    """A duration as Prometheus writes it: whole numbers with y, w, d, h, m, s, ms, each at most once, in this order.

    Raises: ValueError saying what was wrong, with an example.
    """
    text = text.strip()
    if _DURATION.match(text) is None:
        raise ValueError(f"{_what_is_wrong(text)}; {DURATION_EXAMPLE}")
    try:
        total = timedelta(milliseconds=sum(int(number) * _UNITS[unit] for number, unit in _PIECE.findall(text)))
    except (OverflowError, ValueError) as exc:  # ValueError: more digits than Python turns into a number
        raise ValueError(f"it is too long; {DURATION_EXAMPLE}") from exc
    if total > _LONGEST:
        raise ValueError(f"it is longer than 292 years; {DURATION_EXAMPLE}")
    return total


def parse_share(text: str) -> Share:
    """A share of a whole: `33%`, `12.5%`, up to `100%`.

    Raises: ValueError saying what was wrong, with an example.
    """
    text = text.strip()
    if _SHARE.match(text) is None:
        raise ValueError(f"{_quoted(text)} is not a share; write it like 33%")
    return Share(float(text[:-1]) / 100)


def parse_span(text: str) -> timedelta | Share:
    """A duration or a share of the lifetime below 100%.

    Raises: ValueError saying what was wrong, with an example.
    """
    if not text.strip().endswith("%"):
        try:
            return parse_duration(text)
        except ValueError as exc:
            raise ValueError(str(exc).replace(DURATION_EXAMPLE, SPAN_EXAMPLE)) from exc
    share = parse_share(text)
    if share.of_life >= 1:
        raise ValueError(f"the whole life would be always due; {SPAN_EXAMPLE}")
    return share


def format_duration(duration: timedelta) -> str:
    """The shortest text that `parse_duration` reads back, to the millisecond; negative ones carry a minus."""
    rest = (
        duration // timedelta(milliseconds=1) if duration >= timedelta(0) else -(-duration // timedelta(milliseconds=1))
    )
    sign, rest = ("-", -rest) if rest < 0 else ("", rest)
    if rest == 0:
        return "0s"
    for unit in ("y", "w"):  # as Prometheus does: years and weeks only where nothing is left over
        if rest % _UNITS[unit] == 0:
            return f"{sign}{rest // _UNITS[unit]}{unit}"
    pieces = []
    for unit in ("d", "h", "m", "s", "ms"):
        number, rest = divmod(rest, _UNITS[unit])
        if number:
            pieces.append(f"{number}{unit}")
    return sign + "".join(pieces)


def format_span(span: timedelta | Share) -> str:
    """A span as `parse_span` reads it."""
    return str(span) if isinstance(span, Share) else format_duration(span)


def _quoted(text: str) -> str:
    return f"{text[:24]!r}…" if len(text) > 24 else repr(text)


def _what_is_wrong(text: str) -> str:
    if not text:
        return "it is empty"
    if text.isdecimal():
        return f"{_quoted(text)} has no unit"
    if text.startswith("-"):
        return f"{_quoted(text)} is negative"
    if "." in text:
        return f"{_quoted(text)} has a fraction, and only whole numbers are allowed"
    if _PIECE.sub("", text) == "":
        return f"{_quoted(text)} has its units twice or out of order (y, w, d, h, m, s, ms)"
    return f"{_quoted(text)} is not a duration"
