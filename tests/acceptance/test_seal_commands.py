"""The seal as a person meets it: its key lost, replaced, kept by Vault; and the journal backed up."""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from acceptance.daemon_process import RotatorProcess, run_rotator, running, tell, until
from acceptance.daemon_site import POLICY, Site, SiteKey, open_site, sealed_rows
from rotator.journal.seal_file import make_key, read_key
from rotator.sandbox.haltian import Faults
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.vault import VaultServer

pytestmark = pytest.mark.acceptance

# What docs/seal.md adds to the policy for a seal that is kept by Vault.
TRANSIT = """
path "transit/datakey/plaintext/rotator" { capabilities = ["update"] }
path "transit/decrypt/rotator" { capabilities = ["update"] }
path "transit/rewrap/rotator" { capabilities = ["update"] }
"""


@pytest.fixture(scope="module")
def shared_vault() -> Iterator[VaultServer]:
    """A Vault on files, which can be stopped and started, for the whole module."""
    with VaultServer(dev=False) as server:
        server.request("POST", "sys/mounts/transit", {"type": "transit"})
        server.request("POST", "transit/keys/rotator", {})
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


def live(site: Site, key: SiteKey) -> bool:
    """Whether Vault holds the token that the platform lets in."""
    return site.held(key) == site.platform.current_token(key.id)


def let_a_secret_wait(site: Site, daemon: RotatorProcess, key: SiteKey) -> None:
    """Vault goes away while the issue call is out; the secret waits sealed, and the daemon dies."""
    if daemon.url == "":
        daemon.start()
    until(lambda: daemon.ready()[0] == 200, "ready")
    site.platform.faults = Faults(latency_after=2, times=1)
    daemon.ask_to_rotate(key.name)
    until(lambda: site.refreshes() == 1, "the issue call is on its way")
    site.vault.stop()
    until(lambda: daemon.metric("rotator_sealed_secrets") == 1, "the secret waits")
    daemon.kill()


# --- the key file ------------------------------------------------------------------------------------------------


def test_seal_init(site: Site) -> None:
    """The key is made once, for its owner only, and the first start takes it; a second `init` leaves it alone."""
    with running(site.daemon()) as daemon:
        done = daemon.command("seal", "init")
        made = read_key(daemon.state / "seal.key")
        assert (0, True) == (done.returncode, made.id in done.stdout), done.stderr
        assert 0o600 == stat.S_IMODE((daemon.state / "seal.key").stat().st_mode)
        again = daemon.command("seal", "init")
        assert (1, True) == (again.returncode, "already" in again.stderr)
        daemon.start()
    with closing(sqlite3.connect(daemon.state / "rotator.db")) as database:
        (noted,) = database.execute("SELECT value FROM facts WHERE name = 'seal_id'").fetchone()
    assert {made.id} == {noted.decode(), read_key(daemon.state / "seal.key").id}


def test_a_key_beside_the_journal_is_warned_about(site: Site, tmp_path: Path) -> None:
    """At start and by `check`, as soon as it lies there; a key elsewhere is well."""
    with running(site.daemon()) as daemon:
        assert "beside the journal" not in daemon.command("check").stdout
        daemon.start()
        (notice,) = [line for line in daemon.log("notice") if "beside the journal" in line["detail"]]
        assert str(daemon.state / "seal.key") in notice["detail"]
        assert "beside the journal" in daemon.command("check").stdout
        daemon.stop()
        (tmp_path / "keys").mkdir(mode=0o700)
        (daemon.state / "seal.key").rename(tmp_path / "keys" / "seal.key")
        daemon.config["state"]["seal"]["path"] = str(tmp_path / "keys" / "seal.key")
        daemon.write_config()
        daemon.start()
        assert [] == [line for line in daemon.log("notice") if "beside the journal" in line["detail"]]


