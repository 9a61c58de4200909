"""What a double of Kubernetes knows: objects, and controllers that move a rollout on by one step at each look.

How a workload fares is written in its specification, as for a real cluster: the command `/nope` crashes, an image of
`rotator.invalid` can't be pulled, `minReadySeconds` makes it slow, a quota of pods leaves some out.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]
Where = tuple[str, str, str]  # plural, namespace, name

NODES = 2  # on each of which a DaemonSet has a pod
WORKLOADS = {"deployments": "Deployment", "statefulsets": "StatefulSet", "daemonsets": "DaemonSet"}
GIVEN_UP_AFTER = 4  # looks at a Deployment that does not come up


def merge(into: Json, change: Mapping[str, Any]) -> None:
    """A JSON merge patch; a strategic one of annotations is the same."""
    for name, value in change.items():
        if value is None:
            into.pop(name, None)
        elif isinstance(value, dict) and isinstance(into.get(name), dict):
            merge(into[name], value)
        else:
            into[name] = deepcopy(value)


class State:
    """All objects, by plural, namespace and name. Whoever calls holds the lock."""

    def __init__(self) -> None:
        self.objects: dict[Where, Json] = {}
        self.looks: dict[Where, int] = {}
        self.changed: dict[Where, float] = {}
        self.restarts: dict[Where, int] = {}  # of each container of a workload's pods
        self.words: dict[Where, str] = {}  # the last words of a crashing container
        self.frozen: set[Where] = set()  # whose controller does nothing
        self._version = itertools.count(229)

    def create(self, where: Where, made: Json) -> Json:
        """A new object, as the API server answers it."""
        made.setdefault("metadata", {})
        made["metadata"] |= {
            "name": where[2],
            "namespace": where[1],
            "generation": 1,
            "uid": f"uid-{next(self._version)}",
        }
        if where[0] in WORKLOADS:
            self._default(where, made)
        self.objects[where] = made
        self._touch(where)
        return made

    def patch(self, where: Where, change: Json) -> Json:
        """The object with the change; its generation moves only where its specification does."""
        found = self.objects[where]
        before, metadata = deepcopy(found.get("spec")), deepcopy(found["metadata"])
        merge(found, change)
        if found.get("spec") != before:
            found["metadata"]["generation"] += 1
        if found.get("spec") != before or found["metadata"] != metadata:
            self._touch(where)
        return found

    def look(self, where: Where) -> Json | None:
        """The object as it is now; its controller does one thing first."""
        found = self.objects.get(where)
        if found is not None and where not in self.frozen:
            self.looks[where] += 1
            if where[0] in WORKLOADS:
                self._roll(where, found)
            elif where[0] == "externalsecrets":
                self._fetch(where, found)
        return found

    def pods(self, namespace: str) -> Iterator[Json]:
        """The pods of all workloads there; those of an older template bear no annotations."""
        for where, found in self.objects.items():
            if where[0] in WORKLOADS and where[1] == namespace:
                yield from self._pods_of(where, found)

    def _touch(self, where: Where) -> None:
        self.objects[where]["metadata"]["resourceVersion"] = str(next(self._version))
        self.looks[where], self.changed[where] = 0, time.monotonic()
        self.restarts[where] = 0

    def _default(self, where: Where, made: Json) -> None:
        """What the API server adds."""
        made["kind"], made["apiVersion"], spec = WORKLOADS[where[0]], "apps/v1", made["spec"]
        made["status"] = {}
        if where[0] == "deployments":
            spec.setdefault("replicas", 1)
            spec.setdefault("progressDeadlineSeconds", 600)
        elif where[0] == "statefulsets":
            spec.setdefault("replicas", 1)
            made["status"] = {"replicas": 0, "availableReplicas": 0, "currentRevision": f"{where[2]}-1"}
        else:
            counts = ("currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady")
            made["status"] = dict.fromkeys(counts, 0)
        if where[0] != "deployments":
            spec.setdefault("updateStrategy", {"type": "RollingUpdate"})

    def desired(self, where: Where) -> int:
        """How many pods it is to have."""
        if where[0] != "daemonsets":
            return int(self.objects[where]["spec"]["replicas"])
        return 0 if self.objects[where]["spec"]["template"]["spec"].get("nodeSelector") else NODES

    def _fate(self, where: Where, found: Json) -> str:
        (container,) = found["spec"]["template"]["spec"]["containers"]
        if container.get("command") == ["/nope"]:
            return "crash"
        return "pull" if container["image"].startswith("rotator.invalid") else "up"

    def _up(self, where: Where, found: Json) -> tuple[int, int]:
        """How many pods are of the new template by now, and how many of them are available."""
        desired = self.desired(where)
        if self._fate(where, found) != "up":
            return min(1, desired), 0
        quota = self.objects.get(("resourcequotas", where[1], "pods"))
        room = min(desired, int(quota["spec"]["hard"]["pods"])) if quota else desired
        waits = time.monotonic() - self.changed[where] < found["spec"].get("minReadySeconds", 0)
        return (1 if waits else room), (0 if waits else room)

    def _roll(self, where: Where, found: Json) -> None:
        """First the controller sees it, then there is one new pod, then all."""
        if self.looks[where] < 2 or found["spec"].get("paused"):
            return
        generation, status, desired = found["metadata"]["generation"], found["status"], self.desired(where)
        updated, available = (min(1, desired), 0) if self.looks[where] == 2 else self._up(where, found)
        status["observedGeneration"] = generation
        match where[0]:
            case "deployments":
                old = 1 if available < updated else 0
                status |= {"replicas": updated + old, "updatedReplicas": updated, "availableReplicas": available}
                late = available < desired and self._fate(where, found) != "up" and self.looks[where] > GIVEN_UP_AFTER
                reason = "ProgressDeadlineExceeded" if late else "ReplicaSetUpdated"
                status["conditions"] = [{"type": "Progressing", "status": str(not late), "reason": reason}]
            case "statefulsets":
                revision = f"{where[2]}-{generation}"
                status |= {"replicas": desired, "updatedReplicas": updated, "availableReplicas": available}
                status["updateRevision"] = revision
                if available == desired:
                    status["currentRevision"] = revision
            case _:
                counts = {"updatedNumberScheduled": updated, "numberAvailable": available, "numberReady": available}
                status |= {"desiredNumberScheduled": desired, "currentNumberScheduled": desired} | counts

    def _pods_of(self, where: Where, found: Json) -> Iterator[Json]:
        plural, namespace, name = where
        status, template = found["status"], found["spec"]["template"]
        updated = status.get("updatedReplicas", status.get("updatedNumberScheduled", 0))
        available = status.get("availableReplicas", status.get("numberAvailable", 0))
        for index in range(self.desired(where)):
            new = index < updated
            label = "7" if new else "6"
            owner = ("ReplicaSet", f"{name}-{label}") if plural == "deployments" else (WORKLOADS[plural], name)
            metadata = deepcopy(template.get("metadata", {})) if new else {"labels": template["metadata"]["labels"]}
            metadata |= {"name": f"{name}-{label}-{index}", "namespace": namespace}
            metadata["ownerReferences"] = [{"apiVersion": "apps/v1", "kind": owner[0], "name": owner[1], "uid": "u"}]
            state = self._container(where, found, up=not new or index < available)
            ready = {"type": "Ready", "status": str(state["ready"])}
            pod_status = {"phase": "Running", "conditions": [ready], "containerStatuses": [state]}
            yield {"metadata": metadata, "spec": {"containers": [{"name": "c"}]}, "status": pod_status}

    def _container(self, where: Where, found: Json, *, up: bool) -> Json:
        state: Json = {"name": "c", "image": "x", "imageID": "", "ready": up, "restartCount": self.restarts[where]}
        if up:
            return state | {"state": {"running": {}}}
        match self._fate(where, found):
            case "crash":
                waiting = {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container=c"}
                ended = {"exitCode": 128, "reason": "StartError", "message": self.words.get(where, "no such file")}
                return state | {"state": {"waiting": waiting}, "lastState": {"terminated": ended}, "restartCount": 2}
            case "pull":
                return state | {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling"}}}
            case _:
                return state | {"state": {"waiting": {"reason": "ContainerCreating"}}}

    def _fetch(self, where: Where, found: Json) -> None:
        """External Secrets: fetched two looks after each change of the metadata."""
        if self.looks[where] != 2:
            return
        version = f"{found['metadata']['generation']}-{hash(str(found['metadata'].get('annotations')))}"
        if problem := found["spec"].get("fails"):
            error = {"type": "Ready", "status": "False", "reason": "SecretSyncedError", "message": problem}
            found.setdefault("status", {})["conditions"] = [error]
            return
        found["status"] = {
            "refreshTime": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "conditions": [{"type": "Ready", "status": "True", "reason": "SecretSynced"}],
        } | ({} if found["spec"].get("old") else {"syncedResourceVersion": version})
