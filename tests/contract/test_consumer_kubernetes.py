"""The contract of a consumer, for workloads of Kubernetes: in a double, and unchanged in $ROTATOR_TEST_KUBECONFIG."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.consumer_kube_double import ADMIN, KubeDouble, kubeconfig
from contract.consumer_kube_stage import KubeStage
from rotator.consumers import kubernetes
from rotator.errors import Permanent, RotatorError, Stopping, Transient
from rotator.model import Order, Ticket
from rotator.reasons import Reason

KINDS = ("deployment", "statefulset", "daemonset")
REAL = os.environ.get("ROTATOR_TEST_KUBECONFIG")
ORDER = Order(key="building-a", version=7, id="01")
NEXT = Order(key="building-a", version=8, id="02")
FAILED = (Transient, Reason.CONSUMER_RESTART_FAILED)
NEVER = (Permanent, Reason.CONSUMER_RESTART_FAILED)

pytestmark = pytest.mark.timeout(600 if REAL else 60)


@pytest.fixture(params=["double", *(["cluster"] if REAL else [])])
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeStage]:
    """A namespace of this test's own."""
    if request.param == "cluster":
        assert REAL is not None
        with closing(KubeStage(REAL, tmp_path)) as found:
            yield found
        return
    monkeypatch.setattr(kubernetes, "FIRST_LOOK", 0.02)  # the double moves on by one step a look
    with KubeDouble() as double:
        config = kubeconfig(tmp_path / "kubeconfig", double.url, {"token": ADMIN})
        with closing(KubeStage(config, tmp_path, double)) as found:
            yield found


def refused(error: pytest.ExceptionInfo[RotatorError]) -> tuple[type[RotatorError], Reason]:
    """What kind of failure it was."""
    return type(error.value), error.value.reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_restart_makes_new_pods_and_waits_for_all_of_them(stage: KubeStage, kind: str) -> None:
    """The ticket tells how many; the pods carry the version; a later look finds them up."""
    size: dict[str, Any] = {} if kind == "daemonset" else {"replicas": 2}
    stage.make(kind, "dash", **size)
    consumer = stage.consumer((kind, "dash"))
    before = datetime.now(UTC)
    consumer.preflight()
    ticket = consumer.restart(ORDER)
    after = stage.workload(kind, "dash")
    assert "7/01" == after.spec.template.metadata.annotations["rotator.dev/building-a"]
    stamp = datetime.fromisoformat(after.spec.template.metadata.annotations["kubectl.kubernetes.io/restartedAt"])
    assert abs((ticket.restarted_at - stamp).total_seconds()) < 0.01
    assert before <= ticket.restarted_at <= datetime.now(UTC)
    assert after.metadata.generation == after.status.observedGeneration == 2
    replicas = after.status.desiredNumberScheduled if kind == "daemonset" else 2
    marks = {"annotation": "rotator.dev/building-a", "value": "7/01", "workloads": 1, "replicas": replicas}
    assert marks | {"restarts": 0} == ticket.marks
    consumer.check(ticket)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_order_again_changes_nothing(stage: KubeStage, kind: str) -> None:
    """A step may run twice; another order is another restart."""
    stage.make(kind, "dash")
    first = stage.consumer((kind, "dash")).restart(ORDER)
    again = stage.consumer((kind, "dash")).restart(ORDER)
    assert 2 == stage.generation(kind, "dash")
    assert first.marks == again.marks
    assert abs((first.restarted_at - again.restarted_at).total_seconds()) < 0.01
    stage.consumer((kind, "dash")).restart(NEXT)
    assert 3 == stage.generation(kind, "dash")


def test_two_keys_share_a_workload(stage: KubeStage) -> None:
    """A restart for one key does not make another's ticket look broken."""
    stage.make("deployment", "dash")
    consumer = stage.consumer(("deployment", "dash"))
    first = consumer.restart(ORDER)
    consumer.restart(Order(key="building-b", version=3, id="09"))
    consumer.check(first)
    assert 3 == stage.generation("deployment", "dash")


def test_a_selector_restarts_all_kinds_at_once_and_nothing_else(stage: KubeStage) -> None:
    """One ticket for all of them; labels decide."""
    for kind in KINDS:
        stage.make(kind, f"one-{kind}", labels={"part": "mqtt"})
    stage.make("deployment", "other", labels={"part": "web"})
    consumer = stage.consumer(selector="part=mqtt")
    consumer.preflight()
    ticket = consumer.restart(ORDER)
    assert [2, 2, 2, 1] == [
        *(stage.generation(kind, f"one-{kind}") for kind in KINDS),
        stage.generation("deployment", "other"),
    ]
    assert 3 == ticket.marks["workloads"]
    consumer.check(ticket)


