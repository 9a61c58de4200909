"""Brings the faults of a plan to the points at which the engine touches the world."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from rotator.model import Strategy
from simulation import faults
from simulation.faults import Effect, Fault
from simulation.fleet import NOTE, Fleet, SimKey
from simulation.truth import Truth
from simulation.world import Killed

# How long a call takes that is never answered, and how long the daemon waits for a journal that refuses.
TIMEOUT, JOURNAL_PAUSE = timedelta(seconds=30), timedelta(seconds=1)


@dataclass
class Armed:
    """A fault that waits for its point."""

    fault: Fault
    left: int
    key: str = ""  # once it has struck, it stays with this key


class Site(Protocol):
    """What the strikes need of the simulation."""

    down_for: float

    def later(self, seconds: float, what: str, whom: str) -> None:
        """Have something done after so many seconds."""
        ...

    def tell(self, text: str) -> None:
        """Write it into the history."""
        ...

    def ask(self, name: str, what: str) -> None:
        """A person asks for something, as soon as the engine has finished what it is at."""
        ...


class Strikes:
    """The faults that are armed, and the peers that are away."""

    def __init__(self, fleet: Fleet, truth: Truth, site: Site) -> None:
        self._fleet, self._truth, self._site = fleet, truth, site
        self._armed: list[Armed] = []
        self._away: dict[str, tuple[datetime, str]] = {}  # peer → until when, and how it shows
        self.struck = 0
        self.keys_struck: dict[Fault, str] = {}  # and the key that each struck last
        truth.journal_down = lambda: self.spool_refuses and "journal" in self._away
        self.spool_refuses = False

    # --- from outside ----------------------------------------------------------------------------------------

    def arm(self, fault: Fault) -> None:
        """From now on it strikes where it is met; at once, if it names no point."""
        if fault.point:
            self._armed.append(Armed(fault, fault.hits, fault.key))
            return
        if fault.key and fault.key not in self._fleet.keys:
            return
        self._tell(fault, fault.key)
        match fault.effect:
            case Effect.CLOCK:
                self._site.later(0, "clock", fault.detail)
                self._site.later(fault.seconds, "clock", f"{-float(fault.detail)}")
            case Effect.OUR_FIELDS:
                self._write(self._fleet.keys[fault.key], "password", f"theirs-{self.struck}")
                self._site.later(600, "look at vault", "")
            case Effect.OUR_VERSION:
                self._take_away(self._fleet.keys[fault.key], fault.detail)
            case Effect.ELSEWHERE:
                self._renew(self._fleet.keys[fault.key])
            case Effect.ASK:
                self._site.ask(fault.key, fault.detail)

    def disarm(self) -> None:
        """What has not struck yet never does."""
        self._armed.clear()

    def outage_ends(self) -> datetime | None:
        """When the last of the outages ends that are there now."""
        self._forget_ended()
        return max((until for until, _ in self._away.values()), default=None)

    def over(self, peer: str) -> None:
        """An outage has ended: who waited outside comes in."""
        self._forget_ended()
        if peer in self._away:
            return
        name, _, platform = peer.partition(":")
        if name == "broker":
            self._fleet.platforms[platform].away = False
            self._fleet.platforms[platform].on_change()
        elif name == "slow":
            self._fleet.platforms[platform].slow = timedelta(0)
            self._fleet.platforms[platform].on_change()
        elif name == "deaf":
            self._fleet.consumers[platform].down = False
            self._fleet.consumers[platform].try_again()

    # --- at a point ------------------------------------------------------------------------------------------

    def met(self, point: str, when: str, whose: str) -> None:
        """The engine is at this point; raises what it meets there."""
        for armed in tuple(self._armed):
            fault = armed.fault
            if (
                fault.point == point
                and fault.when == when
                and (not armed.key or armed.key == self.key_of(point, whose))
            ):
                armed.key = armed.key or self.key_of(point, whose)
                armed.left -= 1
                if armed.left <= 0:
                    self._armed.remove(armed)
                self._strike(fault, point, when, whose)
        if self._away:
            self._is_away(point, when, whose)

    def _is_away(self, point: str, when: str, whose: str) -> None:
        peer = _peer(point, whose)
        held = self._away.get(peer)
        if held is None:
            return
        if held[0] <= self._fleet.world.clock.true:
            del self._away[peer]
            return
        if peer == "journal":
            self._fleet.world.clock.pass_time(JOURNAL_PAUSE)
        raise faults.away(point, when, held[1])

    def _strike(self, fault: Fault, point: str, when: str, whose: str) -> None:
        self._tell(fault, whose)
        name = self.key_of(point, whose)
        key = self._fleet.keys.get(name)
        match fault.effect:
            case Effect.KILL:
                self._site.down_for = fault.seconds
                raise Killed
            case Effect.NO_ANSWER:
                self._fleet.world.clock.pass_time(TIMEOUT)
                raise faults.no_answer()
            case Effect.BAD_ANSWER:
                raise faults.bad_answer()
            case Effect.REFUSAL:
                raise faults.refusal(point)
            case Effect.RATE_LIMIT:
                raise faults.rate_limit(point, fault.seconds)
            case Effect.AWAY:
                self._goes_away(fault.peer or _peer(point, whose), fault)
            case Effect.JOURNAL:
                self.spool_refuses = fault.detail == "spool"
                self._goes_away("journal", fault)
            case Effect.DEAF:
                self._fleet.consumers[whose].down = True
                self._lasts(f"deaf:{whose}", fault)
            case Effect.CRASH:
                raise faults.crash()
            case Effect.ASK:
                self._site.ask(name, fault.detail)
        if key is not None:
            self._strike_key(fault, key)

    def _strike_key(self, fault: Fault, key: SimKey) -> None:
        match fault.effect:
            case Effect.BROKEN_SECRET if key.consumers or key.managed.probe:  # else nobody could ever tell
                key.platform.broken.add(max(key.platform.family(key.family), key=lambda held: held.issued_at).secret)
                key.platform.on_change()
            case Effect.SLOW_BROKER:
                key.platform.slow = timedelta(seconds=float(fault.detail))
                self._lasts(f"slow:{key.platform.name}", fault)
            case Effect.THEIR_FIELD:
                self._write(key, NOTE, f"{self.struck}")
            case Effect.OUR_FIELDS:
                self._write(key, "password", f"theirs-{self.struck}")
            case Effect.OUR_VERSION:
                self._take_away(key, fault.detail)

    def _goes_away(self, peer: str, fault: Fault) -> None:
        until = self._fleet.world.clock.true + timedelta(seconds=fault.seconds)
        known = self._away.get(peer)
        if known is None or known[0] < until:
            self._away[peer] = (until, fault.detail)
        name, _, platform = peer.partition(":")
        if name == "broker":
            self._fleet.platforms[platform].away = True
            self._fleet.platforms[platform].on_change()
        self._lasts(peer, fault)

    def _lasts(self, peer: str, fault: Fault) -> None:
        self._site.later(fault.seconds, "over", peer)

    def _forget_ended(self) -> None:
        now = self._fleet.world.clock.true
        for peer in [peer for peer, (until, _) in self._away.items() if until <= now]:
            del self._away[peer]

    # --- what others do --------------------------------------------------------------------------------------

    def _write(self, key: SimKey, field: str, value: str) -> None:
        """Somebody writes a field of the path, as one does by hand."""
        vault = self._fleet.vault
        versions = vault.paths[key.path]
        versions.append({**versions[-1], field: value})  # from a copy, where the current one is gone
        if field != NOTE:
            self._truth.facts[key.name].theirs.add(len(versions))

    def _take_away(self, key: SimKey, how: str) -> None:
        """Somebody deletes or destroys the current version; consumers have their copies."""
        vault = self._fleet.vault
        vault.gone[key.path, len(vault.paths[key.path])] = how == "destroyed"
        self._site.later(600, "look at vault", "")

    def _renew(self, key: SimKey) -> None:
        """Somebody has a new secret made in the platform's portal, and tells nobody."""
        if key.strategy is Strategy.REPLACE or not key.platform.dated:
            return  # nobody could ever see it
        held = max(key.platform.family(key.family), key=lambda one: one.issued_at)
        now, secret = self._fleet.world.clock.true, f"portal-{self.struck}"
        ends = now + key.platform.lifetime if key.platform.lifetime else None
        key.platform.keys[held.id] = replace(held, secret=secret, issued_at=now, expires_at=ends)
        key.platform.on_change()
        self._site.later(900, "look at providers", "")

    def key_of(self, point: str, whose: str) -> str:
        """The name of the key that a point is about; empty where it is about several."""
        match point.partition(".")[0]:
            case "provider" | "broker":
                key = self._fleet.by_family.get(whose.partition(":")[2].partition(".")[0])
            case "vault":
                key = self._fleet.by_path.get(whose)
            case "consumer":
                key = self._fleet.readers[whose][0]
            case _:
                key = self._fleet.keys.get(whose)
        return key.name if key is not None else ""

    def _tell(self, fault: Fault, whose: str) -> None:
        self.struck += 1
        self.keys_struck[fault] = self.key_of(fault.point, whose)
        self._site.tell(f"*** {fault}: strikes {whose}")


def _peer(point: str, whose: str) -> str:
    """Who is asked at a point."""
    match point.partition(".")[0]:
        case "provider":
            return whose.partition(":")[0]
        case "broker":
            return f"broker:{whose.partition(':')[0]}"
        case "consumer":
            return whose
        case name:
            return name
