"""What the journal keeps of a key, and the pure decisions about it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator.durations import Share
from rotator.keys import (
    ISSUE_IN_WINDOW,
    ISSUE_NOW,
    LEAST_INTERVAL,
    ConsumerFacts,
    Hold,
    KeyRecord,
    Start,
    decide,
    later,
    may_be_cut_short,
    needs_a_person,
    observed,
    scheduled,
    state,
    versions_behind,
)
from rotator.lifecycle import begin_call
from rotator.model import ExpirySource, Identity, Issued, KeyState, Secret, Step, UpstreamKey, Verdict, utc
from rotator.policy import Policy, Window
from rotator.reasons import Reason
from rotator.rotation import Rotation

NOW = datetime(2026, 3, 24, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
POLICY = Policy(before_expiry=14 * DAY)
KEY = KeyRecord(
    name="building-a",
    provider="acme",
    id="id-1",
    listed_at=NOW,
    issued_at=NOW - 80 * DAY,
    expires_at=NOW + 10 * DAY,
    rotate_at=NOW - 4 * DAY,
    due_reason=Reason.NEAR_EXPIRY,
    adopted=True,
)
FRESH = replace(KEY, issued_at=NOW - DAY, expires_at=NOW + 89 * DAY, rotate_at=NOW + 75 * DAY)
ROTATION = Rotation(
    id="r1",
    key="building-a",
    provider="acme",
    identity=Identity(id="id-1", username="id-1"),
    trigger=Reason.NEAR_EXPIRY,
    started_at=NOW,
)


def decided(record: KeyRecord, policy: Policy = POLICY, now: datetime = NOW, *, adopt: bool = False) -> Start | Hold:
    return decide(record, policy, now, observe=False, adopt_rotates=adopt)


# --- facts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda naive: UpstreamKey(id="a", issued_at=naive),
        lambda naive: UpstreamKey(id="a", expires_at=naive),
        lambda naive: Issued(identity=Identity(id="a", username="a"), secret=Secret("s"), issued_at=naive),
        lambda naive: Issued(identity=Identity(id="a", username="a"), secret=Secret("s"), expires_at=naive),
        lambda naive: replace(ROTATION, not_before=naive),
        utc,
    ],
)
def test_a_naive_datetime_is_refused(make) -> None:  # type: ignore[no-untyped-def]
    """Rule 10: a moment without a zone is a fault, not a guess."""
    with pytest.raises(ValueError, match="time zone"):
        make(datetime(2026, 3, 24))  # noqa: DTZ001 - naive on purpose


# --- a look at the provider's list -------------------------------------------------------------------------------


def test_a_key_that_is_not_listed_is_unknown() -> None:
    """What was known of it stays known."""
    seen = observed(FRESH, None, NOW, in_flight=False)
    assert replace(FRESH, problem=Reason.KEY_UNKNOWN, listed_at=NOW) == seen


def test_a_problem_that_is_gone_is_forgotten() -> None:
    """The role came back."""
    troubled = replace(FRESH, problem=Reason.ROLE_MISSING)
    upstream = UpstreamKey(id="id-1", issued_at=FRESH.issued_at, expires_at=FRESH.expires_at)
    assert observed(troubled, upstream, NOW, in_flight=False).problem is None


def test_an_issue_by_somebody_else_is_drift() -> None:
    """The provider's `issuedAt` lies after ours, and no call of ours is on its way."""
    ours = replace(FRESH, last_issue_at=FRESH.issued_at)
    upstream = UpstreamKey(id="id-1", issued_at=NOW - timedelta(hours=1), expires_at=NOW + 90 * DAY)
    seen = observed(ours, upstream, NOW, in_flight=False)
    assert (Reason.ISSUED_ELSEWHERE, NOW + 90 * DAY) == (seen.drift, seen.expires_at)
    assert observed(ours, upstream, NOW, in_flight=True).drift is None


