"""Every kind of consumer through the real daemon, with a real rotation each, and restarts that were missed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from acceptance.daemon_process import RotatorProcess, running, stays, tell, until
from acceptance.daemon_site import Site, SiteKey, open_site
from acceptance.delivery_records import digest, write_copy
from acceptance.delivery_scene import Copies, key_of
from acceptance.kinds_cluster import Pods, grant, role_in
from acceptance.kinds_members import FleetMember, Hook, Member, fleet_login
from contract.consumer_kube_double import ADMIN, KubeDouble, kubeconfig
from contract.consumer_kube_stage import KubeStage
from rotator.sandbox.consumer import read_vault
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.vault import VaultServer

pytestmark = pytest.mark.acceptance

FLEET = ("pump-1", "pump-2", "pump-3")
KEYS = ("fleet", "hook", "command", "beating", "following", "cluster")
READERS = ("command", "beating", "following", "dash")


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
def stack() -> Iterator[ExitStack]:
    """What a test has started ends with it."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, vault: VaultServer, broker: MosquittoBroker) -> Iterator[Site]:
    """A platform and a configuration of the test's own."""
    with open_site(tmp_path, vault, broker) as made:
        yield made


# --- each kind ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """Six keys, and who runs on them."""

    keys: dict[str, SiteKey]
    copies: Copies
    fleet: list[FleetMember]
    hook: Hook
    cluster: KubeStage
    pods: Pods

    @classmethod
    def set_up(cls, site: Site, stack: ExitStack) -> Kinds:
        """All of it, running on the first secrets."""
        keys = {name: key_of(site, name) for name in KEYS}
        site.config["keys"]["cluster"]["consumers"] = ["dash", "idle", "plain"]
        copies = Copies(site, stack)
        paths = {name: keys["cluster" if name == "dash" else name].path for name in READERS}
        copies.copier(paths, 0.3)
        for name in READERS:
            options = {"beating": ["--follow", "--heartbeat"], "following": ["--follow"]}
            copies.reader(name, *options.get(name, []))
        login = fleet_login(site.broker)
        fleet = [FleetMember(site, keys["fleet"], name, login) for name in FLEET]
        for member in fleet:
            stack.callback(member.close_all)
        hook = stack.enter_context(Hook(site, keys["hook"]))
        double = stack.enter_context(KubeDouble())
        config = kubeconfig(site.folder / "kubeconfig", double.url, {"token": ADMIN})
        cluster = stack.enter_context(closing(KubeStage(config, site.folder, double)))
        cluster.make("deployment", "dash", replicas=2)
        cluster.make("deployment", "idle", replicas=0)
        cluster.make("statefulset", "plain", replicas=1)
        pods = stack.enter_context(Pods(cluster, copies, "dash"))
        made = cls(keys=keys, copies=copies, fleet=fleet, hook=hook, cluster=cluster, pods=pods)
        made._configure(site, login)
        return made

    def _configure(self, site: Site, login: tuple[str, str]) -> None:
        """The consumers' section; each with the proof that suits its kind."""
        copies, observer = self.copies, self.copies.observer
        said = '"what": "connected", "name": "command", "version": {version},'
        proof = ["/bin/grep", "-qF", said, str(copies.records_file)]
        copies.restarted("command", deliver={"file": str(copies.copy("command"))}, confirm=proof)
        kube = {"kind": "kubernetes", "namespace": self.cluster.namespace, "kubeconfig": self.cluster.stranger()}
        control = {"host": site.broker.host, "port": site.broker.port, "username": login[0]}
        control |= {"password": site.secret("fleet", login[1]), "topic": "fleet/control", "ack": "fleet/ack/+"}
        seen = {name: {"broker": {"client_id": name, **observer}} for name in ("following", "dash", "idle", "plain")}
        file = {name: {"file": str(copies.copy(name))} for name in READERS}
        beat = {"heartbeat": {"topic": "heartbeat/beating", **observer}}
        hook = {"url": f"{self.hook.url}/restart", "secret": site.secret("hook", Hook.SECRET)}
        site.config["consumers"] |= {
            "fleet": {"kind": "mqtt", "expect": list(FLEET), **control},
            "hook": {"kind": "webhook", "confirm": f"{self.hook.url}/version", **hook},
            "beating": {"kind": "none", "deliver": file["beating"], "confirm": beat},
            "following": {"kind": "none", "deliver": file["following"], "confirm": seen["following"]},
            "dash": {"deployment": "dash", "deliver": file["dash"], "confirm": seen["dash"], **kube},
            "idle": {"deployment": "idle", "confirm": seen["idle"], **kube},
            "plain": {"statefulset": "plain", "accept": "restarted", "confirm": seen["plain"], **kube},
        }
        for consumer in site.config["consumers"].values():
            consumer |= {"settle": "1s", "timeout": "20s"}


def checked(process: RotatorProcess, exit_code: int) -> dict[str, dict[str, Any]]:
    """`check --online`: what was tried, by name."""
    done = process.command("check", "--online", "--json")
    assert exit_code == done.returncode, done.stdout + done.stderr
    return {each["what"]: each for each in json.loads(done.stdout)["checks"]}


