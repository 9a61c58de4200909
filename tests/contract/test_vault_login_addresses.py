"""Several addresses of one Vault: which one is asked, and to whom no token goes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from contract.bao_server import ROOT_TOKEN, Bao
from contract.vault_login_stage import Stage, role
from contract.vault_replay import Exchange, VaultReplay, recorded
from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import Secret
from rotator.reasons import Reason
from rotator.stores.vault_auth import AppRoleAuth
from rotator.stores.vault_wire import VaultWire

READ = Exchange(method="GET", path="/v1/secret/data/mqtt/b", status=404, answer={"errors": []})
WRITE = Exchange(
    method="POST",
    path="/v1/secret/data/mqtt/b",
    body={"data": {"password": "p1"}, "options": {"cas": 0}},
    answer={"data": {"version": 1}},
)
ROLE = AppRoleAuth(role_id=lambda: "made-up-role", secret_id=lambda: "made-up-secret-id")
LOGIN = Exchange(
    method="POST",
    path="/v1/auth/approle/login",
    body={"role_id": "made-up-role", "secret_id": "made-up-secret-id"},
    answer=recorded("approle login").answer,
)


class LateReplay(VaultReplay):
    """One that is told what to answer when its address is known."""

    def expect(self, exchange: Exchange) -> None:
        self._left.append(exchange)


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Stores, and what they asked."""
    made = Stage()
    yield made
    made.close()


def standby(exchange: Exchange, to: str, status: int = 307) -> Exchange:
    """What a standby that does not forward answers."""
    place = f"{to}{exchange.path}"
    return Exchange(method=exchange.method, path=exchange.path, status=status, headers={"Location": place})


# --- redirects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_standby_leads_to_the_active_node(stage: Stage, status: int) -> None:
    """Method, body and token go there whole, whatever the status; the next request goes there at once."""
    with VaultReplay(READ, WRITE, READ) as active, VaultReplay() as sealed:
        with VaultReplay(standby(READ, active.url, status)) as node:
            store = stage.store(node.url, sealed.url, active.url)
            assert 1 == store.put("mqtt/b", {"password": "p1"})
            assert 0 == store.read("mqtt/b").version
        assert [ROOT_TOKEN] * 3 == active.tokens


def test_a_login_is_led_there_as_well(stage: Stage) -> None:
    """The secret id goes only to addresses of ours."""
    with VaultReplay(LOGIN, READ) as active, VaultReplay(standby(LOGIN, active.url)) as node:
        stage.store(node.url, active.url, auth=ROLE).read("mqtt/b")
        assert [None, "<opaque-2>"] == active.tokens


@pytest.mark.parametrize("auth", [None, ROLE], ids=["token", "approle"])
def test_nothing_goes_to_a_host_that_the_configuration_does_not_name(stage: Stage, auth: AppRoleAuth | None) -> None:
    """Neither token nor secret id: the node is passed over, and its host is named."""
    first = READ if auth is None else LOGIN
    with VaultReplay() as stranger, VaultReplay(standby(first, stranger.url)) as node:
        with pytest.raises(Transient, match=r"not in `vault\.url`, so no token is sent there") as caught:
            stage.store(node.url, auth=auth).read("mqtt/b")
        assert Reason.VAULT_UNREACHABLE is caught.value.reason
        assert stranger.url in caught.value.message
        assert [] == stranger.tokens


def test_another_of_ours_is_asked_instead(stage: Stage) -> None:
    """A node that points elsewhere is as good as one that is away."""
    with VaultReplay(READ) as other, VaultReplay() as stranger, VaultReplay(standby(READ, stranger.url)) as node:
        stage.store(node.url, other.url).read("mqtt/b")
        assert [] == stranger.tokens


@pytest.mark.parametrize(
    "place", ["https://{host}/v1/x", "//elsewhere.example/x", "http://{user}@127.0.0.1:9/x", "http://[bad", ""]
)
def test_an_address_that_looks_like_ours(stage: Stage, place: str) -> None:
    """Another scheme, another host, a login in it, none at all."""
    with LateReplay() as vault:
        host = vault.url.removeprefix("http://")
        named = {"Location": place.replace("{host}", host).replace("{user}", "hunter2")}
        vault.expect(Exchange(method="GET", path=READ.path, status=307, headers=named))
        with pytest.raises(Transient) as caught:
            stage.store(vault.url).read("mqtt/b")
    assert Reason.VAULT_UNREACHABLE is caught.value.reason
    assert "hunter2" not in caught.value.message


def test_two_that_point_at_each_other(stage: Stage) -> None:
    """Each is asked once."""
    with LateReplay() as one, LateReplay() as two:
        one.expect(standby(READ, two.url))
        two.expect(standby(READ, one.url))
        with pytest.raises(Transient, match="which was asked already"):
            stage.store(one.url, two.url).read("mqtt/b")


