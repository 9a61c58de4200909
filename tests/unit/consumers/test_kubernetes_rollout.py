"""What a workload and its pods say of a rollout: complete, under way, given up, and why."""

from __future__ import annotations

from typing import Any

import pytest
from lightkube.models.meta_v1 import LabelSelector, LabelSelectorRequirement
from lightkube.resources.apps_v1 import DaemonSet, Deployment, StatefulSet
from lightkube.resources.core_v1 import Pod

from rotator.consumers.kubernetes_client import written
from rotator.consumers.kubernetes_rollout import (
    Progress,
    crashed,
    kind_of,
    marked,
    obstacle,
    owned,
    progress,
    restarts,
    troubles,
)

LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


Status = dict[str, Any]


def deployment(status: Status, desired: int | None = 2) -> Progress:
    """How far a Deployment of generation 2 with this status is."""
    spec: Status = {"selector": {}, "template": {}, "replicas": desired}
    made = Deployment.from_dict({"metadata": {"generation": 2}, "spec": spec, "status": status})
    assert isinstance(made, Deployment)
    return progress(made)


def stateful_set(status: Status, desired: int = 2) -> Progress:
    """How far a StatefulSet of generation 2 with this status is."""
    spec: Status = {"selector": {}, "template": {}, "replicas": desired, "serviceName": "x"}
    made = StatefulSet.from_dict({"metadata": {"generation": 2}, "spec": spec, "status": {"replicas": 2} | status})
    assert isinstance(made, StatefulSet)
    return progress(made)


