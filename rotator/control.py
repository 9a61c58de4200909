"""What a person or a program may ask of the daemon; the HTTP API and the commands without a daemon share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from rotator.engine import Engine
from rotator.errors import Permanent, RotatorError, Transient
from rotator.keys import ISSUE_IN_WINDOW, ISSUE_NOW, RESUMED, Hold, KeyRecord, decide, may_be_cut_short
from rotator.managed import ManagedKey
from rotator.model import VERDICT_REASONS, KeyState, RotationEvent, Secret, Step, Verdict
from rotator.reasons import ADVICE, Reason
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
        """The last rotations, the newest first."""
        return [rotation_view(r) for r in self.engine.world.journal.recent_rotations(key=key, limit=limit)]

    def rotate(self, name: str, *, now: bool) -> dict[str, Any]:
        """Ask for a rotation: in the key's windows, or now.

        Raises: NoSuchKey.
        """
        if self.engine.observe_only:
            raise Permanent("this daemon only observes", reason=Reason.OBSERVE_MODE)
        previous = self.rotations(name, 1)
        self._change(name, "requested", lambda record: replace(record, requested=ISSUE_NOW if now else ISSUE_IN_WINDOW))
        return {"key": name, "requested": "now" if now else "in_window", "previous": previous[0] if previous else None}

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
            cleared = replace(record, paused=False, quarantine=None, not_before=None, last_chance_used=False)
            if rotating:
                return replace(cleared, requested=RESUMED)
            # a person says that what failed is mended; a consumer that was mended by hand needs no new secret
            return replace(cleared, gap_started_at=None, failures=0, last_reason=None, last_detail="")

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
                verdict=Verdict.ACCEPTED if key.probe is not None else None,
            ),
        )
        return {"key": name, "vault": {"path": key.path, "version": version}, "proven": key.probe is not None}

    def _bring(self, key: ManagedKey, record: KeyRecord, secret: Secret) -> tuple[int, dict[str, str]]:
        """Prove a secret and write it, unless somebody changes our fields meanwhile."""
        world, identity = self.engine.world, key.provider.identity(record.id)
        rotation = world.journal.open_rotation(key.name)
        if rotation is not None and not (rotation.step is Step.PREFLIGHT and may_be_cut_short(rotation)):
            raise Transient(f"{key.name} is being rotated", reason=Reason.REQUESTED, retry_after=timedelta(seconds=30))
        fields = key.rendered(identity, secret, expires_at=record.expires_at)
        ours = key.ours(world.store.read(key.path).data)
        if key.probe is not None:
            _accepted(world.prober.probe(key.probe(identity, secret)).verdict, key.name)
        expected = {name: value if isinstance(value := ours.get(name), str) else None for name in fields}
        return world.store.put(key.path, fields, expected=expected), fields

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether work is possible, and of each peer why not."""
        checks: dict[str, dict[str, Any]] = {
            name: {"ok": health.reason is None, "reason": health.reason.value, "detail": health.detail}
            if health.reason is not None
            else {"ok": True}
            for name, health in self.watcher.health().items()
        }
        for name, check in checks.items():
            hold = self.engine.holds.until(name)
            if hold is not None:
                check.update(ok=False, reason=hold[1].value, advice=ADVICE[hold[1]], next_try_at=iso(hold[0]))
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


def _accepted(verdict: Verdict, name: str) -> None:
    reason = VERDICT_REASONS[verdict]
    if verdict is Verdict.UNREACHABLE and reason is not None:
        raise Transient(f"the broker of {name} can't be reached", reason=reason)
    if reason is not None:
        raise Permanent(f"the broker refuses this secret for {name}", reason=reason)
