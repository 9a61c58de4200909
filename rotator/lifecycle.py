"""The rotation as a pure machine: `next_step(rotation, now)` and `advance(rotation, outcome, now)`.

No I/O and no clock of its own, so that a test can put it into every state. The engine runs one step, journals what
`advance` returns, and comes back; a crash resumes at the step that was not yet recorded.

In place (design, "The way a rotation goes"):

    preflight → issue (answer and seal in one commit) → promote → probe → deliver → restart → confirm → settle → finish

An expiry that can't be right puts the probe before the promote: only a secret that the broker accepts is promoted
then (issue 2, "Bad input"). A call whose answer never came goes to *look* (rule 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never

from rotator.model import (
    ExpirySource,
    Identity,
    Result,
    Step,
    Strategy,
    Ticket,
    Verdict,
    aware,
)
from rotator.reasons import Reason

# How long to wait before a provider that shows no sign of a call is looked at a second time.
LOOK_AGAIN = timedelta(seconds=10)
# Tries at a broker that can't be reached before the restarts go on without its word (it refused nothing, rule 2).
UNREACHABLE_PROBES = 3
# Secrets of one rotation that a broker may refuse before only a person goes on (rule 2: "then issues once more").
MAX_ANSWERS = 2
# The pauses between issue calls whose answers were lost.
FIRST_PAUSE, SLOWEST_ISSUE = timedelta(seconds=5), timedelta(minutes=5)
# Tries of the last look; a provider that is down must not keep a proven rotation open.
FINISH_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The settings that the machine decides by; all durations."""

    max_attempts: int = 10
    propagation: timedelta = timedelta(seconds=60)
    deliver_delay: timedelta = timedelta(0)
    settle: timedelta = timedelta(seconds=3)
    has_verify: bool = True
    take_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerProgress:
    """How far one consumer is in this rotation."""

    name: str
    restarted_at: datetime | None = None
    ticket: Ticket | None = None
    seen_at: datetime | None = None
    confirmed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """One attempt to replace a key's secret, as the journal keeps it; the secret itself lies sealed beside it."""

    id: str
    key: str
    provider: str
    identity: Identity
    strategy: Strategy = Strategy.IN_PLACE
    trigger: Reason
    forced: bool = False
    started_at: datetime
    step: Step = Step.PREFLIGHT
    attempts: int = 0
    not_before: datetime | None = None
    step_since: datetime | None = None
    issues: int = 0  # issue calls begun
    answers: int = 0  # secrets that came back
    issued_before: datetime | None = None
    expected: str | None = None  # keyed fingerprint of our fields in Vault before the issue call
    calling_since: datetime | None = None
    looked: int = 0
    answered_at: datetime | None = None
    new_issued_at: datetime | None = None
    new_expires_at: datetime | None = None
    expiry_source: ExpirySource | None = None
    plausible: bool = True
    sealed: bool = False
    verdict: Verdict | None = None
    vault_version: int | None = None
    promoted_at: datetime | None = None
    died_at: datetime | None = None
    consumers: tuple[ConsumerProgress, ...] = ()
    finished_at: datetime | None = None
    result: Result | None = None
    reason: Reason | None = None
    detail: str = ""
    quarantine: Reason | None = None

    def __post_init__(self) -> None:
        for name in ("started_at", "not_before", "answered_at", "promoted_at", "finished_at"):
            aware(getattr(self, name), name)


# --- what the engine is told to do -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run this step now."""

    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Come back at `until`."""

    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Nothing is left to do."""


# --- what the engine reports -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A step did not succeed. `unknown`: it may have had its effect all the same."""

    reason: Reason
    detail: str = ""
    delay: timedelta = timedelta(0)  # until the next try; the engine draws it from `backoff`
    permanent: bool = False
    unknown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightDone:
    issued_before: datetime | None
    expected: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueDone:
    answered_at: datetime
    issued_at: datetime | None
    expires_at: datetime | None
    expiry_source: ExpirySource | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LookDone:
    """What the provider shows after a call whose answer never came."""

    happened: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeDone:
    verdict: Verdict | None  # None: the key names no broker to ask
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteDone:
    version: int
    expected: str | None = None  # keyed fingerprint of what our fields hold now


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverDone:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartDone:
    """Tickets of the consumers that were restarted, and the failure of the others, if any."""

    tickets: Sequence[Ticket]
    failed: Failed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmDone:
    """When each consumer was first seen on the new secret; `unseen` ones are restarted again."""

    seen: Sequence[tuple[str, datetime]]
    unseen: Sequence[str] = ()
    died_at: datetime | None = None
    gaps: Sequence[tuple[str, float]] = ()  # seconds from the old secret's death to the first evidence
    failed: Failed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleDone:
    """The consumers that stayed up, and those that did not."""

    confirmed: Sequence[str]
    crashed: Sequence[str] = ()
    failed: Failed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishDone:
    issued_elsewhere: bool = False


