"""What a step of a rotation means for its key, and the events that tell of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from rotator.batches import turn_of
from rotator.frozen import replace
from rotator.keys import ConsumerFacts, KeyRecord, brought_along, last_chance, past, scheduled
from rotator.lifecycle import backoff
from rotator.managed import ManagedKey
from rotator.model import Result, RotationEvent, Step, Strategy
from rotator.reasons import Reason
from rotator.rotation import ConfirmDone, DeliverLater, Failed, IssueDone, Outcome, RestartDone, Rotation

# What a rotation says of itself without having failed.
NOTED = frozenset({Reason.EXPIRY_IMPLAUSIBLE, Reason.OLD_SECRET_ALIVE})


def _consumers_after(record: KeyRecord, key: ManagedKey, rotation: Rotation) -> dict[str, ConsumerFacts]:
    """The consumers' versions as this rotation leaves them."""
    facts = dict(record.consumers)
    provable = {link.consumer.name for link in key.consumers if link.open_watch is not None}
    back = rotation.result is Result.ROLLED_BACK and rotation.strategy is Strategy.REPLACE and rotation.reverted
    for progress in rotation.consumers:
        known = facts.get(progress.name, ConsumerFacts())
        if progress.restarted_at is not None and rotation.vault_version is not None:
            known = replace(
                known, version=rotation.vault_version, restarted_at=progress.restarted_at, idle=progress.idle
            )
        if progress.confirmed_at is not None:
            known = replace(known, confirmed_at=progress.confirmed_at, confirmed_version=rotation.vault_version)
        elif rotation.result is Result.FAILED and rotation.vault_version is not None:
            # it runs on what was there before, as far as anybody knows: it is behind, and is brought to it later
            before = rotation.base_version or 0
            proven = (known.confirmed_version or before) if progress.name in provable else known.confirmed_version
            known = replace(known, version=before if known.version is None else known.version, confirmed_version=proven)
        if back and not progress.touched and rotation.our_version is not None:
            known = brought_along(known, rotation.our_version, rotation.vault_version)
        facts[progress.name] = known
    return facts


def key_after(
    record: KeyRecord, key: ManagedKey, rotation: Rotation, now: datetime, *, draw: float, pause: float
) -> KeyRecord:
    """What a step of a rotation means for its key."""
    failed = rotation.reason is not None and rotation.reason not in NOTED
    if failed:
        counted = rotation.result is Result.ROLLED_BACK  # when it turned around, which is when the words were said too
        known = record.last_detail if counted and record.last_reason is rotation.reason else ""
        record = replace(
            record,
            failures=record.failures + (0 if counted else 1),
            last_reason=rotation.reason,
            last_detail=rotation.detail or known,
        )
    if rotation.reason is Reason.VAULT_CONFLICT:
        record = replace(record, drift=Reason.VAULT_CONFLICT)
    record = _dated(record, key, rotation, draw)
    if rotation.vault_version is not None and not rotation.restart_only:
        if record.drift is Reason.VAULT_CONFLICT and rotation.reason is not Reason.VAULT_CONFLICT:
            record = replace(record, drift=None)
        record = replace(
            record,
            vault_version=rotation.vault_version,
            # after a way back, what lies below is the secret that did not do
            replaced_version=None if rotation.reverted else rotation.base_version,
            fingerprint=rotation.expected,
            fields=tuple(sorted(key.fields)),
            adopted=True,
        )
    consumers = _consumers_after(record, key, rotation)
    if consumers != record.consumers:
        record = replace(record, consumers=consumers)
    closed = rotation.step in {Step.SETTLE, Step.FINISH} or rotation.result is Result.ROLLED_BACK
    if closed and record.gap_started_at is not None:
        record = replace(record, gap_started_at=None)
    if rotation.result is not None and record.vouched:
        record = replace(record, vouched=())
    if rotation.result is Result.SUCCEEDED and rotation.restart_only:
        return replace(record, failures=0, last_reason=None, last_detail="", not_before=None, gap_started_at=None)
    if rotation.result is Result.SUCCEEDED:
        return replace(
            record,
            failures=0,
            last_success_at=now,
            last_reason=None,
            last_detail="",
            not_before=None,
            # a person took the last rotation back: no automatic second try, as after any way back
            quarantine=Reason.ROLLBACK_REQUESTED if rotation.restores is not None else None,
            verdict=rotation.verdict,
            probed_at=now,
        )
    if rotation.result is not None:
        delay = backoff(Step.PREFLIGHT, rotation.reason or Reason.UNFORESEEN, record.failures, pause)
        return replace(record, not_before=now + delay, quarantine=rotation.quarantine or record.quarantine)
    return record