@pytest.mark.long
@pytest.mark.timeout(240)
def test_the_key_is_lost_and_a_secret_waits(site: Site) -> None:
    """Exit 2, naming the key to bring; `seal forget` accepts the loss, and the key is rotated again by itself."""
    key = site.add_key("building-a")
    with running(site.daemon()) as daemon:
        let_a_secret_wait(site, daemon, key)
        lost = read_key(daemon.state / "seal.key")
        (daemon.state / "seal.key").rename(daemon.folder / "lost.key")
        for command in (("run",), ("once",), ("seal", "rotate-key"), ("seal", "init")):
            refused = daemon.command(*command)
            assert 2 == refused.returncode, (command, refused.stderr)
            assert all(word in refused.stderr for word in ("building-a", lost.id, "seal_key_missing", "seal forget"))
        assert not (daemon.state / "seal.key").exists()

        another = make_key(daemon.state / "seal.key")
        refused = daemon.command("run")
        assert (2, True, True) == (refused.returncode, lost.id in refused.stderr, another.id in refused.stderr)
        (daemon.state / "seal.key").unlink()

        misspelt = daemon.command("seal", "forget", "building-b")
        assert (1, True) == (misspelt.returncode, "building-b" in misspelt.stderr)
        assert [(True, False)] == sealed_rows(daemon)
        forgotten = daemon.command("seal", "forget", "building-a")
        assert (0, True) == (forgotten.returncode, "rotated again" in forgotten.stdout), forgotten.stderr
        assert [(False, True)] == sealed_rows(daemon)
        history = daemon.command("history", "building-a")
        assert "secret_forgotten" in history.stdout

        site.vault.start()
        daemon.start()
        until(lambda: site.refreshes() == 2 and live(site, key), "the key is rotated again", 30)
        assert "succeeded" == daemon.ended(key.name)["result"]
        assert 2 == site.refreshes()


@pytest.mark.long
@pytest.mark.timeout(240)
def test_rotate_key_while_a_secret_waits(site: Site) -> None:
    """The new key opens what the old one sealed; the old key's bytes are gone from the state folder."""
    key = site.add_key("building-a")
    with running(site.daemon()) as daemon:
        let_a_secret_wait(site, daemon, key)
        old, before = read_key(daemon.state / "seal.key"), (daemon.state / "seal.key").read_bytes().strip()
        done = daemon.command("seal", "rotate-key")
        new = read_key(daemon.state / "seal.key")
        assert 0 == done.returncode, done.stderr
        assert (True, True, True) == (old.id != new.id, old.id in done.stdout, new.id in done.stdout)
        assert before not in daemon.all_output()
        site.vault.start()
        daemon.start()
        until(lambda: live(site, key), "the secret is in Vault", 30)
        assert ("succeeded", 1) == (daemon.ended(key.name)["result"], site.refreshes())


def test_what_needs_the_lock_says_who_holds_it(site: Site) -> None:
    """Beside a daemon neither the key is replaced nor a secret forgotten: exit 1, and the process that holds it."""
    site.add_key("building-a")
    with running(site.daemon()) as daemon:
        daemon.start()
        before = (daemon.state / "seal.key").read_bytes()
        for command in (("rotate-key",), ("forget", "building-a")):
            refused = daemon.command("seal", *command)
            assert 1 == refused.returncode
            assert all(word in refused.stderr for word in (str(daemon.pid), "journal_locked"))
        assert before == (daemon.state / "seal.key").read_bytes()


def test_without_a_journal_nothing_is_made(site: Site) -> None:
    """A misspelt path must not leave an empty journal behind."""
    daemon = site.daemon()
    for command in (("seal", "rotate-key"), ("seal", "forget", "building-a"), ("backup", str(site.folder / "copy"))):
        refused = daemon.command(*command)
        assert (1, True) == (refused.returncode, "there is no journal" in refused.stderr), command
    assert not daemon.state.exists()


