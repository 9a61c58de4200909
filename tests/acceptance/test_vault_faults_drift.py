"""Somebody else at our fields in Vault: in the middle of a rotation (conflict), and between two of them (drift)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from acceptance.daemon_process import RotatorProcess, stays
from acceptance.daemon_site import SiteKey
from acceptance.vault_fault_site import BINARY, NEVER, FaultySite, ended, faulty_site, looked_at, says, until
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.vault import VaultServer

pytestmark = pytest.mark.acceptance

RUBBISH = "somebody-else-wrote-this"
ACCOUNT_PASSWORD = "made-up-password-of-all-accounts"
NEEDS_A_PERSON = 3  # the exit code


@pytest.fixture(scope="module")
def vault() -> Iterator[VaultServer]:
    """One Vault for the module; every test has paths and a policy of its own."""
    with VaultServer(binary=BINARY, dev=False) as server:
        yield server


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


# --- conflict -----------------------------------------------------------------------------------------------------


def account_per_secret(world: FaultySite) -> dict[str, Any]:
    """A `verify` by which several secrets of one key may be good at a time: each is a username of its own."""
    password = world.site.secret("account-password", ACCOUNT_PASSWORD)
    return {"username": "{secret}", "password": password, "subscribe": "telemetry/#"}


def rotate_under(world: FaultySite, daemon: RotatorProcess, keys: Mapping[str, SiteKey]) -> None:
    """Begin a rotation of each key, and have somebody write our field, and one of theirs, between issue and promote.

    The key `accepted` is let in with theirs and with ours.
    """
    world.proxy.close("write")
    for name in keys:
        daemon.ask_to_rotate(name)
    until(lambda: world.proxy.waiting("write") == len(keys), "all promotes are on their way")
    for key in keys.values():
        overwrite(world, key, RUBBISH)
    for secret in (RUBBISH, world.site.platform.current_token(keys["accepted"].id)):
        world.site.broker.grant(secret, ACCOUNT_PASSWORD)
    world.proxy.open("write")


def overwrite(world: FaultySite, key: SiteKey, password: str) -> None:
    """Our field in a new version, beside a field of theirs."""
    world.vault.write(key.path, {**world.held(key), "password": password, "note": "theirs"})


def test_conflict(world: FaultySite) -> None:
    """Theirs is refused at the broker: ours is written. Theirs may work: stopped, named, alerted on, until a person."""
    keys = {
        "refused": world.site.add_key("refused"),
        "accepted": world.site.add_key("accepted", verify=account_per_secret(world)),
        "unprovable": world.site.add_key("unprovable", verify={"host": ""}),
    }
    with world.site.daemon(drift_interval=NEVER) as daemon:
        looked_at(daemon)
        rotate_under(world, daemon, keys)
        assert "succeeded" == ended(daemon, "refused")["result"]
        assert (3, True, "theirs") == (
            world.version(keys["refused"]),
            world.live(keys["refused"]),
            world.held(keys["refused"])["note"],
        )
        assert 0 == daemon.metric("rotator_drift_detected", key="refused")
        for name in ("accepted", "unprovable"):
            view = says(daemon, keys[name], "vault_conflict")
            assert (True, True, "vault_conflict") == (view["quarantined"], view["sealed"], view["drift"])
            assert "compare with `vault kv get`" in view["advice"]
            # what RotatorDrift and RotatorKeyQuarantined of rotator.rules.yml look at
            assert 1 == daemon.metric("rotator_drift_detected", key=name)
            assert 1 == daemon.metric("rotator_key_state", key=name, state="quarantined")
            assert (RUBBISH, 2) == (world.held(keys[name])["password"], world.version(keys[name]))
        assert 2 == daemon.metric("rotator_sealed_secrets")
        status = daemon.command("status")
        assert NEEDS_A_PERSON == status.returncode, status.stdout
        assert "vault_conflict: Somebody else changed our fields in Vault" in status.stdout
        for name in ("accepted", "unprovable"):
            daemon.ask_to_rotate(name)  # a person has looked, and insists
            assert "succeeded" == ended(daemon, name)["result"]
            assert (3, True) == (world.version(keys[name]), world.live(keys[name]))
            assert 0 == daemon.metric("rotator_drift_detected", key=name)
        assert len(keys) == world.site.refreshes()


def test_conflict_taken_over(world: FaultySite) -> None:
    """`on_conflict: take_over` writes ours, and keeps their other fields."""
    keys = {
        "accepted": world.site.add_key("accepted", verify=account_per_secret(world)),
        "unprovable": world.site.add_key("unprovable", verify={"host": ""}),
    }
    with world.site.daemon(drift_interval=NEVER, on_conflict="take_over") as daemon:
        looked_at(daemon)
        rotate_under(world, daemon, keys)
        for name, key in keys.items():
            assert "succeeded" == ended(daemon, name)["result"]
            assert (3, True, "theirs") == (world.version(key), world.live(key), world.held(key)["note"])
            assert 0 == daemon.metric("rotator_drift_detected", key=name)
        assert len(keys) == world.site.refreshes()


# --- drift --------------------------------------------------------------------------------------------------------


def delete(world: FaultySite, key: SiteKey) -> None:
    """The current version, as `vault kv delete` does it."""
    world.vault.request("DELETE", f"secret/data/{key.path}")


def destroy(world: FaultySite, key: SiteKey) -> None:
    """The current version, for good."""
    world.vault.request("PUT", f"secret/destroy/{key.path}", {"versions": [world.version(key)]})


def refresh_elsewhere(world: FaultySite, key: SiteKey) -> str:
    """Somebody issues a token at the platform's own pages, which ends ours; returns it."""
    state = world.site.platform.state
    return state.refresh_key(key.id, state.key(key.id).organization_id).token


