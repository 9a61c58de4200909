"""What a workload and its pods say of a rollout. Pure: from an answer of the API server to a judgement.

Complete is what `kubectl rollout status` calls so: the controller has seen the change (`observedGeneration`), every pod
is of the new template and available, and those of the old one are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rotator.consumers.shown import shown

if TYPE_CHECKING:
    from lightkube.models.core_v1 import ContainerStatus
    from lightkube.resources.apps_v1 import DaemonSet, Deployment, StatefulSet
    from lightkube.resources.core_v1 import Pod

    from rotator.consumers.kubernetes_client import Workload

_PODS_SHOWN: Final = 3
_CRASHED: Final = ("CrashLoopBackOff", "RunContainerError", "Error", "OOMKilled", "ContainerCannotRun", "StartError")
_USUAL: Final = ("", "ContainerCreating", "PodInitializing", "Completed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a rollout is.

    Args:
        desired: how many pods there are to be; 0 confirms nothing.
        done: whether it is complete.
        words: how far it is, for a person.
        stuck: why the controller has given it up; empty where it has not.
    """

    desired: int
    done: bool
    words: str
    stuck: str = ""


def kind_of(workload: Workload) -> str:
    """`deployment`, `statefulset` or `daemonset`."""
    return type(workload).__name__.lower()


def obstacle(workload: Workload) -> str:
    """Why a change of the pod template would not start all pods anew, with the next step; empty where it would."""
    spec = workload.spec
    name = workload.metadata.name if workload.metadata is not None else ""
    if getattr(spec, "paused", None):
        return f"it is paused, so nothing is rolled out: `kubectl rollout resume deployment/{name}`"
    strategy = getattr(spec, "updateStrategy", None)
    if strategy is None:
        return ""
    if strategy.type == "OnDelete":
        return "its updateStrategy is OnDelete, so its pods stay as they are: make it RollingUpdate"
    partition = getattr(strategy.rollingUpdate, "partition", None) or 0
    if partition:
        return f"its updateStrategy has `partition: {partition}`, so the pods below stay as they are: make it 0"
    return ""


def progress(workload: Workload) -> Progress:
    """How far the rollout of the newest template is."""
    match kind_of(workload):
        case "deployment":
            return _deployment(workload)  # type: ignore[arg-type]  # by the kind
        case "statefulset":
            return _stateful_set(workload)  # type: ignore[arg-type]  # by the kind
        case _:
            return _daemon_set(workload)  # type: ignore[arg-type]  # by the kind


def mark_of(workload: Workload, annotation: str) -> str:
    """What the pod template says under this annotation; empty where it says nothing."""
    return _annotations(workload.spec.template.metadata).get(annotation, "")


def marked(pods: Iterable[Pod], annotation: str, value: str) -> list[Pod]:
    """The pods that were made from a template with this annotation, and that nobody has told to end."""
    found = []
    for pod in pods:
        ending = pod.metadata is not None and pod.metadata.deletionTimestamp is not None
        if not ending and _annotations(pod.metadata).get(annotation) == value:
            found.append(pod)
    return found


def owned(pods: Iterable[Pod], kind: str, name: str) -> list[Pod]:
    """The pods that are this workload's: two may have the same labels. A Deployment's belong to its ReplicaSets."""
    found = []
    for pod in pods:
        for owner in (pod.metadata.ownerReferences if pod.metadata is not None else None) or ():
            if owner.kind == "ReplicaSet":
                mine = kind == "deployment" and owner.name.rpartition("-")[0] == name
            else:
                mine = owner.kind.lower() == kind and owner.name == name
            if mine:
                found.append(pod)
    return found


def restarts(pods: Iterable[Pod]) -> int:
    """How often the kubelet has started containers of these pods again."""
    return sum(status.restartCount for pod in pods for status in _containers(pod))


def crashed(pods: Iterable[Pod]) -> bool:
    """Whether a container of these ran, or tried to, and ended."""
    return any(
        status.restartCount > 0 or _reason(status) in _CRASHED or _ended(status) not in ("", "exit 0")
        for pod in pods
        for status in _containers(pod)
    )


def troubles(pods: Sequence[Pod]) -> str:
    """What keeps pods from being ready, in Kubernetes' own words, for the first three of those that are not."""
    told = [f"{pod.metadata.name if pod.metadata else 'a pod'}: {words}" for pod in pods if (words := _trouble(pod))]
    more = f"; and {len(told) - _PODS_SHOWN} more" if len(told) > _PODS_SHOWN else ""
    return "; ".join(told[:_PODS_SHOWN]) + more


