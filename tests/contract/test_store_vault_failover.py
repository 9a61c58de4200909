"""The Vault store on a cluster of real nodes: standby, sealed and dead nodes, and a leader that steps down."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta

import pytest

from contract.bao_server import RaftBao
from contract.store_stage import Role, StoreStage, held
from rotator.errors import Transient
from rotator.model import StoredSecret
from rotator.reasons import Reason
from rotator.stores import AppRoleAuth, VaultStore

LONG = 60.0  # seconds within which a cluster has a leader again


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Three nodes; whichever leads may change between tests."""

    nodes: Sequence[RaftBao]

    def leader(self) -> RaftBao:
        """The active node, as soon as there is one that answers."""
        end = time.monotonic() + LONG
        while True:
            for node in self.nodes:
                try:
                    if node.api("GET", "sys/health")[0] == 200 and node.api("GET", "auth/token/lookup-self")[0] == 200:
                        return node
                except OSError:
                    continue
            assert time.monotonic() < end, "no node leads"
            time.sleep(0.05)

    def standbys(self) -> list[RaftBao]:
        """The others."""
        leader = self.leader()
        return [node for node in self.nodes if node is not leader]

    def auth(self) -> AppRoleAuth:
        """A login by the least policy that all nodes know: a standby answers from what has reached it."""
        auth = Role(self.leader()).auth
        halves = {"role_id": auth.role_id(), "secret_id": auth.secret_id()}
        end = time.monotonic() + LONG
        for node in self.nodes:
            while node.api("POST", "auth/approle/login", halves)[0] != 200:
                assert time.monotonic() < end, "a node does not hear of the role"
                time.sleep(0.05)
        return auth

    def whole(self) -> None:
        """Wait until all three serve, vote and forward."""
        end = time.monotonic() + LONG
        leader = self.leader()
        while True:
            status, answer = leader.api("GET", "sys/storage/raft/configuration")
            servers = answer["data"]["config"]["servers"] if status == 200 else []
            if sum(each["voter"] for each in servers) == 3 and all(
                node.api("GET", "auth/token/lookup-self")[0] == 200 for node in self.nodes
            ):
                return
            assert time.monotonic() < end, f"the cluster is not whole: {answer}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes that vote."""
    home = tmp_path_factory.mktemp("cluster")
    nodes = []
    for name in ("one", "two", "three"):
        (home / name).mkdir()
        nodes.append(RaftBao(home / name))
    with ExitStack() as stack:
        for node in nodes:
            stack.callback(node.stop)
        nodes[0].start()
        # a new node votes after ten seconds otherwise
        settings = {"server_stabilization_time": "1s", "cleanup_dead_servers": False}
        nodes[0].must("POST", "sys/storage/raft/autopilot/configuration", settings)
        for node in nodes[1:]:
            node.join(nodes[0])
        made = Cluster(nodes=nodes)
        made.whole()
        yield made


def settled(store: VaultStore, path: str, fields: dict[str, str], until: float) -> int:
    """A put by a caller that comes again while no node serves, as the engine does."""
    while True:
        try:
            return store.put(path, fields)
        except Transient:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def test_a_standby_serves(cluster: Cluster, stage: StoreStage, path: str) -> None:
    """A node that does not lead forwards, or sends on: every verb works there, login included."""
    standby, other = cluster.standbys()
    store = stage.store(standby.url, other.url, cluster.leader().url, auth=cluster.auth())
    store.ready()
    assert 0 == store.preflight(path, versions=2).version
    assert 1 == store.put(path, {"password": "p1"})
    store.annotate(path, {"key": "a"})
    assert {"password": "p1"} == held(cluster.leader(), path)
    assert store.renew() is not None


def test_a_standby_that_lags_behind(cluster: Cluster, stage: StoreStage, path: str) -> None:
    """OpenBao's standbys answer reads from what has reached them: what we wrote is what we read all the same."""
    standby, _ = cluster.standbys()
    store = stage.store(standby.url, auth=cluster.auth())
    store.preflight(path)
    for turn in range(1, 61):
        fields = {"password": f"p{turn}"}
        assert turn == store.put(path, fields, known=turn - 1)
        assert StoredSecret(version=turn, data=fields) == store.read(path)
    for turn in range(20):
        store.annotate(path, {"turn": str(turn)})
    assert {("login", "200"), ("health", "429"), ("mounts", "200"), ("capabilities", "200"), ("read", "404")} == (
        {each for each in stage.operations() if each not in [(name, "200") for name in ("read", "write", "metadata")]}
        - {("annotate", "204")}
    )


