"""The long-running process: a handful of APScheduler jobs, a bounded pool of workers, signals, and an orderly end.

No rotation depends on a job's having fired: the journal's `wake_at` says what is due, and the wake job only reads it
(measured.md, "Scheduling": APScheduler's defaults drop jobs, so `misfire_grace_time=None`, and one job, not one a key).
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor as JobThreads
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from rotator.engine import Engine
from rotator.errors import JournalFailed
from rotator.metrics import Metrics
from rotator.model import ZERO
from rotator.notify import notify, watchdog_interval
from rotator.watcher import Watcher

log = structlog.get_logger(__name__)

# Most of a rotation is waiting, so threads are cheap; too few, and one platform that is away delays all the others.
WORKERS = 64
# A wall clock that jumps back by more than this leaves the jobs in what is the future now.
CLOCK_JUMP = timedelta(seconds=2)
# The longest sleep between two looks at the journal, and the shortest.
LONGEST_SLEEP = timedelta(seconds=30)
SHORTEST_SLEEP = timedelta(milliseconds=20)
SECOND = timedelta(seconds=1)
HISTORY = timedelta(days=365)
_WAKE = "wake"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One of the daemon's few periodic jobs."""

    name: str
    run: Callable[[], None]
    every: timedelta


class Daemon:
    """Runs the engine until it is told to stop."""

    def __init__(
        self,
        engine: Engine,
        watcher: Watcher,
        metrics: Metrics,
        *,
        shutdown_grace: timedelta,
        workers: int = WORKERS,
    ) -> None:
        self._engine, self._watcher, self._metrics = engine, watcher, metrics
        self._grace = shutdown_grace
        self._clock = engine.world.clock
        self._workers = workers
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="rotation")
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._follow_lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._scheduler = BackgroundScheduler(
            executors={"default": JobThreads(len(self._jobs()) + 2)},
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
            timezone="UTC",
        )
        self._ticked_at: float | None = None  # by the clock that never steps

    # --- from outside ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the jobs; returns at once."""
        now = self._clock.now()
        try:
            self._engine.catch_up()
        except JournalFailed as exc:  # the next start finds them
            log.error("journal_failed", reason=exc.reason.value, error=exc.message, advice=exc.advice)
        for job in self._jobs():
            self._scheduler.add_job(
                self._guarded(job), "interval", seconds=job.every.total_seconds(), next_run_time=now, id=job.name
            )
        self._scheduler.add_job(self._wake, "date", run_date=now, id=_WAKE)
        self._scheduler.start()

    def poke(self) -> None:
        """Look at the journal now: somebody asked for something."""
        with self._follow_lock:
            if not self._engine.world.stop.is_set():
                self._sleep_until(self._clock.now())

    def alive(self) -> bool:
        """Whether the scheduler has woken up lately (what /livez says)."""
        ticked = self._ticked_at
        return ticked is not None and self._clock.monotonic() - ticked < 4 * LONGEST_SLEEP.total_seconds()

    def run_until_signalled(self) -> None:
        """Block until SIGTERM or SIGINT, then stop in order. A second one ends the waiting for rotations.

        SIGHUP, by which others reload and which a closed terminal sends, is logged and changes nothing.
        """

        # A handler runs between any two bytecodes of the main thread, also while that one holds an Event's lock;
        # SimpleQueue.put is the one thing that is safe there.
        signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        # SIGHUP too has a handler: SIG_IGN would be inherited by the programs of `command` consumers.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda caught, _frame: signals.put(caught))
        keys = len(self._engine.keys)
        notify("READY=1", f"STATUS={keys} key{'' if keys == 1 else 's'}")
        interval = min(watchdog_interval() or SECOND, SECOND)
        offset = self._offset()
        while not _told_to_stop(signals, interval):
            if self.alive():
                notify("WATCHDOG=1")
            offset = self._mind_the_clock(offset)
        self.stop(impatient=lambda: _told_to_stop(signals, ZERO))

    def _offset(self) -> float:
        """The wall clock against the clock that never steps, in seconds."""
        return self._clock.now().timestamp() - self._clock.monotonic()

    def _mind_the_clock(self, before: float) -> float:
        """After a step back, APScheduler would sleep for as long as the step: bring its jobs to now."""
        offset = self._offset()
        if before - offset > CLOCK_JUMP.total_seconds():
            log.warning("clock_stepped_back", seconds=round(before - offset, 3))
            for job in self._scheduler.get_jobs():
                with contextlib.suppress(JobLookupError):  # the wake-up may just have fired
                    job.modify(next_run_time=self._clock.now())
            try:
                self._engine.wake_all()
            except JournalFailed as exc:
                log.error("journal_failed", reason=exc.reason.value, error=exc.message, advice=exc.advice)
            self.poke()
        return offset

    def stop(self, impatient: Callable[[], bool] = lambda: False) -> None:
        """Begin nothing new, give rotations in flight `shutdown_grace` to end, leave the rest resumable.

        Args:
            impatient: asked again and again; True ends the grace at once.
        """
        notify("STOPPING=1", "STATUS=finishing rotations in flight")
        self._engine.drain()
        log.info("stopping", in_flight=self._awaited(), grace_seconds=self._grace.total_seconds())
        deadline = self._clock.monotonic() + self._grace.total_seconds()
        while self._awaited() and self._clock.monotonic() < deadline and not impatient():
            with self._idle:
                self._idle.wait(0.2)
        # Under the lock: APScheduler holds its job store while it waits for its threads, and a job that wants to
        # schedule the next wake-up just then would wait for that store for ever.
        with self._follow_lock:
            self._engine.world.stop.set()
        self._scheduler.shutdown(wait=True)
        self._pool.shutdown(wait=True)  # an issue call on its way is waited for: its answer must be sealed
        log.info("stopped", left_resumable=sorted(self._engine.world.journal.open_rotations()))

    # --- jobs ------------------------------------------------------------------------------------------------

    def _jobs(self) -> tuple[Job, ...]:
        watcher = self._watcher
        return (
            Job(name="look", run=watcher.look_at_providers, every=SECOND),
            Job(name="vault", run=watcher.keep_vault_login, every=SECOND),
            Job(name="drift", run=watcher.look_at_vault, every=SECOND),
            Job(name="probe", run=watcher.probe_secrets, every=5 * SECOND),
            Job(name="journal", run=self._try_the_journal, every=5 * SECOND),
            # what kept a consumer from being restarted (an API server, a control broker) may be back by now
            Job(name="catch_up", run=partial(self._engine.catch_up, unproven=False), every=timedelta(hours=1)),
            Job(name="housekeeping", run=self._keep_house, every=timedelta(hours=1)),
        )

    def _guarded(self, job: Job) -> Callable[[], None]:
        def run() -> None:
            if self._engine.world.stop.is_set():
                return
            try:
                job.run()
            except JournalFailed as exc:
                log.error("job_failed", job=job.name, reason=exc.reason.value, error=exc.message, advice=exc.advice)
            self._follow()

        return run

    def _try_the_journal(self) -> None:
        """After a write that failed, see whether the next one would: nobody else may write for an hour."""
        journal, spool = self._engine.world.journal, self._engine.spool
        with contextlib.suppress(JournalFailed, OSError):  # it was logged when it failed, and is shown until it is well
            if journal.unwritable is not None:
                journal.try_writing()
            if spool.refused:
                spool.try_reserving()

    def _keep_house(self) -> None:
        self._engine.world.journal.prune(self._clock.now() - HISTORY)

    def _wake(self) -> None:
        """Hand every due key to the pool, and sleep until the next one."""
        now = self._clock.now()
        self._ticked_at = self._clock.monotonic()
        self._metrics.tick.set(now.timestamp())
        try:
            with self._lock:
                room = 2 * self._workers + len(self._busy)
            for name, at in self._engine.world.journal.upcoming(room):
                if at <= now and not self._in_vain():
                    self._submit(name, now - at)
        except JournalFailed as exc:
            log.error("job_failed", job=_WAKE, reason=exc.reason.value, error=exc.message, advice=exc.advice)
        self._follow()

    def _submit(self, name: str, late: timedelta) -> None:
        with self._lock:
            if name in self._busy or name not in self._engine.keys:
                return
            self._busy.add(name)
        self._metrics.lag.set(late.total_seconds())
        self._pool.submit(self._work, name)

    def _work(self, name: str) -> None:
        try:
            self._engine.work(name)
        except JournalFailed as exc:
            log.error("journal_failed", key=name, reason=exc.reason.value, error=exc.message, advice=exc.advice)
        finally:
            with self._idle:
                self._busy.discard(name)
                self._idle.notify_all()
            self._follow()

    def _follow(self) -> None:
        """Sleep until the next key that nobody is working on wants attention.

        Reading and scheduling are one step under a lock, so that the last to finish has the last word.
        """
        with self._follow_lock:
            if self._engine.world.stop.is_set():
                return
            now = self._clock.now()
            with self._lock:
                busy = set(self._busy)
            try:
                coming = [at for name, at in self._engine.world.journal.upcoming(len(busy) + 1) if name not in busy]
            except JournalFailed:
                coming = [now + timedelta(seconds=1)]
            wanted = min([*coming, now + LONGEST_SLEEP])
            self._sleep_until(max(wanted, now + SHORTEST_SLEEP))

    def _sleep_until(self, moment: datetime) -> None:
        if self._scheduler.running:
            # replace_existing: the date job is gone once it has fired
            self._scheduler.add_job(self._wake, "date", run_date=moment, id=_WAKE, replace_existing=True)

    def _in_vain(self) -> bool:
        """Whether the daemon stops and its journal takes nothing: a key would come back as it is, again and again."""
        return self._engine.draining and self._engine.world.journal.unwritable is not None

    def _awaited(self) -> list[str]:
        """The keys that are worked on, and those whose rotation in flight can still move on within the grace."""
        with self._lock:
            busy = set(self._busy)
        try:
            waiting = set() if self._in_vain() else self._moving_on()
        except JournalFailed:
            waiting = set()  # it can't even be read
        return sorted(busy | waiting)

    def _moving_on(self) -> set[str]:
        """The keys whose rotation in flight wants attention within the grace."""
        now = self._clock.now()
        records = {record.name: record for record in self._engine.world.journal.all_keys()}
        return {
            name
            for name, rotation in self._engine.world.journal.open_rotations().items()
            if rotation.issues > 0
            and (record := records.get(name)) is not None
            and record.wake_at is not None
            and record.wake_at <= now + self._grace
            and name in self._engine.keys
        }


def _told_to_stop(signals: queue.SimpleQueue[int], within: timedelta) -> bool:
    """Whether a signal to stop arrives within this time."""
    try:
        caught = signals.get(timeout=within.total_seconds())
    except queue.Empty:
        return False
    if caught != signal.SIGHUP:
        return True
    # logged here and not in the handler, which may have interrupted a line that is being written
    log.warning("hangup_ignored", advice="the configuration is read at the start alone: restart the daemon")
    return False
