"""What the Kubernetes consumer makes of each exchange that was recorded at a real API server (version 1.36)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from contract.consumer_kube_double import ADMIN, Asked, KubeDouble, kubeconfig
from contract.consumer_kube_replay import KubeReplay, recorded
from rotator.clock import SystemClock
from rotator.consumers.kubernetes import RESTARTED_AT, KubernetesConsumer
from rotator.consumers.kubernetes_access import Access
from rotator.consumers.kubernetes_client import Api
from rotator.consumers.kubernetes_cluster import Cluster
from rotator.consumers.kubernetes_rollout import mark_of, obstacle, progress
from rotator.errors import Permanent, RotatorError
from rotator.reasons import Reason

STAMP = "2026-11-21T09:00:00Z"
PATCH = Access(verb="patch", group="apps", resource="deployments", name="dash")


def got(kind: str, name: str) -> Callable[[Api], Any]:
    """Look at a workload."""
    return lambda api: api.workload("dash", kind, "iot", name)


def patched(kind: str, name: str, namespace: str = "iot") -> Callable[[Api], Any]:
    """Restart it, as recorded."""
    return lambda api: api.annotate_template("dash", kind, namespace, name, {RESTARTED_AT: STAMP})


def allowed(api: Api) -> Any:
    """Ask for one right."""
    return api.allowed("dash", PATCH, "iot")


# Which question of ours meets the exchange, and what becomes of the answer: a Permanent error, or (
# generation, desired, done).
REFUSED: dict[str, tuple[Callable[[Api], Any], Reason, str]] = {
    "no credentials": (got("deployment", "dash"), Reason.CONSUMER_FORBIDDEN, 'User "system:anonymous" cannot get'),
    "a token that is not known": (got("deployment", "dash"), Reason.CONSUMER_FORBIDDEN, "does not accept this login"),
    "forbidden: no role bound yet": (
        got("deployment", "dash"),
        Reason.CONSUMER_FORBIDDEN,
        'User "rotator" cannot get resource',
    ),
    "not found": (
        got("deployment", "nope"),
        Reason.CONSUMER_MISSING,
        'deployments.apps "nope" not found',
    ),
    "patch in a namespace without a role": (
        patched("deployment", "dash", "default"),
        Reason.CONSUMER_FORBIDDEN,
        "cannot patch",
    ),
    "patch that the API refuses": (  # another patch than ours ever is, but it might have met ours
        patched("deployment", "dash"),
        Reason.CONSUMER_RESTART_FAILED,
        "answers 422: .* is invalid: patch",
    ),
}
SEEN: dict[str, tuple[Callable[[Api], Any], tuple[int, int, bool, str]]] = {
    "deployment before the restart": (got("deployment", "dash"), (1, 2, False, "2 of 2 replicas are new, 0 available")),
    "restart: strategic merge patch of the pod template's annotation": (
        patched("deployment", "dash"),
        (2, 2, False, "has not seen it"),
    ),
    "the same patch again changes nothing: generation stays": (
        patched("deployment", "dash"),
        (2, 2, False, "has not seen it"),
    ),
    "after the controller saw it: observedGeneration moves, rollout not complete": (
        got("deployment", "dash"),
        (2, 2, False, "1 of 2 replicas are new, 0 available, 2 old"),
    ),
    "restart of statefulsets/ingest": (patched("statefulset", "ingest"), (2, 1, False, "has not seen it")),
    "restart of daemonsets/edge": (patched("daemonset", "edge"), (2, 1, False, "has not seen it")),
    "status of statefulsets/ingest": (got("statefulset", "ingest"), (2, 1, False, "0 of 1 replicas are new")),
    "status of daemonsets/edge": (got("daemonset", "edge"), (2, 0, True, "0 of 0 pods")),  # no nodes: confirms nothing
}
REVIEWED = {"may I patch? no role bound yet": False, "may I patch? role bound": True}
NOT_USED = {
    "version": "no behaviour depends on the server's version",
    "lease: create": "leases belong to several replicas, which this version does not have",
    "lease: create twice": "the same",
    "lease: update with the version that was read": "the same",
    "lease: update with a stale resourceVersion": "the same",
}


def api(folder: Path, url: str, token: str | None) -> Api:
    """A client with the recorded token."""
    user = {} if token is None else {"token": token}
    return Cluster(kubeconfig(folder / "kubeconfig", url, user)).api


def test_every_recorded_exchange_is_decided_upon() -> None:
    """None of the 21 is missing from the tables above, and none stands in two of them."""
    tables: tuple[Mapping[str, object], ...] = (REFUSED, SEEN, REVIEWED, NOT_USED)
    notes = [note for table in tables for note in table]
    assert 21 == len(notes) == len(recorded())
    assert recorded().keys() == set(notes)


@pytest.mark.parametrize("note", REFUSED)
def test_a_recorded_refusal(note: str, tmp_path: Path) -> None:
    """Each has its name, and the API server's own words."""
    ask, expected, words = REFUSED[note]
    exchange = recorded()[note]
    with (
        KubeReplay(exchange, body="refuses" not in note) as server,
        closing(api(tmp_path, server.url, exchange.token)) as client,
    ):
        with pytest.raises(RotatorError, match=words) as error:
            ask(client)
        assert isinstance(error.value, Permanent)
        assert expected is error.value.reason
        assert [] == server.surprises
        assert (2 if exchange.status == 401 else 1) == server.times  # a login that is refused is read anew once


