"""Real servers for the store's contract: OpenBao's `bao`, or the binary that `ROTATOR_TEST_VAULT_BIN` names.

`Bao` is in dev mode, in memory; `RaftBao` keeps its data on raft storage and can be one node of several. Only what
OpenBao and Vault both know is used: flags, configuration and API.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from rotator.sandbox.processes import free_port
from rotator.sandbox.vault import find_binary

ROOT_TOKEN = "root-of-the-test"
_RAFT = """
storage "raft" {{
  path = "{home}/raft"
  node_id = "{node}"
  performance_multiplier = 1
}}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster_port}"
  tls_disable = true
}}
api_addr = "http://127.0.0.1:{port}"
cluster_addr = "https://127.0.0.1:{cluster_port}"
disable_mlock = true
"""


def server_binary() -> str:
    """The program under test. Raises: FileNotFoundError: it is not there, and nothing is skipped for that."""
    return find_binary(os.environ.get("ROTATOR_TEST_VAULT_BIN") or None)


class Bao:
    """One server process in dev mode; `api` speaks to it as root and without the code under test."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is unsealed."""
        self._run("-dev", f"-dev-root-token-id={ROOT_TOKEN}", f"-dev-listen-address=127.0.0.1:{self.port}")
        self.wait_for(200)

    def wait_for(self, *statuses: int, seconds: float = 30) -> int:
        """Wait until sys/health answers with one of these; which one."""
        end = time.monotonic() + seconds
        while True:
            try:
                status = self.api("GET", "sys/health")[0]
                if status in statuses:
                    return status
            except OSError:
                status = 0
            assert self._process is not None
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < end, f"health answers {status}, not {statuses}, after {seconds} s"
            time.sleep(0.05)

    def log(self) -> str:
        """What the server printed."""
        return (self._home / "bao.log").read_text()

    def unseal_key(self) -> str:
        """Its one unseal key, which dev mode prints into the log some time after it serves."""
        end = time.monotonic() + 10
        while True:
            for line in self.log().splitlines():
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
            self._process = None

    def kill(self) -> None:
        """End it without a chance to say goodbye to its peers."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def api(
        self, method: str, path: str, body: object = None, *, token: str = ROOT_TOKEN, namespace: str = ""
    ) -> tuple[int, Any]:
        """One request; status and JSON (None without a body)."""
        request = urllib.request.Request(  # noqa: S310  the address is the server's own
            f"{self.url}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": token} | ({"X-Vault-Namespace": namespace} if namespace else {}),
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
                text = response.read()
                return response.status, json.loads(text) if text else None
        except urllib.error.HTTPError as exc:
            with exc:
                text = exc.read()
            return exc.code, json.loads(text) if text else None

    def must(self, method: str, path: str, body: object = None, *, namespace: str = "") -> Any:
        """A request that has to work."""
        status, answer = self.api(method, path, body, namespace=namespace)
        assert status < 300, (method, path, status, answer)
        return answer

    def engine(self, mount: str, *, version: int = 2, namespace: str = "", **settings: object) -> None:
        """A KV engine at `mount`, once it serves: version 2 takes a moment to begin."""
        options = {"version": str(version)}
        self.must("POST", f"sys/mounts/{mount}", {"type": "kv", "options": options}, namespace=namespace)
        if version == 2:
            self.wait_for_engine(mount, namespace=namespace)
            self.must("POST", f"{mount}/config", settings, namespace=namespace)

    def wait_for_engine(self, mount: str, *, namespace: str = "") -> None:
        """Wait until a KV version 2 engine has finished its beginning, or its upgrade."""
        end = time.monotonic() + 20
        while self.api("GET", f"{mount}/config", namespace=namespace)[0] != 200:
            assert time.monotonic() < end, f"no engine at {mount} after 20 s"
            time.sleep(0.05)

    def _run(self, *arguments: str) -> None:
        with (self._home / "bao.log").open("ab") as log:
            self._process = subprocess.Popen(
                [server_binary(), "server", *arguments],
                # a home of its own: dev mode leaves the root token there
                env={"HOME": str(self._home), "PATH": os.environ["PATH"]},
                stdout=log,
                stderr=subprocess.STDOUT,
            )


class RaftBao(Bao):
    """One node on raft storage, with one unseal key. The first of a cluster is started by `start`, others `join` it."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._cluster_port = free_port()
        self._key = ""

    def start(self) -> None:
        """A cluster of this one node, unsealed, with `secret/` and the root token of the tests."""
        self.restart()
        made = self.must("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self._key = made["keys"][0]
        self.unseal()
        self.wait_for(200)
        status, answer = self.api(
            "POST", "auth/token/create", {"id": ROOT_TOKEN, "policies": ["root"]}, token=made["root_token"]
        )
        assert status == 200, answer
        self.engine("secret")

    def join(self, first: RaftBao) -> None:
        """Become another node of the cluster of `first`; returns when it is a standby that forwards."""
        self.restart()
        self._key = first.unseal_key()
        self.must("POST", "sys/storage/raft/join", {"leader_api_addr": first.url})
        self.unseal()
        self.wait_for(200, 429, 473)

    def restart(self) -> None:
        """Run the process on what is stored; it is sealed, or not yet initialised."""
        config = self._home / "server.hcl"
        config.write_text(
            _RAFT.format(home=self._home, node=self._home.name, port=self.port, cluster_port=self._cluster_port)
        )
        (self._home / "raft").mkdir(exist_ok=True)
        self._run(f"-config={config}")
        self.wait_for(501, 503)

    def unseal(self) -> None:
        """Give it its key; it may still have to find the others."""
        self.must("PUT", "sys/unseal", {"key": self._key})

    def unseal_key(self) -> str:
        """Its one unseal key."""
        return self._key