@pytest.mark.parametrize("adopted", [None, False])
def test_a_key_that_is_not_ours_yet_accuses_nobody(adopted: bool | None) -> None:
    """Before its secret is in Vault, others may issue as they like."""
    upstream = UpstreamKey(id="id-1", issued_at=NOW, expires_at=NOW + 90 * DAY)
    assert observed(replace(FRESH, adopted=adopted), upstream, NOW, in_flight=False).drift is None


def test_an_expiry_before_the_issue_is_no_expiry() -> None:
    """Dead before it was born: what the answer said is kept; where it said nothing, the key is implausible."""
    odd = UpstreamKey(id="id-1", issued_at=NOW, expires_at=NOW - DAY)
    kept = observed(FRESH, odd, NOW, in_flight=False)
    assert (FRESH.expires_at, False) == (kept.expires_at, kept.implausible)
    unknown = observed(replace(FRESH, expires_at=None), odd, NOW, in_flight=False)
    assert (None, True) == (unknown.expires_at, unknown.implausible)


def test_no_date_of_a_provider_makes_a_loop() -> None:
    """A secret that comes already due waits a little before the next one is asked for."""
    just = replace(KEY, last_issue_at=NOW, expires_at=NOW)
    assert Hold(reason=Reason.MIN_INTERVAL, until=NOW + LEAST_INTERVAL) == decided(just)
    assert isinstance(decided(just, now=NOW + LEAST_INTERVAL), Start)


def test_a_list_that_is_older_than_our_own_issue_changes_nothing() -> None:
    """A cached list after our refresh must not bring back the old expiry."""
    stale = UpstreamKey(id="id-1", issued_at=NOW - 80 * DAY, expires_at=NOW + 10 * DAY)
    seen = observed(FRESH, stale, NOW, in_flight=False)
    assert (FRESH.issued_at, FRESH.expires_at) == (seen.issued_at, seen.expires_at)


@pytest.mark.parametrize(
    ("source", "listed", "expected"),
    [
        (ExpirySource.JWT, 5, 5),
        (ExpirySource.JWT, 120, 89),
        (ExpirySource.JWT, None, 89),
        (ExpirySource.ANSWER, 120, 120),
        (ExpirySource.ANSWER, None, 89),
    ],
)
def test_of_the_expiries_of_one_secret_the_earliest_wins(
    source: ExpirySource, listed: int | None, expected: int
) -> None:
    """A JWT's `exp` is in no list, so the earlier of both wins; the platform's own date may be extended there."""
    expires = NOW + listed * DAY if listed is not None else None
    fresh = replace(FRESH, expiry_source=source)
    seen = observed(fresh, UpstreamKey(id="id-1", issued_at=FRESH.issued_at, expires_at=expires), NOW, in_flight=False)
    assert NOW + expected * DAY == seen.expires_at


def test_an_implausible_expiry_is_replaced_by_a_plausible_one_only() -> None:
    """The list repeats the past date: it stays implausible; it names a future one: the oddity is over."""
    odd = replace(FRESH, expires_at=NOW - DAY, implausible=True)
    same = observed(odd, UpstreamKey(id="id-1", issued_at=odd.issued_at, expires_at=NOW - DAY), NOW, in_flight=False)
    assert same.implausible is True


def test_a_provider_without_issue_times_counts_from_the_first_look() -> None:
    """`max_age` needs a beginning, and it stays the same one at every further look."""
    blank = KeyRecord(name="a", provider="acme", id="id-1")
    first = observed(blank, UpstreamKey(id="id-1"), NOW, in_flight=False)
    second = observed(first, UpstreamKey(id="id-1"), NOW + DAY, in_flight=False)
    assert (NOW, NOW, NOW) == (first.issued_at, second.issued_at, second.first_seen_at)


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (NOW + timedelta(milliseconds=999), NOW, False),
        (NOW + timedelta(seconds=1), NOW, True),
        (NOW - DAY, NOW, False),
        (None, NOW, False),
        (NOW, None, False),
    ],
)
def test_later_forgives_the_rounding_of_a_second(
    theirs: datetime | None, ours: datetime | None, expected: bool
) -> None:
    """A provider that cuts off fractions accuses nobody."""
    assert expected is later(theirs, ours)