@pytest.mark.parametrize("note", SEEN)
def test_a_recorded_workload(note: str, tmp_path: Path) -> None:
    """How far the rollout is: what `kubectl rollout status` would say."""
    ask, (generation, desired, done, words) = SEEN[note]
    exchange = recorded()[note]
    with KubeReplay(exchange) as server, closing(api(tmp_path, server.url, exchange.token)) as client:
        found = ask(client)
        seen = progress(found)
        assert [] == server.surprises
    assert (generation, desired, done, "") == (found.metadata.generation, seen.desired, seen.done, seen.stuck)
    assert words in seen.words
    assert "" == obstacle(found)
    assert (STAMP if generation > 1 else "") == mark_of(found, RESTARTED_AT)


@pytest.mark.parametrize("note", REVIEWED)
def test_a_recorded_review(note: str, tmp_path: Path) -> None:
    """The question as it was recorded, and its answer."""
    exchange = recorded()[note]
    with KubeReplay(exchange) as server, closing(api(tmp_path, server.url, exchange.token)) as client:
        assert REVIEWED[note] is allowed(client)
        assert [] == server.surprises


def test_the_double_refuses_as_the_real_one_does() -> None:
    """Word for word, so that what the suite proves of the double holds."""
    with KubeDouble() as double:
        double.tokens = {ADMIN: "admin", "rotator-token": "rotator"}
        for note in ("no credentials", "a token that is not known", "forbidden: no role bound yet", "not found"):
            if note == "not found":
                double.admins.add("rotator")
            found = recorded()[note]
            asked = Asked(method=found.method, path=found.path, token=found.token, content_type=None, body=None)
            assert (found.status, found.answer) == double.answer(asked), note


def test_the_real_labels_are_shared_by_three_workloads() -> None:
    """Why pods are told apart by their owners: the recorded Deployment, StatefulSet and DaemonSet select the same."""
    notes = ("deployment before the restart", "status of statefulsets/ingest", "status of daemonsets/edge")
    assert [{"app": "dash"}] * 3 == [recorded()[note].answer["spec"]["selector"]["matchLabels"] for note in notes]


def test_a_consumer_asks_for_the_recorded_right(tmp_path: Path) -> None:
    """`preflight` stops at the refused review, and prints the Role."""
    exchange = recorded()["may I patch? no role bound yet"]
    with KubeReplay(exchange, body=False) as server:
        cluster = Cluster(kubeconfig(tmp_path / "kubeconfig", server.url, {"token": exchange.token}))
        consumer = KubernetesConsumer(
            "dash",
            namespace="iot",
            workload=("deployment", "dash"),
            cluster=cluster,
            timeout=timedelta(seconds=1),
            clock=SystemClock(),
        )
        with closing(cluster), pytest.raises(Permanent, match='"kind": "Role"') as error:
            consumer.preflight()
        assert Reason.CONSUMER_FORBIDDEN is error.value.reason
        assert [] == server.surprises
        assert 3 == server.times  # get, patch, list pods
