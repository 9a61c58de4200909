"""Looking without touching: the providers' lists, what Vault holds, whether the broker still lets the secrets in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from rotator import drift
from rotator.engine import Engine
from rotator.errors import RotatorError, Transient
from rotator.frozen import replace
from rotator.keys import ISSUE_IN_WINDOW, KeyRecord, observed, resting, scheduled, unexpected
from rotator.lifecycle import backoff
from rotator.managed import ManagedKey
from rotator.model import (
    VERDICT_REASONS,
    Identity,
    RotationEvent,
    Step,
    StoredSecret,
    Strategy,
    UpstreamKey,
    Verdict,
)
from rotator.platform_facts import PlatformFacts
from rotator.ports import Provider, Watched
from rotator.reasons import Reason
from rotator.steps import failure

log = structlog.get_logger(__name__)

# A provider or a Vault that is down is asked again this soon, so that work goes on as soon as it is back.
ASK_AGAIN_AT_MOST = timedelta(seconds=5)

# A path that may not be read is looked at again after this: a policy is seldom mended within seconds.
REFUSED_AGAIN = timedelta(minutes=1)

# A Vault that answers so to one read answers so to all: the others are not tried in this round.
AWAY = frozenset({Reason.VAULT_UNREACHABLE, Reason.VAULT_SEALED, Reason.VAULT_UNAVAILABLE, Reason.VAULT_RATE_LIMITED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the last look at a peer said: no reason means that it answered."""

    reason: Reason | None = None
    detail: str = ""
    failures: int = 0
    next_look: float | None = None  # by the clock that never steps


_NOT_YET = Health(detail="not looked at yet", reason=Reason.NOT_DUE)


