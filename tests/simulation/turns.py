"""Whose restart it is in a simulated year: canaries, batches, windows, deliveries, and the way back of *replace*."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rotator.model import RotationEvent, Step, Strategy
from rotator.policy import open_until
from rotator.rotation import ConsumerPlan, Rotation
from simulation.facts import SLACK, Facts, Violation
from simulation.fleet import LIFE, Fleet, Reader, SimKey


@dataclass
class Turn:
    """How far the consumers of one key are in its newest rotation."""

    rotation: Rotation | None = None  # as it was written last
    begun: set[str] = field(default_factory=set)  # consumers whose restart on the way forward was written down
    away: set[str] = field(default_factory=set)  # restarted, and not proven
    proven: set[str] = field(default_factory=set)
    down: set[str] = field(default_factory=set)  # some of them did not stay up, so that they are restarted at once


class Turns:
    """Raises a Violation where somebody is restarted out of turn, or onto another secret than Vault's."""

    def __init__(self, fleet: Fleet, facts: Mapping[str, Facts]) -> None:
        self._fleet, self._facts = fleet, facts
        self._turns = {name: Turn() for name in fleet.keys}
        self.restarts = self.in_batches = self.on_the_way_back = self.late = 0
        for consumer in fleet.consumers.values():
            consumer.on_restart = self.restarted

    def noted(self, rotation: Rotation) -> None:
        """The journal holds this now."""
        turn = self._turns[rotation.key]
        turn.rotation = rotation
        if rotation.rolling_back is None:
            turn.begun |= {consumer.name for consumer in rotation.consumers if consumer.in_turn}

    def heard(self, event: RotationEvent) -> None:
        """A rotation begins, or who was restarted is proven."""
        if event.name == "rotation_started":
            self._turns[event.key] = Turn()
        elif event.name == "step" and event.step is Step.SETTLE:
            turn = self._turns[event.key]
            if event.result != "ok":
                turn.down = turn.proven | turn.away
                return
            turn.proven |= turn.away
            turn.away, turn.down = set(), set()
        elif event.name == "step" and event.step is Step.DELIVER and event.detail:
            self.late += 1

    def restarted(self, reader: Reader, name: str) -> None:
        """The engine has restarted a consumer for this key."""
        key, turn = self._fleet.keys[name], self._turns[name]
        self.restarts += 1
        self._runs_on_ours(key, reader)
        rotation = turn.rotation
        if rotation is None or not any(c.name == reader.name and c.in_turn for c in rotation.consumers):
            raise Violation("written down first", name, f"{reader.name} is restarted, and no intent was written")
        if key.strategy is Strategy.REPLACE:
            if rotation.rolling_back is not None:
                self.on_the_way_back += 1
                if reader.name not in turn.begun:
                    words = f"{reader.name} is restarted on the way back, and never was on the way forward"
                    raise Violation("only who was touched", name, words)
            elif not rotation.restart_only and not self._dying(rotation):
                self._in_turn(key, turn, rotation, reader.name)
        turn.away.add(reader.name)

    def _runs_on_ours(self, key: SimKey, reader: Reader) -> None:
        """On what Vault holds, or what we wrote last before somebody else did."""
        versions, theirs = self._fleet.vault.paths[key.path], self._facts[key.name].theirs
        ours = next(v for number, v in reversed(list(enumerate(versions, 1))) if number not in theirs)
        wanted = {(version["username"], version["password"]) for version in (ours, versions[-1])}
        runs_on = reader.runs(key.path).runs_on
        if runs_on not in wanted:
            raise Violation("delivered first", key.name, f"{reader.name} was restarted onto {runs_on}, not {wanted}")

    def _in_turn(self, key: SimKey, turn: Turn, rotation: Rotation, name: str) -> None:
        plans = {plan.name: plan for plan in key.managed.limits.plans}
        if not plans or name in turn.down:
            return
        self.in_batches += 1
        away = turn.away - turn.down | {name}
        limits = [most for one in away if (most := plans[one].max_unavailable) is not None]
        if limits and len(away) > min(limits):
            raise Violation("max_unavailable", key.name, f"{sorted(away)} are away at once, of at most {min(limits)}")
        canaries = {plan.name for plan in plans.values() if plan.canary} - turn.proven
        if canaries and name not in canaries:
            raise Violation("canaries first", key.name, f"{name} is restarted before {sorted(canaries)} are proven")
        if name not in turn.away and not rotation.forced:
            self._in_its_window(key, plans[name])

    def _in_its_window(self, key: SimKey, plan: ConsumerPlan) -> None:
        now = self._fleet.world.clock.true + self._fleet.world.clock.error
        grown = [replace(window, duration=window.duration + SLACK) for window in plan.windows]
        if grown and not any(open_until(window, now) is not None for window in grown):
            raise Violation("windows", key.name, f"{plan.name} is restarted at {now}, outside its windows")

    def _dying(self, rotation: Rotation) -> bool:
        """Whether the old secret is near its end by any clock, so that everybody is restarted at once."""
        clock, ends = self._fleet.world.clock, rotation.expired_before
        return ends is not None and clock.true + abs(clock.error) + SLACK >= ends - LIFE * 0.05
