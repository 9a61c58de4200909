"""A shell in a booted systemd (tests/tools/systemd-sandbox)."""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
SANDBOX = ROOT / "tests" / "tools" / "systemd-sandbox"
NEEDED = {
    "/usr/lib/systemd/systemd": "systemd",
    "/usr/bin/dbus-daemon": "dbus",
    "/usr/lib/polkit-1/polkitd": "polkitd",
}


class Inside:
    """A shell in the booted systemd; leaving it takes the whole machine down.

    Args:
        folder: its working directory, and the only place that is also seen outside.
    """

    def __init__(self, folder: Path) -> None:
        assert os.geteuid() == 0, "this test boots a real systemd and needs root"
        for file, package in NEEDED.items():
            assert Path(file).exists(), f"this test needs the Debian package {package}: {file} is missing"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        place = {"ROOT": str(ROOT), "BASE": sys.base_prefix, "VENV": sys.prefix, "PYTHON": version}
        self._said: queue.Queue[str] = queue.Queue()
        self._errors = folder / "shell.err"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(SANDBOX), "bash"],
                cwd=folder,
                env={**os.environ, **place},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._reader = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def run(self, script: str, *, timeout: float = 60, may_fail: bool = False) -> str:
        """Run a script; returns what it printed. It fails the test when a command of it fails."""
        mark = f"end-{secrets.token_hex(8)}"
        with contextlib.suppress(BrokenPipeError):  # it did not boot, or has ended: what it said is told below
            self._stdin.write(f"( set -eu\n{script}\n) </dev/null\nstatus=$?; echo; echo {mark} $status\n")
            self._stdin.flush()
        deadline, lines = time.monotonic() + timeout, list[str]()
        while True:
            try:
                line = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = ""
            assert line, f"no answer from inside within {timeout:g} s to:\n{script}\n{self._errors.read_text()}"
            if line.startswith(mark):
                break
            lines.append(line)
        output = "".join(lines).strip()
        failed = line.split()[1] != "0" and not may_fail
        assert not failed, f"inside failed:\n{script}\n{output}\n{self._errors.read_text()}"
        return output

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit, as systemd tells them."""
        lines = self.run(f"systemctl show {unit} -p {','.join(names)}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, unit: str) -> str:
        """What a unit has logged so far."""
        return self.run(f"journalctl --sync; journalctl --no-pager -o cat -u {unit}", may_fail=True)

    def close(self) -> None:
        """Take it down."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # `unshare --kill-child` takes the rest with it
            self._process.wait(10)
        self._reader.join(10)

    def _listen(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self._said.put(line)
        self._said.put("")
