"""What the journal keeps of one key, and the pure decisions about it: is it due, may it start, how is it shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rotator.frozen import replace
from rotator.lifecycle import LAST_CHANCE_SHARE
from rotator.model import (
    VERDICT_REASONS,
    Check,
    ExpirySource,
    Identity,
    KeyState,
    Step,
    UpstreamKey,
    Verdict,
)
from rotator.policy import Policy, held, rotate_at
from rotator.reasons import Reason
from rotator.rotation import Rotation

# Whatever a provider's dates say, a key is never rotated in a tight loop.
LEAST_INTERVAL = timedelta(seconds=5)
# How far our clock may be from the platform's time of issue, where its answer named none.
GUESS = timedelta(seconds=30)
# Keys that come due within this time count as due, when it is asked how many are.
SOON = timedelta(hours=1)
ISSUE_NOW = "now"
ISSUE_IN_WINDOW = "window"
COMPROMISED = "compromised"
ROLL_BACK = "rollback"
RESUMED = "resume"
RESTART = "restart"  # the consumers that missed the current version, and nothing else
# What a person asks for that goes past windows, `min_interval`, quarantine and holds.
FORCED = frozenset({ISSUE_NOW, COMPROMISED, ROLL_BACK})


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerFacts:
    """The version that a consumer was last restarted for and last confirmed on."""

    version: int | None = None
    restarted_at: datetime | None = None
    confirmed_at: datetime | None = None
    confirmed_version: int | None = None
    idle: bool = False  # nothing of it ran when it was restarted last


@dataclass(frozen=True, kw_only=True)  # no slots: see `frozen`
class KeyRecord:
    """The facts of one key.

    `id` is the current identity at the provider, `identity` who that is at the broker (None: as the provider derives
    it), `ids` all that this key ever had here, the configured one first.
    """

    name: str
    provider: str
    id: str
    identity: Identity | None = None
    ids: tuple[str, ...] = ()
    listed_as: str = ""  # what the platform calls it, where `discover` found it
    applied: str = ""  # whose answer the dates below are from
    first_seen_at: datetime | None = None
    listed_at: datetime | None = None  # first
    issued_at: datetime | None = None
    expires_at: datetime | None = None
    expiry_source: ExpirySource | None = None
    implausible: bool = False
    draw: float | None = None
    drawn_for: datetime | None = None
    rotate_at: datetime | None = None
    planned_at: datetime | None = None  # what `rotate_at` was when this secret was first seen
    due_reason: Reason | None = None
    last_issue_at: datetime | None = None
    last_success_at: datetime | None = None
    failures: int = 0
    last_reason: Reason | None = None
    last_detail: str = ""
    not_before: datetime | None = None
    paused: bool = False
    quarantine: Reason | None = None
    last_chance_used: bool = False
    requested: str = ""
    vouched: tuple[str, ...] = ()  # consumers that a person has seen on the new secret
    held_back: Reason | None = None  # why a due key is not begun, where that must be seen
    checks: tuple[Check, ...] = ()  # of the last preflight
    checked_at: datetime | None = None
    problem: Reason | None = None
    drift: Reason | None = None
    verdict: Verdict | None = None  # of the last probe of the current secret
    probed_at: datetime | None = None
    adopted: bool | None = None
    vault_version: int | None = None
    replaced_version: int | None = None  # what our last promote was laid over: the way back of a finished rotation
    fingerprint: str | None = None
    fields: tuple[str, ...] = ()  # whose fields the fingerprint is of
    consumers: Mapping[str, ConsumerFacts] = field(default_factory=dict)
    gap_started_at: datetime | None = None
    wake_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Begin a rotation."""

    trigger: Reason
    forced: bool = False
    last_chance: bool = False
    no_grace: bool = False
    restores: int | None = None
    restart_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Do not begin one; look again at `until` (None: when something changes)."""

    reason: Reason
    until: datetime | None = None


def observed(record: KeyRecord, upstream: UpstreamKey | None, now: datetime, *, in_flight: bool) -> KeyRecord:
    """The record after a look at the provider's list; `upstream` None: the id is not in it.

    `in_flight`: an issue call of ours may have moved the provider's `issuedAt`, so that it accuses nobody.
    """
    if upstream is None:
        return replace(record, listed_at=record.listed_at or now, problem=Reason.KEY_UNKNOWN)
    if not in_flight:
        record = _issue_time_learnt(record, upstream)
    if in_flight or later(record.issued_at, upstream.issued_at):
        return replace(
            record, listed_at=record.listed_at or now, problem=upstream.problem
        )  # the list is older than what we know
    record = replace(record, identity=upstream.identity or record.identity)
    seen = record.first_seen_at or now
    moved = record.adopted is True and later(upstream.issued_at, record.issued_at)
    if upstream.expires_at is not None and upstream.expires_at <= (upstream.issued_at or seen):
        # Dead before it was born: what our own answer said is kept, and no rotation comes of it.
        return replace(
            record,
            first_seen_at=seen,
            listed_at=record.listed_at or now,
            problem=upstream.problem,
            drift=Reason.ISSUED_ELSEWHERE if moved else record.drift,
            issued_at=upstream.issued_at or record.issued_at or seen,
            implausible=record.implausible or record.expires_at is None,
        )
    plausible = upstream.expires_at is not None and upstream.expires_at > now
    fresh = plausible or not record.implausible
    same = record.issued_at is not None and not later(upstream.issued_at, record.issued_at)
    if same and not record.implausible and _knows_better(record, upstream):
        fresh = False
    return replace(
        record,
        first_seen_at=seen,
        listed_at=record.listed_at or now,
        problem=upstream.problem,
        drift=Reason.ISSUED_ELSEWHERE if moved else record.drift,
        # a list that rounds to seconds must not look like another secret: the dice would be thrown again
        issued_at=record.issued_at if same else upstream.issued_at or record.issued_at or seen,
        expires_at=upstream.expires_at if fresh else record.expires_at,
        expiry_source=upstream.expiry_source if fresh else record.expiry_source,
        implausible=record.implausible and not plausible,
    )


def _issue_time_learnt(record: KeyRecord, upstream: UpstreamKey) -> KeyRecord:
    """Where our answer named no time of issue we took our own; the list's, if it is close, is the true one."""
    ours, theirs = record.issued_at, upstream.issued_at
    if ours is None or theirs is None or ours != record.last_issue_at or abs(theirs - ours) > GUESS:
        return record
    return replace(record, issued_at=theirs, drawn_for=theirs)


