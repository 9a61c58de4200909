"""The rotation as a pure machine: `next_step(rotation, now)` and `advance(rotation, outcome, now)`.

No I/O and no clock of its own, so that a test can put it into every state. The engine runs one step, journals what
`advance` returns, and comes back; a crash resumes at the step that was not yet recorded.

    in place  preflight → issue → promote → probe → deliver → restart → confirm → settle → finish
    replace   preflight → issue → probe → promote → deliver → restart → confirm → settle
              → deactivate → reconfirm → (grace) → delete → finish
    chosen    preflight → choose → issue → promote → probe → deliver → restart → confirm → settle → finish

An answer and its seal are one commit of *issue* (chosen: *choose* seals before anybody hears of the secret). A call
whose answer never came goes to *look* (rule 9); a chosen secret is simply set again.

    the way back  (reactivate) → way_back → revert → deliver → restart → confirm → settle → (clean) → rolled back

*Replace* goes back when the broker refuses the new key, a consumer is not confirmed, or a person asks; *chosen*
likewise, by setting the previous secret again; *in place* can't (design, "Rolling back").
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import assert_never

from rotator.batches import begin_restart, next_batch, pending
from rotator.frozen import replace
from rotator.model import Result, Step, Strategy, Verdict
from rotator.reasons import Reason
from rotator.rotation import (
    ChooseDone,
    CleanDone,
    ConfirmDone,
    ConsumerProgress,
    DeactivateDone,
    DeleteDone,
    DeliverDone,
    DeliverLater,
    Ended,
    Failed,
    FinishDone,
    IssueDone,
    Limits,
    LookDone,
    Outcome,
    PreflightDone,
    ProbeDone,
    PromoteDone,
    ReactivateDone,
    ReconfirmDone,
    RestartDone,
    RevertDone,
    Rotation,
    Run,
    SettleDone,
    Wait,
    WayBackDone,
)

# For so long a preflight speaks for the issue call after it.
PREFLIGHT_HOLDS = timedelta(minutes=5)
# How long to wait before a provider that shows no sign of a call is looked at a second time.
LOOK_AGAIN = timedelta(seconds=10)
# Tries at a broker that can't be reached before the restarts go on without its word (it refused nothing, rule 2).
UNREACHABLE_PROBES = 3
# Secrets of one rotation that a broker may refuse before only a person goes on (rule 2: "then issues once more").
MAX_ANSWERS = 2
# In quarantine the broker is asked again after this share of the time that it has been refusing, within these bounds.
SLOWER_SHARE, FIRST_SLOW_PROBE, SLOWEST_PROBE = 0.1, timedelta(seconds=30), timedelta(minutes=15)
# A consumer's own way to the secret is looked at after this share of the time it has taken, within these bounds.
DELIVERY_SHARE, FIRST_DELIVERY_LOOK, SLOWEST_DELIVERY_LOOK = 0.25, timedelta(seconds=0.5), timedelta(seconds=5)
# The pauses between issue calls whose answers were lost.
FIRST_PAUSE, SLOWEST_ISSUE = timedelta(seconds=5), timedelta(minutes=5)
# Tries of the last look; a provider that is down must not keep a proven rotation open.
FINISH_TRIES = 3
# Tries of the second confirmation before the old key is brought back.
RECONFIRM_TRIES = 3
# In quarantine one more rotation is begun on its own when this share of the life is left (design, "quarantine").
LAST_CHANCE_SHARE = 0.05
# The grace period where the configuration names none: a day, or this share of the new secret's life.
DAY, GRACE_SHARE = timedelta(days=1), 0.1
_RETRY = timedelta(seconds=2)


def next_step(rotation: Rotation, now: datetime, limits: Limits) -> Run | Wait | Ended:
    """What to do at `now`."""
    if rotation.finished_at is not None:
        return Ended()
    if rotation.not_before is not None and now < rotation.not_before:
        return Wait(until=rotation.not_before)
    step = rotation.step
    # A promote, or evidence, from a future further off than the wait itself: the clock stepped back, and how long ago
    # that was can't be told. Consumers may be down, so they are not kept waiting for the clock.
    if step is Step.ISSUE and rotation.calling_since is not None and rotation.strategy is not Strategy.CHOSEN:
        return Run(step=Step.LOOK)  # the process died between the call and its record (rule 9)
    if step in {Step.CHOOSE, Step.ISSUE} and rotation.issues == 0 and _stale(rotation, now):
        return Run(step=Step.PREFLIGHT)  # the daemon was away in between: what was checked is old (rule 8)
    if step is Step.DELIVER and rotation.promoted_at is not None:
        ready = rotation.promoted_at + (limits.deliver_delay if pending(rotation, limits.plans) else timedelta(0))
        return Wait(until=ready) if rotation.promoted_at - limits.deliver_delay <= now < ready else Run(step=step)
    if step is Step.RESTART:
        turn = next_batch(rotation, now, limits.plans, hurry=_dying(rotation, now))
        if not isinstance(turn, datetime):
            return Run(step=step)
        last = _dying_from(rotation)  # nobody waits for a window beyond the old secret's end
        return Wait(until=min(turn, last) if last is not None else turn)
    if step is Step.SETTLE:
        times = [t for c in rotation.consumers if (t := c.seen_at or c.restarted_at) is not None]
        since = max(times, default=rotation.step_since or rotation.started_at)
        settling = since - limits.settle <= now < since + limits.settle
        return Wait(until=since + limits.settle) if settling else Run(step=step)
    grace = grace_ends(rotation, limits)
    return Wait(until=grace) if grace is not None and now < grace else Run(step=step)


def _stale(rotation: Rotation, now: datetime) -> bool:
    return rotation.step_since is not None and now - rotation.step_since > PREFLIGHT_HOLDS


def grace_ends(rotation: Rotation, limits: Limits) -> datetime | None:
    """Until when a step that retires the old key waits; None for a step that does not.

    With consumers, the old key is inactive during the grace; without any, nobody has proven anything, so it goes on
    working until then (rule 5). A key that can't be deactivated is confirmed again at the end of the grace.
    """
    waiting = (Step.DELETE if rotation.consumers else Step.DEACTIVATE) if limits.deactivates else Step.RECONFIRM
    if rotation.step is not waiting or rotation.no_grace or rotation.step_since is None:
        return None
    if waiting is Step.RECONFIRM and rotation.reconfirmed_at is not None:
        return None  # it is over: who could not be watched was restarted, and the others are asked again
    ends = rotation.step_since + _grace(rotation, limits)
    return min(ends, rotation.expired_before) if rotation.expired_before is not None else ends


def begin_call(rotation: Rotation, now: datetime) -> Rotation:
    """The record to journal before an issue call goes out."""
    unsettled = rotation.unsettled or rotation.calling_since is not None  # an earlier call may have had its effect
    return replace(rotation, calling_since=now, issues=rotation.issues + 1, looked=0, unsettled=unsettled)


def restart_begins(rotation: Rotation, now: datetime, limits: Limits) -> Rotation:
    """The record to journal before a restart goes out."""
    return begin_restart(rotation, now, limits.plans, hurry=_dying(rotation, now))


def advance(rotation: Rotation, outcome: Outcome, now: datetime, limits: Limits) -> Rotation:  # noqa: C901 - one arm an outcome
    """The record after a step's outcome."""
    match outcome:
        case Failed():
            return _failed(rotation, outcome, now, limits)
        case PreflightDone():
            return _checked(rotation, outcome, now)
        case ChooseDone():
            return _to(replace(rotation, sealed=True), Step.ISSUE, now)
        case IssueDone():
            return _issued(rotation, outcome, now, limits)
        case LookDone():
            return _looked(rotation, outcome, now, limits)
        case ProbeDone():
            return _probed(rotation, outcome, now, limits)
        case PromoteDone():
            return _promoted(rotation, outcome, now)
        case DeliverDone():
            return _to(rotation, Step.RESTART, now)
        case DeliverLater():
            return _delivered_later(rotation, outcome, now)
        case RestartDone():
            return _restarted(rotation, outcome, now, limits)
        case ConfirmDone():
            return _confirmed(rotation, outcome, now, limits)
        case SettleDone():
            return _settled(rotation, outcome, now, limits)
        case DeactivateDone(at=at):
            return _to(replace(rotation, deactivated_at=at), Step.RECONFIRM, now)
        case ReconfirmDone():
            return _reconfirmed(rotation, outcome, now)
        case ReactivateDone():
            return _to(replace(rotation, deactivated_at=None), Step.WAY_BACK, now)
        case WayBackDone():
            return _way_back(rotation, outcome, now, limits)
        case RevertDone():
            return _reverted(rotation, outcome, now)
        case DeleteDone(at=at):
            return _to(replace(rotation, deleted_at=at), Step.FINISH, now)
        case CleanDone():
            return _cleaned(replace(rotation, orphans=()), now)
        case FinishDone():
            return _finished(rotation, outcome, now, limits)
        case _:
            assert_never(outcome)


