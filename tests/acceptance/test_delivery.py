"""A copier that hands secrets on late, in real time: nobody is restarted onto the old one, nobody confirmed falsely."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from acceptance import daemon_process
from acceptance.daemon_process import RotatorProcess, running, tell, until
from acceptance.daemon_site import Site, SiteKey, open_site
from acceptance.delivery_external_secrets import LateExternalSecrets
from acceptance.delivery_records import Record, digest
from acceptance.delivery_scene import NAMESPACE, Copies, key_of, open_cluster
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.vault import VaultServer
from rotator.timestamps import parse_timestamp

pytestmark = pytest.mark.acceptance

BY_FILE, BY_EXTERNAL_SECRETS = ("file-a", "file-b", "file-c"), ("eso-a", "eso-b")
NAMES = (*BY_FILE, *BY_EXTERNAL_SECRETS)
LATE = 0.5  # seconds that a reader may take to note what has happened to it


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test has started ends with it."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, stack: ExitStack) -> Site:
    """A platform, a Vault, a broker."""
    vault, broker = stack.enter_context(VaultServer()), stack.enter_context(MosquittoBroker())
    return stack.enter_context(open_site(tmp_path, vault, broker))


def set_up(site: Site, stack: ExitStack, delay: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Copies, list[SiteKey]]:
    """Five keys, a reader of a copy for each, and the two that copy."""
    copies = Copies(site, stack)
    double, config = open_cluster(site, stack)
    monkeypatch.setitem(daemon_process.ENVIRONMENT, "KUBECONFIG", config)
    keys = [key_of(site, name) for name in NAMES]
    paths = {key.name: key.path for key in keys}
    external = LateExternalSecrets(double, site.vault, delay, copies.records_file)
    for name in BY_EXTERNAL_SECRETS:
        external.add(NAMESPACE, name, paths[name], copies.copy(name))
        where = {"external_secret": {"namespace": NAMESPACE, "name": name}, "timeout": "5m"}
        copies.restarted(name, deliver=where)
    stack.enter_context(external)
    copies.copier({name: paths[name] for name in BY_FILE}, delay)
    for name in BY_FILE:
        copies.restarted(name, deliver={"file": str(copies.copy(name)), "timeout": "5m"})
    for name in NAMES:
        copies.reader(name)
    return copies, keys


def moment(text: str) -> float:
    """A moment of the API, or of Vault, in seconds, as records have it."""
    found = parse_timestamp(text)
    assert found is not None
    return found.timestamp()


def check_order(copies: Copies, key: SiteKey, rotation: dict[str, Any], delay: float) -> None:
    """Written, copied, restarted, connected, confirmed: once each, in this order, all on what Vault holds."""
    (handed,) = copies.records("handed", key.path, version=2)
    (restart,) = copies.records("restart", key.name)
    first, second = copies.records("began", key.name)
    connected: Record = copies.records("connected", key.name)[-1]
    (consumer,) = rotation["consumers"]
    assert ("succeeded", 2) == (rotation["result"], rotation["vault_version"])
    assert (2, 1, 2) == (restart["ordered"], first["version"], second["version"])
    new = digest(copies.site.platform.current_token(key.id))
    assert [new] * 4 == [each["digest"] for each in (handed, restart, second, connected)]
    written = copies.site.vault.request("GET", f"secret/metadata/{key.path}")["data"]["versions"]["2"]["created_time"]
    assert handed["at"] >= moment(written) + delay - 0.01  # two clocks of one machine
    assert handed["at"] <= restart["at"] <= second["at"] <= connected["at"]
    # what is seen is the broker's own line, which may come before the reader's note that it was let in
    assert second["at"] <= moment(consumer["seen_at"]) <= moment(consumer["confirmed_at"])


def own_gap(copies: Copies, name: str) -> float:
    """Seconds from a reader's being cut off to its being let in on the new secret, by its own records."""
    (lost,) = copies.records("lost", name, version=1)
    back = copies.records("connected", name, version=2)[0]
    return float(back["at"] - lost["at"])


def gaps_open(daemon: RotatorProcess) -> list[str]:
    """The keys of whose open gap the metrics tell."""
    return re.findall(r'^rotator_key_gap_started_timestamp_seconds{key="(.+?)"}', daemon.get("/metrics").text, re.M)


@pytest.mark.parametrize("delay", [3.0, pytest.param(60.0, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
def test_five_keys_behind_a_late_copier(
    site: Site, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, delay: float
) -> None:
    """All five at once; three by a file, two by External Secrets. What everybody runs on is their own word."""
    copies, keys = set_up(site, stack, delay, monkeypatch)
    with running(site.daemon().start()) as daemon:
        for key in keys:
            daemon.ask_to_rotate(key.name)
        told_open: set[str] = set()

        def all_told() -> bool:
            told_open.update(gaps_open(daemon))  # each is open for `delay` at least, so that none is overlooked
            return told_open == set(NAMES)

        until(all_told, "five open gaps are told", 30)
        rotations = [daemon.ended(name, delay + 60) for name in NAMES]
        for key, rotation in zip(keys, rotations, strict=True):
            check_order(copies, key, rotation, delay)
        views = [daemon.key(name) for name in NAMES]
        assert [("ok", 2)] * 5 == [(view["state"], view["consumers"][0]["confirmed_version"]) for view in views]
        assert [] == gaps_open(daemon)
        gaps = [own_gap(copies, name) for name in NAMES]
        told = daemon.metric("rotator_credential_gap_seconds_sum", provider="haltian")
        assert 5 == daemon.metric("rotator_credential_gap_seconds_count", provider="haltian")
        assert all(gap >= delay - LATE for gap in gaps)
        assert sum(gaps) == pytest.approx(told, abs=5 * LATE)
        assert 5 == site.refreshes()
        own = ", ".join(f"{gap:.1f}" for gap in gaps)
        tell(f"a copier {delay:g} s late, five keys: gaps of {own} s by their own records, {told:.1f} s in all told")
