"""The mapping is complete (5): what lightkube, httpx2 and msgspec raise under the Kubernetes consumers.

See test_error_mapping.py. A restart may be made again, so nothing here is an unknown outcome.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from library_exceptions import classes, made, os_errors, outcome, value_errors
from rotator.clock import SystemClock
from rotator.consumers.kubernetes import KubernetesConsumer
from rotator.consumers.kubernetes_access import Access, Rights
from rotator.consumers.kubernetes_cluster import Cluster
from rotator.errors import Permanent, Transient
from rotator.reasons import Reason

FAILED = (Transient, Reason.CONSUMER_RESTART_FAILED)
NEVER = (Permanent, Reason.CONSUMER_RESTART_FAILED)
KUBECONFIG = """
{contexts: [{name: a, context: {cluster: a, user: a}}], current-context: a,
 clusters: [{name: a, cluster: {server: "http://127.0.0.1:1"}}], users: [{name: a, user: {token: x}}]}
"""
NEVER_RAISED = {
    "httpx2.HTTPStatusError": "by its status: test_consumer_kubernetes_faults.py",
    "lightkube.core.exceptions.ApiError": "the same",
    "lightkube.core.exceptions.ConditionError": "of `wait`, which is not used",
    "lightkube.core.exceptions.ObjectDeleted": "the same",
    "lightkube.core.exceptions.NotReadyError": "of a list that is asked for its version; ours is not",
    "lightkube.core.exceptions.LoadResourceError": "of files with resources",
}
# Features of httpx2 that no call of lightkube's uses which we make.
NOT_OF_HTTP = (".websockets.", "CookieConflict", "SSE")


def raised() -> dict[str, type[Exception]]:
    """All that may come out of a call of lightkube's."""
    found = {**classes("lightkube"), **classes("httpx2"), **classes("msgspec")}
    return {
        name: each
        for name, each in {**found, **os_errors(), **value_errors()}.items()
        if name not in NEVER_RAISED and not any(word in name for word in NOT_OF_HTTP)
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """One that nobody answers for."""
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG)
    return Cluster(str(path))


def failing(error: Exception) -> Callable[..., Any]:
    """What stands in the library's place, and raises."""

    def fail(*_args: object, **_options: object) -> Any:
        raise error

    return fail


def test_what_is_left_out_is_still_there() -> None:
    """A class that a newer release dropped is taken out of the table."""
    assert NEVER_RAISED.keys() <= {*classes("lightkube"), *classes("httpx2")}


@pytest.mark.parametrize("name", sorted(raised()))
def test_whatever_a_call_raises_has_a_name(name: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """None comes out as itself, and none is lost."""
    error = made(raised()[name], "boom")
    monkeypatch.setattr("lightkube.Client.get", failing(error))
    hidden = "LocalProtocolError" in name
    call = cluster.api.workload
    assert FAILED == outcome(call, "dash", "deployment", "iot", "dash", raised=None if hidden else error, secrets=False)


def test_a_token_that_is_no_header_is_not_shown(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's error holds it whole, so not even the cause is kept."""
    import httpx2

    monkeypatch.setattr("lightkube.Client.get", failing(httpx2.LocalProtocolError("Illegal header b'Bearer hunter2'")))
    with pytest.raises(Transient) as error:
        cluster.api.workload("dash", "deployment", "iot", "dash")
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


@pytest.mark.parametrize("name", sorted({**os_errors(), **value_errors(), "yaml.YAMLError": yaml.YAMLError}))
def test_whatever_a_kubeconfig_raises_has_a_name(name: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the file is shown, so the cause is not kept."""
    every: dict[str, type[Exception]] = {**os_errors(), **value_errors(), "yaml.YAMLError": yaml.YAMLError}
    # what an operating system says of a file is shown
    error = made(every[name], "boom") if name in os_errors() else made(every[name])
    monkeypatch.setattr("lightkube.KubeConfig.from_file", failing(error))
    assert NEVER == outcome(cluster.api.workload, "dash", "deployment", "iot", "dash")


def test_the_library_is_imported_with_the_first_question() -> None:
    """A daemon without Kubernetes consumers pays nothing for it."""
    modules = ("kubernetes", "kubernetes_external_secrets", "kubernetes_cluster", "kubernetes_access")
    lines = [
        "import sys",
        *(f"import rotator.consumers.{each}" for each in modules),
        "rotator.consumers.kubernetes_cluster.Cluster('x')",
        "print(sorted({'lightkube', 'httpx2', 'msgspec'} & set(sys.modules)))",
        "rotator.consumers.kubernetes_cluster.Cluster('x').api",
        "print(sorted({'lightkube', 'httpx2', 'msgspec'} & set(sys.modules)))",
    ]
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert "[]\n['httpx2', 'lightkube', 'msgspec']\n" == ended.stdout


def test_the_role_in_deploy_is_enough_for_every_workload() -> None:
    """deploy/kubernetes/consumers-role.yaml gives each right that a consumer asks for."""
    path = Path(__file__).parents[3] / "deploy" / "kubernetes" / "consumers-role.yaml"
    role, binding = yaml.safe_load_all(path.read_text())
    given = {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    cluster = Cluster("x")
    consumer = KubernetesConsumer(
        "dash",
        namespace="iot",
        selector="app=dash",
        cluster=cluster,
        timeout=timedelta(seconds=1),
        clock=SystemClock(),
    )
    needed = {(each.verb, each.group, each.resource) for each in consumer._needed()}
    secrets = {(verb, "external-secrets.io", "externalsecrets") for verb in ("get", "patch")}
    assert needed | secrets == given
    assert role["metadata"]["name"] == binding["roleRef"]["name"]


def test_a_role_is_printed_as_yaml() -> None:
    """On one line; `kubectl apply -f -` takes it."""
    needed = [Access(verb=verb, group="apps", resource="deployments", name="dash") for verb in ("get", "patch")]
    rights = Rights(
        "dash", "rotator-dash", "iot", Cluster("x"), [*needed, Access(verb="list", group="", resource="pods")]
    )
    assert "\n" not in str(rights)
    assert {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "rotator-dash", "namespace": "iot"},
        "rules": [
            {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["dash"], "verbs": ["get", "patch"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        ],
    } == yaml.safe_load(str(rights))