def roll_back(rotation: Rotation, reason: Reason, detail: str, now: datetime) -> Rotation | None:
    """The record of a rotation that turns around; None where it can't (in place, ended, or the old key is gone).

    What may be out at the provider is looked for first; nothing that nobody uses is left there.
    """
    if rotation.strategy is Strategy.IN_PLACE or rotation.deleted_at is not None or rotation.rolling_back is not None:
        return None
    if rotation.restart_only:
        return None
    if rotation.finished_at is not None:
        return None
    back = replace(rotation, rolling_back=reason, turned=detail, no_way_back=False, looked=0)
    untouched = rotation.answers == 0 and rotation.calling_since is None and not rotation.unsettled
    if rotation.issues == 0 or (untouched and rotation.strategy is Strategy.CHOSEN):
        return _rolled_back(back, now)
    if rotation.strategy is Strategy.REPLACE:
        if rotation.calling_since is not None and rotation.new_identity is None:
            return _turned(back, Step.LOOK, reason, detail, now)
        if rotation.promoted_at is None and rotation.step is not Step.PROMOTE:
            return _turned(_with_orphans(back, _made(back)), Step.CLEAN, reason, detail, now)
        # a step that was begun may have had its effect, though its record does not say so
        if rotation.deactivated_at is not None or rotation.step in {Step.DEACTIVATE, Step.DELETE}:
            return _turned(back, Step.REACTIVATE, reason, detail, now)
    return _turned(back, Step.WAY_BACK, reason, detail, now)


