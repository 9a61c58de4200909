"""deploy/vault's scripts as an operator runs them, on a server of the tests' own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import httpx

from rotator.sandbox.vault import VaultServer, find_binary

FOLDER = Path(__file__).parents[2] / "deploy" / "vault"
BINARY = find_binary(os.environ.get("ROTATOR_TEST_VAULT_BIN"))  # `bao`, or the Vault that is named
# The client's own variables; `bao` also takes Vault's.
ADDRESS, TOKEN = ("VAULT_ADDR", "VAULT_TOKEN") if Path(BINARY).name == "vault" else ("BAO_ADDR", "BAO_TOKEN")
Api = httpx.Client


def server() -> VaultServer:
    """A dev server, not started yet."""
    return VaultServer(binary=BINARY)


def api(vault: VaultServer, token: str | None = None, namespace: str = "") -> Api:
    """The server's API with a token; the root's where none is given."""
    headers = {"X-Vault-Token": token or vault.root_token, "X-Vault-Namespace": namespace}
    return httpx.Client(base_url=f"{vault.url}/v1/", headers=headers, trust_env=False)


def run(
    vault: VaultServer, script: str, *arguments: Path, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script with nothing but PATH, HOME, address, token, client and `settings` in its environment."""
    environment = {"VAULT_CLI": BINARY, ADDRESS: vault.url, TOKEN: vault.root_token} | dict(settings or {})
    if "VAULT_ADDR" in (settings or {}):
        environment = {name: value for name, value in environment.items() if not name.startswith("BAO_")}
    return subprocess.run(
        ["/bin/sh", str(FOLDER / script), *map(str, arguments)],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def done(finished: subprocess.CompletedProcess[str]) -> str:
    """The output of a script that has to have worked."""
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def approle(vault: VaultServer, folder: Path, name: str = "vault", mount: str = "approle", namespace: str = "") -> Api:
    """The API with the token that two files of setup-approle.sh give."""
    ids = {kind: (folder / f"{name}-{kind.replace('_', '-')}").read_text() for kind in ("role_id", "secret_id")}
    return api(vault, _login(vault, f"auth/{mount}/login", ids, namespace), namespace)


def kubernetes(vault: VaultServer, role: str, jwt: str, mount: str = "kubernetes") -> Api:
    """The API with the token that a service account's token gives."""
    return api(vault, _login(vault, f"auth/{mount}/login", {"role": role, "jwt": jwt}))


def _login(vault: VaultServer, path: str, body: Mapping[str, str], namespace: str = "") -> str:
    headers = {"X-Vault-Namespace": namespace}
    answer = httpx.post(f"{vault.url}/v1/{path}", json=body, headers=headers, trust_env=False)
    answer.raise_for_status()
    return str(answer.json()["auth"]["client_token"])


def put(client: Api, path: str, cas: int) -> int:
    """Write a secret by cas; the status code."""
    return client.post(path, json={"options": {"cas": cas}, "data": {"password": "made-up"}}).status_code
