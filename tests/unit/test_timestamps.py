"""Every form of timestamp that platforms.md names, and everything that is not one."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator.jwt import unverified_expiry
from rotator.timestamps import parse_timestamp

NOON = datetime(2026, 3, 24, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-03-24T12:00:00Z", NOON),
        ("2026-03-24t12:00:00z", NOON),
        ("  2026-03-24T12:00:00Z\n", NOON),
        ("2026-03-24T14:00:00+02:00", NOON),
        ("2026-03-24T14:00:00+0200", NOON),
        ("2026-03-24 14:00:00+02", NOON),
        ("2026-03-24 14:00:00 +02:00", NOON),
        ("2026-03-24T12:00:00", NOON),
        ("2026-03-24 12:00:00", NOON),
        ("2026-03-24 12:00:00 UTC", NOON),
        ("2026-03-24T12:00:00.5Z", NOON + timedelta(milliseconds=500)),
        ("2026-03-24T12:00:00.123456+00:00", NOON + timedelta(microseconds=123456)),
        ("2026-03-24T12:00:00.123456789Z", NOON + timedelta(microseconds=123456)),
        ("2026-03-24", NOON.replace(hour=0)),
        ("20260324", NOON.replace(hour=0)),
        (int(NOON.timestamp()), NOON),
        (NOON.timestamp() + 0.25, NOON + timedelta(milliseconds=250)),
        (int(NOON.timestamp()) * 1000 + 7, NOON + timedelta(milliseconds=7)),
        (int(NOON.timestamp()) * 10**6 + 7, NOON + timedelta(microseconds=7)),
        (int(NOON.timestamp()) * 10**9 + 7000, NOON + timedelta(microseconds=7)),
        (str(int(NOON.timestamp())), NOON),
        (str(int(NOON.timestamp()) * 1000), NOON),
    ],
)
def test_every_form_gives_the_same_instant(value: object, expected: datetime) -> None:
    """Epoch numbers, zones, fractions and no zone at all are one aware UTC instant."""
    parsed = parse_timestamp(value)
    assert expected == parsed
    assert parsed is not None
    assert UTC is parsed.tzinfo


@pytest.mark.parametrize(
    "value",
    [
        None, "", "  ", "never", "infinity", "2026-13-01T00:00:00Z", "2026-03-24T25:00:00Z", True, False, 0, -5, [], {},
        b"2026-03-24T12:00:00Z", float("nan"), float("inf"), 10**30, "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1e9", "9" * 21, 10**400,
    ],
)  # fmt: skip
def test_garbage_and_unset_values_are_none(value: object) -> None:
    """What holds no usable instant is None and raises nothing."""
    assert parse_timestamp(value) is None


@given(
    moment=st.datetimes(min_value=datetime(1975, 1, 1), max_value=datetime(2200, 1, 1)),  # noqa: DTZ001  a zone is drawn beside it
    minutes=st.integers(-14 * 60, 14 * 60),
)
def test_any_offset_is_brought_to_utc(moment: datetime, minutes: int) -> None:
    """Whatever the zone, the instant stays the same."""
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert aware.astimezone(UTC) == parse_timestamp(aware.isoformat())


@given(value=st.one_of(st.text(max_size=40), st.integers(), st.floats(), st.lists(st.integers()), st.none()))
def test_no_input_raises(value: object) -> None:
    """A platform may send anything: the answer is an aware instant or None."""
    parsed = parse_timestamp(value)
    assert parsed is None or parsed.tzinfo is UTC


def jwt(claims: object) -> str:
    """A token shaped as a JWT around `claims`."""
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{body}.c2ln"


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"exp": int(NOON.timestamp())}, NOON),
        ({"exp": NOON.timestamp()}, NOON),
        ({"exp": str(int(NOON.timestamp()))}, NOON),
        ({"exp": None}, None),
        ({"exp": "soon"}, None),
        ({"exp": 1e300}, None),
        ({}, None),
        ([1], None),
        ("exp", None),
    ],
)
def test_a_jwt_says_when_it_ends(claims: object, expected: datetime | None) -> None:
    """The exp claim is read without the key; anything else is None."""
    assert expected == unverified_expiry(jwt(claims))


@pytest.mark.parametrize("token", ["", "opaque", "a.b", "a.b.c.d", "a.!!!.c", "a.bm90anNvbg.c", "ä.ö.ü", "." * 70000])
def test_what_is_no_jwt_has_no_expiry(token: str) -> None:
    """Opaque tokens, broken base64 and broken JSON give None."""
    assert unverified_expiry(token) is None


@given(token=st.text(max_size=80))
def test_no_token_raises(token: str) -> None:
    """A token may hold anything."""
    parsed = unverified_expiry(token)
    assert parsed is None or parsed.tzinfo is UTC
