"""Workloads of Kubernetes: the suite of consumer_cases.py over a Deployment in the double, proven over HTTP.

What is Kubernetes' own, and what runs in a real cluster as well, is in test_consumer_kubernetes.py.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.consumer_cases import ORDER, ConsumerCases, confirmed, looked, refused
from contract.consumer_kube_double import ADMIN, Fault, KubeDouble, kubeconfig
from contract.consumer_kube_stage import KubeStage
from contract.consumer_site import Reply, Request, Site
from rotator.clock import SystemClock
from rotator.confirmation import Confirmations
from rotator.consumers import kubernetes
from rotator.consumers.kubernetes import KubernetesConsumer
from rotator.errors import Transient
from rotator.frozen import replace
from rotator.model import Identity, Order, Secret
from rotator.ports import Watch
from rotator.providers import make_client
from rotator.reasons import Reason

MARK = f"rotator.dev/{ORDER.key}"


class KubernetesStage:
    """A Deployment of two, whose Service answers the version that its new pods were started for."""

    kind = "kubernetes"

    def __init__(self, kube: KubeStage, double: KubeDouble, client: httpx.Client) -> None:
        self.stop, self._kube, self._double, self._client = threading.Event(), kube, double, client
        self._where = ("deployments", kube.namespace, "subject")
        self._config: str | None = None
        self._wanted: int | None = None
        self._speaks = True
        self.site = Site(self._answer)
        kube.make("deployment", "subject", replicas=2)

    def consumer(self, timeout: float = 10) -> KubernetesConsumer:
        """The adapter."""
        return KubernetesConsumer(
            "subject",
            namespace=self._kube.namespace,
            workload=("deployment", "subject"),
            cluster=self._kube.cluster(self._config),
            timeout=timedelta(seconds=timeout),
            clock=SystemClock(),
            stop=self.stop,
        )

    def watch(self, order: Order) -> Watch:
        """Asks the Service."""
        maker = Confirmations(clock=SystemClock(), read_ref=str).http(
            "subject", self._client, url=self.site.url, field="version", headers={}
        )
        return maker.open(Identity(id="a", username="a"), Secret("new"), order)

    def restarts(self) -> list[tuple[str, int]]:
        """One for each change of the specification since it was made; all of them must be for the last version."""
        with self._double.lock:
            found = self._double.state.objects.get(self._where)
            changes = found["metadata"]["generation"] - 1 if found else 0
        return [(ORDER.key, self._version())] * changes

    def told(self) -> int:
        """Questions that were answered."""
        return len(self.site.of("GET")) - 1

    def run_on(self, version: int | None) -> None:
        """What the pods answer."""
        self._wanted = version

    def slow(self, seconds: float) -> None:
        """New pods are available after this long."""
        self._spec()["minReadySeconds"] = math.ceil(seconds)

    def failing(self) -> None:
        """The API server takes no patch."""
        self._double.faults.append(Fault(method="PATCH", times=99, status=503))

    def missing(self) -> None:
        """The Deployment was deleted."""
        with self._double.lock:
            del self._double.state.objects[self._where]

    def forbidden(self) -> None:
        """A service account without a Role."""
        self._config = self._kube.stranger()

    def silent(self) -> None:
        """The Service hangs up."""
        self._speaks = False

    def half_down(self) -> None:
        """The quota leaves room for one pod."""
        self._kube.quota(1)

    def crashes(self) -> None:
        """The container ends as soon as it is started."""
        (container,) = self._spec()["template"]["spec"]["containers"]
        container["command"] = ["/nope"]

    def deaths(self) -> int:
        """Ends of the container that has ended most often, by its pod's status: one a start, but for a running one."""
        with self._double.lock:
            pods = list(self._double.state.pods(self._kube.namespace))
        containers = [each for pod in pods for each in pod["status"]["containerStatuses"]]
        return max(int(each["restartCount"]) + ("running" not in each["state"]) for each in containers)

    def mended(self) -> None:
        """Somebody applies a template whose container stays up."""
        (container,) = self._spec()["template"]["spec"]["containers"]
        mended = {name: value for name, value in container.items() if name != "command"}
        with self._double.lock:
            self._double.state.patch(self._where, {"spec": {"template": {"spec": {"containers": [mended]}}}})

    def room(self) -> None:
        """The quota is gone."""
        with self._double.lock:
            del self._double.state.objects["resourcequotas", self._kube.namespace, "pods"]

    def _spec(self) -> dict[str, Any]:
        with self._double.lock:
            spec: dict[str, Any] = self._double.state.objects[self._where]["spec"]
            return spec

    def _version(self) -> int:
        """Of the template, once all its pods are there; 6 before that."""
        with self._double.lock:
            found = self._double.state.objects.get(self._where, {"spec": {"template": {"metadata": {}}}, "status": {}})
            mark = found["spec"]["template"]["metadata"].get("annotations", {}).get(MARK, "6/")
            up = found["status"].get("availableReplicas") == 2
        return int(mark.partition("/")[0]) if up else 6

    def _answer(self, request: Request) -> Reply:
        version = self._version() if self._wanted is None else self._wanted
        return Reply(body=str(version).encode(), cut=not self._speaks)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesStage]:
    """A Deployment that does well."""
    monkeypatch.setattr(kubernetes, "FIRST_LOOK", 0.02)  # the double moves on by one step a look
    with KubeDouble() as double, make_client() as client:
        config = kubeconfig(tmp_path / "kubeconfig", double.url, {"token": ADMIN})
        with closing(KubeStage(config, tmp_path, double)) as kube:
            made = KubernetesStage(kube, double, client)
            with made.site:
                yield made


class TestKubernetes(ConsumerCases):
    """The suite, over a Deployment."""

    SEES_CRASHES = True

    def test_repeated(self, stage: KubernetesStage) -> None:  # type: ignore[override]  # this stage alone
        """The same order again finds its annotation there, and restarts nobody a second time."""
        first = stage.consumer().restart(ORDER)
        again = stage.consumer().restart(ORDER)
        assert [("building-a", 7)] == stage.restarts()
        assert first.marks == again.marks

    def test_confirmed_again(self, stage: KubernetesStage) -> None:  # type: ignore[override]  # this stage alone
        """Another order for the same version is another restart, and the same watch proves it as well."""
        with closing(stage.watch(ORDER)) as watch:
            stage.consumer().restart(ORDER)
            first = confirmed(watch)
            again = stage.consumer().restart(replace(ORDER, id="4f2b-7"))
            assert [("building-a", 7)] * 2 == stage.restarts()
            looked(watch, lambda: watch.sightings()[-1].at >= again.restarted_at > first, "it is proven again")

    def test_half_down(self, stage: KubernetesStage) -> None:  # type: ignore[override]  # this stage alone
        """Half of a rollout is not even a restart, and no proof; with the other half it is both."""
        stage.half_down()
        with closing(stage.watch(ORDER)) as watch:
            assert (Transient, Reason.CONSUMER_TIMEOUT) == refused(stage.consumer(timeout=0.7).restart, ORDER)
            looked(watch, lambda: stage.told() >= 1, "it has spoken")
            assert () == tuple(watch.sightings())
            stage.room()
            stage.consumer().restart(ORDER)
            assert [("building-a", 7)] == stage.restarts()
            confirmed(watch)