class Watcher:
    """Keeps the keys' records in step with the world."""

    def __init__(
        self,
        engine: Engine,
        providers: Mapping[str, Provider],
        *,
        watch: timedelta,
        drift_interval: timedelta,
        restore: bool = False,
        follow: Callable[[str, Sequence[UpstreamKey]], None] = lambda _provider, _listed: None,
    ) -> None:
        self._engine = engine
        self._world = engine.world
        self._providers = dict(providers)
        self._watch = watch
        self._drift_interval = drift_interval
        self._restore = restore  # `on_drift: restore`
        self._follow = follow  # told of each list before its keys are looked at: some may be new
        self._lock = threading.Lock()
        self._health: dict[str, Health] = dict.fromkeys([*providers, "vault"], _NOT_YET)
        self._next_look: dict[str, float] = {}  # at what Vault holds for a key, by the clock that never steps
        self._read: set[str] = set()  # keys whose secret was read since the start
        self._token_ends: datetime | None = None
        self.facts = PlatformFacts()

    # --- health ----------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Health]:
        """The last word of each peer: providers by name, and `vault`."""
        with self._lock:
            return dict(self._health)

    @property
    def token_ends_at(self) -> datetime | None:
        """When the Vault token ends; None for one that never does, or before the first login."""
        return self._token_ends

    # --- providers -------------------------------------------------------------------------------------------

    def look_at_providers(self) -> None:
        """Look at the list of each provider whose time has come."""
        for name in self._providers:
            if self._is_time(name) and not self._world.stop.is_set():
                self.look_at_provider(name)

    def look_at_provider(self, name: str) -> None:
        """Take one provider's list over into the records of its keys."""
        if self._engine.holds.until(name) is not None:
            return
        try:
            listed = self._providers[name].list_keys()
        except RotatorError as exc:
            self._engine.holds.failed(name, failure(exc))
            self._failed(name, exc, Step.LOOK)
            return
        self._engine.holds.answered(name)
        self._well(name, self._watch)
        self.facts.ask(self._providers[name])
        self._follow(name, listed)
        by_id = {upstream.id: upstream for upstream in listed}
        keys = [key for key in self._engine.keys.values() if key.provider.name == name]
        # All of them before the first is written down: else some would be begun before the stampede is seen (rule 11).
        self._engine.stampede.unexpected(key.name for key in keys if self._jumps(key, by_id))
        for key in keys:
            if self._world.stop.is_set():
                return
            self._observe(key, by_id)

    def _jumps(self, key: ManagedKey, listed: Mapping[str, UpstreamKey]) -> bool:
        """Whether this list, or a changed configuration, makes a key due against the plan."""
        now, before = self._world.clock.now(), self._world.journal.key(key.name)
        if before is None or self._world.journal.open_rotation(key.name) is not None:
            return False
        after = observed(before, listed.get(before.id), now, in_flight=False)
        return unexpected(scheduled(after, key.policy, 1.0), now)  # the earliest draw

    def _observe(self, key: ManagedKey, listed: Mapping[str, UpstreamKey]) -> None:
        now = self._world.clock.now()
        rotation = self._world.journal.open_rotation(key.name)
        in_flight = rotation is not None and rotation.issues > 0 and not resting(rotation)
        before = self._world.journal.key(key.name)
        if before is None:
            return
        upstream, draw = listed.get(before.id), self._engine.draw()

        def change(old: KeyRecord | None) -> KeyRecord:
            record = observed(old if old is not None else before, upstream, now, in_flight=in_flight)
            record = scheduled(record, key.policy, draw)
            if record.held_back is not None and not unexpected(record, now):
                record = replace(record, held_back=None)
            # a changed due date, problem or first look is a reason for the engine to look at the key now
            stirred = (record.rotate_at, record.problem) != (before.rotate_at, before.problem) or not before.listed_at
            return replace(record, wake_at=now) if stirred else record

        after = self._world.journal.save(key=key.name, change=change)
        if after is None:
            return
        if not unexpected(after, now) and after.requested != ISSUE_IN_WINDOW:
            self._engine.stampede.expected(key.name)
        self._tell_changes(key, before, after)

    def _tell_changes(self, key: ManagedKey, before: KeyRecord, after: KeyRecord) -> None:
        """Once for each change, not at every look."""
        if after.problem is not before.problem:
            self._event(key, "problem", after.problem, "" if after.problem else "the problem is gone")
        if after.drift is not before.drift:
            self._event(key, "drift", after.drift, "" if after.drift else "the drift is gone")

    # --- Vault -----------------------------------------------------------------------------------------------

    def keep_vault_login(self) -> None:
        """Renew the token in time, and notice a Vault that went away or came back."""
        if not self._is_time("vault"):
            return
        store, alarm = self._world.store, None
        try:
            try:
                store.ready()
            except RotatorError as exc:
                if exc.reason is not Reason.VAULT_WRAPPING_TOKEN_USED:
                    raise
                alarm = exc  # somebody has our next secret id; the one that we have is kept alive
            self._token_ends = store.renew()
            if isinstance(store, Watched):
                self.facts.note("vault", store.credentials())
        except RotatorError as exc:
            self._failed("vault", alarm or exc, Step.PROMOTE)
            return
        if alarm is not None:
            self._failed("vault", alarm, Step.PROMOTE)
            return
        self._well("vault", timedelta(seconds=10))

    def look_at_vault(self) -> None:
        """Read what Vault holds for each key: at first contact, and every `drift_interval`."""
        now = self._world.clock.monotonic()
        for key in self._engine.keys.values():
            if self._world.stop.is_set():
                return
            if now < self._next_look.get(key.name, now):
                continue
            if self.health()["vault"].reason is not None or not self._look_at_secret(key):
                return  # Vault is away: the next round begins here again

    def _look_at_secret(self, key: ManagedKey) -> bool:
        record = self._world.journal.key(key.name)
        if record is None or self._rotating(key):
            return True
        try:
            stored = self._world.store.read(key.path)
            ours = key.ours(stored.data)
            fingerprint = self._world.fingerprints.of(ours)  # sealed by transit, its key may need Vault as well
        except RotatorError as exc:
            log.warning("vault_read_failed", key=key.name, reason=exc.reason.value, error=exc.message)
            if exc.reason is Reason.VAULT_RATE_LIMITED:
                self._failed("vault", exc, Step.PROMOTE)  # keeps the delay that it asked for
            if exc.reason in AWAY:
                return False
            self._look_again(key, min(REFUSED_AGAIN, self._drift_interval))
            self._unreadable(record, exc)
            return True
        if self._rotating(key):
            return True  # what was read may be a rotation's own doing, whose record is not written yet
        now = self._world.clock.now()
        # the looks after the first one are spread over the interval, so that a fleet does not look all at once
        share = 1.0 if key.name in self._read else 1.0 - self._engine.draw()
        self._look_again(key, self._drift_interval * share)
        self._read.add(key.name)
        held = key.secret_of(stored.data)

        def change(old: KeyRecord | None) -> KeyRecord:
            known = old if old is not None else record
            if (known.vault_version, known.last_issue_at) != (record.vault_version, record.last_issue_at):
                return known  # a rotation promoted in the meantime: this look is old
            if _only_unread(known):
                known = replace(known, last_reason=None, last_detail="")
            fields = tuple(sorted(key.fields))
            # Nothing to compare with: the first look, or the configuration maps other fields now.
            first = known.fingerprint is None or known.fields != fields
            if held is not None and first:
                known = _identified(known, key, stored.data)
                known = replace(
                    known, adopted=True, fingerprint=fingerprint, fields=fields, vault_version=stored.version
                )
            elif first:
                known = replace(known, adopted=False)
            else:
                gone = drift.named(known, stored) if fingerprint != known.fingerprint else None
                known = replace(known, drift=gone if known.drift in {None, *drift.IN_VAULT} else known.drift)
            return replace(known, wake_at=now) if known.adopted != record.adopted else known

        after = self._world.journal.save(key=key.name, change=change)
        if after is None:
            return True
        self._tell_changes(key, record, after)
        if after.adopted is False and record.adopted is None:
            self._event(key, "waiting", Reason.WAITING_FOR_ADOPTION, f"Vault holds no secret at {key.path}")
        if self._restore and after.drift in drift.IN_VAULT and not self._engine.observe_only:
            self._put_back(key, after, stored)
        return True

    def _look_again(self, key: ManagedKey, after: timedelta) -> None:
        self._next_look[key.name] = self._world.clock.monotonic() + after.total_seconds()

    def _unreadable(self, record: KeyRecord, error: RotatorError) -> None:
        """A key of which nothing is known says why; the others go on as they were known."""

        def change(old: KeyRecord | None) -> KeyRecord:
            known = old if old is not None else record
            mute = _only_unread(known) or (known.adopted is None and known.last_reason is None)
            return replace(known, last_reason=error.reason, last_detail=error.message) if mute else known

        if record.adopted is None and record.last_detail != error.message:
            self._world.journal.save(key=record.name, change=change)

    def _put_back(self, key: ManagedKey, seen: KeyRecord, stored: StoredSecret) -> None:
        """`on_drift: restore`: what we left is current again, or a new secret is asked for.

        Not while the key is paused or quarantined: a person is at it.
        """
        try:
            with self._engine.claimed(key.name):
                record = self._world.journal.key(key.name)
                if record is None or self._rotating(key) or not _as_seen(record, seen):
                    return
                if record.paused or record.quarantine is not None:
                    return
                done = drift.restore(self._world, key, record, stored)
                if done.version is not None or done.rotate:
                    self._write_down(key, record, done)
                else:
                    log.warning("not_restored", key=key.name, reason=record.drift, detail=done.detail)
        except RotatorError as exc:
            log.warning("restore_failed", key=key.name, reason=exc.reason.value, error=exc.message, advice=exc.advice)

    def _write_down(self, key: ManagedKey, record: KeyRecord, done: drift.Restored) -> None:
        """Still under the key's claim: no rotation has begun since."""
        version, now = done.version, self._world.clock.now()
        if version is not None:
            self._world.journal.save(key=key.name, change=lambda old: drift.restored(old or record, version))
            self._event(key, "restored", record.drift, done.detail)
        elif not record.requested:  # told once, though the rotation may wait for its window
            # a whole Vault that was set back must not have the whole fleet issued anew at once (rule 11)
            self._engine.stampede.unexpected([key.name])
            self._world.journal.save(
                key=key.name,
                change=lambda old: replace(
                    old or record, requested=(old or record).requested or ISSUE_IN_WINDOW, wake_at=now
                ),
            )
            self._event(key, "requested", record.drift, done.detail)

    # --- the broker ------------------------------------------------------------------------------------------

    def probe_secrets(self) -> None:
        """Probe the current secrets that are due for it; a verdict that changed is told once."""
        for key in self._engine.keys.values():
            if self._world.stop.is_set():
                return
            record = self._world.journal.key(key.name)
            if not key.provable and record is not None and record.verdict is not None:
                self._forget_verdict(record)
            if not key.provable or record is None or record.adopted is not True:
                continue
            now = self._world.clock.now()
            if record.probed_at is not None and timedelta(0) <= now - record.probed_at < key.probe_interval:
                continue
            if self.health()["vault"].reason is None and not self._rotating(key):
                self._probe(key, record, now)

    def _forget_verdict(self, record: KeyRecord) -> None:
        """`verify` was taken out of the configuration: an old refusal is no one's business any more."""
        self._world.journal.save(key=record.name, change=lambda old: replace(old or record, verdict=None))

    def _probe(self, key: ManagedKey, record: KeyRecord, now: datetime) -> None:
        try:
            secret = key.secret_of(self._world.store.read(key.path).data)
        except RotatorError:
            return  # `look_at_vault` and `keep_vault_login` tell that story
        if secret is None or not key.provable:
            return
        identity: Identity = record.identity or key.provider.identity(record.id)
        try:
            result = key.proof(self._world.prober, identity, secret)
        except RotatorError as exc:  # a password beside the secret, which can't be read
            log.warning("probe_failed", key=key.name, reason=exc.reason.value, error=exc.message)
            return
        if self._rotating(key):
            return  # the secret is being replaced: this look is old

        def change(old: KeyRecord | None) -> KeyRecord:
            known = old if old is not None else record
            return (
                known
                if known.last_issue_at != record.last_issue_at
                else replace(known, verdict=result.verdict, probed_at=now)
            )

        after = self._world.journal.save(key=key.name, change=change)
        if after is None or after.last_issue_at != record.last_issue_at:
            return
        if result.verdict is not record.verdict and (record.verdict or result.verdict is not Verdict.ACCEPTED):
            self._event(key, "probe", VERDICT_REASONS[result.verdict], result.detail)

    def _rotating(self, key: ManagedKey) -> bool:
        """Whether Vault and the broker may change under a look; while only the old key's end is awaited, they don't."""
        rotation = self._world.journal.open_rotation(key.name)
        return rotation is not None and not resting(rotation)

    # --- inside ----------------------------------------------------------------------------------------------

    def _is_time(self, peer: str) -> bool:
        at = self.health()[peer].next_look
        return at is None or self._world.clock.monotonic() >= at

    def _well(self, peer: str, interval: timedelta) -> None:
        with self._lock:
            before = self._health[peer]
            self._health[peer] = Health(next_look=self._world.clock.monotonic() + interval.total_seconds())
        if before.failures:
            log.info("peer_is_back", peer=peer, failures=before.failures)

    def _failed(self, peer: str, error: RotatorError, step: Step) -> None:
        with self._lock:
            before = self._health[peer]
            delay = min(ASK_AGAIN_AT_MOST, backoff(step, error.reason, before.failures, self._engine.draw()))
            if isinstance(error, Transient) and error.reason is Reason.VAULT_RATE_LIMITED:
                delay = max(delay, error.retry_after or timedelta(0))
            self._health[peer] = Health(
                reason=error.reason,
                detail=error.message,
                failures=before.failures + 1,
                next_look=self._world.clock.monotonic() + delay.total_seconds(),
            )
        if before.reason is not error.reason:
            log.warning("peer_failed", peer=peer, reason=error.reason.value, error=error.message, advice=error.advice)

    def _event(self, key: ManagedKey, name: str, reason: Reason | None, detail: str) -> None:
        event = RotationEvent(
            at=self._world.clock.now(),
            key=key.name,
            provider=key.provider.name,
            name=name,
            reason=reason,
            detail=detail,
        )
        self._world.journal.save(history=[event])
        self._engine.emit(event)


def _as_seen(record: KeyRecord, seen: KeyRecord) -> bool:
    """Whether nobody has changed since what Vault is compared with."""
    facts = (record.vault_version, record.last_issue_at, record.fingerprint, record.drift)
    return facts == (seen.vault_version, seen.last_issue_at, seen.fingerprint, seen.drift)


def _only_unread(record: KeyRecord) -> bool:
    """Whether the key's reason is that of a read: no rotation has failed, and it was never read."""
    return record.adopted is None and record.failures == 0 and bool(record.last_detail)


def _identified(record: KeyRecord, key: ManagedKey, data: Mapping[str, str] | None) -> KeyRecord:
    """A lost journal takes the identity of a key that is replaced from Vault (design, "Identity")."""
    id = key.id_of(data)
    if key.provider.strategy is not Strategy.REPLACE or record.applied or id is None or id == record.id:
        return record
    return replace(record, id=id, identity=None, ids=(key.id, id), listed_at=None, problem=None)