def backoff(step: Step, reason: Reason, attempts: int, draw: float, *, unsettled: bool = False) -> timedelta:
    """How long to wait after the `attempts`-th failure of a step: exponential, full jitter, drawn once by the caller.

    Once the old secret is dead every second is an outage, so promote, probe, restart and confirm come back quickly, and
    so does a call that may have set a chosen secret. A refused login comes back slowly: platforms lock accounts. A
    conflict waits for a person, whose request is heard at once.
    """
    base, cap = _PACE.get(step, (5.0, 300.0))
    if step is Step.ISSUE and unsettled:
        base, cap = 1.0, 30.0
    if reason is Reason.PROVIDER_AUTH:
        base, cap = 30.0, 1800.0
    elif reason is Reason.VAULT_CONFLICT:
        base, cap = 5.0, 300.0
    elif reason in {Reason.VAULT_DENIED, Reason.VAULT_AUTH} and step is Step.PROMOTE:
        base, cap = 1.0, 4.0  # a person mends the policy or the login, and a whole fleet may wait for that
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
    Step.RECONFIRM: (2.0, 10.0),
    Step.REACTIVATE: (0.5, 10.0),
    Step.WAY_BACK: (1.0, 30.0),
    Step.REVERT: (0.5, 2.0),
    Step.FINISH: (2.0, 60.0),
}


# --- how a record moves ------------------------------------------------------------------------------------------


def _to(rotation: Rotation, step: Step, now: datetime) -> Rotation:
    return replace(
        rotation, step=step, attempts=0, not_before=None, step_since=now, reason=None, detail="", quarantine=None
    )


def _turned(rotation: Rotation, step: Step, reason: Reason | None, detail: str, now: datetime) -> Rotation:
    """To another step because something failed; the reason stays to be seen."""
    return replace(_to(rotation, step, now), reason=reason, detail=detail)


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


def _rolled_back(rotation: Rotation, now: datetime) -> Rotation:
    """After one rollback no automatic second try: the key is quarantined."""
    reason = rotation.rolling_back
    if _may_have_lost_a_key(rotation) and rotation.step not in {Step.LOOK, Step.FINISH}:
        return _turned(rotation, Step.FINISH, reason, rotation.detail, now)  # one more look for it
    ended = _end(rotation, Result.ROLLED_BACK, now, reason, rotation.detail or rotation.turned)
    return replace(ended, quarantine=reason, calling_since=None, sealed=False)


def _may_have_lost_a_key(rotation: Rotation) -> bool:
    """Whether a call of *replace* was not answered, and may still have made a key."""
    return rotation.strategy is Strategy.REPLACE and rotation.issues > rotation.answers


def _with_orphans(rotation: Rotation, ids: tuple[str, ...]) -> Rotation:
    """With these to be deleted; whatever a list says, never the key that goes on."""
    kept, orphans = {rotation.identity.id, rotation.target.id}, dict.fromkeys((*rotation.orphans, *ids))
    return replace(rotation, orphans=tuple(id for id in orphans if id not in kept))


def _made(rotation: Rotation) -> tuple[str, ...]:
    return (rotation.new_identity.id,) if rotation.new_identity is not None else ()


