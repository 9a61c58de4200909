"""What logins make of answers, and which wrapping tokens are ours; the server's side is in tests/contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import requests

from rotator.clock import SystemClock
from rotator.errors import Permanent, RotatorError, Transient
from rotator.reasons import Reason
from rotator.stores.vault_auth import AppRoleAuth, Auth, CertAuth, JwtAuth, KubernetesAuth, TokenAuth
from rotator.stores.vault_wire import VaultWire
from rotator.stores.vault_wrapped import WrappedAppRoleAuth, _makes_secret_ids


class Transport(requests.adapters.BaseAdapter):
    """Answers each request of a session with one status and one body."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__()
        self.status, self.body = status, body
        self.sent: list[requests.PreparedRequest] = []

    def send(self, request: requests.PreparedRequest, *_args: object, **_options: object) -> requests.Response:
        self.sent.append(request)
        response = requests.Response()
        response.status_code, response.url, response.request = self.status, str(request.url), request
        response._content = self.body.encode()
        return response

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def wire() -> Iterator[VaultWire]:
    """A wire with a certificate, whose session a test gives its transport."""
    made = VaultWire(
        urls=["https://vault.example"],
        namespace=None,
        ca_file=None,
        client_cert=("made-up.pem", "made-up.key"),
        timeout=timedelta(seconds=1),
        clock=SystemClock(),
        on_request=lambda _done: None,
    )
    yield made
    made.close()


def answering(wire: VaultWire, status: int, body: str) -> Transport:
    """Put a transport below the wire."""
    transport = Transport(status, body)
    wire._session.mount("https://", transport)
    return transport


class NoKeep:
    """Nothing is kept, and nothing may be."""

    def load(self) -> bytes | None:
        return None

    def save(self, content: bytes) -> None:
        raise AssertionError("nothing is to be kept")


WRAPPED = WrappedAppRoleAuth(
    role_id=lambda: "r", wrapping_token=lambda: "made-up-wrapping-token", keep=NoKeep(), unwraps=True
)
REPEATABLE: list[tuple[Callable[[], Auth], str, str]] = [
    (
        lambda: AppRoleAuth(role_id=lambda: "r", secret_id=lambda: "s", mount="a/b"),
        "a/b",
        '{"role_id": "r", "secret_id": "s"}',
    ),
    (lambda: KubernetesAuth(role="me", jwt=lambda: "j"), "kubernetes", '{"role": "me", "jwt": "j"}'),
    (lambda: JwtAuth(role="me", jwt=lambda: "j", mount="oidc"), "oidc", '{"role": "me", "jwt": "j"}'),
    (lambda: CertAuth(role="me"), "cert", '{"name": "me"}'),
    (lambda: CertAuth(mount="tls"), "tls", "{}"),
]
MOUNTS = [each[1] for each in REPEATABLE]


@pytest.mark.parametrize(("make", "mount", "body"), REPEATABLE, ids=MOUNTS)
def test_what_is_sent(wire: VaultWire, make: Callable[[], Auth], mount: str, body: str) -> None:
    """To the mount's own login, without a token."""
    transport = answering(wire, 200, '{"auth": {"client_token": "t", "lease_duration": 60, "renewable": true}}')
    auth = make()
    login = auth.login(wire, SystemClock())
    (request,) = transport.sent
    assert ("POST", f"https://vault.example/v1/auth/{mount}/login") == (request.method, request.url)
    assert body.encode() == request.body
    assert "X-Vault-Token" not in request.headers
    assert ("t", 60.0, True) == (login.token.reveal(), login.lease, login.renewable)
    assert login.ends_at == login.made_at + 60
    assert auth.repeatable


@pytest.mark.parametrize(
    "auth", ['{"lease_duration": 0}', '{"lease_duration": null}', "{}", '{"lease_duration": true}', "7", "null"]
)
def test_an_answer_without_a_token(wire: VaultWire, auth: str) -> None:
    """Is no login, whatever else it holds."""
    answering(wire, 200, f'{{"auth": {auth}}}')
    with pytest.raises(Permanent, match="the answer's token is empty") as caught:
        KubernetesAuth(role="me", jwt=lambda: "j").login(wire, SystemClock())
    assert Reason.VAULT_AUTH is caught.value.reason


def test_a_login_that_asks_for_a_second_factor(wire: VaultWire) -> None:
    """Vault answers 200 with an empty token: said as what it is."""
    answering(wire, 200, '{"auth": {"client_token": "", "mfa_requirement": {"mfa_request_id": "x"}}}')
    with pytest.raises(Permanent, match="second factor") as caught:
        KubernetesAuth(role="me", jwt=lambda: "j").login(wire, SystemClock())
    assert Reason.VAULT_AUTH is caught.value.reason


