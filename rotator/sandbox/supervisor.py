"""Runs programs and starts them again when they end: a service manager for machines that have none.

Each program has a pid file `NAME.pid` in the supervisor's directory, there while the process runs, and a log
`NAME.log`. `python -m rotator.sandbox.restart NAME --dir DIRECTORY` asks for a restart through them.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from rotator.sandbox.processes import end, spawn


def pid_file(directory: Path, name: str) -> Path:
    """Where the process id of a program stands."""
    return directory / f"{name}.pid"


class _Program:
    def __init__(self, argv: Sequence[str], log: Path, pid: Path, environment: Mapping[str, str], delay: float) -> None:
        self._argv, self._log, self._pid, self._environment, self._delay = argv, log, pid, environment, delay
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        # The thread lives as long as its child, which `spawn` needs.
        self._thread = threading.Thread(target=self._keep_running, name=f"sandbox-{pid.stem}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is not None:
            end(process)
        self._thread.join(10)

    def _keep_running(self) -> None:
        while not self._stopping.is_set():
            code = self._run_once()
            # A program that was asked to end comes back at once; one that failed waits, or it would spin.
            self._stopping.wait(0 if code == 0 else self._delay)

    def _run_once(self) -> int:
        with self._lock:
            if self._stopping.is_set():
                return 0
            process = spawn(self._argv, self._log, environment=self._environment)
            self._process = process
            fresh = self._pid.with_suffix(".pid.new")
            fresh.write_text(str(process.pid))
            fresh.replace(self._pid)
        code = process.wait()
        self._pid.unlink(missing_ok=True)
        return code


class Supervisor:
    """Keeps programs running until `stop`.

    Args:
        directory: for pid files and logs; must exist.
        delay: seconds before a program that failed is started again. One that ended with 0 comes back at once.
    """

    def __init__(self, directory: Path, *, delay: float = 0.5) -> None:
        self.directory = directory
        self._delay = delay
        self._programs: dict[str, _Program] = {}

    def log_file(self, name: str) -> Path:
        """What the program printed, over all its lives."""
        return self.directory / f"{name}.log"

    def add(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start a program and keep it running, with the environment given on top of our own."""
        if name in self._programs:
            raise ValueError(f"a program {name} runs already")
        whole = {**os.environ, **(environment or {})}
        self._programs[name] = _Program(argv, self.log_file(name), pid_file(self.directory, name), whole, self._delay)

    def stop(self) -> None:
        """End all programs. May be repeated."""
        programs, self._programs = self._programs, {}
        for program in programs.values():
            program.stop()