def _grace(rotation: Rotation, limits: Limits) -> timedelta:
    if limits.grace is not None:
        return limits.grace
    born = rotation.new_issued_at or rotation.answered_at
    if rotation.new_expires_at is None or born is None:
        return DAY
    return min(DAY, (rotation.new_expires_at - born) * GRACE_SHARE)


def _dying(rotation: Rotation, now: datetime) -> bool:
    """Whether the old secret is near its own end, so that waiting for anything costs more than it brings."""
    last = _dying_from(rotation)
    return last is not None and now >= last


def _dying_from(rotation: Rotation) -> datetime | None:
    ends = rotation.expired_before
    if ends is None:
        return None
    return ends - (ends - (rotation.issued_before or rotation.started_at)) * LAST_CHANCE_SHARE


def _may_wait_for_sight(rotation: Rotation, now: datetime) -> bool:
    """Whether proof that can't be read is waited for: it says nothing of the new secret, and nobody need go back."""
    if rotation.strategy is Strategy.IN_PLACE or rotation.restart_only:
        return False  # a missed restart that is made up for must not keep its key from being renewed
    return rotation.rolling_back is None and not _dying(rotation, now)


def _only_forward(rotation: Rotation) -> bool:
    """Whether the consumers are down until they have the new secret: there is no old one to go back to."""
    gone = rotation.strategy is Strategy.IN_PLACE or rotation.no_way_back
    return gone and rotation.rolling_back is None and not rotation.restart_only


def _waited(rotation: Rotation, now: datetime, limits: Limits) -> bool:
    """Whether the platform had its propagation time."""
    return rotation.step_since is not None and now - rotation.step_since >= limits.propagation


# --- failures ----------------------------------------------------------------------------------------------------


def _failed(rotation: Rotation, failed: Failed, now: datetime, limits: Limits) -> Rotation:
    exhausted = rotation.attempts + 1 >= limits.max_attempts
    match rotation.step:
        case Step.ISSUE | Step.LOOK:
            return _call_failed(rotation, failed, now, limits)
        case Step.PROMOTE | Step.REVERT:
            again = _again(rotation, failed, now)
            return replace(again, quarantine=failed.reason) if failed.reason is Reason.VAULT_CONFLICT else again
        case Step.FINISH:
            if rotation.attempts + 1 >= FINISH_TRIES and not _may_have_lost_a_key(rotation):
                return _finished(rotation, FinishDone(), now, limits)
            return _again(rotation, failed, now)
        case Step.DELIVER if failed.reason is Reason.VAULT_OVERWRITTEN and _only_forward(rotation):
            # it never arrives: a person decides whether another one is issued
            return replace(_end(rotation, Result.FAILED, now, failed.reason, failed.detail), quarantine=failed.reason)
        case Step.DELIVER if exhausted and _only_forward(rotation):
            # nobody is restarted onto the old secret, however long it takes: a person must look at the way there
            return replace(_again(rotation, failed, now), quarantine=failed.reason)
        case Step.PROBE | Step.DELIVER | Step.RESTART | Step.CONFIRM | Step.SETTLE:
            return _hopeless(rotation, failed, now) if exhausted else _again(rotation, failed, now)
        case Step.RECONFIRM:
            blind = failed.reason is Reason.EVIDENCE_LOST and _may_wait_for_sight(rotation, now)
            if rotation.attempts + 1 >= RECONFIRM_TRIES and not blind:
                return _hopeless(rotation, failed, now)
            return _again(rotation, failed, now)
        case Step.REACTIVATE | Step.WAY_BACK:
            gone = failed.reason is Reason.KEY_UNKNOWN
            return _closed(rotation, failed.detail, now) if exhausted or gone else _again(rotation, failed, now)
        case Step.PREFLIGHT | Step.CHOOSE | Step.DEACTIVATE | Step.DELETE | Step.CLEAN:
            # Nothing is lost by trying for ever: an expiring key is never given up on, an old one never forgotten.
            return _again(rotation, failed, now)
        case _:
            assert_never(rotation.step)


def _call_failed(rotation: Rotation, failed: Failed, now: datetime, limits: Limits) -> Rotation:
    if rotation.strategy is Strategy.CHOSEN:
        return _setting_failed(rotation, failed, now, limits)
    if rotation.step is Step.LOOK:
        return _again(rotation, failed, now)
    if failed.unknown:
        again = _again(rotation, replace(failed, delay=timedelta(0)), now, Step.LOOK)
        return replace(again, attempts=0, looked=0)
    refused = replace(rotation, calling_since=None, unsettled=False)
    if rotation.issues >= limits.max_attempts:
        return replace(_end(refused, Result.FAILED, now, failed.reason, failed.detail), quarantine=failed.reason)
    # A refusal did nothing, so the call is over; what the next one needs is checked anew (rule 8).
    return _again(refused, failed, now, Step.PREFLIGHT)