@pytest.mark.parametrize("kind", KINDS)
def test_no_replicas_are_not_waited_for(stage: KubeStage, kind: str) -> None:
    """They confirm nothing, and the ticket says so; the template is changed for those to come."""
    nothing: dict[str, Any] = {"nodeSelector": {"rotator.dev/none": "x"}} if kind == "daemonset" else {"replicas": 0}
    stage.make(kind, "dash", **nothing)
    consumer = stage.consumer((kind, "dash"))
    ticket = consumer.restart(ORDER)
    assert 0 == ticket.marks["replicas"]
    assert 2 == stage.generation(kind, "dash")
    consumer.check(ticket)


def test_a_slow_rollout_times_out_and_the_same_order_finds_it_done(stage: KubeStage) -> None:
    """It goes on in the cluster meanwhile."""
    stage.make("deployment", "dash", minReadySeconds=1 if stage.double else 10)
    with pytest.raises(
        RotatorError, match=r"dash \(deployment .*\): not rolled out after 0.4 s: deployment/dash: "
    ) as error:
        stage.consumer(("deployment", "dash"), timeout=0.4).restart(ORDER)
    assert (Transient, Reason.CONSUMER_TIMEOUT) == refused(error)
    ticket = stage.consumer(("deployment", "dash")).restart(ORDER)
    assert 1 == ticket.marks["replicas"]
    assert 2 == stage.generation("deployment", "dash")


@pytest.mark.parametrize(
    ("trouble", "expected", "words"),
    [
        ({"command": ["/nope"]}, Reason.CONSUMER_CRASHED, "last exit"),
        ({"image": "rotator.invalid/none:1"}, Reason.CONSUMER_RESTART_FAILED, "ImagePull"),
    ],
    ids=["crash-looping", "no image"],
)
def test_a_rollout_that_is_given_up_tells_the_pods_reasons(
    stage: KubeStage, trouble: dict[str, Any], expected: Reason, words: str
) -> None:
    """Past its progress deadline; what the pods say stands in the message."""
    stage.make("deployment", "dash", up=False, progressDeadlineSeconds=20, **trouble)
    with pytest.raises(RotatorError) as error:
        stage.consumer(("deployment", "dash")).restart(ORDER)
    assert (Transient, expected) == refused(error)
    assert "ProgressDeadlineExceeded" in error.value.message
    assert words in error.value.message


@pytest.mark.parametrize("kind", ["statefulset", "daemonset"])
def test_a_crash_without_a_progress_deadline_times_out_with_the_reason(stage: KubeStage, kind: str) -> None:
    """Only a Deployment is ever given up by its controller."""
    stage.make(kind, "dash", up=False, command=["/nope"])
    with pytest.raises(RotatorError, match=r"c: .*last exit") as error:
        stage.consumer((kind, "dash"), timeout=1 if stage.double else 40).restart(ORDER)
    assert (Transient, Reason.CONSUMER_TIMEOUT) == refused(error)


