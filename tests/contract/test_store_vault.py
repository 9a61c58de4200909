"""The Vault store on a real OpenBao, and on exchanges recorded at a real Vault 1.8."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contract.bao_server import ROOT_TOKEN, Bao
from contract.vault_replay import Exchange, VaultReplay, recorded
from rotator.clock import SystemClock
from rotator.errors import Conflict, Permanent, RotatorError, Transient
from rotator.model import RequestDone, StoredSecret
from rotator.ports import Store
from rotator.reasons import Reason
from rotator.stores import AppRoleAuth, TokenAuth, VaultStore

POLICY = """
path "secret/data/mqtt/*" { capabilities = ["create", "update", "read"] }
path "secret/data/readonly/*" { capabilities = ["read"] }
path "secret/data/writeonly/*" { capabilities = ["create", "update"] }
path "secret/data/nocreate/*" { capabilities = ["update", "read"] }
"""


class AheadClock(SystemClock):
    """The machine's clock, to which a test may add."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


Build = Callable[..., VaultStore]


@pytest.fixture
def clock() -> AheadClock:
    """A clock that can be moved forward."""
    return AheadClock()


@pytest.fixture
def done() -> list[RequestDone]:
    """What the store reported of its requests."""
    return []


@pytest.fixture
def build(clock: AheadClock, done: list[RequestDone]) -> Iterator[Build]:
    """Makes stores and closes them."""
    made: list[VaultStore] = []

    def make(*urls: str, auth: TokenAuth | AppRoleAuth | None = None, **more: Any) -> VaultStore:
        more.setdefault("timeout", timedelta(seconds=5))
        given = auth or TokenAuth(token=lambda: ROOT_TOKEN)
        store = VaultStore(urls=urls, auth=given, clock=clock, on_request=done.append, **more)
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture
def path() -> str:
    """A path that no other test uses."""
    return f"mqtt/{uuid.uuid4()}"


def operations(done: list[RequestDone]) -> list[tuple[str, str]]:
    """Operation and code of each request."""
    return [(each.operation, each.code) for each in done]


def role(bao: Bao, *, ttl: str = "1h", max_ttl: str = "2h", **more: object) -> AppRoleAuth:
    """A new AppRole with the test's policy."""
    name = f"rotator-{uuid.uuid4()}"
    bao.must("PUT", f"sys/policies/acl/{name}", {"policy": POLICY})
    bao.api("POST", "sys/auth/approle", {"type": "approle"})
    settings = {"token_policies": name, "token_ttl": ttl, "token_max_ttl": max_ttl, **more}
    bao.must("POST", f"auth/approle/role/{name}", settings)
    role_id = bao.must("GET", f"auth/approle/role/{name}/role-id")["data"]["role_id"]
    secret_id = bao.must("POST", f"auth/approle/role/{name}/secret-id", {})["data"]["secret_id"]
    return AppRoleAuth(role_id=lambda: role_id, secret_id=lambda: secret_id)


def held(bao: Bao, path: str) -> Mapping[str, Any]:
    """What the server holds, asked without the store."""
    data: Mapping[str, Any] = bao.must("GET", f"secret/data/{path}")["data"]["data"]
    return data


# --- read and put on a real server ---------------------------------------------------------------------------------


def test_the_first_put_and_all_that_follow(bao: Bao, build: Build, path: str) -> None:
    """Never written is version 0; each put makes the next version; the same put again makes none."""
    store: Store = build(bao.url)
    assert StoredSecret(version=0, data=None) == store.read(path)
    fields = {"username": "u1", "password": "p1"}
    assert 1 == store.put(path, fields)
    assert 1 == store.put(path, fields)
    assert 2 == store.put(path, {**fields, "password": "p2"})
    assert StoredSecret(version=2, data={"username": "u1", "password": "p2"}) == store.read(path)


