"""Proof that consumers run on the new secret: the open watches of a rotation, and what they have seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from rotator.errors import Stopping
from rotator.managed import ConsumerLink, ManagedKey
from rotator.model import Order, Secret, Sighting
from rotator.ports import Clock, Watch
from rotator.reasons import Reason
from rotator.rotation import ConfirmDone, ConsumerProgress, Failed, ReconfirmDone, Rotation

# How long one wait for new evidence lasts before the stop flag is looked at again, in seconds.
_GLANCE = 0.25

WatchName = tuple[str, str, str]  # rotation, consumer, and whose secret is looked for
_BACK = "the old one"


class Evidence:
    """The watches of all rotations of this process; they only live in memory."""

    def __init__(self, clock: Clock, stop: threading.Event, vouched: Callable[[str], frozenset[str]]) -> None:
        """`vouched`: a key's name → consumers that a person has seen on the new secret (`rotator confirm`)."""
        self._clock, self._stop, self._vouched = clock, stop, vouched
        self._watches: dict[WatchName, Watch] = {}
        self._orders: dict[WatchName, str] = {}  # whose version a watch looks for
        self._lock = threading.Lock()

    def watch(
        self,
        key: ManagedKey,
        rotation: Rotation,
        link: ConsumerLink,
        secret: Callable[[], Secret | None],
        order: Order | None = None,
    ) -> None:
        """Open a consumer's watch once for this rotation and direction; one that names versions, for each restart.

        An answer to the restart before is none to this one.
        """
        name = _name(rotation, link.consumer.name)
        wanted = order.id if order is not None and link.versioned else ""
        if link.open_watch is None or (name in self._watches and self._orders.get(name, "") == wanted):
            return
        needs_secret = not link.early and not link.versioned
        watch = link.open_watch(rotation.target, secret() if needs_secret else None, order)
        with self._lock:
            before = self._watches.pop(name, None)
            self._watches[name], self._orders[name] = watch, wanted
        if before is not None:
            before.close()

    def by_themselves(self, key: ManagedKey, rotation: Rotation) -> frozenset[str]:
        """Who was seen on the new secret though nobody restarted it: it crashed, and came up after the promote.

        Only where the watch knows the consumer by its client id, and the username is a new one.
        """
        new = rotation.new_identity
        if new is None or new.username == rotation.identity.username:
            return frozenset()
        known = {link.consumer.name for link in key.consumers if link.identified and not link.periodic}
        found = set()
        for name in (c.name for c in rotation.consumers if c.name in known and not c.touched):
            watch = self._watches.get((rotation.id, name, new.username))
            if watch is not None and watch.sightings():
                found.add(name)
        return frozenset(found)

    def forget(self, rotation: Rotation) -> None:
        """Close all watches of a rotation."""
        with self._lock:
            ours = [name for name in self._watches if name[0] == rotation.id]
            closing = [self._watches.pop(name) for name in ours]
            for name in ours:
                self._orders.pop(name, None)
        for watch in closing:
            watch.close()

    def confirm(self, key: ManagedKey, rotation: Rotation) -> ConfirmDone:
        """Wait until each consumer was seen on the secret, after the promote and after its restart."""
        links = {link.consumer.name: link for link in key.consumers if link.open_watch is not None}
        asked = (c for c in rotation.consumers if c.restarted_at is not None and not c.idle)
        pending = {c.name: c for c in asked if c.name in links and c.seen_at is None}
        blind = [name for name in pending if _name(rotation, name) not in self._watches]
        word = self._vouched(key.name) if rotation.rolling_back is None else frozenset()
        if blind and not set(blind) <= word:
            lost = Failed(reason=Reason.EVIDENCE_LOST, detail=f"not watched while they restarted: {', '.join(blind)}")
            return ConfirmDone(seen=(), unseen=blind, failed=lost)
        limit = max((links[name].timeout for name in pending), default=timedelta(0))
        seen = self._wait(key, rotation, pending, links, limit)
        died = self._died_at(rotation)
        gaps = [(name, gap) for name in seen if (gap := self._gap(rotation, name, seen[name], died)) is not None]
        # A watch that was blind proves nothing either way: its consumer is not restarted again because of that.
        missing = {name: self._watches[_name(rotation, name)].healthy() for name in pending.keys() - seen.keys()}
        return ConfirmDone(
            seen=[(name, sighting.at) for name, sighting in seen.items()],
            unseen=[name for name, why in missing.items() if not why],
            died_at=died,
            gaps=gaps,
            failed=_not_confirmed(missing) if missing else None,
        )

    def so_far(self, key: ManagedKey, rotation: Rotation) -> list[tuple[str, datetime]]:
        """Who was restarted, and seen since; nobody is waited for."""
        links = {link.consumer.name: link for link in key.consumers if link.open_watch is not None}
        seen: list[tuple[str, datetime]] = []
        taken: set[str] = set()
        for progress in rotation.consumers:
            if progress.restarted_at is None or progress.name not in links:
                continue
            if (sighting := self._evidence(rotation, progress, links[progress.name], taken)) is not None:
                seen.append((progress.name, sighting.at))
                taken.add(sighting.client_id)
        return seen

    def reconfirm(self, key: ManagedKey, rotation: Rotation) -> ReconfirmDone | Failed:
        """Does every consumer still run, now that the old secret is useless?

        A heartbeat must come anew. A client that the broker cut off must have come back. Who can't be watched any more,
        since the daemon was restarted, is restarted to prove it.
        """
        links = {link.consumer.name: link for link in key.consumers if link.open_watch is not None}
        progress = {c.name: c for c in rotation.consumers if c.name in links and not c.idle}
        blind = [name for name in progress if _name(rotation, name) not in self._watches]
        if blind:
            return ReconfirmDone(blind=blind)
        since = rotation.deactivated_at or rotation.step_since or rotation.started_at
        deadline = (
            self._clock.monotonic()
            + max((links[name].timeout for name in progress), default=timedelta(0)).total_seconds()
        )
        while True:
            lost = [name for name in progress if not self._alive(rotation, name, links[name], since)]
            if not lost:
                return ReconfirmDone()
            if self._clock.monotonic() >= deadline:
                blindness = {name: self._watches[_name(rotation, name)].healthy() for name in lost}
                failed = _not_confirmed(blindness)
                return replace(failed, reason=Reason.EVIDENCE_LOST) if all(blindness.values()) else failed
            self._watches[_name(rotation, lost[0])].wait(_GLANCE)
            if self._stop.is_set():
                raise Stopping

    def _alive(self, rotation: Rotation, name: str, link: ConsumerLink, since: datetime) -> bool:
        watch = self._watches[_name(rotation, name)]
        sightings = watch.sightings()
        if link.periodic:
            return any(sighting.at > since for sighting in sightings)
        losses = [loss.at for loss in watch.losses() if loss.at > since]
        return not losses or any(sighting.at > max(losses) for sighting in sightings)

    def _wait(
        self,
        key: ManagedKey,
        rotation: Rotation,
        pending: Mapping[str, ConsumerProgress],
        links: Mapping[str, ConsumerLink],
        limit: timedelta,
    ) -> dict[str, Sighting]:
        deadline = self._clock.monotonic() + limit.total_seconds()
        seen: dict[str, Sighting] = {}
        taken: set[str] = set()
        while pending.keys() - seen.keys() and self._clock.monotonic() < deadline:
            for name in pending.keys() - seen.keys():
                if (sighting := self._evidence(rotation, pending[name], links[name], taken)) is not None:
                    seen[name] = sighting
                    taken.add(sighting.client_id)
            if unseen := pending.keys() - seen.keys():
                # a person's word was given for the new secret, not for the old one
                for name in unseen & (self._vouched(key.name) if rotation.rolling_back is None else frozenset()):
                    seen[name] = Sighting(at=self._clock.now(), detail="a person has seen it")
            if unseen := pending.keys() - seen.keys():
                self._watches[_name(rotation, next(iter(unseen)))].wait(_GLANCE)
                if self._stop.is_set():
                    raise Stopping
        return seen

    def _evidence(
        self, rotation: Rotation, progress: ConsumerProgress, link: ConsumerLink, taken: set[str]
    ) -> Sighting | None:
        watch = self._watches.get(_name(rotation, progress.name))
        since = progress.restarted_at or rotation.promoted_at
        for sighting in watch.sightings() if watch is not None else ():
            fresh = since is None or sighting.at >= since
            if fresh and (link.identified or not sighting.client_id or sighting.client_id not in taken):
                return sighting
        return None

    def _died_at(self, rotation: Rotation) -> datetime | None:
        """When the old secret died: when the broker cut its sessions off, if that was seen, else at the answer.

        None where it did not die (replace, and on the way back).
        """
        call, restarts = rotation.calling_since, [c.restarted_at for c in rotation.consumers if c.restarted_at]
        if rotation.died_at is None or rotation.rolling_back is not None:
            return None
        if call is None or rotation.answered_at is None:
            return rotation.answered_at
        if rotation.died_at < call:
            return rotation.died_at  # an earlier call of this rotation killed it
        until = min(restarts, default=self._clock.now())
        watches = [watch for name, watch in self._watches.items() if name[0] == rotation.id]
        cuts = [loss.at for watch in watches for loss in watch.losses() if call <= loss.at < until]
        return min(cuts, default=rotation.answered_at)

    def _gap(self, rotation: Rotation, name: str, seen: Sighting, died: datetime | None) -> float | None:
        """Seconds from the old secret's death to the first evidence of this consumer on the new one."""
        watch = self._watches.get(_name(rotation, name))
        if died is None or watch is None:
            return None
        same = (s for s in watch.sightings() if s.at > died and s.client_id == seen.client_id)
        first = next(same, seen) if seen.client_id else seen
        return max(0.0, (first.at - died).total_seconds())


def _name(rotation: Rotation, consumer: str) -> WatchName:
    return (rotation.id, consumer, rotation.target.username if rotation.rolling_back is None else _BACK)


def _not_confirmed(missing: Mapping[str, str]) -> Failed:
    blind = next((why for why in missing.values() if why), "")
    names = ", ".join(sorted(missing))
    return Failed(
        reason=Reason.CONSUMER_NOT_CONFIRMED,
        # the names first: behind "secret:" the log would take them for one, and put stars in their place
        detail=f"{names}: not seen on the new secret" + (f" (the watch was blind: {blind})" if blind else ""),
    )