Outcome = (
    Failed
    | PreflightDone
    | IssueDone
    | LookDone
    | ProbeDone
    | PromoteDone
    | DeliverDone
    | RestartDone
    | ConfirmDone
    | SettleDone
    | FinishDone
)


def next_step(rotation: Rotation, now: datetime, limits: Limits) -> Run | Wait | Ended:
    """What to do at `now`."""
    if rotation.finished_at is not None:
        return Ended()
    if rotation.not_before is not None and now < rotation.not_before:
        return Wait(until=rotation.not_before)
    step = rotation.step
    if step is Step.ISSUE and rotation.calling_since is not None:
        return Run(step=Step.LOOK)  # the process died between the call and its record (rule 9)
    if step is Step.DELIVER and rotation.promoted_at is not None:
        ready = rotation.promoted_at + limits.deliver_delay
        return Wait(until=ready) if now < ready else Run(step=step)
    if step is Step.SETTLE:
        times = [t for c in rotation.consumers if (t := c.seen_at or c.restarted_at) is not None]
        since = max(times, default=rotation.step_since or rotation.started_at)
        # evidence from the future: the clock stepped back, and how long the consumer has been up can't be told
        settling = since <= now < since + limits.settle
        return Wait(until=since + limits.settle) if settling else Run(step=step)
    return Run(step=step)


def begin_call(rotation: Rotation, now: datetime) -> Rotation:
    """The record to journal before an issue call goes out."""
    return replace(rotation, calling_since=now, issues=rotation.issues + 1, looked=0)


def advance(rotation: Rotation, outcome: Outcome, now: datetime, limits: Limits) -> Rotation:
    """The record after a step's outcome."""
    match outcome:
        case Failed():
            return _failed(rotation, outcome, now, limits)
        case PreflightDone(issued_before=before, expected=expected):
            return _to(replace(rotation, issued_before=before, expected=expected), Step.ISSUE, now)
        case IssueDone():
            return _issued(rotation, outcome, now)
        case LookDone(happened=happened):
            return _looked(rotation, happened, now, limits)
        case ProbeDone():
            return _probed(rotation, outcome, now, limits)
        case PromoteDone(version=version, expected=expected):
            after = Step.DELIVER if rotation.verdict is Verdict.ACCEPTED else Step.PROBE
            promoted = replace(
                rotation, vault_version=version, expected=expected, promoted_at=now, sealed=False, quarantine=None
            )
            return _to(promoted, after, now)
        case DeliverDone():
            return _to(rotation, Step.RESTART, now)
        case RestartDone():
            return _restarted(rotation, outcome, now, limits)
        case ConfirmDone():
            return _confirmed(rotation, outcome, now, limits)
        case SettleDone():
            return _settled(rotation, outcome, now, limits)
        case FinishDone(issued_elsewhere=elsewhere):
            if elsewhere:
                return _end(rotation, Result.FAILED, now, Reason.ISSUED_ELSEWHERE)
            return _end(rotation, Result.SUCCEEDED, now, None if rotation.plausible else Reason.EXPIRY_IMPLAUSIBLE)
        case _:
            assert_never(outcome)


def backoff(step: Step, reason: Reason, attempts: int, draw: float) -> timedelta:
    """How long to wait after the `attempts`-th failure of a step: exponential, full jitter, drawn once by the caller.

    Once the old secret is dead every second is an outage, so promote, probe, restart and confirm come back quickly.
    A refused login comes back slowly: platforms lock accounts.
    """
    base, cap = _PACE.get(step, (5.0, 300.0))
    if reason is Reason.PROVIDER_AUTH:
        base, cap = 30.0, 1800.0
    ceiling = min(cap, base * 2 ** min(attempts, 16))
    return timedelta(seconds=max(base / 2, ceiling * draw))


_PACE: dict[Step, tuple[float, float]] = {
    Step.PREFLIGHT: (5.0, 300.0),
    Step.ISSUE: (5.0, 300.0),
    Step.LOOK: (2.0, 60.0),
    Step.PROMOTE: (0.5, 2.0),
    Step.PROBE: (0.5, 2.0),
    Step.RESTART: (2.0, 60.0),
    Step.CONFIRM: (2.0, 60.0),
    Step.SETTLE: (2.0, 60.0),
    Step.FINISH: (2.0, 10.0),
}


