"""`discover`, `provision` and `retire` as a person meets them, and a daemon whose keys are selected by `discover:`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from acceptance.daemon_process import ENVIRONMENT, running, stays, until
from acceptance.daemon_site import Site, open_site
from acceptance.vault_gate import VaultGate
from rotator.sandbox.ishareradio import IShareRadioPlatform
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.processes import end, spawn, tail
from rotator.sandbox.vault import VaultServer

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def vault() -> Iterator[VaultServer]:
    """One Vault in memory for the module; every test has paths and a policy of its own."""
    with VaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def broker() -> Iterator[MosquittoBroker]:
    """One Mosquitto for the module; every test has usernames of its own."""
    with MosquittoBroker() as server:
        yield server


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A site with a second platform, an iShareRadio portal."""

    site: Site
    portal: IShareRadioPlatform

    def keys_at_haltian(self) -> dict[str, str]:
        """Name → id of Haltian's keys."""
        return {key.name: key.id for key in self.site.platform.state._keys.values()}

    def labels(self) -> list[str]:
        """Of the portal's clients."""
        return [str(row["label"]) for row in self.portal.state.publishers()]


@pytest.fixture
def stage(tmp_path: Path, vault: VaultServer, broker: MosquittoBroker) -> Iterator[Stage]:
    """Both platforms, no key in the configuration."""
    with open_site(tmp_path, vault, broker) as site, IShareRadioPlatform() as portal:
        site.config["providers"]["radio"] = {
            "kind": "ishareradio",
            "url": portal.url,
            "token": site.secret("radio.token", portal.token),
        }
        yield Stage(site=site, portal=portal)


# --- discover -----------------------------------------------------------------------------------------------------


def test_what_discover_writes_loads(stage: Stage) -> None:
    """One that is managed is left out; the others' entries stand beside the configuration, and `check` is content."""
    site = stage.site
    mine, other = site.add_key("building-a"), site.add_key("Gebäude B: west\n", in_vault=False)
    del site.config["keys"][other.name]
    process = site.daemon()
    folder = process.config_file.parent / "keys.d"
    folder.mkdir()
    done = process.command("discover", "haltian", "--write", str(folder / "found.yaml"))
    assert (0, True) == (done.returncode, f"left out: {mine.id} is managed by keys.building-a" in done.stderr)
    text = (folder / "found.yaml").read_text(encoding="utf-8")
    keys = yaml.safe_load(text)["keys"]
    assert {"gebaude-b-west": ("haltian", other.id)} == {
        name: (key["provider"], key["id"]) for name, key in keys.items()
    }
    assert ("# Gebäude B: west ; expires 2" in text, 0o644) == (True, (folder / "found.yaml").stat().st_mode & 0o777)
    check = process.command("check")
    assert (0, True) == (check.returncode, ": 2 keys, well" in check.stdout), check.stdout + check.stderr
    again = process.command("discover", "haltian", "--write", str(folder / "found.yaml"))
    assert (1, text) == (again.returncode, (folder / "found.yaml").read_text(encoding="utf-8")), again.stderr
    assert ["found.yaml"] == os.listdir(folder)


def test_discover_prints_what_matches(stage: Stage) -> None:
    """On stdout there is nothing but YAML, or JSON; a key without an expiry has a word about its age."""
    first, _ = stage.portal.add_key("site-alpha")
    stage.portal.add_key("other")
    process = stage.site.daemon()
    done = process.command("discover", "radio", "--match", "site-*")
    assert (0, ["site-alpha"]) == (done.returncode, list(yaml.safe_load(done.stdout)["keys"])), done.stderr
    assert "    rotate: {max_age: 90d}" in done.stdout
    as_json = json.loads(process.command("discover", "radio", "--json").stdout)
    assert {"site-alpha", "other"} == as_json["keys"].keys()
    assert first == as_json["keys"]["site-alpha"]["id"]
    assert not process.state.exists(), "no journal is made, and no lock is taken"
    unknown = process.command("discover", "radoi")
    assert (2, True) == (unknown.returncode, "radio" in unknown.stderr)