def _dated(record: KeyRecord, key: ManagedKey, rotation: Rotation, draw: float) -> KeyRecord:
    """Whose dates and identity count: the new ones from the answer on (replace: from the promote on), the old ones
    again after a way back."""
    answered = rotation.answered_at
    if answered is None:
        return record
    if record.last_issue_at != answered:
        record = replace(record, last_issue_at=answered)
    replaced = rotation.strategy is Strategy.REPLACE
    if rotation.reverted:
        applied = f"{rotation.id}/back"
        if record.applied == applied:
            return record
        record = replace(
            record,
            applied=applied,
            id=rotation.identity.id,
            identity=rotation.identity,
            issued_at=rotation.issued_before or record.issued_at,
            expires_at=rotation.expired_before,
            last_chance_used=False,
        )
        chance = last_chance(record)  # one that has come and gone is not given again
        record = replace(record, last_chance_used=chance is not None and past(chance, answered))
        return scheduled(record, key.policy, draw)
    applied = f"{rotation.id}/{rotation.answers}"
    if record.applied == applied or (replaced and rotation.promoted_at is None):
        return record
    return scheduled(replace(_after_answer(record, key, rotation, answered), applied=applied), key.policy, draw)


def _after_answer(record: KeyRecord, key: ManagedKey, rotation: Rotation, answered_at: datetime) -> KeyRecord:
    new = rotation.new_identity
    if new is not None:
        ids = tuple(dict.fromkeys((*(record.ids or (record.id,)), new.id)))
        record = replace(record, id=new.id, identity=new, ids=ids)
    dead = rotation.died_at is not None and bool(key.consumers)
    return replace(
        record,
        issued_at=rotation.new_issued_at or answered_at,
        expires_at=rotation.new_expires_at,
        expiry_source=rotation.expiry_source,
        implausible=not rotation.plausible,
        last_chance_used=False,
        gap_started_at=record.gap_started_at or answered_at if dead else None,
        drift=None,
    )


def story(
    key: ManagedKey, old: Rotation, new: Rotation, outcome: Outcome, step: Step, *, seconds: float, at: datetime
) -> Iterator[RotationEvent]:
    """The events of one step, the same for the log, the metrics and the history."""
    back = _arrived_back(old, new, outcome)
    bad = new.reason is not None and new.reason not in NOTED and not back
    reason = None if back else new.reason
    implausible = isinstance(outcome, IssueDone) and not new.plausible
    same = bad and old.reason is new.reason and old.step is new.step
    looked = isinstance(outcome, DeliverLater) and old.detail == new.detail  # it is looked for every few seconds
    yield told(
        new,
        "step",
        at,
        step=step,
        result="failed" if bad else "ok",
        reason=Reason.EXPIRY_IMPLAUSIBLE if implausible else reason,
        seconds=seconds,
        detail=new.detail,
        repeated=looked or (same and not _worth_repeating(new.attempts)),
    )
    if isinstance(outcome, RestartDone):
        kinds = {link.consumer.name: link.consumer.kind for link in key.consumers}
        done = {ticket.consumer for ticket in outcome.tickets}
        following = {plan.name for plan in key.limits.plans if plan.follows}  # they are proven, and never restarted
        for name in (name for name in turn_of(old, key.limits.plans) if name not in following):
            result = "ok" if name in done else "failed"
            extra = {"consumer": name, "kind": kinds.get(name, "")}
            yield told(new, "restart", at, result=result, extra=extra)
    if isinstance(outcome, ConfirmDone):
        for consumer, gap in outcome.gaps:
            yield told(new, "gap", at, seconds=gap, extra={"consumer": consumer})
    if new.quarantine is not None and old.quarantine is None:
        yield told(new, "quarantined", at, reason=new.quarantine, detail=new.detail)
    if new.finished_at is not None and new.result is not None:
        seconds = (new.finished_at - new.started_at).total_seconds()
        result = new.result.value
        name = "caught_up" if new.restart_only else "rotation_ended"
        yield told(new, name, at, result=result, reason=new.reason, seconds=seconds, detail=new.detail)


def told(
    rotation: Rotation,
    name: str,
    at: datetime,
    *,
    step: Step | None = None,
    result: str = "",
    reason: Reason | None = None,
    seconds: float | None = None,
    detail: str = "",
    extra: Mapping[str, str | int | float] | None = None,
    repeated: bool = False,
) -> RotationEvent:
    """One event about a rotation."""
    return RotationEvent(
        at=at,
        key=rotation.key,
        provider=rotation.provider,
        name=name,
        rotation=rotation.id,
        step=step,
        result=result,
        reason=reason,
        seconds=seconds,
        detail=detail,
        extra=extra or {},
        repeated=repeated,
    )


def _arrived_back(old: Rotation, new: Rotation, outcome: Outcome) -> bool:
    """Whether this step did well, and was the last one of a way back: the reason is that of the way back."""
    ended = new.result is Result.ROLLED_BACK and old.rolling_back is not None
    return ended and not isinstance(outcome, Failed)


def _worth_repeating(attempts: int) -> bool:
    """The same failure is told again after 2, 4, 8, … attempts: an hour of it is a dozen lines, not thousands."""
    return attempts & (attempts - 1) == 0
