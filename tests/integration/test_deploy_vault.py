"""deploy/vault: the set-up scripts and the two policies, run for real on OpenBao (or ROTATOR_TEST_VAULT_BIN)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.broker_fixture import certificates
from integration.token_review import CLUSTER, REVIEWER, Account, Reviewer
from integration.vault_scripts import BINARY, TOKEN, Api, api, approle, done, kubernetes, put, run, server
from rotator.sandbox.vault import VaultServer

INGEST = {"CONSUMER": "ingest", "CONSUMER_PATH": "read"}


@pytest.fixture(scope="module")
def vault() -> Iterator[VaultServer]:
    """A dev server of its own."""
    with server() as started:
        yield started


@pytest.fixture
def root(vault: VaultServer) -> Iterator[Api]:
    """The server's API with the root token."""
    with api(vault) as client:
        yield client


@pytest.fixture(scope="module")
def daemon(vault: VaultServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The API as the daemon sees it, logged in once for many requests."""
    folder = tmp_path_factory.mktemp("daemon")
    done(run(vault, "setup-approle.sh", folder))
    with api(vault) as client:
        assert client.post("sys/mounts/beside", json={"type": "kv", "options": {"version": "2"}}).is_success
        assert client.post("sys/mounts/transit", json={"type": "transit"}).is_success
    with approle(vault, folder) as client:
        yield client


@pytest.fixture(scope="module")
def consumer(vault: VaultServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The API as the consumer `ingest` sees it."""
    folder = tmp_path_factory.mktemp("consumer")
    done(run(vault, "setup-approle.sh", folder, settings=INGEST))
    with approle(vault, folder, "ingest") as client:
        yield client


# --- the policies


def test_daemon_may_do_its_work(daemon: Api, root: Api) -> None:
    """Write by cas, read, look at itself and renew; the metadata and undeleting, which are optional, as well."""
    assert [put(daemon, "secret/data/mqtt/work", cas) for cas in (0, 0, 1)] == [200, 400, 200]
    assert daemon.get("secret/data/mqtt/work").json()["data"]["metadata"]["version"] == 2
    assert daemon.get("secret/metadata/mqtt/work").json()["data"]["current_version"] == 2
    marked = {"custom_metadata": {"key": "work"}, "delete_version_after": "0s"}
    assert daemon.post("secret/metadata/mqtt/work", json=marked).status_code == 204
    assert root.delete("secret/data/mqtt/work").status_code == 204
    assert daemon.post("secret/undelete/mqtt/work", json={"versions": [2]}).status_code == 204
    assert daemon.get("secret/data/mqtt/work").json()["data"]["data"] == {"password": "made-up"}
    assert daemon.get("secret/config").json()["data"]["max_versions"] == 0
    wanted = {"paths": ["secret/data/mqtt/work", "secret/metadata/mqtt/work"]}
    granted = daemon.post("sys/capabilities-self", json=wanted).json()["data"]
    assert [sorted(granted[path]) for path in wanted["paths"]] == [["create", "read", "update"], ["read", "update"]]
    itself = daemon.get("auth/token/lookup-self").json()["data"]
    assert (itself["policies"], itself["period"], itself["renewable"]) == (["rotator"], 3600, True)
    assert daemon.post("auth/token/renew-self").json()["auth"]["lease_duration"] == 3600


def test_engine_is_seen_without_a_line_of_its_own(daemon: Api) -> None:
    """The policy has nothing for sys/internal/ui/mounts, and the engine's version is shown all the same."""
    answers = [daemon.get(f"sys/internal/ui/mounts/{path}") for path in ("secret", "secret/mqtt/work")]

    assert [answer.json()["data"]["options"] for answer in answers] == [{"version": "2"}] * 2
    assert daemon.get("sys/internal/ui/mounts/beside").status_code == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "secret/data/other/x"),
        ("POST", "secret/data/other/x"),
        ("POST", "secret/data/mqtt"),
        ("DELETE", "secret/data/mqtt/x"),
        ("PATCH", "secret/data/mqtt/x"),
        ("POST", "secret/delete/mqtt/x"),
        ("POST", "secret/destroy/mqtt/x"),
        ("POST", "secret/undelete/other/x"),
        ("LIST", "secret/metadata/mqtt"),
        ("LIST", "secret/metadata/mqtt/x"),
        ("DELETE", "secret/metadata/mqtt/x"),
        ("POST", "secret/metadata/mqtt/never-written"),
        ("GET", "secret/metadata/other/x"),
        ("POST", "secret/config"),
        ("GET", "beside/data/mqtt/x"),
        ("POST", "beside/data/mqtt/x"),
        ("GET", "beside/config"),
        ("POST", "transit/datakey/plaintext/rotator"),
        ("GET", "sys/mounts"),
        ("GET", "sys/policies/acl/rotator"),
        ("POST", "auth/token/create"),
        ("POST", "auth/approle/role/rotator/secret-id"),
        ("GET", "cubbyhole/x"),
    ],
)
def test_daemon_may_do_nothing_else(daemon: Api, method: str, path: str) -> None:
    """Everything outside its keys' paths, and everything that deletes, is refused."""
    body = {"data": {"password": "made-up"}} if method in {"POST", "PATCH"} else None
    kind = {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else None

    assert daemon.request(method, path, json=body, headers=kind).status_code == 403


def test_consumer_may_read_its_secret_and_end_its_login(vault: VaultServer, root: Api, tmp_path: Path) -> None:
    """The role's policy allows the one path, and what an agent and an operator do with their own tokens."""
    assert root.post("secret/data/mqtt/read", json={"data": {"password": "made-up"}}).status_code == 200
    done(run(vault, "setup-approle.sh", tmp_path, settings=INGEST))

    with approle(vault, tmp_path, "ingest") as client:
        assert client.get("secret/data/mqtt/read").json()["data"]["data"] == {"password": "made-up"}
        assert client.get("auth/token/lookup-self").json()["data"]["policies"] == ["rotator-consumer-ingest"]
        assert client.post("auth/token/renew-self").status_code == 200
        assert client.post("auth/token/revoke-self").status_code == 204
        assert client.get("secret/data/mqtt/read").status_code == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "secret/data/mqtt/read"),
        ("DELETE", "secret/data/mqtt/read"),
        ("GET", "secret/metadata/mqtt/read"),
        ("LIST", "secret/metadata/mqtt"),
        ("GET", "secret/data/mqtt/other"),
        ("GET", "secret/data/mqtt/read/below"),
        ("POST", "secret/undelete/mqtt/read"),
        ("POST", "sys/capabilities-self"),
        ("POST", "auth/token/create"),
    ],
)
def test_consumer_may_do_nothing_else(consumer: Api, method: str, path: str) -> None:
    """It changes nothing, and sees no other consumer's secret."""
    body = {"data": {"password": "made-up"}} if method == "POST" else None

    assert consumer.request(method, path, json=body).status_code == 403


