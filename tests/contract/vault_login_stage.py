"""What the tests of the logins stand on: roles for every method on a real server, and what is asked of it."""

from __future__ import annotations

import datetime as dt
import json
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contract.bao_server import ROOT_TOKEN, Bao
from integration.broker_fixture import certificates
from rotator.clock import SystemClock
from rotator.model import RequestDone
from rotator.sandbox.processes import free_port
from rotator.stores import VaultStore
from rotator.stores.vault_auth import Auth, TokenAuth

POLICY = 'path "secret/data/mqtt/*" { capabilities = ["create", "update", "read"] }'


class MovedClock(SystemClock):
    """The machine's clocks, to which a test may add seconds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> dt.datetime:
        return super().now() + dt.timedelta(seconds=self.ahead)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


@dataclass(kw_only=True)
class Stage:
    """Makes stores and closes them; `done` is what they asked."""

    clock: MovedClock = field(default_factory=MovedClock)
    done: list[RequestDone] = field(default_factory=list)
    made: list[VaultStore] = field(default_factory=list)

    def store(self, *urls: str, auth: Auth | None = None, **more: Any) -> VaultStore:
        """A store with this login; with the root token where none is given."""
        more.setdefault("timeout", dt.timedelta(seconds=5))
        given = auth if auth is not None else TokenAuth(token=lambda: ROOT_TOKEN)
        store = VaultStore(urls=urls, auth=given, clock=self.clock, on_request=self.done.append, **more)
        self.made.append(store)
        return store

    def asked(self, *operations: str) -> list[tuple[str, str]]:
        """Operation and code of each request so far, of these operations or of all."""
        found = [(each.operation, each.code) for each in self.done]
        return [each for each in found if not operations or each[0] in operations]

    def close(self) -> None:
        """Close what was made."""
        for store in self.made:
            store.close()


class MemoryKeep:
    """A `Keep` that a test can look into, or break."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.fault: Exception | None = None
        self.saved = 0

    def load(self) -> bytes | None:
        return self.content

    def save(self, content: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        self.content, self.saved = content, self.saved + 1


# --- AppRole --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """An AppRole at a server."""

    bao: Bao
    name: str
    mount: str
    role_id: str

    def secret_id(self) -> str:
        """A new one, plain."""
        made: str = self.bao.must("POST", f"auth/{self.mount}/role/{self.name}/secret-id", {})["data"]["secret_id"]
        return made

    def wrapped(self, ttl: str = "60s") -> str:
        """A new one, wrapped: the wrapping token."""
        return wrapped(self.bao, f"auth/{self.mount}/role/{self.name}/secret-id", ttl=ttl)


def wrapped(bao: Bao, path: str, body: bytes = b"{}", ttl: str = "60s") -> str:
    """The wrapping token of what a request answers."""
    status, answer = post(f"{bao.url}/v1/{path}", body, {"X-Vault-Token": ROOT_TOKEN, "X-Vault-Wrap-TTL": ttl})
    assert status == 200, answer
    token: str = answer["wrap_info"]["token"]
    return token


def unwrap(bao: Bao, token: str) -> int:
    """What somebody else may do with a wrapping token; the answer's status."""
    return post(f"{bao.url}/v1/sys/wrapping/unwrap", b"{}", {"X-Vault-Token": token})[0]


def is_wrapped(bao: Bao, token: str) -> bool:
    """Whether nobody has used it."""
    return bao.api("POST", "sys/wrapping/lookup", {"token": token})[0] == 200


def post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    """One request, without the code under test."""
    request = urllib.request.Request(url, method="POST", data=body, headers=headers)  # noqa: S310  the test's own server
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return response.status, json.loads(response.read() or b"null")
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, json.loads(exc.read() or b"null")


def policy(bao: Bao) -> str:
    """A new policy that reaches mqtt/*."""
    name = f"rotator-{uuid.uuid4()}"
    bao.must("PUT", f"sys/policies/acl/{name}", {"policy": POLICY})
    return name


def role(bao: Bao, *, ttl: str = "1h", max_ttl: str = "2h", mount: str = "approle", **more: object) -> Role:
    """A new AppRole with that policy."""
    enable(bao, mount, "approle")
    name = f"rotator-{uuid.uuid4()}"
    body = {"token_policies": policy(bao), "token_ttl": ttl, "token_max_ttl": max_ttl, **more}
    bao.must("POST", f"auth/{mount}/role/{name}", body)
    role_id = bao.must("GET", f"auth/{mount}/role/{name}/role-id")["data"]["role_id"]
    return Role(bao=bao, name=name, mount=mount, role_id=role_id)


def enable(bao: Bao, mount: str, kind: str) -> None:
    """Enable a login; one that is there already is well."""
    if f"{mount}/" not in bao.must("GET", "sys/auth")["data"]:
        bao.must("POST", f"sys/auth/{mount}", {"type": kind})


def revoke_all(bao: Bao, path: str) -> int:
    """Revoke all tokens that a login made; how many."""
    count = 0
    for accessor in bao.must("LIST", "auth/token/accessors")["data"]["keys"]:
        status, found = bao.api("POST", "auth/token/lookup-accessor", {"accessor": accessor})
        if status == 200 and found["data"]["path"] == path:
            bao.must("POST", "auth/token/revoke-accessor", {"accessor": accessor})
            count += 1
    return count


# --- TLS ------------------------------------------------------------------------------------------------------------


class TlsVault(Bao):
    """A server in dev mode with a second listener, which speaks TLS and may be shown a certificate."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.ca_file = str(certificates(home))
        self.tls_url = f"https://127.0.0.1:{free_port()}"

    def start(self) -> None:
        """Start it and wait until it serves."""
        config, address = self._home / "listener.hcl", self.tls_url.removeprefix("https://")
        config.write_text(
            f'listener "tcp" {{\n  address = "{address}"\n  tls_cert_file = "{self._home}/server.pem"\n'
            f'  tls_key_file = "{self._home}/server.key"\n}}\n'
        )
        own = (f"-dev-root-token-id={ROOT_TOKEN}", f"-dev-listen-address=127.0.0.1:{self.port}", f"-config={config}")
        self._run("-dev", *own)
        self.wait_for(200)


def client_certificate(folder: Path, name: str) -> tuple[str, str]:
    """A self-signed certificate for a client, and its key; PEM files."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(usage, critical=False)
        .sign(key, hashes.SHA256())
    )
    cert, private = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(cert), str(private)
