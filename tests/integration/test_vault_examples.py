"""deploy/vault/examples, really run: Vault Agent, the Python consumer at a real broker, and what the operator asks for.

The server is OpenBao, or what ROTATOR_TEST_VAULT_BIN names; its own `agent` runs the agent's example.
"""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.publish
import pytest
import yaml

from integration.broker_fixture import Broker, certificates, until
from integration.operator_schema import faults
from integration.token_review import REVIEWER, Account, Reviewer
from integration.vault_scripts import ADDRESS, BINARY, FOLDER, TOKEN, Api, api, done, kubernetes, run, server
from rotator.sandbox.processes import end, spawn, tail
from rotator.sandbox.vault import VaultServer

EXAMPLES = FOLDER / "examples"
SANDBOX = Path(__file__).parents[1] / "tools" / "systemd-sandbox"
README = (EXAMPLES / "README.md").read_text()
PATH = "mqtt/building-a"
FIRST = {"username": "building-a", "password": "made-up-first"}
SECOND = {"username": "building-a", "password": r'made-up "second" $HOME \n `id` #;'}
SETTINGS = {"CONSUMER": "ingest", "CONSUMER_PATH": "building-a"}


@pytest.fixture
def vault() -> Iterator[VaultServer]:
    """A dev server of the test's own, with the first secret."""
    with server() as started:
        started.write(PATH, FIRST, cas=0)
        yield started


