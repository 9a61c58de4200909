"""Restart a program of the sandbox's supervisor: `python -m rotator.sandbox.restart NAME --dir DIRECTORY`.

The argv of a `command` consumer. Exit 0 when the old process is gone and a new one runs; 1 when that did not happen in
time, or nothing supervises a program of that name.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rotator.sandbox.supervisor import pid_file


def _running(file: Path) -> int | None:
    try:
        pid = int(file.read_text())
        os.kill(pid, 0)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return None
    return pid


def restart(name: str, directory: Path, timeout: float) -> int:
    """Ask the program to end, and wait for its successor.

    Args:
        name: the supervisor's name for it.
        directory: the supervisor's directory.
        timeout: seconds.

    Returns: the new process id.

    Raises:
        LookupError: the supervisor never had a program of that name.
        TimeoutError: no new process in time.
    """
    file = pid_file(directory, name)
    if not file.exists() and not (directory / f"{name}.log").exists():
        raise LookupError(f"no program {name} in {directory}")
    old = _running(file)
    if old is not None:
        os.kill(old, signal.SIGTERM)
    deadline, asked_by = time.monotonic() + timeout, os.getppid()
    # A demo that was killed leaves nobody behind: whoever asked is gone, and no successor will be started.
    while time.monotonic() < deadline and os.getppid() == asked_by:
        new = _running(file)
        if new not in (None, old):
            assert new is not None
            return new
        time.sleep(0.01)
    raise TimeoutError(f"{name} was not running again after {timeout:g} s")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m rotator.sandbox.restart", description="restart a consumer")
    parser.add_argument("name")
    parser.add_argument("--dir", required=True, type=Path, help="the supervisor's directory")
    parser.add_argument("--timeout", type=float, default=20.0, metavar="SECONDS")
    options = parser.parse_args(argv)
    try:
        pid = restart(options.name, options.dir, options.timeout)
    except (LookupError, TimeoutError, ProcessLookupError) as exc:
        print(exc, file=sys.stderr)
        return 1
    print(f"{options.name} runs as process {pid}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