def test_what_others_keep_there_stays_as_it_is(bao: Bao, build: Build, path: str) -> None:
    """Foreign fields keep their JSON type; read shows those that are no strings as JSON text."""
    foreign = {"port": 8883, "tls": True, "tags": ["a", {"b": None}], "ratio": 0.5, "none": None, "password": "old"}
    bao.must("POST", f"secret/data/{path}", {"data": foreign})
    store = build(bao.url)
    assert 2 == store.put(path, {"password": "new"}, expected={"password": "old"})
    assert {**foreign, "password": "new"} == held(bao, path)
    shown = store.read(path).data
    assert shown is not None
    assert ("8883", "true", '["a", {"b": null}]', "null") == tuple(shown[n] for n in ("port", "tls", "tags", "none"))


@pytest.mark.parametrize("how", ["delete", "destroy"])
def test_a_deleted_version_still_counts(bao: Bao, build: Build, path: str, how: str) -> None:
    """Data None with the version that the next cas needs; a put writes over it."""
    store = build(bao.url)
    store.put(path, {"password": "p1"})
    if how == "delete":
        bao.must("DELETE", f"secret/data/{path}")
    else:
        bao.must("PUT", f"secret/destroy/{path}", {"versions": [1]})
    assert StoredSecret(version=1, data=None) == store.read(path)
    assert 2 == store.put(path, {"password": "p2"})
    assert {"password": "p2"} == held(bao, path)


@pytest.mark.parametrize(
    ("there", "expected", "conflict"),
    [
        ({"password": "old", "note": "x"}, {"password": "old"}, False),
        ({"password": "new"}, {"password": "old"}, False),
        ({"password": "theirs"}, {"password": "old"}, True),
        ({"password": "theirs"}, {"password": None}, True),
        ({"note": "x"}, {"password": None}, False),
        ({"note": "x"}, {"password": "old"}, True),
        ({"password": "theirs"}, None, False),
        ({"password": 5}, {"password": "5"}, False),
        ({"password": 5}, {"password": "old"}, True),
    ],
)
def test_nobody_is_overwritten(
    bao: Bao, build: Build, path: str, there: dict[str, object], expected: dict[str, str | None] | None, conflict: bool
) -> None:
    """Our field must hold what was last seen there, or already what is to be written (rule 3)."""
    bao.must("POST", f"secret/data/{path}", {"data": there})
    store = build(bao.url)
    if not conflict:
        store.put(path, {"password": "new"}, expected=expected)
        assert {**there, "password": "new"} == held(bao, path)
        return
    with pytest.raises(Conflict) as caught:
        store.put(path, {"password": "new"}, expected=expected)
    assert Reason.VAULT_CONFLICT is caught.value.reason
    assert "theirs" not in str(caught.value)
    assert there == held(bao, path)


def test_writers_of_other_fields_do_not_lose_each_other(bao: Bao, build: Build, path: str) -> None:
    """Sixteen threads put a field each through one store; after the cas conflicts all fields are there."""
    store = build(bao.url)

    def write(number: int) -> None:
        written = 0
        while not written:
            try:
                written = store.put(path, {f"f{number}": "v"})
            except Transient as exc:
                if exc.reason is not Reason.VAULT_CONFLICT:
                    raise

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(16)))
    assert {f"f{number}": "v" for number in range(16)} == held(bao, path)


@pytest.mark.parametrize("bad", ["", "/", "a//b", "../x", "a/./b", "a\nb"])
def test_a_path_that_a_url_would_swallow_is_refused(build: Build, bad: str) -> None:
    """No request is made for it."""
    with pytest.raises(Permanent) as caught:
        build("http://127.0.0.1:9").read(bad)
    assert Reason.VAULT_PATH_INVALID is caught.value.reason


def test_odd_paths_and_values_come_back_whole(bao: Bao, build: Build, path: str) -> None:
    """Blanks, percent signs, question marks and umlauts in the path, anything in the value."""
    store = build(bao.url)
    odd = f"/{path}/ä b%20c?d#e+f&g/"
    assert 1 == store.put(odd, {"password": 'ö"\\\n\u2028{}'})
    assert {"password": 'ö"\\\n\u2028{}'} == store.read(odd.strip("/")).data


# --- login ---------------------------------------------------------------------------------------------------------


