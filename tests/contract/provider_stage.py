"""One key of one platform on the real engine: journal in a folder, real provider over real sockets, a moved clock.

A kill leaves behind what a dead process leaves: the files as they are at that moment, and nothing closed in order. They
are copied into a new folder, and a fresh engine starts on the copy.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from contract.provider_place import Place
from fakes import FakeStore
from provider_site import built, ignore
from rotator.clock import SystemClock
from rotator.engine import Engine
from rotator.errors import RotatorError
from rotator.journal.seal import Fingerprints, Seal
from rotator.journal.spool import Spool
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import ISSUE_IN_WINDOW, KeyRecord, resting
from rotator.managed import ManagedKey
from rotator.model import Identity, RequestDone, Result, RotationEvent, Secret, Step, Strategy, UpstreamKey, Verdict
from rotator.policy import Policy
from rotator.ports import OnRequest
from rotator.rotation import Limits, Rotation
from rotator.taking_up import introduce, take_back
from rotator.verify import MqttProber
from rotator.watcher import Watcher
from rotator.world import World

NAME, PATH = "building-a", "mqtt/building-a"
VERBS = {Strategy.IN_PLACE: "issue", Strategy.REPLACE: "create", Strategy.CHOSEN: "set_secret"}
GRACE = timedelta(hours=1)
# Engine calls within which a rotation must have succeeded, whatever the fault.
MOST_WAKES = 60

BEFORE_CALL, AFTER_CALL, AFTER_RECORD = "before the call", "after the call", "after its record"
# where a process dies → issue calls that the platform sees then, those of the next process included
DEATHS = {BEFORE_CALL: 1, AFTER_CALL: 2, AFTER_RECORD: 1}


class Killed(BaseException):
    """The process is gone."""


class MovedClock(SystemClock):
    """The machine's clock, which can be moved forward: both of its hands."""

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self._ahead

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead.total_seconds()

    def move(self, span: timedelta) -> None:
        """Let time pass."""
        self._ahead += max(timedelta(0), span)


@dataclass
class Calls:
    """What became of the issue calls, over all lives of the process.

    `raised` has an entry for each call that ended: its error, or None. `die` is where the process is killed next: one
    of `DEATHS`, or `after the request` and its operation.
    """

    raised: list[RotatorError | None] = field(default_factory=list)
    die: str = ""

    def dies(self, where: str) -> None:
        """Raise Killed, once, where that is asked for."""
        if self.die == where:
            self.die = ""
            raise Killed


