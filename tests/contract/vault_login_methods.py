"""Each login that can be repeated, set up on a real server: what to be made of it, and how to spoil it."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from contract.bao_server import Bao
from contract.vault_login_stage import MemoryKeep, TlsVault, client_certificate, enable, policy, role
from integration.token_review import REVIEWER, Account, Reviewer
from rotator.stores.vault_auth import AppRoleAuth, Auth, CertAuth, JwtAuth, KubernetesAuth
from rotator.stores.vault_wrapped import WrappedAppRoleAuth

AUDIENCE = "vault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """What the methods need: a server, one that speaks TLS as well, and a cluster's TokenReview."""

    bao: Bao
    tls: TlsVault
    cluster: Reviewer


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A login that works, at `server`; `path` is the creation path of its tokens. `spoil` makes the next one fail."""

    server: Bao
    url: str
    auth: Auth
    path: str
    spoil: Callable[[], None]
    secrets: Callable[[], list[str]]  # what must never be shown
    more: Mapping[str, Any] = field(default_factory=dict)


class Place:
    """A file's content, as a reference finds it."""

    def __init__(self, content: str) -> None:
        self.content = content

    def __call__(self) -> str:
        return self.content


def approle(servers: Servers, folder: Path, ttl: str, max_ttl: str) -> Case:
    """A secret id of many uses."""
    made = role(servers.bao, ttl=ttl, max_ttl=max_ttl)
    secret_id = Place(made.secret_id())
    return Case(
        server=servers.bao,
        url=servers.bao.url,
        auth=AppRoleAuth(role_id=lambda: made.role_id, secret_id=secret_id),
        path="auth/approle/login",
        spoil=lambda: setattr(secret_id, "content", "made-up-secret-id"),
        secrets=lambda: [secret_id.content],
    )


def wrapped(servers: Servers, folder: Path, ttl: str, max_ttl: str) -> Case:
    """The same out of a wrapping token."""
    made, keep = role(servers.bao, ttl=ttl, max_ttl=max_ttl), MemoryKeep()
    token = made.wrapped()

    def kept() -> str:
        return str(json.loads(keep.content)["secret_id"]) if keep.content is not None else "made-up-secret-id"

    def spoil() -> None:
        servers.bao.must("POST", f"auth/approle/role/{made.name}/secret-id/destroy", {"secret_id": kept()})

    auth = WrappedAppRoleAuth(role_id=lambda: made.role_id, wrapping_token=lambda: token, keep=keep, unwraps=True)
    return Case(
        server=servers.bao,
        url=servers.bao.url,
        auth=auth,
        path="auth/approle/login",
        spoil=spoil,
        secrets=lambda: [token, kept()],
    )


def kubernetes(servers: Servers, folder: Path, ttl: str, max_ttl: str) -> Case:
    """A service account whose token the cluster knows."""
    enable(servers.bao, "kubernetes", "kubernetes")
    reach = {"kubernetes_host": servers.cluster.url, "kubernetes_ca_cert": Path(servers.tls.ca_file).read_text()}
    own = {"token_reviewer_jwt": REVIEWER, "disable_local_ca_jwt": True}
    servers.bao.must("POST", "auth/kubernetes/config", reach | own)
    name = f"rotator-{uuid.uuid4()}"
    bound = {"bound_service_account_names": ["rotator"], "bound_service_account_namespaces": ["iot"]}
    body = {**bound, "audience": AUDIENCE, "token_ttl": ttl, "token_max_ttl": max_ttl}
    servers.bao.must("POST", f"auth/kubernetes/role/{name}", {**body, "token_policies": policy(servers.bao)})
    jwt = Place(Account(namespace="iot", name="rotator").jwt)
    return Case(
        server=servers.bao,
        url=servers.bao.url,
        auth=KubernetesAuth(role=name, jwt=jwt),
        path="auth/kubernetes/login",
        spoil=lambda: setattr(jwt, "content", Account(namespace="iot", name="stranger").jwt),
        secrets=lambda: [jwt.content],
    )


class Issuer:
    """Signs JSON Web Tokens (RFC 7519, ES256) with a key of its own."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        encoding, kind = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        self.public = self._key.public_key().public_bytes(encoding, kind).decode()

    def jwt(self, *, lasts: float = 600) -> str:
        """A token for `rotator` that ends `lasts` seconds from now."""
        now = int(time.time())
        claims = {"sub": "rotator", "aud": AUDIENCE, "iat": now - 600, "nbf": now - 600, "exp": int(now + lasts)}
        signed = f"{_part({'alg': 'ES256', 'typ': 'JWT'})}.{_part(claims)}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def jwt(servers: Servers, folder: Path, ttl: str, max_ttl: str) -> Case:
    """A token of an issuer whose public key the server has."""
    issuer, mount = Issuer(), f"jwt-{uuid.uuid4()}"
    enable(servers.bao, mount, "jwt")
    keys = {"jwt_validation_pubkeys": [issuer.public], "jwt_supported_algs": ["ES256"]}
    servers.bao.must("POST", f"auth/{mount}/config", keys)
    bound = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": [AUDIENCE], "bound_subject": "rotator"}
    body = {**bound, "token_ttl": ttl, "token_max_ttl": max_ttl, "token_policies": policy(servers.bao)}
    servers.bao.must("POST", f"auth/{mount}/role/rotator", body)
    token = Place(issuer.jwt())
    return Case(
        server=servers.bao,
        url=servers.bao.url,
        auth=JwtAuth(role="rotator", jwt=token, mount=mount),
        path=f"auth/{mount}/login",
        spoil=lambda: setattr(token, "content", issuer.jwt(lasts=-300)),
        secrets=lambda: [token.content],
    )


def cert(servers: Servers, folder: Path, ttl: str, max_ttl: str) -> Case:
    """A certificate that the server was told to trust."""
    enable(servers.tls, "cert", "cert")
    name = f"rotator-{uuid.uuid4()}"
    files = client_certificate(folder, name)
    body = {"certificate": Path(files[0]).read_text(), "token_ttl": ttl, "token_max_ttl": max_ttl}
    servers.tls.must("POST", f"auth/cert/certs/{name}", {**body, "token_policies": policy(servers.tls)})
    return Case(
        server=servers.tls,
        url=servers.tls.tls_url,
        auth=CertAuth(role=name),
        path="auth/cert/login",
        spoil=lambda: servers.tls.must("DELETE", f"auth/cert/certs/{name}"),
        secrets=lambda: [Path(files[1]).read_text().splitlines()[1]],
        more={"ca_file": servers.tls.ca_file, "client_cert": files},
    )


METHODS: Mapping[str, Callable[[Servers, Path, str, str], Case]] = {
    each.__name__: each for each in (approle, wrapped, kubernetes, jwt, cert)
}


def _part(value: object) -> str:
    return _base64(json.dumps(value).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