def test_drift_is_restored(world: FaultySite) -> None:
    """Deleted: undeleted. Rubbish: ours is copied. Destroyed: a new secret. Another value that works: left alone."""
    names = ("deleted", "rubbish", "destroyed", "working")
    keys = {name: world.site.add_key(name) for name in names}
    with world.site.daemon(drift_interval="1s", on_drift="restore") as daemon:
        looked_at(daemon)
        delete(world, keys["deleted"])
        overwrite(world, keys["rubbish"], RUBBISH)
        destroy(world, keys["destroyed"])
        other = refresh_elsewhere(world, keys["working"])
        overwrite(world, keys["working"], other)
        until(lambda: world.held(keys["deleted"]) != {}, "it is undeleted")
        assert (1, keys["deleted"].token) == (world.version(keys["deleted"]), world.site.held(keys["deleted"]))
        until(lambda: world.version(keys["rubbish"]) == 3, "ours is copied")
        assert {"password": keys["rubbish"].token, "note": "theirs"}.items() <= world.held(keys["rubbish"]).items()
        assert ("succeeded", 2, True) == (
            ended(daemon, "destroyed")["result"],
            world.version(keys["destroyed"]),
            world.live(keys["destroyed"]),
        )
        says(daemon, keys["working"], "vault_overwritten")
        stays(lambda: (world.version(keys["working"]), world.site.held(keys["working"])), (2, other), 2.5)
        until(lambda: daemon.metric("rotator_drift_detected") == 1, "only one key drifts still")
        assert (1, 1) == (daemon.metric("rotator_drift_detected", key="working"), world.site.refreshes())
        status = daemon.command("status", "--json")
        shown = {view["name"]: view["needs_a_person"] for view in json.loads(status.stdout)["keys"]}
        assert {**dict.fromkeys(names), "working": "vault_overwritten"} == shown
        assert NEEDS_A_PERSON == status.returncode
        # a copy is no promote: what a rollback goes back to stays what was before our last one
        versions = {name: daemon.key(name)["vault"]["version"] for name in names}
        assert {"deleted": 1, "rubbish": 1, "destroyed": 2, "working": 1} == versions


def test_drift_is_told(world: FaultySite) -> None:
    """`on_drift: alert`: each kind is named and alerted on, told once, and nothing is changed."""
    expected = {"deleted": "vault_deleted", "destroyed": "vault_destroyed", "rubbish": "vault_overwritten"}
    keys = {name: world.site.add_key(name) for name in expected}
    with world.site.daemon(drift_interval="1s") as daemon:
        looked_at(daemon)
        delete(world, keys["deleted"])
        destroy(world, keys["destroyed"])
        overwrite(world, keys["rubbish"], RUBBISH)
        versions = {name: world.version(key) for name, key in keys.items()}
        for name, reason in expected.items():
            assert reason == says(daemon, keys[name], reason)["drift"]
            assert 1 == daemon.metric("rotator_drift_detected", key=name)
        stays(lambda: {name: world.version(key) for name, key in keys.items()}, versions, 2.5)
        assert ({}, {}, RUBBISH) == (
            world.held(keys["deleted"]),
            world.held(keys["destroyed"]),
            world.held(keys["rubbish"])["password"],
        )
        assert (0, dict.fromkeys(keys, 1)) == (
            world.site.refreshes(),
            {name: len(daemon.log("drift", key=name)) for name in keys},
        )
        status = daemon.command("status")
        assert NEEDS_A_PERSON == status.returncode
        assert [] == [reason for reason in expected.values() if f"{reason}: " not in status.stdout]
