"""The daemon and its commands as processes of their own, looked at from outside only."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import yaml

from rotator.sandbox.processes import end, spawn, tail

Json = dict[str, Any]
Found = TypeVar("Found")

# Wide, so that a table or a sentence of a command is not broken where a test looks for it.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("ROTATOR")},
    "COLUMNS": "400",
}
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def until(look: Callable[[], Found], what: str, seconds: float = 15) -> Found:
    """Look again and again; returns the first answer that counts as true, and fails with `what` when none comes."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return found


def stays(look: Callable[[], object], expected: object, seconds: float) -> None:
    """Look again and again for some seconds: it must be the same all the while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert expected == look()
        time.sleep(0.1)


def tell(figure: str) -> None:
    """A measured figure for whoever reads the report (`pytest -rA`)."""
    sys.stdout.write(figure + "\n")


def run_rotator(*arguments: str, stdin: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "rotator", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=ENVIRONMENT,
    )


class RotatorProcess:
    """`python -m rotator run` on a configuration of its own; its log is a file of JSON lines.

    Args:
        folder: where `rotator.yaml`, `state/` and `rotator.log` go.
        config: the configuration; `state` and `http.listen` are filled in where they are left out.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self.state = folder, folder / "state"
        self.config_file, self.log_file = folder / "rotator.yaml", folder / "rotator.log"
        self.config: Json = {
            "state": {
                "url": f"sqlite:///{self.state / 'rotator.db'}",
                "seal": {"kind": "file", "path": str(self.state / "seal.key")},
            },
            **config,
            "http": {"listen": "127.0.0.1:0", **config.get("http", {})},
        }
        self.write_config()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_starts = 0
        self.url = ""

    def write_config(self) -> None:
        """Write `config` to the file; a daemon that runs does not notice."""
        self.config_file.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Run it; returns when /livez answers 200."""
        assert self._process is None, "it runs already"
        self._log_starts = self.log_file.stat().st_size if self.log_file.exists() else 0
        argv = [sys.executable, "-m", "rotator", "run", "--config", str(self.config_file)]
        self._process = spawn(argv, self.log_file, environment=ENVIRONMENT)
        self.url = f"http://{until(self._listens, 'the daemon listens', 20)}"
        until(self._lives, "the daemon lives", 20)
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def ask_to_stop(self) -> None:
        """Send SIGTERM, and do not wait."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, seconds: float = 30) -> int:
        """Its exit code, once it has ended by itself."""
        assert self._process is not None, "it does not run"
        code = self._process.wait(seconds)
        self._process = None
        return code

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.ask_to_stop()
        return self.wait()

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        """Whatever state it is in: it has ended when this returns."""
        if self._process is not None:
            end(self._process, grace=10)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _listens(self) -> str:
        assert self._process is not None
        assert self._process.poll() is None, f"the daemon ended:\n{tail(self.log_file)}"
        return next((str(line["listen"]) for line in self.log() if line["event"] == "started"), "")

    def _lives(self) -> bool:
        return self.get("/livez").status_code == 200

    # --- what it says -------------------------------------------------------------------------------------------

    def get(self, path: str) -> httpx.Response:
        """One GET over TCP."""
        return httpx.get(self.url + path, timeout=10)

    def api(self, path: str) -> Json:
        """The JSON of one GET that must be answered with 200."""
        response = self.get(path)
        assert response.status_code == 200, response.text
        answer: Json = response.json()
        return answer

    def key(self, name: str) -> Json:
        """One key as /api/keys/NAME shows it."""
        return self.api(f"/api/keys/{name}")

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """One POST over the Unix socket."""
        transport = httpx.HTTPTransport(uds=str(self.state / "rotator.sock"))
        with httpx.Client(transport=transport, base_url="http://rotator", timeout=10) as client:
            return client.post(path, json=dict(body or {}))

    def ask_to_rotate(self, name: str) -> None:
        """`rotate --now` without waiting for its end."""
        assert self.post(f"/api/keys/{name}/rotate", {"now": True}).status_code == 202

    def rotation(self, name: str) -> Json:
        """The newest rotation of a key; empty where there is none."""
        found: list[Json] = self.api(f"/api/rotations?key={name}")["rotations"]
        return found[0] if found else {}

    def ended(self, name: str, seconds: float = 20) -> Json:
        """The newest rotation of a key, once it has ended."""

        def look() -> Json:
            newest = self.rotation(name)
            return newest if newest.get("finished_at") else {}

        return until(look, f"a rotation of {name} has ended; now {self.rotation(name)}", seconds)

    def ready(self) -> tuple[int, Json]:
        """Status and checks of /readyz."""
        response = self.get("/readyz")
        return response.status_code, response.json()["checks"]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that carry these labels; 0 where there is none."""
        found = 0.0
        for line in self.get("/metrics").text.splitlines():
            sample = _SAMPLE.match(line)
            if sample is None or sample[1] != name:
                continue
            if all(f'{label}="{value}"' in (sample[2] or "").split(",") for label, value in labels.items()):
                found += float(sample[3])
        return found

    def log(self, event: str | None = None, **fields: str) -> list[Json]:
        """The lines since the last start, or those of one event with these fields."""
        if not self.log_file.exists():
            return []
        with self.log_file.open("rb") as file:
            file.seek(self._log_starts)
            text = file.read().decode()
        lines: list[Json] = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]
        wanted = fields.items()
        return [line for line in lines if event in {None, line["event"]} and wanted <= line.items()]

    def all_output(self) -> bytes:
        """Log and everything in the state folder, as it lies on the disk."""
        files = [self.log_file, *(file for file in self.state.rglob("*") if file.is_file())]
        return b"\n".join(file.read_bytes() for file in files)

    # --- commands -----------------------------------------------------------------------------------------------

    def command(self, *arguments: str, stdin: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A command on the same configuration."""
        return run_rotator(*arguments, "--config", str(self.config_file), stdin=stdin, timeout=timeout)


@contextmanager
def running(process: RotatorProcess) -> Iterator[RotatorProcess]:
    """A daemon that is started here or by the test, and has ended afterwards in any case."""
    try:
        yield process
    finally:
        process.close()
