"""Stopping in the middle and starting without the others: SIGTERM, SIGKILL, Vault or provider down at start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from acceptance.daemon_process import running, stays, tell, until
from acceptance.daemon_site import Site, SiteKey, open_site, sealed_rows
from rotator.sandbox.haltian import Faults
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.vault import VaultServer

pytestmark = pytest.mark.acceptance

# The restart command of these tests: it notes that it began, takes as long as `seconds` says, and notes that it ended.
RESTART = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "pids").open("a") as pids:
    pids.write(f"{os.getpid()}\\n")
with (folder / "restarts").open("a") as notes:
    notes.write("began\\n")
time.sleep(float((folder / "seconds").read_text()))
with (folder / "restarts").open("a") as notes:
    notes.write("ended\\n")
"""


@pytest.fixture(scope="module")
def shared_vault() -> Iterator[VaultServer]:
    """A Vault on files, which can be stopped and started, for the whole module."""
    with VaultServer(dev=False) as server:
        yield server


@pytest.fixture
def vault(shared_vault: VaultServer) -> Iterator[VaultServer]:
    """That Vault, running again whatever the test did to it."""
    yield shared_vault
    shared_vault.start()


@pytest.fixture(scope="module")
def broker() -> Iterator[MosquittoBroker]:
    """One Mosquitto for the module; every test has usernames of its own."""
    with MosquittoBroker() as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, vault: VaultServer, broker: MosquittoBroker) -> Iterator[Site]:
    """A platform with tokens of 90 days, and the configuration to go with it."""
    with open_site(tmp_path, vault, broker) as made:
        yield made
    end_restarts(tmp_path)


def with_slow_restart(site: Site, seconds: float) -> SiteKey:
    """A key whose one consumer takes this long to restart."""
    restart_takes(site, seconds)
    site.add_consumer("slow", sys.executable, "-c", RESTART, str(site.folder), timeout="40s")
    return site.add_key("building-a", consumers=["slow"])


def end_restarts(folder: Path) -> None:
    """A restart command outlives a daemon that was killed; not this test."""
    pids = folder / "pids"
    for pid in pids.read_text().split() if pids.exists() else ():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)


def restart_takes(site: Site, seconds: float) -> None:
    """How long the restart command takes from now on."""
    (site.folder / "seconds").write_text(str(seconds))


def restarts(site: Site) -> list[str]:
    """What the restart command has noted."""
    notes = site.folder / "restarts"
    return notes.read_text().split() if notes.exists() else []


def live(site: Site, key: SiteKey) -> bool:
    """Whether Vault holds the token that the platform lets in."""
    return site.held(key) == site.platform.current_token(key.id)


# --- SIGTERM ------------------------------------------------------------------------------------------------------


def test_sigterm_lets_a_rotation_finish(site: Site) -> None:
    """In the middle of a slow restart, with grace enough: the rotation ends well, then the daemon, with exit 0."""
    key = with_slow_restart(site, 2)
    with running(site.daemon(shutdown_grace="15s")) as daemon:
        daemon.start()
        daemon.ask_to_rotate(key.name)
        until(lambda: restarts(site) == ["began"], "the restart has begun")
        daemon.ask_to_stop()
        began = time.monotonic()
        assert 0 == daemon.wait()
        took = time.monotonic() - began
        tell(f"SIGTERM in a restart of 2 s, 15 s of grace: ended after {took:.2f} s")
        assert (["began", "ended"], True) == (restarts(site), took < 10)
        events = [line["event"] for line in daemon.log() if line["event"] in {"rotation_ended", "stopping", "stopped"}]
        assert ["stopping", "rotation_ended", "stopped"] == events
        assert "succeeded" == daemon.log("rotation_ended")[0]["result"]
        assert [(False, True)] == sealed_rows(daemon)
        assert (1, True) == (site.refreshes(), live(site, key))
        after = daemon.command("status", key.name, "--json")
        assert (0, "ok", None) == (
            after.returncode,
            *(json.loads(after.stdout)[name] for name in ("state", "rotation")),
        )


def test_sigterm_with_too_little_grace(site: Site) -> None:
    """The daemon ends soon after its grace, the rotation is resumable, and the next start ends it without issuing."""
    key = with_slow_restart(site, 14)
    with running(site.daemon(shutdown_grace="1s")) as daemon:
        daemon.start()
        daemon.ask_to_rotate(key.name)
        until(lambda: restarts(site) == ["began"], "the restart has begun")
        daemon.ask_to_stop()
        began = time.monotonic()
        code = daemon.wait(60)
        took = time.monotonic() - began
        tell(f"SIGTERM in a restart of 14 s, 1 s of grace: exit {code} after {took:.2f} s")
        assert [False] == [ended for _sealed, ended in sealed_rows(daemon)]
        restart_takes(site, 0)
        daemon.start()
        assert "succeeded" == daemon.ended(key.name)["result"]
        assert (1, True, "ended") == (site.refreshes(), live(site, key), restarts(site)[-1])
        assert 1 == len(daemon.log("rotation_ended"))
        assert (0, True) == (code, took < 8)


def test_sigterm_during_the_issue_call(site: Site) -> None:
    """An answer that is on its way is waited for and sealed, even past the grace; nothing is issued twice."""
    key = site.add_key("building-a")
    site.platform.faults = Faults(latency_after=3, times=1)
    with running(site.daemon(shutdown_grace="1s")) as daemon:
        daemon.start()
        daemon.ask_to_rotate(key.name)
        until(lambda: site.refreshes() == 1, "the issue call is on its way")
        daemon.ask_to_stop()
        assert 0 == daemon.wait()
        rows, issued = sealed_rows(daemon), site.platform.current_token(key.id)
        assert ([(True, False)], key.token, False) == (rows, site.held(key), issued.encode() in daemon.all_output())
        daemon.start()
        assert "succeeded" == daemon.ended(key.name)["result"]
        assert (1, issued) == (site.refreshes(), site.held(key))


