"""`rotator check --online` as a person runs it, against the double: the missing Role is printed, and is enough."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.consumer_kube_double import ADMIN, KubeDouble, kubeconfig
from contract.consumer_kube_stage import KubeStage
from rotator.clock import SystemClock
from rotator.consumers.kubernetes_external_secrets import ExternalSecret
from rotator.errors import Permanent

DEPLOY = Path(__file__).parents[2] / "deploy" / "kubernetes"

# Nobody listens at port 1: the other checks fail at once, and are not what is looked at here.
CONFIG = """
state: {{url: "sqlite:///{folder}/rotator.db", seal: {{kind: file, path: "{folder}/seal.key"}}}}
vault: {{url: "http://127.0.0.1:1", auth: {{method: token, token: {{file: "{folder}/word"}}}}}}
providers:
  haltian-eu:
    kind: haltian
    url: http://127.0.0.1:1/v1/graphql
    organization: acme
    email: rotator@acme.example
    password: {{file: "{folder}/word"}}
consumers:
  dashboards: {{kind: kubernetes, namespace: {namespace}, {which}, kubeconfig: "{kubeconfig}"}}
keys:
  building-a:
    provider: haltian-eu
    id: c6f7b103-81df-4e73-8218-4f671056aee2
    vault: {{path: mqtt/building-a, fields: {{password: "{{secret}}"}}}}
    consumers: [dashboards]
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[KubeStage]:
    """A namespace with a Deployment that is up."""
    with KubeDouble() as double:
        config = kubeconfig(tmp_path / "kubeconfig", double.url, {"token": ADMIN})
        with closing(KubeStage(config, tmp_path, double)) as found:
            found.make("deployment", "dash")
            yield found


def checked(stage: KubeStage, config: str, which: str, *more: str) -> tuple[int, str]:
    """Exit code and output of `check --online`, of the consumer that is found by `which`."""
    file = stage.folder / "rotator.yaml"
    (stage.folder / "word").write_text("made-up")
    (stage.folder / "word").chmod(0o600)
    file.write_text(CONFIG.format(folder=stage.folder, namespace=stage.namespace, which=which, kubeconfig=config))
    done = subprocess.run(
        [sys.executable, "-m", "rotator", "check", "--online", "--config", str(file), *more],
        cwd=stage.folder,
        env={"PATH": os.environ["PATH"], "HOME": str(stage.folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout or done.stderr


def of_the_consumer(output: str) -> dict[str, Any]:
    """What `--json` says about it."""
    (entry,) = [each for each in json.loads(output)["checks"] if each["what"] == "consumer dashboards"]
    found: dict[str, Any] = entry
    return found


@pytest.mark.parametrize(
    ("which", "verbs"),
    [
        ("deployment: dash", ["get deployments.apps/dash", "patch deployments.apps/dash", "list pods"]),
        (
            "selector: app=dash",
            [f"{verb} {kind}s.apps" for kind in ("deployment", "daemonset") for verb in ("get", "list", "patch")],
        ),
    ],
    ids=["by name", "by selector"],
)
def test_the_role_is_printed_and_is_enough(stage: KubeStage, which: str, verbs: list[str]) -> None:
    """Each verb that is missing is named; the Role on the line, bound as it stands, lets the check pass."""
    config = stage.stranger()
    code, said = checked(stage, config, which)
    assert 1 == code
    (line,) = [line for line in said.splitlines() if line.startswith("no") and "consumer dashboards" in line]
    assert [] == [verb for verb in verbs if verb not in line]
    assert "deploy/systemd/ has the polkit rule; for Kubernetes bind the Role that the message holds" in line
    role = re.search(r"\{.*\}", line)
    assert role is not None

    stage.bind(yaml.safe_load(role.group()))

    _, after = checked(stage, config, which, "--json")
    assert {"ok": True, "reason": None} == {name: of_the_consumer(after)[name] for name in ("ok", "reason")}
    assert stage.double is not None
    assert [] == stage.double.requests("PATCH")  # nothing was restarted


@pytest.mark.parametrize("file", ["rotator.yaml", "consumers-role.yaml"])
def test_the_roles_of_deploy_are_enough(stage: KubeStage, file: str) -> None:
    """By name, by selector and for External Secrets; and none of them may read a Secret or delete anything."""
    (role,) = [each for each in yaml.safe_load_all((DEPLOY / file).read_text()) if each["kind"] == "Role"]
    assert {"get", "list", "patch"} == {verb for rule in role["rules"] for verb in rule["verbs"]}
    assert "secrets" not in {resource for rule in role["rules"] for resource in rule["resources"]}
    role["metadata"] |= {"namespace": stage.namespace}
    assert stage.double is not None
    where = ("externalsecrets", stage.namespace, "mqtt")
    with stage.double.lock:
        stage.double.state.create(where, {"metadata": {}, "spec": {"refreshInterval": "1h"}})
    config = stage.stranger()

    def look() -> None:
        stage.consumer(("deployment", "dash"), config=config).preflight()
        stage.consumer(selector="app=dash", config=config).preflight()
        ExternalSecret(stage.namespace, "mqtt", stage.cluster(config), SystemClock()).preflight()

    with pytest.raises(Permanent):
        look()
    stage.bind(role)
    look()


def test_the_role_for_a_delivery_is_printed(stage: KubeStage) -> None:
    """What External Secrets needs is asked for as well."""
    deliver = f"deployment: dash, deliver: {{external_secret: {{namespace: {stage.namespace}, name: mqtt}}}}"
    _, said = checked(stage, stage.stranger(), deliver)
    (line,) = [line for line in said.splitlines() if line.startswith("no") and "delivery" in line]
    assert "get externalsecrets.external-secrets.io/mqtt, patch externalsecrets.external-secrets.io/mqtt" in line
    assert '"kind": "Role"' in line


def test_a_login_that_is_refused(stage: KubeStage) -> None:
    """A token that the API server does not know is told by its reason."""
    config = kubeconfig(stage.folder / "unknown", stage.client.config.cluster.server, {"token": "unknown"})
    code, said = checked(stage, config, "deployment: dash", "--json")
    entry = of_the_consumer(said)
    assert (1, False, "consumer_forbidden") == (code, entry["ok"], entry["reason"])
    assert "does not accept this login" in entry["detail"]