def _to(rotation: Rotation, step: Step, now: datetime) -> Rotation:
    return replace(
        rotation, step=step, attempts=0, not_before=None, step_since=now, reason=None, detail="", quarantine=None
    )


def _end(rotation: Rotation, result: Result, now: datetime, reason: Reason | None, detail: str = "") -> Rotation:
    return replace(rotation, finished_at=now, result=result, reason=reason, detail=detail, not_before=None)


def _again(rotation: Rotation, failed: Failed, now: datetime, step: Step | None = None) -> Rotation:
    return replace(
        rotation,
        step=step or rotation.step,
        attempts=rotation.attempts + 1,
        not_before=now + failed.delay,
        step_since=rotation.step_since or now,
        reason=failed.reason,
        detail=failed.detail,
    )


def _failed(rotation: Rotation, failed: Failed, now: datetime, limits: Limits) -> Rotation:
    exhausted = rotation.attempts + 1 >= limits.max_attempts
    ended = _end(rotation, Result.FAILED, now, failed.reason, failed.detail)
    match rotation.step:
        case Step.PREFLIGHT:
            return _again(rotation, failed, now)  # nothing happened yet: an expiring key is never given up on
        case Step.ISSUE | Step.LOOK:
            if failed.unknown:
                again = _again(rotation, replace(failed, delay=timedelta(0)), now, Step.LOOK)
                return replace(again, attempts=0, looked=0)
            if rotation.step is Step.LOOK:
                return _again(rotation, failed, now)
            if rotation.issues >= limits.max_attempts:
                return replace(ended, calling_since=None, quarantine=failed.reason)
            # A refusal did nothing, so the call is over; what the next one needs is checked anew (rule 8).
            return replace(_again(rotation, failed, now, Step.PREFLIGHT), calling_since=None)
        case Step.PROMOTE:
            again = _again(rotation, failed, now)
            return replace(again, quarantine=failed.reason) if failed.reason is Reason.VAULT_CONFLICT else again
        case Step.FINISH:
            if rotation.attempts + 1 >= FINISH_TRIES:
                return _end(rotation, Result.SUCCEEDED, now, None)
            return _again(rotation, failed, now)
        case Step.PROBE | Step.DELIVER | Step.RESTART | Step.CONFIRM | Step.SETTLE:
            return ended if exhausted else _again(rotation, failed, now)
        case _:
            assert_never(rotation.step)


def _issued(rotation: Rotation, outcome: IssueDone, now: datetime) -> Rotation:
    plausible = outcome.expires_at is not None and outcome.expires_at > outcome.answered_at
    answered = replace(
        rotation,
        answered_at=outcome.answered_at,
        died_at=rotation.died_at or outcome.answered_at,
        new_issued_at=outcome.issued_at,
        new_expires_at=outcome.expires_at,
        expiry_source=outcome.expiry_source,
        plausible=plausible,
        answers=rotation.answers + 1,
        calling_since=rotation.calling_since,
        sealed=True,
        verdict=None,
        vault_version=None,
        promoted_at=None,
    )
    return _to(answered, Step.PROMOTE if plausible else Step.PROBE, now)


def _looked(rotation: Rotation, happened: bool, now: datetime, limits: Limits) -> Rotation:
    """After a lost answer: it happened → issue anew at once; no sign of it → look once more, then issue."""
    if not happened and rotation.looked == 0:
        again = Failed(reason=Reason.OUTCOME_UNKNOWN, detail=rotation.detail, delay=LOOK_AGAIN)
        return replace(_again(rotation, again, now, Step.LOOK), looked=1)
    died = rotation.died_at or (rotation.calling_since if happened else None)
    expected = None if happened else rotation.expected  # what Vault holds is dead, or is the lost answer itself
    cleared = replace(rotation, calling_since=None, looked=0, died_at=died, expected=expected)
    if rotation.issues >= limits.max_attempts:
        reason = Reason.ANSWER_LOST if happened else Reason.OUTCOME_UNKNOWN
        return replace(_end(cleared, Result.FAILED, now, reason, "no answer ever came"), quarantine=reason)
    # The first lost answer is replaced at once, since consumers are down; who loses them all is not hammered.
    pause = timedelta(0) if rotation.issues < 2 else min(SLOWEST_ISSUE, FIRST_PAUSE * 2 ** (rotation.issues - 2))
    return replace(_to(cleared, Step.ISSUE if happened else Step.PREFLIGHT, now), not_before=now + pause)