def check_rights(kinds: Kinds, process: RotatorProcess) -> None:
    """Every consumer is tried; what Kubernetes does not allow is printed as a Role, and that Role is enough."""
    found = checked(process, 1)
    consumers = [f"consumer {name}" for name in process.config["consumers"]]
    refused = [what for what in consumers if not found[what]["ok"]]
    assert ["consumer dash", "consumer idle", "consumer plain"] == refused
    assert {"consumer_forbidden"} == {found[what]["reason"] for what in refused}
    assert set(refused) == {what for what, each in found.items() if not each["ok"]}
    for what in refused:
        grant(kinds.cluster, role_in(found[what]["detail"]))
    assert all(each["ok"] for each in checked(process, 0).values())


def check_readers(site: Site, kinds: Kinds) -> None:
    """By their own records: once cut off, once on what Vault holds, and nothing in between."""
    for name in READERS:
        key = kinds.keys["cluster" if name == "dash" else name]
        last = kinds.copies.records("connected", name)[-1]
        assert (2, digest(site.platform.current_token(key.id))) == (last["version"], last["digest"])
        assert [1, 2] == [each["version"] for each in kinds.copies.records("began", name)]
    assert [2] == [each["ordered"] for each in kinds.copies.records("restart", "command")]
    assert 1 == kinds.pods.rollouts


def check_members(site: Site, members: list[Member]) -> None:
    """Told once, and on what Vault holds."""
    for member in members:
        held = member.running_on
        assert held is not None
        key_id = held.username
        assert (1, 2, True) == (member.orders, held.version, held.password == site.platform.current_token(key_id))


@pytest.mark.timeout(240)  # a dozen processes: half a minute where nobody else works
def test_each_kind_is_restarted_and_proven(site: Site, stack: ExitStack) -> None:
    """One rotation of a key for each kind: what it runs on, by its own word, is what Vault holds and `status` says."""
    kinds = Kinds.set_up(site, stack)
    with running(site.daemon()) as daemon:
        check_rights(kinds, daemon)
        daemon.start()
        for name in KEYS:
            daemon.ask_to_rotate(name)
        rotations = {name: daemon.ended(name, 60) for name in KEYS}
        assert ["succeeded"] * 6 == [rotation["result"] for rotation in rotations.values()]
        took = {n: moment(one, "finished_at") - moment(one, "started_at") for n, one in rotations.items()}
        tell(f"a rotation each took {', '.join(f'{n} {span.total_seconds():.1f} s' for n, span in took.items())}")
        check_readers(site, kinds)
        check_members(site, [*kinds.fleet, kinds.hook.member])
        assert 0 == kinds.hook.refused
        views = [consumer for name in KEYS for consumer in daemon.key(name)["consumers"]]
        said = {view["name"]: (view["version"], view["confirmed_version"], view["lag"]) for view in views}
        proven, restarted = {*KEYS, "dash"} - {"cluster"}, {"plain", "idle"}
        assert dict.fromkeys(proven, (2, 2, 0)) | dict.fromkeys(restarted, (2, None, 0)) == said
        idle = [each["name"] for each in rotations["cluster"]["consumers"] if each["idle"]]
        seen = [each["name"] for each in rotations["cluster"]["consumers"] if each["seen_at"]]
        assert (["idle"], ["dash"]) == (idle, seen)
        assert 0 == daemon.metric("rotator_consumer_version_lag")
        for name in ("fleet", "hook", "command", "dash", "plain"):
            kind = site.config["consumers"][name]["kind"]
            labels = {"consumer": name, "kind": kind, "result": "ok"}
            assert 1 == daemon.metric("rotator_consumer_restarts_total", **labels), name


# --- a restart that was missed ------------------------------------------------------------------------------------


def one_reader(site: Site, stack: ExitStack) -> tuple[Copies, SiteKey]:
    """A key whose reader reads a copy that the test itself writes, and whose restart fails while `broken` is there."""
    copies = Copies(site, stack)
    key = key_of(site, "reader", max_attempts=1)
    write_copy(copies.copy("reader"), read_vault(site.vault.url, site.vault.root_token, key.path))
    copies.reader("reader")
    copies.restarted("reader", deliver={"file": str(copies.copy("reader")), "timeout": "5m"})
    consumer = site.config["consumers"]["reader"]
    unless_broken = ["/bin/sh", "-c", 'test ! -e "$0" && exec "$@"', str(copies.folder / "broken")]
    consumer["argv"] = [*unless_broken, *consumer["argv"]]
    return copies, key


def hand_on(copies: Copies, key: SiteKey) -> None:
    """Bring the copy to what Vault holds."""
    write_copy(copies.copy("reader"), read_vault(copies.site.vault.url, copies.site.vault.root_token, key.path))


def restarts(copies: Copies) -> list[int]:
    """For which versions the reader was restarted."""
    return [int(each["ordered"]) for each in copies.records("restart", "reader")]