@pytest.fixture
def etc(vault: VaultServer, tmp_path: Path) -> Path:
    """The consumer's folder, as the set-up script leaves it."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o700)
    done(run(vault, "setup-approle.sh", folder, settings=SETTINGS))
    return folder


@contextmanager
def child(argv: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with almost no environment, ended by its id."""
    process = spawn(argv, log, environment={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"} | environment)
    try:
        yield process
    finally:
        end(process)


# --- Vault Agent


def changed(text: str, *changes: tuple[str, str]) -> str:
    """The example with its place-holders exchanged; each must be there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture
def agent(vault: VaultServer, etc: Path, tmp_path: Path) -> Path:
    """The example at this server, looking every second; its command adds what it finds in the file to `restarts`."""
    command = tmp_path / "restart"
    command.write_text(f". {tmp_path}/run/mqtt.env\nprintf '%s\\n' \"$MQTT_PASSWORD\" >> {tmp_path}/restarts\n")
    text = changed(
        (EXAMPLES / "agent.hcl").read_text(),
        ("https://vault.example:8200", vault.url),
        ("/etc/ingest", str(etc)),
        ("/run/ingest", str(tmp_path / "run")),
        ('static_secret_render_interval = "1m"', 'static_secret_render_interval = "1s"'),
        ('["systemctl", "try-restart", "ingest.service"]', f'["/bin/sh", "{command}"]'),
    )
    (tmp_path / "agent.hcl").write_text(text)
    return tmp_path / "agent.hcl"


def rendered(folder: Path) -> dict[str, str]:
    """The variables of the file that the agent wrote, as a shell reads them; {} before it is there."""
    file = folder / "run" / "mqtt.env"
    if not file.exists():
        return {}
    shown = 'set -e; . "$1"; printf "%s\\0%s" "$MQTT_USERNAME" "$MQTT_PASSWORD"'
    done = subprocess.run(["/bin/sh", "-c", shown, "-", str(file)], capture_output=True, text=True, check=True)
    username, password = done.stdout.split("\0")
    return {"username": username, "password": password}


def restarts(folder: Path) -> list[str]:
    """The passwords that the command has found, in order."""
    file = folder / "restarts"
    return file.read_text().splitlines() if file.exists() else []


def test_agent_follows_a_new_version_and_restarts(vault: VaultServer, agent: Path) -> None:
    """The file is there with 0600; after a write by cas it holds the new secret, and the command ran on that."""
    folder, log = agent.parent, agent.parent / "agent.log"
    with child([BINARY, "agent", f"-config={agent}"], log) as process:
        until(lambda: rendered(folder) == FIRST, f"the first file: {tail(log)}", 20)
        assert stat.S_IMODE((folder / "run" / "mqtt.env").stat().st_mode) == 0o600
        until(lambda: restarts(folder) == [FIRST["password"]], "the first command", 10)

        vault.write(PATH, SECOND, cas=1)

        until(lambda: rendered(folder) == SECOND, f"the second file: {tail(log)}", 20)
        until(lambda: restarts(folder) == [FIRST["password"], SECOND["password"]], "the second command", 10)
        assert process.poll() is None
    assert not any(secret["password"] in log.read_text() for secret in (FIRST, SECOND))


def test_agent_leaves_the_file_when_the_secret_is_deleted(vault: VaultServer, agent: Path) -> None:
    """A deletion in Vault ends the agent, and takes nothing away from the consumer."""
    folder, log = agent.parent, agent.parent / "agent.log"
    retries = "vault {\n  retry {\n    num_retries = 1\n  }"
    agent.write_text(changed(agent.read_text(), ("vault {", retries)))
    with child([BINARY, "agent", f"-config={agent}"], log) as process:
        until(lambda: restarts(folder) == [FIRST["password"]], f"the first file: {tail(log)}", 20)
        with api(vault) as root:
            assert root.delete(f"secret/data/{PATH}").status_code == 204

        until(lambda: process.poll() is not None, "the agent's end", 30)

    assert process.returncode != 0
    assert rendered(folder) == FIRST


def test_agent_run_at_the_start_renders_and_ends(vault: VaultServer, agent: Path) -> None:
    """What the README's drop-in runs: without `exec`, each start writes the version of that moment and exits with 0."""
    folder = agent.parent
    text, cut = re.subn(r"\n  # Runs only when.*?\n  \}\n", "\n", agent.read_text(), flags=re.DOTALL)
    assert cut == 1
    agent.write_text(text)
    assert "vault agent -exit-after-auth -config=/etc/ingest/agent.hcl" in README

    for cas, secret in ((None, FIRST), (1, SECOND)):
        if cas is not None:
            vault.write(PATH, secret, cas=cas)
        with child([BINARY, "agent", "-exit-after-auth", f"-config={agent}"], folder / "agent.log") as process:
            assert process.wait(20) == 0, tail(folder / "agent.log")
        assert rendered(folder) == secret
    assert restarts(folder) == []


UNIT = """[Service]
Type=oneshot
ExecStart=/bin/sh -c 'printf "%%s\\n" "$MQTT_PASSWORD" >>seen'
WorkingDirectory={folder}
RemainAfterExit=yes
"""
DRIVE = """set -eu
cp -r units/* /etc/systemd/system/
mkdir -p /etc/ingest
cp -r etc/* agent.hcl /etc/ingest/
ln -sf {client} /usr/bin/vault
systemctl daemon-reload
systemctl start ingest
. ./second
systemctl restart ingest
"""


def test_drop_in_of_the_readme_starts_on_the_newest_version(vault: VaultServer, etc: Path, tmp_path: Path) -> None:
    """Under a real systemd: the first start has the first secret in its environment, a restart the second."""
    text, cut = re.subn(r"\n  # Runs only when.*?\n  \}\n", "\n", (EXAMPLES / "agent.hcl").read_text(), flags=re.DOTALL)
    assert cut == 1
    (tmp_path / "agent.hcl").write_text(changed(text, ("https://vault.example:8200", vault.url)))
    (drop_in,) = re.findall(r"```ini\n# /etc/systemd/system/(.*?)\n(.*?)```", README, re.DOTALL)
    for name, content in (("ingest.service", UNIT.format(folder=tmp_path)), drop_in):
        (tmp_path / "units" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "units" / name).write_text(content)
    # the secret goes in by a file, and by the server's own client
    (tmp_path / "second.json").write_text(json.dumps(SECOND))
    client = f"{ADDRESS}={vault.url} {TOKEN}={vault.root_token} {BINARY}"
    (tmp_path / "second").write_text(f"{client} kv put -cas=1 secret/{PATH} @second.json\n")

    finished = subprocess.run(
        [str(SANDBOX), "/bin/sh", "-c", DRIVE.format(client=BINARY)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert (tmp_path / "seen").read_text().splitlines() == [FIRST["password"], SECOND["password"]]


# --- Python


@contextmanager
def consumer(vault: VaultServer, etc: Path, broker: Broker) -> Iterator[Path]:
    """The Python example at this server and broker; its log."""
    log = etc.parent / "consumer.log"
    environment = {
        "VAULT_ADDR": vault.url,
        "CREDENTIALS_DIRECTORY": str(etc),
        "MQTT_HOST": "127.0.0.1",
        "MQTT_PORT": str(broker.port),
        "MQTT_TOPIC": "data/example/#",
        "MQTT_CLIENT_ID": "ingest-example",
    }
    with child([sys.executable, str(EXAMPLES / "consumer.py")], log, **environment) as process:
        until(lambda: said(log, "connected") == 1 or process.poll() is not None, "the first login", 20)
        yield log
        assert process.poll() is None, tail(log)
    assert not any(secret["password"] in log.read_text() for secret in (FIRST, SECOND))


def said(log: Path, words: str) -> int:
    """How often."""
    return log.read_text().count(words)


@pytest.fixture
def accepted(own_broker: Broker) -> Broker:
    """A broker that accepts the first secret."""
    own_broker.client(FIRST["username"], FIRST["password"])
    return own_broker


def test_consumer_reads_again_when_it_is_refused(vault: VaultServer, etc: Path, accepted: Broker) -> None:
    """*In place*: cut off and refused on the old secret, it comes back by itself once Vault has the new one."""
    with api(vault) as root:
        tokens = _tokens(root)
        with consumer(vault, etc, accepted) as log:
            accepted.control("setClientPassword", FIRST["username"], SECOND["password"])
            until(lambda: said(log, "refused: "), "a refusal", 15)
            assert said(log, "connected") == 1

            vault.write(PATH, SECOND, cas=1)

            until(lambda: said(log, "connected") == 2, f"the second login: {tail(log)}", 30)
            paho.mqtt.publish.single(
                "data/example/x",
                "made-up",
                qos=1,
                hostname="127.0.0.1",
                port=accepted.port,
                auth={"username": SECOND["username"], "password": SECOND["password"]},
            )
            until(lambda: said(log, "a message at data/example/x"), "its subscription", 10)
        assert tokens == _tokens(root)  # each of its logins was ended


def test_consumer_lives_while_vault_refuses_too(vault: VaultServer, etc: Path, accepted: Broker) -> None:
    """Refused by the broker and by Vault, it goes on asking, and comes back when Vault lets it read again."""
    with api(vault) as root, consumer(vault, etc, accepted) as log:
        assert root.delete("sys/policies/acl/rotator-consumer-ingest").status_code == 204
        accepted.control("setClientPassword", FIRST["username"], SECOND["password"])
        until(lambda: said(log, "Vault is away"), "Vault's refusal", 15)

        vault.write(PATH, SECOND, cas=1)
        done(run(vault, "setup-approle.sh", etc, settings=SETTINGS))

        until(lambda: said(log, "connected") == 2, f"the second login: {tail(log)}", 30)


def _tokens(root: Api) -> int:
    """How many tokens the server knows."""
    return len(root.request("LIST", "auth/token/accessors").json()["data"]["keys"])


# --- External Secrets Operator


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Account, dict[str, str]]]:
    """The service account of the example in a made-up cluster, and the settings that tell Vault of that cluster."""
    account = Account(namespace="iot", name="ingest")
    (tmp_path / "reviewer").write_text(REVIEWER)
    with Reviewer([account]) as reviewer:
        yield (
            account,
            {
                "KUBE_HOST": reviewer.url,
                "KUBE_CA_FILE": str(certificates(tmp_path)),
                "REVIEWER_JWT_FILE": str(tmp_path / "reviewer"),
                **SETTINGS,
                "KUBE_NAMESPACE": "iot",
                "AUDIENCE": "vault",
            },
        )


def manifests() -> dict[str, dict[str, Any]]:
    """The example's objects by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((EXAMPLES / "external-secrets.yaml").read_text())}


@pytest.mark.parametrize("kind", ["SecretStore", "ExternalSecret"])
def test_operator_would_take_the_objects(kind: str) -> None:
    """Every field is one of the published types, with a value that they allow, and none that is required is missing."""
    assert faults(manifests()[kind]) == []


@pytest.mark.parametrize(
    ("kind", "at", "value"),
    [
        ("SecretStore", ("provider", "vault", "server"), None),
        ("SecretStore", ("provider", "vault", "version"), "v3"),
        ("SecretStore", ("provider", "vault", "auth", "kubernetes", "path"), "kubernetes"),
        ("ExternalSecret", ("refreshInterval",), "a minute"),
        ("ExternalSecret", ("data", 0, "remoteRef", "key"), None),
        ("ExternalSecret", ("target", "deletionPolicy"), "Keep"),
    ],
)
def test_schema_finds_faults(kind: str, at: tuple[str | int, ...], value: object) -> None:
    """A missing, an unknown and a wrong field are each one fault: the check can fail."""
    manifest = manifests()[kind]
    place: Any = manifest["spec"]
    for step in at[:-1]:
        place = place[step]
    if value is None:
        del place[at[-1]]
    else:
        place[at[-1]] = value

    assert len(faults(manifest)) == 1


def test_objects_belong_together() -> None:
    """Store, account and namespace are those that the others name."""
    found = manifests()
    secret, store = found["ExternalSecret"], found["SecretStore"]
    account = store["spec"]["provider"]["vault"]["auth"]["kubernetes"]["serviceAccountRef"]["name"]

    assert {each["metadata"]["namespace"] for each in found.values()} == {"iot"}
    assert secret["spec"]["secretStoreRef"] == {"kind": "SecretStore", "name": store["metadata"]["name"]}
    assert found["ServiceAccount"]["metadata"]["name"] == account


def test_operator_reads_what_the_example_asks_for(vault: VaultServer, cluster: tuple[Account, dict[str, str]]) -> None:
    """Its requests, made from the example's own words: log in, read each property, look its token up, end it."""
    account, settings = cluster
    done(run(vault, "setup-kubernetes.sh", settings=settings))
    store = manifests()["SecretStore"]["spec"]["provider"]["vault"]
    auth = store["auth"]["kubernetes"]
    assert auth["serviceAccountRef"] == {"name": account.name, "audiences": [account.audience]}

    with kubernetes(vault, auth["role"], account.jwt, auth["mountPath"]) as client:
        held = {
            each["secretKey"]: client.get(f"{store['path']}/data/{each['remoteRef']['key']}").json()["data"]["data"][
                each["remoteRef"]["property"]
            ]
            for each in manifests()["ExternalSecret"]["spec"]["data"]
        }
        assert held == FIRST
        assert client.get("auth/token/lookup-self").json()["data"]["ttl"] > 60
        assert client.post("auth/token/revoke-self").status_code == 204
