"""The steps of a rotation as they are done to the world: each takes the record and returns an outcome.

Nothing here decides what comes next; `lifecycle` does. Nothing here writes the journal; `engine` does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rotator.errors import Conflict, Permanent, RotatorError, Stopping, Transient, UnknownOutcome
from rotator.journal.seal import Fingerprints, Seal
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import later
from rotator.lifecycle import (
    ConfirmDone,
    ConsumerProgress,
    DeliverDone,
    Failed,
    FinishDone,
    LookDone,
    Outcome,
    PreflightDone,
    ProbeDone,
    PromoteDone,
    RestartDone,
    Rotation,
    SettleDone,
)
from rotator.managed import ConsumerLink, ManagedKey
from rotator.model import Secret, Sighting, Step, Ticket, UpstreamKey
from rotator.ports import Clock, Prober, Store, Watch
from rotator.reasons import Reason

# How long one wait for new evidence lasts before the stop flag is looked at again, in seconds.
_GLANCE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that the steps act on."""

    clock: Clock
    store: Store
    prober: Prober
    journal: SqliteJournal
    seal: Seal
    fingerprints: Fingerprints
    stop: threading.Event  # set when the grace of a shutdown is over
    on_conflict_take_over: bool = False


class Steps:
    """Runs steps, and keeps what only lives in memory between them: open watches and unsealed secrets."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._watches: dict[tuple[str, str], Watch] = {}
        self._secrets: dict[str, Secret] = {}
        self._lock = threading.Lock()

    def run(self, step: Step, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Do one step. `ISSUE` is not among them: the engine does it, since its answer and its seal are one commit.

        Raises: RotatorError.
        """
        steps: dict[Step, Callable[[ManagedKey, Rotation], Outcome]] = {
            Step.PREFLIGHT: self._preflight,
            Step.LOOK: self._look,
            Step.PROBE: self._probe,
            Step.PROMOTE: self._promote,
            Step.DELIVER: lambda _key, _rotation: DeliverDone(),
            Step.RESTART: self._restart,
            Step.CONFIRM: self._confirm,
            Step.SETTLE: self._settle,
            Step.FINISH: self._finish,
        }
        return steps[step](key, rotation)

    def remember(self, rotation: Rotation, secret: Secret) -> None:
        """Keep a secret in memory, so that the steps after the answer need not open the seal."""
        with self._lock:
            self._secrets[rotation.id] = secret

    def forget(self, rotation: Rotation) -> None:
        """Close and drop what this rotation kept in memory."""
        with self._lock:
            self._secrets.pop(rotation.id, None)
            closing = [self._watches.pop(name) for name in list(self._watches) if name[0] == rotation.id]
        for watch in closing:
            watch.close()

    def secret(self, rotation: Rotation) -> Secret:
        """The secret of a rotation, from memory or from the seal.

        Raises: Permanent SEAL_BROKEN.
        """
        with self._lock:
            known = self._secrets.get(rotation.id)
        if known is not None:
            return known
        row = self._world.journal.sealed(rotation.id)
        if row is None:
            raise Permanent("the journal holds no sealed secret for this rotation", reason=Reason.SEAL_BROKEN)
        plain = self._world.seal.open(row.data_key, row.sealed, bound_to=bound_to(rotation))
        secret = Secret(json.loads(plain)["secret"])
        self.remember(rotation, secret)
        return secret

    # --- the steps -------------------------------------------------------------------------------------------

    def _preflight(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Check what can't be undone first (rule 8)."""
        world = self._world
        upstream = find(key.provider.list_keys(), rotation.identity.id)
        if upstream is None:
            raise Permanent(
                f"{key.provider.name} does not list the key {rotation.identity.id}", reason=Reason.KEY_UNKNOWN
            )
        if upstream.problem is not None:
            raise Permanent(f"{key.provider.name}: {upstream.problem.value}", reason=upstream.problem)
        world.store.preflight(key.path)
        ours = key.ours(world.store.read(key.path).data)
        for link in key.consumers:
            link.consumer.preflight()
        for link in key.consumers:
            if link.early:
                self._watch(key, rotation, link)
        return PreflightDone(issued_before=upstream.issued_at, expected=world.fingerprints.of(ours))

    def _look(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Did the call whose answer never came happen? `issuedAt` says so (rule 9)."""
        upstream = find(key.provider.list_keys(), rotation.identity.id)
        if upstream is None:
            raise Permanent(f"{key.provider.name} no longer lists the key", reason=Reason.KEY_UNKNOWN)
        return LookDone(happened=_moved(upstream.issued_at, rotation))

    def _probe(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        if key.probe is None:
            return ProbeDone(verdict=None)
        result = self._world.prober.probe(key.probe(rotation.identity, self.secret(rotation)))
        return ProbeDone(verdict=result.verdict, detail=result.detail)

    def _promote(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Write the new fields by `cas`, unless somebody else changed ours since preflight (rule 3)."""
        world = self._world
        fields = key.rendered(rotation.identity, self.secret(rotation), expires_at=rotation.new_expires_at)
        ours = key.ours(world.store.read(key.path).data)
        changed = rotation.expected is not None and world.fingerprints.of(ours) != rotation.expected
        if changed and ours != fields and not world.on_conflict_take_over:
            raise Conflict(f"somebody else changed our fields at {key.path}", reason=Reason.VAULT_CONFLICT)
        expected = {name: value if isinstance(value := ours.get(name), str) else None for name in fields}
        take_over = world.on_conflict_take_over
        version = world.store.put(key.path, fields, expected=None if take_over else expected)
        return PromoteDone(version=version, expected=world.fingerprints.of(fields))

    def _restart(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Restart all consumers at once: in place they are down from the answer on."""
        links = {link.consumer.name: link for link in key.consumers}
        todo = [links[c.name] for c in rotation.consumers if c.restarted_at is None and c.name in links]
        if not todo:
            return RestartDone(tickets=())
        for link in todo:
            self._watch(key, rotation, link)
        with ThreadPoolExecutor(max_workers=len(todo), thread_name_prefix=f"restart-{key.name}") as pool:
            results = list(pool.map(self._restart_one, todo))
        tickets = [result for result in results if isinstance(result, Ticket)]
        errors = [result for result in results if not isinstance(result, Ticket)]
        return RestartDone(tickets=tickets, failed=failure(errors[0]) if errors else None)

    def _restart_one(self, link: ConsumerLink) -> Ticket | RotatorError:
        began = self._world.clock.now()
        try:
            ticket = link.consumer.restart()
            # A fast consumer has connected before its restart is reported, so a connect counts from the beginning; a
            # heartbeat may still be the old process's until the end.
            return replace(ticket, restarted_at=self._world.clock.now() if link.periodic else began)
        except Stopping:
            raise
        except RotatorError as exc:
            return exc

    def _confirm(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Wait until each consumer was seen on the new secret, after the promote and after its restart."""
        links = {link.consumer.name: link for link in key.consumers if link.open_watch is not None}
        pending = {c.name: c for c in rotation.consumers if c.name in links and c.seen_at is None}
        blind = [name for name in pending if (rotation.id, name) not in self._watches]
        if blind:
            lost = Failed(reason=Reason.EVIDENCE_LOST, detail=f"not watched while they restarted: {', '.join(blind)}")
            return ConfirmDone(seen=(), unseen=blind, failed=lost)
        limit = max((links[name].timeout for name in pending), default=timedelta(0))
        deadline = self._world.clock.monotonic() + limit.total_seconds()
        seen: dict[str, Sighting] = {}
        taken: set[str] = set()
        while pending.keys() - seen.keys() and self._world.clock.monotonic() < deadline:
            for name in pending.keys() - seen.keys():
                if (sighting := self._evidence(rotation, pending[name], links[name], taken)) is not None:
                    seen[name] = sighting
                    taken.add(sighting.client_id)
            if unseen := pending.keys() - seen.keys():
                self._watches[rotation.id, next(iter(unseen))].wait(_GLANCE)
                if self._world.stop.is_set():
                    raise Stopping
        died = self._died_at(rotation)
        gaps = [(name, gap) for name in seen if (gap := self._gap(rotation, name, seen[name], died)) is not None]
        # A watch that was blind proves nothing either way: its consumer is not restarted again because of that.
        missing = {name: self._watches[rotation.id, name].healthy() for name in pending.keys() - seen.keys()}
        failed = _not_confirmed(missing) if missing else None
        return ConfirmDone(
            seen=[(name, sighting.at) for name, sighting in seen.items()],
            unseen=[name for name, blind in missing.items() if not blind],
            died_at=died,
            gaps=gaps,
            failed=failed,
        )

    def _settle(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Did the restarted consumers stay up?"""
        links = {link.consumer.name: link for link in key.consumers}
        confirmed: list[str] = []
        crashed: list[str] = []
        failed: Failed | None = None
        for progress in rotation.consumers:
            if progress.name not in links or progress.ticket is None:
                continue
            try:
                links[progress.name].consumer.check(progress.ticket)
            except RotatorError as exc:
                crashed.append(progress.name)
                failed = failure(exc)
            else:
                confirmed.append(progress.name)
        return SettleDone(confirmed=confirmed, crashed=crashed, failed=failed)

    def _finish(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """A provider `issuedAt` later than our answer's means that somebody issued after us (rule 4)."""
        upstream = find(key.provider.list_keys(), rotation.identity.id)
        theirs = upstream.issued_at if upstream is not None else None
        return FinishDone(issued_elsewhere=later(theirs, rotation.new_issued_at))

    # --- evidence --------------------------------------------------------------------------------------------

    def _watch(self, key: ManagedKey, rotation: Rotation, link: ConsumerLink) -> None:
        """Open a consumer's watch once for this rotation."""
        name = (rotation.id, link.consumer.name)
        if link.open_watch is None or name in self._watches:
            return
        secret = None if link.early else self.secret(rotation)
        watch = link.open_watch(rotation.identity, secret)
        with self._lock:
            self._watches[name] = watch

    def _evidence(
        self, rotation: Rotation, progress: ConsumerProgress, link: ConsumerLink, taken: set[str]
    ) -> Sighting | None:
        since = progress.restarted_at or rotation.promoted_at
        for sighting in self._watches[rotation.id, progress.name].sightings():
            fresh = since is None or sighting.at >= since
            if fresh and (link.identified or not sighting.client_id or sighting.client_id not in taken):
                return sighting
        return None

    def _died_at(self, rotation: Rotation) -> datetime | None:
        """When the old secret died: when the broker cut its sessions off, if that was seen, else at the answer."""
        call, restarts = rotation.calling_since, [c.restarted_at for c in rotation.consumers if c.restarted_at]
        if call is None or rotation.answered_at is None:
            return rotation.answered_at
        if rotation.died_at is not None and rotation.died_at < call:
            return rotation.died_at  # an earlier call of this rotation killed it
        until = min(restarts, default=self._world.clock.now())
        watches = [watch for name, watch in self._watches.items() if name[0] == rotation.id]
        cuts = [loss.at for watch in watches for loss in watch.losses() if call <= loss.at < until]
        return min(cuts, default=rotation.answered_at)

    def _gap(self, rotation: Rotation, name: str, seen: Sighting, died: datetime | None) -> float | None:
        """Seconds from the old secret's death to the first evidence of this consumer on the new one."""
        if died is None:
            return None
        watch = self._watches[rotation.id, name]
        same = (s for s in watch.sightings() if s.at > died and s.client_id == seen.client_id)
        first = next(same, seen) if seen.client_id else seen
        return max(0.0, (first.at - died).total_seconds())


def bound_to(rotation: Rotation) -> str:
    """What a sealed blob is bound to: its key and its rotation."""
    return f"{rotation.key}/{rotation.id}"


def find(listed: Iterable[UpstreamKey], id: str) -> UpstreamKey | None:
    """The key with this id in a provider's list."""
    return next((upstream for upstream in listed if upstream.id == id), None)


def failure(error: RotatorError) -> Failed:
    """An adapter's error as the machine's outcome; the delay is the other side's own, if it named one."""
    asked = error.retry_after if isinstance(error, Transient) else None
    return Failed(
        reason=error.reason,
        detail=error.message,
        delay=asked or timedelta(0),
        permanent=isinstance(error, Permanent),
        unknown=isinstance(error, UnknownOutcome),
    )


def _moved(theirs: datetime | None, rotation: Rotation) -> bool:
    if theirs is None:
        return False
    if rotation.issued_before is None:
        return rotation.calling_since is not None and theirs >= rotation.calling_since - timedelta(seconds=1)
    return theirs > rotation.issued_before


def _not_confirmed(missing: Mapping[str, str]) -> Failed:
    blind = next((why for why in missing.values() if why), "")
    names = ", ".join(sorted(missing))
    return Failed(
        reason=Reason.CONSUMER_NOT_CONFIRMED,
        detail=f"not seen on the new secret: {names}" + (f" (the watch was blind: {blind})" if blind else ""),
    )
