"""Consumers that are Kubernetes workloads, restarted as `kubectl rollout restart` does: by an annotation of the pod
template of a Deployment, StatefulSet or DaemonSet.

A second annotation, `rotator.dev/KEY`, says for which version of the secret that was. It makes the restart safe to
repeat (the same order changes nothing any more), tells the pods that were made by it from all others, and shows a
person with kubectl what a pod runs on. Each key has its own, so two keys may share a workload.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import structlog

from rotator.consumers import kubernetes_rollout as rollout
from rotator.consumers.kubernetes_access import Access, Rights
from rotator.consumers.kubernetes_cluster import Cluster
from rotator.errors import Permanent, RotatorError, Stopping, Transient
from rotator.model import Order, Ticket
from rotator.ports import Clock
from rotator.reasons import Reason
from rotator.timestamps import parse_timestamp

if TYPE_CHECKING:
    from lightkube.resources.core_v1 import Pod

    from rotator.consumers.kubernetes_client import Workload

RESTARTED_AT: Final = "kubectl.kubernetes.io/restartedAt"
OURS: Final = "rotator.dev/"
KINDS: Final = ("deployment", "statefulset", "daemonset")
FIRST_LOOK: Final = 0.25  # seconds between the first two looks at a rollout; each further pause is half as long again
LAST_LOOK: Final = 3.0
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")  # RFC 1123, as Kubernetes asks

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """One workload that is being restarted, as it was seen last."""

    kind: str
    name: str
    workload: Workload

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


class KubernetesConsumer:
    """Restarts one workload, or all Deployments, StatefulSets and DaemonSets with some labels at once.

    Args:
        name: the name in the configuration.
        namespace: where the workload is.
        workload: its kind (`deployment`, `statefulset`, `daemonset`) and its name; or None, and
        selector: labels, as `kubectl --selector` takes them.
        cluster: where and as whom to ask.
        timeout: how long the rollout may take; one that takes longer goes on in the cluster.
        clock: the source of `Ticket.restarted_at`.
    """

    def __init__(
        self,
        name: str,
        *,
        namespace: str,
        workload: tuple[str, str] | None = None,
        selector: str | None = None,
        cluster: Cluster,
        timeout: timedelta,
        clock: Clock,
        stop: threading.Event | None = None,
    ) -> None:
        if (workload is None) == (not selector):
            raise ValueError("exactly one of workload and selector")
        if workload is not None and (workload[0] not in KINDS or not _NAME.fullmatch(workload[1])):
            raise ValueError(f"no such workload can be: {'/'.join(workload)}")
        if not _NAME.fullmatch(namespace):
            raise ValueError(f"no such namespace can be: {namespace}")
        self._name, self._namespace, self._workload, self._selector = name, namespace, workload, selector or ""
        self._cluster, self._timeout, self._clock = cluster, timeout, clock
        self._stop = stop or threading.Event()
        named = f"{workload[0]} {namespace}/{workload[1]}" if workload else f"{selector} in {namespace}"
        self._label = f"{name} ({named})"
        self._rights = Rights(self._label, f"rotator-{name}", namespace, cluster, self._needed())

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def kind(self) -> str:
        """`kubernetes`."""
        return "kubernetes"

    def preflight(self) -> None:
        """Look whether this login may restart it, and whether it can be restarted. Changes nothing.

        Raises:
            Permanent: CONSUMER_FORBIDDEN, with the Role that is missing; CONSUMER_MISSING; CONSUMER_RESTART_FAILED
                where a change of the pod template starts no pods (paused, OnDelete, partition), or there is no way to
                the cluster.
            Transient: CONSUMER_RESTART_FAILED where the API server does not answer.
        """
        self._rights.check()
        self._fit(self._targets())

    def restart(self, order: Order) -> Ticket:
        """Change the pod template's annotations, and wait until the rollout is complete.

        The marks are the annotation and its value, how many workloads and replicas (`replicas: 0` confirms nothing),
        and how often the new pods' containers had been started again by then.

        Raises:
            Permanent: as `preflight`.
            Transient: CONSUMER_TIMEOUT; where the controller has given the rollout up, CONSUMER_CRASHED for containers
                that ended and CONSUMER_RESTART_FAILED for others, with the pods' own reasons.
        """
        deadline = time.monotonic() + self._timeout.total_seconds()
        annotation, value = _annotation(order)
        targets = self._targets()
        self._fit(targets)
        began, rolling = self._annotate(targets, annotation, value)
        done = self._wait(rolling, annotation, value, deadline)
        replicas = sum(rollout.progress(each.workload).desired for each in done)
        pods = self._pods(done, annotation, value) if replicas else []
        log.debug("rollout_complete", consumer=self._name, workloads=[str(each) for each in done], replicas=replicas)
        return Ticket(
            consumer=self._name,
            restarted_at=began,
            marks={
                "annotation": annotation,
                "value": value,
                "workloads": len(done),
                "replicas": replicas,
                "restarts": rollout.restarts(pods),
            },
        )

    def check(self, ticket: Ticket) -> None:
        """See that the pods that `ticket` tells of are still the ones, available, and were not started again.

        A workload that had no replicas is not looked at. One that others have scaled meanwhile is measured by the lower
        of both figures.

        Raises:
            Permanent: CONSUMER_MISSING, CONSUMER_FORBIDDEN.
            Transient: CONSUMER_CRASHED; CONSUMER_RESTART_FAILED where the API server does not answer.
        """
        marks = ticket.marks
        if not marks.get("replicas"):
            return
        annotation, value = str(marks.get("annotation", "")), str(marks.get("value", ""))
        targets = self._targets()
        ours = [each for each in targets if rollout.mark_of(each.workload, annotation) == value]
        if len(ours) < int(marks.get("workloads", 1)):
            raise self._crashed("its pod template was changed since, and no longer names this restart")
        pods = self._pods(ours, annotation, value)
        if rollout.restarts(pods) > int(marks.get("restarts", 0)):
            raise self._crashed(f"containers were started again since{_told(pods)}")
        available = sum(_available(each.workload) for each in ours)
        desired = min(sum(rollout.progress(each.workload).desired for each in ours), int(marks["replicas"]))
        if available < desired:
            raise self._crashed(f"{available} of {desired} replicas are available{_told(pods)}")

    def _needed(self) -> Sequence[Access]:
        pods = Access(verb="list", group="", resource="pods")
        if self._workload is not None:
            kind, name = self._workload
            one = (Access(verb=verb, group="apps", resource=f"{kind}s", name=name) for verb in ("get", "patch"))
            return [*one, pods]
        verbs = ("get", "list", "patch")
        return [*(Access(verb=verb, group="apps", resource=f"{kind}s") for kind in KINDS for verb in verbs), pods]

    def _targets(self) -> list[_Target]:
        """The workloads as they are now. Raises: Permanent CONSUMER_MISSING where there is none."""
        api = self._cluster.api
        if self._workload is not None:
            kind, name = self._workload
            return [_Target(kind=kind, name=name, workload=api.workload(self._label, kind, self._namespace, name))]
        found = [
            _Target(kind=kind, name=each.metadata.name or "", workload=each)
            for kind, each in api.workloads(self._label, self._namespace, self._selector)
            if each.metadata is not None
        ]
        if not found:
            text = f"{self._label}: no Deployment, StatefulSet or DaemonSet has these labels"
            raise Permanent(text, reason=Reason.CONSUMER_MISSING)
        return found

    def _fit(self, targets: Sequence[_Target]) -> None:
        for each in targets:
            if why := rollout.obstacle(each.workload):
                raise Permanent(f"{self._label}: {each}: {why}", reason=Reason.CONSUMER_RESTART_FAILED)

    def _annotate(self, targets: Sequence[_Target], annotation: str, value: str) -> tuple[datetime, list[_Target]]:
        """Change the templates that do not name this order yet; when the first was changed, and what they are now."""
        began: list[datetime] = []
        rolling: list[_Target] = []
        for each in targets:
            if rollout.mark_of(each.workload, annotation) == value:  # by an earlier try of this same order
                before = parse_timestamp(rollout.mark_of(each.workload, RESTARTED_AT))
                began += [before] if before is not None else []
                rolling.append(each)
                continue
            now = self._clock.now()
            began.append(now)
            stamp = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            changed = self._cluster.api.annotate_template(
                self._label, each.kind, self._namespace, each.name, {RESTARTED_AT: stamp, annotation: value}
            )
            rolling.append(_Target(kind=each.kind, name=each.name, workload=changed))
        return min(began, default=self._clock.now()), rolling

    def _wait(self, rolling: Sequence[_Target], annotation: str, value: str, deadline: float) -> list[_Target]:
        """Look again and again until all rollouts are complete.

        An API server that does not answer for a while ends nothing: the rollout goes on without it.
        """
        pending, pause, silence = list(rolling), FIRST_LOOK, ""
        done: list[_Target] = []
        while True:
            still: list[_Target] = []
            for each in pending:
                (done if self._complete(each, annotation, value) else still).append(each)
            if not still:
                return done
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self._late(still, annotation, value, silence)
            if self._stop.wait(min(pause, remaining)):
                raise Stopping  # the rollout goes on; the next start finds it by its annotation
            pause = min(pause * 1.5, LAST_LOOK)
            pending, silence = self._seen(still)

    def _seen(self, targets: Sequence[_Target]) -> tuple[list[_Target], str]:
        """The same as they are now; where nobody answers, as they were, and why."""
        found: list[_Target] = []
        for index, each in enumerate(targets):
            try:
                workload = self._cluster.api.workload(self._label, each.kind, self._namespace, each.name)
            except Transient as exc:
                if exc.retry_after is not None:
                    self._stop.wait(min(exc.retry_after.total_seconds(), LAST_LOOK))
                return [*found, *targets[index:]], exc.message
            found.append(_Target(kind=each.kind, name=each.name, workload=workload))
        return found, ""

    def _complete(self, target: _Target, annotation: str, value: str) -> bool:
        """Whether its rollout is complete. Raises: Transient, where it can't be any more; Permanent."""
        if rollout.mark_of(target.workload, annotation) != value:
            text = f"{self._label}: {target}: somebody took the annotation off its pod template (a GitOps controller?)"
            raise Transient(text, reason=Reason.CONSUMER_RESTART_FAILED)
        self._fit([target])
        progress = rollout.progress(target.workload)
        if progress.stuck and not progress.done:
            pods = self._pods([target], annotation, value)
            reason = Reason.CONSUMER_CRASHED if rollout.crashed(pods) else Reason.CONSUMER_RESTART_FAILED
            text = f"{self._label}: {target}: {progress.stuck}: {progress.words}{_told(pods)}"
            raise Transient(text, reason=reason)
        return progress.done

    def _late(self, pending: Sequence[_Target], annotation: str, value: str, silence: str) -> Transient:
        """Not done in time, and what the pods say of that."""
        words = "; ".join(f"{each}: {rollout.progress(each.workload).words}" for each in pending)
        try:
            told = _told(self._pods(pending, annotation, value))
        except RotatorError as exc:
            told = f"; {silence or exc.message}"
        text = f"{self._label}: not rolled out after {self._timeout.total_seconds():g} s: {words}{told}"
        return Transient(text, reason=Reason.CONSUMER_TIMEOUT)

    def _pods(self, targets: Sequence[_Target], annotation: str, value: str) -> list[Pod]:
        """The pods that this restart made."""
        found: list[Pod] = []
        for each in targets:
            pods = self._cluster.api.pods(self._label, self._namespace, each.workload.spec.selector)
            found += rollout.owned(rollout.marked(pods, annotation, value), each.kind, each.name)
        return found

    def _crashed(self, text: str) -> Transient:
        return Transient(f"{self._label}: {text}", reason=Reason.CONSUMER_CRASHED)


def _annotation(order: Order) -> tuple[str, str]:
    """The annotation of this key, and the value by which this restart is known again."""
    return f"{OURS}{order.key}", f"{order.version}/{order.id}" if order.id else str(order.version)


def _available(workload: Workload) -> int:
    """How many of its pods are available, as its controller tells."""
    status = workload.status
    for figure in ("availableReplicas", "numberAvailable", "readyReplicas"):
        if (found := getattr(status, figure, None)) is not None:
            return int(found)
    return 0


def _told(pods: Sequence[Pod]) -> str:
    words = rollout.troubles(pods)
    return f": {words}" if words else ""