def test_approle_logs_in_once_for_all_threads(bao: Bao, build: Build, done: list[RequestDone], path: str) -> None:
    """Sixteen threads that start together share one login."""
    store = build(bao.url, auth=role(bao))
    with ThreadPoolExecutor(16) as pool:
        versions = list(pool.map(lambda number: store.put(f"{path}/{number}", {"password": "p"}), range(32)))
    assert [1] * 32 == versions
    assert [("login", "200")] == [each for each in operations(done) if each[0] == "login"]


def test_a_revoked_token_is_replaced(bao: Bao, build: Build, done: list[RequestDone], path: str) -> None:
    """On a 403 the token is looked up, found dead, replaced, and the request made again."""
    store = build(bao.url, auth=role(bao))
    store.put(path, {"password": "p1"})
    accessors = bao.must("LIST", "auth/token/accessors")["data"]["keys"]
    for accessor in accessors:
        found = bao.must("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
        if found["path"] == "auth/approle/login":
            bao.must("POST", "auth/token/revoke-accessor", {"accessor": accessor})
    done.clear()
    assert {"password": "p1"} == store.read(path).data
    assert [("read", "403"), ("lookup", "403"), ("login", "200"), ("read", "200")] == operations(done)


def test_a_policy_that_forbids_spends_no_login(bao: Bao, build: Build, done: list[RequestDone]) -> None:
    """A living young token that is refused is a denial, not a reason to log in."""
    store = build(bao.url, auth=role(bao))
    with pytest.raises(Permanent) as caught:
        store.read("elsewhere/x")
    assert Reason.VAULT_DENIED is caught.value.reason
    assert [("login", "200"), ("read", "403"), ("lookup", "200")] == operations(done)


def test_a_mended_role_is_found_after_a_minute(bao: Bao, build: Build, clock: AheadClock, path: str) -> None:
    """Policies added to the role reach only a new token, so an older one is replaced when it is refused."""
    auth = role(bao)
    store = build(bao.url, auth=auth)
    with pytest.raises(Permanent):
        store.read("elsewhere/x")
    name = f"mend-{uuid.uuid4()}"
    bao.must("PUT", f"sys/policies/acl/{name}", {"policy": 'path "secret/data/*" { capabilities = ["read"] }'})
    for found in bao.must("LIST", "auth/approle/role")["data"]["keys"]:
        if bao.must("GET", f"auth/approle/role/{found}/role-id")["data"]["role_id"] == auth.role_id():
            bao.must("POST", f"auth/approle/role/{found}", {"token_policies": name})
    clock.ahead += 61
    assert 0 == store.read("elsewhere/x").version


def test_a_wrong_secret_id_is_vault_auth(bao: Bao, build: Build) -> None:
    """A refused login names itself and shows nothing."""
    good = role(bao)
    store = build(bao.url, auth=AppRoleAuth(role_id=good.role_id, secret_id=lambda: "made-up-secret-id"))
    for verb in (store.ready, store.renew, lambda: store.read("mqtt/x"), lambda: store.preflight("mqtt/x")):
        with pytest.raises(Permanent) as caught:
            verb()
        assert Reason.VAULT_AUTH is caught.value.reason
        assert "made-up-secret-id" not in str(caught.value)


def test_a_dead_token_is_vault_auth(bao: Bao, build: Build, path: str) -> None:
    """A given token that Vault does not know is no matter of policy."""
    store = build(bao.url, auth=TokenAuth(token=lambda: "made-up-token"))
    for verb in (store.ready, store.renew, lambda: store.read(path), lambda: store.preflight(path)):
        with pytest.raises(Permanent) as caught:
            verb()
        assert Reason.VAULT_AUTH is caught.value.reason
        assert "made-up-token" not in str(caught.value)


def test_a_new_token_in_the_file_is_taken_up(bao: Bao, build: Build, path: str) -> None:
    """When the given token is refused it is read anew, as an agent may have written another."""
    tokens = ["made-up-token"]
    store = build(bao.url, auth=TokenAuth(token=lambda: tokens[-1]))
    with pytest.raises(Permanent):
        store.read(path)
    tokens.append(ROOT_TOKEN)
    assert 0 == store.read(path).version


@pytest.mark.parametrize("token", ["", "has blank", "line\nbreak", "ümlaut"])
def test_a_token_that_no_header_takes_is_refused(build: Build, token: str) -> None:
    """It is VAULT_AUTH before a request is made."""
    with pytest.raises(Permanent) as caught:
        build("http://127.0.0.1:9", auth=TokenAuth(token=lambda: token)).read("a")
    assert Reason.VAULT_AUTH is caught.value.reason


def test_renew_says_when_the_token_ends(bao: Bao, build: Build, done: list[RequestDone]) -> None:
    """A root token never ends; a role's ends a lease from now; a given one that can be renewed is."""
    assert build(bao.url).renew() is None
    store = build(bao.url, auth=role(bao))
    ends = store.renew()
    assert ends is not None
    assert timedelta(minutes=59) < ends - datetime.now(UTC) <= timedelta(minutes=60)
    child = bao.must("POST", "auth/token/create", {"ttl": "10m", "policies": ["default"]})["auth"]["client_token"]
    done.clear()
    ends = build(bao.url, auth=TokenAuth(token=lambda: child)).renew()
    assert ends is not None
    assert timedelta(minutes=9) < ends - datetime.now(UTC) <= timedelta(minutes=10)
    assert [("lookup", "200"), ("renew", "200")] == operations(done)


def test_a_renewal_cut_short_by_max_ttl_leads_to_a_new_login(bao: Bao, build: Build, done: list[RequestDone]) -> None:
    """Where max_ttl leaves less than half a lease, a new token is fetched while the old one still works."""
    store = build(bao.url, auth=role(bao, ttl="4s", max_ttl="5s"))
    store.ready()
    deadline = threading.Event()
    for _ in range(40):
        deadline.wait(0.25)
        ends = store.renew()
        assert ends is not None
        assert ends > datetime.now(UTC)
        if [code for operation, code in operations(done) if operation == "login"] == ["200", "200"]:
            return
    pytest.fail("no second login")


# --- preflight -----------------------------------------------------------------------------------------------------


def test_preflight_passes_where_all_is_well(bao: Bao, build: Build, path: str) -> None:
    """A new path, a written path and a deleted one may be written by the least policy; nothing changes."""
    store = build(bao.url, auth=role(bao))
    store.preflight(path)
    assert 0 == store.read(path).version
    store.put(path, {"password": "p"})
    store.preflight(path)
    bao.must("DELETE", f"secret/data/{path}")
    store.preflight(path)
    assert 1 == store.read(path).version


@pytest.mark.parametrize(
    ("place", "missing"),
    [("elsewhere", "`read`"), ("readonly", "`create`"), ("writeonly", "`read`"), ("nocreate", "`create`")],
)
def test_preflight_names_the_missing_capability(bao: Bao, build: Build, place: str, missing: str) -> None:
    """VAULT_DENIED says what to add to the policy, and where."""
    path = f"{place}/{uuid.uuid4()}"
    with pytest.raises(Permanent) as caught:
        build(bao.url, auth=role(bao)).preflight(path)
    assert Reason.VAULT_DENIED is caught.value.reason
    assert missing in str(caught.value)
    assert f"secret/data/{path}" in str(caught.value)


def test_preflight_refuses_a_mount_of_version_1(bao: Bao, build: Build) -> None:
    """A KV version 1 mount would take a version 2 write as plain data: it is refused with the remedy."""
    mount = f"kv1-{uuid.uuid4()}"
    bao.must("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": "1"}})
    with pytest.raises(Permanent) as caught:
        build(bao.url, mount=mount).preflight("a")
    assert Reason.VAULT_PATH_INVALID is caught.value.reason
    assert f"vault kv enable-versioning {mount}" in str(caught.value)