# --- provision ----------------------------------------------------------------------------------------------------


def test_provision_and_manage(stage: Stage) -> None:
    """A key with its role and link, its secret in Vault, an entry that loads; the same path is not taken twice."""
    process = stage.site.daemon()
    path = f"mqtt/{stage.site._mark}-new"
    argv = ("provision", "haltian", "building-n", "--vault-path", path)
    done = process.command(*argv, "--set", "integration=west")
    assert (0, ["building-n"]) == (done.returncode, list(stage.keys_at_haltian())), done.stderr
    id = stage.keys_at_haltian()["building-n"]
    token = stage.site.platform.current_token(id)
    assert (1, {"username": id, "password": token}) == stage.site.vault.read(path)
    assert token not in done.stdout + done.stderr
    entry = yaml.safe_load(done.stdout)["keys"]["building-n"]
    assert (id, path) == (entry["id"], entry["vault"]["path"])
    assert ["lock"] == os.listdir(process.state / "provision")
    again = process.command(*argv)
    assert (1, 1) == (again.returncode, stage.site.vault.read(path)[0]), again.stderr
    elsewhere = process.command("provision", "haltian", "building-n", "--vault-path", path + "-2")
    assert (1, True) == (elsewhere.returncode, "--existing" in elsewhere.stderr), elsewhere.stderr
    assert token == stage.site.platform.current_token(id)
    process.config["keys"] = {"building-n": {**entry, "adopt": "wait"}}
    process.write_config()
    checked = process.command("check", "--online")
    assert 0 == checked.returncode, checked.stdout


def test_provision_killed_after_the_answer(stage: Stage) -> None:
    """The secret waits sealed; the next run brings it to Vault, and makes no second key and no second secret."""
    path = f"mqtt/{stage.site._mark}-new"
    argv = ("provision", "radio", "site-new", "--vault-path", path)
    with VaultGate(stage.site.vault.url) as gate:
        process = stage.site.daemon(vault={**stage.site.config["vault"], "url": gate.url})
        gate.closed.set()
        killed = spawn(
            [sys.executable, "-m", "rotator", *argv, "--config", str(process.config_file)],
            stage.site.folder / "killed.log",
            environment=ENVIRONMENT,
        )
        try:
            assert gate.reached.wait(30), tail(stage.site.folder / "killed.log")
        finally:
            end(killed, ending=signal.SIGKILL)
        gate.closed.clear()
        folder = process.state / "provision"
        assert (["site-new"], (0, None)) == (stage.labels(), stage.site.vault.read(path))
        ((username, password),) = stage.portal.live().items()
        assert {"", ".begun", ".sealed"} == {Path(name).suffix for name in os.listdir(folder)}
        assert password.encode() not in b"".join(file.read_bytes() for file in folder.iterdir())
        locked = process.command("seal", "rotate-key")
        assert (1, True) == (locked.returncode, "rotator provision" in locked.stderr), locked.stderr
        done = process.command(*argv, "--json")
    assert (0, True) == (done.returncode, json.loads(done.stdout)["resumed"]), done.stderr
    assert (1, {"username": username, "password": password}) == stage.site.vault.read(path)
    assert ({username: password}, ["site-new"]) == (stage.portal.live(), stage.labels())
    assert (1, 0) == (stage.portal.count("create"), stage.portal.count("rotate"))
    assert ["lock"] == os.listdir(folder)


def test_provision_while_vault_is_away(stage: Stage) -> None:
    """The preflight refuses before anything is made."""
    process = stage.site.daemon(vault={**stage.site.config["vault"], "url": "http://127.0.0.1:1"})
    done = process.command("provision", "radio", "site-new", "--vault-path", "mqtt/new")
    assert (1, []) == (done.returncode, stage.labels()), done.stderr
    assert "vault_unreachable" in done.stderr