# --- SIGKILL ------------------------------------------------------------------------------------------------------


def test_sigkill_during_the_issue_call(site: Site) -> None:
    """The answer died with the process: the next start sees that it happened, and replaces the lost secret."""
    key = site.add_key("building-a")
    site.platform.faults = Faults(latency_after=5, times=1)
    with running(site.daemon()) as daemon:
        daemon.start()
        daemon.ask_to_rotate(key.name)
        until(lambda: site.platform.current_token(key.id) != key.token, "the old secret is dead")
        lost = site.platform.current_token(key.id)
        daemon.kill()
        assert ([(False, False)], key.token) == (sealed_rows(daemon), site.held(key))
        daemon.start()
        began = time.monotonic()
        ended = daemon.ended(key.name, 40)
        tell(f"SIGKILL during issue: replaced {time.monotonic() - began:.2f} s after the next start")
        assert ("succeeded", 2) == (ended["result"], site.refreshes())
        assert (True, False) == (live(site, key), site.held(key) == lost)
        assert 1 <= daemon.metric("rotator_rotation_steps_total", step="look", result="ok")


def test_sigkill_during_a_restart(site: Site) -> None:
    """The secret is in Vault already: the next start restarts the consumer anew, and issues nothing."""
    key = with_slow_restart(site, 14)
    with running(site.daemon()) as daemon:
        daemon.start()
        daemon.ask_to_rotate(key.name)
        until(lambda: restarts(site) == ["began"], "the restart has begun")
        daemon.kill()
        assert live(site, key)
        restart_takes(site, 0)
        daemon.start()
        assert "succeeded" == daemon.ended(key.name)["result"]
        assert (1, True, ["began", "began", "ended"]) == (site.refreshes(), live(site, key), restarts(site))


def test_sigkill_while_the_secret_waits(site: Site) -> None:
    """Vault is down and the daemon dies: the sealed secret survives both, and is in Vault after both are back."""
    key = site.add_key("building-a")
    site.platform.faults = Faults(latency_after=2, times=1)
    with running(site.daemon()) as daemon:
        daemon.start()
        daemon.ask_to_rotate(key.name)
        until(lambda: site.refreshes() == 1, "the issue call is on its way")
        site.vault.stop()
        until(lambda: daemon.metric("rotator_sealed_secrets") == 1, "the secret waits")
        daemon.kill()
        daemon.start()
        until(lambda: daemon.metric("rotator_sealed_secrets") == 1, "it still waits")
        site.vault.start()
        returned = time.monotonic()
        until(lambda: live(site, key), "it is in Vault")
        took = time.monotonic() - returned
        tell(f"sealed over SIGKILL: in Vault {took:.2f} s after Vault's return")
        assert ("succeeded", 1, True) == (daemon.ended(key.name)["result"], site.refreshes(), took < 5)


# --- the others down at start -------------------------------------------------------------------------------------


def test_vault_down_at_start(site: Site) -> None:
    """The daemon starts; /readyz says which and why; the due key is rotated as soon as Vault is back."""
    key = site.add_key("building-a", issued_ago=timedelta(days=80))
    site.vault.stop()
    with site.daemon() as daemon:
        until(lambda: daemon.ready()[1]["vault"].get("reason") == "vault_unreachable", "/readyz names Vault")
        until(lambda: daemon.ready()[1]["haltian"]["ok"], "the provider is well")
        assert (503, 200) == (daemon.ready()[0], daemon.get("/livez").status_code)
        assert 0 == site.refreshes()
        site.vault.start()
        returned = time.monotonic()
        until(lambda: live(site, key) and site.refreshes() == 1, "the key is rotated", 30)
        took = time.monotonic() - returned
        tell(f"Vault down at start: rotated {took:.2f} s after its return")
        assert ("succeeded", True) == (daemon.ended(key.name)["result"], took < 12)
        assert 200 == until(lambda: daemon.ready()[0] == 200 and daemon.ready()[0], "/readyz answers 200")


def test_provider_down_at_start(site: Site) -> None:
    """The daemon starts; /readyz says which and why; the due key is rotated as soon as the provider is back."""
    key = site.add_key("building-a", issued_ago=timedelta(days=80))
    site.platform.stop()
    with site.daemon() as daemon:
        until(
            lambda: daemon.ready()[1]["haltian"].get("reason") == "provider_unreachable", "/readyz names the provider"
        )
        until(lambda: daemon.ready()[1]["vault"]["ok"], "Vault is well")
        assert (503, 200) == (daemon.ready()[0], daemon.get("/livez").status_code)
        site.platform.start()
        returned = time.monotonic()
        until(lambda: site.refreshes() == 1 and live(site, key), "the key is rotated", 30)
        took = time.monotonic() - returned
        tell(f"provider down at start: rotated {took:.2f} s after its return")
        assert ("succeeded", True) == (daemon.ended(key.name)["result"], took < 12)
        assert 200 == until(lambda: daemon.ready()[0] == 200 and daemon.ready()[0], "/readyz answers 200")


def test_a_start_rotates_nothing_that_is_not_due(site: Site) -> None:
    """A start, and a second one, look at everything and change nothing."""
    key = site.add_key("building-a")
    with running(site.daemon(watch="1s")) as daemon:
        for _ in range(2):
            daemon.start()
            until(lambda: daemon.ready()[0] == 200 and daemon.key(key.name)["state"] == "ok", "looked at")
            stays(site.refreshes, 0, 1)
            assert 0 == daemon.stop()
    assert (key.token, []) == (site.held(key), sealed_rows(daemon))
