"""How keys and rotations are shown: the plain values behind /api, the status page and `--json`. Never a secret."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rotator.keys import KeyRecord, needs_a_person, resting, state, versions_behind
from rotator.lifecycle import grace_ends
from rotator.managed import ConsumerLink, ManagedKey
from rotator.model import KeyState
from rotator.reasons import ADVICE, Reason
from rotator.rotation import Rotation

Event = Mapping[str, Any]


def key_view(
    record: KeyRecord, rotation: Rotation | None, last_event: Event | None, key: ManagedKey | None, now: datetime
) -> dict[str, Any]:
    """One key as plain values; moments are ISO 8601 in UTC or None."""
    shown = state(record, rotation, now)
    reason = _reason(record, rotation, shown)
    links = {link.consumer.name: link for link in key.consumers} if key is not None else {}
    names = list(links) or list(record.consumers)
    detail = _detail(record, rotation, reason)
    person = needs_a_person(record, shown)
    return {
        "name": record.name,
        "provider": record.provider,
        "id": record.id,
        "username": record.identity.username if record.identity else None,
        "state": shown.value,
        "reason": reason.value if reason else None,
        "detail": detail,
        "advice": ADVICE[reason] if reason else None,
        "needs_a_person": person.value if person else None,
        "issued_at": iso(record.issued_at),
        "expires_at": iso(record.expires_at),
        "expiry_source": record.expiry_source.value if record.expiry_source else None,
        "expiry_implausible": record.implausible,
        "rotate_at": iso(record.rotate_at),
        "due_reason": record.due_reason.value if record.due_reason else None,
        "last_success_at": iso(record.last_success_at),
        "consecutive_failures": record.failures,
        "next_try_at": iso(rotation.not_before if rotation is not None else record.not_before),
        "paused": record.paused,
        "quarantined": shown is KeyState.QUARANTINED,
        "requested": record.requested or None,
        "problem": record.problem.value if record.problem else None,
        "drift": record.drift.value if record.drift else None,
        "sealed": rotation.sealed if rotation is not None else False,
        "broker_verdict": record.verdict.value if record.verdict else None,
        "gap_started_at": iso(record.gap_started_at),
        "vault": {"path": key.path if key is not None else None, "version": record.vault_version},
        "consumers": [_consumer(record, name, links.get(name)) for name in names],
        "preflight": _preflight(record),
        "rotation": _in_flight(rotation, key),
        "last_event": event_view(last_event) if last_event is not None else None,
    }


def rotation_view(rotation: Rotation) -> dict[str, Any]:
    """One rotation as plain values."""
    return {
        "id": rotation.id,
        "key": rotation.key,
        "provider": rotation.provider,
        "strategy": rotation.strategy.value,
        "identity": rotation.identity.id,
        "new_identity": rotation.new_identity.id if rotation.new_identity else None,
        "rolling_back": rotation.rolling_back.value if rotation.rolling_back else None,
        "resting": resting(rotation) and rotation.finished_at is None,
        "trigger": rotation.trigger.value,
        "step": rotation.step.value,
        "attempts": rotation.attempts,
        "issues": rotation.issues,
        "result": rotation.result.value if rotation.result else None,
        "reason": rotation.reason.value if rotation.reason else None,
        "detail": rotation.detail,
        "started_at": iso(rotation.started_at),
        "answered_at": iso(rotation.answered_at),
        "promoted_at": iso(rotation.promoted_at),
        "finished_at": iso(rotation.finished_at),
        "vault_version": rotation.vault_version,
        "broker_verdict": rotation.verdict.value if rotation.verdict else None,
        "consumers": [
            {
                "name": c.name,
                "idle": c.idle,
                "restarted_at": iso(c.restarted_at),
                "seen_at": iso(c.seen_at),
                "confirmed_at": iso(c.confirmed_at),
            }
            for c in rotation.consumers
        ],
    }


def event_view(event: Event) -> dict[str, Any]:
    """One event of the history as plain values."""
    return {
        "at": iso(event["at"]),
        "key": event["key"],
        "name": event["name"],
        "step": event["step"],
        "result": event["result"],
        "reason": event["reason"],
        "seconds": event["seconds"],
        "detail": event["detail"],
    }


def iso(moment: datetime | None) -> str | None:
    """ISO 8601 with the zone, or None."""
    return moment.isoformat() if moment is not None else None


def _reason(record: KeyRecord, rotation: Rotation | None, shown: KeyState) -> Reason | None:
    """The word that explains the state best."""
    if shown is KeyState.WAITING:
        return Reason.WAITING_FOR_ADOPTION
    running = rotation.quarantine or rotation.reason if rotation is not None else None
    stuck = record.problem or record.held_back or record.quarantine or record.drift
    implausible = Reason.EXPIRY_IMPLAUSIBLE if record.implausible else None
    paused = Reason.PAUSED if shown is KeyState.PAUSED else None
    return running or stuck or record.last_reason or paused or implausible


def _detail(record: KeyRecord, rotation: Rotation | None, reason: Reason | None) -> str:
    """The words that belong to this reason, and not those of another failure."""
    if reason is None:
        return ""
    if rotation is not None and reason in {rotation.reason, rotation.quarantine}:
        return rotation.detail
    return record.last_detail if reason is record.last_reason else ""


def _consumer(record: KeyRecord, name: str, link: ConsumerLink | None) -> dict[str, Any]:
    facts = record.consumers.get(name)
    return {
        "name": name,
        "kind": link.consumer.kind if link is not None else None,
        "version": facts.version if facts else None,
        "restarted_at": iso(facts.restarted_at) if facts else None,
        "confirmed_at": iso(facts.confirmed_at) if facts else None,
        "confirmed_version": facts.confirmed_version if facts else None,
        "lag": versions_behind(record, name, seen=link is None or link.open_watch is not None),
    }


def _preflight(record: KeyRecord) -> dict[str, Any] | None:
    """What the last preflight looked at, before anything that can't be undone."""
    if record.checked_at is None:
        return None
    checks = [{"check": check.name, "ok": check.ok, "detail": check.detail} for check in record.checks]
    return {"at": iso(record.checked_at), "ok": all(check.ok for check in record.checks), "checks": checks}


def _in_flight(rotation: Rotation | None, key: ManagedKey | None) -> dict[str, Any] | None:
    if rotation is None:
        return None
    return {
        "resting": resting(rotation),
        "rolling_back": rotation.rolling_back.value if rotation.rolling_back else None,
        "retires_at": iso(grace_ends(rotation, key.limits)) if key is not None else None,
        "id": rotation.id,
        "step": rotation.step.value,
        "attempts": rotation.attempts,
        "started_at": iso(rotation.started_at),
        "trigger": rotation.trigger.value,
    }
