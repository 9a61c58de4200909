"""Vault in trouble while a secret is on its way to it: sealed, token revoked, policy narrowed, daemon killed.

The server is OpenBao on raft, or what ROTATOR_TEST_VAULT_BIN names; it is sealed by its own API.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from acceptance.daemon_process import RotatorProcess, running, tell
from acceptance.daemon_site import POLICY, SiteKey
from acceptance.kill_upstreams import UPSTREAMS
from acceptance.vault_fault_site import BINARY, NEVER, FaultySite, ended, faulty_site, looked_at, says, until
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.vault import VaultServer

pytestmark = pytest.mark.acceptance

NO_WRITING = POLICY.replace('"create", "update", "read"', '"read"')


@pytest.fixture(scope="module")
def shared_vault() -> Iterator[VaultServer]:
    """A Vault on raft for the whole module."""
    with VaultServer(binary=BINARY, dev=False) as server:
        yield server


@pytest.fixture
def vault(shared_vault: VaultServer) -> Iterator[VaultServer]:
    """That Vault, unsealed again whatever the test did to it."""
    yield shared_vault
    shared_vault.unseal()


@pytest.fixture(scope="module")
def broker() -> Iterator[MosquittoBroker]:
    """One Mosquitto for the module; every test has usernames of its own."""
    with MosquittoBroker() as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, vault: VaultServer, broker: MosquittoBroker) -> Iterator[FaultySite]:
    """A platform with tokens of 90 days, the configuration to go with it, and a proxy before Vault."""
    with faulty_site(tmp_path, vault, broker) as made:
        yield made


def seconds_until(look: Callable[[], bool], what: str) -> float:
    """How long it takes from now on."""
    began = time.monotonic()
    until(look, what)
    return time.monotonic() - began


# --- sealed -------------------------------------------------------------------------------------------------------


def test_sealed_in_the_middle(world: FaultySite) -> None:
    """Between issue and promote: the secrets wait sealed, counted and named; after the unseal the rotations end."""
    upstreams = {strategy: make(world.site.broker) for strategy, make in UPSTREAMS.items()}
    with ExitStack() as stack:
        for upstream in upstreams.values():
            stack.callback(upstream.close)
        keys = {name: world.add_upstream(upstream, name.replace(" ", "-")) for name, upstream in upstreams.items()}
        daemon = stack.enter_context(world.site.daemon(drift_interval=NEVER))
        looked_at(daemon)
        assert 0 == daemon.metric("rotator_sealed_secrets")
        calls = {name: upstream.calls() for name, upstream in upstreams.items()}
        world.proxy.close("write")
        for key in keys.values():
            daemon.ask_to_rotate(key.name)
        until(lambda: world.proxy.waiting("write") == len(keys), "all promotes are on their way")
        world.vault.seal()
        world.proxy.open("write")
        for key in keys.values():
            view = says(daemon, key, "vault_sealed")
            assert (True, True) == (view["sealed"], view["advice"].startswith("Unseal Vault."))
        until(lambda: daemon.ready()[1]["vault"].get("reason") == "vault_sealed", "/readyz names it")
        status = daemon.command("status").stdout
        assert len(keys) == status.count("vault_sealed: Unseal Vault."), status
        assert len(keys) == daemon.metric("rotator_sealed_secrets")
        world.vault.unseal()
        began = time.monotonic()
        took = {name: seconds_since(began, daemon, key) for name, key in keys.items()}
        tell("ended after the unseal: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in took.items()))
        assert max(took.values()) < 5, took
        assert dict.fromkeys(keys, "succeeded") == {
            name: ended(daemon, key.name)["result"] for name, key in keys.items()
        }
        assert {name: before + 1 for name, before in calls.items()} == {
            name: upstream.calls() for name, upstream in upstreams.items()
        }
        assert 0 == daemon.metric("rotator_sealed_secrets")
        for key in keys.values():
            assert (2, True) == (world.version(key), world.serves(key))
            assert key.token != world.held(key)["password"]


def seconds_since(began: float, daemon: RotatorProcess, key: SiteKey) -> float:
    """From then until the end of a key's rotation."""
    ended(daemon, key.name)
    return time.monotonic() - began


def test_killed_while_vault_is_sealed(world: FaultySite) -> None:
    """SIGKILL while the secret waits for a sealed Vault, a start while it still is: in Vault after the unseal."""
    key = world.site.add_key("building-a")
    with running(world.site.daemon(drift_interval=NEVER)) as daemon:
        daemon.start()
        looked_at(daemon)
        world.proxy.close("write")
        daemon.ask_to_rotate(key.name)
        until(lambda: world.proxy.waiting("write") == 1, "the promote is on its way")
        world.vault.seal()
        world.proxy.open("write")
        says(daemon, key, "vault_sealed")
        daemon.kill()
        daemon.start()
        assert 1 == daemon.metric("rotator_sealed_secrets")
        says(daemon, key, "vault_sealed")
        assert world.site.platform.current_token(key.id).encode() not in daemon.all_output()
        world.vault.unseal()
        took = seconds_until(lambda: world.live(key), "it is in Vault")
        tell(f"killed while sealed: in Vault {took:.2f} s after the unseal")
        assert ("succeeded", 1, 2) == (ended(daemon, key.name)["result"], world.site.refreshes(), world.version(key))
        assert took < 5, f"{took:.2f} s after the unseal"