def _probed(rotation: Rotation, outcome: ProbeDone, now: datetime, limits: Limits) -> Rotation:
    probed = replace(rotation, verdict=outcome.verdict)
    pending = rotation.promoted_at is None  # an implausible expiry: the broker decides about the promote
    after = Step.PROMOTE if pending else Step.DELIVER
    waited = rotation.step_since is not None and now - rotation.step_since >= limits.propagation
    retry = timedelta(seconds=2)
    match outcome.verdict:
        case Verdict.ACCEPTED:
            return _to(probed, after, now)
        case None:
            if not pending:
                return _to(probed, after, now)
            ended = _end(probed, Result.FAILED, now, Reason.EXPIRY_IMPLAUSIBLE, "and no broker to prove the secret at")
            return replace(ended, quarantine=Reason.EXPIRY_IMPLAUSIBLE)
        case Verdict.UNREACHABLE:
            if not pending and rotation.attempts + 1 >= UNREACHABLE_PROBES:
                return _to(probed, after, now)
            failed = Failed(reason=Reason.BROKER_UNREACHABLE, detail=outcome.detail, delay=retry)
            return _again(probed, failed, now)
        case Verdict.REFUSED:
            failed = Failed(reason=Reason.SECRET_REFUSED, detail=outcome.detail, delay=retry)
            if not waited:
                return _again(probed, failed, now)
            if rotation.answers < MAX_ANSWERS:
                again = _to(replace(probed, calling_since=None, verdict=None), Step.ISSUE, now)
                return replace(again, reason=failed.reason, detail=failed.detail)
            return _refused_for_good(probed, failed, now)
        case Verdict.SUBSCRIPTION_REFUSED:
            failed = Failed(reason=Reason.SUBSCRIPTION_REFUSED, detail=outcome.detail, delay=retry)
            return _again(probed, failed, now) if not waited else _refused_for_good(probed, failed, now)
        case _:
            assert_never(outcome.verdict)


def _refused_for_good(rotation: Rotation, failed: Failed, now: datetime) -> Rotation:
    """Quarantine, and go on probing: a role or a propagation that comes late is found by itself."""
    slow = replace(failed, delay=timedelta(seconds=30))
    return replace(_again(rotation, slow, now), quarantine=failed.reason)


def _restarted(rotation: Rotation, outcome: RestartDone, now: datetime, limits: Limits) -> Rotation:
    tickets = {ticket.consumer: ticket for ticket in outcome.tickets}
    consumers = tuple(
        replace(c, restarted_at=tickets[c.name].restarted_at, ticket=tickets[c.name], seen_at=None)
        if c.name in tickets
        else c
        for c in rotation.consumers
    )
    restarted = replace(rotation, consumers=consumers)
    if outcome.failed is None:
        # attempts are kept: restart and confirm are one loop, and it must end
        return replace(restarted, step=Step.CONFIRM, not_before=None, step_since=now, reason=None, detail="")
    return _failed(restarted, outcome.failed, now, limits)


def _confirmed(rotation: Rotation, outcome: ConfirmDone, now: datetime, limits: Limits) -> Rotation:
    seen = dict(outcome.seen)
    consumers = tuple(
        replace(c, seen_at=seen.get(c.name, c.seen_at))
        if c.name not in outcome.unseen
        else replace(c, restarted_at=None, ticket=None)
        for c in rotation.consumers
    )
    confirmed = replace(rotation, consumers=consumers, died_at=outcome.died_at or rotation.died_at)
    if outcome.failed is None:
        return replace(confirmed, step=Step.SETTLE, not_before=None, step_since=now, reason=None, detail="")
    failed = _failed(confirmed, outcome.failed, now, limits)
    return failed if failed.finished_at is not None else replace(failed, step=Step.RESTART)


def _settled(rotation: Rotation, outcome: SettleDone, now: datetime, limits: Limits) -> Rotation:
    consumers = tuple(
        replace(c, confirmed_at=c.seen_at)
        if c.name in outcome.confirmed
        else (replace(c, restarted_at=None, ticket=None, seen_at=None) if c.name in outcome.crashed else c)
        for c in rotation.consumers
    )
    settled = replace(rotation, consumers=consumers)
    if outcome.failed is None:
        return _to(settled, Step.FINISH, now)
    failed = _failed(settled, outcome.failed, now, limits)
    return failed if failed.finished_at is not None else replace(failed, step=Step.RESTART)