def _setting_failed(rotation: Rotation, failed: Failed, now: datetime, limits: Limits) -> Rotation:
    """A chosen secret that may have been set must be set, however long it takes: nobody holds another one."""
    if failed.unknown or rotation.answers or rotation.unsettled:
        again = _again(replace(rotation, unsettled=True), failed, now)
        return replace(again, quarantine=failed.reason if again.attempts >= limits.max_attempts else None)
    refused = replace(rotation, calling_since=None, unsettled=False)
    if rotation.issues >= limits.max_attempts:
        return replace(_end(refused, Result.FAILED, now, failed.reason, failed.detail), quarantine=failed.reason)
    return _again(refused, failed, now, Step.PREFLIGHT)


def _hopeless(rotation: Rotation, failed: Failed, now: datetime) -> Rotation:
    """All tries are used up: in place ends failed; the others turn around, once."""
    back = None if rotation.no_way_back else roll_back(rotation, failed.reason, failed.detail, now)
    if back is not None:
        return back
    # who was seen on the new secret is proven, whatever became of the others
    proven = tuple(replace(c, confirmed_at=c.confirmed_at or c.seen_at) for c in rotation.consumers)
    ended = _end(replace(rotation, consumers=proven), Result.FAILED, now, failed.reason, failed.detail)
    if rotation.rolling_back is not None:
        return replace(ended, quarantine=Reason.ROLLBACK_FAILED)  # neither key is retired
    # a secret that nobody has proven, or that never reached Vault: nothing more is issued by itself
    doubtful = rotation.no_way_back or rotation.sealed or rotation.step is Step.PROBE
    return replace(ended, quarantine=failed.reason) if doubtful else ended


# --- the way to the new secret -----------------------------------------------------------------------------------


def _checked(rotation: Rotation, outcome: PreflightDone, now: datetime) -> Rotation:
    ready = replace(
        rotation,
        issued_before=outcome.issued_before,
        expired_before=outcome.expired_before,
        expected=outcome.expected,
        base_version=outcome.base_version,
        base_print=outcome.expected,
        base_alone=outcome.base_alone,
    )
    choosing = rotation.strategy is Strategy.CHOSEN and not rotation.sealed
    return _to(ready, Step.CHOOSE if choosing else Step.ISSUE, now)


def _issued(rotation: Rotation, outcome: IssueDone, now: datetime, limits: Limits) -> Rotation:
    in_place, replaced = rotation.strategy is Strategy.IN_PLACE, rotation.strategy is Strategy.REPLACE
    if outcome.expires_at is not None:
        plausible = outcome.expires_at > outcome.answered_at
    else:
        # a key that never had an expiry goes by its age
        plausible = rotation.expired_before is None and not (in_place and limits.expires)
    # deleted and made again, which may give it another name
    moved = in_place and outcome.identity is not None and outcome.identity.id != rotation.identity.id
    answered = replace(
        rotation,
        answered_at=outcome.answered_at,
        died_at=rotation.died_at or outcome.answered_at if not replaced and limits.kills_old else None,
        new_identity=outcome.identity if replaced or moved else None,
        new_issued_at=outcome.issued_at,
        new_expires_at=outcome.expires_at,
        expiry_source=outcome.expiry_source,
        plausible=plausible,
        answers=rotation.answers + 1,
        calling_since=rotation.calling_since,
        unsettled=False,
        sealed=True,
        verdict=None,
        vault_version=None,
        promoted_at=None,
    )
    return _to(answered, Step.PROBE if replaced or not plausible else Step.PROMOTE, now)