def _knows_better(record: KeyRecord, upstream: UpstreamKey) -> bool:
    """Whether the answer's expiry stands against the list's: a JWT's `exp` is in no list, and the earliest wins."""
    if record.expires_at is None:
        return False
    if upstream.expires_at is None:
        return True
    return record.expiry_source is ExpirySource.JWT and upstream.expires_at >= record.expires_at


def later(theirs: datetime | None, ours: datetime | None) -> bool:
    """Whether the provider's `issuedAt` lies after ours by more than the rounding of a second."""
    return theirs is not None and ours is not None and theirs - ours >= timedelta(seconds=1)


def scheduled(record: KeyRecord, policy: Policy, draw: float) -> KeyRecord:
    """The record with its `rotate_at`; `draw` is used only when this secret has no throw of the dice yet (rule 10)."""
    if record.issued_at is None and record.expires_at is None:
        return record
    if record.draw is None or record.drawn_for != record.issued_at:
        record = replace(record, draw=draw, drawn_for=record.issued_at, planned_at=None)
    due = rotate_at(
        policy,
        issued_at=record.issued_at,
        expires_at=None if record.implausible else record.expires_at,
        draw=record.draw or 0.0,
    )
    problem = record.problem
    if due is None and not record.implausible:
        problem = problem or Reason.NO_EXPIRY
    elif problem is Reason.NO_EXPIRY:
        problem = None
    return replace(
        record,
        rotate_at=due.at if due else None,
        planned_at=record.planned_at or (due.at if due else None),
        due_reason=due.reason if due else None,
        problem=problem,
    )


