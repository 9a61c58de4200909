"""What can go wrong between the daemon and the API server, and with pods after a restart: in the double alone."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from contract.consumer_kube_double import ADMIN, Fault, KubeDouble, kubeconfig
from contract.consumer_kube_stage import KubeStage
from rotator.clock import SystemClock
from rotator.consumers import kubernetes, kubernetes_access, kubernetes_wire
from rotator.consumers.kubernetes_cluster import Cluster
from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import Order
from rotator.reasons import Reason

ORDER = Order(key="building-a", version=7, id="01")
DASH = ("deployment", "dash")
FAILED = (Transient, Reason.CONSUMER_RESTART_FAILED)
NEVER = (Permanent, Reason.CONSUMER_RESTART_FAILED)
SECRET = "hunter2hunter2hunter2"


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeStage]:
    """A namespace with a Deployment of two that is up."""
    monkeypatch.setattr(kubernetes, "FIRST_LOOK", 0.02)
    with KubeDouble() as double:
        config = kubeconfig(tmp_path / "kubeconfig", double.url, {"token": ADMIN})
        with closing(KubeStage(config, tmp_path, double)) as found:
            found.make(*DASH, replicas=2)
            yield found


@pytest.fixture
def double(stage: KubeStage) -> KubeDouble:
    """What the stage plays in."""
    assert stage.double is not None
    return stage.double


@pytest.mark.parametrize(
    ("fault", "expected", "delay"),
    [
        (
            Fault(method="GET", times=1, status=429, headers={"Retry-After": "7"}),
            (Transient, Reason.CONSUMER_RESTART_FAILED),
            7,
        ),
        (Fault(method="GET", times=1, status=500), FAILED, None),
        (Fault(method="GET", times=1, status=503, content_type=None), FAILED, None),
        (Fault(method="GET", times=1, status=502, content_type="text/html", body=b"<p>bad</p>"), FAILED, None),
        (Fault(method="GET", times=1, status=500, body=b"[1]"), FAILED, None),
        (Fault(method="GET", times=1, status=409), FAILED, None),
        (Fault(method="GET", times=1, status=400), NEVER, None),
        (Fault(method="GET", times=1, status=302), NEVER, None),
        (Fault(method="GET", times=2, status=401), (Permanent, Reason.CONSUMER_FORBIDDEN), None),
        (Fault(method="GET", times=1, status=403), (Permanent, Reason.CONSUMER_FORBIDDEN), None),
        (Fault(method="GET", times=1, status=403, body=b"[1]"), (Permanent, Reason.CONSUMER_FORBIDDEN), None),
        (Fault(method="GET", times=1, status=200, body=b"{"), FAILED, None),
        (Fault(method="GET", times=1, status=200, body=b"[]"), FAILED, None),
        (Fault(method="GET", times=1, status=200, body=b'{"spec": 1}'), FAILED, None),
        (Fault(method="GET", times=1, status=200, body=b'{"spec": {"template": {}, "selector": 1}}'), FAILED, None),
        (Fault(method="GET", times=1, status=200, body=b"<p>a proxy</p>"), FAILED, None),
    ],
    ids=lambda value: f"{value.status} {value.body[:9]!r}" if isinstance(value, Fault) else "",
)
def test_an_answer_that_is_no_success(
    stage: KubeStage, double: KubeDouble, fault: Fault, expected: object, delay: int | None
) -> None:
    """By its status, whatever the body is; nothing was changed, and the next try works."""
    double.faults.append(Fault(**vars(fault)))
    consumer = stage.consumer(DASH)
    with pytest.raises(RotatorError, match=r"^dash \(deployment ") as error:
        consumer.restart(ORDER)
    kind = Transient if isinstance(error.value, Transient) else Permanent
    assert expected == (kind, error.value.reason)
    if isinstance(error.value, Transient):
        assert (timedelta(seconds=delay) if delay else None) == error.value.retry_after
    assert [] == double.requests("PATCH")
    consumer.restart(ORDER)


def test_no_answer_is_not_waited_for(stage: KubeStage, double: KubeDouble) -> None:
    """Silence ends after the time for one answer, not with the consumer's timeout."""
    double.faults.append(Fault(method="GET", times=1, hold=threading.Event()))
    consumer = stage.consumer(DASH, timeout=60, cluster=stage.cluster(answer=0.3))
    began = time.monotonic()
    with pytest.raises(RotatorError, match="did not answer in time") as error:
        consumer.preflight()
    assert FAILED == (type(error.value), error.value.reason)
    assert time.monotonic() - began < 5


