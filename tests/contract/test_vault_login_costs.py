"""What the daemon's token costs Vault: requests, logins and leases, on a real server and on answers made up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from contract.bao_server import Bao
from contract.vault_login_stage import Role, Stage, TlsVault, client_certificate, enable, policy, post, revoke_all, role
from contract.vault_replay import Exchange, Tape
from integration.broker_fixture import until
from rotator.errors import Permanent
from rotator.reasons import Reason
from rotator.stores import VaultStore
from rotator.stores.vault_auth import AppRoleAuth, CertAuth, TokenAuth


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Stores, and what they asked."""
    made = Stage()
    yield made
    made.close()


def login_of(made: Role) -> AppRoleAuth:
    """The login of a role, with a secret id of many uses."""
    secret_id = made.secret_id()
    return AppRoleAuth(role_id=lambda: made.role_id, secret_id=lambda: secret_id, mount=made.mount)


def look(stage: Stage, store: VaultStore, times: int = 1) -> Counter[str]:
    """Look as the daemon does, every ten seconds; how often each request for the token was made."""
    before = len(stage.done)
    for _ in range(times):
        stage.clock.ahead += 10
        store.ready()
        store.renew()
    asked = Counter(each.operation for each in stage.done[before:])
    return Counter({name: asked[name] for name in ("login", "lookup", "renew") if asked[name]})


def allow(bao: Bao, made: Role, *lines: str) -> None:
    """Give the role's next tokens another policy with these lines."""
    name = policy(bao)
    held = bao.must("GET", f"sys/policies/acl/{name}")["data"]["policy"]
    bao.must("PUT", f"sys/policies/acl/{name}", {"policy": "\n".join([held, *lines])})
    bao.must("POST", f"auth/{made.mount}/role/{made.name}", {"token_policies": name})


# --- logins that can be repeated ------------------------------------------------------------------------------------


def test_a_policy_without_lookup_and_renewal(bao: Bao, stage: Stage) -> None:
    """One token is replaced for it, and the next is used until half its life is gone: then asked once, and replaced."""
    made = role(bao, ttl="1h", token_no_default_policy=True)
    store = stage.store(bao.url, auth=login_of(made))
    assert {"login": 2, "lookup": 2, "renew": 2} == look(stage, store, 10)
    stage.clock.ahead += 1800
    assert {"login": 1} == look(stage, store)
    assert {"lookup": 1, "renew": 1} == look(stage, store, 10)
    stage.clock.ahead += 1800
    look(stage, store)
    allow(bao, made, 'path "auth/token/lookup-self" { capabilities = ["read"] }')
    stage.clock.ahead += 1800
    look(stage, store)
    assert {"lookup": 10} == look(stage, store, 10)  # a policy that was mended is seen by the next token


def test_each_revoked_token_is_replaced(bao: Bao, stage: Stage) -> None:
    """One after the other, at the next look: two of them do not mean that the policy forbids to ask."""
    store = stage.store(bao.url, auth=login_of(role(bao, mount="revoking")))
    look(stage, store)
    for _ in range(3):
        assert revoke_all(bao, "auth/revoking/login") > 0
        assert {"login": 1, "lookup": 1, "renew": 1} == look(stage, store)
        assert {"lookup": 1} == look(stage, store)


def test_a_renewal_that_adds_nothing_is_not_repeated(stage: Stage) -> None:
    """The max TTL is reached: looked up from then on, and replaced when half the first lease is left."""

    def granted(token: str, lease: int) -> object:
        return {"auth": {"client_token": token, "lease_duration": lease, "renewable": True}}

    login = Exchange(method="POST", path="/v1/auth/approle/login", answer=granted("t1", 60))
    renewal = Exchange(method="POST", path="/v1/auth/token/renew-self", answer=granted("t1", 38))
    lookup = Exchange(method="GET", path="/v1/auth/token/lookup-self", answer={"data": {"ttl": 30}})
    again = Exchange(method="POST", path="/v1/auth/approle/login", answer=granted("t2", 60))
    store = stage.store("http://vault", auth=AppRoleAuth(role_id=lambda: "r", secret_id=lambda: "s"))
    tape = Tape(login, lookup, renewal, lookup, lookup, lookup, again, lookup)
    tape.into(store)
    for ahead in (1, 21, 3, 3, 5, 1):
        stage.clock.ahead += ahead
        store.renew()
    assert [] == tape.left


def test_a_path_that_is_denied_costs_ever_fewer_logins(bao: Bao, stage: Stage) -> None:
    """New tokens are refused as well: the next one is tried later each time, up to a quarter of an hour."""
    made = role(bao)
    store = stage.store(bao.url, auth=login_of(made))

    def denied(times: int) -> int:
        before = len(stage.asked("login"))
        for _ in range(times):
            stage.clock.ahead += 61
            with pytest.raises(Permanent) as caught:
                store.read("elsewhere/a")
            assert Reason.VAULT_DENIED is caught.value.reason
        return len(stage.asked("login")) - before

    assert 4 == denied(10)  # the first, then after 1, 2 and 4 minutes
    denied(20)
    allow(bao, made, 'path "secret/data/elsewhere/a" { capabilities = ["read"] }')
    stage.clock.ahead += 900
    assert 0 == store.read("elsewhere/a").version
    stage.clock.ahead += 61
    before = len(stage.asked("login"))
    with pytest.raises(Permanent):
        store.read("elsewhere/b")  # and from then on a minute is enough again
    assert 1 == len(stage.asked("login")) - before


