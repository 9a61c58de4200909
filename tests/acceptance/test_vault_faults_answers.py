"""Answers of Vault that a proxy makes: refusals of all kinds, answers that are lost, a clock that is off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from acceptance.daemon_process import RotatorProcess, stays, tell
from acceptance.daemon_site import POLICY, SiteKey
from acceptance.vault_fault_proxy import Cut, Fault, FaultyVault
from acceptance.vault_fault_site import BINARY, NEVER, FaultySite, ended, faulty_site, looked_at, says, until
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.vault import VaultServer

pytestmark = [pytest.mark.acceptance, pytest.mark.long]

REASONS = {429: "vault_rate_limited", 500: "vault_unavailable", 503: "vault_unavailable"}
# Shorter than the daemon's own pause before another preflight (2.5 s), longer than that before another promote (2 s).
SOON, LATER = 1, 3
# where in a rotation → the step, the operation that is refused there, and the delay that Vault asks for
POINTS = {
    "capabilities": ("preflight", "capabilities", SOON),
    "read": ("preflight", "read", SOON),
    "write": ("promote", "write", LATER),
    "reread": ("promote", "read", LATER),  # the read that follows a write whose answer was lost
}
NO_PROBE = {"host": ""}  # so that no look of the daemon's own at the broker reads Vault, and meets a refusal


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


def pause_after(proxy: FaultyVault, operation: str, about: str = "") -> float:
    """The seconds from the last refusal that named a delay to the next request of the same operation."""
    return [
        after.came - refused.answered
        for refused, after in pairwise(proxy.seen(operation, about))
        if refused.fault is not None and refused.fault.retry_after is not None
    ][-1]


def assert_counted(daemon: RotatorProcess, proxy: FaultyVault) -> None:
    """Each refusal is in `rotator_vault_requests_total`, under its operation and status."""
    refused = proxy.refusals()
    assert refused
    counted = {
        (operation, code): daemon.metric("rotator_vault_requests_total", operation=operation, code=code)
        for operation, code in refused
    }
    assert refused == counted


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refusals_in_a_rotation(world: FaultySite) -> None:
    """429, 500, 503, with and without a delay, wherever a rotation asks Vault: named, counted, waited for, done."""
    keys: dict[tuple[str, int, bool], SiteKey] = {
        (point, status, delayed): world.site.add_key(
            f"{point}-{status}-{'later' if delayed else 'now'}", verify=NO_PROBE
        )
        for point in POINTS
        for status in REASONS
        for delayed in (False, True)
    }
    with world.site.daemon(drift_interval=NEVER) as daemon:
        looked_at(daemon)
        for (point, status, delayed), key in keys.items():
            _step, operation, delay = POINTS[point]
            fault = Fault(status=status, retry_after=delay if delayed else None)
            if point == "reread":
                world.proxy.give("write", Fault(cut=Cut.ANSWER), to=key.path)
                world.proxy.give("read", Fault(), fault, to=key.path)  # preflight's read comes through
            else:
                world.proxy.give(operation, fault, to=key.path)
            daemon.ask_to_rotate(key.name)
        assert dict.fromkeys(keys, "succeeded") == {at: ended(daemon, key.name)["result"] for at, key in keys.items()}
        assert (0, len(keys)) == (world.proxy.left(), world.site.refreshes())
        assert dict.fromkeys(keys, (2, True)) == {at: (world.version(key), world.live(key)) for at, key in keys.items()}
        assert_counted(daemon, world.proxy)
        for step in ("preflight", "promote"):
            named = {
                reason: daemon.metric("rotator_rotation_steps_total", step=step, result="failed", reason=reason)
                for reason in ("vault_rate_limited", "vault_unavailable", "vault_unreachable")
            }
            lost = 6 if step == "promote" else 0
            assert {"vault_rate_limited": 4, "vault_unavailable": 8, "vault_unreachable": lost} == named
        delayed_keys = {at: key for at, key in keys.items() if at[2]}
        pauses = {at: pause_after(world.proxy, POINTS[at[0]][1], key.path) for at, key in delayed_keys.items()}
        shown = ", ".join(f"{at[0]} {at[1]} {seconds:.2f} s" for at, seconds in pauses.items())
        tell(f"pauses after a refusal with Retry-After: {shown}")
        for (point, status, _), seconds in pauses.items():
            step, _, delay = POINTS[point]
            if step == "promote" and status != 429:
                # a secret that waits is not kept from Vault by a balancer's delay
                assert seconds < delay, (point, status)
            else:
                assert delay <= seconds < delay + 1.4, (point, status)


def test_refusals_of_the_token(tmp_path: Path, vault: VaultServer, broker: MosquittoBroker) -> None:
    """429, 500, 503, with and without a delay, at login, lookup, renewal and health: named, counted, and gone on."""
    script = [Fault(status=status, retry_after=delay) for status in REASONS for delay in (None, LATER)]
    with ExitStack() as stack:
        worlds = {}
        for operation in ("login", "lookup", "renew"):
            (tmp_path / operation).mkdir()
            world = worlds[operation] = stack.enter_context(faulty_site(tmp_path / operation, vault, broker))
            if operation != "lookup":
                world.log_in_by_approle()
            if operation == "renew":  # a token that can be looked up is not renewed before a third of its life is gone
                world.set_policy(POLICY + 'path "auth/token/lookup-self" { capabilities = ["deny"] }')
            world.site.add_key("building-a")
            world.proxy.give(operation, *script)
        worlds["lookup"].proxy.give("health", Fault(status=500), Fault(status=503), Fault(status=503, retry_after=1))
        daemons = {
            operation: stack.enter_context(world.site.daemon(drift_interval=NEVER))
            for operation, world in worlds.items()
        }
        for operation, daemon in daemons.items():
            wait_for_the_last(worlds[operation].proxy)
            daemon.ask_to_rotate("building-a")
        for operation, daemon in daemons.items():
            world = worlds[operation]
            assert ("succeeded", 1) == (ended(daemon, "building-a")["result"], world.site.refreshes())
            well_again(daemon)
            assert 0 == world.proxy.left()
            assert_counted(daemon, world.proxy)
            said = [line["reason"] for line in daemon.log("peer_failed", peer="vault")]
            assert set(REASONS.values()) == set(said)
            tell(f"{operation}: {pause_after(world.proxy, operation):.2f} s after the last refusal with Retry-After")


def wait_for_the_last(proxy: FaultyVault) -> None:
    """Wait until one refusal is left at most: the rotation that comes now may meet it."""
    until(lambda: proxy.left() <= 1, "Vault refused again and again", 40)


def well_again(daemon: RotatorProcess) -> None:
    """Wait until the daemon says so."""
    until(lambda: daemon.ready()[0] == 200, "/readyz is well again")


# --- answers that do not come through -----------------------------------------------------------------------------


def test_an_answer_that_is_lost(world: FaultySite) -> None:
    """Cut off after the write took effect, or before it: found by reading, and Vault has one version more."""
    faults = {
        "answer": [Fault(cut=Cut.ANSWER)],
        "twice": [Fault(cut=Cut.ANSWER), Fault(cut=Cut.ANSWER)],
        "half": [Fault(cut=Cut.HALF)],
        "request": [Fault(cut=Cut.REQUEST)],
        "foreign": [Fault(cut=Cut.ANSWER)],
    }
    held = {"foreign": {"note": "theirs", "port": 8883}}
    keys = {name: world.site.add_key(name, held=held.get(name)) for name in faults}
    with world.site.daemon(drift_interval=NEVER) as daemon:
        looked_at(daemon)
        for name, key in keys.items():
            world.proxy.give("write", *faults[name], to=key.path)
            daemon.ask_to_rotate(name)
        assert dict.fromkeys(keys, "succeeded") == {name: ended(daemon, name)["result"] for name in keys}
        assert 0 == world.proxy.left()
        assert dict.fromkeys(keys, (2, True)) == {
            name: (world.version(key), world.live(key)) for name, key in keys.items()
        }
        assert {"note": "theirs", "port": 8883}.items() <= world.held(keys["foreign"]).items()
        assert dict.fromkeys(keys, 2) == {name: daemon.key(name)["vault"]["version"] for name in keys}
        assert len(keys) == world.site.refreshes()
        named = {
            reason: daemon.metric("rotator_rotation_steps_total", step="promote", result="failed", reason=reason)
            for reason in ("vault_unreachable", "vault_unavailable")
        }
        assert {"vault_unreachable": 5, "vault_unavailable": 1} == named
        stays(lambda: [world.version(key) for key in keys.values()], [2] * len(keys), 0.5)


# --- a clock that is off ------------------------------------------------------------------------------------------


def test_clock_skew(world: FaultySite) -> None:
    """Nothing is issued by itself, `rotate --now` goes on, and what was answered before is still promoted."""
    answered = world.site.add_key("answered")
    others = {10: world.site.add_key("ahead"), -10: world.site.add_key("behind")}
    with world.site.daemon(drift_interval=NEVER) as daemon:
        looked_at(daemon)
        world.proxy.close("write")
        assert 202 == daemon.post(f"/api/keys/{answered.name}/rotate").status_code  # as its policy has it: not forced
        until(lambda: world.proxy.waiting("write") == 1, "the promote is on its way")
        world.proxy.shift = timedelta(minutes=10)
        world.proxy.give("write", Fault(status=500))
        world.proxy.open("write")
        assert "succeeded" == ended(daemon, answered.name)["result"]
        assert (1, True) == (world.site.refreshes(), world.live(answered))
        for minutes, key in others.items():
            world.proxy.shift = timedelta(minutes=minutes)
            assert 202 == daemon.post(f"/api/keys/{key.name}/rotate").status_code
            assert "mend the clock" in says(daemon, key, "clock_skew")["advice"]
            until(lambda: shows_skew(daemon, minutes), "the metric shows it")  # noqa: B023 - looked at here
            assert 1 <= daemon.metric("rotator_rotation_steps_total", result="held", reason="clock_skew")
            issued = world.site.refreshes()
            stays(lambda: (world.site.refreshes(), world.version(key)), (issued, 1), 0.5)  # noqa: B023 - looked at here
            daemon.ask_to_rotate(key.name)
            assert "succeeded" == ended(daemon, key.name)["result"]
            assert (issued + 1, True, 2) == (world.site.refreshes(), world.live(key), world.version(key))


def shows_skew(daemon: RotatorProcess, minutes: int) -> bool:
    """Whether Vault's clock is shown as this far from ours; a `Date` has whole seconds."""
    return abs(daemon.metric("rotator_clock_skew_seconds", peer="vault") - minutes * 60) < 2
