"""The configuration's `vault:` section: where Vault is, and how the daemon logs in there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from rotator.config_base import Part, seconds
from rotator.config_types import PositiveDuration, Text, Url, VaultPath, choice, tag_of, wrong
from rotator.secret_refs import FileRef, SecretRef, VaultRef

SERVICE_ACCOUNT_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105  a path


def _outside_vault(ref: SecretRef) -> SecretRef:
    if isinstance(ref, VaultRef):
        raise wrong("can't come from the Vault that it opens", "use file, credential or env")
    return ref


def _without_last_slash(value: object) -> object:
    return value.removesuffix("/") if isinstance(value, str) else value


Mount = Annotated[VaultPath, BeforeValidator(_without_last_slash)]  # Vault's own lists print `secret/`
LoginRef = Annotated[SecretRef, AfterValidator(_outside_vault)]


class TokenAuth(Part):
    """A Vault token that somebody else made; read again when its place holds another one."""

    method: Literal["token"]
    token: LoginRef


def _role_kind(value: object) -> str:
    return "<plain>" if isinstance(value, str) else "<reference>"


class AppRoleAuth(Part):
    """Login by AppRole. A role id is no secret, so it may also stand here itself.

    `wrapped`: what `secret_id` refers to is a response-wrapping token; it is unwrapped once, and the secret id is kept
    sealed in the journal.
    """

    method: Literal["approle"]
    role_id: Annotated[
        Annotated[Text, Tag("<plain>")] | Annotated[LoginRef, Tag("<reference>")], Discriminator(_role_kind)
    ]
    secret_id: LoginRef
    mount: Mount = "approle"
    wrapped: bool = False


class KubernetesAuth(Part):
    """Login as a Kubernetes service account, by the token that the kubelet keeps fresh."""

    method: Literal["kubernetes"]
    role: Text
    mount: Mount = "kubernetes"
    jwt: LoginRef = FileRef(file=SERVICE_ACCOUNT_TOKEN)


class JwtAuth(Part):
    """Login by a JSON Web Token of an issuer that Vault trusts."""

    method: Literal["jwt"]
    role: Text
    mount: Mount = "jwt"
    jwt: LoginRef


class CertAuth(Part):
    """Login by `vault.client_cert`. Without a role, any that fits."""

    method: Literal["cert"]
    role: Text | None = None
    mount: Mount = "cert"


VaultAuth = Annotated[
    Annotated[TokenAuth, Tag("<token>")]
    | Annotated[AppRoleAuth, Tag("<approle>")]
    | Annotated[KubernetesAuth, Tag("<kubernetes>")]
    | Annotated[JwtAuth, Tag("<jwt>")]
    | Annotated[CertAuth, Tag("<cert>")],
    Discriminator(tag_of("method")),
    choice("method", ["token", "approle", "kubernetes", "jwt", "cert"]),
]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Vault(Part):
    """The KV v2 mount that fresh secrets go to. `url` may be one or several; here it is always a tuple.

    `client_cert` and `client_key` (PEM) show who we are where the server asks for that, as the login `cert` does.
    """

    url: Annotated[
        tuple[Url, ...],
        Field(min_length=1),
        BeforeValidator(_listed),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "pattern": "^https?://"},
                    {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^https?://"}},
                ]
            }
        ),
    ]
    mount: Mount = "secret"
    namespace: Text | None = None
    ca_file: Text | None = None
    client_cert: Text | None = None
    client_key: Text | None = None
    timeout: PositiveDuration = seconds(5)
    auth: VaultAuth

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Vault:
        if (self.client_cert is None) != (self.client_key is None):
            missing = "client_key" if self.client_key is None else "client_cert"
            raise wrong("a client certificate and its key belong together", f"name `{missing}` as well")
        if isinstance(self.auth, CertAuth):
            if self.client_cert is None:
                raise wrong("the login `cert` shows a certificate", "name `client_cert` and `client_key`", at="auth")
            if any(url.startswith("http:") for url in self.url):
                raise wrong("a certificate is shown over TLS only", "write https://", at="url")
        return self