# --- the dice ----------------------------------------------------------------------------------------------------

JITTERED = Policy(before_expiry=14 * DAY, jitter=2 * DAY)


@given(draws=st.lists(st.floats(min_value=0, max_value=0.999), min_size=2, max_size=5))
def test_the_dice_are_thrown_once_a_secret(draws: list[float]) -> None:
    """Only the first throw counts, however often the key is looked at."""
    record = FRESH
    for draw in draws:
        record = scheduled(record, JITTERED, draw)
    assert draws[0] == record.draw
    assert record.rotate_at == scheduled(FRESH, JITTERED, draws[0]).rotate_at


def test_a_new_secret_throws_the_dice_anew() -> None:
    """Else a fleet that once fell together stays together."""
    first = scheduled(FRESH, JITTERED, 0.25)
    second = scheduled(replace(first, issued_at=NOW, expires_at=NOW + 90 * DAY), JITTERED, 0.75)
    assert (0.25, 0.75) == (first.draw, second.draw)


def test_a_list_that_rounds_the_issue_time_does_not_throw_the_dice_again() -> None:
    """The answer names milliseconds, the list whole seconds: the same secret, with the same throw (rule 10)."""
    answered = replace(FRESH, issued_at=NOW - DAY + timedelta(milliseconds=400), last_issue_at=NOW - DAY)
    first = scheduled(answered, JITTERED, 0.25)
    upstream = UpstreamKey(id="id-1", issued_at=NOW - DAY, expires_at=FRESH.expires_at)
    again = scheduled(observed(first, upstream, NOW, in_flight=False), JITTERED, 0.75)
    assert 0.25 == again.draw
    assert first.rotate_at is not None
    assert again.rotate_at is not None
    assert timedelta(seconds=1) >= abs(again.rotate_at - first.rotate_at)


def test_a_key_that_nothing_makes_due_is_named() -> None:
    """Neither an expiry nor `max_age`: refused as soon as it is known, and mended by an expiry."""
    blank = replace(FRESH, expires_at=None)
    refused = scheduled(blank, POLICY, 0.5)
    assert (Reason.NO_EXPIRY, None) == (refused.problem, refused.rotate_at)
    mended = scheduled(replace(refused, expires_at=NOW + 90 * DAY), POLICY, 0.5)
    assert (None, NOW + 76 * DAY) == (mended.problem, mended.rotate_at)


def test_a_worse_problem_is_not_covered_by_a_missing_expiry() -> None:
    """A revoked key without an expiry is revoked."""
    revoked = replace(FRESH, expires_at=None, problem=Reason.KEY_REVOKED)
    assert Reason.KEY_REVOKED == scheduled(revoked, POLICY, 0.5).problem


def test_an_implausible_expiry_makes_nothing_due() -> None:
    """Else the key would be refreshed at once, for ever."""
    odd = scheduled(replace(FRESH, expires_at=NOW - DAY, implausible=True), POLICY, 0.5)
    assert (None, None) == (odd.rotate_at, odd.problem)
    assert isinstance(decided(odd), Hold)


# --- may a rotation begin? ---------------------------------------------------------------------------------------