@pytest.mark.parametrize("mount", ["nowhere", "sys", "cubbyhole"])
def test_a_mount_that_is_not_kv_is_refused(bao: Bao, build: Build, mount: str) -> None:
    """No engine, or another one, is VAULT_PATH_INVALID."""
    with pytest.raises(Permanent) as caught:
        build(bao.url, mount=mount).preflight("a")
    assert Reason.VAULT_PATH_INVALID is caught.value.reason


def test_preflight_refuses_a_token_about_to_end(bao: Bao, build: Build) -> None:
    """A given token with seconds to live, which can't be renewed, must not start a rotation (rule 8)."""
    settings = {"ttl": "20s", "explicit_max_ttl": "20s", "policies": ["root"], "renewable": False}
    short = bao.must("POST", "auth/token/create", settings)["auth"]["client_token"]
    with pytest.raises(Permanent) as caught:
        build(bao.url, auth=TokenAuth(token=lambda: short)).preflight("mqtt/a")
    assert Reason.VAULT_AUTH is caught.value.reason


def test_preflight_lives_with_a_role_of_short_tokens(bao: Bao, build: Build, path: str) -> None:
    """AppRole can log in again at any time, so short leases pass."""
    build(bao.url, auth=role(bao, ttl="5s", max_ttl="10s")).preflight(path)


