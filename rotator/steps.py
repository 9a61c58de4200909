"""The steps of a rotation as they are done to the world: each takes the record and returns an outcome.

Nothing here decides what comes next; `lifecycle` does. Nothing here writes the journal; `engine` does. The steps that
take something away (deactivate, delete, the way back) are in `retiring`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import cast

from rotator.claims import ClockSkew
from rotator.errors import Conflict, Permanent, RotatorError, Stopping, Transient, UnknownOutcome
from rotator.evidence import Evidence
from rotator.journal.seal import Fingerprints, Seal
from rotator.journal.sqlite import SqliteJournal
from rotator.managed import ConsumerLink, ManagedKey
from rotator.model import Check, Secret, Step, Strategy, Ticket, UpstreamKey, Verdict
from rotator.ports import Choosing, Clock, InPlace, Prober, Replacing, Store
from rotator.reasons import Reason
from rotator.rotation import (
    DeliverDone,
    Failed,
    LookDone,
    Outcome,
    PreflightDone,
    ProbeDone,
    PromoteDone,
    RestartDone,
    Rotation,
    SettleDone,
)


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
    skew: ClockSkew = field(default_factory=ClockSkew)


class Secrets:
    """The secrets of the rotations in flight: from memory, from the seal, or (the old ones) from Vault's versions."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._known: dict[str, Secret] = {}
        self._lock = threading.Lock()

    def remember(self, rotation: Rotation, secret: Secret) -> None:
        """Keep a secret in memory, so that the steps after the answer need not open the seal."""
        with self._lock:
            self._known[rotation.id] = secret

    def forget(self, rotation: Rotation) -> None:
        """Drop what this rotation kept in memory."""
        with self._lock:
            self._known.pop(rotation.id, None)

    def new(self, rotation: Rotation) -> Secret:
        """The secret that this rotation brings.

        Raises: Permanent SEAL_BROKEN.
        """
        with self._lock:
            known = self._known.get(rotation.id)
        if known is not None:
            return known
        row = self._world.journal.sealed(rotation.id)
        if row is None:
            raise Permanent("the journal holds no sealed secret for this rotation", reason=Reason.SEAL_BROKEN)
        plain = self._world.seal.open(row.data_key, row.sealed, bound_to=bound_to(rotation))
        secret = Secret(json.loads(plain)["secret"])
        self.remember(rotation, secret)
        return secret

    def previous(self, key: ManagedKey, rotation: Rotation) -> tuple[Secret, dict[str, str]] | None:
        """The old secret and our fields that held it, from the version that was current before the issue call.

        None where Vault no longer holds them, or holds something else under that version.
        """
        if not rotation.base_version:
            return None
        stored = self._world.store.read(key.path, rotation.base_version)
        ours = {name: value for name, value in key.ours(stored.data).items() if isinstance(value, str)}
        secret = key.secret_of(stored.data)
        if secret is None or self._world.fingerprints.of(key.ours(stored.data)) != rotation.base_print:
            return None
        return secret, ours

    def current(self, key: ManagedKey, rotation: Rotation) -> Secret:
        """The one that consumers are to run on, as things stand.

        Raises: Permanent ROLLBACK_FAILED where the old one is gone.
        """
        if rotation.rolling_back is None:
            return self.new(rotation)
        held = self.previous(key, rotation)
        if held is None:
            raise Permanent("Vault no longer holds the previous secret", reason=Reason.ROLLBACK_FAILED)
        return held[0]