def test_provision_beside_a_running_daemon(stage: Stage) -> None:
    """It needs neither its lock nor its journal."""
    path = f"mqtt/{stage.site._mark}-new"
    stage.site.add_key("building-a")
    with stage.site.daemon() as daemon:
        done = daemon.command("provision", "radio", "site-new", "--vault-path", path, "--json")
        assert 0 == done.returncode, done.stderr
        ((username, password),) = stage.portal.live().items()
        assert (1, {"username": username, "password": password}) == stage.site.vault.read(path)
        managed = daemon.command("provision", "haltian", "building-a", "--vault-path", path + "-2", "--existing")
        assert (1, True) == (managed.returncode, "keys.building-a manages" in managed.stderr), managed.stderr
        assert 0 == stage.site.refreshes()


# --- retire -------------------------------------------------------------------------------------------------------


def test_retire(stage: Stage) -> None:
    """Refused for a managed key and with nobody to ask; `--keep` pauses, without it the key is gone."""
    mine, _ = stage.portal.add_key("mine")
    other, _ = stage.portal.add_key("other")
    stage.site.config["keys"]["mine"] = {
        "provider": "radio",
        "id": mine,
        "vault": {"path": "mqtt/mine", "fields": {"password": "{secret}"}},
    }
    process = stage.site.daemon()
    managed = process.command("retire", "radio", mine, "--yes")
    assert (1, True) == (managed.returncode, "keys.mine manages" in managed.stderr), managed.stderr
    silent = process.command("retire", "radio", other)
    assert (2, {mine, other}) == (silent.returncode, set(stage.portal.live())), silent.stderr
    kept = process.command("retire", "radio", other, "--keep", "--yes")
    assert (0, {mine}, 2) == (kept.returncode, set(stage.portal.live()), len(stage.labels())), kept.stderr
    gone = process.command("retire", "radio", other, "--yes", "--json")
    assert (0, {"provider": "radio", "id": other, "deleted": True}) == (gone.returncode, json.loads(gone.stdout))
    assert ["mine"] == stage.labels()
    again = process.command("retire", "radio", other, "--yes")
    assert (1, True) == (again.returncode, "key_unknown" in again.stderr), again.stderr


def test_what_a_platform_lacks_is_said(stage: Stage) -> None:
    """Haltian's keys can't be paused: exit 1, named, nothing done."""
    key = stage.site.add_key("building-a")
    del stage.site.config["keys"][key.name]
    done = stage.site.daemon().command("retire", "haltian", key.id, "--keep", "--yes")
    assert (1, True) == (done.returncode, "provider_unable" in done.stderr), done.stderr
    assert {"building-a": key.id} == stage.keys_at_haltian()


# --- keys selected by discover ------------------------------------------------------------------------------------


def selection(stage: Stage, **more: Any) -> dict[str, Any]:
    """All of Haltian's keys whose names begin with `building-`."""
    fields = {"username": "{username}", "password": "{secret}"}
    verify = {"host": stage.site.broker.host, "port": stage.site.broker.port}
    template = {
        "vault": {"path": f"mqtt/{stage.site._mark}-{{name}}", "fields": fields},
        "verify": verify,
        "adopt": "rotate",
    }
    return {"provider": "haltian", "discover": {"match": "building-*", "template": template, **more}}


