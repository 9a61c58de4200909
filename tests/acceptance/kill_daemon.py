"""The daemon's own command line, with points at which it kills itself. Nothing in the package knows of them.

    python kill_daemon.py ARM run --config rotator.yaml      one process
    python kill_daemon.py --serve                            forks one for each line of its input (`kill_process`)

ARM is a file. While it holds `KEY STEP WHEN N`, the process sends itself SIGKILL when KEY's rotation is at that point
for the N-th time; just before, the file becomes `struck`, so that no point kills twice and nobody takes another death
for this one. WHEN is one of

    before_effect, after_effect     around what STEP does to the world; after: its answer is in memory only
    before_write, after_write       around the journal's commit of what STEP did
    mid_write                       all rows are written, the transaction is not committed

and STEP a step of the rotation, or `begin` (the rotation's first record) or `call` (the record that an issue call is
about to go out): these two have writes only.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection

import rotator.app
import rotator.journal.sqlite
from rotator.cli import main
from rotator.engine import Engine
from rotator.issuing import Issuing
from rotator.journal.sqlite import Blob, Change, Erase, SqliteJournal
from rotator.journal.writer import Writer
from rotator.keys import KeyRecord
from rotator.managed import ManagedKey
from rotator.model import RotationEvent, Step
from rotator.rotation import Outcome, Rotation

T = TypeVar("T")
STRUCK = ".struck"
# What the daemon imports late, or by name: in the server they are there before the fork.
_LATE = (
    *("rotator.foreground", "alembic.runtime.migration", "httpcore"),
    *("uvicorn.loops.auto", "uvicorn.protocols.http.auto", "uvicorn.protocols.websockets.auto", "uvicorn.lifespan.off"),
)


class Points:
    """Where the process is, and whether it dies there."""

    def __init__(self) -> None:
        self.arm = Path()
        self._met: dict[str, int] = {}
        self._lock = threading.Lock()

    def at(self, key: str, step: str, when: str) -> None:
        """Die here if that is what the file says."""
        try:
            wanted, number = self.arm.read_text(encoding="utf-8").rsplit(" ", 1)
        except FileNotFoundError:
            return
        if wanted != f"{key} {step} {when}":
            return
        with self._lock:
            self._met[wanted] = self._met.get(wanted, 0) + 1
            if self._met[wanted] == int(number):
                self.arm.rename(self.arm.with_suffix(STRUCK))
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, key: str, step: str, effect: Callable[[], T]) -> T:
        """Do what a step does to the world."""
        self.at(key, step, "before_effect")
        try:
            return effect()
        finally:
            self.at(key, step, "after_effect")


def written_now(rotation: Rotation, history: Sequence[RotationEvent], known: bool) -> list[str]:
    """Whose records a commit holds: one may wait for the next."""
    steps = [event.step.value for event in history if event.name == "step" and event.step is not None]
    calls = rotation.step is Step.ISSUE and rotation.calling_since is not None and "issue" not in steps
    return [*([] if known else ["begin"]), *steps, *(["call"] if calls else [])]


POINTS = Points()
_SAVING = threading.local()


class KillableJournal(SqliteJournal):
    """The journal, with points around and inside its commits."""

    def save(
        self,
        *,
        key: str | None = None,
        change: Change | None = None,
        rotation: Rotation | None = None,
        data_key: bytes | None = None,
        blob: Blob | Erase | None = None,
        history: Sequence[RotationEvent] = (),
    ) -> KeyRecord | None:
        name, steps = "", []
        if rotation is not None:
            name, steps = rotation.key, written_now(rotation, history, self.rotation(rotation.id) is not None)
        for step in steps:
            POINTS.at(name, step, "before_write")
        _SAVING.point = (name, steps)
        record = super().save(key=key, change=change, rotation=rotation, data_key=data_key, blob=blob, history=history)
        for step in steps:
            POINTS.at(name, step, "after_write")
        return record


class KillableWriter(Writer):
    """The journal's writer, with a point inside its transactions."""

    def write(self, work: Callable[[Connection], T]) -> T:
        name, steps = getattr(_SAVING, "point", ("", []))
        _SAVING.point = ("", [])

        def torn(connection: Connection) -> T:
            done = work(connection)
            for step in steps:
                POINTS.at(name, step, "mid_write")
            return done

        return super().write(torn)


class KillableIssuing(Issuing):
    """The two steps that are not in the engine's table."""

    def choose(self, key: ManagedKey, rotation: Rotation, wrapped: bytes) -> tuple[Outcome, Blob]:
        return POINTS.around(key.name, "choose", partial(super().choose, key, rotation, wrapped))

    def call(self, key: ManagedKey, rotation: Rotation, wrapped: bytes) -> tuple[Outcome, Blob | None]:
        return POINTS.around(key.name, "issue", partial(super().call, key, rotation, wrapped))


class KillableEngine(Engine):
    """The engine, with points around what its steps do."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._table = {step: partial(_around, step, do) for step, do in self._table.items()}
        self._issuing = KillableIssuing(self.world, self._steps, self.spool)


def _around(step: Step, do: Callable[[ManagedKey, Rotation], Outcome], key: ManagedKey, rotation: Rotation) -> Outcome:
    return POINTS.around(key.name, step.value, partial(do, key, rotation))


def run(arm: Path, argv: Sequence[str]) -> None:
    """The command line, killable."""
    POINTS.arm = arm
    rotator.app.Engine = KillableEngine  # type: ignore[attr-defined]
    rotator.app.SqliteJournal = KillableJournal  # type: ignore[attr-defined]
    rotator.journal.sqlite.Writer = KillableWriter  # type: ignore[attr-defined]
    sys.argv = ["rotator", *argv]
    main()


def serve() -> None:
    """Fork a daemon for each line `{"arm", "argv", "log"}` and tell its id; for `wait PID`, tell how that one ended.

    A start of Python with everything that the daemon imports costs two seconds of a core; a fork of it costs nothing.
    """
    for name in _LATE:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork would leave the other threads behind"
    gc.freeze()
    _say("ready")
    for line in sys.stdin:
        if line.startswith("wait "):
            _say(os.waitstatus_to_exitcode(os.waitpid(int(line.split()[1]), 0)[1]))
        else:
            _say(_fork(json.loads(line)))


def _say(word: str | int) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def _fork(wanted: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG: no daemon outlives its server
        os.setsid()
        log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, number)
        run(Path(wanted["arm"]), wanted["argv"])
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:  # noqa: BLE001 - told to the log; what called `_fork` must not go on in this process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        run(Path(sys.argv[1]), sys.argv[2:])