def _deployment(workload: Deployment) -> Progress:
    spec, status = workload.spec, workload.status
    desired = 1 if spec.replicas is None else spec.replicas
    if desired == 0:
        return Progress(desired=0, done=True, words="0 replicas")
    if status is None or not _observed(workload):
        return Progress(desired=desired, done=False, words="the controller has not seen it yet")
    updated, available = status.updatedReplicas or 0, status.availableReplicas or 0
    old = (status.replicas or 0) - updated
    stuck = ""
    for condition in status.conditions or ():
        if condition.type == "Progressing" and condition.reason == "ProgressDeadlineExceeded":
            stuck = f"its progress deadline has passed ({condition.reason})"
    return Progress(
        desired=desired,
        done=updated >= desired and old <= 0 and available >= updated,
        words=f"{updated} of {desired} replicas are new, {available} available, {max(old, 0)} old ones left",
        stuck=stuck,
    )


def _stateful_set(workload: StatefulSet) -> Progress:
    spec, status = workload.spec, workload.status
    desired = 1 if spec.replicas is None else spec.replicas
    if desired == 0:
        return Progress(desired=0, done=True, words="0 replicas")
    if status is None or not _observed(workload):
        return Progress(desired=desired, done=False, words="the controller has not seen it yet")
    updated = status.updatedReplicas or 0
    # Kubernetes before 1.22 tells of no available ones here
    available = status.availableReplicas if status.availableReplicas is not None else status.readyReplicas or 0
    same = status.updateRevision == status.currentRevision
    return Progress(
        desired=desired,
        done=same and updated >= desired and available >= desired and status.replicas <= desired,
        words=f"{updated} of {desired} replicas are new, {available} available",
    )


def _daemon_set(workload: DaemonSet) -> Progress:
    status = workload.status
    if status is None or not _observed(workload):
        return Progress(desired=1, done=False, words="the controller has not seen it yet")
    desired = status.desiredNumberScheduled
    updated, available = status.updatedNumberScheduled or 0, status.numberAvailable or 0
    return Progress(
        desired=desired,
        done=updated >= desired and available >= desired,
        words=f"{updated} of {desired} pods are new, {available} available",
    )


def _observed(workload: Workload) -> bool:
    """Whether the status is of the newest specification; an older one may look complete."""
    seen = (workload.status.observedGeneration if workload.status is not None else None) or 0
    return seen >= ((workload.metadata.generation if workload.metadata is not None else None) or 0)


def _trouble(pod: Pod) -> str:
    status = pod.status
    if status is None or any(each.type == "Ready" and each.status == "True" for each in status.conditions or ()):
        return ""
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason or 'not scheduled'} ({shown(condition.message or '')})"
    found = [words for each in _containers(pod) if (words := _container(each))]
    return "; ".join(found) or f"{status.reason or status.phase or 'no status'}, not ready"


def _container(status: ContainerStatus) -> str:
    """Why a container is not ready; empty where it is, or is still being made."""
    reason, ended = _reason(status), _ended(status)
    if status.ready or (reason in _USUAL and ended in ("", "exit 0")):
        return ""
    words = [f"{status.name}: {reason}".removesuffix(": ")]
    waiting = status.state.waiting if status.state is not None else None
    if waiting is not None and waiting.message and reason not in _CRASHED:
        words.append(shown(waiting.message))
    if ended:
        words.append(f"last {ended}")
    return ", ".join(words) + (f", {status.restartCount} restarts" if status.restartCount else "")


def _reason(status: ContainerStatus) -> str:
    state = status.state
    if state is not None and state.waiting is not None:
        return state.waiting.reason or ""
    if state is not None and state.terminated is not None:
        return state.terminated.reason or ""
    return ""


def _ended(status: ContainerStatus) -> str:
    """How the container ended last, with its own last words; empty where it never did."""
    for state in (status.state, status.lastState):
        if state is not None and state.terminated is not None:
            ended = state.terminated
            said = f" ({shown(ended.message)})" if ended.message else ""
            return f"exit {ended.exitCode}{said}"
    return ""


def _containers(pod: Pod) -> Iterable[ContainerStatus]:
    if pod.status is not None:
        yield from pod.status.initContainerStatuses or ()
        yield from pod.status.containerStatuses or ()


def _annotations(metadata: object) -> Mapping[str, str]:
    found = getattr(metadata, "annotations", None)
    return found if isinstance(found, dict) else {}