# --- AppRole


def test_script_works_with_other_names_and_the_vault_client(vault: VaultServer, root: Api, tmp_path: Path) -> None:
    """MOUNT, PREFIX, ROLE and APPROLE reach the policies; VAULT_ADDR and VAULT_TOKEN serve as well."""
    assert root.post("sys/mounts/team/kv", json={"type": "kv", "options": {"version": "2"}}).is_success
    client = tmp_path / "vault"
    client.symlink_to(BINARY)
    names = {"MOUNT": "team/kv", "PREFIX": "iot/keys", "ROLE": "keeper", "APPROLE": "machines"} | INGEST
    address = {"VAULT_CLI": str(client), "VAULT_ADDR": vault.url, "VAULT_TOKEN": vault.root_token}

    done(run(vault, "setup-approle.sh", tmp_path, settings=address | names))

    with approle(vault, tmp_path, mount="machines") as daemon:
        assert put(daemon, "team/kv/data/iot/keys/read", cas=0) == 200
        for path in ("metadata/iot/keys/read", "config"):
            assert daemon.get(f"team/kv/{path}").status_code == 200
        assert daemon.post("team/kv/undelete/iot/keys/read", json={"versions": [1]}).status_code == 204
        assert put(daemon, "secret/data/mqtt/x", cas=0) == 403
    with approle(vault, tmp_path, "ingest", "machines") as consumer:
        assert consumer.get("team/kv/data/iot/keys/read").status_code == 200
        assert consumer.get("auth/token/lookup-self").json()["data"]["policies"] == ["keeper-consumer-ingest"]