class Steps:
    """Runs the steps up to the consumers' proof; `retiring.Retiring` has those after it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.secrets = Secrets(world)
        self.evidence = Evidence(world.clock, world.stop, self._vouched)

    def table(self) -> dict[Step, Callable[[ManagedKey, Rotation], Outcome]]:
        """Step → what does it. `ISSUE` and `CHOOSE` are the engine's: their effect and the seal are one commit."""
        return {
            Step.PREFLIGHT: self._preflight,
            Step.LOOK: self._look,
            Step.PROBE: self._probe,
            Step.PROMOTE: self._promote,
            Step.DELIVER: lambda _key, _rotation: DeliverDone(),
            Step.RESTART: self._restart,
            Step.CONFIRM: self.evidence.confirm,
            Step.SETTLE: self._settle,
        }

    def forget(self, rotation: Rotation) -> None:
        """Close and drop what this rotation kept in memory."""
        self.secrets.forget(rotation)
        self.evidence.forget(rotation)

    # --- the steps -------------------------------------------------------------------------------------------

    def _preflight(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Check what can't be undone first (rule 8); each check has a name, and its result is kept for `status`."""
        world, checks = self._world, _Checks()
        try:
            with checks.passed(f"{key.provider.name} lists the key"):
                upstream = find(key.provider.list_keys(), rotation.target.id)
                if upstream is None and rotation.described:
                    upstream = UpstreamKey(id=rotation.target.id)  # deleted by us, and to be made again
                if upstream is None:
                    words = f"{key.provider.name} does not list the key {rotation.target.id}"
                    raise Permanent(words, reason=Reason.KEY_UNKNOWN)
            with checks.passed("the key can be used"):
                if upstream.problem is not None:
                    raise Permanent(f"{key.provider.name}: {upstream.problem.value}", reason=upstream.problem)
            with checks.passed("Vault is unsealed, and the token may write for long enough"):
                world.store.preflight(key.path)
            with checks.passed("Vault's current version is known"):
                stored = world.store.read(key.path)
                ours = world.fingerprints.of(key.ours(stored.data))
            for link in key.consumers:
                with checks.passed(f"{link.consumer.name} can be restarted"):
                    link.consumer.preflight()
            for link in key.consumers:
                if link.early and rotation.strategy is not Strategy.REPLACE:
                    with checks.passed(f"{link.consumer.name} can be seen at its broker"):
                        self.evidence.watch(key, rotation, link, lambda: None)
        except Stopping:
            raise
        except RotatorError as exc:
            return replace(failure(exc), checks=checks.found)
        return PreflightDone(
            issued_before=upstream.issued_at,
            expired_before=upstream.expires_at,
            expected=ours,
            base_version=stored.version,
            checks=checks.found,
        )

    def _look(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Did the call whose answer never came happen? A marker, `issuedAt`, or the old secret's death say so."""
        listed = key.provider.list_keys()
        if rotation.strategy is Strategy.REPLACE:
            made = marked(listed, rotation)
            return LookDone(happened=bool(made), orphans=made, again_in=max(key.limits.propagation, LOOK_LEAST))
        upstream = find(listed, rotation.target.id)
        if upstream is None and rotation.described:
            return LookDone(happened=True)  # deleted, and not made again or under another id: make it again
        if upstream is None:
            raise Permanent(f"{key.provider.name} no longer lists the key", reason=Reason.KEY_UNKNOWN)
        if upstream.issued_at is not None:
            return LookDone(happened=_moved(upstream.issued_at, rotation))
        return self._look_by_probe(key, rotation)

    def _look_by_probe(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """A platform that dates nothing: the old secret is refused when the call happened (rule 9)."""
        wait = max(key.limits.propagation, LOOK_LEAST)
        held = self.secrets.previous(key, rotation) if key.provable else None
        if not key.provable or held is None:
            return LookDone(happened=False, again_in=wait)
        result = key.proof(self._world.prober, rotation.identity, held[0])
        if result.verdict is Verdict.UNREACHABLE and rotation.looked:
            raise Transient(f"the broker can't be asked: {result.detail}", reason=Reason.BROKER_UNREACHABLE)
        return LookDone(happened=result.verdict is Verdict.REFUSED, again_in=wait)

    def _probe(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        if not key.provable:
            return ProbeDone(verdict=None)
        result = key.proof(self._world.prober, rotation.target, self.secrets.new(rotation))
        return ProbeDone(verdict=result.verdict, detail=result.detail)

    def _promote(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Write the new fields by `cas`, unless somebody else changed ours since preflight (rule 3)."""
        secret = self.secrets.new(rotation)
        fields = key.rendered(rotation.target, secret, expires_at=rotation.new_expires_at)
        version, prints = write(self._world, key, rotation, fields)
        return PromoteDone(version=version, expected=prints)

    def _restart(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Restart all consumers at once: in place they are down from the answer on."""
        links = {link.consumer.name: link for link in key.consumers}
        todo = [links[c.name] for c in rotation.consumers if c.restarted_at is None and c.name in links]
        if not todo:
            return RestartDone(tickets=())
        for link in todo:
            self.evidence.watch(key, rotation, link, lambda: self.secrets.current(key, rotation))
        if len(todo) == 1:
            results = [self._restart_one(todo[0])]
        else:
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

    def _settle(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Did the restarted consumers stay up?"""
        confirmed, crashed, failed = stayed_up(key, rotation)
        return SettleDone(confirmed=confirmed, crashed=crashed, failed=failed)

    def _vouched(self, name: str) -> frozenset[str]:
        record = self._world.journal.key(name)
        return frozenset(record.vouched) if record is not None else frozenset()


# The shortest time between two looks at a platform that shows no sign of a call.
LOOK_LEAST = timedelta(seconds=10)


class _Checks:
    """Collects what preflight looked at; the one that fails ends it."""

    def __init__(self) -> None:
        self.found: tuple[Check, ...] = ()

    @contextmanager
    def passed(self, name: str) -> Iterator[None]:
        try:
            yield
        except RotatorError as exc:
            self.found = (*self.found, Check(name=name, ok=False, detail=exc.message))
            raise
        self.found = (*self.found, Check(name=name, ok=True))


def stayed_up(key: ManagedKey, rotation: Rotation) -> tuple[list[str], list[str], Failed | None]:
    """The restarted consumers that are up, those that are not, and why."""
    links = {link.consumer.name: link for link in key.consumers}
    confirmed: list[str] = []
    crashed: list[str] = []
    failed: Failed | None = None
    for progress in rotation.consumers:
        if progress.vouched:
            confirmed.append(progress.name)
        if progress.vouched or progress.name not in links or progress.ticket is None:
            continue
        try:
            links[progress.name].consumer.check(progress.ticket)
        except RotatorError as exc:
            crashed.append(progress.name)
            failed = failure(exc)
        else:
            confirmed.append(progress.name)
    return confirmed, crashed, failed


def write(world: World, key: ManagedKey, rotation: Rotation, fields: Mapping[str, str]) -> tuple[int, str]:
    """Make `fields` current by `cas`; returns the version and the fingerprint of what our fields hold now.

    Raises: Conflict where our fields are neither what the rotation left there nor `fields`; the store's.
    """
    ours = key.ours(world.store.read(key.path).data)
    changed = rotation.expected is not None and world.fingerprints.of(ours) != rotation.expected
    if changed and ours != fields and not world.on_conflict_take_over:
        raise Conflict(f"somebody else changed our fields at {key.path}", reason=Reason.VAULT_CONFLICT)
    expected = {name: value if isinstance(value := ours.get(name), str) else None for name in fields}
    version = world.store.put(key.path, fields, expected=None if world.on_conflict_take_over else expected)
    return version, world.fingerprints.of(fields)


def bound_to(rotation: Rotation) -> str:
    """What a sealed blob is bound to: its key and its rotation."""
    return f"{rotation.key}/{rotation.id}"


def find(listed: Iterable[UpstreamKey], id: str) -> UpstreamKey | None:
    """The key with this id in a provider's list."""
    return next((upstream for upstream in listed if upstream.id == id), None)


def marked(listed: Iterable[UpstreamKey], rotation: Rotation) -> list[str]:
    """Ids of the keys that issue calls of this rotation made and whose secrets nobody has."""
    used = {rotation.identity.id, rotation.new_identity.id if rotation.new_identity is not None else ""}
    stem = rotation.marker_stem + "-"
    return [upstream.id for upstream in listed if upstream.marker.startswith(stem) and upstream.id not in used]


def failure(error: RotatorError) -> Failed:
    """An adapter's error as the machine's outcome; the delay is the other side's own, if it named one."""
    asked = error.retry_after if isinstance(error, Transient) else None
    return Failed(
        reason=error.reason,
        detail=error.message,
        delay=asked or timedelta(0),
        unknown=isinstance(error, UnknownOutcome),
    )


def in_place(key: ManagedKey) -> InPlace:
    """The key's provider, which issues in place."""
    return cast("InPlace", key.provider)


def replacing(key: ManagedKey) -> Replacing:
    """The key's provider, which makes keys beside others."""
    return cast("Replacing", key.provider)


def choosing(key: ManagedKey) -> Choosing:
    """The key's provider, which takes the secret that it is given."""
    return cast("Choosing", key.provider)


def _moved(theirs: datetime | None, rotation: Rotation) -> bool:
    if theirs is None:
        return False
    if rotation.issued_before is None:
        return rotation.calling_since is not None and theirs >= rotation.calling_since - timedelta(seconds=1)
    return theirs > rotation.issued_before
