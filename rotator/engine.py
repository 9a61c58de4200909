"""claim → gather → next_step → run → journal → event, for one key at a time.

`work(name)` takes a key as far as it can go now, and leaves in its record when it wants attention again (`wake_at`).
It may be called at any time, from any thread, for any key: a key has one rotation in flight (rule 4).
"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import structlog

from rotator.aftermath import key_after, story, told
from rotator.batches import as_configured
from rotator.beginnings import Beginnings
from rotator.claims import ClockSkew, ConsumerClaims, ProviderHolds, Stampede
from rotator.draft import REPEATABLE, Draft, must_be_written
from rotator.errors import JournalFailed, Permanent, RotatorError, Stopping, Transient
from rotator.frozen import replace
from rotator.issuing import Issuing
from rotator.journal.spool import Spool
from rotator.journal.sqlite import ERASE_SOON, Blob, Change, Erase
from rotator.keys import (
    COMPROMISED,
    FORCED,
    ISSUE_IN_WINDOW,
    RESTART,
    RESUMED,
    ROLL_BACK,
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
    LOOK_AGAIN,
    MAX_ANSWERS,
    advance,
    backoff,
    begin_call,
    next_step,
    restart_begins,
    roll_back,
)
from rotator.managed import Fleet, ManagedKey
from rotator.model import Result, RotationEvent, Step
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
# How long a key waits at most for a consumer that another key is restarting; it is woken when that one is done.
SHARED_PAUSE = timedelta(seconds=30)
# How soon a clock that is off is looked at again.
SKEW_PAUSE = timedelta(seconds=30)
# How soon a key that came due with too many others is looked at again.
STAMPEDE_PAUSE = timedelta(minutes=5)
# Seconds that a worker keeps a key which could not be journaled.
JOURNAL_PAUSE = 5.0
_REFUSED = frozenset({Reason.SECRET_REFUSED, Reason.SUBSCRIPTION_REFUSED})
# What makes a key due by itself.
_BY_THE_CLOCK = frozenset({Reason.NEAR_EXPIRY, Reason.MAX_AGE, Reason.EXPIRED})
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
        self._dice = dice or random.Random()  # noqa: S311 - jitter and backoff are no secrets
        self._draining = threading.Event()
        self._claims: dict[str, threading.Lock] = {name: threading.Lock() for name in keys}
        self.drafts: dict[str, Draft] = {}  # of the keys that are worked on now
        self._sharing = ConsumerClaims()
        self._beginnings = Beginnings(world.clock)
        self.holds = ProviderHolds(world.clock, self.draw)
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
                self._write(key)
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

    def catch_up(self) -> None:
        """Once, at the start: consumers that are not proven on the current version, with no rotation under way to see
        to it, are restarted for it. Who confirmed that version, or was never restarted here, is left alone."""
        if self._observe_only:
            return
        now, running = self.world.clock.now(), self.world.journal.open_rotations()
        for name, key in self.keys.items():
            record = self.world.journal.key(name)
            idle = record is None or name in running or record.paused or record.quarantine is not None
            if record is None or idle or record.requested or record.drift is not None:
                continue
            if _behind(record, key):
                self.world.journal.save(
                    key=name,
                    change=lambda old, key=key: replace(_known(old, key), requested=RESTART, wake_at=now),  # type: ignore[misc]
                )

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
        self.drafts.pop(key.name, None)
        try:
            self._go_on(key)
        except Exception:
            self._write(key)  # what was done before is done
            raise
        self._write(key)

    def _go_on(self, key: ManagedKey) -> None:
        while not self.world.stop.is_set():
            record, rotation = self._now(key)
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
                    self._hold_back(key, record)
                    return
                self._begin(key, record, decision)
            elif not self._continue(key, record, rotation):
                return

    # --- what is kept ----------------------------------------------------------------------------------------

    def _now(self, key: ManagedKey) -> tuple[KeyRecord | None, Rotation | None]:
        """The key and its open rotation, as the steps so far have left them."""
        draft = self.drafts.get(key.name)
        record, rotation = self.world.journal.key(key.name), draft.rotation if draft is not None else None
        if draft is not None and draft.changes:
            record = draft.record(record)  # what the steps say of it is of no matter to what comes next
        return record, rotation or self.world.journal.open_rotation(key.name)

    def _note(self, key: ManagedKey, rotation: Rotation | None, change: Change | None = None, **more: Any) -> None:
        """Keep what a step did until the next `_save`."""
        self.drafts.setdefault(key.name, Draft()).add(rotation=rotation, change=change, **more)

    def _save(
        self, key: ManagedKey, rotation: Rotation | None = None, change: Change | None = None, **more: Any
    ) -> None:
        """Commit this, and with it what was noted before."""
        self._note(key, rotation, change, **more)
        self._write(key)

    def _write(self, key: ManagedKey) -> None:
        """Commit what was noted. A journal that refuses it has it forgotten: the steps run again."""
        draft = self.drafts.get(key.name)
        if draft is None:
            return
        try:
            draft.commit(self.world.journal, key.name)
        except JournalFailed:
            if draft.begins and draft.rotation is not None:
                self._issuing.abandon(draft.rotation)
            raise
        finally:
            del self.drafts[key.name]

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
            rotation = _catching_up(rotation, record, key, now)
        event = told(rotation, "rotation_started", now, reason=start.trigger)

        def change(old: KeyRecord | None) -> KeyRecord:
            known = _known(old, key)
            chance = known.last_chance_used or start.last_chance
            # what somebody asks for while this waits to be written is heard afterwards
            requested = "" if known.requested == record.requested else known.requested
            return replace(known, requested=requested, vouched=(), held_back=None, last_chance_used=chance)

        self._note(key, rotation, change, history=[event])
        self.drafts[key.name].begins = True
        self.emit(event)

    def _hold_back(self, key: ManagedKey, record: KeyRecord) -> None:
        """Too many keys came due against the plan: say so once, and look again from time to time."""
        wake = self.world.clock.now() + STAMPEDE_PAUSE
        event = RotationEvent(
            at=self.world.clock.now(),
            key=key.name,
            provider=key.provider.name,
            name="held",
            step=Step.PREFLIGHT,
            reason=Reason.STAMPEDE,
        )
        first = record.held_back is not Reason.STAMPEDE
        self._save(
            key,
            change=lambda old: replace(_known(old, key), wake_at=wake, held_back=Reason.STAMPEDE),
            history=[event] if first else [],
        )
        if first:
            log.error("held", key=key.name, reason=Reason.STAMPEDE.value)
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
        rotation = self._heard(key, record, rotation, now)
        if rotation.quarantine in _REFUSED and past(last_chance(record), now):
            self._give_up(key, rotation)
            return True
        if self._begun_too_early(record, rotation, now):
            self._call_off(key, rotation)
            return True
        step = next_step(rotation, now, key.limits)
        match step:
            case Wait(until=moment):
                if rotation.step is Step.RESTART:
                    self._let_go(key, rotation)  # a window's opening may be days away
                self._park(record, moment)
                return False
            case Ended():
                return False
            case Run(step=name):
                until = self._held_back(key, rotation, name)
                if until is not None:
                    self._park(record, until)
                    return False
                if must_be_written(rotation, name):
                    self._write(key)
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
            self._note(key, known)
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
            self._save(key, moved)
        return moved

    def _held_back(self, key: ManagedKey, rotation: Rotation, step: Step) -> datetime | None:
        """Until when this step has to wait for something outside its own rotation."""
        if step in {Step.PREFLIGHT, Step.ISSUE} and not rotation.forced:
            hold = self.holds.until(rotation.provider)
            if hold is not None:
                return self._held(key, rotation, hold[1], hold[0])
            if (peer := self.skew.off(rotation.provider, "vault")) is not None:
                log.warning("held", key=key.name, reason=Reason.CLOCK_SKEW.value, peer=peer)
                return self._held(key, rotation, Reason.CLOCK_SKEW, self.world.clock.now() + SKEW_PAUSE)
        if step in {Step.ISSUE, Step.RESTART} and not self._sharing.take(key, self.world.clock.now()):
            return self.world.clock.now() + SHARED_PAUSE
        return None

    def _held(self, key: ManagedKey, rotation: Rotation, reason: Reason, until: datetime) -> datetime:
        """Say once why a due key does not move: a rotation that only waits is no rotation under way."""
        if rotation.reason is not reason:
            held = replace(rotation, reason=reason, detail="", attempts=max(1, rotation.attempts))
            if rotation.issues == 0:
                held = replace(held, step=Step.PREFLIGHT)  # what was checked before the wait is old after it (rule 8)
            event = told(held, "held", self.world.clock.now(), step=rotation.step, reason=reason)
            self._save(
                key,
                held,
                lambda old: replace(_known(old, key), last_reason=reason, last_detail=""),
                history=[event],
            )
            self.emit(event)
        return until

    def _give_up(self, key: ManagedKey, rotation: Rotation) -> None:
        """A secret that was refused to the end of its life: close its rotation, so that one more may be begun."""
        now = self.world.clock.now()
        ended = replace(rotation, finished_at=now, result=Result.FAILED, not_before=None)
        event = told(ended, "rotation_ended", now, result=Result.FAILED.value, reason=rotation.quarantine)
        self._save(key, ended, lambda old: replace(_known(old, key), quarantine=rotation.quarantine), history=[event])
        self._let_go(key, ended)
        self.emit(event)

    def _begun_too_early(self, record: KeyRecord, rotation: Rotation, now: datetime) -> bool:
        """Whether a clock that was wrong made this key due, and the right one does not (rule 11).

        A host that dreamt of next year must not issue for its whole fleet as soon as it wakes.
        """
        held = rotation.reason is Reason.CLOCK_SKEW and rotation.trigger in _BY_THE_CLOCK
        if not held or rotation.forced or not may_be_cut_short(rotation):
            return False
        due = past(record.rotate_at, now) or past(record.expires_at, now)
        return not due and self.skew.off(rotation.provider, "vault") is None

    def _call_off(self, key: ManagedKey, rotation: Rotation) -> None:
        """Nothing was issued: end it, and begin another one when the key is due."""
        now = self.world.clock.now()
        # a chosen secret of which nobody has heard waits for nobody
        ended = replace(rotation, finished_at=now, result=Result.FAILED, not_before=None, sealed=False)
        event = told(ended, "rotation_ended", now, result=Result.FAILED.value, reason=rotation.reason)

        def change(old: KeyRecord | None) -> KeyRecord:
            known = _known(old, key)
            return replace(known, last_chance_used=known.last_chance_used and known.quarantine is None)

        self._save(key, ended, change, history=[event])
        self._let_go(key, ended)
        self.emit(event)

    def _let_go(self, key: ManagedKey, rotation: Rotation) -> None:
        """Give back what an ended or failing rotation held, and wake the keys that waited for it."""
        if rotation.finished_at is not None:
            self._steps.forget(rotation)
            self._beginnings.forget(rotation)
            if rotation.issues == 0:
                self.world.seal.forget(self.world.journal.data_key(rotation.id))
                self._issuing.forget(rotation)
            if self.spool.holds(rotation.id):
                self.spool.release(rotation.id)
        now = self.world.clock.now()
        settled = now + key.limits.settle
        for name in self._sharing.give_back(key, now, settled):
            self.world.journal.save(key=name, change=lambda old, name=name: _woken(old, self.keys[name], settled))  # type: ignore[misc]

    def _heard(self, key: ManagedKey, record: KeyRecord, rotation: Rotation, now: datetime) -> Rotation:
        """What a person, or the key's own date, asks of a rotation in flight."""
        unheard = set(record.vouched) & {c.name for c in rotation.consumers if not c.vouched}
        if unheard and rotation.rolling_back is None:
            rotation = self._vouched(key, rotation, record.vouched, now)
        waiting = resting(rotation) and not rotation.no_grace
        asked = record.requested in FORCED - {ROLL_BACK} or past(record.rotate_at, now)
        if waiting and (record.requested == COMPROMISED or (asked and rotation.consumers)):
            # The consumers are proven on the new secret; the next rotation begins as soon as the old key is gone. Where
            # there are none, nobody has proven anything, and the grace is kept (rule 5).
            rotation = replace(rotation, no_grace=True)
            self._save(key, rotation)
        proven = resting(rotation) or (rotation.reconfirmed_at is not None and rotation.rolling_back is None)
        if not record.requested or (proven and record.requested not in {ROLL_BACK, RESUMED}):
            return rotation  # asked for anew: begun when the old key is gone
        if record.requested == ROLL_BACK:
            return self._turn_around(key, rotation, now)
        return self._hurry(key, rotation, record.requested)

    def _vouched(self, key: ManagedKey, rotation: Rotation, names: Iterable[str], now: datetime) -> Rotation:
        consumers = tuple(
            replace(c, vouched=True, touched=True, restarted_at=c.restarted_at or now, seen_at=c.seen_at or now)
            if c.name in names
            else c
            for c in rotation.consumers
        )
        rotation = replace(rotation, consumers=consumers, not_before=None)
        self._save(key, rotation)
        return rotation

    def _turn_around(self, key: ManagedKey, rotation: Rotation, now: datetime) -> Rotation:
        """`rotator rollback`: where there is no way back, the rotation goes on and the request is over."""
        back = roll_back(rotation, Reason.ROLLBACK_REQUESTED, "", now)
        turned = back if back is not None else rotation
        event = told(turned, "rolling_back", now, reason=None if back is not None else Reason.ROLLBACK_IMPOSSIBLE)
        draw, pause = self.draw(), self.draw()

        def change(old: KeyRecord | None) -> KeyRecord:
            record = replace(_known(old, key), requested="")
            return key_after(record, key, turned, now, draw=draw, pause=pause) if turned.finished_at else record

        self._save(key, turned, change, blob=self._erase_when_done(turned), history=[event])
        if turned.finished_at is not None:
            self._let_go(key, turned)
        self.emit(event)
        return turned

    def _hurry(self, key: ManagedKey, rotation: Rotation, requested: str) -> Rotation:
        """Somebody asked for this key while it rotates: what waits is tried now, and no second rotation follows."""
        forced = requested in FORCED
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
            no_grace=rotation.no_grace or requested == COMPROMISED,
        )
        self._save(key, hurried, lambda old: replace(_known(old, key), requested=""))
        return hurried

    def _run(self, key: ManagedKey, rotation: Rotation, step: Step) -> None:
        # After a crash inside the issue call the record still says ISSUE, and the step is LOOK: a look that fails must
        # not pass for a refusal of the call.
        if rotation.step is not step:
            rotation = replace(rotation, step=step)
        if step is Step.RESTART:
            # A journal that can't be written is noticed before the restart, not after it, again and again.
            rotation = restart_begins(rotation, self.world.clock.now(), key.limits)
            self._save(key, rotation)
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
        self._save(key, rotation, data_key=wrapped if first else None)
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
            record = key_after(_known(old, key), key, shown, now, draw=draw, pause=pause)
            if checks is not None:
                record = replace(record, checks=tuple(checks), checked_at=now)
            return self._asleep(record, key, now) if shown.finished_at is not None else record

        self._note(
            key,
            new,
            change if checks is not None else None,
            step=change if checks is None else None,
            data_key=data_key,
            blob=self._erase_when_done(new) or blob,
            history=[event for event in events if not event.repeated],
        )
        if not _may_wait(step, new, now):
            try:
                new = self._issuing.keep(key, self.drafts[key.name], new)
            finally:
                del self.drafts[key.name]
        if isinstance(outcome, IssueDone):
            self.stampede.expected(key.name)
        waits = new.not_before is not None and new.not_before > now
        # who waits for a delivery is not failing: its consumers are its own until that is late
        if new.finished_at is not None or resting(new) or (waits and not isinstance(outcome, DeliverLater)):
            self._let_go(key, new)
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
            return failed
        attempts = rotation.issues if step is Step.ISSUE else rotation.attempts
        delay = backoff(step, failed.reason, attempts, self.draw(), unsettled=rotation.unsettled or failed.unknown)
        return replace(failed, delay=delay)

    @staticmethod
    def _erase_when_done(rotation: Rotation) -> Erase | None:
        """Erased from the journal when done: the secret is in Vault, or it was taken back and nobody uses it."""
        if rotation.finished_at is None or rotation.sealed:
            return None
        return ERASE_SOON if rotation.vault_version is not None or rotation.result is Result.ROLLED_BACK else None

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
            self._save(self.keys[record.name], change=change)

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
                known = _known(old, self.keys[name])
                return replace(
                    known,
                    failures=known.failures + 1,
                    last_reason=Reason.UNFORESEEN,
                    last_detail=type(exc).__name__,
                    not_before=now + UNFORESEEN_PAUSE,
                    wake_at=now + UNFORESEEN_PAUSE,
                )

            self._save(self.keys[name], waiting, change, history=[event])
        self.emit(event)