def _looked(rotation: Rotation, outcome: LookDone, now: datetime, limits: Limits) -> Rotation:
    """After a lost answer: it happened → issue anew at once; no sign of it → look once more, then issue."""
    if not outcome.happened and rotation.looked == 0:
        pause = outcome.again_in or LOOK_AGAIN
        again = Failed(reason=Reason.OUTCOME_UNKNOWN, detail=rotation.detail, delay=pause)
        return replace(_again(rotation, again, now, Step.LOOK), looked=1)
    in_place = rotation.strategy is Strategy.IN_PLACE
    dead = outcome.happened and in_place
    cleared = replace(
        _with_orphans(rotation, tuple(outcome.orphans)),
        calling_since=None,
        unsettled=False,
        looked=0,
        died_at=rotation.died_at or (rotation.calling_since if dead else None),
        expected=None if dead else rotation.expected,  # what Vault holds is dead, or is the lost answer itself
    )
    reason = Reason.ANSWER_LOST if outcome.happened else Reason.OUTCOME_UNKNOWN
    if dead and limits.needs_current:
        # the platform gives a new secret only to who shows the current one, which is the lost answer itself
        lost = Reason.CURRENT_LOST
        return replace(_end(cleared, Result.FAILED, now, lost, "the answer was lost"), quarantine=lost)
    if rotation.rolling_back is not None or rotation.issues >= limits.max_attempts:
        if in_place:
            return replace(_end(cleared, Result.FAILED, now, reason, "no answer ever came"), quarantine=reason)
        back = replace(cleared, rolling_back=rotation.rolling_back or reason, detail="no answer ever came")
        return _to(back, Step.CLEAN, now) if back.orphans else _rolled_back(back, now)
    # The first lost answer is replaced at once, since consumers are down; who loses them all is not hammered.
    pause = timedelta(0) if rotation.issues < 2 else min(SLOWEST_ISSUE, FIRST_PAUSE * 2 ** (rotation.issues - 2))
    step = Step.CLEAN if cleared.orphans else Step.ISSUE if dead else Step.PREFLIGHT
    return replace(_to(cleared, step, now), not_before=now + pause)


def _probed(rotation: Rotation, outcome: ProbeDone, now: datetime, limits: Limits) -> Rotation:
    probed = replace(rotation, verdict=outcome.verdict)
    pending = rotation.promoted_at is None  # replace, or an implausible expiry: the broker decides about the promote
    after = Step.PROMOTE if pending else Step.DELIVER
    match outcome.verdict:
        case Verdict.ACCEPTED:
            return _to(probed, after, now)
        case None:
            if not pending or rotation.plausible:
                return _to(probed, after, now)
            failed = Failed(reason=Reason.EXPIRY_IMPLAUSIBLE, detail="and no broker to prove the secret at")
            return _hopeless(probed, failed, now)
        case Verdict.UNREACHABLE if rotation.verdict in {Verdict.REFUSED, Verdict.SUBSCRIPTION_REFUSED}:
            # it refused the secret before it went away, and takes nothing back by that (rule 2)
            return _again(rotation, Failed(reason=Reason.BROKER_UNREACHABLE, detail=outcome.detail, delay=_RETRY), now)
        case Verdict.UNREACHABLE:
            enough = rotation.attempts + 1 >= UNREACHABLE_PROBES if not pending else _dying(rotation, now)
            if enough and rotation.plausible:
                return _to(probed, after, now)
            slower = _RETRY * 2 ** min(rotation.attempts, 5 if rotation.plausible else 3) if pending else _RETRY
            return _again(probed, Failed(reason=Reason.BROKER_UNREACHABLE, detail=outcome.detail, delay=slower), now)
        case Verdict.REFUSED | Verdict.SUBSCRIPTION_REFUSED:
            return _refused(probed, outcome, now, limits)
        case _:
            assert_never(outcome.verdict)


def _refused(rotation: Rotation, outcome: ProbeDone, now: datetime, limits: Limits) -> Rotation:
    """The broker does not let the new secret in, or not to its topics (rule 2)."""
    wrong = outcome.verdict is Verdict.REFUSED
    reason = Reason.SECRET_REFUSED if wrong else Reason.SUBSCRIPTION_REFUSED
    failed = Failed(reason=reason, detail=outcome.detail, delay=_RETRY)
    if not _waited(rotation, now, limits):
        return _again(rotation, failed, now)
    if rotation.strategy is not Strategy.IN_PLACE and not rotation.no_way_back:
        return _hopeless(rotation, failed, now)
    if wrong and rotation.answers < MAX_ANSWERS:
        # Chosen, with no way back: only after a person asked for one more (`rotate --now`). That may be days after the
        # last one was issued, so what can't be undone is checked again.
        again = _to(replace(rotation, calling_since=None, verdict=None, restores=None), Step.PREFLIGHT, now)
        return replace(again, reason=failed.reason, detail=failed.detail)
    # Quarantine, and go on probing: a role or a propagation that comes late is found by itself.
    passed = now - (rotation.step_since or now)
    slow = replace(failed, delay=min(max(passed * SLOWER_SHARE, FIRST_SLOW_PROBE), SLOWEST_PROBE))
    return replace(_again(rotation, slow, now), quarantine=reason)