# --- kept by Vault -----------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(240)
def test_sealed_by_transit_while_vault_is_down(site: Site) -> None:
    """The answer is sealed without Vault, the daemon starts without it, and with it back the secret is promoted."""
    site.vault.request("PUT", f"sys/policies/acl/{site.policy}", {"policy": POLICY + TRANSIT})
    key = site.add_key("building-a")
    with running(site.daemon()) as daemon:
        daemon.config["state"]["seal"] = {"kind": "vault-transit"}
        daemon.write_config()
        tried = daemon.command("seal", "init")
        assert (0, True) == (tried.returncode, "transit/rotator" in tried.stdout), tried.stderr
        let_a_secret_wait(site, daemon, key)
        assert not (daemon.state / "seal.key").exists()
        daemon.start()
        until(lambda: daemon.ready()[1]["vault"].get("reason") == "vault_unreachable", "/readyz names Vault")
        assert (503, 200) == (daemon.ready()[0], daemon.get("/livez").status_code)
        assert 1 == daemon.metric("rotator_sealed_secrets")
        site.vault.start()
        returned = time.monotonic()
        until(lambda: live(site, key), "it is in Vault", 30)
        tell(f"sealed by transit over SIGKILL: in Vault {time.monotonic() - returned:.2f} s after Vault's return")
        assert ("succeeded", 1) == (daemon.ended(key.name)["result"], site.refreshes())
        daemon.stop()
        site.vault.request("POST", "transit/keys/rotator/rotate", {})
        rewrapped = daemon.command("seal", "rotate-key")
        assert (0, True) == (rewrapped.returncode, "newest version" in rewrapped.stdout), rewrapped.stderr


def test_first_start_with_transit_while_vault_is_down(site: Site) -> None:
    """Nothing is known of any print yet, and the key is due: it is rotated when Vault is back, and not before."""
    site.vault.request("PUT", f"sys/policies/acl/{site.policy}", {"policy": POLICY + TRANSIT})
    key = site.add_key("building-a", issued_ago=timedelta(days=80))
    site.vault.stop()
    with running(site.daemon()) as daemon:
        daemon.config["state"]["seal"] = {"kind": "vault-transit", "mount": "transit", "key": "rotator"}
        daemon.write_config()
        daemon.start()
        until(lambda: daemon.ready()[1]["vault"].get("reason") == "vault_unreachable", "/readyz names Vault")
        assert (200, 0) == (daemon.get("/livez").status_code, site.refreshes())
        site.vault.start()
        until(lambda: live(site, key) and site.refreshes() == 1, "the key is rotated", 30)
        assert "succeeded" == daemon.ended(key.name)["result"]


def test_seal_init_with_a_transit_key_that_is_not_there(site: Site) -> None:
    """It names what to correct."""
    site.vault.request("PUT", f"sys/policies/acl/{site.policy}", {"policy": TRANSIT.replace("rotator", "+")})
    daemon = site.daemon(state={"seal": {"kind": "vault-transit", "key": "no-such-key"}})
    refused = daemon.command("seal", "init")
    assert (1, True) == (refused.returncode, "vault_transit" in refused.stderr), refused.stderr


# --- backup ------------------------------------------------------------------------------------------------------


def test_backup_beside_a_running_daemon(site: Site, tmp_path: Path) -> None:
    """One file, 0600, without the seal key, which is said; never over another; a journal that starts elsewhere."""
    key = site.add_key("building-a")
    target = tmp_path / "backups" / "monday.db"
    target.parent.mkdir()
    with running(site.daemon()) as daemon:
        daemon.start()
        daemon.ask_to_rotate(key.name)
        assert "succeeded" == daemon.ended(key.name)["result"]
        done = daemon.command("backup", str(target))
        seal_key = read_key(daemon.state / "seal.key")
        assert 0 == done.returncode, done.stderr
        assert all(word in done.stdout for word in (str(target), seal_key.id, "not in it"))
        assert ([target], 0o600) == (list(target.parent.iterdir()), stat.S_IMODE(target.stat().st_mode))
        assert (daemon.state / "seal.key").read_bytes().strip() not in target.read_bytes()
        content = target.read_bytes()
        again = daemon.command("backup", str(target))
        assert (1, content) == (again.returncode, target.read_bytes())
        assert str(target) in again.stderr
        daemon.stop()
    daemon.config["state"]["url"] = f"sqlite:///{target}"
    daemon.write_config()
    shown = run_rotator("history", "building-a", "--json", "--config", str(daemon.config_file))
    assert (0, True) == (shown.returncode, '"succeeded"' in shown.stdout), shown.stderr
