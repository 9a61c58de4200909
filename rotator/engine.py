"""claim → gather → next_step → run → journal → event, for one key at a time.

`work(name)` takes a key as far as it can go now, and leaves in its record when it wants attention again (`wake_at`).
It may be called at any time, from any thread, for any key: a key has one rotation in flight (rule 4).
"""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from rotator.aftermath import key_after, story, told
from rotator.claims import ClockSkew, ConsumerClaims, ProviderHolds
from rotator.errors import JournalFailed, RotatorError, Stopping, Transient
from rotator.journal.spool import Spool
from rotator.journal.sqlite import ERASE, Blob, Change, Erase
from rotator.keys import ISSUE_NOW, RESUMED, Hold, KeyRecord, Start, decide, last_chance, may_be_cut_short, past
from rotator.lifecycle import (
    LOOK_AGAIN,
    MAX_ANSWERS,
    ConfirmDone,
    ConsumerProgress,
    Ended,
    Failed,
    IssueDone,
    Outcome,
    RestartDone,
    Rotation,
    Run,
    SettleDone,
    Wait,
    advance,
    backoff,
    begin_call,
    next_step,
)
from rotator.managed import ManagedKey
from rotator.model import Issued, Result, RotationEvent, Step
from rotator.ports import Observer
from rotator.reasons import Reason
from rotator.steps import Steps, World, bound_to, failure

log = structlog.get_logger(__name__)