def test_a_request_that_must_not_be_made_twice(stage: Stage) -> None:
    """A cut one is sent to no other address; a redirect says that nothing was done, so it is followed."""
    cut = Exchange(method="GET", path=READ.path, cut=True)

    def wire(*urls: str) -> VaultWire:
        return VaultWire(
            urls=urls,
            namespace=None,
            ca_file=None,
            timeout=timedelta(seconds=5),
            clock=stage.clock,
            on_request=stage.done.append,
        )

    with VaultReplay(cut) as one, VaultReplay() as two, pytest.raises(Transient):
        wire(one.url, two.url).call(
            "read", lambda adapter: adapter.get(READ.path), what="x", token=Secret("t"), elsewhere=False
        )
    with VaultReplay(READ) as two, VaultReplay(standby(READ, two.url)) as one:
        answer = wire(one.url, two.url).call("read", lambda adapter: adapter.get(READ.path), what="x", elsewhere=False)
        assert 404 == answer.status


# --- health ---------------------------------------------------------------------------------------------------------


def health(status: int, **body: object) -> Exchange:
    """What sys/health answers (API docs, "/sys/health")."""
    return Exchange(method="GET", path="/v1/sys/health", status=status, answer=body)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (472, "it is a disaster recovery secondary"),
        (474, "it is a standby that can't reach the active node"),
        (501, "it is not initialized"),
        (503, "it is sealed"),
        (530, "it was removed from its cluster"),
        (502, "HTTP 502"),
        (307, "redirected to .*, which was asked already"),
    ],
)
def test_a_node_that_does_not_serve_is_passed_over(stage: Stage, status: int, words: str) -> None:
    """And named where there is no other."""
    ill = health(status, sealed=status == 503)
    lookup = recorded("lookup-self of a root token: ttl 0, never expires")
    with VaultReplay(ill) as one, VaultReplay(health(200), lookup) as two:
        stage.store(one.url, two.url).ready()
    with VaultReplay(ill) as one, pytest.raises(Transient, match=words):
        stage.store(one.url).ready()


def test_a_balancer_that_leads_elsewhere(stage: Stage) -> None:
    """Its redirect is no answer of a node's health: the address that `vault.url` lacks is named."""
    away = Exchange(
        method="GET", path="/v1/sys/health", status=301, headers={"Location": "https://vault.example/v1/sys/health"}
    )
    with VaultReplay(away) as one, pytest.raises(Transient) as caught:
        stage.store(one.url).ready()
    assert Reason.VAULT_UNREACHABLE is caught.value.reason
    assert "redirected to https://vault.example, which is not in `vault.url`" in str(caught.value)


@pytest.mark.parametrize("status", [200, 429, 473])
def test_a_node_that_serves_is_taken(stage: Stage, status: int) -> None:
    """Active, standby, performance standby."""
    lookup = recorded("lookup-self of a root token: ttl 0, never expires")
    with VaultReplay(health(status), lookup) as one, VaultReplay() as two:
        stage.store(one.url, two.url).ready()


# --- one that is ill ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [412, 500, 502, 503, 504])
def test_another_node_serves_at_once(stage: Stage, status: int) -> None:
    """Whatever delay the first one asks for: that is its own matter."""
    ill = Exchange(method="POST", path=LOGIN.path, status=status, headers={"Retry-After": "30"}, answer={"errors": []})
    with VaultReplay(ill) as one, VaultReplay(LOGIN, READ) as two:
        stage.store(one.url, two.url, auth=ROLE).read("mqtt/b")
    with VaultReplay(ill) as one, VaultReplay(ill) as two, pytest.raises(Transient) as caught:
        stage.store(one.url, two.url, auth=ROLE).read("mqtt/b")
    assert timedelta(seconds=30) == caught.value.retry_after


def test_a_quota_is_no_reason_to_go_elsewhere(stage: Stage) -> None:
    """429 is meant for us, wherever we ask."""
    slow = Exchange(method="GET", path=READ.path, status=429, headers={"Retry-After": "3"}, answer={"errors": ["slow"]})
    with VaultReplay(slow) as one, VaultReplay() as two, pytest.raises(Transient) as caught:
        stage.store(one.url, two.url).read("mqtt/b")
    assert (Reason.VAULT_RATE_LIMITED, timedelta(seconds=3)) == (caught.value.reason, caught.value.retry_after)


def test_a_refusal_is_no_reason_to_go_elsewhere(stage: Stage) -> None:
    """One node's no is every node's."""
    refused = Exchange(method="POST", path=LOGIN.path, status=400, answer={"errors": ["invalid secret id"]})
    with VaultReplay(refused) as one, VaultReplay() as two, pytest.raises(Permanent) as caught:
        stage.store(one.url, two.url, auth=ROLE).read("mqtt/b")
    assert Reason.VAULT_AUTH is caught.value.reason


def test_a_real_node_that_is_sealed(bao: Bao, stage: Stage, tmp_path: Path) -> None:
    """Login, renewal, writing and preflight go to the other; sealed in the middle as well."""
    made = role(bao)
    secret_id = made.secret_id()
    auth = AppRoleAuth(role_id=lambda: made.role_id, secret_id=lambda: secret_id)
    sealed = Bao(tmp_path)
    sealed.start()
    try:
        store = stage.store(sealed.url, auth=auth)
        with pytest.raises(RotatorError):
            store.ready()  # it has no such role: a cluster of its own
        sealed.must("PUT", "sys/seal", {})
        with pytest.raises(Transient) as caught:
            store.ready()
        assert Reason.VAULT_SEALED is caught.value.reason
        both = stage.store(sealed.url, bao.url, auth=auth)
        both.ready()
        assert both.renew() is not None
        both.preflight("mqtt/two-addresses")
    finally:
        sealed.stop()