# --- the token ----------------------------------------------------------------------------------------------------


def test_login_revoked_in_the_middle(world: FaultySite) -> None:
    """AppRole: the write meets a 403, the daemon logs in again, and the same write goes through."""
    world.log_in_by_approle()
    key = world.site.add_key("building-a")
    with world.site.daemon(drift_interval=NEVER) as daemon:
        looked_at(daemon)
        world.proxy.close("write")
        daemon.ask_to_rotate(key.name)
        until(lambda: world.proxy.waiting("write") == 1, "the promote is on its way")
        logins, revoked = len(world.proxy.seen("login")), world.proxy.token
        world.vault.request("POST", "auth/token/revoke", {"token": revoked})
        world.proxy.open("write")
        assert ("succeeded", 1) == (ended(daemon, key.name)["result"], world.site.refreshes())
        assert ([403, 200], True) == ([seen.status for seen in world.proxy.seen("write")], world.live(key))
        assert (1, True) == (len(world.proxy.seen("login")) - logins, world.proxy.token != revoked)
        assert 1 == daemon.metric("rotator_rotation_steps_total", step="promote", result="ok")
        assert 0 == daemon.metric("rotator_rotation_steps_total", step="promote", result="failed")


def test_given_token_revoked_in_the_middle(world: FaultySite) -> None:
    """A token file: `vault_auth` and its next step, until another token lies in the file."""
    key = world.site.add_key("building-a")
    with world.site.daemon(drift_interval=NEVER) as daemon:
        looked_at(daemon)
        world.proxy.close("write")
        daemon.ask_to_rotate(key.name)
        until(lambda: world.proxy.waiting("write") == 1, "the promote is on its way")
        world.vault.request("POST", "auth/token/revoke", {"token": world.proxy.token})
        world.proxy.open("write")
        assert "Check `vault.auth`" in says(daemon, key, "vault_auth")["advice"]
        until(lambda: daemon.ready()[1]["vault"].get("reason") == "vault_auth", "/readyz names it")
        assert 1 == daemon.metric("rotator_sealed_secrets")
        world.site.secret("vault.token", world.vault.create_token(POLICY, name=world.site.policy))
        took = seconds_until(lambda: world.live(key), "the new token is taken up")
        tell(f"another token in the file: in Vault {took:.2f} s later")
        assert ("succeeded", 1, 2) == (ended(daemon, key.name)["result"], world.site.refreshes(), world.version(key))
        until(lambda: daemon.ready()[0] == 200, "/readyz is well again")
        # a promote whose login is refused is tried again after four seconds at most
        assert took < 7, f"{took:.2f} s after the new token"


# --- the policy ---------------------------------------------------------------------------------------------------


def test_policy_narrowed_in_the_middle(world: FaultySite) -> None:
    """The secret waits, with the policy lines that are missing; another key issues nothing; mended, both are done."""
    world.log_in_by_approle()
    key, other = world.site.add_key("building-a"), world.site.add_key("building-b")
    with world.site.daemon(drift_interval=NEVER) as daemon:
        looked_at(daemon)
        logins = len(world.proxy.seen("login"))
        world.proxy.close("write")
        daemon.ask_to_rotate(key.name)
        until(lambda: world.proxy.waiting("write") == 1, "the promote is on its way")
        world.set_policy(NO_WRITING)
        world.proxy.open("write")
        waits = says(daemon, key, "vault_denied")
        daemon.ask_to_rotate(other.name)
        held = says(daemon, other, "vault_denied")
        for view, path in ((waits, key.path), (held, other.path)):
            lines = f'path "secret/data/{path}" {{ capabilities = ["read", "update"] }}'
            assert lines in view["detail"], view
        assert "Add the missing capability" in waits["advice"]
        assert (1, 1) == (daemon.metric("rotator_sealed_secrets"), world.site.refreshes())
        # the token was looked up, and found good: a login would not help, and a secret id may have few uses
        assert (logins, True) == (len(world.proxy.seen("login")), world.proxy.seen("lookup") != [])
        world.set_policy(POLICY)
        took = seconds_until(lambda: world.live(key), "the waiting secret is in Vault")
        tell(f"policy mended: in Vault {took:.2f} s later")
        assert took < 5, f"{took:.2f} s after the policy was mended"
        daemon.ask_to_rotate(other.name)
        assert ["succeeded"] * 2 == [ended(daemon, each.name)["result"] for each in (key, other)]
        assert ([2, 2], 2) == ([world.version(each) for each in (key, other)], world.site.refreshes())