def test_a_restart_whose_answer_was_lost_is_repeated_without_harm(stage: KubeStage, double: KubeDouble) -> None:
    """The patch took effect, its answer did not come: the same order finds its annotation there."""
    consumer = stage.consumer(DASH, cluster=stage.cluster(answer=0.3))
    double.faults.append(Fault(method="PATCH", times=1, hold=threading.Event(), served=True))
    with pytest.raises(RotatorError, match="did not answer in time"):
        consumer.restart(ORDER)
    consumer.restart(ORDER)
    assert 1 == len(double.requests("PATCH"))
    assert 2 == stage.generation(*DASH)


def test_an_api_server_that_fails_for_a_while_does_not_end_the_wait(stage: KubeStage, double: KubeDouble) -> None:
    """The rollout goes on without it."""
    away = Fault(method="GET", times=3, status=503, headers={"Retry-After": "0"}, after="PATCH")
    double.faults.append(away)
    assert 2 == stage.consumer(DASH).restart(ORDER).marks["replicas"]
    assert 0 == away.times


def test_an_api_server_that_stays_away_is_told_at_the_timeout(stage: KubeStage, double: KubeDouble) -> None:
    """Neither the workload nor its pods could be looked at."""
    double.state.frozen.add(("deployments", stage.namespace, "dash"))
    consumer = stage.consumer(DASH, timeout=0.5)
    double.faults.append(Fault(method="GET", times=1000, status=503, after="PATCH"))
    with pytest.raises(RotatorError, match=r"not rolled out after 0.5 s: .* answers 503") as error:
        consumer.restart(ORDER)
    assert (Transient, Reason.CONSUMER_TIMEOUT) == (type(error.value), error.value.reason)


def test_no_api_server_at_all(tmp_path: Path) -> None:
    """Nobody listens there."""
    with KubeDouble() as gone:
        url = gone.url
    cluster = Cluster(kubeconfig(tmp_path / "kubeconfig", url, {"token": ADMIN}))
    with closing(cluster), pytest.raises(RotatorError, match="no answer from the API server") as error:
        cluster.api.workload("dash", "deployment", "iot", "dash")
    assert FAILED == (type(error.value), error.value.reason)


def test_containers_that_were_started_again_since_are_a_crash(stage: KubeStage, double: KubeDouble) -> None:
    """The kubelet restarts them by itself; the rollout still looks complete."""
    consumer = stage.consumer(DASH)
    ticket = consumer.restart(ORDER)
    double.state.restarts["deployments", stage.namespace, "dash"] = 1
    with pytest.raises(RotatorError, match="containers were started again since") as error:
        consumer.check(ticket)
    assert (Transient, Reason.CONSUMER_CRASHED) == (type(error.value), error.value.reason)


def test_pods_that_are_down_since_are_a_crash(stage: KubeStage, double: KubeDouble) -> None:
    """Half of them no longer available."""
    consumer = stage.consumer(DASH)
    ticket = consumer.restart(ORDER)
    double.state.frozen.add(("deployments", stage.namespace, "dash"))
    double.state.objects["deployments", stage.namespace, "dash"]["status"]["availableReplicas"] = 1
    with pytest.raises(RotatorError, match="1 of 2 replicas are available") as error:
        consumer.check(ticket)
    assert (Transient, Reason.CONSUMER_CRASHED) == (type(error.value), error.value.reason)


@pytest.mark.parametrize("replicas", [1, 4])
def test_scaling_since_is_no_crash(stage: KubeStage, double: KubeDouble, replicas: int) -> None:
    """An autoscaler changes the generation, and its new pods take a while."""
    consumer = stage.consumer(DASH)
    ticket = consumer.restart(ORDER)
    status = double.state.objects["deployments", stage.namespace, "dash"]["status"]
    double.state.frozen.add(("deployments", stage.namespace, "dash"))
    double.state.patch(("deployments", stage.namespace, "dash"), {"spec": {"replicas": replicas}})
    status["availableReplicas"] = min(replicas, 2)
    consumer.check(ticket)


