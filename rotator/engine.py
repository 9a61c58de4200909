"""claim → gather → next_step → run → journal → event, for one key at a time.

`work(name)` takes a key as far as it can go now, and leaves in its record when it wants attention again (`wake_at`).
It may be called at any time, from any thread, for any key: a key has one rotation in flight (rule 4).
"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

import structlog

from rotator.aftermath import key_after, story, told
from rotator.asked import Asked
from rotator.batches import as_configured
from rotator.beginnings import Beginnings
from rotator.claims import ClockSkew, ConsumerClaims, ProviderHolds, Stampede
from rotator.closing import Closing, erase_when_done
from rotator.draft import REPEATABLE, Drafts, must_be_written, or_blank
from rotator.errors import JournalFailed, Permanent, RotatorError, Stopping, Transient
from rotator.frozen import replace
from rotator.holding import Holding
from rotator.issuing import Issuing
from rotator.journal.spool import Spool
from rotator.journal.sqlite import Blob
from rotator.keys import (
    FORCED,
    ISSUE_IN_WINDOW,
    RESTART,
    RESUMED,
    Hold,
    KeyRecord,
    Start,
    decide,
    last_chance,
    may_be_cut_short,
    past,
    resting,
    unexpected,
    versions_behind,
)
from rotator.lifecycle import (
    advance,
    backoff,
    begin_call,
    next_step,
    restart_begins,
)
from rotator.managed import Fleet, ManagedKey
from rotator.model import RotationEvent, Step
from rotator.ports import Observer
from rotator.reasons import Reason
from rotator.retiring import Retiring
from rotator.rotation import (
    ConfirmDone,
    ConsumerProgress,
    DeliverLater,
    Ended,
    Failed,
    IssueDone,
    Outcome,
    PreflightDone,
    RestartDone,
    Rotation,
    Run,
    SettleDone,
    Wait,
)
from rotator.steps import Steps, failure
from rotator.taking_up import take_on
from rotator.world import World

log = structlog.get_logger(__name__)

# A parked key is looked at again after this long even when nothing else wakes it.
IDLE = timedelta(hours=6)
# After a fault of our own the key is parked; it never spins.
UNFORESEEN_PAUSE = timedelta(minutes=15)
# How long a consumer that asks for patience is left alone: it may be down all that time.
LONGEST_ASKED = timedelta(minutes=1)
# Seconds that a worker keeps a key which could not be journaled.
JOURNAL_PAUSE = 5.0
JOURNAL_LOOKS = 20  # during it, whether the daemon ends
_REFUSED = frozenset({Reason.SECRET_REFUSED, Reason.SUBSCRIPTION_REFUSED})
# Of the refusals of an issue call, those that concern more than its key: the list before it passed with this login.
_OF_THE_WHOLE_PROVIDER = frozenset({Reason.PROVIDER_RATE_LIMITED})


class Engine:
    """Runs rotations. One for a process; thread safe."""

    def __init__(
        self,
        keys: Mapping[str, ManagedKey],
        world: World,
        *,
        observers: Sequence[Observer] = (),
        spool: Spool,
        observe_only: bool = False,
        max_due_share: float = 1.0,
        dice: random.Random | None = None,
    ) -> None:
        self.keys = Fleet(keys)
        self.world = world
        self._steps = Steps(world)
        self._table = {**self._steps.table(), **Retiring(world, self._steps).table()}
        self._issuing = Issuing(world, self._steps, spool)
        self._observers = tuple(observers)
        self.spool = spool
        self._observe_only = observe_only
        self._hourly: set[str] = set()  # keys that were last caught up for those alone who were never restarted
        self._dice = dice or random.Random()  # noqa: S311 - jitter and backoff are no secrets
        self._draining = threading.Event()
        self._claims: dict[str, threading.Lock] = {name: threading.Lock() for name in keys}
        self.drafts = Drafts(world.journal, self._issuing.abandon)
        self._sharing = ConsumerClaims()
        self._beginnings = Beginnings(world.clock)
        self.holds = ProviderHolds(world.clock, self.draw)
        self._holding = Holding(world, self.drafts, self._sharing, self.holds, self.emit)
        self._closing = Closing(
            world,
            self.keys,
            drafts=self.drafts,
            steps=self._steps,
            issuing=self._issuing,
            sharing=self._sharing,
            beginnings=self._beginnings,
            emit=self.emit,
        )
        self._asked = Asked(world.clock, self.drafts, self._closing, draw=self.draw, emit=self.emit)
        self.stampede = Stampede(len(self.keys), max_due_share)
        now = world.clock.now()
        records = world.journal.all_keys()
        self.stampede.unexpected(record.name for record in records if unexpected(record, now) or _by_drift(record))

    # --- from outside ----------------------------------------------------------------------------------------

    def work(self, name: str) -> None:
        """Take one key as far as it goes now."""
        claim = self._claims.get(name)
        if claim is None or not claim.acquire(blocking=False):
            return
        try:
            self._work(self.keys[name])
        except Stopping:
            return
        except JournalFailed as exc:
            log.error("journal_failed", key=name, reason=exc.reason.value, error=exc.message, advice=exc.advice)
            self._rest()  # `wake_at` can't be moved, so the key would come back at once
        except Exception as exc:  # noqa: BLE001 - the one place that parks a key (style.md)
            self._park_unforeseen(name, exc)
        finally:
            claim.release()

    def _rest(self) -> None:
        """JOURNAL_PAUSE, or until the daemon ends."""
        for _ in range(JOURNAL_LOOKS):
            if self._draining.is_set() or self.world.stop.wait(JOURNAL_PAUSE / JOURNAL_LOOKS):
                return

    @contextmanager
    def claimed(self, name: str, *, within: float = 5.0) -> Iterator[None]:
        """Have a key for oneself, so that no rotation of it begins or moves on meanwhile.

        Raises: Transient where a rotation holds it for longer than `within` seconds.
        """
        claim = self._claims[name]
        if not claim.acquire(timeout=within):
            raise Transient(f"{name} is being rotated", reason=Reason.REQUESTED)
        try:
            yield
        finally:
            claim.release()

    def take_on(self, key: ManagedKey) -> None:
        """Manage one more key from now on; the journal knows it first."""
        take_on(self.world.journal, self.world.journal.key(key.name), key, self.world.clock)
        self._claims[key.name] = threading.Lock()
        self.stampede.joined()
        self.keys[key.name] = key
        event = RotationEvent(
            at=self.world.clock.now(),
            key=key.name,
            provider=key.provider.name,
            name="discovered",
            detail=f"{key.listed_as} is {key.id}",
        )
        self.world.journal.save(history=[event])
        self.emit(event)

    def bring_to_vault(self, name: str) -> int:
        """Take a rotation whose answer waits sealed as far as Vault, and no further; the version that holds it.

        Raises: Transient, Permanent: why it did not get there; NO_SECRET where nothing waits.
        """
        key = self.keys[name]
        with self.claimed(name):
            while True:
                rotation = self.world.journal.open_rotation(name)
                if rotation is None or not rotation.sealed or rotation.step not in {Step.PROBE, Step.PROMOTE}:
                    break
                self._run(key, rotation, rotation.step)
                self.drafts.write(key)
                after = self.world.journal.open_rotation(name)
                if after is not None and after.step is rotation.step:
                    raise Transient(after.detail or "it was tried", reason=after.reason or Reason.UNFORESEEN)
        done = self.world.journal.open_rotation(name)
        if done is None or done.vault_version is None or done.promoted_at is None:
            raise Permanent("no secret waits that may be written", reason=Reason.NO_SECRET)
        return done.vault_version

    @property
    def skew(self) -> ClockSkew:
        """How far the peers' clocks are from ours."""
        return self.world.skew

    @property
    def observe_only(self) -> bool:
        """Whether `mode: observe` forbids every change."""
        return self._observe_only

    def catch_up(self, *, unproven: bool = True) -> None:
        """Consumers that are not proven on the current version, with no rotation under way to see to it, are restarted
        for it. Who confirmed it, or was never restarted here, is left alone.

        Args:
            unproven: also those whose restart went through and proved nothing; for a start of the daemon, not for
                every hour.
        """
        if self._observe_only:
            return
        now, running = self.world.clock.now(), self.world.journal.open_rotations()
        for name, key in self.keys.items():
            record = self.world.journal.key(name)
            idle = record is None or name in running or record.paused or record.quarantine is not None
            if record is None or idle or record.requested or record.drift is not None:
                continue
            if _behind(record, key, unproven=unproven):
                (self._hourly.discard if unproven else self._hourly.add)(name)
                self.world.journal.save(
                    key=name,
                    change=lambda old, key=key: replace(or_blank(old, key), requested=RESTART, wake_at=now),  # type: ignore[misc]
                )

    @property
    def draining(self) -> bool:
        """Whether no new rotation begins."""
        return self._draining.is_set()

    def drain(self) -> None:
        """Begin no new rotation; those in flight go on."""
        self._draining.set()

    def draw(self) -> float:
        """A throw of the dice, to be stored."""
        return self._dice.random()

    def wake_all(self) -> None:
        """After the clock stepped back, what was due in seconds lies as far off as the step: look at all keys now."""
        now, running = self.world.clock.now(), self.world.journal.open_rotations()
        for name, key in self.keys.items():
            asked = RESUMED if name in running else ""
            self.world.journal.save(
                key=name,
                change=lambda old, key=key, asked=asked: _stirred(old, key, now, asked),  # type: ignore[misc]
            )

    def emit(self, event: RotationEvent) -> None:
        """Hand an event to all observers."""
        for observer in self._observers:
            observer(event)

    # --- one key ---------------------------------------------------------------------------------------------

    def _work(self, key: ManagedKey) -> None:
        self.drafts.drop(key.name)
        try:
            self._go_on(key)
        except Exception:
            self.drafts.write(key)  # what was done before is done
            raise
        self.drafts.write(key)

    def _go_on(self, key: ManagedKey) -> None:
        while not self.world.stop.is_set():
            record, rotation = self.drafts.now(key)
            if record is None:
                return
            if rotation is None:
                decision = decide(
                    record,
                    key.policy,
                    self.world.clock.now(),
                    observe=self._observe_only,
                    adopt_rotates=key.adopt_rotates,
                )
                if isinstance(decision, Hold) or self._draining.is_set():
                    self._park(record, decision.until if isinstance(decision, Hold) else None)
                    return
                if not decision.forced and self.stampede.holds(key.name):
                    self._holding.stampede(key, record)
                    return
                self._begin(key, record, decision)
            elif not self._continue(key, record, rotation):
                return

    # --- the steps -------------------------------------------------------------------------------------------

    def _begin(self, key: ManagedKey, record: KeyRecord, start: Start) -> None:
        now = self.world.clock.now()
        rotation = Rotation(
            id=uuid.UUID(int=self._dice.getrandbits(128), version=4).hex,
            key=key.name,
            provider=key.provider.name,
            identity=record.identity or key.provider.identity(record.id),
            strategy=key.provider.strategy,
            trigger=start.trigger,
            forced=start.forced,
            no_grace=start.no_grace,
            restores=start.restores,
            started_at=now,
            step_since=now,
            our_version=record.vault_version,
            consumers=tuple(ConsumerProgress(name=link.consumer.name) for link in key.consumers),
        )
        if start.restart_only:
            rotation = _catching_up(rotation, record, key, now, unproven=key.name not in self._hourly)
        event = told(rotation, "rotation_started", now, reason=start.trigger)

        def change(old: KeyRecord | None) -> KeyRecord:
            known = or_blank(old, key)
            chance = known.last_chance_used or start.last_chance
            # what somebody asks for while this waits to be written is heard afterwards
            requested = "" if known.requested == record.requested else known.requested
            return replace(known, requested=requested, vouched=(), held_back=None, last_chance_used=chance)

        self.drafts.note(key, rotation, change, history=[event]).begins = True
        self.emit(event)

    def _continue(self, key: ManagedKey, record: KeyRecord, rotation: Rotation) -> bool:
        """One step of a rotation in flight; False when nothing more can be done now."""
        now = self.world.clock.now()
        stopped = (
            self._observe_only
            or (record.paused and not rotation.forced and record.requested not in FORCED)
            or self._draining.is_set()
        )
        if stopped and may_be_cut_short(rotation):
            self._park(record, None)
            return False
        rotation = self._in_our_time(key, self._as_configured(key, rotation))
        rotation = self._asked.heard(key, record, rotation)
        if rotation.quarantine in _REFUSED and past(last_chance(record), now):
            self._closing.give_up(key, rotation)
            return True
        if self._holding.begun_too_early(record, rotation):
            self._closing.call_off(key, rotation)
            return True
        step = next_step(rotation, now, key.limits)
        match step:
            case Wait(until=moment):
                if rotation.step is Step.RESTART:
                    self._closing.let_go(key, rotation)  # a window's opening may be days away
                self._park(record, moment)
                return False
            case Ended():
                return False
            case Run(step=name):
                until = self._holding.until(key, rotation, name)
                if until is not None:
                    self._park(record, until)
                    return False
                if must_be_written(rotation, name):
                    self.drafts.write(key)
                if name is Step.ISSUE:
                    self._issue(key, rotation)
                elif name is Step.CHOOSE:
                    self._choose(key, rotation)
                else:
                    self._run(key, rotation, name)
        return True

    def _as_configured(self, key: ManagedKey, rotation: Rotation) -> Rotation:
        """A daemon that starts anew may find other consumers than the rotation began with."""
        known = as_configured(rotation, [link.consumer.name for link in key.consumers])
        if known.rolling_back is not None and known.step is Step.DELIVER:
            known = self._with_strays(key, known)
        if known is not rotation:
            self.drafts.note(key, known)
        return known

    def _with_strays(self, key: ManagedKey, rotation: Rotation) -> Rotation:
        """Whom another key's rotation restarted meanwhile, and who came up by itself, read Vault then: both may run on
        the new secret as well."""
        since = rotation.answered_at
        facts = [r.consumers for r in self.world.journal.all_keys() if r.name != key.name]
        ats = [(name, known.restarted_at) for consumers in facts for name, known in consumers.items()]
        meanwhile = {name for name, at in ats if at is not None and since is not None and at >= since}
        meanwhile |= self._steps.evidence.by_themselves(key, rotation)
        if not any(c.name in meanwhile and not c.touched for c in rotation.consumers):
            return rotation
        consumers = tuple(replace(c, touched=c.touched or c.name in meanwhile) for c in rotation.consumers)
        return replace(rotation, consumers=consumers)

    def _in_our_time(self, key: ManagedKey, rotation: Rotation) -> Rotation:
        """A wall clock that stepped neither cuts a grace period short nor draws it out (rule 5)."""
        moved = self._beginnings.moved(rotation)
        if moved is not rotation:
            self.drafts.save(key, moved)
        return moved

    def _run(self, key: ManagedKey, rotation: Rotation, step: Step) -> None:
        # After a crash inside the issue call the record still says ISSUE, and the step is LOOK: a look that fails must
        # not pass for a refusal of the call.
        if rotation.step is not step:
            rotation = replace(rotation, step=step)
        if step is Step.RESTART:
            # A journal that can't be written is noticed before the restart, not after it, again and again.
            rotation = restart_begins(rotation, self.world.clock.now(), key.limits)
            self.drafts.save(key, rotation)
        began = self.world.clock.monotonic()
        data_key = None
        try:
            outcome = self._table[step](key, rotation)
            if isinstance(outcome, PreflightDone):
                data_key = self._issuing.prepare(rotation)
        except Stopping:
            raise
        except RotatorError as exc:
            outcome = failure(exc)
        self._record(key, rotation, outcome, step, self.world.clock.monotonic() - began, data_key=data_key)

    def _choose(self, key: ManagedKey, rotation: Rotation) -> None:
        """A secret of our own choice: sealed and journaled before the platform hears of it."""
        began = self.world.clock.monotonic()
        wrapped, outcome, blob = None, None, None
        try:
            wrapped = self._issuing.prepare(rotation)
            outcome, blob = self._issuing.choose(key, rotation, wrapped)
        except RotatorError as exc:
            outcome = failure(exc)
        seconds = self.world.clock.monotonic() - began
        self._record(key, rotation, outcome, Step.CHOOSE, seconds, blob=blob, data_key=wrapped)

    def _issue(self, key: ManagedKey, rotation: Rotation) -> None:
        """The one call that can't be taken back: intent journaled first, answer and seal in one commit."""
        try:
            wrapped, described = self._issuing.prepare(rotation), self._issuing.described(key, rotation)
        except RotatorError as exc:
            self._record(key, rotation, failure(exc), Step.ISSUE, 0.0)
            return
        first = rotation.issues == 0  # a later call's key is kept with its answer: an earlier one may lie sealed still
        rotation = replace(begin_call(rotation, self.world.clock.now()), described=described)
        self.drafts.save(key, rotation, data_key=wrapped if first else None)
        began = self.world.clock.monotonic()
        outcome, blob = self._issuing.call(key, rotation, wrapped)
        seconds = self.world.clock.monotonic() - began
        data_key = wrapped if blob is not None else None
        self._record(key, rotation, outcome, Step.ISSUE, seconds, blob=blob, data_key=data_key)
        self.spool.release(rotation.id)
        self._issuing.forget(rotation)
        self.world.seal.forget(wrapped)

    def _record(
        self,
        key: ManagedKey,
        rotation: Rotation,
        outcome: Outcome,
        step: Step,
        seconds: float,
        *,
        blob: Blob | None = None,
        data_key: bytes | None = None,
    ) -> None:
        """Journal what a step did, then tell everybody."""
        outcome = self._paced(rotation, outcome, step)
        now = self.world.clock.now()
        new = advance(rotation, outcome, now, key.limits)
        if new.step_since != rotation.step_since:
            self._beginnings.note(new)
        if isinstance(outcome, Failed) and (step is not Step.ISSUE or outcome.reason in _OF_THE_WHOLE_PROVIDER):
            self.holds.failed(rotation.provider, outcome)
        elif isinstance(outcome, IssueDone):
            self.holds.answered(rotation.provider)
        draw, pause = self.draw(), self.draw()
        events = list(story(key, rotation, new, outcome, step, seconds=seconds, at=now))
        checks = outcome.checks if isinstance(outcome, PreflightDone | Failed) and step is Step.PREFLIGHT else None
        shown = new

        def change(old: KeyRecord | None) -> KeyRecord:
            record = key_after(or_blank(old, key), key, shown, now, draw=draw, pause=pause)
            if checks is not None:
                record = replace(record, checks=tuple(checks), checked_at=now)
            return self._asleep(record, key, now) if shown.finished_at is not None else record

        draft = self.drafts.note(
            key,
            new,
            change if checks is not None else None,
            step=change if checks is None else None,
            data_key=data_key,
            blob=erase_when_done(new) or blob,
            history=[event for event in events if not event.repeated],
        )
        if not _may_wait(step, new, now):
            try:
                new = self._issuing.keep(key, draft, new)
            finally:
                self.drafts.drop(key.name)
        if isinstance(outcome, IssueDone):
            self.stampede.expected(key.name)
        waits = new.not_before is not None and new.not_before > now
        # who waits for a delivery is not failing: its consumers are its own until that is late
        if new.finished_at is not None or resting(new) or (waits and not isinstance(outcome, DeliverLater)):
            self._closing.let_go(key, new)
        for event in events:
            self.emit(event)

    def _paced(self, rotation: Rotation, outcome: Outcome, step: Step) -> Outcome:
        """Fill in the delay until the next try, drawn once here and stored by the journal (rule 10)."""
        match outcome:
            case Failed():
                return self._delayed(rotation, outcome, step)
            case RestartDone(failed=Failed() as inner) | ConfirmDone(failed=Failed() as inner):
                return replace(outcome, failed=self._delayed(rotation, inner, step))
            case SettleDone(failed=Failed() as inner):
                return replace(outcome, failed=self._delayed(rotation, inner, step))
            case _:
                return outcome

    def _delayed(self, rotation: Rotation, failed: Failed, step: Step) -> Failed:
        """The delay that the other side asked for, or else our own."""
        # A secret that waits for Vault is not kept from it by a balancer's `Retry-After` of minutes.
        if failed.delay and not (step is Step.PROMOTE and failed.reason is not Reason.VAULT_RATE_LIMITED):
            # one consumer's `Retry-After` of a day does not keep it, and all others that failed, down for a day
            return replace(failed, delay=min(failed.delay, LONGEST_ASKED)) if step is Step.RESTART else failed
        attempts = rotation.issues if step is Step.ISSUE else rotation.attempts
        delay = backoff(step, failed.reason, attempts, self.draw(), unsettled=rotation.unsettled or failed.unknown)
        return replace(failed, delay=delay)

    def _asleep(self, record: KeyRecord, key: ManagedKey, now: datetime) -> KeyRecord:
        """A key whose rotation ends in this commit, with the time of its next look: one commit less than to park it."""
        decision = decide(record, key.policy, now, observe=self._observe_only, adopt_rotates=key.adopt_rotates)
        if isinstance(decision, Start):
            return record
        return replace(record, wake_at=decision.until or now + IDLE)

    def _park(self, record: KeyRecord, until: datetime | None) -> None:
        """Write down when this key wants attention again."""
        now = self.world.clock.now()
        wake = until or now + IDLE
        if until is None and record.wake_at is not None and now + IDLE / 2 < record.wake_at <= wake:
            return  # it sleeps long enough already

        def change(old: KeyRecord | None) -> KeyRecord:
            known = old if old is not None else record
            # Somebody woke the key while it was decided upon: that request is not slept over.
            return known if known.wake_at != record.wake_at else replace(known, wake_at=wake)

        if record.wake_at != wake:
            self.drafts.save(self.keys[record.name], change=change)

    def _park_unforeseen(self, name: str, exc: Exception) -> None:
        """Something that nobody foresaw: park the key, say so, never spin."""
        log.exception("unforeseen", key=name, reason=Reason.UNFORESEEN.value)
        now = self.world.clock.now()
        self._sharing.give_back(self.keys[name], now, now)
        record = self.world.journal.key(name)
        rotation = self.world.journal.open_rotation(name)
        event = RotationEvent(
            at=now,
            key=name,
            provider=self.keys[name].provider.name,
            name="step",
            rotation=rotation.id if rotation else None,
            step=rotation.step if rotation else None,
            result="failed",
            reason=Reason.UNFORESEEN,
            detail=type(exc).__name__,
        )
        if record is not None:
            waiting = replace(rotation, not_before=now + UNFORESEEN_PAUSE) if rotation else None

            def change(old: KeyRecord | None) -> KeyRecord:
                known = or_blank(old, self.keys[name])
                return replace(
                    known,
                    failures=known.failures + 1,
                    last_reason=Reason.UNFORESEEN,
                    last_detail=type(exc).__name__,
                    not_before=now + UNFORESEEN_PAUSE,
                    wake_at=now + UNFORESEEN_PAUSE,
                )

            self.drafts.save(self.keys[name], waiting, change, history=[event])
        self.emit(event)


