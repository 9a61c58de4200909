"""What a person or a program may ask of the daemon; the HTTP API and the commands without a daemon share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from rotator.engine import Engine
from rotator.errors import Permanent, RotatorError, Transient
from rotator.keys import (
    COMPROMISED,
    ISSUE_IN_WINDOW,
    ISSUE_NOW,
    RESUMED,
    ROLL_BACK,
    ConsumerFacts,
    Hold,
    KeyRecord,
    decide,
    may_be_cut_short,
)
from rotator.lifecycle import roll_back
from rotator.managed import ManagedKey
from rotator.model import VERDICT_REASONS, KeyState, RotationEvent, Secret, Step, Strategy, Verdict
from rotator.promoting import only_over
from rotator.reasons import ADVICE, Reason
from rotator.rotation import Rotation
from rotator.views import event_view, iso, key_view, rotation_view
from rotator.watcher import Watcher


class NoSuchKey(RotatorError):
    """The configuration has no key of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no key {name!r} in the configuration", reason=Reason.NO_SUCH_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Reads and requests over the engine; every request is journaled before it is answered."""

    engine: Engine
    watcher: Watcher
    poke: Callable[[], None]

    def keys(self) -> list[dict[str, Any]]:
        """All keys, by name."""
        journal = self.engine.world.journal
        open_rotations, last, now = journal.open_rotations(), journal.last_events(), self.engine.world.clock.now()
        return [
            self._explained(
                key_view(
                    record, open_rotations.get(record.name), last.get(record.name), self.engine.keys[record.name], now
                )
            )
            for record in journal.all_keys()
            if record.name in self.engine.keys
        ]

    def key(self, name: str) -> dict[str, Any]:
        """One key, with its last events and why it is not rotated now.

        Raises: NoSuchKey.
        """
        key, record = self._known(name)
        journal, now = self.engine.world.journal, self.engine.world.clock.now()
        history = journal.history(key=name, limit=50)
        last = history[0] if history else None
        shown = self._explained(key_view(record, journal.open_rotation(name), last, key, now))
        decision = decide(record, key.policy, now, observe=self.engine.observe_only, adopt_rotates=key.adopt_rotates)
        held = decision if isinstance(decision, Hold) and not shown["rotation"] else None
        shown["held"] = {"reason": held.reason.value, "until": iso(held.until)} if held else None
        shown["history"] = [event_view(event) for event in history]
        return shown

    def rotations(self, key: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
        """The last rotations, the newest first.

        Raises: NoSuchKey for a key that there never was; one that was taken out of the configuration has its history.
        """
        found = self.engine.world.journal.recent_rotations(key=key, limit=limit)
        if key is not None and not found:
            self._known(key)
        return [rotation_view(rotation) for rotation in found]

    def rotate(self, name: str, *, now: bool, compromised: bool = False) -> dict[str, Any]:
        """Ask for a rotation: in the key's windows, or now; compromised: now, and the old key gets no grace period.

        Raises: NoSuchKey.
        """
        if self.engine.observe_only:
            raise Permanent("this daemon only observes", reason=Reason.OBSERVE_MODE)
        previous = self.rotations(name, 1)
        asked = COMPROMISED if compromised else ISSUE_NOW if now else ISSUE_IN_WINDOW
        self._change(name, "requested", lambda record: replace(record, requested=asked))
        said = "in_window" if asked == ISSUE_IN_WINDOW else asked
        return {"key": name, "requested": said, "previous": previous[0] if previous else None}

    def rollback(self, name: str) -> dict[str, Any]:
        """Take a rotation back: the old secret is Vault's current one again, and consumers run on it.

        With a chosen secret, one that has ended is taken back too, by setting the previous version's secret again.

        Raises: NoSuchKey; Permanent ROLLBACK_IMPOSSIBLE where the old secret is gone.
        """
        key, record = self._known(name)
        if self.engine.observe_only:
            raise Permanent("this daemon only observes", reason=Reason.OBSERVE_MODE)
        rotation, previous = self.engine.world.journal.open_rotation(name), self.rotations(name, 1)
        if rotation is not None:
            if roll_back(rotation, Reason.ROLLBACK_REQUESTED, "", self.engine.world.clock.now()) is None:
                raise Permanent(_why_no_way_back(rotation), reason=Reason.ROLLBACK_IMPOSSIBLE)
        elif key.provider.strategy is not Strategy.CHOSEN or (record.vault_version or 0) < 2:
            words = f"no rotation of {name} is under way, and its old secret is gone"
            raise Permanent(words, reason=Reason.ROLLBACK_IMPOSSIBLE)
        self._change(name, "rollback_requested", lambda known: replace(known, requested=ROLL_BACK))
        return {"key": name, "requested": ROLL_BACK, "previous": previous[0] if previous else None}

    def confirm(self, name: str, consumer: str) -> dict[str, Any]:
        """A person has seen this consumer on the current secret.

        Raises: NoSuchKey; Permanent BAD_REQUEST where the key has no such consumer.
        """
        key, _record = self._known(name)
        everybody = {link.consumer.name for link in key.consumers}
        if consumer not in everybody:
            theirs = f"its consumers are {', '.join(sorted(everybody))}" if everybody else "it has none at all"
            raise Permanent(f"{name} has no consumer {consumer!r}: {theirs}", reason=Reason.BAD_REQUEST)
        rotation = self.engine.world.journal.open_rotation(name)
        if rotation is not None and rotation.promoted_at is None:
            words = f"Vault does not hold the new secret of {name} yet, so nobody can run on it"
            raise Permanent(words, reason=Reason.CONSUMER_NOT_CONFIRMED)
        now = self.engine.world.clock.now()
        if rotation is not None:
            self._change(name, "vouched", lambda known: replace(known, vouched=(*known.vouched, consumer)))
        else:
            self._change(name, "vouched", lambda known: _seen_by_a_person(known, consumer, everybody, now))
        return {"key": name, "consumer": consumer, "confirmed": True}

    def pause(self, name: str) -> dict[str, Any]:
        """Begin no rotation of this key until it is resumed; one that has issued goes on.

        Raises: NoSuchKey.
        """
        self._change(name, "paused", lambda record: replace(record, paused=True))
        return {"key": name, "paused": True}

    def resume(self, name: str) -> dict[str, Any]:
        """Take back a pause or a quarantine; what waits is tried now.

        Raises: NoSuchKey.
        """
        rotating = self.engine.world.journal.open_rotation(name) is not None

        def change(record: KeyRecord) -> KeyRecord:
            cleared = replace(
                record,
                paused=False,
                quarantine=None,
                not_before=None,
                last_chance_used=False,
                planned_at=record.rotate_at,  # what a person has seen is planned
                held_back=None,
            )
            if rotating:
                return replace(cleared, requested=RESUMED)
            # a person says that what failed is mended; a consumer that was mended by hand needs no new secret
            return replace(cleared, gap_started_at=None, failures=0, last_reason=None, last_detail="")

        self.engine.stampede.expected(name)
        self._change(name, "resumed", change)
        return {"key": name, "paused": False}

    def adopt(self, name: str, secret: Secret) -> dict[str, Any]:
        """Prove an existing secret at the broker and put it into Vault, without rotating.

        Raises: NoSuchKey; Permanent SECRET_REFUSED, SUBSCRIPTION_REFUSED; Transient BROKER_UNREACHABLE; the store's.
        """
        key, record = self._known(name)
        if not secret:
            raise Permanent("the secret on standard input is empty", reason=Reason.BAD_REQUEST)
        world = self.engine.world
        with self.engine.claimed(name):
            version, fields = self._bring(key, record, secret)
        fingerprint = world.fingerprints.of(fields)
        self._change(
            name,
            "adopted",
            lambda known: replace(
                known,
                adopted=True,
                vault_version=version,
                fingerprint=fingerprint,
                fields=tuple(sorted(fields)),
                drift=None,
                verdict=Verdict.ACCEPTED if key.provable else None,
            ),
        )
        return {"key": name, "vault": {"path": key.path, "version": version}, "proven": key.provable}

    def _bring(self, key: ManagedKey, record: KeyRecord, secret: Secret) -> tuple[int, dict[str, str]]:
        """Prove a secret and write it, unless somebody changes our fields meanwhile."""
        world, identity = self.engine.world, record.identity or key.provider.identity(record.id)
        rotation = world.journal.open_rotation(key.name)
        if rotation is not None and not (rotation.step is Step.PREFLIGHT and may_be_cut_short(rotation)):
            raise Transient(f"{key.name} is being rotated", reason=Reason.REQUESTED, retry_after=timedelta(seconds=30))
        fields = key.rendered(identity, secret, expires_at=record.expires_at)
        ours = key.ours(world.store.read(key.path).data)
        if key.provable:
            _accepted(key.proof(world.prober, identity, secret).verdict, key.name)
        return world.store.put(key.path, fields, judge=only_over(key.path, ours, fields)), fields

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether work is possible, and of each peer, and of the journal, why not."""
        checks = {name: _check(health.reason, health.detail) for name, health in self.watcher.health().items()}
        for name, check in checks.items():
            hold = self.engine.holds.until(name)
            if hold is not None:
                check.update(ok=False, reason=hold[1].value, advice=ADVICE[hold[1]], next_try_at=iso(hold[0]))
        failed = self.engine.world.journal.unwritable
        full = failed.message if failed is not None else self.engine.spool.refused
        checks["journal"] = _check(Reason.JOURNAL_UNWRITABLE if full else None, full)
        return all(check["ok"] for check in checks.values()), checks

    def _explained(self, view: dict[str, Any]) -> dict[str, Any]:
        """A key that nothing is known of yet says which peer is the reason."""
        if view["reason"] is not None or view["state"] != KeyState.UNKNOWN.value:
            return view
        for peer in (view["provider"], "vault"):
            health = self.watcher.health().get(peer)
            if health is not None and health.reason is not None and health.failures:
                reason, advice = health.reason.value, ADVICE[health.reason]
                return {**view, "reason": reason, "detail": health.detail, "advice": advice, "needs_a_person": reason}
        return view

    def _known(self, name: str) -> tuple[ManagedKey, KeyRecord]:
        key, record = self.engine.keys.get(name), self.engine.world.journal.key(name)
        if key is None or record is None:
            raise NoSuchKey(name)
        return key, record

    def _change(self, name: str, event: str, change: Callable[[KeyRecord], KeyRecord]) -> None:
        key, record = self._known(name)
        now = self.engine.world.clock.now()
        told = RotationEvent(at=now, key=name, provider=key.provider.name, name=event)
        self.engine.world.journal.save(
            key=name,
            change=lambda old: replace(change(old if old is not None else record), wake_at=now),
            history=[told],
        )
        self.engine.emit(told)
        self.poke()


def _check(reason: Reason | None, detail: str) -> dict[str, Any]:
    """One line of /readyz; no reason means that all is well."""
    if reason is None:
        return {"ok": True}
    return {"ok": False, "reason": reason.value, "detail": detail, "advice": ADVICE[reason]}


def _why_no_way_back(rotation: Rotation) -> str:
    if rotation.strategy is Strategy.IN_PLACE:
        return f"{rotation.key} is issued in place: its old secret died with the new one's answer"
    if rotation.rolling_back is not None:
        return f"{rotation.key} is being rolled back already"
    return f"the old key of {rotation.key} is deleted"


def _seen_by_a_person(record: KeyRecord, consumer: str, everybody: set[str], now: datetime) -> KeyRecord:
    """A rotation that ended without this proof has it now; with the last one, the case is closed."""
    known = record.consumers.get(consumer, ConsumerFacts())
    seen = replace(known, confirmed_at=now, confirmed_version=record.vault_version, version=record.vault_version)
    consumers = {**record.consumers, consumer: seen}
    after = replace(record, consumers=consumers)
    if any(consumers.get(name, ConsumerFacts()).confirmed_version != record.vault_version for name in everybody):
        return after
    return replace(after, gap_started_at=None, failures=0, last_reason=None, last_detail="")


def _accepted(verdict: Verdict, name: str) -> None:
    reason = VERDICT_REASONS[verdict]
    if verdict is Verdict.UNREACHABLE and reason is not None:
        raise Transient(f"the broker of {name} can't be reached", reason=reason)
    if reason is not None:
        raise Permanent(f"the broker refuses this secret for {name}", reason=reason)
