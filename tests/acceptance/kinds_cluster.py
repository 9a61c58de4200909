"""A double of Kubernetes whose Deployment is a reader of a copy, and the rights in it."""

from __future__ import annotations

import json
import threading
from typing import Any, Self

from lightkube.models.meta_v1 import ObjectMeta
from lightkube.models.rbac_v1 import RoleRef, Subject
from lightkube.resources.rbac_authorization_v1 import Role, RoleBinding

from acceptance.delivery_scene import Copies
from contract.consumer_kube_stage import KubeStage
from rotator.sandbox.restart import restart

LOOK = 0.05  # seconds


class Pods:
    """Starts a reader anew whenever the template of its Deployment has changed. A context manager.

    `rollouts` counts that.
    """

    def __init__(self, stage: KubeStage, copies: Copies, name: str) -> None:
        assert stage.double is not None
        self._double, self._copies, self._name = stage.double, copies, name
        self._where = ("deployments", stage.namespace, name)
        self.rollouts = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pods-{name}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _generation(self) -> int:
        with self._double.lock:
            return int(self._double.state.objects[self._where]["metadata"]["generation"])

    def _run(self) -> None:
        known = self._generation()
        while not self._stop.wait(LOOK):
            if (now := self._generation()) != known:
                known = now
                self.rollouts += 1
                restart(self._name, self._copies.folder, 20)


def role_in(text: str) -> dict[str, Any]:
    """The Role that a message holds."""
    found: dict[str, Any] = json.JSONDecoder().raw_decode(text[text.index('{"apiVersion"') :])[0]
    return found


def grant(stage: KubeStage, role: dict[str, Any]) -> None:
    """Make this Role, as it was printed, and bind it to the service account of `KubeStage.stranger`."""
    made: Any = Role.from_dict(role)
    stage.client.create(made, namespace=stage.namespace)
    binding = RoleBinding(
        metadata=ObjectMeta(name=made.metadata.name),
        roleRef=RoleRef(apiGroup="rbac.authorization.k8s.io", kind="Role", name=made.metadata.name),
        subjects=[Subject(kind="ServiceAccount", name="rotator", namespace=stage.namespace)],
    )
    stage.client.create(binding, namespace=stage.namespace)