# A parked key is looked at again after this long even when nothing else wakes it.
IDLE = timedelta(hours=6)
# After a fault of our own the key is parked; it never spins.
UNFORESEEN_PAUSE = timedelta(minutes=15)
# How long a key waits at most for a consumer that another key is restarting; it is woken when that one is done.
SHARED_PAUSE = timedelta(seconds=30)
# How soon a clock that is off is looked at again.
SKEW_PAUSE = timedelta(seconds=30)
# Seconds that a worker keeps a key which could not be journaled.
JOURNAL_PAUSE = 5.0
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
        dice: random.Random | None = None,
    ) -> None:
        self.keys = dict(keys)
        self.world = world
        self._steps = Steps(world)
        self._observers = tuple(observers)
        self.spool = spool
        self._observe_only = observe_only
        self._dice = dice or random.Random()  # noqa: S311 - jitter and backoff are no secrets
        self._draining = threading.Event()
        self._claims: dict[str, threading.Lock] = {name: threading.Lock() for name in keys}
        self._sharing = ConsumerClaims()
        self.holds = ProviderHolds(world.clock, self.draw)
        self.skew = ClockSkew()

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
            self.world.stop.wait(JOURNAL_PAUSE)  # `wake_at` can't be moved, so the key would come back at once
        except Exception as exc:  # noqa: BLE001 - the one place that parks a key (style.md)
            self._park_unforeseen(name, exc)
        finally:
            claim.release()

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

    @property
    def observe_only(self) -> bool:
        """Whether `mode: observe` forbids every change."""
        return self._observe_only

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
        while not self.world.stop.is_set():
            record = self.world.journal.key(key.name)
            if record is None:
                return
            rotation = self.world.journal.open_rotation(key.name)
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
                self._begin(key, record.id, decision)
            elif not self._continue(key, record, rotation):
                return

    def _begin(self, key: ManagedKey, id: str, start: Start) -> None:
        now = self.world.clock.now()
        rotation = Rotation(
            id=uuid.uuid4().hex,
            key=key.name,
            provider=key.provider.name,
            identity=key.provider.identity(id),
            trigger=start.trigger,
            forced=start.forced,
            started_at=now,
            step_since=now,
            consumers=tuple(ConsumerProgress(name=link.consumer.name) for link in key.consumers),
        )
        event = told(rotation, "rotation_started", now, reason=start.trigger)

        def change(old: KeyRecord | None) -> KeyRecord:
            record = _known(old, key)
            return replace(record, requested="", last_chance_used=record.last_chance_used or start.last_chance)

        self.world.journal.save(key=key.name, change=change, rotation=rotation, history=[event])
        self.emit(event)

    def _continue(self, key: ManagedKey, record: KeyRecord, rotation: Rotation) -> bool:
        """One step of a rotation in flight; False when nothing more can be done now."""
        now = self.world.clock.now()
        stopped = (
            self._observe_only
            or (record.paused and not rotation.forced and record.requested != ISSUE_NOW)
            or self._draining.is_set()
        )
        if stopped and may_be_cut_short(rotation):
            self._park(record, None)
            return False
        if record.requested:
            rotation = self._hurry(key, rotation, forced=record.requested == ISSUE_NOW)
        if rotation.quarantine in _REFUSED and past(last_chance(record), now):
            self._give_up(key, rotation)
            return True
        step = next_step(rotation, now, key.limits)
        match step:
            case Wait(until=moment):
                self._park(record, moment)
                return False
            case Ended():
                return False
            case Run(step=name):
                until = self._held_back(key, rotation, name)
                if until is not None:
                    self._park(record, until)
                    return False
                if name is Step.ISSUE:
                    self._issue(key, rotation)
                else:
                    self._run(key, rotation, name)
        return True

    def _held_back(self, key: ManagedKey, rotation: Rotation, step: Step) -> datetime | None:
        """Until when this step has to wait for something outside its own rotation."""
        if step in {Step.PREFLIGHT, Step.ISSUE} and not rotation.forced:
            hold = self.holds.until(rotation.provider)
            if hold is not None:
                return self._held(key, rotation, hold[1], hold[0])
            if (peer := self.skew.off(rotation.provider, "vault")) is not None:
                log.warning("held", key=key.name, reason=Reason.CLOCK_SKEW.value, peer=peer)
                return self._held(key, rotation, Reason.CLOCK_SKEW, self.world.clock.now() + SKEW_PAUSE)
        if step in {Step.ISSUE, Step.RESTART} and not self._sharing.take(key):
            return self.world.clock.now() + SHARED_PAUSE
        return None

    def _held(self, key: ManagedKey, rotation: Rotation, reason: Reason, until: datetime) -> datetime:
        """Say once why a due key does not move: a rotation that only waits is no rotation under way."""
        if rotation.reason is not reason:
            held = replace(rotation, reason=reason, detail="", attempts=max(1, rotation.attempts))
            event = told(held, "held", self.world.clock.now(), step=rotation.step, reason=reason)
            self.world.journal.save(
                key=key.name,
                change=lambda old: replace(_known(old, key), last_reason=reason, last_detail=""),
                rotation=held,
                history=[event],
            )
            self.emit(event)
        return until

    def _give_up(self, key: ManagedKey, rotation: Rotation) -> None:
        """A secret that was refused to the end of its life: close its rotation, so that one more may be begun."""
        now = self.world.clock.now()
        ended = replace(rotation, finished_at=now, result=Result.FAILED, not_before=None)
        event = told(ended, "rotation_ended", now, result=Result.FAILED.value, reason=rotation.quarantine)
        self.world.journal.save(
            key=key.name,
            change=lambda old: replace(_known(old, key), quarantine=rotation.quarantine),
            rotation=ended,
            history=[event],
        )
        self._let_go(key, ended)
        self.emit(event)

    def _let_go(self, key: ManagedKey, rotation: Rotation) -> None:
        """Give back what an ended or failing rotation held, and wake the keys that waited for it."""
        if rotation.finished_at is not None:
            self._steps.forget(rotation)
        now = self.world.clock.now()
        for name in self._sharing.give_back(key):
            self.world.journal.save(key=name, change=lambda old, name=name: _woken(old, self.keys[name], now))  # type: ignore[misc]

    def _hurry(self, key: ManagedKey, rotation: Rotation, *, forced: bool) -> Rotation:
        """Somebody asked for this key while it rotates: what waits is tried now, and no second rotation follows."""
        # A person may have one more secret issued where the broker refused the last one.
        answers = min(rotation.answers, MAX_ANSWERS - 1) if forced else rotation.answers
        hurried = replace(
            rotation,
            # the pause between two looks after a lost answer is no backoff
            not_before=_soon(rotation.not_before, self.world.clock.now()) if rotation.step is Step.LOOK else None,
            attempts=0,
            reason=None,  # of the tries before this one
            detail="",
            quarantine=None,
            answers=answers,
            # after a conflict, a person who insists accepts what somebody else wrote as the base to write over
            expected=None if forced and rotation.reason is Reason.VAULT_CONFLICT else rotation.expected,
            forced=rotation.forced or forced,
        )
        self.world.journal.save(
            key=key.name, change=lambda old: replace(_known(old, key), requested=""), rotation=hurried
        )
        return hurried

    def _run(self, key: ManagedKey, rotation: Rotation, step: Step) -> None:
        # After a crash inside the issue call the record still says ISSUE, and the step is LOOK: a look that fails must
        # not pass for a refusal of the call.
        rotation = replace(rotation, step=step)
        if step is Step.RESTART:
            # A journal that can't be written is noticed before the restart, not after it, again and again.
            self.world.journal.save(rotation=rotation)
        began = self.world.clock.monotonic()
        try:
            outcome = self._steps.run(step, key, rotation)
        except Stopping:
            raise
        except RotatorError as exc:
            outcome = failure(exc)
        data_key = self.world.seal.new_data_key() if step is Step.PREFLIGHT else None
        self._record(key, rotation, outcome, step, self.world.clock.monotonic() - began, data_key=data_key)

    def _issue(self, key: ManagedKey, rotation: Rotation) -> None:
        """The one call that can't be taken back: intent journaled first, answer and seal in one commit."""
        wrapped = self.world.journal.data_key(rotation.id)
        if wrapped is None:
            wrapped = self.world.seal.new_data_key()
        self.spool.reserve(rotation.id)
        rotation = begin_call(rotation, self.world.clock.now())
        self.world.journal.save(rotation=rotation, data_key=wrapped)
        began = self.world.clock.monotonic()
        outcome: Outcome
        blob: Blob | None = None
        try:
            issued = key.provider.issue(rotation.identity)
        except RotatorError as exc:
            outcome = failure(exc)
            if exc.body is not None:  # what came is kept, though it is no secret
                sealed = self.world.seal.seal(wrapped, exc.body, bound_to=bound_to(rotation))
                blob = Blob(at=self.world.clock.now(), sealed=sealed)
        else:
            answered = self.world.clock.now()
            self._steps.remember(rotation, issued.secret)
            sealed = self.world.seal.seal(wrapped, _plain(issued), bound_to=bound_to(rotation))
            blob = Blob(at=answered, sealed=sealed)
            outcome = IssueDone(
                answered_at=answered,
                issued_at=issued.issued_at,
                expires_at=issued.expires_at,
                expiry_source=issued.expiry_source,
            )
        seconds = self.world.clock.monotonic() - began
        self._record(key, rotation, outcome, Step.ISSUE, seconds, blob=blob, data_key=wrapped)
        self.spool.release(rotation.id)

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
        if isinstance(outcome, Failed) and (step is not Step.ISSUE or outcome.reason in _OF_THE_WHOLE_PROVIDER):
            self.holds.failed(rotation.provider, outcome)
        elif isinstance(outcome, IssueDone):
            self.holds.answered(rotation.provider)
        draw, pause = self.draw(), self.draw()
        events = list(story(key, rotation, new, outcome, step, seconds=seconds, at=now))
        new = self._keep(
            key,
            lambda old: key_after(_known(old, key), key, new, now, draw=draw, pause=pause),
            new,
            data_key=data_key,
            blob=self._erase_when_done(new) or blob,
            history=[event for event in events if not event.repeated],
        )
        if new.finished_at is not None or (new.not_before is not None and new.not_before > now):
            self._let_go(key, new)
        for event in events:
            self.emit(event)

    def _keep(
        self,
        key: ManagedKey,
        change: Change,
        rotation: Rotation,
        *,
        data_key: bytes | None,
        blob: Blob | Erase | None,
        history: Sequence[RotationEvent],
    ) -> Rotation:
        """Commit a step; returns the rotation as it was kept.

        An answer is not let go until the journal, the spool or Vault holds it (rule 1).
        """
        spooled = False
        while True:
            try:
                self.world.journal.save(
                    key=key.name, change=change, rotation=rotation, data_key=data_key, blob=blob, history=history
                )
            except JournalFailed as exc:
                if not isinstance(blob, Blob):
                    raise
                log.critical("journal_unwritable", key=key.name, error=exc.message, advice=exc.advice)
                spooled = spooled or self.spool.write(rotation, data_key or b"", blob)
                if not spooled and rotation.step is Step.PROMOTE:
                    rotation = self._straight_to_vault(key, rotation)
                safe = spooled or rotation.promoted_at is not None
                if safe and self.world.stop.is_set():
                    raise Stopping from exc
                threading.Event().wait(1.0)
            else:
                return rotation

    def _straight_to_vault(self, key: ManagedKey, rotation: Rotation) -> Rotation:
        """Neither journal nor spool takes the answer: let Vault hold it, by `cas` as always."""
        try:
            outcome = self._steps.run(Step.PROMOTE, key, rotation)
        except RotatorError as exc:
            log.critical("secret_only_in_memory", key=key.name, error=exc.message, advice=exc.advice)
            return rotation
        return advance(rotation, outcome, self.world.clock.now(), key.limits)

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
            return failed
        attempts = rotation.issues if step is Step.ISSUE else rotation.attempts
        return replace(failed, delay=backoff(step, failed.reason, attempts, self.draw()))

    @staticmethod
    def _erase_when_done(rotation: Rotation) -> Erase | None:
        """Erased from the journal when done: the secret is in Vault, and nothing is left to prove it with."""
        done = rotation.finished_at is not None and not rotation.sealed and rotation.vault_version is not None
        return ERASE if done else None

    def _park(self, record: KeyRecord, until: datetime | None) -> None:
        """Write down when this key wants attention again."""
        wake = until or self.world.clock.now() + IDLE

        def change(old: KeyRecord | None) -> KeyRecord:
            known = old if old is not None else record
            # Somebody woke the key while it was decided upon: that request is not slept over.
            return known if known.wake_at != record.wake_at else replace(known, wake_at=wake)

        if record.wake_at != wake:
            self.world.journal.save(key=record.name, change=change)

    def _park_unforeseen(self, name: str, exc: Exception) -> None:
        """Something that nobody foresaw: park the key, say so, never spin."""
        log.exception("unforeseen", key=name, reason=Reason.UNFORESEEN.value)
        self._sharing.give_back(self.keys[name])
        now = self.world.clock.now()
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
                known = _known(old, self.keys[name])
                return replace(
                    known,
                    failures=known.failures + 1,
                    last_reason=Reason.UNFORESEEN,
                    last_detail=type(exc).__name__,
                    not_before=now + UNFORESEEN_PAUSE,
                    wake_at=now + UNFORESEEN_PAUSE,
                )

            self.world.journal.save(key=name, change=change, rotation=waiting, history=[event])
        self.emit(event)


def _plain(issued: Issued) -> bytes:
    """What is sealed: the secret, and the little that a person would need to use it by hand."""
    expires = issued.expires_at.isoformat() if issued.expires_at else None
    return json.dumps({"id": issued.identity.id, "secret": issued.secret.reveal(), "expires_at": expires}).encode()


def _known(record: KeyRecord | None, key: ManagedKey) -> KeyRecord:
    """A key's record, or a blank one where somebody has just dropped it."""
    return record if record is not None else KeyRecord(name=key.name, provider=key.provider.name, id=key.id)


def _woken(record: KeyRecord | None, key: ManagedKey, now: datetime) -> KeyRecord:
    return replace(_known(record, key), wake_at=now)


def _stirred(record: KeyRecord | None, key: ManagedKey, now: datetime, asked: str) -> KeyRecord:
    known = _known(record, key)
    return replace(known, wake_at=now, not_before=None, requested=known.requested or asked)


def _soon(moment: datetime | None, now: datetime) -> datetime | None:
    """A pause between two looks, never longer than it was given, whatever the clock did since."""
    return min(moment, now + LOOK_AGAIN) if moment is not None else None