def decide(record: KeyRecord, policy: Policy, now: datetime, *, observe: bool, adopt_rotates: bool) -> Start | Hold:
    """Whether a rotation begins at `now`. Only for keys that have none in flight."""
    if observe:
        return Hold(reason=Reason.OBSERVE_MODE)
    if record.requested in FORCED:
        return _asked_for(record)
    if record.paused:
        return Hold(reason=Reason.PAUSED)
    if record.requested == RESTART:
        return Start(trigger=Reason.RESTART_MISSED, restart_only=True)
    if record.problem is not None and record.problem is not Reason.NO_EXPIRY:
        return Hold(reason=record.problem)
    if record.listed_at is None or record.adopted is None:
        return Hold(reason=Reason.NOT_DUE)
    trigger = _trigger(record, now, adopt_rotates=adopt_rotates)
    if record.quarantine is not None:
        chance = last_chance(record)
        if chance is None or now < chance:
            return Hold(reason=Reason.QUARANTINED, until=chance)
        return Start(trigger=trigger or Reason.NEAR_EXPIRY, last_chance=True)
    if trigger is None:
        waiting = record.adopted is False and record.rotate_at is None
        return Hold(reason=Reason.WAITING_FOR_ADOPTION if waiting else Reason.NOT_DUE, until=record.rotate_at)
    if record.not_before is not None and now < record.not_before:
        return Hold(reason=Reason.BACKOFF, until=record.not_before)
    hold = held(policy, now=now, last_issue_at=record.last_issue_at)
    if hold is not None and not (trigger is Reason.EXPIRED and hold.reason is Reason.OUTSIDE_WINDOW):
        return Hold(reason=hold.reason, until=hold.until)  # an expired key is an outage: no window keeps it waiting
    if record.last_issue_at is not None and now < record.last_issue_at + LEAST_INTERVAL:
        return Hold(reason=Reason.MIN_INTERVAL, until=record.last_issue_at + LEAST_INTERVAL)
    return Start(trigger=trigger)


def _asked_for(record: KeyRecord) -> Start:
    match record.requested:
        case "compromised":
            return Start(trigger=Reason.COMPROMISED, forced=True, no_grace=True)
        case "rollback":
            return Start(trigger=Reason.ROLLBACK_REQUESTED, forced=True, restores=record.replaced_version or 0)
        case _:
            return Start(trigger=Reason.REQUESTED, forced=True)


def unexpected(record: KeyRecord, now: datetime) -> bool:
    """Whether the key is due, or within the hour, against the plan that was made for its secret (rule 11).

    A provider's list or a changed configuration moved its date; dates that come as planned are never unexpected.
    """
    due, planned = record.rotate_at, record.planned_at
    return due is not None and planned is not None and due < planned and due <= now + SOON < planned


def state(record: KeyRecord, rotation: Rotation | None, now: datetime) -> KeyState:
    """The one state in which the key is shown."""
    if rotation is not None and resting(rotation):
        rotation = None  # all that is left is the old key's end
    waiting_for_promote = rotation is not None and rotation.answered_at is not None
    checks = (
        (
            record.quarantine is not None or (rotation is not None and rotation.quarantine is not None),
            KeyState.QUARANTINED,
        ),
        (record.expires_at is not None and now >= record.expires_at and not waiting_for_promote, KeyState.EXPIRED),
        (record.problem is not None or (record.held_back is not None and rotation is None), KeyState.BLOCKED),
        (record.paused and rotation is not None and may_be_cut_short(rotation), KeyState.PAUSED),
        (rotation is not None and rotation.attempts == 0, KeyState.ROTATING),
        (rotation is not None, KeyState.OVERDUE if past(record.rotate_at, now) else KeyState.ROTATING),
        (record.paused, KeyState.PAUSED),
        (record.listed_at is None or record.adopted is None, KeyState.UNKNOWN),
        (past(record.rotate_at, now) and record.failures > 0, KeyState.OVERDUE),
        (record.gap_started_at is not None, KeyState.OVERDUE),  # rotated, and its consumers never came back
        (past(record.rotate_at, now), KeyState.DUE),
        (record.adopted is False, KeyState.WAITING),
    )
    return next((shown for applies, shown in checks if applies), KeyState.OK)


