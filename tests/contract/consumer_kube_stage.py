"""Where the Kubernetes suite plays: a namespace of its own in a double, or in the cluster of $ROTATOR_TEST_KUBECONFIG.

All is made over the API, so that both are told the same. The image is $ROTATOR_TEST_IMAGE, or Kubernetes' own `pause`.
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightkube import Client, KubeConfig
from lightkube.models.authentication_v1 import TokenRequestSpec
from lightkube.models.core_v1 import ResourceQuotaSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.models.rbac_v1 import RoleRef, Subject
from lightkube.resources.apps_v1 import DaemonSet, Deployment, StatefulSet
from lightkube.resources.core_v1 import Namespace, ResourceQuota, ServiceAccount, ServiceAccountToken
from lightkube.resources.rbac_authorization_v1 import Role, RoleBinding

from contract.consumer_kube_double import KubeDouble, kubeconfig
from rotator.clock import SystemClock
from rotator.consumers.kubernetes import KubernetesConsumer
from rotator.consumers.kubernetes_cluster import Cluster
from rotator.consumers.kubernetes_rollout import progress

RESOURCES: dict[str, Any] = {"deployment": Deployment, "statefulset": StatefulSet, "daemonset": DaemonSet}
IMAGE = os.environ.get("ROTATOR_TEST_IMAGE", "registry.k8s.io/pause:3.10")


@dataclass
class KubeStage:
    """One namespace, and what makes workloads in it. `double` is None in a real cluster."""

    config: str
    folder: Path
    double: KubeDouble | None = None
    namespace: str = field(default_factory=lambda: f"rotator-test-{secrets.token_hex(4)}")

    def __post_init__(self) -> None:
        self.client = Client(KubeConfig.from_file(self.config).get(), namespace=self.namespace)
        self.client.create(Namespace(metadata=ObjectMeta(name=self.namespace)))
        self._clusters: list[Cluster] = []

    @property
    def patience(self) -> float:
        """Seconds that a rollout of a healthy workload may take."""
        return 5.0 if self.double is not None else 120.0

    def close(self) -> None:
        for cluster in self._clusters:
            cluster.close()
        self.client.delete(Namespace, self.namespace)
        self.client.close()

    def make(self, kind: str, name: str, *, up: bool = True, labels: dict[str, str] | None = None, **spec: Any) -> None:
        """A workload of one container; `spec` is laid over its own. Waits until it is up, unless it never will be."""
        mine = {"app": name} | (labels or {})
        container = {"name": "c", "image": spec.pop("image", IMAGE)}
        if command := spec.pop("command", None):
            container["command"] = command
        pod: dict[str, Any] = {"containers": [container], "terminationGracePeriodSeconds": 0}
        if "nodeSelector" in spec:
            pod["nodeSelector"] = spec.pop("nodeSelector")
        whole = {
            "metadata": {"name": name, "namespace": self.namespace, "labels": mine},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": mine}, "spec": pod},
                **({"serviceName": name} if kind == "statefulset" else {}),
                **spec,
            },
        }
        self.client.create(RESOURCES[kind].from_dict(whole))
        deadline = time.monotonic() + self.patience
        while up and not progress(self.workload(kind, name)).done:
            assert time.monotonic() < deadline, f"{kind}/{name} does not come up"
            time.sleep(0.01 if self.double is not None else 0.5)  # a look at a cluster, until the deadline

    def workload(self, kind: str, name: str) -> Any:
        """The workload as it is now."""
        return self.client.get(RESOURCES[kind], name, namespace=self.namespace)

    def generation(self, kind: str, name: str) -> int:
        """How often its specification was changed."""
        return int(self.workload(kind, name).metadata.generation)

    def quota(self, pods: int) -> None:
        """Let no more pods be made in the namespace."""
        quota = ResourceQuota(metadata=ObjectMeta(name="pods"), spec=ResourceQuotaSpec(hard={"pods": str(pods)}))
        self.client.create(quota, namespace=self.namespace)

    def stranger(self) -> str:
        """The kubeconfig of a new service account without any rights."""
        self.client.create(ServiceAccount(metadata=ObjectMeta(name="rotator")), namespace=self.namespace)
        request = ServiceAccountToken(metadata=ObjectMeta(name="rotator"), spec=TokenRequestSpec(audiences=[]))
        answer = self.client.create(request, "rotator", namespace=self.namespace)
        assert answer.status is not None
        cluster = self.client.config.cluster
        ca = {
            name: value
            for name, value in {
                "certificate-authority": cluster.certificate_auth,
                "certificate-authority-data": cluster.certificate_auth_data,
            }.items()
            if value
        }
        return kubeconfig(self.folder / "stranger", cluster.server, {"token": answer.status.token}, **ca)

    def bind(self, role: dict[str, Any]) -> None:
        """Make a Role, as text of ours names it, and give it to the stranger."""
        made: Any = Role.from_dict(role)
        assert made.metadata.namespace == self.namespace
        self.client.create(made, namespace=self.namespace)
        binding = RoleBinding(
            metadata=ObjectMeta(name="rotator"),
            roleRef=RoleRef(apiGroup="rbac.authorization.k8s.io", kind="Role", name=str(made.metadata.name)),
            subjects=[Subject(kind="ServiceAccount", name="rotator", namespace=self.namespace)],
        )
        self.client.create(binding, namespace=self.namespace)

    def cluster(self, config: str | None = None, *, answer: float = 10.0) -> Cluster:
        """Where the consumer asks; closed at the end."""
        made = Cluster(config or self.config, answer=answer)
        self._clusters.append(made)
        return made

    def consumer(
        self,
        workload: tuple[str, str] | None = None,
        *,
        selector: str | None = None,
        timeout: float | None = None,
        config: str | None = None,
        **more: Any,
    ) -> KubernetesConsumer:
        """A consumer of this namespace."""
        return KubernetesConsumer(
            "dash",
            namespace=self.namespace,
            workload=workload,
            selector=selector,
            cluster=more.pop("cluster", None) or self.cluster(config),
            timeout=timedelta(seconds=self.patience if timeout is None else timeout),
            clock=SystemClock(),
            **more,
        )