def _by_drift(record: KeyRecord) -> bool:
    """Whether `on_drift: restore` asked for a rotation: a Vault that lost everything asks for all of them at once."""
    return record.requested == ISSUE_IN_WINDOW and record.drift is not None


def _catching_up(rotation: Rotation, record: KeyRecord, key: ManagedKey, now: datetime, *, unproven: bool) -> Rotation:
    """Nothing is issued: those who missed the current version are brought to it; `unproven` as in `catch_up`."""
    names = _behind(record, key, unproven=unproven) or _behind(record, key)
    return replace(
        rotation,
        restart_only=True,
        step=Step.DELIVER,
        vault_version=record.vault_version,
        expected=record.fingerprint,
        promoted_at=now,
        consumers=tuple(ConsumerProgress(name=name) for name in names),
    )


def _behind(record: KeyRecord, key: ManagedKey, *, unproven: bool = True) -> list[str]:
    """Consumers that are not known to run on the current version; `unproven`: though they were restarted for it."""
    named = [(link.consumer.name, unproven and link.open_watch is not None) for link in key.consumers]
    return [name for name, seen in named if versions_behind(record, name, seen=seen)]


def _may_wait(step: Step, new: Rotation, now: datetime) -> bool:
    """Whether a step's record may be written with what comes next: another step, or the time of the next try."""
    if new.finished_at is not None or step is Step.ISSUE:
        return False  # an answer is kept by all means
    if new.not_before is not None and new.not_before > now:
        return True
    return step in REPEATABLE and new.reason is None and new.quarantine is None


def _woken(record: KeyRecord | None, key: ManagedKey, now: datetime) -> KeyRecord:
    return replace(or_blank(record, key), wake_at=now)


def _stirred(record: KeyRecord | None, key: ManagedKey, now: datetime, asked: str) -> KeyRecord:
    known = or_blank(record, key)
    return replace(known, wake_at=now, not_before=None, requested=known.requested or asked)