RARELY = Policy(before_expiry=14 * DAY, windows=[Window(cron="0 0 29 2 *", duration=DAY)], min_interval=DAY)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (KEY, Start(trigger=Reason.NEAR_EXPIRY)),
        (replace(KEY, expires_at=NOW - DAY), Start(trigger=Reason.EXPIRED)),
        (replace(KEY, expires_at=NOW - DAY, rotate_at=None, implausible=True), Hold(reason=Reason.NOT_DUE)),
        (FRESH, Hold(reason=Reason.NOT_DUE, until=FRESH.rotate_at)),
        (replace(KEY, paused=True), Hold(reason=Reason.PAUSED)),
        (replace(KEY, paused=True, requested=ISSUE_NOW), Start(trigger=Reason.REQUESTED, forced=True)),
        (replace(FRESH, requested=ISSUE_IN_WINDOW), Start(trigger=Reason.REQUESTED)),
        (replace(KEY, problem=Reason.KEY_REVOKED), Hold(reason=Reason.KEY_REVOKED)),
        (replace(KEY, problem=Reason.NO_EXPIRY), Start(trigger=Reason.NEAR_EXPIRY)),
        (replace(KEY, listed_at=None), Hold(reason=Reason.NOT_DUE)),
        (replace(KEY, adopted=None), Hold(reason=Reason.NOT_DUE)),
        (replace(KEY, adopted=False), Start(trigger=Reason.NEAR_EXPIRY)),
        (replace(FRESH, adopted=False), Hold(reason=Reason.NOT_DUE, until=FRESH.rotate_at)),
        (replace(FRESH, adopted=False, rotate_at=None), Hold(reason=Reason.WAITING_FOR_ADOPTION)),
        (
            replace(KEY, not_before=NOW + timedelta(minutes=1)),
            Hold(reason=Reason.BACKOFF, until=NOW + timedelta(minutes=1)),
        ),
    ],
)
def test_whether_a_rotation_begins(record: KeyRecord, expected: Start | Hold) -> None:
    """Each fact that starts a rotation or holds it back."""
    assert expected == decided(record)


def test_observe_mode_changes_nothing_even_on_request() -> None:
    """`mode: observe` is a promise."""
    record = replace(KEY, requested=ISSUE_NOW)
    assert Hold(reason=Reason.OBSERVE_MODE) == decide(record, POLICY, NOW, observe=True, adopt_rotates=True)


def test_adopt_rotate_rotates_what_vault_does_not_hold() -> None:
    """First contact, when the configuration says so; once Vault holds it, the key waits for its day."""
    assert Start(trigger=Reason.REQUESTED) == decided(replace(FRESH, adopted=False), adopt=True)
    assert Hold(reason=Reason.NOT_DUE, until=FRESH.rotate_at) == decided(FRESH, adopt=True)


def test_windows_hold_a_request_but_not_one_for_now() -> None:
    """`rotate` obeys windows; `--now` does not."""
    waiting = decided(replace(FRESH, requested=ISSUE_IN_WINDOW), RARELY)
    assert Hold(reason=Reason.OUTSIDE_WINDOW, until=datetime(2028, 2, 29, tzinfo=UTC)) == waiting
    assert Start(trigger=Reason.REQUESTED, forced=True) == decided(replace(FRESH, requested=ISSUE_NOW), RARELY)


def test_quarantine_is_left_once_before_the_expiry() -> None:
    """Nothing is issued automatically, except once, when a twentieth of the life is left."""
    stuck = replace(KEY, quarantine=Reason.SECRET_REFUSED, requested=ISSUE_IN_WINDOW)
    assert stuck.expires_at is not None
    chance = stuck.expires_at - timedelta(days=90 * 0.05)
    assert Hold(reason=Reason.QUARANTINED, until=chance) == decided(stuck)
    begun = decided(stuck, now=chance)
    assert isinstance(begun, Start)
    assert begun.last_chance is True
    assert Hold(reason=Reason.QUARANTINED) == decided(replace(stuck, last_chance_used=True), now=chance)
    assert Start(trigger=Reason.REQUESTED, forced=True) == decided(replace(stuck, requested=ISSUE_NOW))


# --- how it is shown ---------------------------------------------------------------------------------------------

ANSWERED = replace(ROTATION, answered_at=NOW, step=Step.PROMOTE)


