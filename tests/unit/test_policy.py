"""When is a key due, and may it be touched: shares, windows over clock changes, jitter, intervals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator.durations import Share
from rotator.policy import Due, Held, Policy, Window, held, next_opening, open_until, rotate_at
from rotator.reasons import Reason

ISSUED = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)  # a Monday
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
HELSINKI = "Europe/Helsinki"  # 03:00 → 04:00 on 29 March 2026, 04:00 → 03:00 on 25 October 2026


def due(policy: Policy, *, life: timedelta | None = 90 * DAY, draw: float = 0.0) -> Due | None:
    expires = ISSUED + life if life is not None else None
    return rotate_at(policy, issued_at=ISSUED, expires_at=expires, draw=draw)


@pytest.mark.parametrize(
    ("policy", "life", "expected"),
    [
        (Policy(before_expiry=14 * DAY), 90 * DAY, Due(at=ISSUED + 76 * DAY, reason=Reason.NEAR_EXPIRY)),
        (Policy(before_expiry=Share(0.25)), 80 * DAY, Due(at=ISSUED + 60 * DAY, reason=Reason.NEAR_EXPIRY)),
        (Policy(max_age=30 * DAY), None, Due(at=ISSUED + 30 * DAY, reason=Reason.MAX_AGE)),
        (
            Policy(before_expiry=14 * DAY, max_age=60 * DAY),
            90 * DAY,
            Due(at=ISSUED + 60 * DAY, reason=Reason.MAX_AGE),
        ),
        (
            Policy(before_expiry=14 * DAY, max_age=80 * DAY),
            90 * DAY,
            Due(at=ISSUED + 76 * DAY, reason=Reason.NEAR_EXPIRY),
        ),
        (Policy(before_expiry=14 * DAY), None, None),
        (Policy(), 90 * DAY, None),
    ],
)
def test_the_earlier_of_expiry_and_age_wins(policy: Policy, life: timedelta | None, expected: Due | None) -> None:
    """By `before_expiry` or by `max_age`, whichever comes first, and named so; without either there is no due time."""
    assert expected == due(policy, life=life)


@pytest.mark.parametrize("before", [90 * DAY, 91 * DAY, 4000 * DAY])
def test_a_before_expiry_longer_than_the_life_is_a_third_of_it(before: timedelta) -> None:
    """A fresh secret is never due at once, for ever."""
    found = due(Policy(before_expiry=before))
    assert found is not None
    assert timedelta(days=90 * 0.67) == pytest.approx(found.at - ISSUED, abs=timedelta(seconds=1))


def test_a_share_of_an_unknown_life_is_due_at_the_expiry() -> None:
    """Without an issue time there is no life to take a share of."""
    expires = ISSUED + DAY
    found = rotate_at(Policy(before_expiry=Share(0.33)), issued_at=None, expires_at=expires, draw=0.5)
    assert Due(at=expires, reason=Reason.NEAR_EXPIRY) == found


@pytest.mark.parametrize("before", [Share(0.33), 14 * DAY])
def test_an_expiry_before_the_issue_is_due_by_the_expiry_at_the_latest(before: timedelta | Share) -> None:
    """A provider whose `issuedAt` lies after its `expiresAt` never moves the due time behind the expiry."""
    expires = ISSUED - DAY
    found = rotate_at(Policy(before_expiry=before), issued_at=ISSUED, expires_at=expires, draw=0.0)
    assert found is not None
    assert found.at <= expires


@given(
    life=st.timedeltas(min_value=timedelta(seconds=30), max_value=1000 * DAY),
    jitter=st.timedeltas(min_value=timedelta(0), max_value=4000 * DAY),
    draw=st.floats(min_value=0, max_value=1, exclude_max=True),
    share=st.floats(min_value=0.01, max_value=0.5),
)
def test_jitter_is_at_most_a_tenth_of_the_life(life: timedelta, jitter: timedelta, draw: float, share: float) -> None:
    """It only ever makes a key due earlier, by at most a tenth and at most itself."""
    plain = due(Policy(before_expiry=Share(share)), life=life)
    moved = due(Policy(before_expiry=Share(share), jitter=jitter), life=life, draw=draw)
    assert plain is not None
    assert moved is not None
    assert timedelta(0) <= plain.at - moved.at <= min(jitter, life / 10) + timedelta(microseconds=2)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(before_expiry=Share(0.95), jitter=30 * DAY),
        Policy(before_expiry=89 * DAY, jitter=5 * DAY),
        Policy(before_expiry=14 * DAY, max_age=12 * HOUR, jitter=DAY),
    ],
    ids=["share", "duration", "max_age"],
)
def test_jitter_never_makes_a_fresh_secret_due_at_once(policy: Policy) -> None:
    """Else each new secret is due the moment it comes, and the provider is asked for ever."""
    found = due(policy, draw=0.999)
    assert found is not None
    assert found.at > ISSUED


def test_the_same_throw_gives_the_same_moment() -> None:
    """The dice are an argument: nothing in here is random."""
    policy = Policy(before_expiry=14 * DAY, jitter=DAY)
    assert due(policy, draw=0.25) == due(policy, draw=0.25)
    assert Due(at=ISSUED + 76 * DAY - 6 * HOUR, reason=Reason.NEAR_EXPIRY) == due(policy, draw=0.25)


# --- windows -----------------------------------------------------------------------------------------------------

NIGHTS = Window(cron="0 2 * * 1-5", duration=3 * HOUR, timezone=HELSINKI)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-01-06T00:00:00+00:00", "2026-01-06T03:00:00+00:00"),  # 02:00 in Helsinki: just opened
        ("2026-01-06T02:59:59+00:00", "2026-01-06T03:00:00+00:00"),
        ("2026-01-06T03:00:00+00:00", None),  # closes on the stroke
        ("2026-01-05T23:59:59+00:00", None),
        ("2026-01-10T01:00:00+00:00", None),  # Saturday in Helsinki
        ("2026-07-07T00:00:00+00:00", "2026-07-07T02:00:00+00:00"),  # summer time: 02:00 is 23:00 UTC
        ("2026-07-07T02:30:00+00:00", None),
    ],
)
def test_a_window_is_open_by_its_own_zones_clock(now: str, expected: str | None) -> None:
    """Opening included, closing not, in winter and in summer."""
    close = open_until(NIGHTS, datetime.fromisoformat(now))
    assert expected == (close.isoformat() if close is not None else None)


def test_a_window_in_the_hour_that_does_not_exist_still_opens() -> None:
    """03:30 is left out on 29 March 2026 in Helsinki: the window opens once, when the clock jumps."""
    window = Window(cron="30 3 * * *", duration=HOUR, timezone=HELSINKI)
    midnight = datetime(2026, 3, 28, 22, 0, tzinfo=UTC)
    assert datetime(2026, 3, 29, 1, 0, tzinfo=UTC) == next_opening([window], midnight)
    assert datetime(2026, 3, 30, 0, 30, tzinfo=UTC) == next_opening([window], datetime(2026, 3, 29, 1, 0, tzinfo=UTC))


def test_a_window_in_the_hour_that_comes_twice_opens_once() -> None:
    """03:30 comes twice on 25 October 2026 in Helsinki: the first counts, and it lasts its duration, no more."""
    window = Window(cron="30 3 * * *", duration=HOUR, timezone=HELSINKI)
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert first == next_opening([window], first - HOUR)
    assert datetime(2026, 10, 26, 1, 30, tzinfo=UTC) == next_opening([window], first)
    assert first + HOUR == open_until(window, first + timedelta(minutes=59))
    assert open_until(window, first + timedelta(minutes=61)) is None


@given(minutes=st.integers(min_value=0, max_value=48 * 60))
def test_openings_do_not_depend_on_where_the_search_begins(minutes: int) -> None:
    """From any minute around the change back, the next opening of a half-hourly window is at most half an hour off."""
    window = Window(cron="*/30 * * * *", duration=timedelta(minutes=10), timezone=HELSINKI)
    now = datetime(2026, 10, 24, 12, 0, tzinfo=UTC) + timedelta(minutes=minutes)
    following = next_opening([window], now)
    assert following is not None
    assert timedelta(0) < following - now <= timedelta(minutes=30)
    assert (now.minute % 30 < 10) == (open_until(window, now) is not None)


def test_a_window_longer_than_its_period_is_always_open() -> None:
    """The latest opening decides when it closes."""
    window = Window(cron="0 * * * *", duration=2 * HOUR)
    now = ISSUED + timedelta(minutes=30)
    assert ISSUED + 2 * HOUR == open_until(window, now)


def test_a_window_years_away_holds_until_it_opens() -> None:
    """29 February: the search goes past the years without one."""
    window = Window(cron="0 0 29 2 *", duration=HOUR)
    leap_day = datetime(2028, 2, 29, tzinfo=UTC)
    expected = Held(reason=Reason.OUTSIDE_WINDOW, until=leap_day)
    assert expected == held(Policy(windows=[window]), now=ISSUED, last_issue_at=None)


def test_a_due_time_before_a_window_that_comes_in_time_stays() -> None:
    """The window itself holds the rotation back until it opens; nothing has to be moved."""
    found = due(Policy(before_expiry=3 * DAY, windows=[NIGHTS]), life=30 * DAY)
    assert Due(at=ISSUED + 27 * DAY, reason=Reason.NEAR_EXPIRY) == found


def test_a_window_after_the_expiry_moves_the_due_time_into_the_last_one_before() -> None:
    """Due on a Saturday, dead on Sunday, windows on Mondays: rotated on the Monday before."""
    mondays = Window(cron="0 2 * * 1", duration=2 * HOUR)
    expires = datetime(2026, 2, 1, 12, 0, tzinfo=UTC)  # a Sunday
    policy = Policy(before_expiry=DAY, windows=[mondays])
    found = rotate_at(policy, issued_at=ISSUED, expires_at=expires, draw=0.0)
    assert Due(at=datetime(2026, 1, 26, 2, 0, tzinfo=UTC), reason=Reason.NEAR_EXPIRY) == found
    assert held(policy, now=found.at, last_issue_at=None) is None


def test_a_rare_window_is_found_however_long_ago_it_was() -> None:
    """Windows in January and July only, dead in June: rotated in January, not left to die."""
    half_yearly = Window(cron="0 2 10 1,7 *", duration=2 * HOUR)
    expires = datetime(2026, 6, 1, tzinfo=UTC)
    policy = Policy(before_expiry=14 * DAY, windows=[half_yearly])
    found = rotate_at(policy, issued_at=ISSUED, expires_at=expires, draw=0.0)
    assert Due(at=datetime(2026, 1, 10, 2, 0, tzinfo=UTC), reason=Reason.NEAR_EXPIRY) == found


def test_no_window_in_the_whole_life_leaves_the_due_time_where_it_is() -> None:
    """Nothing can be done about it here; the key is shown as held until the next window."""
    august = Window(cron="0 2 1 8 *", duration=2 * HOUR)
    found = due(Policy(before_expiry=DAY, windows=[august]), life=30 * DAY)
    assert Due(at=ISSUED + 29 * DAY, reason=Reason.NEAR_EXPIRY) == found


@given(
    hours=st.integers(min_value=24, max_value=24 * 120),
    before=st.integers(min_value=1, max_value=24 * 30),
    draw=st.floats(min_value=0, max_value=0.999),
    cron=st.sampled_from(["0 2 * * 1-5", "30 3 * * *", "0 0 1 * *", "15 22 * * 6", "0 2 * * 1"]),
)
def test_windows_never_move_the_due_time_later_or_before_the_issue(
    hours: int, before: int, draw: float, cron: str
) -> None:
    """A window moves a due time into the past only as far as the secret exists."""
    window = Window(cron=cron, duration=2 * HOUR, timezone=HELSINKI)
    free = Policy(before_expiry=before * HOUR, jitter=HOUR)
    bound = Policy(before_expiry=before * HOUR, jitter=HOUR, windows=[window])
    first, moved = (due(policy, life=hours * HOUR, draw=draw) for policy in (free, bound))
    assert first is not None
    assert moved is not None
    assert min(ISSUED, first.at) <= moved.at <= first.at


# --- what holds a due key ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "now", "expected"),
    [
        (Policy(), ISSUED, None),
        (Policy(min_interval=DAY), ISSUED + DAY, None),
        (Policy(min_interval=DAY), ISSUED + 23 * HOUR, Held(reason=Reason.MIN_INTERVAL, until=ISSUED + DAY)),
        (
            Policy(blackouts=[Window(cron="0 11 * * *", duration=3 * HOUR)]),
            ISSUED,
            Held(reason=Reason.BLACKOUT, until=ISSUED + 2 * HOUR),
        ),
        (
            Policy(windows=[Window(cron="0 14 * * *", duration=HOUR), Window(cron="0 13 * * *", duration=HOUR)]),
            ISSUED,
            Held(reason=Reason.OUTSIDE_WINDOW, until=ISSUED + HOUR),
        ),
        (
            Policy(windows=[Window(cron="0 14 * * *", duration=HOUR), Window(cron="0 12 * * *", duration=HOUR)]),
            ISSUED,
            None,
        ),
    ],
)
def test_what_holds_a_due_key_is_named_with_its_end(policy: Policy, now: datetime, expected: Held | None) -> None:
    """The interval, a blackout, no open window; one open window of several is enough."""
    assert expected == held(policy, now=now, last_issue_at=ISSUED)


def test_a_blackout_wins_over_an_open_window() -> None:
    """Both at once: the freeze counts."""
    both = Policy(
        windows=[Window(cron="0 12 * * *", duration=4 * HOUR)], blackouts=[Window(cron="0 12 * * *", duration=HOUR)]
    )
    assert Held(reason=Reason.BLACKOUT, until=ISSUED + HOUR) == held(both, now=ISSUED, last_issue_at=None)


def test_a_clock_that_stepped_back_keeps_the_interval() -> None:
    """An issue time in the future is no licence to issue again at once."""
    now = ISSUED - 400 * DAY
    assert Held(reason=Reason.MIN_INTERVAL, until=ISSUED + DAY) == held(
        Policy(min_interval=DAY), now=now, last_issue_at=ISSUED
    )


def test_now_ignores_windows_blackouts_and_interval() -> None:
    """`rotate --now`."""
    rare = Window(cron="0 0 29 2 *", duration=HOUR)
    policy = Policy(min_interval=DAY, windows=[rare], blackouts=[Window(cron="* * * * *", duration=HOUR)])
    assert held(policy, now=ISSUED, last_issue_at=ISSUED, ignore_windows=True) is None