def test_script_works_in_a_namespace(vault: VaultServer, root: Api, tmp_path: Path) -> None:
    """With the namespace in the environment, engine, policy and role are those in it, and the text names it."""
    if root.post("sys/namespaces/department").status_code == 404:
        pytest.skip("this server has no namespaces")
    with api(vault, namespace="department") as inside:
        assert inside.post("sys/mounts/secret", json={"type": "kv", "options": {"version": "2"}}).is_success

    text = done(run(vault, "setup-approle.sh", tmp_path, settings={"VAULT_NAMESPACE": "department"}))

    assert "\n  namespace: department\n" in text
    with approle(vault, tmp_path, namespace="department") as daemon:
        assert put(daemon, "secret/data/mqtt/x", cas=0) == 200
        daemon.headers["X-Vault-Namespace"] = ""
        assert put(daemon, "secret/data/mqtt/x", cas=0) == 403


def test_secrets_are_in_their_files_only_and_are_kept(vault: VaultServer, tmp_path: Path) -> None:
    """All files are 0600, the output holds none of them, and a second run keeps the secret ids."""
    first = run(vault, "setup-approle.sh", tmp_path, settings=INGEST)
    names = [f"{owner}-{kind}-id" for owner in ("vault", "ingest") for kind in ("role", "secret")]
    ids = {name: (tmp_path / name).read_text() for name in names}
    second = run(vault, "setup-approle.sh", tmp_path, settings=INGEST)

    assert sorted(names) == sorted(os.listdir(tmp_path))
    assert ids == {name: (tmp_path / name).read_text() for name in names}
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names] == [0o600] * 4
    assert f"kept {tmp_path}/vault-secret-id" in second.stdout
    assert f"kept {tmp_path}/ingest-secret-id" in second.stdout
    for output in (first.stdout, first.stderr, second.stdout, second.stderr):
        assert not any(text in output for text in (*ids.values(), vault.root_token))


def test_secret_id_may_come_wrapped(vault: VaultServer, root: Api, tmp_path: Path) -> None:
    """With WRAP_TTL the file holds a token that gives the secret id once, made at the role's own path."""
    text = done(run(vault, "setup-approle.sh", tmp_path, settings={"WRAP_TTL": "7m"}))
    wrapping = (tmp_path / "vault-wrapped-secret-id").read_text()

    found = root.post("sys/wrapping/lookup", json={"token": wrapping}).json()["data"]
    with api(vault, wrapping) as once:
        unwrapped = [once.post("sys/wrapping/unwrap") for _ in range(2)]

    assert (found["creation_path"], found["creation_ttl"]) == ("auth/approle/role/rotator/secret-id", 420)
    assert [answer.status_code for answer in unwrapped] == [200, 400]
    (tmp_path / "vault-secret-id").write_text(unwrapped[0].json()["data"]["secret_id"])
    with approle(vault, tmp_path) as daemon:
        assert daemon.get("auth/token/lookup-self").status_code == 200
    assert "secret_id: {file: " + f"{tmp_path}/vault-wrapped-secret-id}}\n    wrapped: true" in text
    assert wrapping not in text


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({TOKEN: "wrong"}, "can't read the engine at secret/"),
        ({"MOUNT": "absent"}, "can't read the engine at absent/"),
        ({"MOUNT": "old"}, "not KV version 2"),
        ({"PREFIX": 'mqtt"'}, "may hold letters"),
        ({"WRAP_TTL": "7m; true"}, "may hold letters"),
        ({"CONSUMER": "ingest"}, "belong together"),
        ({"CONSUMER_PATH": "building-a"}, "belong together"),
    ],
)
def test_script_says_what_is_wrong(
    vault: VaultServer, root: Api, tmp_path: Path, settings: dict[str, str], complaint: str
) -> None:
    """A wrong token, a missing or old engine, a hostile name, half a consumer: status 1, a clear word, no file left."""
    root.post("sys/mounts/old", json={"type": "kv", "options": {"version": "1"}})

    finished = run(vault, "setup-approle.sh", tmp_path, settings=settings)

    assert finished.returncode == 1
    assert complaint in finished.stderr
    assert os.listdir(tmp_path) == []


