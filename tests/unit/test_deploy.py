"""What can be said of deploy/, Dockerfile and docs/ without starting anything.

`python tests/unit/test_deploy.py` prints the text that docs/reasons.md must hold.
"""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rotator.model import KeyState
from rotator.reasons import ADVICE, NEEDS_A_PERSON, Reason

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rotator.rules.yml"
METRICS = (ROOT / "docs" / "metrics.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DAEMON_STOPS_WITHIN = 60 + 30  # seconds: shutdown_grace and an issue call's deadline

# The contract: the names that users' dashboards hang on.
CONTRACT = {
    "rotator_key_expiration_timestamp_seconds": "key provider",
    "rotator_key_issued_timestamp_seconds": "key provider",
    "rotator_key_rotate_at_timestamp_seconds": "key provider",
    "rotator_key_last_success_timestamp_seconds": "key provider",
    "rotator_key_consecutive_failures": "key provider",
    "rotator_key_state": "key state",
    "rotator_key_gap_started_timestamp_seconds": "key",
    "rotator_keys": "provider state",
    "rotator_key_consumer_info": "key consumer",
    "rotator_config_last_reload_successful": "",
    "rotator_clock_skew_seconds": "peer",
    "rotator_rotations_total": "provider result",
    "rotator_rotation_steps_total": "provider step result reason",
    "rotator_rotation_step_duration_seconds": "provider step",
    "rotator_credential_gap_seconds": "provider",
    "rotator_consumer_restarts_total": "consumer kind result",
    "rotator_consumer_version_lag": "key consumer",
    "rotator_provider_requests_total": "provider operation code",
    "rotator_vault_requests_total": "operation code",
    "rotator_vault_token_expiration_timestamp_seconds": "",
    "rotator_provider_credential_expiration_timestamp_seconds": "provider credential",
    "rotator_provider_quota_used": "provider quota",
    "rotator_provider_quota_limit": "provider quota",
    "rotator_journal_last_write_successful": "",
    "rotator_sealed_secrets": "",
    "rotator_sealed_secret_oldest_timestamp_seconds": "",
    "rotator_drift_detected": "key",
    "rotator_scheduler_last_tick_timestamp_seconds": "",
    "rotator_scheduler_lag_seconds": "",
    "rotator_build_info": "version",
}


def reasons_page() -> str:
    """docs/reasons.md, made from rotator/reasons.py."""
    rows = "\n".join(
        f'| <a id="{reason}"></a>`{reason}` | {ADVICE[reason]} | {"yes" if reason in NEEDS_A_PERSON else ""} |'
        for reason in Reason
    )
    return f"""# Reasons

Why a key is due, is not rotated now, or failed. The name is the `reason` label of the metrics, the `reason` field of
the log and the word in `rotator status`.

This page is made from `rotator/reasons.py`: `.venv/bin/python tests/unit/test_deploy.py > docs/reasons.md`.

| reason | what to do next | needs a person |
| --- | --- | --- |
{rows}
"""


def objects(name: str) -> list[dict[str, Any]]:
    """The Kubernetes objects of one file."""
    return list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / name).read_text()))


def kube(kind: str) -> dict[str, Any]:
    """The one object of a kind in rotator.yaml."""
    (found,) = (item for item in objects("rotator.yaml") if item["kind"] == kind)
    return found


def pod() -> dict[str, Any]:
    """The Deployment's pod."""
    spec: dict[str, Any] = kube("Deployment")["spec"]["template"]["spec"]
    return spec