def _by_drift(record: KeyRecord) -> bool:
    """Whether `on_drift: restore` asked for a rotation: a Vault that lost everything asks for all of them at once."""
    return record.requested == ISSUE_IN_WINDOW and record.drift is not None


def _catching_up(rotation: Rotation, record: KeyRecord, key: ManagedKey, now: datetime) -> Rotation:
    """Nothing is issued: those who missed the current version are brought to it."""
    return replace(
        rotation,
        restart_only=True,
        step=Step.DELIVER,
        vault_version=record.vault_version,
        expected=record.fingerprint,
        promoted_at=now,
        consumers=tuple(ConsumerProgress(name=name) for name in _behind(record, key)),
    )


def _behind(record: KeyRecord, key: ManagedKey) -> list[str]:
    """Consumers that are not known to run on the current version."""
    named = [(link.consumer.name, link.open_watch is not None) for link in key.consumers]
    return [name for name, seen in named if versions_behind(record, name, seen=seen)]


def _known(record: KeyRecord | None, key: ManagedKey) -> KeyRecord:
    """A key's record, or a blank one where somebody has just dropped it."""
    return record if record is not None else KeyRecord(name=key.name, provider=key.provider.name, id=key.id)


def _may_wait(step: Step, new: Rotation, now: datetime) -> bool:
    """Whether a step's record may be written with what comes next: another step, or the time of the next try."""
    if new.finished_at is not None or step is Step.ISSUE:
        return False  # an answer is kept by all means
    if new.not_before is not None and new.not_before > now:
        return True
    return step in REPEATABLE and new.reason is None and new.quarantine is None


def _woken(record: KeyRecord | None, key: ManagedKey, now: datetime) -> KeyRecord:
    return replace(_known(record, key), wake_at=now)


def _stirred(record: KeyRecord | None, key: ManagedKey, now: datetime, asked: str) -> KeyRecord:
    known = _known(record, key)
    return replace(known, wake_at=now, not_before=None, requested=known.requested or asked)


def _soon(moment: datetime | None, now: datetime) -> datetime | None:
    """A pause between two looks, never longer than it was given, whatever the clock did since."""
    return min(moment, now + LOOK_AGAIN) if moment is not None else None