SPY = """#!/bin/sh
# The client, with its arguments noted.
printf '%s\\n' "$*" >> {log}
exec {client} "$@"
"""


def test_no_secret_stands_in_an_argument_list(
    vault: VaultServer, cluster: tuple[Reviewer, dict[str, str]], tmp_path: Path
) -> None:
    """What the scripts call the client with holds no token, no secret id and no reviewer's token."""
    log, spy, folder = tmp_path / "arguments", tmp_path / "spy", tmp_path / "made"
    folder.mkdir()
    spy.write_text(SPY.format(log=log, client=BINARY))
    spy.chmod(0o700)
    settings = cluster[1] | INGEST | {"VAULT_CLI": str(spy)}

    done(run(vault, "setup-kubernetes.sh", settings=settings))
    done(run(vault, "setup-approle.sh", folder, settings=settings))
    done(run(vault, "setup-approle.sh", folder, settings=settings | {"WRAP_TTL": "1m"}))

    noted = log.read_text()
    assert noted.count("token_policies=rotator ") == 3  # each run of each script went by the spy
    secrets = [file.read_text() for file in folder.glob("*-secret-id")]
    assert len(secrets) == 3
    assert not any(text in noted for text in (*secrets, REVIEWER, vault.root_token))


# --- Kubernetes


@pytest.fixture(scope="module")
def accounts() -> dict[str, Account]:
    """The service accounts of a made-up cluster, by name."""
    return {name: Account(namespace="iot", name=name) for name in ("rotator", "ingest", "stranger")}


@pytest.fixture
def cluster(accounts: dict[str, Account], tmp_path: Path) -> Iterator[tuple[Reviewer, dict[str, str]]]:
    """A cluster's API, and the settings by which the script tells Vault of it from outside."""
    (tmp_path / "reviewer").write_text(REVIEWER)
    with Reviewer(list(accounts.values())) as reviewer:
        settings = {
            "KUBE_HOST": reviewer.url,
            "KUBE_CA_FILE": str(certificates(tmp_path)),
            "REVIEWER_JWT_FILE": str(tmp_path / "reviewer"),
            "AUDIENCE": "vault",
        }
        yield reviewer, settings


def test_service_accounts_log_in(
    vault: VaultServer,
    root: Api,
    cluster: tuple[Reviewer, dict[str, str]],
    accounts: dict[str, Account],
) -> None:
    """The daemon's account may write, the consumer's may read, and Vault asks the cluster as the reviewer."""
    reviewer, settings = cluster
    text = done(run(vault, "setup-kubernetes.sh", settings=settings | INGEST))
    assert root.post("secret/data/mqtt/read", json={"data": {"password": "made-up"}}).status_code == 200

    with kubernetes(vault, "rotator", accounts["rotator"].jwt) as daemon:
        assert put(daemon, "secret/data/mqtt/pod", cas=0) == 200
        assert put(daemon, "secret/data/other/pod", cas=0) == 403
        itself = daemon.get("auth/token/lookup-self").json()["data"]
        assert (itself["policies"], itself["period"]) == (["rotator"], 3600)
    with kubernetes(vault, "rotator-consumer-ingest", accounts["ingest"].jwt) as consumer:
        assert consumer.get("secret/data/mqtt/read").status_code == 200
        assert consumer.get("secret/data/mqtt/pod").status_code == 403
    assert set(reviewer.asked_by) == {f"Bearer {REVIEWER}"}
    assert "method: kubernetes\n    mount: kubernetes\n    role: rotator" in text
    assert REVIEWER not in text