def test_a_pods_last_words_show_no_secret(stage: KubeStage, double: KubeDouble) -> None:
    """A container may write anything as its termination message (rule 6)."""
    stage.make("deployment", "talks", up=False, command=["/nope"])
    where = ("deployments", stage.namespace, "talks")
    double.state.words[where] = f"refused\x1b[1m: mqtt://me:{SECRET}@broker password={SECRET} or {SECRET} {'x ' * 200}"
    with pytest.raises(RotatorError, match="refused") as error:
        stage.consumer(("deployment", "talks")).restart(ORDER)
    assert Reason.CONSUMER_CRASHED is error.value.reason
    assert SECRET not in error.value.message
    assert "\x1b" not in error.value.message
    assert len(error.value.message) < 500


def test_pods_of_another_workload_with_the_same_labels_do_not_count(stage: KubeStage, double: KubeDouble) -> None:
    """As recorded, two workloads may select the same labels; here both are restarted for the same order."""
    stage.make("statefulset", "dash")
    stage.consumer(("statefulset", "dash")).restart(ORDER)
    double.state.restarts["statefulsets", stage.namespace, "dash"] = 5
    consumer = stage.consumer(DASH)
    ticket = consumer.restart(ORDER)
    assert 0 == ticket.marks["restarts"]
    double.state.restarts["statefulsets", stage.namespace, "dash"] = 6
    consumer.check(ticket)


def test_rights_are_asked_once_in_a_while(
    stage: KubeStage, double: KubeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several keys look at the same consumer at the same time; a refusal is not remembered."""
    consumer = stage.consumer(DASH)
    before = len(double.requests("POST"))
    consumer.preflight()
    consumer.preflight()
    assert 3 == len(double.requests("POST")) - before
    monkeypatch.setattr(kubernetes_access, "KEPT", 0.0)
    other = stage.consumer(DASH)
    other.preflight()
    other.preflight()
    assert 3 + 6 == len(double.requests("POST")) - before


@pytest.mark.parametrize(
    "wrong",
    [
        {"workload": None, "selector": None},
        {"workload": None, "selector": ""},
        {"workload": DASH, "selector": "app=dash"},
        {"workload": ("pod", "dash")},
        {"workload": ("deployment", "../pods/dash")},
        {"workload": DASH, "namespace": "a/b"},
    ],
)
def test_what_can_not_be_a_workload_is_refused_at_once(wrong: dict[str, Any]) -> None:
    """An empty selector would restart the whole namespace; a name with a slash is another path."""
    whole: dict[str, Any] = {"namespace": "iot", "workload": None, "selector": None} | wrong
    with pytest.raises(ValueError, match=r"exactly one|can be"):
        kubernetes.KubernetesConsumer(
            "dash", cluster=Cluster(), timeout=timedelta(seconds=1), clock=SystemClock(), **whole
        )


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (b" " * 65_536, "longer than 1 MiB"),
        (b" ", "did not answer in time"),
        (b"", "a packed answer"),
    ],
    ids=["without an end", "a byte at a time", "packed"],
)
def test_an_answer_without_an_end_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: bytes, words: str
) -> None:
    """Neither memory nor a worker is lost to it."""
    monkeypatch.setattr(kubernetes_wire, "LONGEST", 1024 * 1024)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    if not part:
        head += b"Content-Encoding: gzip\r\nContent-Length: 2\r\n"
    ended = threading.Event()

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65_536)
            connection.sendall(head + b"\r\n")
            while part and not ended.wait(0.05 if len(part) == 1 else 0):
                connection.sendall(part)
            ended.wait(20)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        cluster = Cluster(kubeconfig(tmp_path / "kubeconfig", url, {"token": ADMIN}), answer=0.3)
        began = time.monotonic()
        with closing(cluster), pytest.raises(RotatorError, match=words) as error:
            cluster.api.workload("dash", "deployment", "iot", "dash")
        assert FAILED == (type(error.value), error.value.reason)
        assert time.monotonic() - began < 10
        ended.set()
        thread.join(5)


def test_the_environments_proxy_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As kubectl does; `no_proxy` names what is reached without."""
    with KubeDouble() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        found = kubeconfig(tmp_path / "kubeconfig", "http://api.invalid", {"token": "nobody"})
        for expected in (2, 2):
            with closing(Cluster(found)) as cluster, pytest.raises(RotatorError):
                cluster.api.workload("dash", "deployment", "iot", "dash")
            assert expected == len(proxy.asked)
            monkeypatch.setenv("no_proxy", "api.invalid")
        assert proxy.asked[0].path.startswith("http://api.invalid/apis/apps/v1/")
