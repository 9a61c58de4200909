"""What the store's contract tests share: stores that are closed again, a clock that can be moved, AppRoles with
policies of their own, and the daemon's least policy as deploy/vault has it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from contract.bao_server import ROOT_TOKEN, Bao
from rotator.clock import SystemClock
from rotator.model import RequestDone
from rotator.stores import AppRoleAuth, TokenAuth, VaultStore
from rotator.stores.vault_auth import Auth

_LEAST = Path(__file__).parents[2] / "deploy" / "vault" / "rotator-policy.hcl"


class AheadClock(SystemClock):
    """The machine's clock, to which a test may add."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class StoreStage:
    """Makes stores and keeps what they report; `close` closes them all."""

    def __init__(self) -> None:
        self.clock = AheadClock()
        self.done: list[RequestDone] = []
        self.after: dict[str, Callable[[], object]] = {}  # operation → what somebody else does right after it
        self._made: list[VaultStore] = []

    def store(self, *urls: str, auth: Auth | None = None, **more: Any) -> VaultStore:
        """A store at these addresses; with root's token where no other login is given."""
        more.setdefault("timeout", timedelta(seconds=10))
        given = auth or TokenAuth(token=lambda: ROOT_TOKEN)
        made = VaultStore(urls=urls, auth=given, clock=self.clock, on_request=self._on_request, **more)
        self._made.append(made)
        return made

    def operations(self) -> list[tuple[str, str]]:
        """Operation and code of each request since the last time that this was asked."""
        found = [(each.operation, each.code) for each in self.done]
        self.done.clear()
        return found

    def _on_request(self, request: RequestDone) -> None:
        self.done.append(request)
        self.after.get(request.operation, lambda: None)()

    def close(self) -> None:
        """Give back connections."""
        for each in self._made:
            each.close()


def least_policy(mount: str = "secret", prefix: str = "mqtt") -> str:
    """The daemon's policy as deploy/vault gives it out, for this mount and prefix."""
    return _LEAST.read_text().replace('"secret/', f'"{mount}/').replace("/mqtt/", f"/{prefix}/")


class Role:
    """An AppRole with one policy of its own, which can be changed later."""

    def __init__(self, server: Bao, policy: str | None = None, *, namespace: str = "", **settings: object) -> None:
        self._server = server
        self._namespace = namespace
        self.name = f"rotator-{uuid.uuid4()}"
        self.policy = policy if policy is not None else least_policy()
        self.allow(self.policy)
        server.api("POST", "sys/auth/approle", {"type": "approle"}, namespace=namespace)
        wanted = {"token_policies": self.name, "token_no_default_policy": True, "token_ttl": "1h", **settings}
        self._must("POST", f"auth/approle/role/{self.name}", wanted)
        role_id = self._must("GET", f"auth/approle/role/{self.name}/role-id")["data"]["role_id"]
        secret_id = self._must("POST", f"auth/approle/role/{self.name}/secret-id", {})["data"]["secret_id"]
        self.auth = AppRoleAuth(role_id=lambda: str(role_id), secret_id=lambda: str(secret_id))

    def allow(self, policy: str) -> None:
        """Make this the whole policy, also of tokens that are in use."""
        self.policy = policy
        self._must("PUT", f"sys/policies/acl/{self.name}", {"policy": policy})

    def _must(self, method: str, path: str, body: object = None) -> Any:
        return self._server.must(method, path, body, namespace=self._namespace)


def new_path() -> str:
    """A path that no other test uses."""
    return f"mqtt/{uuid.uuid4()}"


def held(server: Bao, path: str, mount: str = "secret") -> Mapping[str, Any]:
    """What the server holds, asked without the store."""
    data: Mapping[str, Any] = server.must("GET", f"{mount}/data/{path}")["data"]["data"]
    return data


def kept(server: Bao, path: str, mount: str = "secret") -> Mapping[str, Any]:
    """The server's metadata of a path, asked without the store."""
    data: Mapping[str, Any] = server.must("GET", f"{mount}/metadata/{path}")["data"]
    return data