@pytest.mark.parametrize(
    ("role", "account"),
    [
        ("rotator", Account(namespace="iot", name="ingest")),
        ("rotator", Account(namespace="elsewhere", name="rotator")),
        ("rotator", Account(namespace="iot", name="rotator", audience="somebody-else")),
        ("rotator", Account(namespace="iot", name="rotator", audience=CLUSTER)),
        ("rotator-consumer-ingest", Account(namespace="iot", name="rotator")),
        ("rotator", Account(namespace="iot", name="unknown-to-the-cluster")),
    ],
)
def test_other_accounts_do_not(
    vault: VaultServer, cluster: tuple[Reviewer, dict[str, str]], role: str, account: Account
) -> None:
    """A role is one account's, in one namespace, with a token for Vault."""
    done(run(vault, "setup-kubernetes.sh", settings=cluster[1] | INGEST))

    with api(vault) as client:
        answer = client.post("auth/kubernetes/login", json={"role": role, "jwt": account.jwt})

    assert answer.status_code in {400, 403}, answer.text


def test_any_token_does_where_no_audience_is_named(
    vault: VaultServer, cluster: tuple[Reviewer, dict[str, str]]
) -> None:
    """Without AUDIENCE the token that every pod has mounted logs in: what the script's text warns of."""
    done(run(vault, "setup-kubernetes.sh", settings=cluster[1] | {"AUDIENCE": "", "ROLE": "mounted"}))

    with kubernetes(vault, "mounted", Account(namespace="iot", name="rotator", audience=CLUSTER).jwt) as daemon:
        assert daemon.get("auth/token/lookup-self").json()["data"]["policies"] == ["mounted"]


def test_kubernetes_script_leaves_a_configuration_alone(
    vault: VaultServer, root: Api, cluster: tuple[Reviewer, dict[str, str]], accounts: dict[str, Account]
) -> None:
    """Run again without KUBE_HOST, for another consumer: the auth method's configuration is the one that was there."""
    done(run(vault, "setup-kubernetes.sh", settings=cluster[1]))
    before = root.get("auth/kubernetes/config").json()["data"]
    other = {"CONSUMER": "other", "CONSUMER_PATH": "read", "CONSUMER_SERVICE_ACCOUNT": "stranger"}

    done(run(vault, "setup-kubernetes.sh", settings=other))

    assert before == root.get("auth/kubernetes/config").json()["data"]
    assert before["kubernetes_host"] == cluster[0].url
    with kubernetes(vault, "rotator-consumer-other", accounts["stranger"].jwt) as consumer:
        assert consumer.get("auth/token/lookup-self").json()["data"]["policies"] == ["rotator-consumer-other"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"KUBERNETES": "fresh"}, "has no configuration yet: set KUBE_HOST"),
        ({"MOUNT": "absent"}, "can't read the engine at absent/"),
        ({"KUBE_HOST": "https://127.0.0.1:1", "KUBE_CA_FILE": "/nonexistent/ca"}, "can't read /nonexistent/ca"),
        ({"SERVICE_ACCOUNT": "a b"}, "may hold letters"),
        ({"CONSUMER": "ingest"}, "belong together"),
    ],
)
def test_kubernetes_script_says_what_is_wrong(vault: VaultServer, settings: dict[str, str], complaint: str) -> None:
    """A method that was never configured, a missing engine or file, a hostile name: status 1 and a clear word."""
    finished = run(vault, "setup-kubernetes.sh", settings=settings)

    assert finished.returncode == 1
    assert complaint in finished.stderr