@pytest.mark.long
def test_a_daemon_takes_on_what_is_made_while_it_runs(stage: Stage) -> None:
    """Managed from then on, over a restart too with the platform away; what vanishes is reported and stays known."""
    site = stage.site
    first, other = site.add_key("building-a", in_vault=False), site.add_key("other", in_vault=False)
    for key in (first, other):
        del site.config["keys"][key.name]
    site.config["keys"]["buildings"] = selection(stage)
    with running(site.daemon(watch="1s")) as daemon:
        daemon.start()
        assert "succeeded" == daemon.ended("building-a")["result"]
        made = site.add_key("building-b", in_vault=False)
        until(lambda: len(daemon.api("/api/keys")["keys"]) == 2, "the new key is taken on")
        assert "succeeded" == daemon.ended("building-b")["result"]
        assert site.platform.current_token(made.id) == site.held(made)
        assert ["building-a", "building-b"] == [line["key"] for line in daemon.log("discovered")]
        assert 1 == daemon.metric("rotator_key_state", key="building-b", state="ok")
        assert {"building-a", "building-b"} == {view["name"] for view in daemon.api("/api/keys")["keys"]}
        managed = daemon.command("retire", "haltian", made.id, "--yes")
        assert (1, True) == (managed.returncode, "keys.building-b manages" in managed.stderr), managed.stderr
        site.platform.stop()
        assert 0 == daemon.stop()
        status = json.loads(daemon.command("status", "--json").stdout)["keys"]
        assert {"building-a": first.path, "building-b": made.path} == {
            view["name"]: view["vault"]["path"] for view in status
        }
        daemon.start()
        until(lambda: len(daemon.api("/api/keys")["keys"]) == 2, "the journal knows both")
        assert 0 == daemon.stop()
        site.platform.start()
        site.platform.state.delete_key(made.id)
        daemon.start()
        until(lambda: daemon.key("building-b")["reason"] == "key_unknown", "it is reported")
        assert ["building-b"] == [line["key"] for line in daemon.log("problem")]
        assert "ok" == daemon.key("building-a")["state"]


@pytest.mark.long
def test_a_provisioned_key_is_taken_on_as_it_is(stage: Stage) -> None:
    """Its secret is in Vault already, so nothing is rotated; another place than the template's is refused."""
    site = stage.site
    wanted = selection(stage)
    wanted["discover"]["template"]["adopt"] = "wait"
    site.config["keys"]["buildings"] = wanted
    with site.daemon(watch="1s") as daemon:
        until(lambda: daemon.ready()[0] == 200, "ready")
        elsewhere = daemon.command("provision", "haltian", "building-p", "--vault-path", "mqtt/elsewhere")
        assert (2, {}) == (elsewhere.returncode, stage.keys_at_haltian()), elsewhere.stderr
        path = f"mqtt/{site._mark}-building-p"
        assert f"--vault-path {path}" in elsewhere.stderr
        done = daemon.command("provision", "haltian", "building-p", "--vault-path", path)
        assert (0, "") == (done.returncode, done.stdout), done.stderr
        until(lambda: [view["state"] for view in daemon.api("/api/keys")["keys"]] == ["ok"], "it is managed")
        stays(site.refreshes, 0, 1)
        paused = daemon.command("pause", "--all")
        assert (0, "building-p is paused\n", True) == (
            paused.returncode,
            paused.stdout,
            daemon.key("building-p")["paused"],
        )
        checked = daemon.command("check", "--online")
        assert (0, True) == (checked.returncode, "1 of 1 keys are meant" in checked.stdout), checked.stdout
        assert "0 keys and 1 selection, well" in checked.stdout


def test_an_entry_of_its_own_comes_before_a_selection(stage: Stage) -> None:
    """The selection leaves its key alone, with a warning; an excluded one is nobody's."""
    site = stage.site
    mine, other = site.add_key("building-a"), site.add_key("building-b")
    del site.config["keys"][other.name]
    config = site.config["keys"].pop("building-a")
    site.config["keys"] |= {"mine": config, "buildings": selection(stage, exclude=["building-b"])}
    with site.daemon(watch="1s") as daemon:
        until(lambda: daemon.ready()[0] == 200, "ready")
        (told,) = until(lambda: daemon.log("discover_skipped"), "the warning")
        assert (mine.id, "keys.mine manages it already") == (told["id"], told["detail"])
        stays(lambda: [view["name"] for view in daemon.api("/api/keys")["keys"]], ["mine"], 1.5)
        assert 1 == len(daemon.log("discover_skipped"))
    assert 0 == site.refreshes()
