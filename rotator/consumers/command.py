"""Consumers that a command restarts: a script of the house, `docker restart`, `ssh edge systemctl restart ingest`."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import IO, Final

import structlog

from rotator.consumers.asking import Ask
from rotator.consumers.shown import starred
from rotator.errors import Permanent, Stopping, Transient
from rotator.model import Order, Ticket
from rotator.ports import Clock
from rotator.reasons import Reason

INHERITED: Final = ("PATH", "HOME", "LANG", "TZ")  # nothing else: the daemon's own variables may hold secrets (rule 6)
KEPT: Final = 64 * 1024  # bytes of output, the last ones
SHOWN: Final = 200  # characters of its last line in an error's message
LOGGED: Final = 50  # lines of it in the log
GRACE: Final = 1.0  # seconds between TERM and KILL for a command that takes too long
POLL: Final = 0.05  # seconds between two looks at a command that has closed its output, or left it to a child

log = structlog.get_logger(__name__)


class Program:
    """A program that is run for an order, and what its end means.

    It gets no input, a session of its own, and of the daemon's environment only PATH, HOME, LANG and TZ, besides
    ROTATOR_KEY and ROTATOR_VERSION. What it leaves running in the background when it ends by itself is left alone; when
    it takes too long, all of its process group is ended.

    Args:
        name: of the consumer; every message begins with it.
        argv: program and arguments, never a shell's line; `{key}` and `{version}` are filled in, all other braces stay.
            A program without a slash is looked for on PATH.
        cwd: where it runs; None: where the daemon runs.
        env: variables added to those, not for secrets.
        timeout: how long it may take.
        stop: set when the daemon, or who waits for the program, is to end.
    """

    def __init__(
        self,
        name: str,
        *,
        argv: Sequence[str],
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: timedelta,
        stop: threading.Event | None = None,
    ) -> None:
        if not argv or not argv[0]:
            raise ValueError("argv names no program")
        self._name, self._argv, self._cwd = name, list(argv), cwd
        self._env, self._timeout = dict(env or {}), timeout
        self._stop = stop or threading.Event()

    def look(self) -> None:
        """See whether the program is there and may be run. Runs nothing.

        Raises: Permanent (CONSUMER_MISSING, CONSUMER_FORBIDDEN).
        """
        if self._cwd is not None and not os.path.isdir(self._cwd):
            raise self._missing(f"the folder {self._cwd} does not exist")
        program = self._argv[0]
        if "{key}" in program or "{version}" in program:
            return  # another one for each key or version
        if "/" not in program:
            if shutil.which(program, path=self._environment(None).get("PATH", os.defpath)) is None:
                raise self._missing(f"no program {program} on PATH")
            return
        path = os.path.join(self._cwd or "", program)
        if not os.path.isfile(path):
            raise self._missing(f"{path} does not exist")
        if not os.access(path, os.X_OK):
            raise Permanent(f"{self._name}: {path} may not be executed", reason=Reason.CONSUMER_FORBIDDEN)

    def run(self, order: Order | None) -> None:
        """Run it and wait for its end.

        Raises:
            Permanent: CONSUMER_MISSING, CONSUMER_FORBIDDEN; CONSUMER_RESTART_FAILED for a file that is no program.
            Transient: CONSUMER_RESTART_FAILED for an exit other than 0, CONSUMER_TIMEOUT.
        """
        process = self._start(order)
        assert process.stdout is not None  # a pipe was asked for
        try:
            tail, in_time = _follow(process, process.stdout, self._timeout.total_seconds(), self._stop)
        except OSError as exc:  # no file descriptor left to watch it with
            if process.poll() is None:
                _end(process)
            text = f"{self._name}: it can't be followed, ended: {exc.strerror or type(exc).__name__}"
            raise Transient(text, reason=Reason.CONSUMER_RESTART_FAILED) from exc
        finally:
            process.stdout.close()
        log.debug("command_ended", consumer=self._name, status=process.returncode, output=_last_lines(tail))
        if not in_time and self._stop.is_set():
            raise Stopping
        if not in_time:
            ended = "ended" if process.returncode is not None else "and this user may not end it"
            text = f"{self._name}: still running after {self._timeout.total_seconds():g} s, {ended}{_last_line(tail)}"
            raise Transient(text, reason=Reason.CONSUMER_TIMEOUT)
        if process.returncode != 0:
            text = f"{self._name}: {_status(process.returncode)}{_last_line(tail)}"
            raise Transient(text, reason=Reason.CONSUMER_RESTART_FAILED)

    def _environment(self, order: Order | None) -> dict[str, str]:
        found = {name: os.environ[name] for name in INHERITED if name in os.environ} | self._env
        return found | {"ROTATOR_KEY": order.key, "ROTATOR_VERSION": str(order.version)} if order else found

    def _start(self, order: Order | None) -> subprocess.Popen[bytes]:
        key, version = (order.key, str(order.version)) if order else ("", "")
        argv = [argument.replace("{key}", key).replace("{version}", version) for argument in self._argv]
        try:
            return subprocess.Popen(
                argv,
                cwd=self._cwd,
                env=self._environment(order),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise self._missing(f"{exc.filename} does not exist, or what it needs to run does not") from exc
        except PermissionError as exc:
            raise Permanent(
                f"{self._name}: {exc.filename} may not be executed", reason=Reason.CONSUMER_FORBIDDEN
            ) from exc
        except OSError as exc:
            text = f"{self._name}: {argv[0]}: {exc.strerror or type(exc).__name__}"
            kind = Permanent if exc.errno == errno.ENOEXEC else Transient
            raise kind(text, reason=Reason.CONSUMER_RESTART_FAILED) from exc
        except ValueError as exc:  # a NUL in the command, the folder or a variable, or "=" in a variable's name
            text = f"{self._name}: no process can be given this argv, cwd or env"
            raise Permanent(text, reason=Reason.CONSUMER_RESTART_FAILED) from exc
        except subprocess.SubprocessError as exc:  # the child died before it could run the program
            text = f"{self._name}: {argv[0]}: {type(exc).__name__}"
            raise Transient(text, reason=Reason.CONSUMER_RESTART_FAILED) from exc

    def _missing(self, text: str) -> Permanent:
        return Permanent(f"{self._name}: {text}", reason=Reason.CONSUMER_MISSING)


def ask_program(program: Program, order: Order) -> Ask:
    """The question whether a program says, by exit 0, that a consumer runs on the order's version."""

    def ask() -> str | None:
        program.run(order)
        return "the command confirmed it"

    return ask