def test_many_refusals_at_once_count_as_one(bao: Bao, stage: Stage) -> None:
    """A fleet whose policy was narrowed is refused all at once: one login, and the next after two minutes."""
    store = stage.store(bao.url, auth=login_of(role(bao)))
    store.ready()
    stage.clock.ahead += 61

    def denied(number: int) -> Reason:
        with pytest.raises(Permanent) as caught:
            store.read(f"elsewhere/{number}")
        return caught.value.reason

    with ThreadPoolExecutor(8) as pool:
        assert [Reason.VAULT_DENIED] * 32 == list(pool.map(denied, range(32)))
    assert 2 == len(stage.asked("login"))
    stage.clock.ahead += 125
    denied(0)
    assert 3 == len(stage.asked("login"))


def test_a_role_that_others_have_locked(bao: Bao, stage: Stage) -> None:
    """While it is locked our right secret id is refused; asking prolongs nothing, and it is in as soon as it may be."""
    made = role(bao, mount="locking")
    lock = {"lockout_threshold": "3", "lockout_duration": "2s", "lockout_counter_reset_duration": "2s"}
    bao.must("POST", "sys/auth/locking/tune", {"user_lockout_config": lock})
    wrong = f'{{"role_id": "{made.role_id}", "secret_id": "made-up"}}'.encode()
    for _ in range(4):
        post(f"{bao.url}/v1/auth/locking/login", wrong, {})
    store = stage.store(bao.url, auth=login_of(made))
    for _ in range(5):
        with pytest.raises(Permanent, match="where it is locked"):
            store.ready()

    def ready() -> bool:
        try:
            store.ready()
        except Permanent:
            return False
        return True

    until(ready, "the end of the lock")
    assert {"403", "200"} == {code for _, code in stage.asked("login")}


def test_a_renewed_certificate_is_shown_at_the_next_login(stage: Stage, tmp_path: Path) -> None:
    """The kept connection was made with the old one."""
    vault = TlsVault(tmp_path)
    try:
        vault.start()
        enable(vault, "cert", "cert")
        body = {"token_ttl": "1h", "token_policies": policy(vault)}

        def renewed() -> tuple[str, str]:
            files = client_certificate(tmp_path, "rotator")
            vault.must("POST", "auth/cert/certs/rotator", {**body, "certificate": Path(files[0]).read_text()})
            return files

        more = {"ca_file": vault.ca_file, "client_cert": renewed()}
        store = stage.store(vault.tls_url, auth=CertAuth(role="rotator"), **more)
        store.ready()
        renewed()
        assert revoke_all(vault, "auth/cert/login") > 0
        store.read("mqtt/a")
        assert [("login", "200")] * 2 == stage.asked("login")
    finally:
        vault.stop()


# --- a token from elsewhere -----------------------------------------------------------------------------------------


def given(bao: Bao, **more: object) -> TokenAuth:
    """A token such as an agent puts into its sink."""
    made: str = bao.must("POST", "auth/token/create", {"policies": ["root"], **more})["auth"]["client_token"]
    return TokenAuth(token=lambda: made)


def test_a_given_token_is_looked_up_once_a_look(bao: Bao, stage: Stage) -> None:
    """Though both halves of the look want to know."""
    store = stage.store(bao.url, auth=given(bao, ttl="1h"))
    assert {"lookup": 5} == look(stage, store, 5)


@pytest.mark.parametrize("life", [{"ttl": "20m"}, {"period": "20m"}], ids=str)
def test_a_given_token_that_is_renewed_is_long_enough(bao: Bao, stage: Stage, life: dict[str, object]) -> None:
    """A rotation may last longer than its lease, since it is renewed meanwhile."""
    store = stage.store(bao.url, auth=given(bao, **life))
    store.preflight("mqtt/a", lasting=timedelta(hours=5))


def test_a_given_token_at_its_max_ttl(stage: Stage) -> None:
    """A renewal adds nothing: it is not asked for again, and what lasts longer than the token is not begun."""

    def lookup(ttl: int) -> Exchange:
        data = {"ttl": ttl, "creation_ttl": 1200, "renewable": True, "expire_time": "2026-01-01T00:00:00Z"}
        return Exchange(method="GET", path="/v1/auth/token/lookup-self", answer={"data": data})

    renewal = Exchange(
        method="POST", path="/v1/auth/token/renew-self", answer={"auth": {"client_token": "t", "lease_duration": 600}}
    )
    store = stage.store("http://vault", auth=TokenAuth(token=lambda: "t"))
    tape = Tape(lookup(600), renewal, lookup(590), lookup(580), lookup(580))
    tape.into(store)
    for _ in range(2):
        store.renew()
        stage.clock.ahead += 10
    with pytest.raises(Permanent, match="ends in 580 s and can't be renewed") as caught:
        store._login.ensure_life(3600)
    assert Reason.VAULT_AUTH is caught.value.reason
    assert [] == tape.left
