"""A daemon that is to be killed: by itself at a point that was armed (`kill_daemon`), or by the test at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from acceptance.daemon_process import ENVIRONMENT, RotatorProcess, until
from rotator.sandbox.processes import tail

ENTRY = Path(__file__).with_name("kill_daemon.py")
PATIENCE = 90.0  # seconds for what is sure to come on an idle machine within two


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A place in a rotation; see `kill_daemon`. `number`: the how manieth time that it is reached."""

    step: str
    when: str
    number: int = 1

    def __str__(self) -> str:
        return f"{self.step}:{self.when}" + (f":{self.number}" if self.number > 1 else "")


class DaemonServer:
    """Forks daemons. Thread safe; a context manager."""

    def __init__(self, log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(ENTRY), "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=ENVIRONMENT,
                text=True,
                start_new_session=True,
            )
        self._lock = threading.Lock()
        assert self._answer() == "ready", tail(log)

    def start(self, arm: Path, argv: list[str], log: Path) -> int:
        """Fork one; returns its process id."""
        return int(self._ask(json.dumps({"arm": str(arm), "argv": argv, "log": str(log)})))

    def reap(self, pid: int) -> int:
        """Wait for the end of one; returns its exit code, or minus the signal."""
        return int(self._ask(f"wait {pid}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        """End; a daemon that still runs is killed with it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class KillableDaemon(RotatorProcess):
    """A daemon whose starts cost little, and whose ends can be chosen."""

    def __init__(self, folder: Path, config: Mapping[str, Any], server: DaemonServer) -> None:
        super().__init__(folder, config)
        self._server = server
        self._child = 0
        self._arm = folder / "kill.arm"
        # One for all requests, since each client of httpx reads all certificates of the machine first.
        alone = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.Client(verify=False, timeout=PATIENCE, limits=alone)  # noqa: S501 - plain HTTP only
        self._socket = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.state / "rotator.sock"), verify=False, limits=alone),
            base_url="http://rotator",
            timeout=PATIENCE,
        )

    # --- life ---------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Run it, and wait for nothing."""
        assert not self._child, "it runs already"
        self._log_starts = self.log_file.stat().st_size if self.log_file.exists() else 0
        self._child = self._server.start(self._arm, ["run", "--config", str(self.config_file)], self.log_file)

    def start(self) -> Self:
        """Run it; returns when /livez answers 200."""
        self.launch()
        self.url = f"http://{until(self._listens, 'the daemon listens', PATIENCE)}"
        until(self._lives, "the daemon lives", PATIENCE)
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._child, "it does not run"
        return self._child

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code, once it has ended by itself."""
        code = self.ended_within(seconds)
        assert code is not None, f"it still runs after {seconds:g} s:\n{tail(self.log_file)}"
        return code

    def ended_within(self, seconds: float) -> int | None:
        """Its exit code; None where it runs for longer than that."""
        descriptor = os.pidfd_open(self.pid)
        try:
            ended, _, _ = select.select([descriptor], [], [], seconds)
        finally:
            os.close(descriptor)
        if not ended:
            return None
        child, self._child = self._child, 0
        return self._server.reap(child)

    def close(self) -> None:
        """Whatever state it is in: it has ended when this returns."""
        if self._child:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self._client.close()
        self._socket.close()

    def get(self, path: str) -> httpx.Response:
        """One GET over TCP."""
        return self._client.get(self.url + path)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """One POST over the Unix socket."""
        return self._socket.post(path, json=dict(body or {}))

    def _listens(self) -> str:
        assert self.ended_within(0) is None, f"the daemon ended:\n{tail(self.log_file)}"
        return next((str(line["listen"]) for line in self.log() if line["event"] == "started"), "")

    # --- death --------------------------------------------------------------------------------------------------

    def arm(self, key: str, point: Point) -> None:
        """From now on it kills itself at this point of this key's rotation, once."""
        self._struck.unlink(missing_ok=True)
        fresh = self._arm.with_suffix(".new")
        fresh.write_text(f"{key} {point.step} {point.when} {point.number}", encoding="utf-8")
        fresh.replace(self._arm)

    def disarm(self) -> None:
        """From now on it does not."""
        self._arm.unlink(missing_ok=True)

    def struck(self, seconds: float = PATIENCE) -> None:
        """Wait until it has killed itself at the point that was armed."""
        armed = self._arm.read_text(encoding="utf-8") if self._arm.exists() else "nothing"
        code = self.ended_within(seconds)
        told = f"armed for {armed}, and it ended with {code}:\n{tail(self.log_file)}"
        assert (-signal.SIGKILL, True) == (code, self._struck.exists()), told

    def ask(self, key: str) -> None:
        """`rotate --now`; it may die before it has answered."""
        with contextlib.suppress(httpx.TransportError):
            self.ask_to_rotate(key)

    @property
    def _struck(self) -> Path:
        return self._arm.with_suffix(".struck")

    # --- the journal ----------------------------------------------------------------------------------------------

    def record(self, key: str) -> dict[str, Any]:
        """The newest rotation of a key as it lies in the journal's file; empty where there is none."""
        file = f"file:{self.state / 'rotator.db'}?mode=ro"
        with closing(sqlite3.connect(file, uri=True, timeout=PATIENCE)) as database:
            query = "SELECT record FROM rotations WHERE key = ? ORDER BY started_at DESC LIMIT 1"
            row = database.execute(query, (key,)).fetchone()
        return {} if row is None else dict(json.loads(row[0]))

    def spool(self) -> list[str]:
        """The files in the spool's folder."""
        folder = self.state / "spool"
        return sorted(file.name for file in folder.iterdir()) if folder.exists() else []

    def sealed(self) -> list[str]:
        """The keys for which a sealed blob lies in the journal."""
        file = f"file:{self.state / 'rotator.db'}?mode=ro"
        with closing(sqlite3.connect(file, uri=True, timeout=PATIENCE)) as database:
            return [key for (key,) in database.execute("SELECT key FROM rotations WHERE sealed IS NOT NULL")]