class Tapped:
    """The real provider; its issue call is counted, and the process can die beside it."""

    def __init__(self, inner: Any, calls: Calls) -> None:
        self._inner, self._calls = inner, calls
        setattr(self, VERBS[inner.strategy], self._tapped(getattr(inner, VERBS[inner.strategy])))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _tapped(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._calls.dies(BEFORE_CALL)
            try:
                issued = verb(*args)
            except RotatorError as exc:
                self._calls.raised.append(exc)
                raise
            self._calls.raised.append(None)
            self._calls.dies(AFTER_CALL)
            return issued

        return call


def provider_at(place: Place, clock: MovedClock, on_request: OnRequest = ignore, **settings: Any) -> Any:
    """The provider of a place's section, as the program makes it; the caller closes it."""
    section = {**place.section, **settings}
    kind = section.pop("kind")
    return built(kind, "acme", section, secrets=place.secrets, clock=clock, on_request=on_request)


class Stage:
    """A key that somebody made by hand, its platform, and the process that manages it now.

    Args:
        directory: an empty folder.
        blank: a folder that `blank_journal` made.
        place: the platform, running.
        clock: the platform's and the process's.
        settings: over the place's section of the configuration.
    """

    def __init__(self, directory: Path, blank: Path, place: Place, clock: MovedClock, **settings: Any) -> None:
        self.place, self.clock, self._settings = place, clock, settings
        self._directory = directory / "life-0"
        shutil.copytree(blank, self._directory)
        self._lives = 0
        place.calm()
        self.before = place.count()
        self.id, self.old_secret = place.add()
        self.calls = Calls()
        self._boot()
        self.old = self.listed(self.id).identity or self.provider.identity(self.id)
        fields = {"id": self.id, "username": self.old.username, "password": self.old_secret.reveal()}
        self.store.versions.append(fields)
        self._look()

    # --- a process

    store: FakeStore

    def _boot(self) -> None:
        """Start a process on the files, as `app.build` does."""
        if not hasattr(self, "store"):
            self.store = FakeStore()
        self.real = self.build()
        self.provider: Any = Tapped(self.real, self.calls)
        self.journal = SqliteJournal(f"sqlite:///{self._directory}/rotator.db")
        spool = Spool(self._directory / "spool")
        take_back(spool, self.journal)
        key = self._managed()
        introduce(self.journal, {NAME: key}, self.clock)
        world = World(
            clock=self.clock,
            store=self.store,
            prober=MqttProber(),
            journal=self.journal,
            seal=Seal(b"k" * 32),
            fingerprints=Fingerprints(b"f" * 32),
            stop=threading.Event(),
        )
        self.engine = Engine({NAME: key}, world, observers=[self._told], spool=spool)

    def build(self) -> Any:
        """The provider, as its section of the configuration makes it."""
        return provider_at(self.place, self.clock, self._asked, **self._settings)

    def close(self) -> None:
        """End the process."""
        self.provider.close()
        self.journal.close()

    def _reboot(self) -> None:
        """The process is dead: start another one on the files as they are now."""
        self._lives += 1
        dead, left = self.journal, self._directory
        self._directory = left.with_name(f"life-{self._lives}")
        # a dead process moves nothing from the log to the file any more
        with dead._writing().between():
            shutil.copytree(left, self._directory, ignore=shutil.ignore_patterns("*-shm"))
        dead.close()
        self.provider.close()
        self._boot()

    def _asked(self, done: RequestDone) -> None:
        self.calls.dies(f"after the request {done.operation}")

    def _told(self, event: RotationEvent) -> None:
        """The engine tells of a step when it is written down."""
        if event.name == "step" and event.step is Step.ISSUE and event.result == "ok":
            self.calls.dies(AFTER_RECORD)

    def _managed(self) -> ManagedKey:
        """As `app` wires one."""
        abilities = self.provider.abilities
        return ManagedKey(
            name=NAME,
            provider=self.provider,
            id=self.id,
            policy=Policy(max_age=timedelta(days=60)),
            limits=Limits(
                settle=timedelta(0),
                grace=GRACE,
                deactivates=getattr(self.provider, "deactivates", True),
                expires=abilities.expires,
                kills_old=abilities.kills_old,
                needs_current=abilities.needs_current,
            ),
            path=PATH,
            fields={"id": "{id}", "username": "{username}", "password": "{secret}"},
            probe=self.place.target,
        )

    def _look(self) -> None:
        """What the watcher does now and then."""
        hour = timedelta(hours=1)
        watcher = Watcher(self.engine, {self.provider.name: self.provider}, watch=hour, drift_interval=hour)
        watcher.look_at_provider(self.provider.name)
        watcher.keep_vault_login()
        watcher.look_at_vault()

    # --- time

    def begin(self) -> None:
        """Somebody asks for a rotation, not for haste."""
        now = self.clock.now()

        def asked(old: KeyRecord | None) -> KeyRecord:
            assert old is not None
            return replace(old, requested=ISSUE_IN_WINDOW, wake_at=now)

        self.journal.save(key=NAME, change=asked)

    def go_on(self, until: Callable[[Rotation], bool], what: str) -> Rotation:
        """Let the daemon work, and time pass, until the newest rotation is so."""
        for _ in range(MOST_WAKES):
            try:
                self.engine.work(NAME)
            except Killed:
                self._reboot()
            else:
                rotation = self.newest()
                if rotation is not None and until(rotation):
                    return rotation
                wake = self.record.wake_at
                assert wake is not None
                self.clock.move(wake - self.clock.now())
        raise AssertionError(f"not {what} in {MOST_WAKES} wakes: {self.newest()}, {self.calls.raised}")

    def rotate(self) -> Rotation:
        """One rotation, up to where the new secret is proven: its end, or what is left is the old key's end."""
        self.begin()
        return self.go_on(lambda each: _succeeded(each) or resting(each), "proven")

    def finish(self) -> Rotation:
        """To the end of the rotation, grace included."""
        return self.go_on(_succeeded, "succeeded")

    # --- what is looked at

    def newest(self) -> Rotation | None:
        """The rotation in flight, or the last one."""
        found = self.journal.recent_rotations(key=NAME, limit=1)
        return self.journal.open_rotation(NAME) or (found[0] if found else None)

    @property
    def record(self) -> KeyRecord:
        """The key's record in the journal."""
        found = self.journal.key(NAME)
        assert found is not None
        return found

    @property
    def new_secret(self) -> Secret:
        """What Vault holds."""
        return Secret(self.store.versions[-1]["password"])

    @property
    def new(self) -> Identity:
        """Who the key is now."""
        held = self.store.versions[-1]["id"]
        return self.listed(held).identity or self.provider.identity(held)

    def listed(self, id: str) -> UpstreamKey:
        """A key in the provider's list."""
        found: UpstreamKey
        (found,) = [each for each in self.provider.list_keys() if each.id == id]
        return found

    def verdict(self, identity: Identity, secret: Secret) -> Verdict:
        """What the broker says."""
        if self.place.target is None:
            return Verdict.ACCEPTED if self.place.admits(secret) else Verdict.REFUSED
        return MqttProber().probe(self.place.target(identity, secret)).verdict

    @property
    def keys(self) -> int:
        """How many keys the platform has more than before."""
        return self.place.count() - self.before


def blank_journal(directory: Path) -> Path:
    """A folder with a journal in which nothing stands: the migrations take as long as a rotation."""
    SqliteJournal(f"sqlite:///{directory}/rotator.db").close()
    return directory


def _succeeded(rotation: Rotation) -> bool:
    return rotation.result is Result.SUCCEEDED