def test_sealed_and_unsealed_again(tmp_path: Path, build: Build) -> None:
    """Sealed is Transient and named by every verb; after the unseal the same store goes on."""
    server = Bao(tmp_path)
    server.start()
    try:
        store = build(server.url)
        store.put("mqtt/a", {"password": "p1"})
        key = server.unseal_key()
        server.must("PUT", "sys/seal", {})
        for verb in (
            store.ready,
            lambda: store.preflight("mqtt/a"),
            lambda: store.read("mqtt/a"),
            lambda: store.put("mqtt/a", {"password": "p2"}),
            store.renew,
        ):
            with pytest.raises(Transient) as caught:
                verb()
            assert Reason.VAULT_SEALED is caught.value.reason
        server.must("PUT", "sys/unseal", {"key": key})
        store.ready()
        assert 2 == store.put("mqtt/a", {"password": "p2"})
    finally:
        server.stop()
    with pytest.raises(Transient) as caught:
        store.ready()
    assert Reason.VAULT_UNREACHABLE is caught.value.reason


def test_the_next_address_is_tried(bao: Bao, build: Build, done: list[RequestDone], path: str) -> None:
    """With the first address dead the second serves, and is asked first from then on."""
    store = build("http://127.0.0.1:9", bao.url)
    store.ready()
    done.clear()
    assert 1 == store.put(path, {"password": "p"})
    assert [("read", "404"), ("write", "200")] == operations(done)


def test_requests_are_reported_with_the_servers_clock(bao: Bao, build: Build, done: list[RequestDone]) -> None:
    """Peer, operation, code, seconds and skew of each request."""
    build(bao.url).preflight("mqtt/x")
    assert [("health", "200"), ("lookup", "200"), ("mounts", "200"), ("capabilities", "200"), ("read", "404")] == (
        operations(done)
    )
    for each in done:
        assert "vault" == each.peer
        assert each.skew is not None
        assert abs(each.skew) < timedelta(seconds=2)
        assert 0 < each.seconds < 5


