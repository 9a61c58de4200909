"""How the Kubernetes consumer logs in: over real TLS, with tokens, certificates and plugins, in a pod and outside."""

from __future__ import annotations

import base64
import datetime
import json
import ssl
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contract.consumer_kube_double import ADMIN, KubeDouble, kubeconfig
from integration.broker_fixture import certificates
from rotator.consumers import kubernetes_login
from rotator.consumers.kubernetes_cluster import Cluster
from rotator.errors import Permanent, RotatorError, Transient
from rotator.reasons import Reason

SECRET = "hunter2hunter2"
NEVER = (Permanent, Reason.CONSUMER_RESTART_FAILED)
FAILED = (Transient, Reason.CONSUMER_RESTART_FAILED)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kubeconfig of whoever runs the tests."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a made-up authority's ca.pem, server.pem and server.key, and a client's client.pem, client.key."""
    folder = tmp_path_factory.mktemp("ca")
    certificates(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rotator")])
    client = (
        x509.CertificateBuilder()
        .issuer_name(name)
        .subject_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "client.pem").write_bytes(client.public_bytes(serialization.Encoding.PEM))
    (folder / "client.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


@pytest.fixture(params=[False, True], ids=["any client", "client certificate"])
def client_certificate(request: pytest.FixtureRequest) -> bool:
    """Whether the server wants one."""
    return bool(request.param)


@pytest.fixture
def double(ca: Path, client_certificate: bool) -> Iterator[KubeDouble]:
    """An API server over TLS, with a Deployment iot/dash."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca / "server.pem", ca / "server.key")
    if client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca / "client.pem")
    with KubeDouble(context) as found:
        container = {"name": "c", "image": "x"}
        spec = {"selector": {}, "template": {"spec": {"containers": [container]}}}
        found.state.create(("deployments", "iot", "dash"), {"spec": spec})
        yield found


only_token = pytest.mark.parametrize("client_certificate", [False], ids=["any client"], indirect=True)
only_certificate = pytest.mark.parametrize("client_certificate", [True], ids=["client certificate"], indirect=True)


def look(cluster: Cluster) -> str:
    """One question; the workload's name."""
    with closing(cluster):
        metadata = cluster.api.workload("dash", "deployment", "iot", "dash").metadata
        assert metadata is not None
        return str(metadata.name)


def refused(cluster: Cluster) -> tuple[type[RotatorError], Reason, str]:
    """One question that must fail; no credential stands in its error, nor in what led to it."""
    with closing(cluster), pytest.raises(RotatorError) as error:
        cluster.api.workload("dash", "deployment", "iot", "dash")
    below: BaseException | None = error.value
    while below is not None:
        assert SECRET not in f"{below} {below!r}"
        below = below.__cause__
    kind = Transient if isinstance(error.value, Transient) else Permanent
    return kind, error.value.reason, error.value.message


def inline(path: Path) -> str:
    """A file's content as a kubeconfig holds it."""
    return base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize("by_file", [True, False], ids=["files", "inline"])
def test_the_authority_and_the_certificate_of_a_kubeconfig(
    double: KubeDouble, client_certificate: bool, ca: Path, tmp_path: Path, by_file: bool
) -> None:
    """By path (relative to the kubeconfig as well) or inline."""
    user: dict[str, Any] = {"token": ADMIN}
    if client_certificate and by_file:
        (tmp_path / "client.pem").write_bytes((ca / "client.pem").read_bytes())
        user |= {"client-certificate": "client.pem", "client-key": str(ca / "client.key")}
    elif client_certificate:
        pem, key = inline(ca / "client.pem"), inline(ca / "client.key")
        user |= {"client-certificate-data": pem, "client-key-data": key}
    authority = (
        {"certificate-authority": str(ca / "ca.pem")}
        if by_file
        else {"certificate-authority-data": inline(ca / "ca.pem")}
    )
    assert "dash" == look(Cluster(kubeconfig(tmp_path / "config", double.url, user, **authority)))


@only_token
def test_an_authority_that_nobody_named_is_not_trusted(double: KubeDouble, tmp_path: Path) -> None:
    """No request is sent: the token stays here."""
    kind, reason, text = refused(Cluster(kubeconfig(tmp_path / "config", double.url, {"token": ADMIN})))
    assert FAILED == (kind, reason)
    assert "certificate verify failed" in text.lower()
    assert [] == double.asked


@only_certificate
def test_a_server_that_wants_a_certificate_and_gets_none(double: KubeDouble, ca: Path, tmp_path: Path) -> None:
    """Refused in the handshake."""
    authority = {"certificate-authority": str(ca / "ca.pem")}
    kind, reason, _ = refused(Cluster(kubeconfig(tmp_path / "config", double.url, {"token": ADMIN}, **authority)))
    assert FAILED == (kind, reason)


@only_token
def test_a_token_of_a_kubeconfig_that_was_renewed_is_read_anew(double: KubeDouble, ca: Path, tmp_path: Path) -> None:
    """After a 401 the file is read once more, and the question asked once more."""
    authority = {"certificate-authority": str(ca / "ca.pem")}
    cluster = Cluster(kubeconfig(tmp_path / "config", double.url, {"token": ADMIN}, **authority))
    with closing(cluster):
        cluster.api.workload("dash", "deployment", "iot", "dash")
        double.tokens = {"renewed": "admin"}
        kubeconfig(tmp_path / "config", double.url, {"token": "renewed"}, **authority)
        cluster.api.workload("dash", "deployment", "iot", "dash")
        assert [ADMIN, ADMIN, "renewed"] == [each.token for each in double.asked]


@only_token
def test_a_pods_own_account_and_its_projected_token(
    double: KubeDouble, ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kubelet puts a new token into the file; the old one ends."""
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "ca.crt").write_bytes((ca / "ca.pem").read_bytes())
    (account / "namespace").write_text("iot")
    (account / "token").write_text(f"{ADMIN}\n")
    host, _, port = double.url.removeprefix("https://").partition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    with closing(Cluster(service_account=str(account))) as cluster:
        cluster.api.workload("dash", "deployment", "iot", "dash")
        double.tokens = {"renewed": "admin"}
        (account / "token").write_text("renewed\n")
        cluster.api.workload("dash", "deployment", "iot", "dash")
        (account / "token").unlink()
        double.tokens = {}
        with pytest.raises(RotatorError):
            cluster.api.workload("dash", "deployment", "iot", "dash")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    (account / "token").write_text(SECRET)
    assert NEVER == refused(Cluster(service_account=str(account)))[:2]


def plugin(folder: Path, script: str, version: str = "v1") -> dict[str, Any]:
    """A user whose credentials a program of ours prints."""
    path = folder / "plugin"
    path.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    spec = {"apiVersion": f"client.authentication.k8s.io/{version}", "command": "./plugin", "args": ["a"]}
    return {"exec": spec | {"env": [{"name": "GIVEN", "value": "1"}], "interactiveMode": "Never"}}


def printing(status: dict[str, str]) -> str:
    """A program's line that prints credentials."""
    return f"print(json.dumps({{'kind': 'ExecCredential', 'status': {status!r}}}))"


@only_token
@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_plugin_that_prints_tokens(
    double: KubeDouble, ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Run again after a 401; it is told what kubectl tells it, and gets none of the daemon's own variables."""
    monkeypatch.setenv("PROVIDER_PASSWORD", SECRET)
    said = tmp_path / "said"
    script = f"open({str(said)!r}, 'w').write(json.dumps(dict(os.environ)))\n" + printing({"token": ADMIN})
    authority = {"certificate-authority": str(ca / "ca.pem")}
    cluster = Cluster(kubeconfig(tmp_path / "config", double.url, plugin(tmp_path, script, version), **authority))
    with closing(cluster):
        cluster.api.workload("dash", "deployment", "iot", "dash")
        given = json.loads(said.read_text())
        double.tokens = {"renewed": "admin"}
        plugin(tmp_path, printing({"token": "renewed"}), version)
        cluster.api.workload("dash", "deployment", "iot", "dash")
    assert "1" == given["GIVEN"]
    assert f"client.authentication.k8s.io/{version}" == json.loads(given["KUBERNETES_EXEC_INFO"])["apiVersion"]
    assert "PROVIDER_PASSWORD" not in given


@only_certificate
def test_a_plugin_that_prints_a_certificate(double: KubeDouble, ca: Path, tmp_path: Path) -> None:
    """With its key, as PEM; beside a token here, since the double knows users by tokens."""
    double.admins.add("system:anonymous")
    status = {
        "clientCertificateData": (ca / "client.pem").read_text(),
        "clientKeyData": (ca / "client.key").read_text(),
    }
    authority = {"certificate-authority": str(ca / "ca.pem")}
    config = kubeconfig(tmp_path / "config", double.url, plugin(tmp_path, printing(status)), **authority)
    assert "dash" == look(Cluster(config))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"print({SECRET!r}); print({SECRET!r}, file=sys.stderr); sys.exit(3)", "plugin ended with 3"),
        (f"print({SECRET!r})", "printed no credentials"),
        ("print('{}')", "printed no credentials"),
        (printing({"token": 7}), "printed no credentials"),  # type: ignore[dict-item]  # what it must not be
        (f"print({SECRET!r}, flush=True); time.sleep(60)", "is not done after 0.5 s"),
    ],
)
def test_a_plugin_that_gives_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str) -> None:
    """It may work the next time; nothing of what it printed is shown."""
    monkeypatch.setattr(kubernetes_login, "PLUGIN_TIME", 0.5 if "sleep" in script else 20.0)
    config = kubeconfig(tmp_path / "config", "https://127.0.0.1:1", plugin(tmp_path, script))
    kind, reason, text = refused(Cluster(config))
    assert FAILED == (kind, reason)
    assert words in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "not found"),
        ("", "can't be read as one"),
        (f"[{SECRET}", "can't be read as one"),
        (f"a: {SECRET}", "it has no clusters"),
        ("{clusters: [], contexts: [], users: []}", "No current context"),
        ("{clusters: [], contexts: [], users: [], current-context: main}", "Context 'main' not found"),
    ],
    ids=["none", "empty", "no YAML", "no clusters", "no context", "wrong context"],
)
def test_a_kubeconfig_that_is_none(tmp_path: Path, content: str | None, words: str) -> None:
    """Nothing of it is shown."""
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    kind, reason, text = refused(Cluster(str(path)))
    assert NEVER == (kind, reason)
    assert words in text


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ({"token": f"{SECRET}\nx"}, "token is none"),
        ({"token": f"{SECRET}ä"}, "token is none"),
        ({"token": [SECRET]}, "can't be read as one"),
        ({"auth-provider": {"name": SECRET}}, "auth-provider not supported"),
        ({"tokenFile": "gone"}, "not found"),
        ({"client-certificate-data": SECRET, "client-key-data": SECRET}, "certificate or key"),
        ({"client-certificate": "gone", "client-key": "gone"}, "No such file"),
        ({"exec": {"apiVersion": "client.authentication.k8s.io/v0", "command": "x"}}, "speaks client.auth"),
        ({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./gone"}}, "No such file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_user_that_can_not_be_used(tmp_path: Path, user: dict[str, Any], words: str) -> None:
    """Before anything is sent; no credential is shown."""
    kind, reason, text = refused(Cluster(kubeconfig(tmp_path / "config", "https://127.0.0.1:1", user)))
    assert words in text
    assert Reason.CONSUMER_RESTART_FAILED is reason
    assert Transient is kind if "tokenFile" in user else Permanent is kind


def test_the_default_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$KUBECONFIG before ~/.kube/config; several files at once are not merged, and that is said."""
    absent = str(tmp_path / "no-account")
    monkeypatch.setenv("KUBECONFIG", "one:two")
    assert "names several files" in refused(Cluster(service_account=absent))[2]
    with KubeDouble() as double:
        double.state.create(
            ("deployments", "iot", "dash"),
            {"spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "c", "image": "x"}]}}}},
        )
        monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "one", double.url, {"token": ADMIN}))
        assert "dash" == look(Cluster(service_account=absent))
        monkeypatch.delenv("KUBECONFIG")
        (tmp_path / "home" / ".kube").mkdir(parents=True)
        (tmp_path / "home" / ".kube" / "config").write_text((tmp_path / "one").read_text())
        assert "dash" == look(Cluster(service_account=absent, context="main"))
    assert "Context 'other' not found" in refused(Cluster(service_account=absent, context="other"))[2]