def daemon_set(status: Status, desired: int = 2) -> Progress:
    """How far a DaemonSet of generation 2 with this status is."""
    counts = {"currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2, "desiredNumberScheduled": desired}
    spec: Status = {"selector": {}, "template": {}}
    made = DaemonSet.from_dict({"metadata": {"generation": 2}, "spec": spec, "status": counts | status})
    assert isinstance(made, DaemonSet)
    return progress(made)


FULL: Status = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
SET: Status = FULL | {"currentRevision": "b", "updateRevision": "b"}
EACH: Status = {"observedGeneration": 2, "updatedNumberScheduled": 2, "numberAvailable": 2}


@pytest.mark.parametrize(
    ("found", "done"),
    [
        (deployment(FULL), True),
        (deployment(FULL | {"observedGeneration": 1}), False),
        (deployment(FULL | {"observedGeneration": 3}), True),
        (deployment(FULL | {"updatedReplicas": 1}), False),
        (deployment(FULL | {"replicas": 3}), False),
        (deployment(FULL | {"availableReplicas": 1}), False),
        (deployment({}), False),
        (deployment(FULL | {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}, None), True),
        (deployment({"observedGeneration": 1}, 0), True),
        (stateful_set(SET), True),
        (stateful_set(SET | {"observedGeneration": 1}), False),
        (stateful_set(SET | {"currentRevision": "a"}), False),
        (stateful_set(SET | {"updatedReplicas": 1}), False),
        (stateful_set(SET | {"availableReplicas": 1}), False),
        (stateful_set(SET | {"availableReplicas": None, "readyReplicas": 2}), True),
        (stateful_set(SET | {"availableReplicas": None, "readyReplicas": 1}), False),
        (stateful_set(SET | {"replicas": 3}), False),
        (stateful_set({}, 0), True),
        (daemon_set(EACH), True),
        (daemon_set(EACH | {"observedGeneration": 1}), False),
        (daemon_set(EACH | {"updatedNumberScheduled": 1}), False),
        (daemon_set(EACH | {"numberAvailable": 1}), False),
        (daemon_set({"observedGeneration": 2}, 0), True),
        (daemon_set({"observedGeneration": 1}, 0), False),
    ],
)
def test_complete_is_what_kubectl_calls_so(found: Progress, done: bool) -> None:
    """The controller has seen the change, every pod is new and available, and no old one is left."""
    assert done is found.done
    assert found.words


def test_a_deadline_counts_for_the_newest_template_alone() -> None:
    """The condition of the rollout before stands there until the controller has seen the change."""
    assert "" == deployment({"observedGeneration": 1, "conditions": [LATE]}).stuck
    assert "ProgressDeadlineExceeded" in deployment({"observedGeneration": 2, "conditions": [LATE]}).stuck


@pytest.mark.parametrize(
    ("updated", "desired"), [(deployment(FULL, 0), 0), (deployment(FULL, 5), 5), (daemon_set(EACH, 0), 0)]
)
def test_how_many_there_are_to_be(updated: Progress, desired: int) -> None:
    """Zero confirms nothing, so it is told apart."""
    assert desired == updated.desired


def test_what_can_roll_has_no_obstacle() -> None:
    """A strategy that is not written is RollingUpdate."""
    made = StatefulSet.from_dict({"spec": {"selector": {}, "template": {}, "serviceName": "x"}})
    assert isinstance(made, StatefulSet)
    assert "" == obstacle(made)
    assert "statefulset" == kind_of(made)


def pod(name: str = "dash-7-a", owner: tuple[str, str] = ("ReplicaSet", "dash-7"), **whole: Any) -> Pod:
    """A pod of the Deployment `dash` with the annotation a=1."""
    reference = {"apiVersion": "apps/v1", "kind": owner[0], "name": owner[1], "uid": "u"}
    metadata = {"name": name, "annotations": {"a": "1"}, "ownerReferences": [reference]} | whole.pop("metadata", {})
    made = Pod.from_dict({"metadata": metadata, **whole})
    assert isinstance(made, Pod)
    return made


def container(restarts: int = 0, *, ready: bool = False, last: dict[str, Any] | None = None, **state: Any) -> Pod:
    """A pod with one container."""
    status = {"name": "c", "image": "x", "imageID": "", "ready": ready, "restartCount": restarts, "state": state}
    if last is not None:
        status["lastState"] = {"terminated": last}
    return pod(status={"phase": "Running", "containerStatuses": [status]})


def test_the_pods_of_a_restart_are_told_from_others() -> None:
    """By the annotation; those that are ending, or older, or another workload's, are left out."""
    ending = pod(metadata={"deletionTimestamp": "2026-11-21T09:00:00Z"})
    older = pod(metadata={"annotations": {}})
    assert [pod()] == marked([pod(), ending, older, Pod()], "a", "1")
    others = [pod(owner=("ReplicaSet", "dash-web-7")), pod(owner=("StatefulSet", "dash")), Pod()]
    assert [pod()] == owned([pod(), *others], "deployment", "dash")
    assert [others[1]] == owned([pod(), *others], "statefulset", "dash")


@pytest.mark.parametrize(
    ("found", "words", "ended"),
    [
        (container(waiting={"reason": "ContainerCreating"}), "dash-7-a: Running, not ready", False),
        (
            container(3, waiting={"reason": "CrashLoopBackOff", "message": "back-off"}, last={"exitCode": 1}),
            "dash-7-a: c: CrashLoopBackOff, last exit 1, 3 restarts",
            True,
        ),
        (
            container(terminated={"exitCode": 137, "reason": "OOMKilled", "message": "no memory"}),
            "dash-7-a: c: OOMKilled, last exit 137 (no memory)",
            True,
        ),
        (
            container(waiting={"reason": "CreateContainerConfigError", "message": 'secret "mqtt" not found'}),
            'dash-7-a: c: CreateContainerConfigError, secret "mqtt" not found',
            False,
        ),
        (container(1, ready=True, running={}), "dash-7-a: Running, not ready", True),
        (pod(status={"phase": "Failed", "reason": "Evicted"}), "dash-7-a: Evicted, not ready", False),
        (
            pod(
                status={
                    "conditions": [
                        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
                    ]
                }
            ),
            "dash-7-a: Unschedulable (0/3 nodes)",
            False,
        ),
        (pod(status={"conditions": [{"type": "Ready", "status": "True"}]}), "", False),
        (pod(), "", False),
    ],
)
def test_why_a_pod_is_not_ready(found: Pod, words: str, ended: bool) -> None:
    """In Kubernetes' own words; what crashed is told from what could not start."""
    assert words == troubles([found])
    assert ended is crashed([found])


def test_an_init_container_counts_as_well() -> None:
    """It may be the one that crashes; one that has done its work is no trouble."""
    base = {"image": "x", "imageID": "", "ready": False, "restartCount": 0}
    done = base | {"name": "i", "ready": True, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    crash = base | {"name": "j", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    good = pod(status={"initContainerStatuses": [done]})
    bad = pod(status={"initContainerStatuses": [done, crash]})
    assert not crashed([good])
    assert crashed([bad])
    assert "dash-7-a: j: CrashLoopBackOff, 2 restarts" == troubles([bad])
    assert 2 == restarts([good, bad])


def test_many_pods_are_cut_short() -> None:
    """Three stand for all."""
    assert troubles([container()] * 5).endswith("; and 2 more")


def test_a_selector_is_written_as_kubectl_takes_it() -> None:
    """With all four operators."""

    def needs(key: str, operator: str, *values: str) -> LabelSelectorRequirement:
        return LabelSelectorRequirement(key=key, operator=operator, values=list(values) or None)

    expressions = [
        needs("b", "In", "y", "x"),
        needs("c", "NotIn", "z"),
        needs("d", "Exists"),
        needs("e", "DoesNotExist"),
    ]
    assert "a=1,b in (x,y),c notin (z),d,!e" == written(
        LabelSelector(matchLabels={"a": "1"}, matchExpressions=expressions)
    )
    assert "" == written(LabelSelector())