def runs_on(copies: Copies) -> int:
    """The version with which the reader was let in last."""
    return int(copies.records("connected", "reader")[-1]["version"])


def start_for_nothing(daemon: RotatorProcess, copies: Copies) -> None:
    """A start with an unchanged version: nothing is begun, and nobody restarted."""
    before = restarts(copies)
    daemon.start()  # it lives when it has looked for those that missed a restart
    rotations = daemon.api("/api/rotations")
    stays(lambda: restarts(copies), before, 1.5)
    assert rotations == daemon.api("/api/rotations")
    assert "ok" == daemon.key("reader")["state"]


@pytest.mark.timeout(240)  # five starts of the daemon
def test_a_restart_that_was_missed_is_made_up_for_once(site: Site, stack: ExitStack) -> None:
    """Killed between promote and restart; and failed, with the consumer mended while the daemon was down.

    After each, the next start, with an unchanged version, restarts nobody.
    """
    copies, key = one_reader(site, stack)
    daemon = site.daemon()
    stack.callback(daemon.close)
    daemon.start().ask_to_rotate("reader")
    until(lambda: daemon.rotation("reader").get("step") == "deliver", "the new secret is in Vault")
    daemon.kill()
    assert ((2, 1), []) == ((site.vault.read(key.path)[0], runs_on(copies)), restarts(copies))
    hand_on(copies, key)
    daemon.start()
    assert "succeeded" == daemon.ended("reader")["result"]
    assert ([2], 2) == (restarts(copies), runs_on(copies))
    daemon.kill()
    start_for_nothing(daemon, copies)

    broken = copies.folder / "broken"
    broken.touch()
    daemon.ask_to_rotate("reader")
    until(lambda: site.vault.read(key.path)[0] == 3, "the next secret is in Vault")
    hand_on(copies, key)
    failed = daemon.ended("reader")
    assert ("failed", "consumer_restart_failed", [2]) == (failed["result"], failed["reason"], restarts(copies))
    assert 1 == daemon.key("reader")["consumers"][0]["lag"]
    daemon.kill()
    broken.unlink()
    daemon.start()
    until(lambda: daemon.log("caught_up"), "the daemon has brought the reader to the current version")
    assert ([2, 3], 3) == (restarts(copies), runs_on(copies))
    (consumer,) = daemon.key("reader")["consumers"]
    assert (3, 0) == (consumer["confirmed_version"], consumer["lag"])
    assert 0 == daemon.stop()
    start_for_nothing(daemon, copies)
    assert 2 == site.refreshes()


# --- keys that share something ------------------------------------------------------------------------------------

SETTLE = timedelta(seconds=2)
SHARING = {"one consumer": ("one-a", "one-b"), "a pair": ("two-a", "two-b"), "a path": ("three-a", "three-b")}


def share(site: Site) -> None:
    """Two keys that share a consumer, two of one pair, two that keep their fields in one path of Vault."""
    for name in ("one", "two-a", "two-b", "three"):
        site.add_consumer(name, "/bin/true", settle=f"{SETTLE.total_seconds():g}s")
    for name in SHARING["one consumer"]:
        site.add_key(name, consumers=["one"])
    for name in SHARING["a pair"]:
        site.add_key(name, consumers=[name], pair="twins")
    path, held = "", dict[str, str]()
    for name in SHARING["a path"]:
        key = site.add_key(name, in_vault=False, consumers=["three"])
        path = path or key.path
        held |= {f"{name}-user": key.id, f"{name}-word": key.token}
        fields = {f"{name}-user": "{username}", f"{name}-word": "{secret}"}
        site.config["keys"][name]["vault"] = {"path": path, "fields": fields}
    site.vault.write(path, held)


def moment(rotation: dict[str, Any], name: str) -> datetime:
    """One of a rotation's moments."""
    return datetime.fromisoformat(rotation[name])


def test_keys_that_share_something_rotate_one_after_the_other(site: Site) -> None:
    """All six are asked for at the same moment; of each two, one begins `settle` after the other's end at the soonest.

    Those that share nothing do not wait for one another.
    """
    share(site)
    with running(site.daemon().start()) as daemon:
        names = [name for both in SHARING.values() for name in both]
        for name in names:
            daemon.ask_to_rotate(name)
        rotations = {name: daemon.ended(name, 60) for name in names}
    assert {"succeeded"} == {rotation["result"] for rotation in rotations.values()}
    spans = {name: (moment(one, "answered_at"), moment(one, "finished_at")) for name, one in rotations.items()}
    for what, both in SHARING.items():
        first, second = sorted(spans[name] for name in both)
        tell(
            f"{what}: the second one's new secret {(second[0] - first[1]).total_seconds():.2f} s after the first's end"
        )
        assert second[0] - first[1] >= SETTLE, what
    groups = list(SHARING.values())
    apart = [(a, b) for one, other in combinations(groups, 2) for a in one for b in other]
    assert [pair for pair in apart if max(spans[n][0] for n in pair) < min(spans[n][1] for n in pair)]