def _promoted(rotation: Rotation, outcome: PromoteDone, now: datetime) -> Rotation:
    proven = rotation.verdict is Verdict.ACCEPTED or rotation.strategy is Strategy.REPLACE
    promoted = replace(
        rotation,
        vault_version=outcome.version,
        expected=outcome.expected,
        promoted_at=now,
        consumers=tuple(_anew(c) for c in rotation.consumers),  # chosen: who was restarted before the way back closed
        sealed=False,
        quarantine=None,
    )
    return _to(promoted, Step.DELIVER if proven else Step.PROBE, now)


def _delivered_later(rotation: Rotation, outcome: DeliverLater, now: datetime) -> Rotation:
    """Look again, the later the longer it has taken; that is no failure yet."""
    passed = now - (rotation.step_since or now)
    pause = min(max(passed * DELIVERY_SHARE, FIRST_DELIVERY_LOOK), SLOWEST_DELIVERY_LOOK)
    return replace(rotation, not_before=now + pause, reason=None, detail=outcome.detail)


def _restarted(rotation: Rotation, outcome: RestartDone, now: datetime, limits: Limits) -> Rotation:
    tickets = {ticket.consumer: ticket for ticket in outcome.tickets}
    consumers = tuple(
        replace(
            c,
            restarted_at=tickets[c.name].restarted_at,
            ticket=tickets[c.name],
            seen_at=None,
            idle=tickets[c.name].marks.get("replicas") == 0,
        )
        if c.name in tickets
        else c
        for c in rotation.consumers
    )
    restarted = replace(rotation, consumers=consumers)
    if outcome.failed is None:
        # attempts are kept: restart and confirm are one loop, and it must end
        return replace(restarted, step=Step.CONFIRM, not_before=None, step_since=now, reason=None, detail="")
    failed = _failed(restarted, outcome.failed, now, limits)
    if failed.result is not Result.FAILED:
        return failed
    # who was seen on the new secret is proven, whatever became of the others
    seen = dict(outcome.seen)
    return replace(
        failed, consumers=tuple(replace(c, confirmed_at=c.confirmed_at or seen.get(c.name)) for c in failed.consumers)
    )


def _confirmed(rotation: Rotation, outcome: ConfirmDone, now: datetime, limits: Limits) -> Rotation:
    seen = dict(outcome.seen)
    consumers = tuple(
        replace(c, seen_at=seen.get(c.name, c.seen_at)) if c.name not in outcome.unseen else _anew(c)
        for c in rotation.consumers
    )
    confirmed = replace(rotation, consumers=consumers, died_at=outcome.died_at or rotation.died_at)
    if outcome.failed is None:
        return replace(confirmed, step=Step.SETTLE, not_before=None, step_since=now, reason=None, detail="")
    if not outcome.unseen and _may_wait_for_sight(rotation, now):
        return replace(_again(confirmed, outcome.failed, now), attempts=rotation.attempts)
    failed = _failed(confirmed, outcome.failed, now, limits)
    return replace(failed, step=Step.RESTART) if failed.step is Step.CONFIRM and failed.finished_at is None else failed


def _settled(rotation: Rotation, outcome: SettleDone, now: datetime, limits: Limits) -> Rotation:
    consumers = tuple(
        replace(c, confirmed_at=c.seen_at)
        if c.name in outcome.confirmed
        # who was proven in an earlier batch waits for its own window again
        else (replace(_anew(c), in_turn=c.in_turn and c.confirmed_at is None) if c.name in outcome.crashed else c)
        for c in rotation.consumers
    )
    settled = replace(rotation, consumers=consumers)
    if outcome.failed is not None:
        failed = _failed(settled, outcome.failed, now, limits)
        again = failed.step is Step.SETTLE and failed.finished_at is None
        return replace(failed, step=Step.RESTART) if again else failed
    if pending(settled, limits.plans):
        return _to(settled, Step.RESTART, now)  # the next batch
    if rotation.restart_only:
        return _end(settled, Result.SUCCEEDED, now, None)
    if rotation.rolling_back is not None:
        back = _with_orphans(settled, _made(settled))
        return _to(back, Step.CLEAN, now) if back.orphans else _rolled_back(back, now)
    if rotation.strategy is not Strategy.REPLACE:
        return _to(settled, Step.FINISH, now)
    since = rotation.reconfirmed_at
    if since is not None and all(c.seen_at is None or c.seen_at >= since for c in settled.consumers):
        return _to(replace(settled, reconfirmed_at=now), Step.DELETE, now)  # that was the second confirmation
    inactive = rotation.deactivated_at is not None or not limits.deactivates
    return _to(settled, Step.RECONFIRM if inactive else Step.DEACTIVATE, now)