def past(moment: datetime | None, now: datetime) -> bool:
    """Whether a moment is known and has come."""
    return moment is not None and now >= moment


def needs_a_person(record: KeyRecord, shown: KeyState) -> Reason | None:
    """Why exit code 3 is due for this key; None when it is not."""
    known = record.drift or record.problem
    if known is not None:
        return known
    if record.verdict in {Verdict.REFUSED, Verdict.SUBSCRIPTION_REFUSED}:
        return VERDICT_REASONS[record.verdict]
    if shown in {KeyState.OVERDUE, KeyState.EXPIRED, KeyState.QUARANTINED, KeyState.BLOCKED}:
        return record.problem or record.held_back or record.quarantine or record.last_reason or Reason.EXPIRED
    # nothing will ever make this key due, and only its provider's dates are to blame
    return Reason.EXPIRY_IMPLAUSIBLE if record.implausible and record.rotate_at is None else None


def versions_behind(record: KeyRecord, consumer: str, *, seen: bool = True) -> int:
    """How many of our versions a consumer is behind: 0, or the difference of Vault versions.

    Args:
        seen: its connects can be seen; else (it may have had a `confirm` once) its restart is all that can be said.
    """
    facts = record.consumers.get(consumer)
    if record.vault_version is None or facts is None or facts.version is None or facts.idle:
        return 0
    proven = facts.confirmed_version if seen else None
    return max(0, record.vault_version - (proven if proven is not None else facts.version))


def brought_along(facts: ConsumerFacts, before: int | None, version: int | None) -> ConsumerFacts:
    """Who ran on `before` runs on `version`, which holds the same data."""
    return replace(
        facts,
        version=version if facts.version == before else facts.version,
        confirmed_version=version if facts.confirmed_version == before else facts.confirmed_version,
    )


def may_be_cut_short(rotation: Rotation) -> bool:
    """Whether nothing irreversible has happened yet, so that a pause may end it."""
    return rotation.step in {Step.PREFLIGHT, Step.CHOOSE, Step.ISSUE} and rotation.issues == 0


def resting(rotation: Rotation) -> bool:
    """Whether the consumers are proven on the new secret, and the old key only waits for its end."""
    waiting = rotation.step in {Step.DEACTIVATE, Step.RECONFIRM, Step.DELETE}
    return waiting and rotation.rolling_back is None and rotation.reason is None


def _trigger(record: KeyRecord, now: datetime, *, adopt_rotates: bool) -> Reason | None:
    if record.requested == ISSUE_IN_WINDOW or (record.adopted is False and adopt_rotates):
        return Reason.REQUESTED
    if past(record.expires_at, now) and not record.implausible:
        return Reason.EXPIRED
    if past(record.rotate_at, now):
        return record.due_reason or Reason.NEAR_EXPIRY
    return None


def last_chance(record: KeyRecord) -> datetime | None:
    """When a quarantined key is tried once more by itself; None when it had its chance, or never expires."""
    if record.last_chance_used or record.implausible or record.expires_at is None or record.issued_at is None:
        return None
    return record.expires_at - (record.expires_at - record.issued_at) * LAST_CHANCE_SHARE
