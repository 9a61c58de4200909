"""The `vault:` section: the logins, the certificate, and what can't go together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rotator import config_checks, config_vault, kept_secret_id
from rotator.errors import ConfigError
from rotator.secret_refs import EnvRef, FileRef
from rotator.settings import AppRoleAuth, CertAuth, JwtAuth, KubernetesAuth, Settings, TokenAuth, json_schema, load
from rotator.stores import vault_auth
from rotator.stores.vault_wrapped import WrappedAppRoleAuth

ENV = {"TOKEN": "made-up", "SECRET_ID": "made-up", "JWT": "made-up"}
CERT = "client_cert: client.pem, client_key: client.key, "


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Loads a configuration with this `vault:` section, in a folder with files of certificates."""
    monkeypatch.chdir(tmp_path)
    for name in ("client.pem", "client.key"):
        (tmp_path / name).touch()

    def made(section: str, more: str = "", **environ: str) -> Settings:
        (tmp_path / "rotator.yaml").write_text(f"vault: {{{section}}}\n{more}\n")
        return load(tmp_path / "rotator.yaml", {**ENV, **environ})

    return made


@pytest.fixture
def service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service account's token in its usual place, with the mode that the kubelet gives it; here a folder of ours."""
    token = tmp_path / "serviceaccount-token"
    token.write_text("made-up")
    token.chmod(0o644)
    monkeypatch.setattr(config_checks, "SERVICE_ACCOUNT_TOKEN", str(token))
    return token


def auth(text: str, *, https: bool = True, cert: str = "") -> str:
    """A section with this login."""
    return f"url: {'https' if https else 'http'}://vault.example:8200, {cert}auth: {{{text}}}"


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (auth("method: token, token: {env: TOKEN}"), TokenAuth(method="token", token=EnvRef(env="TOKEN"))),
        (
            auth("method: approle, role_id: r, secret_id: {env: SECRET_ID}"),
            AppRoleAuth(method="approle", role_id="r", secret_id=EnvRef(env="SECRET_ID"), mount="approle"),
        ),
        (
            auth("method: approle, role_id: r, secret_id: {env: SECRET_ID}, wrapped: true, mount: team/approle"),
            AppRoleAuth(
                method="approle", role_id="r", secret_id=EnvRef(env="SECRET_ID"), mount="team/approle", wrapped=True
            ),
        ),
        (
            auth("method: kubernetes, role: rotator, jwt: {env: JWT}, mount: k8s"),
            KubernetesAuth(method="kubernetes", role="rotator", jwt=EnvRef(env="JWT"), mount="k8s"),
        ),
        (
            auth("method: jwt, role: rotator, jwt: {env: JWT}"),
            JwtAuth(method="jwt", role="rotator", jwt=EnvRef(env="JWT"), mount="jwt"),
        ),
        (auth("method: cert", cert=CERT), CertAuth(method="cert", role=None, mount="cert")),
        (
            auth("method: cert, role: rotator, mount: tls", cert=CERT),
            CertAuth(method="cert", role="rotator", mount="tls"),
        ),
        (
            auth("method: cert, role: rotator, mount: team/tls/", cert=CERT),  # as `vault auth list` prints it
            CertAuth(method="cert", role="rotator", mount="team/tls"),
        ),
    ],
)
def test_logins(config: Callable[..., Settings], section: str, expected: object) -> None:
    """Each with its defaults."""
    assert expected == config(section).vault.auth


@pytest.mark.parametrize(
    ("section", "words", "hint"),
    [
        (auth("method: ldap"), "must be one of token, approle, kubernetes, jwt, cert", ""),
        (auth("method: kubernets, role: r"), "vault.auth: must be one of", "did you mean `kubernetes`?"),
        (auth("method: jwt, jwt: {env: JWT}"), "vault.auth.role: is missing", ""),
        (auth("method: jwt, role: r"), "vault.auth.jwt: is missing", ""),
        (auth("method: jwt, role: r, jwt: {env: NOPE}"), "vault.auth.jwt: environment variable NOPE", ""),
        (auth("method: jwt, role: r, jwt: {vault: a#b}"), "can't come from the Vault that it opens", "env"),
        (auth("method: jwt, role: r, jwt: abc"), "vault.auth.jwt: a secret never stands", "{file: PATH}"),
        (auth("method: jwt, role: r, jwt: {env: JWT}, mount: /jwt"), "vault.auth.mount: must be a path", ""),
        (auth("method: kubernetes, role: r, wrapped: true"), "unknown name `vault.auth.wrapped`", ""),
        (auth("method: cert"), "vault: the login `cert` shows a certificate", "`client_cert` and `client_key`"),
        (auth("method: cert", https=False, cert=CERT), "vault: a certificate is shown over TLS only", "https"),
        (auth("method: token, token: {env: TOKEN}", cert="client_cert: client.pem, "), "belong together", "client_key"),
        (auth("method: token, token: {env: TOKEN}", cert="client_key: client.key, "), "belong together", "client_cert"),
        (
            auth("method: token, token: {env: TOKEN}", cert="client_cert: no.pem, client_key: client.key, "),
            "vault.client_cert: there is no readable file no.pem",
            "",
        ),
        (
            auth("method: token, token: {env: TOKEN}", cert="client_cert: client.pem, client_key: no.key, "),
            "vault.client_key: there is no readable file no.key",
            "",
        ),
    ],
)
@pytest.mark.usefixtures("service_account")
def test_faults(config: Callable[..., Settings], section: str, words: str, hint: str) -> None:
    """One each, in words that name the setting."""
    with pytest.raises(ConfigError) as caught:
        config(section)
    (fault,) = caught.value.faults
    assert words in str(fault)
    assert hint in str(fault.suggestion or "")
    assert "<" not in str(fault)