def _anew(consumer: ConsumerProgress) -> ConsumerProgress:
    """To be restarted, and to be proven again."""
    cleared = replace(consumer, restarted_at=None, ticket=None, seen_at=None, confirmed_at=None)
    return replace(cleared, vouched=False, idle=False)


def _reconfirmed(rotation: Rotation, outcome: ReconfirmDone, now: datetime) -> Rotation:
    if not outcome.blind:
        return _to(replace(rotation, reconfirmed_at=now), Step.DELETE, now)
    # in batches, as the first time: the new secret works, and nothing is wrong with any of them
    consumers = tuple(replace(_anew(c), in_turn=False) if c.name in outcome.blind else c for c in rotation.consumers)
    return _to(replace(rotation, consumers=consumers, reconfirmed_at=now), Step.RESTART, now)


# --- the way back ------------------------------------------------------------------------------------------------


def _way_back(rotation: Rotation, outcome: WayBackDone, now: datetime, limits: Limits) -> Rotation:
    """Only to an old secret that passes its probe, and outlives the next attempt (design, "Rolling back")."""
    if not outcome.held:
        return _closed(rotation, "Vault no longer holds the previous secret", now)
    match outcome.verdict:
        case None | Verdict.ACCEPTED:
            lasts = rotation.expired_before is None or not _dying(rotation, now + (now - rotation.started_at))
            why = "the old secret ends before another attempt could"
            return _to(rotation, Step.REVERT, now) if lasts else _closed(rotation, why, now)
        case Verdict.REFUSED | Verdict.SUBSCRIPTION_REFUSED:
            if _waited(rotation, now, limits):
                return _closed(rotation, f"the broker refuses the old secret: {outcome.detail}", now)
            return _again(rotation, Failed(reason=Reason.SECRET_REFUSED, detail=outcome.detail, delay=_RETRY), now)
        case Verdict.UNREACHABLE:
            if rotation.attempts + 1 >= limits.max_attempts:
                return _closed(rotation, f"the broker can't be asked about the old secret: {outcome.detail}", now)
            slower = _RETRY * 2 ** min(rotation.attempts, 4)
            return _again(rotation, Failed(reason=Reason.BROKER_UNREACHABLE, detail=outcome.detail, delay=slower), now)
        case _:
            assert_never(outcome.verdict)


def _closed(rotation: Rotation, why: str, now: datetime) -> Rotation:
    """There is no way back. Replace: both keys stay, a person decides. Chosen: forward, the new secret is set again."""
    if rotation.strategy is Strategy.CHOSEN:
        forward = replace(rotation, rolling_back=None, no_way_back=True, verdict=None, sealed=True)
        return _turned(forward, Step.ISSUE, rotation.rolling_back or Reason.ROLLBACK_FAILED, why, now)
    ended = _end(rotation, Result.FAILED, now, rotation.rolling_back, why)
    return replace(ended, quarantine=Reason.ROLLBACK_FAILED)


def _reverted(rotation: Rotation, outcome: RevertDone, now: datetime) -> Rotation:
    consumers = tuple(_anew(c) for c in rotation.consumers)
    reverted = replace(rotation, reverted=True, consumers=consumers, sealed=False)
    if outcome.version is not None:
        reverted = replace(reverted, vault_version=outcome.version, expected=outcome.expected, promoted_at=now)
    return _to(reverted, Step.DELIVER, now)


def _cleaned(rotation: Rotation, now: datetime) -> Rotation:
    if rotation.rolling_back is not None:
        return _rolled_back(rotation, now)
    return _to(rotation, Step.PREFLIGHT if rotation.new_identity is None else Step.FINISH, now)


def _finished(rotation: Rotation, outcome: FinishDone, now: datetime, limits: Limits) -> Rotation:
    if outcome.orphans:
        # a list may go on showing a deleted key for a while
        cleaning = _to(_with_orphans(rotation, tuple(outcome.orphans)), Step.CLEAN, now)
        return replace(cleaning, not_before=now + LOOK_AGAIN)
    if rotation.rolling_back is not None:
        return _rolled_back(rotation, now)
    if outcome.issued_elsewhere:
        return _end(rotation, Result.FAILED, now, Reason.ISSUED_ELSEWHERE)
    if outcome.old_alive:
        if not _waited(rotation, now, limits):
            return replace(rotation, not_before=now + _RETRY)  # the platform is not that fast
        return _end(rotation, Result.SUCCEEDED, now, Reason.OLD_SECRET_ALIVE)
    return _end(rotation, Result.SUCCEEDED, now, None if rotation.plausible else Reason.EXPIRY_IMPLAUSIBLE)