def test_half_of_the_replicas_down_is_no_restart(stage: KubeStage) -> None:
    """One of two is not complete."""
    stage.make("deployment", "dash", replicas=2, strategy={"type": "Recreate"})
    stage.quota(1)
    with pytest.raises(RotatorError, match="1 of 2 replicas are new") as error:
        stage.consumer(("deployment", "dash"), timeout=1 if stage.double else 30).restart(ORDER)
    assert (Transient, Reason.CONSUMER_TIMEOUT) == refused(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_workload_is_named(stage: KubeStage, kind: str) -> None:
    """Before anything is issued, and at the restart."""
    consumer = stage.consumer((kind, "nope"))
    for call in (consumer.preflight, lambda: consumer.restart(ORDER)):
        with pytest.raises(RotatorError, match=rf'{kind}s.apps "nope" not found') as error:
            call()
        assert (Permanent, Reason.CONSUMER_MISSING) == refused(error)


def test_labels_that_nothing_has_are_named(stage: KubeStage) -> None:
    """An empty list is no success."""
    consumer = stage.consumer(selector="app=nope")
    with pytest.raises(RotatorError, match="no Deployment, StatefulSet or DaemonSet has these labels") as error:
        consumer.restart(ORDER)
    assert (Permanent, Reason.CONSUMER_MISSING) == refused(error)


@pytest.mark.parametrize("selected", [False, True], ids=["by name", "by selector"])
def test_the_role_that_is_missing_is_printed_and_is_enough(stage: KubeStage, selected: bool) -> None:
    """What `preflight` prints, applied as it stands, lets the same login restart the workload."""
    stage.make("deployment", "dash")
    config = stage.stranger()
    where = (None, "app=dash") if selected else (("deployment", "dash"), None)
    with pytest.raises(RotatorError) as error:
        stage.consumer(where[0], selector=where[1], config=config).preflight()
    assert (Permanent, Reason.CONSUMER_FORBIDDEN) == refused(error)
    verb = "get deployments.apps" if selected else "get deployments.apps/dash"
    assert f"it may not {verb}" in error.value.message
    with pytest.raises(RotatorError, match=r"403: deployments.apps .*is forbidden") as error2:
        stage.consumer(where[0], selector=where[1], config=config).restart(ORDER)
    assert (Permanent, Reason.CONSUMER_FORBIDDEN) == refused(error2)
    printed = re.search(r"\{.*\}", error.value.message)
    assert printed is not None
    stage.bind(yaml.safe_load(printed.group()))
    consumer = stage.consumer(where[0], selector=where[1], config=config)
    consumer.preflight()
    consumer.check(consumer.restart(ORDER))


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("deployment", {"paused": True}, "it is paused.*kubectl rollout resume deployment/dash"),
        ("statefulset", {"updateStrategy": {"type": "OnDelete"}}, "OnDelete.*make it RollingUpdate"),
        ("daemonset", {"updateStrategy": {"type": "OnDelete"}}, "OnDelete.*make it RollingUpdate"),
        (
            "statefulset",
            {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}},
            "partition: 1.*make it 0",
        ),
    ],
    ids=["paused", "StatefulSet on delete", "DaemonSet on delete", "partition"],
)
def test_what_can_not_roll_is_named_and_left_as_it_is(
    stage: KubeStage, kind: str, spec: dict[str, Any], words: str
) -> None:
    """A changed template would start no pod anew; nothing is changed."""
    stage.make(kind, "dash", up=False, **spec)
    consumer = stage.consumer((kind, "dash"))
    for call in (consumer.preflight, lambda: consumer.restart(ORDER)):
        with pytest.raises(RotatorError, match=words) as error:
            call()
        assert NEVER == refused(error)
    assert 1 == stage.generation(kind, "dash")


def test_a_template_that_was_changed_since_is_a_crash(stage: KubeStage) -> None:
    """`kubectl rollout undo`: the pods that were confirmed are not those that run."""
    stage.make("deployment", "dash")
    consumer = stage.consumer(("deployment", "dash"))
    ticket = consumer.restart(ORDER)
    without = {"spec": {"template": {"metadata": {"annotations": {"rotator.dev/building-a": None}}}}}
    stage.client.patch(type(stage.workload("deployment", "dash")), "dash", without, namespace=stage.namespace)
    with pytest.raises(RotatorError, match="pod template was changed since") as error:
        consumer.check(ticket)
    assert (Transient, Reason.CONSUMER_CRASHED) == refused(error)


def test_a_daemon_that_stops_leaves_the_rollout_alone(stage: KubeStage) -> None:
    """The wait ends at once, the rollout does not."""
    stage.make("deployment", "dash", up=False, command=["/nope"])
    stop = threading.Event()
    consumer = stage.consumer(("deployment", "dash"), timeout=60, stop=stop)
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Stopping):
        consumer.restart(ORDER)
    timer.join()
    assert time.monotonic() - began < 5
    assert 2 == stage.generation("deployment", "dash")


def test_a_ticket_of_a_workload_that_is_gone(stage: KubeStage) -> None:
    """Deleted since: there is nothing that stayed up."""
    consumer = stage.consumer(("deployment", "nope"))
    marks: dict[str, str | int] = {"annotation": "rotator.dev/a", "value": "1", "workloads": 1, "replicas": 1}
    with pytest.raises(RotatorError) as error:
        consumer.check(Ticket(consumer="dash", restarted_at=datetime.now(UTC), marks=marks))
    assert (Permanent, Reason.CONSUMER_MISSING) == refused(error)