def test_nothing_secret_is_shown(
    bao: Bao, build: Build, path: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither reprs nor logs at DEBUG hold a value or a token."""
    caplog.set_level(logging.DEBUG)
    store = build(bao.url)
    store.put(path, {"password": "made-up-value"})
    found = store.read(path)
    shown = repr(store) + repr(found) + caplog.text + "".join(capsys.readouterr())
    assert "made-up-value" not in shown
    assert ROOT_TOKEN not in shown


# --- recorded at Vault 1.8 -----------------------------------------------------------------------------------------

HEALTHY = recorded("health of an active, unsealed server")


def exchange(note: str, **changes: Any) -> Exchange:
    """A recorded exchange with some fields changed."""
    return replace(recorded(note), **changes)


def test_vault_reads_and_writes(build: Build) -> None:
    """First write with cas 0, a mismatch read again, a soft-deleted version written over with its own cas."""
    first = recorded("first write, cas 0")
    with VaultReplay(recorded("read of a secret that was never written"), first) as vault:
        assert 1 == build(vault.url).put("mqtt/a", {"username": "u1", "password": "p1"})
        assert {ROOT_TOKEN} == set(vault.tokens)
    latest = recorded("read latest")
    mismatch = exchange("cas too low", body={"options": {"cas": 3}, "data": {"username": "u1", "password": "p4"}})
    written = exchange("cas 1", body=mismatch.body)
    with VaultReplay(latest, mismatch, latest, written) as vault:
        assert 2 == build(vault.url).put("mqtt/a", {"password": "p4"}, expected={"password": "p3"})
    deleted, over = recorded("read of a soft-deleted latest version"), recorded("and passes with it")
    with VaultReplay(deleted, deleted, over) as vault:
        store = build(vault.url)
        assert StoredSecret(version=3, data=None) == store.read("mqtt/a")
        assert 4 == store.put("mqtt/a", {"password": "p4"})


def test_a_destroyed_version_has_no_data(build: Build) -> None:
    """hvac would call it a wrong path, since its deletion_time is empty."""
    with VaultReplay(exchange("read of a destroyed version", path="/v1/secret/data/mqtt/a")) as vault:
        assert StoredSecret(version=1, data=None) == build(vault.url).read("mqtt/a")


def test_five_mismatches_are_enough(build: Build) -> None:
    """A path that changes under every write is given back to the engine, named."""
    pair = (recorded("read latest"), exchange("cas too low", body=None))
    with VaultReplay(*pair * 5) as vault, pytest.raises(Transient) as caught:
        build(vault.url).put("mqtt/a", {"password": "p9"})
    assert Reason.VAULT_CONFLICT is caught.value.reason


def test_a_write_whose_answer_was_lost_is_found_by_reading(build: Build, done: list[RequestDone]) -> None:
    """The cut is Transient; the next put finds that it happened and writes nothing."""
    before = recorded("read latest")
    cut = Exchange(method="POST", path="/v1/secret/data/mqtt/a", cut=True)
    answer = json.loads(json.dumps(before.answer))
    answer["data"]["data"]["password"] = "p4"
    answer["data"]["metadata"]["version"] = 4
    after = exchange("read latest", answer=answer)
    with VaultReplay(before, cut, after) as vault:
        store = build(vault.url)
        with pytest.raises(Transient) as caught:
            store.put("mqtt/a", {"password": "p4"})
        assert Reason.VAULT_UNREACHABLE is caught.value.reason
        assert 4 == store.put("mqtt/a", {"password": "p4"}, expected={"password": "p3"})


def test_a_cut_write_at_one_address_is_settled_at_the_next(build: Build) -> None:
    """The second address answers the same cas with a mismatch, and the reading shows that it had happened."""
    before, mismatch = recorded("read latest"), exchange("cas too low", body=None)
    answer = json.loads(json.dumps(before.answer))
    answer["data"]["data"]["password"] = "p4"
    answer["data"]["metadata"]["version"] = 4
    cut = Exchange(method="POST", path="/v1/secret/data/mqtt/a", cut=True)
    with VaultReplay(before, cut) as one, VaultReplay(mismatch, exchange("read latest", answer=answer)) as two:
        assert 4 == build(one.url, two.url).put("mqtt/a", {"password": "p4"})


def approle_of(login: Exchange) -> AppRoleAuth:
    """The credentials that a recorded login sends."""
    body = login.body
    assert isinstance(body, dict)
    return AppRoleAuth(role_id=lambda: body["role_id"], secret_id=lambda: body["secret_id"])


def test_vault_logs_in_renews_and_logs_in_again(build: Build) -> None:
    """The token of the login is used and renewed; when it has expired one login and the request again."""
    login = recorded("approle login")
    expired, again = recorded("use of a token that has expired"), recorded("second approle login uses the secret id up")
    dead = Exchange(
        method="GET", path="/v1/auth/token/lookup-self", status=403, answer={"errors": ["permission denied"]}
    )
    read = exchange("read latest", path="/v1/secret/data/mqtt/b")
    replayed = (login, recorded("renew-self"), expired, dead, again, read)
    with VaultReplay(*replayed) as vault:
        store = build(vault.url, auth=approle_of(login))
        ends = store.renew()
        assert ends is not None
        assert timedelta(0) < ends - datetime.now(UTC) <= timedelta(seconds=3)
        assert 3 == store.read("mqtt/b").version
        assert [None, "<opaque-2>", "<opaque-2>", "<opaque-2>", None, "<opaque-3>"] == vault.tokens


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        ("approle login, wrong secret id", Reason.VAULT_AUTH),
        ("approle login, wrong role id", Reason.VAULT_AUTH),
        ("third approle login: the secret id is used up", Reason.VAULT_AUTH),
        ("approle login on a sealed server", Reason.VAULT_SEALED),
    ],
)
def test_a_failed_login_is_named(build: Build, note: str, reason: Reason) -> None:
    """400 is how Vault refuses a login; a sealed one is another matter."""
    login = recorded(note)
    with VaultReplay(login) as vault, pytest.raises(RotatorError) as caught:
        build(vault.url, auth=approle_of(login)).read("mqtt/a")
    assert reason is caught.value.reason


def test_a_root_token_is_not_renewed(build: Build) -> None:
    """ttl 0 without an end means that it never ends."""
    with VaultReplay(recorded("lookup-self of a root token: ttl 0, never expires")) as vault:
        assert build(vault.url).renew() is None


def test_a_refused_renewal_leads_to_a_login(build: Build) -> None:
    """An expired token can't be renewed; AppRole simply logs in."""
    login, again = recorded("approle login"), recorded("second approle login uses the secret id up")
    with VaultReplay(login, recorded("renew of a token that has expired"), again) as vault:
        assert build(vault.url, auth=approle_of(login)).renew() is not None


def test_preflight_at_vault(build: Build) -> None:
    """Health, token, mount, capabilities, read: the recorded answers pass for a path that the policy covers."""
    capabilities = exchange("capabilities of oneself", body={"paths": ["secret/data/mqtt/b"]})
    replayed = (
        HEALTHY,
        recorded("lookup-self of a root token: ttl 0, never expires"),
        exchange("mounts: which engine and version sits at secret/", path="/v1/sys/internal/ui/mounts/secret/mqtt/b"),
        capabilities,
        exchange("read latest", path="/v1/secret/data/mqtt/b"),
    )
    with VaultReplay(*replayed) as vault:
        build(vault.url).preflight("mqtt/b")


def test_preflight_tolerates_a_mount_that_may_not_be_asked(build: Build) -> None:
    """A 403 for the mount says nothing; the capability that is denied is what is told."""
    dead_end = exchange("mounts: a path with no mount", path="/v1/sys/internal/ui/mounts/secret/other/b")
    lookup = recorded("lookup-self of a root token: ttl 0, never expires")
    capabilities = exchange("capabilities of oneself", body={"paths": ["secret/data/other/b"]})
    with VaultReplay(HEALTHY, lookup, dead_end, lookup, capabilities) as vault, pytest.raises(Permanent) as caught:
        build(vault.url).preflight("other/b")
    assert Reason.VAULT_DENIED is caught.value.reason


READ = "/v1/secret/data/mqtt/b"


@pytest.mark.parametrize(
    ("answer", "kind", "reason", "delay"),
    [
        (recorded("read from a sealed server"), Transient, Reason.VAULT_SEALED, None),
        (exchange("unsupported path", path=READ), Permanent, Reason.VAULT_PATH_INVALID, None),
        (exchange("kv v1 style write to a v2 mount", method="GET", path=READ, body=None), Permanent,
         Reason.VAULT_PATH_INVALID, None),
        (Exchange(method="GET", path=READ, status=404, answer=b"<html>not found</html>"), Permanent,
         Reason.VAULT_PATH_INVALID, None),
        (Exchange(method="GET", path=READ, answer={"data": {"password": "of kv 1"}}), Permanent,
         Reason.VAULT_PATH_INVALID, None),
        (Exchange(method="GET", path=READ, status=429, headers={"Retry-After": "7"}), Transient,
         Reason.VAULT_RATE_LIMITED, 7),
        (Exchange(method="GET", path=READ, status=500, answer={"errors": ["internal error"]}), Transient,
         Reason.VAULT_UNAVAILABLE, None),
        (Exchange(method="GET", path=READ, status=502, answer=b"bad"), Transient, Reason.VAULT_UNAVAILABLE, None),
        (Exchange(method="GET", path=READ, status=503, answer=b"none"), Transient, Reason.VAULT_UNAVAILABLE, None),
        (Exchange(method="GET", path=READ, status=504), Transient, Reason.VAULT_UNAVAILABLE, None),
        (Exchange(method="GET", path=READ, status=412), Transient, Reason.VAULT_UNAVAILABLE, None),
        (Exchange(method="GET", path=READ, status=472), Transient, Reason.VAULT_UNAVAILABLE, None),
        (Exchange(method="GET", path=READ, status=400, answer={"errors": ["Upgrading from non-versioned"]}),
         Transient, Reason.VAULT_UNAVAILABLE, None),
        (Exchange(method="GET", path=READ, answer=b"<html>portal</html>"), Transient, Reason.VAULT_UNAVAILABLE, None),
        (Exchange(method="GET", path=READ, answer=[1]), Transient, Reason.VAULT_UNAVAILABLE, None),
        (Exchange(method="GET", path=READ, status=405, answer={"errors": ["unsupported operation"]}), Permanent,
         Reason.VAULT_PATH_INVALID, None),
        (Exchange(method="GET", path=READ, cut=True), Transient, Reason.VAULT_UNREACHABLE, None),
    ],
)  # fmt: skip
def test_every_answer_has_its_error(
    build: Build, answer: Exchange, kind: type[RotatorError], reason: Reason, delay: float | None
) -> None:
    """Whatever Vault, or a proxy before it, answers to a read is named."""
    with VaultReplay(answer) as vault, pytest.raises(RotatorError) as caught:
        build(vault.url).read("mqtt/b")
    assert (kind, reason) == (type(caught.value), caught.value.reason)
    wanted = None if delay is None else timedelta(seconds=delay)
    assert wanted == getattr(caught.value, "retry_after", None)


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        ("write with a body that has no data", Reason.VAULT_PATH_INVALID),
        ("write that the policy forbids", Reason.VAULT_DENIED),
    ],
)
def test_a_refused_write_is_permanent(build: Build, note: str, reason: Reason) -> None:
    """A 400 that is no cas mismatch, and a 403 with a living token."""
    read = exchange("read latest", path="/v1/secret/data/mqtt/a")
    refused = exchange(note, path="/v1/secret/data/mqtt/a", body=None)
    alive = [recorded("lookup-self of a root token: ttl 0, never expires")] if reason is Reason.VAULT_DENIED else []
    with VaultReplay(read, refused, *alive) as vault, pytest.raises(Permanent) as caught:
        build(vault.url).put("mqtt/a", {"password": "p9"})
    assert reason is caught.value.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (recorded("health of a sealed server"), Reason.VAULT_SEALED),
        (
            Exchange(method="GET", path="/v1/sys/health", status=501, answer={"initialized": False}),
            Reason.VAULT_UNAVAILABLE,
        ),
        (Exchange(method="GET", path="/v1/sys/health", status=472, answer={}), Reason.VAULT_UNAVAILABLE),
        (Exchange(method="GET", path="/v1/sys/health", status=503, answer=b"lb"), Reason.VAULT_UNAVAILABLE),
    ],
)
def test_ready_says_why_not(build: Build, answer: Exchange, reason: Reason) -> None:
    """Health answers other than active and standby."""
    with VaultReplay(answer) as vault, pytest.raises(Transient) as caught:
        build(vault.url).ready()
    assert reason is caught.value.reason


@pytest.mark.parametrize("status", [429, 473])
def test_a_standby_serves(build: Build, status: int) -> None:
    """Standbys forward requests: they are ready."""
    health = exchange("health of an active, unsealed server", status=status)
    with VaultReplay(health, recorded("lookup-self of a root token: ttl 0, never expires")) as vault:
        build(vault.url).ready()


def test_a_sealed_address_is_passed_over(build: Build) -> None:
    """The second address serves where the first is sealed."""
    lookup = recorded("lookup-self of a root token: ttl 0, never expires")
    with VaultReplay(recorded("health of a sealed server")) as sealed, VaultReplay(HEALTHY, lookup) as active:
        build(sealed.url, active.url).ready()
