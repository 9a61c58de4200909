"""The person of a simulated year: looks at what asks for one, some hours later, and does what the advice says."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from rotator.control import Control
from rotator.errors import RotatorError
from rotator.keys import KeyRecord, needs_a_person, resting, state
from rotator.model import KeyState, RotationEvent
from rotator.reasons import Reason
from rotator.rotation import Rotation
from simulation.fleet import Fleet, SimKey
from simulation.truth import Truth

_ALERTS = frozenset({"quarantined", "problem", "drift", "probe", "rotation_ended", "held", "paused"})
_ISSUE_ANEW = frozenset(
    {
        Reason.VAULT_CONFLICT,
        Reason.VAULT_DRIFT,
        Reason.VAULT_DELETED,
        Reason.VAULT_DESTROYED,
        Reason.VAULT_OVERWRITTEN,
        Reason.ISSUED_ELSEWHERE,
        Reason.SECRET_REFUSED,
        Reason.ROLLBACK_IMPOSSIBLE,
        Reason.EXPIRED,
        Reason.EXPIRY_IMPLAUSIBLE,
    }
)


class Site(Protocol):
    """What the person works with."""

    control: Control

    def later(self, seconds: float, what: str, whom: str) -> None:
        """Have something done after so many seconds."""
        ...

    def tell(self, text: str) -> None:
        """Write it into the history."""
        ...

    def outage_ends(self) -> datetime | None:
        """When the last of the outages ends that are there now."""
        ...


class Person:
    """Reads alerts, and mends what only a person can mend."""

    def __init__(self, fleet: Fleet, truth: Truth, site: Site, seed: int) -> None:
        self._fleet, self._truth, self._site = fleet, truth, site
        self._dice = random.Random(f"{seed}/person")
        self._coming: set[str] = set()
        self._left_over: set[str] = set()  # keys of which two are left at the platform

    def heard(self, event: RotationEvent) -> None:
        """An alert is answered within a day."""
        if event.reason is Reason.ROLLBACK_FAILED:
            self._left_over.add(event.key)
        if event.name in _ALERTS and (event.reason is not None or event.name == "paused"):
            self._come(event.key, self._dice.uniform(600, 86_400))

    def _come(self, name: str, seconds: float) -> None:
        if name not in self._coming:
            self._coming.add(name)
            self._site.later(seconds, "person", name)

    def looks_at_all(self) -> None:
        """The dashboard shows what asks for a person, and what is paused."""
        journal = self._site.control.engine.world.journal
        now, running = journal_now(self._site.control), journal.open_rotations()
        for record in journal.all_keys():
            if record.paused or _wanted(record, running.get(record.name), now) is not None:
                self._come(record.name, 3600)

    def visits(self, name: str) -> None:
        """Look at one key; do what is advised; come again tomorrow."""
        self._coming.discard(name)
        journal = self._site.control.engine.world.journal
        record, rotation = journal.key(name), journal.open_rotation(name)
        if record is None:
            return
        reason = _wanted(record, rotation, journal_now(self._site.control))
        if reason is None and not record.paused and name not in self._left_over:
            return
        self._come(name, 86_400)
        ends = self._site.outage_ends()
        if ends is not None:
            return  # first what is broken must be mended
        try:
            self._mends(self._fleet.keys[name], record, rotation, reason)
        except RotatorError as exc:
            self._site.tell(f"{name}: a person was refused: {exc.message}")

    def _mends(self, key: SimKey, record: KeyRecord, rotation: Rotation | None, reason: Reason | None) -> None:
        self._site.tell(f"{key.name}: a person looks at {reason.value if reason else 'the pause'}")
        facts = self._truth.facts[key.name]
        if key.name in self._left_over and (rotation is None or resting(rotation)):
            self._clears_up(key, {record.id, rotation.identity.id if rotation is not None else ""})
        if reason is None and not record.paused:
            return
        if reason is Reason.KEY_INACTIVE:
            for held in key.platform.family(key.family):
                if held.id == record.id:
                    key.platform.keys[held.id] = replace(held, active=True)
            key.platform.on_change()
        for consumer in key.consumers:
            down = not consumer.runs(key.path).connected
            if down and record.gap_started_at is not None and rotation is None:
                consumer.read_anew()
        facts.asked += 1
        facts.accepted_version = len(self._fleet.vault.paths[key.path])
        anew = reason in _ISSUE_ANEW or (reason is not None and not self._works(key) and rotation is None)
        if record.paused or not anew:
            self._site.control.resume(key.name)
        if anew:
            self._site.control.rotate(key.name, now=True)
            facts.hurried = True

    def _works(self, key: SimKey) -> bool:
        data = self._fleet.vault.current(key.path)
        return key.platform.is_live(data["username"], data["password"])

    def _clears_up(self, key: SimKey, used: set[str]) -> None:
        """Neither key was retired: what Vault does not name goes, if what it names works."""
        data = self._fleet.vault.current(key.path)
        if not self._works(key):
            return
        for held in key.platform.family(key.family):
            if held.id not in used | {data["username"]}:
                self._site.tell(f"{key.name}: a person deletes {held.id}")
                del key.platform.keys[held.id]
        if len(key.platform.family(key.family)) == 1:
            self._left_over.discard(key.name)
        for consumer in key.consumers:
            consumer.read_anew()


def journal_now(control: Control) -> datetime:
    """The daemon's own time."""
    return control.engine.world.clock.now()


def _wanted(record: KeyRecord, rotation: Rotation | None, now: datetime) -> Reason | None:
    shown = state(record, rotation, now)
    if shown is KeyState.QUARANTINED and rotation is not None and rotation.quarantine is not None:
        return rotation.quarantine
    if record.quarantine is not None:
        return record.quarantine
    return needs_a_person(record, shown)
