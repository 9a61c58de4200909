"""Restarted is not confirmed: the three ways to the proof, on a real broker, and a proof that never comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from acceptance.daemon_process import running
from acceptance.daemon_site import Site, SiteKey, open_site
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.supervisor import Supervisor
from rotator.sandbox.token_sink import events_topic
from rotator.sandbox.vault import VaultServer

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def vault() -> Iterator[VaultServer]:
    """A Vault for all tests of this file."""
    with VaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def broker() -> Iterator[MosquittoBroker]:
    """A broker for all tests of this file."""
    with MosquittoBroker() as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, vault: VaultServer, broker: MosquittoBroker) -> Iterator[Site]:
    """A platform and a configuration of the test's own."""
    with open_site(tmp_path, vault, broker) as made:
        yield made


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """Keeps consumers running, and ends them with the test."""
    folder = tmp_path / "consumers"
    folder.mkdir()
    kept = Supervisor(folder, delay=0.1)
    try:
        yield kept
    finally:
        kept.stop()


def run_consumer(site: Site, supervisor: Supervisor, key: SiteKey, name: str) -> None:
    """Start the sandbox's consumer of one key, and name the command that restarts it."""
    token = site.secret("consumer.token", site.vault.root_token)["file"]
    topic = events_topic(site.platform.integration_of(key.id), "{username}")
    argv = [sys.executable, "-m", "rotator.sandbox.consumer", "--name", name, "--heartbeat", "0.2"]
    argv += ["--broker", f"{site.broker.host}:{site.broker.port}", "--token-file", token]
    supervisor.add(name, [*argv, "--secret", f"{key.path}={topic}"], {**os.environ, "VAULT_ADDR": site.vault.url})


def restarting(site: Site, supervisor: Supervisor, name: str, confirm: Mapping[str, Any], **settings: Any) -> None:
    """A consumer in the configuration that is restarted by the sandbox's command and proven by `confirm`."""
    argv = [sys.executable, "-m", "rotator.sandbox.restart", name, "--dir", str(supervisor.directory)]
    site.add_consumer(name, *argv, confirm=confirm, timeout="15s", **settings)


def confirmed(view: Mapping[str, Any], name: str) -> int | None:
    """The version that a consumer is confirmed on."""
    version: int | None = next(c["confirmed_version"] for c in view["consumers"] if c["name"] == name)
    return version


def test_an_empty_broker_block_reads_the_log_with_the_key_itself(
    site: Site, supervisor: Supervisor, broker: MosquittoBroker
) -> None:
    """`confirm: {broker: {}}`: at the place of `verify`, by the new secret itself; our own connects don't count."""
    key = site.add_key("own", consumers=["ingest"])
    for kind in ("subscribePattern", "publishClientReceive"):
        acl = {"command": "addRoleACL", "rolename": f"key-{key.id}", "acltype": kind, "topic": "$SYS/#", "allow": True}
        broker.command([acl])
    run_consumer(site, supervisor, key, "ingest")
    restarting(site, supervisor, "ingest", {"broker": {}})
    with running(site.daemon().start()) as process:
        assert 0 == process.command("rotate", "own", "--now").returncode
        view = process.key("own")
        assert (2, "ok") == (confirmed(view, "ingest"), view["state"])
        assert 1.0 == process.metric("rotator_credential_gap_seconds_count", provider="haltian")


def test_a_heartbeat_proves_it(site: Site, supervisor: Supervisor, broker: MosquittoBroker) -> None:
    """`confirm: {heartbeat: …}` with an observer's account."""
    key = site.add_key("beat", consumers=["ingest"])
    run_consumer(site, supervisor, key, "ingest")
    account = {"username": broker.observer_username, "password": site.secret("observer", broker.observer_password)}
    restarting(site, supervisor, "ingest", {"heartbeat": {"topic": "heartbeat/ingest", **account}})
    with running(site.daemon().start()) as process:
        assert 0 == process.command("rotate", "beat", "--now").returncode
        view = process.key("beat")
        assert (2, "ok") == (confirmed(view, "ingest"), view["state"])


@pytest.mark.long
def test_two_consumers_of_one_key_need_a_client_each(
    site: Site, supervisor: Supervisor, broker: MosquittoBroker
) -> None:
    """One connect does not prove two consumers, where no `client_id` tells them apart."""
    key = site.add_key("pair-of-readers", consumers=["ingest", "ghost"])
    run_consumer(site, supervisor, key, "ingest")
    account = {"username": broker.observer_username, "password": site.secret("observer", broker.observer_password)}
    restarting(site, supervisor, "ingest", {"broker": account})
    site.add_consumer("ghost", "/bin/true", confirm={"broker": account}, timeout="2s")
    site.config["keys"]["pair-of-readers"]["max_attempts"] = 1
    with running(site.daemon().start()) as process:
        assert 1 == process.command("rotate", "pair-of-readers", "--now").returncode
        view = process.key("pair-of-readers")
        rotation = process.api("/api/rotations")["rotations"][0]
    assert ("failed", "consumer_not_confirmed") == (rotation["result"], rotation["reason"])
    assert ("overdue", "consumer_not_confirmed") == (view["state"], view["reason"])
    assert site.platform.current_token(key.id) == site.held(key)
    assert 1 == site.refreshes()