@pytest.mark.parametrize(
    ("record", "rotation", "expected"),
    [
        (FRESH, None, KeyState.OK),
        (KEY, None, KeyState.DUE),
        (replace(KEY, failures=1), None, KeyState.OVERDUE),
        (KEY, ROTATION, KeyState.ROTATING),
        (KEY, replace(ROTATION, attempts=1), KeyState.OVERDUE),
        (FRESH, replace(ROTATION, attempts=1), KeyState.ROTATING),
        (KEY, replace(ROTATION, quarantine=Reason.SECRET_REFUSED), KeyState.QUARANTINED),
        (replace(KEY, quarantine=Reason.SECRET_REFUSED), None, KeyState.QUARANTINED),
        (replace(KEY, expires_at=NOW), None, KeyState.EXPIRED),
        (replace(KEY, expires_at=NOW), ANSWERED, KeyState.ROTATING),
        (replace(FRESH, problem=Reason.KEY_REVOKED), None, KeyState.BLOCKED),
        (replace(FRESH, paused=True), None, KeyState.PAUSED),
        (replace(FRESH, gap_started_at=NOW - DAY), None, KeyState.OVERDUE),
        (replace(FRESH, listed_at=None), None, KeyState.UNKNOWN),
        (replace(FRESH, adopted=None), None, KeyState.UNKNOWN),
        (replace(FRESH, adopted=False), None, KeyState.WAITING),
    ],
)
def test_a_key_is_shown_in_one_state(record: KeyRecord, rotation: Rotation | None, expected: KeyState) -> None:
    """The worst that is true of it."""
    assert expected == state(record, rotation, NOW)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (FRESH, None),
        (KEY, None),
        (replace(FRESH, drift=Reason.VAULT_DRIFT), Reason.VAULT_DRIFT),
        (replace(FRESH, problem=Reason.ROLE_MISSING), Reason.ROLE_MISSING),
        (replace(KEY, failures=2, last_reason=Reason.PROVIDER_AUTH), Reason.PROVIDER_AUTH),
        (replace(KEY, quarantine=Reason.SECRET_REFUSED), Reason.SECRET_REFUSED),
        (replace(KEY, expires_at=NOW), Reason.EXPIRED),
        (replace(FRESH, verdict=Verdict.REFUSED), Reason.SECRET_REFUSED),
        (replace(FRESH, verdict=Verdict.SUBSCRIPTION_REFUSED), Reason.SUBSCRIPTION_REFUSED),
        (replace(FRESH, verdict=Verdict.UNREACHABLE), None),
    ],
)
def test_when_a_person_is_needed(record: KeyRecord, expected: Reason | None) -> None:
    """Overdue, expired, quarantined, blocked, drifted or refused: exit code 3, with the reason."""
    assert expected == needs_a_person(record, state(record, None, NOW))


@pytest.mark.parametrize(
    ("version", "facts", "expected"),
    [
        (None, ConsumerFacts(version=1), 0),
        (7, None, 0),
        (7, ConsumerFacts(version=None), 0),
        (7, ConsumerFacts(version=7, confirmed_version=7), 0),
        (7, ConsumerFacts(version=7, confirmed_version=4), 3),
        (7, ConsumerFacts(version=5), 2),
        (1, ConsumerFacts(version=3, confirmed_version=3), 0),
    ],
)
def test_how_far_a_consumer_is_behind(version: int | None, facts: ConsumerFacts | None, expected: int) -> None:
    """Counted from what was confirmed, else from what it was restarted for; never negative."""
    record = replace(FRESH, vault_version=version, consumers={} if facts is None else {"ingest": facts})
    assert expected == versions_behind(record, "ingest")


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        (ROTATION, True),
        (replace(ROTATION, attempts=7), True),
        (replace(ROTATION, step=Step.ISSUE), True),
        (begin_call(replace(ROTATION, step=Step.ISSUE), NOW), False),
        (replace(ROTATION, issues=1), False),
        (replace(ROTATION, step=Step.PROMOTE, issues=1, answers=1), False),
    ],
)
def test_a_pause_ends_only_what_has_done_nothing(rotation: Rotation, expected: bool) -> None:
    """Before the first issue call: after it, the old secret may be dead."""
    assert expected is may_be_cut_short(rotation)


def test_a_share_of_the_life_is_scheduled_by_the_key_itself() -> None:
    """33% of 90 days before the end; the source of the expiry does not matter."""
    record = replace(FRESH, expiry_source=ExpirySource.JWT)
    due = scheduled(record, Policy(before_expiry=Share(1 / 3)), 0.0)
    assert due.rotate_at is not None
    assert timedelta(seconds=1) >= abs(due.rotate_at - (NOW + 59 * DAY))
