"""The steps of a rotation as they are done to the world: each takes the record and returns an outcome.

Nothing here decides what comes next; `lifecycle` does. Nothing here writes the journal; `engine` does. The steps that
take something away (deactivate, delete, the way back) are in `retiring`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import cast

import structlog

from rotator.batches import pending, turn_of
from rotator.errors import Permanent, RotatorError, Stopping, Transient, UnknownOutcome
from rotator.evidence import Evidence
from rotator.managed import ConsumerLink, ManagedKey
from rotator.model import Check, Order, Secret, Step, Strategy, Ticket, UpstreamKey, Verdict
from rotator.ports import Choosing, InPlace, Replacing
from rotator.promoting import write
from rotator.reasons import Reason
from rotator.rotation import (
    DeliverDone,
    DeliverLater,
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
from rotator.world import World


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
        if rotation.restart_only:
            stored = self._world.store.read(key.path)
            secret = key.secret_of(stored.data)
            if secret is None:
                raise Permanent(f"Vault holds no secret at {key.path}", reason=Reason.NO_SECRET)
            return secret
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
            Step.DELIVER: self._deliver,
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
                stored = world.store.preflight(key.path, lasting=key.longest, versions=key.versions_needed)
            with checks.passed("Vault's current version is known"):
                ours = world.fingerprints.of(key.ours(stored.data))
            # an expired secret serves nobody, so one consumer that can't be restarted keeps the others from no new one
            dead = upstream.expires_at is not None and upstream.expires_at <= world.clock.now()
            for link in key.consumers:
                with checks.passed(f"{link.consumer.name} can be restarted", needed=not dead):
                    link.consumer.preflight()
                if link.delivery is not None:
                    with checks.passed(f"{link.consumer.name}'s own way to the secret is there", needed=not dead):
                        link.delivery.preflight()
            for link in key.consumers:
                if link.open_watch is not None and link.early and rotation.strategy is not Strategy.REPLACE:
                    with checks.passed(f"{link.consumer.name} can be seen at its broker", needed=not dead):
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
            base_alone=not (stored.data or {}).keys() - key.fields.keys(),
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
        for link in key.consumers:
            # it may connect before anybody else's turn, or come up by itself
            seen_early = link.early and link.identified and not link.periodic
            if (self._follows(key, link) and not link.versioned) or seen_early:
                with suppress(RotatorError):  # tried again at its restart; a secret that waits does not wait for this
                    self.evidence.watch(key, rotation, link, lambda: secret)
        fields = key.rendered(rotation.target, secret, expires_at=rotation.new_expires_at)
        version, prints = write(self._world, key, rotation, fields, secret)
        return PromoteDone(version=version, expected=prints)

    def _deliver(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Wait until each consumer's own way to the secret has the new one: nobody is restarted onto the old one."""
        if rotation.restart_only:
            self._still_ours(key, rotation)
        concerned = {c.name for c in pending(rotation, key.limits.plans)}
        links = [link for link in key.consumers if link.consumer.name in concerned and link.delivery is not None]
        if not links:
            return DeliverDone()
        secret, order = self.secrets.current(key, rotation), _order(rotation, attempts=rotation.attempts)
        since = rotation.promoted_at or rotation.started_at
        late = []
        for link in links:
            assert link.delivery is not None  # the others were left out
            link.delivery.ask(order)
            if not link.delivery.arrived(order, secret, since):
                late.append(link)
        if not late:
            return DeliverDone()
        words = "not yet where it is read by " + ", ".join(link.consumer.name for link in late)
        waited = self._world.clock.now() - (rotation.step_since or since)
        if any(waited >= link.deliver_timeout for link in late):
            self._still_ours(key, rotation)  # what was overwritten in Vault meanwhile never arrives
            return Failed(reason=Reason.DELIVERY_LATE, detail=words)
        return DeliverLater(detail=words)

    def _still_ours(self, key: ManagedKey, rotation: Rotation) -> None:
        """Raise where Vault holds something else than we left there: nobody is restarted onto what is not ours."""
        record = self._world.journal.key(key.name)
        if record is None or record.fields != tuple(sorted(key.fields)):
            return  # the configuration names other fields now, so that the fingerprint tells nothing
        if self._world.fingerprints.of(key.ours(self._world.store.read(key.path).data)) != rotation.expected:
            raise Permanent(f"{key.path} does not hold what we left there", reason=Reason.VAULT_OVERWRITTEN)

    def _restart(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Restart those whose turn it is, at once."""
        links, turn = {link.consumer.name: link for link in key.consumers}, turn_of(rotation, key.limits.plans)
        todo, order = [links[name] for name in turn if name in links], _order(rotation, attempts=0)
        if not todo:
            return RestartDone(tickets=())
        restart = partial(self._restart_one, key, rotation, order)
        if len(todo) == 1:
            results = [restart(todo[0])]
        else:
            with ThreadPoolExecutor(max_workers=len(todo), thread_name_prefix=f"restart-{key.name}") as pool:
                results = list(pool.map(restart, todo))
        if rotation.promoted_at is not None:
            results = [
                _from(rotation.promoted_at, r) if self._follows(key, o) else r
                for o, r in zip(todo, results, strict=True)
            ]
        tickets = [result for result in results if isinstance(result, Ticket)]
        errors = {o.consumer.name: r for o, r in zip(todo, results, strict=True) if not isinstance(r, Ticket)}
        if not errors:
            return RestartDone(tickets=tickets)
        return RestartDone(tickets=tickets, failed=_all_of(errors), seen=self.evidence.so_far(key, rotation))

    def _restart_one(
        self, key: ManagedKey, rotation: Rotation, order: Order, link: ConsumerLink
    ) -> Ticket | RotatorError:
        """Open its watch, and restart it; who can't be heard holds up nobody else."""
        try:
            self.evidence.watch(key, rotation, link, lambda: self.secrets.current(key, rotation), order)
            began = self._world.clock.now()
            ticket = link.consumer.restart(order)
            # A fast consumer has connected before its restart is reported, so a connect counts from the beginning; a
            # heartbeat may still be the old process's until the end.
            return replace(ticket, restarted_at=self._world.clock.now() if link.periodic else began)
        except Stopping:
            raise
        except RotatorError as exc:
            return exc

    @staticmethod
    def _follows(key: ManagedKey, link: ConsumerLink) -> bool:
        return any(plan.name == link.consumer.name and plan.follows for plan in key.limits.plans)

    def _settle(self, key: ManagedKey, rotation: Rotation) -> Outcome:
        """Did the restarted consumers stay up?"""
        confirmed, crashed, failed = stayed_up(key, rotation, trusting=True)
        if failed is None and not rotation.restart_only and not pending(rotation, key.limits.plans):
            self._annotate(key, rotation)
        return SettleDone(confirmed=confirmed, crashed=crashed, failed=failed)

    def _annotate(self, key: ManagedKey, rotation: Rotation) -> None:
        """Leave beside the secret what it is, for people; a Vault that will not have it changes nothing."""
        ends = rotation.new_expires_at if rotation.rolling_back is None else rotation.expired_before
        facts = {
            "key": key.name,
            "provider": key.provider.name,
            "id": rotation.target.id,
            "expires_at": ends.isoformat() if ends is not None else "",
            "rotated_at": rotation.promoted_at.isoformat() if rotation.promoted_at is not None else "",
            "rotation": rotation.id,
        }
        if key.neighbours:
            facts = {f"{key.name}.{name}": value for name, value in facts.items()}
        try:
            self._world.store.annotate(key.path, facts)
        except RotatorError as exc:
            log.info("custom_metadata_not_written", key=key.name, reason=exc.reason.value, error=exc.message)

    def _vouched(self, name: str) -> frozenset[str]:
        record = self._world.journal.key(name)
        return frozenset(record.vouched) if record is not None else frozenset()


log = structlog.get_logger(__name__)

# The shortest time between two looks at a platform that shows no sign of a call.
LOOK_LEAST = timedelta(seconds=10)
# Consumers that failed at the same time and are told of in their own words.
_TOLD = 3


class _Checks:
    """Collects what preflight looked at; the one that fails ends it."""

    def __init__(self) -> None:
        self.found: tuple[Check, ...] = ()

    @contextmanager
    def passed(self, name: str, *, needed: bool = True) -> Iterator[None]:
        try:
            yield
        except RotatorError as exc:
            self.found = (*self.found, Check(name=name, ok=False, detail=exc.message))
            if needed or isinstance(exc, Stopping):
                raise
            return
        self.found = (*self.found, Check(name=name, ok=True))


def stayed_up(
    key: ManagedKey, rotation: Rotation, *, trusting: bool = False
) -> tuple[list[str], list[str], Failed | None]:
    """The restarted consumers that are up, those that are not, and why.

    Args:
        trusting: who was proven in an earlier batch, and can't be asked now, is taken to be up: to restart all of them
            because of that would take more away at once than they allow.
    """
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
            if trusting and progress.confirmed_at is not None and exc.reason is not Reason.CONSUMER_CRASHED:
                confirmed.append(progress.name)
                continue
            crashed.append(progress.name)
            failed = failure(exc)
        else:
            confirmed.append(progress.name)
    return confirmed, crashed, failed


def _all_of(errors: Mapping[str, RotatorError]) -> Failed:
    """Several consumers' errors as one failure: the reason of one that no further try mends, all of their words.

    Of more than three the names are enough. The delay is the longest that anybody asked for.
    """
    names = sorted(errors, key=lambda name: not isinstance(errors[name], Permanent))
    words = [errors[name].message for name in names[:_TOLD]]
    if names[_TOLD:]:
        words.append(f"and {', '.join(names[_TOLD:])}")
    delay = max(failure(error).delay for error in errors.values())
    return replace(failure(errors[names[0]]), detail="; ".join(words), delay=delay)


def _from(moment: datetime, result: Ticket | RotatorError) -> Ticket | RotatorError:
    """Who takes up a secret by itself may have done so since `moment`."""
    return replace(result, restarted_at=moment) if isinstance(result, Ticket) else result


def _order(rotation: Rotation, *, attempts: int) -> Order:
    """What consumers are told: the same when a crash or a timeout has the same restart made twice. One that went
    through and proved nothing has begun another step since, so that its repetition is another restart."""
    begun = rotation.step_since or rotation.started_at
    id = f"{rotation.id}-{rotation.vault_version}-{begun.timestamp():.3f}-{attempts}"
    return Order(key=rotation.key, version=rotation.vault_version or 0, id=id)


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
