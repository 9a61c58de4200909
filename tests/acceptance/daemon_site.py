"""Everything that a daemon needs around it: a platform, a Vault, a broker, and the configuration that names them."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from acceptance.daemon_process import RotatorProcess
from rotator.sandbox.demo_config import put_secret
from rotator.sandbox.haltian import HaltianPlatform
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.vault import VaultServer

POLICY = (Path(__file__).parents[2] / "deploy" / "vault" / "rotator-policy.hcl").read_text(encoding="utf-8")
NO_POLICY = 'path "secret/data/elsewhere" { capabilities = ["read"] }'
EMAIL, PASSWORD, ORGANIZATION = "operator@acme.example", "made-up-password", "acme"


@dataclass(frozen=True, kw_only=True)
class SiteKey:
    """One key: its name in the configuration, its id, its first token, its path in Vault."""

    name: str
    id: str
    token: str
    path: str


class Site:
    """Builds the configuration piece by piece; `daemon()` makes a process of it.

    Args:
        folder: the test's own.
        vault, broker: shared with other tests; this site has a policy and keys of its own in them.
        lifetime: of the tokens.
        haltian: whether it has a platform from the start.
    """

    def __init__(
        self,
        folder: Path,
        vault: VaultServer,
        broker: MosquittoBroker,
        *,
        lifetime: timedelta = timedelta(days=90),
        haltian: bool = True,
    ) -> None:
        self.folder, self.vault, self.broker = folder, vault, broker
        self._lifetime = lifetime
        self._mark = secrets.token_hex(4)
        self.policy = f"rotator-{self._mark}"
        self.platforms: dict[str, HaltianPlatform] = {}
        token = vault.create_token(POLICY, name=self.policy)
        self.config: dict[str, Any] = {
            "vault": {"url": vault.url, "auth": {"method": "token", "token": self.secret("vault.token", token)}},
            "providers": {},
            "consumers": {},
            "keys": {},
            "shutdown_grace": "1s",
        }
        if haltian:
            self.add_provider("haltian")

    @property
    def platform(self) -> HaltianPlatform:
        """The first platform."""
        return self.platforms["haltian"]

    def secret(self, name: str, value: str) -> dict[str, str]:
        """A reference to a file that only we may read."""
        return {"file": str(put_secret(self.folder, name, value))}

    def add_provider(self, name: str) -> HaltianPlatform:
        """One more platform, running."""
        platform = HaltianPlatform(sink=self.broker, lifetime=self._lifetime)
        platform.create_user(EMAIL, PASSWORD, platform.create_organization(ORGANIZATION))
        platform.start()
        self.platforms[name] = platform
        self.config["providers"][name] = {
            "kind": "haltian",
            "url": platform.url,
            "organization": ORGANIZATION,
            "email": EMAIL,
            "password": self.secret(f"{name}.password", PASSWORD),
            "lifetime": f"{self._lifetime.total_seconds():.0f}s",
        }
        return platform

    def add_consumer(self, name: str, *argv: str, **settings: Any) -> None:
        """A command; without `confirm`, so that restarted is all that is asked of it."""
        self.config["consumers"][name] = {"kind": "command", "argv": list(argv), "settle": "0s", **settings}

    def add_key(
        self,
        name: str,
        *,
        provider: str = "haltian",
        issued_ago: timedelta = timedelta(minutes=1),
        held: Mapping[str, Any] | None = None,
        in_vault: bool = True,
        role: bool = True,
        verify: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> SiteKey:
        """A key at the platform and in the configuration.

        Args:
            issued_ago: how old its first token is.
            held: fields that Vault holds beside its own.
            in_vault: whether Vault holds the first token.
            role: whether it has the role MqttIntegrator.
            verify: laid over the usual block; a `host` of "" leaves the block out.
        """
        platform = self.platforms[provider]
        organization = platform.state.organization(
            next(user.organization_id for (email, _), user in platform.state._users.items() if email == EMAIL)
        )
        key_id, token = platform.add_key(name, organization, issued_ago=issued_ago, role=role)
        path = f"mqtt/{self._mark}-{name}"
        if in_vault or held is not None:
            ours = {"username": key_id, "password": token} if in_vault else {}
            self.vault.write(path, {**(held or {}), **ours})
        topic = f"haltian-iot/events/{platform.integration_of(key_id)}/{{username}}/#"
        block = {"host": self.broker.host, "port": self.broker.port, "subscribe": topic, **(verify or {})}
        self.config["keys"][name] = {
            "provider": provider,
            "id": key_id,
            "vault": {"path": path, "fields": {"username": "{username}", "password": "{secret}"}},
            **({"verify": block} if block["host"] else {}),
            **settings,
        }
        return SiteKey(name=name, id=key_id, token=token, path=path)

    def held(self, key: SiteKey) -> str | None:
        """The secret that Vault holds for a key now."""
        data = self.vault.read(key.path)[1]
        return None if data is None else str(data.get("password"))

    def refreshes(self, provider: str = "haltian") -> int:
        """How many issue calls a platform has seen."""
        return self.platforms[provider].count("refreshApiKeyToken")

    def daemon(self, **settings: Any) -> RotatorProcess:
        """A process on this configuration, not started yet."""
        return RotatorProcess(self.folder, {**self.config, **settings})

    def close(self) -> None:
        """The platforms end."""
        for platform in self.platforms.values():
            platform.stop()


@contextmanager
def open_site(
    folder: Path, vault: VaultServer, broker: MosquittoBroker, *, lifetime: timedelta = timedelta(days=90)
) -> Iterator[Site]:
    """A site whose platforms have ended afterwards."""
    site = Site(folder, vault, broker, lifetime=lifetime)
    try:
        yield site
    finally:
        site.close()


def sealed_rows(process: RotatorProcess) -> list[tuple[bool, bool]]:
    """Of every rotation in the journal, oldest first: whether a sealed blob lies beside it, and whether it ended."""
    with closing(sqlite3.connect(f"file:{process.state / 'rotator.db'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT sealed, finished_at FROM rotations ORDER BY started_at").fetchall()
    return [(sealed is not None, finished is not None) for sealed, finished in rows]