@pytest.mark.parametrize(
    ("status", "words", "sent"),
    [
        (400, "invalid secret id", 3),
        (401, "invalid secret id", 3),
        (400, "missing client token", 5),
        (403, "permission denied", 5),
        (404, 'no handler for route \\"auth/approle/login\\"', 5),
        (405, "unsupported operation", 5),
    ],
)
def test_what_counts_as_a_refusal_of_the_secret_id(wire: VaultWire, status: int, words: str, sent: int) -> None:
    """Only that holds further logins back: a mount that is away for a moment, or a locked role, does not."""
    transport = answering(wire, status, f'{{"errors": ["{words}"]}}')
    auth = AppRoleAuth(role_id=lambda: "r", secret_id=lambda: "s")
    for _ in range(5):
        with pytest.raises(Permanent) as caught:
            auth.login(wire, SystemClock())
        assert Reason.VAULT_AUTH is caught.value.reason
    assert sent == len(transport.sent)
    assert (sent == 3) == ("not tried again" in str(caught.value))


@pytest.mark.parametrize("lease", ["0", "null", "true", '"60"', "-1"])
def test_a_token_that_never_ends(wire: VaultWire, lease: str) -> None:
    """Or of whose end nothing sensible is said; and it is not renewable unless that is said."""
    answering(wire, 200, f'{{"auth": {{"client_token": "t", "lease_duration": {lease}}}}}')
    login = JwtAuth(role="me", jwt=lambda: "j").login(wire, SystemClock())
    assert (None, None, False) == (login.lease, login.ends_at, login.renewable)


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (400, Permanent, Reason.VAULT_AUTH),
        (403, Permanent, Reason.VAULT_AUTH),
        (404, Permanent, Reason.VAULT_AUTH),
        (429, Transient, Reason.VAULT_RATE_LIMITED),
        (500, Transient, Reason.VAULT_UNAVAILABLE),
        (503, Transient, Reason.VAULT_SEALED),
    ],
)
@pytest.mark.parametrize("make", [each[0] for each in REPEATABLE], ids=MOUNTS)
def test_a_refusal(
    wire: VaultWire, make: Callable[[], Auth], status: int, kind: type[RotatorError], reason: Reason
) -> None:
    """What the credentials are refused for needs a person; what the server can't do now does not."""
    answering(wire, status, '{"errors": ["Vault is sealed"]}')
    with pytest.raises(RotatorError) as caught:
        make().login(wire, SystemClock())
    assert (kind, reason) == (type(caught.value), caught.value.reason)


def test_a_given_token_asks_nobody(wire: VaultWire) -> None:
    """It is what its place holds, and can't be made again."""
    auth = TokenAuth(token=lambda: "made-up-token")
    transport = answering(wire, 200, "{}")
    assert "made-up-token" == auth.login(wire, SystemClock()).token.reveal()
    assert not transport.sent
    assert not auth.repeatable


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, '{"errors": ["wrapping token is not valid or does not exist"]}', Reason.VAULT_WRAPPING_TOKEN_USED),
        (403, '{"errors": ["permission denied"]}', Reason.VAULT_WRAPPING_TOKEN_USED),
        (404, '{"errors": []}', Reason.VAULT_AUTH),
        (200, "{}", Reason.VAULT_WRAPPING_TOKEN_USED),
        (200, '{"data": {"creation_path": 7}}', Reason.VAULT_WRAPPING_TOKEN_USED),
        (503, '{"errors": ["Vault is sealed"]}', Reason.VAULT_SEALED),
    ],
)
def test_a_lookup_that_does_not_say_yes(wire: VaultWire, status: int, body: str, reason: Reason) -> None:
    """Nothing is unwrapped, and the wrapping token stands in no text."""
    transport = answering(wire, status, body)
    with pytest.raises(RotatorError) as caught:
        WRAPPED.login(wire, SystemClock())
    assert reason is caught.value.reason
    assert "made-up-wrapping-token" not in f"{caught.value} {WRAPPED!r}"
    (request,) = transport.sent
    assert "https://vault.example/v1/sys/wrapping/lookup" == request.url


@pytest.mark.parametrize(
    ("path", "mount", "ours"),
    [
        ("auth/approle/role/rotator/secret-id", "approle", True),
        ("auth/team/approle/role/rotator/secret-id", "team/approle", True),
        ("auth/team/approle/role/rotator/secret-id", "/team/approle/", True),
        ("auth/approle/role/rotator/secret-id", "other", False),
        ("auth/approle/role/rotator/custom-secret-id", "approle", False),
        ("auth/approle/role//secret-id", "approle", False),
        ("auth/approle/role/a/b/secret-id", "approle", False),
        ("auth/approle/role/rotator/secret-id/", "approle", False),
        ("sys/wrapping/wrap", "approle", False),
        ("secret/data/auth/approle/role/rotator/secret-id", "approle", False),
        ("", "approle", False),
    ],
)
def test_whose_wrapping_it_is(path: str, mount: str, ours: bool) -> None:
    """Only what this mount made for a role of its."""
    assert ours == _makes_secret_ids(path, mount)
