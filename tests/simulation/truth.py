"""What is true in the simulated world, beside what the engine believes; the design's rules, checked at each event."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from rotator.journal.sqlite import Blob, Erase
from rotator.model import Result, RotationEvent, Strategy, Verdict
from rotator.reasons import Reason
from rotator.rotation import Rotation
from simulation.facts import SLACK, Facts, Violation
from simulation.fleet import AGE, GRACE, JITTER, LIFE, NOTE, Fleet, SimKey
from simulation.turns import Turns

# How old the checks before a call may be (rule 8): a consumer that others restart may be waited for.
FRESH = timedelta(hours=1)


class Truth:
    """Follows the world, and raises a Violation where a rule is broken."""

    def __init__(self, fleet: Fleet, tell: Callable[[str], None]) -> None:
        self.fleet, self._tell = fleet, tell
        self.facts = {name: Facts(current_ids={key.family}) for name, key in fleet.keys.items()}
        self.journal_down: Callable[[], bool] = lambda: False  # neither journal nor spool takes an answer
        self.restores = False  # `on_drift: restore`
        self.effective = self.lost = self.promoted = self.ended = self.restored = 0
        self.turns = Turns(fleet, self.facts)
        fleet.vault.on_write = self.wrote
        fleet.on_probe = self.probed

    @property
    def now(self) -> datetime:
        return self.fleet.world.clock.true

    # --- issuing ---------------------------------------------------------------------------------------------

    def may_issue(self, key: SimKey, id: str) -> None:
        """An issue call arrives at the platform: is there any need for it, and was everything looked at?"""
        facts, held = self.facts[key.name], key.platform.keys[id]
        error = self.fleet.world.clock.error
        chosen = key.strategy is Strategy.CHOSEN
        if chosen and not facts.sealed:
            raise Violation("sealed first", key.name, "a chosen secret is set before it is sealed")
        if chosen and self._repeats(key, held.secret):
            return
        if facts.unlooked and not chosen:
            raise Violation("look first", key.name, "issued again before the provider was looked at")
        checked = facts.preflight_at is not None and self.now - facts.preflight_at < FRESH
        if not (checked or facts.lost or (chosen and facts.unknown) or held.secret in facts.refused):
            raise Violation("preflight first", key.name, f"the last preflight was at {facts.preflight_at}")
        age = self.now - held.issued_at + abs(error) + JITTER + SLACK
        due = age >= AGE and held.secret not in facts.replaced
        last = age >= LIFE * 0.95 and held.secret not in facts.chances
        if not (facts.lost or held.secret in facts.refused or due or last or facts.asked):
            raise Violation("issued without need", key.name, f"the secret is {self.now - held.issued_at} old")
        if facts.lost:
            facts.lost -= 1
        elif held.secret not in facts.refused:
            if due:
                facts.replaced.add(held.secret)
            elif last:
                facts.chances.add(held.secret)
            else:
                facts.asked -= 1

    def _repeats(self, key: SimKey, held: str) -> bool:
        """Whether a chosen secret is set that was set before: on the way back, or since no answer came."""
        setting = key.platform.setting
        if setting == held:
            self.facts[key.name].lost = 0
        return setting == held or any(setting == version["password"] for version in self.fleet.vault.paths[key.path])

    def issued(self, key: SimKey) -> None:
        """The call had its effect."""
        self.effective += 1
        self._tell(f"{key.name}: the platform has issued a secret")

    def answer_lost(self, key: SimKey, *, unknown: bool) -> None:
        """The call had its effect, and its answer never came, or held nothing."""
        facts = self.facts[key.name]
        facts.lost += 1
        facts.unlooked = facts.unlooked or unknown
        self.lost += 1
        self._tell(f"{key.name}: the answer is lost")

    def answered(self, key: SimKey, secret: str) -> None:
        """The answer is in the process's memory."""
        facts = self.facts[key.name]
        facts.unknown = False
        if key.strategy is Strategy.CHOSEN:
            facts.kept.add(secret)
            if all(secret != version["password"] for version in self.fleet.vault.paths[key.path]):
                facts.waiting.add(secret)
        else:
            facts.in_hand = secret

    def looked(self, platform: str) -> None:
        """The provider's list was answered."""
        for key in self.fleet.keys.values():
            if key.platform.name == platform:
                self.facts[key.name].unlooked = False

    def preflighted(self, key: SimKey) -> None:
        """Vault said that this path could be written."""
        facts = self.facts[key.name]
        facts.preflight_at, facts.preflight_version = self.now, len(self.fleet.vault.paths[key.path])

    def died(self) -> None:
        """The process is gone, and what it held in memory."""
        for name, facts in self.facts.items():
            if facts.in_hand is not None:
                facts.in_hand = None
                self.answer_lost(self.fleet.keys[name], unknown=True)

    # --- the journal -----------------------------------------------------------------------------------------

    def saved(self, rotation: Rotation, blob: Blob | Erase | None) -> None:
        """The journal (or the spool) holds this now."""
        facts = self.facts[rotation.key]
        self.turns.noted(rotation)
        if isinstance(blob, Blob) and rotation.sealed:
            facts.sealed = True
            if facts.in_hand is not None:
                facts.kept.add(facts.in_hand)
                facts.waiting.add(facts.in_hand)
                facts.in_hand = None
        if isinstance(blob, Erase):
            self._erased(self.fleet.keys[rotation.key], facts, rotation)
        if rotation.finished_at is not None:
            facts.sealed = False
            if rotation.result is not Result.SUCCEEDED and rotation.reason is None:
                raise Violation("every failure has a name", rotation.key, f"{rotation.result} without a reason")

    def _erased(self, key: SimKey, facts: Facts, rotation: Rotation) -> None:
        live = {held.secret for held in key.platform.family(key.family) if held.active}
        if lost := facts.waiting & live - key.platform.broken:
            words = f"{sorted(lost)} is valid, was never in Vault, and is erased by a rotation that {rotation.result}"
            raise Violation("no answer is lost", key.name, words)
        facts.waiting.clear()

    # --- Vault and the broker --------------------------------------------------------------------------------

    def wrote(self, path: str) -> None:
        """The engine wrote a version."""
        key = self.fleet.by_path[path]
        facts, versions = self.facts[key.name], self.fleet.vault.paths[path]
        number, after = len(versions) - 1, versions[-1]
        before = self.fleet.vault.held(path, number).data or {}
        secret = after["password"]
        if before.get(NOTE) != after.get(NOTE):
            words = f"a field of somebody else's went back to {after.get(NOTE)}"
            raise Violation("nobody is overwritten", key.name, words)
        unseen = number in facts.theirs and number > max(facts.preflight_version, facts.accepted_version)
        refused = before.get("password") in {None, *facts.refused}  # or taken away again
        if unseen and not refused and not self._restores(key, after):
            raise Violation("nobody is overwritten", key.name, "what somebody wrote into our fields is overwritten")
        older = any(secret == version["password"] for version in versions[:-1])
        if secret not in facts.kept and not older and not self.journal_down():
            raise Violation("sealed first", key.name, f"{secret} is promoted before it is sealed")
        if key.strategy is Strategy.REPLACE and secret in facts.refused:
            raise Violation("nothing broken is promoted", key.name, f"the broker refused {secret}")
        facts.waiting.discard(secret)
        facts.current_ids.add(after["username"])
        facts.promoted_at = self.now
        self.promoted += 1
        self._tell(f"{key.name}: Vault has version {len(versions)}: {after['username']} {secret}")

    def _restores(self, key: SimKey, after: dict[str, str]) -> bool:
        """Whether this is what was there before and works, where somebody asked to have that put back."""
        older = any(after["password"] == version["password"] for version in self.fleet.vault.paths[key.path][:-1])
        return self.restores and older and key.platform.accepts(after["username"], after["password"])

    def probed(self, key: SimKey, secret: str, verdict: Verdict) -> None:
        """The broker was asked."""
        change = self.facts[key.name].refused
        (change.add if verdict is Verdict.REFUSED else change.discard)(secret)

    # --- retiring --------------------------------------------------------------------------------------------

    def deactivating(self, key: SimKey, id: str) -> None:
        """An old key is about to be made useless."""
        facts = self.facts[key.name]
        self._may_go(key, id)
        if not key.consumers and not facts.hurried:
            self._grace_is_over(key, id, facts.promoted_at)
        facts.deactivated.setdefault(id, self.now)
        self._tell(f"{key.name}: {id} is deactivated")

    def deleting(self, key: SimKey, id: str) -> None:
        """A key is about to be deleted."""
        facts = self.facts[key.name]
        if id not in key.platform.keys:
            return
        self._may_go(key, id)
        if id in facts.current_ids and not facts.hurried and self._was_used(key, id):
            since = facts.deactivated.get(id) if key.platform.deactivates and key.consumers else facts.promoted_at
            self._grace_is_over(key, id, since)
        self._tell(f"{key.name}: {id} is deleted")

    def _was_used(self, key: SimKey, id: str) -> bool:
        """Whether a key is the old one, not one that a rotation made and took back."""
        return id == key.family or key.platform.keys[id].issued_at < self.now - AGE / 2

    def _may_go(self, key: SimKey, id: str) -> None:
        if self.fleet.vault.current(key.path)["username"] == id:
            raise Violation("the old one goes last", key.name, f"Vault's current version is of {id}")
        for consumer in key.consumers:
            source = consumer.runs(key.path)
            if source.runs_on[0] == id:
                raise Violation("the old one goes last", key.name, f"{consumer.name} still runs on {id}")
            if not any(username == source.runs_on[0] for username, _ in consumer.connects):
                words = f"{consumer.name} was never let in on {source.runs_on[0]}"
                raise Violation("the old one goes last", key.name, words)

    def _grace_is_over(self, key: SimKey, id: str, since: datetime | None) -> None:
        held = key.platform.keys[id]
        ended = held.expires_at is not None and self.now + SLACK >= held.expires_at
        if since is None or (not ended and self.now - since < GRACE - SLACK):
            raise Violation("the grace period", key.name, f"{id} is retired {self.now} with grace since {since}")

    # --- what is told ----------------------------------------------------------------------------------------

    def heard(self, event: RotationEvent) -> None:
        """Every failure has a name, and none is unforeseen (rule 7)."""
        self.turns.heard(event)
        if event.result in {"failed", "rolled_back"} and event.reason is None and event.name != "restart":
            raise Violation("every failure has a name", event.key, f"{event.name} {event.step} has no reason")
        if event.reason is Reason.UNFORESEEN:
            frames = traceback.extract_tb(sys.exc_info()[2])[-3:]  # it is told while it is handled
            where = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
            raise Violation("unforeseen", event.key, f"{event.detail} at {where}")
        if event.name == "rotation_ended":
            self.ended += 1
        self.restored += event.name == "restored"
        self.facts[event.key].asked += event.name == "requested" and event.reason is not None  # by a restore