def test_the_service_accounts_own_token(config: Callable[..., Settings], service_account: Path) -> None:
    """The default, whatever mode the kubelet gave it; where it is not, that is said before a login fails."""
    found = config(auth("method: kubernetes, role: rotator")).vault.auth
    assert isinstance(found, KubernetesAuth)
    assert FileRef(file="/var/run/secrets/kubernetes.io/serviceaccount/token") == found.jwt
    assert config_vault.SERVICE_ACCOUNT_TOKEN == found.jwt.file
    service_account.unlink()
    with pytest.raises(ConfigError, match=r"vault\.auth\.jwt: secret file .*: there is no such file"):
        config(auth("method: kubernetes, role: rotator"))


def test_any_other_jwt_is_private(config: Callable[..., Settings], service_account: Path) -> None:
    """A file that everybody can read is refused, as every secret is; a kubelet's is let through wherever it lies."""
    named = f"role: r, jwt: {{file: {service_account}}}"
    made = kept_secret_id.make_auth(config(auth(f"method: kubernetes, {named}")), None)
    assert isinstance(made, vault_auth.KubernetesAuth)
    assert "made-up" == made.jwt()
    with pytest.raises(ConfigError, match="readable by everybody"):
        config(auth(f"method: jwt, {named}"))


@pytest.mark.parametrize("wrapped", ["true", "'yes'"])
def test_a_circle_is_refused(config: Callable[..., Settings], wrapped: str) -> None:
    """The secret id would be kept under a seal that it is needed to open."""
    section = auth(f"method: approle, role_id: r, secret_id: {{env: SECRET_ID}}, wrapped: {wrapped}")
    with pytest.raises(ConfigError) as caught:
        config(section, "state: {seal: {kind: vault-transit}}")
    (fault,) = caught.value.faults
    assert "rotator.yaml:1" == fault.where
    assert "vault.auth.wrapped" in fault.message
    assert "a circle" in fault.message
    config(section, "state: {seal: {kind: file}}")
    config(section.replace(f", wrapped: {wrapped}", ""), "state: {seal: {kind: vault-transit}}")


def test_the_environment_may_ask_for_it(config: Callable[..., Settings]) -> None:
    """And is checked as the file is."""
    section = auth("method: approle, role_id: r, secret_id: {env: SECRET_ID}")
    with pytest.raises(ConfigError, match="a circle"):
        config(section, "state: {seal: {kind: vault-transit}}", ROTATOR__VAULT__AUTH__WRAPPED="true")


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        (auth("method: token, token: {env: TOKEN}"), vault_auth.TokenAuth),
        (auth("method: approle, role_id: r, secret_id: {env: SECRET_ID}"), vault_auth.AppRoleAuth),
        (auth("method: approle, role_id: r, secret_id: {env: SECRET_ID}, wrapped: true"), WrappedAppRoleAuth),
        (auth("method: kubernetes, role: r, jwt: {env: JWT}"), vault_auth.KubernetesAuth),
        (auth("method: jwt, role: r, jwt: {env: JWT}"), vault_auth.JwtAuth),
        (auth("method: cert", cert=CERT), vault_auth.CertAuth),
    ],
)
def test_each_makes_its_login(config: Callable[..., Settings], section: str, kind: type) -> None:
    """What the store is given."""
    assert kind is type(kept_secret_id.make_auth(config(section), None))


def test_the_schema_knows_them(config: Callable[..., Settings]) -> None:
    """Editors offer all of them."""
    text = str(json_schema())
    for name in ("TokenAuth", "AppRoleAuth", "KubernetesAuth", "JwtAuth", "CertAuth", "client_cert", "wrapped"):
        assert name in text, name


def test_a_wrapping_token_may_be_taken_away(config: Callable[..., Settings]) -> None:
    """Once it has served, what it wrapped is kept; a secret id that is not wrapped must stay."""
    section = "method: approle, role_id: r, secret_id: {file: gone}"
    assert config(auth(section + ", wrapped: true")).vault.auth.method == "approle"
    with pytest.raises(ConfigError, match="gone"):
        config(auth(section))