def rules() -> list[dict[str, Any]]:
    """All rules, recording and alerting."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def instructions(keyword: str) -> list[str]:
    """The arguments of a Dockerfile instruction, lines that go on joined."""
    joined = re.sub(r"\\\n", " ", DOCKERFILE)
    return re.findall(rf"^{keyword} (.+)$", joined, re.MULTILINE)


def test_reasons_page_is_the_table_in_the_code() -> None:
    """docs/reasons.md lists every reason with its advice, as the code has them."""
    assert reasons_page() == (ROOT / "docs" / "reasons.md").read_text()


def test_metrics_page_has_the_contract() -> None:
    """docs/metrics.md describes every metric of the contract with its labels, and no other."""
    rows = re.findall(r"^\| `(\w+)` \| (gauge|counter|histogram) \|([^|]*)\|", METRICS, re.MULTILINE)

    assert {name: labels.replace("`", "").strip() for name, _, labels in rows} == CONTRACT


def test_metrics_page_names_every_state() -> None:
    """The states that `rotator_key_state` can show stand beside it."""
    (row,) = re.findall(r"^\| `rotator_key_state` .*$", METRICS, re.MULTILINE)

    assert all(re.search(rf"\b{state}\b", row) for state in KeyState)


def test_rules_use_only_metrics_of_the_contract() -> None:
    """No rule reads a metric or a reason that the daemon does not have."""
    for rule in rules():
        text = re.sub(r"\bkey:rotator_\w+:ratio\b", "", rule["expr"])
        assert set(re.findall(r"\brotator_\w+", text)) <= set(CONTRACT), rule
        assert set(re.findall(r'reason="(\w+)"', text)) <= set(Reason), rule
        assert set(re.findall(r'state="(\w+)"', text)) <= set(KeyState), rule


def test_every_alert_says_what_to_do() -> None:
    """Each alert has a severity, a summary, a next step, and a runbook heading that exists."""
    headings = {line.removeprefix("### ").lower() for line in METRICS.splitlines() if line.startswith("### ")}
    alerts = [rule for rule in rules() if "alert" in rule]

    for alert in alerts:
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}, alert
        assert alert["annotations"]["summary"].endswith("."), alert
        assert "Next: " in alert["annotations"]["description"], alert
        assert f"docs/metrics.md#{alert['alert'].lower()}" == alert["annotations"]["runbook"]
    assert headings == {alert["alert"].lower() for alert in alerts}


def test_every_alert_is_tried_both_ways() -> None:
    """The promtool tests have, for each alert, a moment when it fires and one when it is silent."""
    tried: set[tuple[str, bool]] = set()
    for file in RULES.parent.glob("*.test.yml"):
        for case in yaml.safe_load(file.read_text())["tests"]:
            tried |= {(check["alertname"], bool(check["exp_alerts"])) for check in case["alert_rule_test"]}
    alerts = [rule["alert"] for rule in rules() if "alert" in rule]

    assert tried == {(alert, fires) for alert in alerts for fires in (True, False)}


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("ServiceAccount", "v1"),
        ("Role", "rbac.authorization.k8s.io/v1"),
        ("RoleBinding", "rbac.authorization.k8s.io/v1"),
        ("ConfigMap", "v1"),
        ("PersistentVolumeClaim", "v1"),
        ("Deployment", "apps/v1"),
        ("Service", "v1"),
    ],
)
def test_kubernetes_objects(kind: str, version: str) -> None:
    """Each object is there once, in its current API, under our label and with a name."""
    found = kube(kind)

    assert version == found["apiVersion"]
    assert found["metadata"]["labels"] == {"app.kubernetes.io/name": "rotator"}
    assert found["metadata"]["name"].startswith("rotator")


def test_kubernetes_probes_and_names_meet() -> None:
    """Probes ask the paths of the contract at the port of the configuration; selectors and volumes find their ends."""
    (container,) = pod()["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    listen = yaml.safe_load(kube("ConfigMap")["data"]["rotator.yaml"])["http"]["listen"]
    labels = kube("Deployment")["spec"]["template"]["metadata"]["labels"]
    (monitor,) = objects("servicemonitor.yaml")

    assert probes == {
        "startup": {"path": "/livez", "port": "http"},
        "liveness": {"path": "/livez", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
    }
    assert listen == f"0.0.0.0:{container['ports'][0]['containerPort']}"
    assert labels == kube("Service")["spec"]["selector"] == monitor["spec"]["selector"]["matchLabels"]
    assert monitor["spec"]["endpoints"][0]["port"] == kube("Service")["spec"]["ports"][0]["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod()["volumes"]}
    assert kube("RoleBinding")["subjects"][0]["name"] == pod()["serviceAccountName"]
    assert kube("RoleBinding")["roleRef"]["name"] == kube("Role")["metadata"]["name"]


def test_kubernetes_keeps_one_daemon_a_journal() -> None:
    """One replica, the old one ended before the new one starts, with time to finish; its state on a volume."""
    spec = kube("Deployment")["spec"]
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    (container,) = pod()["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}

    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}
    assert pod()["terminationGracePeriodSeconds"] > DAEMON_STOPS_WITHIN
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] == kube("PersistentVolumeClaim")["metadata"]["name"]
    assert mounts["state"] == container["workingDir"]


def test_kubernetes_pod_is_closed() -> None:
    """Not root, nothing to write but its volumes, no capabilities, secret files that others can't read."""
    (container,) = pod()["containers"]
    user = pod()["securityContext"]
    (secret,) = (volume["secret"] for volume in pod()["volumes"] if "secret" in volume)

    assert (user["runAsNonRoot"], user["runAsUser"], user["fsGroup"]) == (True, 10001, 10001)
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert secret["defaultMode"] == 0o400
    consumers = yaml.safe_load(kube("ConfigMap")["data"]["rotator.yaml"])["consumers"].values()
    assert kube("ServiceAccount")["automountServiceAccountToken"] is False
    assert pod()["automountServiceAccountToken"] is any(each["kind"] == "kubernetes" for each in consumers)


def test_image_copies_only_what_is_there_and_let_in() -> None:
    """Each COPY source exists in the checkout, and .dockerignore lets it into the build."""
    sources = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    let_in = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)

    assert all((ROOT / source).exists() for source in sources)
    assert {source.rstrip("/") for source in sources} == set(let_in)


def test_image_runs_the_daemon_without_root() -> None:
    """The base is an argument; user, port, signal, entry point and command are what deploy/ relies on."""
    bases = instructions("FROM")
    (container,) = pod()["containers"]

    assert instructions("ARG") == ["BASE_IMAGE=python:3.11-slim-bookworm"]
    assert [base.split()[0] for base in bases] == ["${BASE_IMAGE}"] * 2
    assert instructions("USER") == ["10001:10001"]
    assert instructions("EXPOSE") == ["9109"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert yaml.safe_load(instructions("ENTRYPOINT")[0]) == ["rotator"]
    assert yaml.safe_load(instructions("CMD")[0]) == container["args"]
    assert instructions("WORKDIR")[-1] == container["workingDir"]


@pytest.mark.parametrize("name", ["runtime.txt", "dev.txt"])
def test_image_installs_by_hash_only(name: str) -> None:
    """Every requirement is one exact version with sha256 hashes, and nothing names an address."""
    text = re.sub(r" \\\n\s+", " ", (ROOT / "requirements" / name).read_text())
    wanted = re.compile(r"[a-z0-9._-]+==\S+(?: ; .+?)?(?: --hash=sha256:[0-9a-f]{64})+")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]

    assert [line for line in lines if not wanted.fullmatch(line)] == []
    assert len(lines) > 10
    assert all("--require-hashes" in line for line in re.findall(r"pip install [^&]*-r [^&]*", instructions("RUN")[0]))


if __name__ == "__main__":
    sys.stdout.write(reasons_page())