class CommandConsumer:
    """Restarts by running a `Program`; exit 0 means *restarted*.

    Args:
        name: the name in the configuration.
        argv, cwd, env, timeout: as `Program` has them.
        clock: the source of `Ticket.restarted_at`, which is when the program was started: the consumer may well have
            connected before the program ends.
    """

    def __init__(
        self,
        name: str,
        *,
        argv: Sequence[str],
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: timedelta,
        clock: Clock,
        stop: threading.Event | None = None,
    ) -> None:
        self._program = Program(name, argv=argv, cwd=cwd, env=env, timeout=timeout, stop=stop)
        self._name, self._clock = name, clock

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def kind(self) -> str:
        """`command`."""
        return "command"

    def preflight(self) -> None:
        """Look whether the program is there and may be run. Runs nothing.

        Raises: Permanent (CONSUMER_MISSING, CONSUMER_FORBIDDEN).
        """
        self._program.look()

    def restart(self, order: Order) -> Ticket:
        """Run the program and wait for its end. Raises: as `Program.run`."""
        started = self._clock.now()
        self._program.run(order)
        return Ticket(consumer=self._name, restarted_at=started)

    def check(self, ticket: Ticket) -> None:
        """Nothing to see: a command that has ended says nothing of the consumer later on."""


def _follow(
    process: subprocess.Popen[bytes], output: IO[bytes], timeout: float, stop: threading.Event
) -> tuple[str, bool]:
    """Read a process's output until it ends: the last 64 KiB, and whether it ended within `timeout` and before `stop`.

    The end of the process counts, not of its output, which a child in the background may hold open.
    """
    chunks: deque[bytes] = deque()
    deadline = time.monotonic() + timeout
    os.set_blocking(output.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while process.poll() is None and (remaining := deadline - time.monotonic()) > 0 and not stop.is_set():
            if selector.get_map():
                selector.select(min(remaining, POLL))
                if not _read(output, chunks):
                    selector.unregister(output)
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(remaining, POLL))
    in_time = process.poll() is not None
    if not in_time:
        _end(process)
    _read(output, chunks)
    return b"".join(chunks)[-KEPT:].decode("utf-8", "replace"), in_time


def _read(output: IO[bytes], chunks: deque[bytes]) -> bool:
    """Take what is there now, keep the last of it; False at the output's end."""
    for _ in range(64):  # a program that never stops writing must not keep us from looking at the time
        try:
            chunk = os.read(output.fileno(), KEPT)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        chunks.append(chunk)
        while sum(map(len, chunks)) - len(chunks[0]) >= KEPT:
            chunks.popleft()
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """TERM, and KILL a second later, for the whole process group.

    What runs as somebody else (by sudo) takes no signal of ours, and is left running rather than waited for.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _status(code: int) -> str:
    if code >= 0:
        return f"exit {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"killed by signal {-code}"


def _last_line(output: str) -> str:
    """What a program said at last, for a message; with stars for what may be a secret."""
    lines = [line for line in output.splitlines() if line.strip()]
    return f": {starred(lines[-1])[-SHOWN:]}" if lines else ""


def _last_lines(output: str) -> str:
    """What it said, for the log; likewise."""
    return "\n".join(starred(line) for line in output.splitlines()[-LOGGED:])