def test_a_sealed_node_is_passed_over(cluster: Cluster, stage: StoreStage, path: str) -> None:
    """The next address serves, and is asked first from then on; alone, the sealed node is VAULT_SEALED."""
    sealed, other = cluster.standbys()
    auth = cluster.auth()
    store = stage.store(sealed.url, other.url, auth=auth)
    store.put(path, {"password": "p1"})
    sealed.stop()  # sealing over a standby would be forwarded, and seal the leader
    sealed.restart()
    try:
        stage.operations()
        assert 2 == store.put(path, {"password": "p2"})
        assert [("read", "503"), ("read", "200"), ("write", "200")] == stage.operations()
        store.ready()
        assert ["health"] == [operation for operation, _ in stage.operations()]
        alone = stage.store(sealed.url, auth=auth)
        for verb in (alone.ready, lambda: alone.read(path), lambda: alone.preflight(path)):
            with pytest.raises(Transient) as caught:
                verb()
            assert Reason.VAULT_SEALED is caught.value.reason
    finally:
        sealed.unseal()
        cluster.whole()
    assert {"password": "p2"} == held(cluster.leader(), path)


def test_a_dead_node_is_passed_over(cluster: Cluster, stage: StoreStage, path: str) -> None:
    """A node that is killed: the next address serves; when it comes back, it does too."""
    dead, other = cluster.standbys()
    store = stage.store(dead.url, other.url, auth=cluster.auth())
    store.put(path, {"password": "p1"})
    dead.kill()
    try:
        assert 2 == store.put(path, {"password": "p2"})
        store.ready()
        with pytest.raises(Transient) as caught:
            stage.store(dead.url).read(path)
        assert Reason.VAULT_UNREACHABLE is caught.value.reason
    finally:
        dead.restart()
        dead.unseal()
        cluster.whole()
    returned, end = stage.store(dead.url), time.monotonic() + LONG
    while returned.read(path) != StoredSecret(version=2, data={"password": "p2"}):  # it has missed something
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["step down", "kill"])
def test_no_write_is_lost_or_made_twice(cluster: Cluster, stage: StoreStage, path: str, how: str) -> None:
    """Four writers of one path and four of paths of their own, while the leader goes: each put is one version, in the
    order in which it was made, and all that was promised is there.
    """
    cluster.whole()
    auth = cluster.auth()
    stores = [
        stage.store(*(node.url for node in [*cluster.nodes[turn:], *cluster.nodes[:turn]]), auth=auth)
        for turn in range(2)
    ]
    shared, ended, gone = f"{path}/shared", threading.Event(), threading.Event()
    end = time.monotonic() + LONG

    def write(number: int) -> list[int]:
        """Put a new value again and again, until the cluster has lived through it; the versions."""
        place = shared if number < 4 else f"{path}/{number}"
        versions, turn = [], 0
        while turn < 5 or not ended.is_set():
            turn += 1
            versions.append(settled(stores[number % 2], place, {f"f{number}": str(turn)}, end))
            if turn == 5 and number == 7:
                gone.set()
        return versions

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(write, number) for number in range(8)]
        try:
            assert gone.wait(LONG)
            leader = cluster.leader()
            if how == "kill":
                leader.kill()
            else:
                leader.must("PUT", "sys/step-down", {})
            rest = Cluster(nodes=[node for node in cluster.nodes if node is not leader])
            new = rest.leader()
            settled(stage.store(new.url), f"{path}/after", {"password": "p"}, end)
        finally:
            ended.set()
        written = [future.result(LONG) for future in futures]
    if how == "kill":
        leader.restart()
        leader.unseal()
    cluster.whole()
    reader = stage.store(cluster.leader().url)
    together = reader.read(shared)
    assert {f"f{number}": str(len(written[number])) for number in range(4)} == together.data
    assert sum(map(len, written[:4])) == together.version
    for number in range(4, 8):
        assert list(range(1, len(written[number]) + 1)) == written[number]
        found = reader.read(f"{path}/{number}")
        assert (len(written[number]), {f"f{number}": str(len(written[number]))}) == (found.version, found.data)


def test_a_cluster_without_a_leader(cluster: Cluster, stage: StoreStage, path: str) -> None:
    """Two of three gone: what is left can't serve, and says so in time; with one back, the same store goes on."""
    cluster.whole()
    leader, (standby, lost) = cluster.leader(), cluster.standbys()
    store = stage.store(*(node.url for node in cluster.nodes), auth=cluster.auth(), timeout=timedelta(seconds=2))
    store.put(path, {"password": "p1"})
    leader.kill()
    lost.kill()
    try:
        with pytest.raises(Transient) as caught:
            store.put(path, {"password": "p2"})
        assert caught.value.reason in (Reason.VAULT_UNAVAILABLE, Reason.VAULT_UNREACHABLE)
        assert standby.api("GET", "sys/health")[0] != 200
    finally:
        for node in (leader, lost):
            node.restart()
            node.unseal()
        cluster.whole()
    assert settled(store, path, {"password": "p2"}, time.monotonic() + LONG) == 2
