"""Durations as Prometheus writes them, shares of a life, and what is said of everything else."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator.durations import (
    DURATION_PATTERN,
    Share,
    format_duration,
    format_span,
    parse_duration,
    parse_share,
    parse_span,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", timedelta(0)),
        ("0s", timedelta(0)),
        ("500ms", timedelta(milliseconds=500)),
        ("90s", timedelta(seconds=90)),
        ("5m", timedelta(minutes=5)),
        ("5m5ms", timedelta(minutes=5, milliseconds=5)),
        ("1h30m", timedelta(minutes=90)),
        ("14d", timedelta(days=14)),
        ("1w", timedelta(weeks=1)),
        ("1y", timedelta(days=365)),
        ("1y2w3d4h5m6s7ms", timedelta(days=382, hours=4, minutes=5, seconds=6, milliseconds=7)),
        ("  60s ", timedelta(seconds=60)),
    ],
)
def test_parse_duration(text: str, expected: timedelta) -> None:
    """Each of Prometheus' units, alone and together."""
    assert expected == parse_duration(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("5", "'5' has no unit"),
        ("-3d", "is negative"),
        ("1.5h", "has a fraction"),
        ("1m1h", "out of order"),
        ("1h1h", "twice"),
        ("5x", "'5x' is not a duration"),
        ("d", "is not a duration"),
        ("soon", "is not a duration"),
        ("1 h", "is not a duration"),
        ("५s", "is not a duration"),
        ("300y", "longer than 292 years"),
        ("9" * 30 + "y", "too long"),
        ("9" * 5000 + "s", "too long"),
    ],
)
def test_bad_duration(text: str, said: str) -> None:
    """The message says what was wrong, shows a good one, and does not repeat a long text whole."""
    with pytest.raises(ValueError) as refused:
        parse_duration(text)
    assert said in str(refused.value)
    assert "1h30m" in str(refused.value)
    assert len(str(refused.value)) < 160


@given(st.integers(min_value=0, max_value=290 * 365 * 86_400_000))
def test_round_trip(milliseconds: int) -> None:
    """What is formatted is read back as the same duration, and fits the pattern of the JSON Schema."""
    duration = timedelta(milliseconds=milliseconds)
    text = format_duration(duration)
    assert duration == parse_duration(text)
    assert re.match(DURATION_PATTERN, text) is not None


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (timedelta(0), "0s"),
        (timedelta(seconds=90), "1m30s"),
        (timedelta(days=14), "2w"),
        (timedelta(days=15), "15d"),
        (timedelta(days=365), "1y"),
        (timedelta(milliseconds=1500), "1s500ms"),
        (timedelta(microseconds=999), "0s"),
        (-timedelta(seconds=90), "-1m30s"),
        (-timedelta(microseconds=999), "0s"),
    ],
)
def test_format_duration(duration: timedelta, expected: str) -> None:
    """Years and weeks only where nothing is left over; nothing below a millisecond."""
    assert expected == format_duration(duration)


@pytest.mark.parametrize(
    ("text", "expected"), [("33%", Share(0.33)), ("12.5%", Share(0.125)), ("14d", timedelta(days=14))]
)
def test_parse_span(text: str, expected: timedelta | Share) -> None:
    """A span is a share or a duration, and is written back as either."""
    span = parse_span(text)
    assert expected == span
    assert parse_span(format_span(span)) == span


@pytest.mark.parametrize("text", ["100%", "0%", "150%", "-5%", "%", "x%", "33 %%", "14", "nan%"])
def test_bad_span(text: str) -> None:
    """A share is more than nothing and less than all of a life."""
    with pytest.raises(ValueError, match=r"%"):
        parse_span(text)


def test_share_of_all() -> None:
    """Where it is no lead time, a share may be the whole."""
    assert Share(1.0) == parse_share("100%")
    with pytest.raises(ValueError, match="at most 100%"):
        parse_share("101%")
