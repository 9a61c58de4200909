"""The Vault store on real servers: what preflight and survey look at, and that what they advise really helps."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from contract.bao_server import Bao
from contract.store_stage import Role, StoreStage, held, least_policy
from rotator.errors import Permanent
from rotator.model import StoredSecret
from rotator.reasons import Reason
from rotator.stores import TokenAuth
from rotator.stores.vault import CHECK_HOLDS

MAY_ASK = 'path "sys/capabilities-self" { capabilities = ["update"] }\n'
ALL = 'path "secret/data/mqtt/*" { capabilities = ["create", "update", "read"] }\n'
SOON = timedelta(hours=1)


def lines_of(error: Permanent) -> str:
    """The policy lines that an error advises."""
    _, found, lines = str(error).partition("add: ")
    assert found, error
    return lines


def denied(error: pytest.ExceptionInfo[Permanent]) -> Permanent:
    """A refusal for want of a capability."""
    assert Reason.VAULT_DENIED is error.value.reason
    return error.value


# --- where all is well ---------------------------------------------------------------------------------------------


def test_what_preflight_asks(server: Bao, stage: StoreStage, path: str) -> None:
    """All capabilities in one call; a new, a written and a deleted path pass; nothing changes; answers are kept."""
    store = stage.store(server.url, auth=Role(server).auth)
    assert StoredSecret(version=0, data=None) == store.preflight(path)
    looked = [("health", "200"), ("login", "200"), ("mounts", "200"), ("capabilities", "200"), ("read", "404")]
    assert looked == stage.operations()
    assert StoredSecret(version=0, data=None) == store.read(path)
    store.put(path, {"password": "p"})
    stage.operations()
    assert StoredSecret(version=1, data={"password": "p"}) == store.preflight(path)
    assert [("read", "200")] == stage.operations()
    server.must("DELETE", f"secret/data/{path}")
    assert StoredSecret(version=1, data=None) == store.preflight(path)
    assert [("read", "404")] == stage.operations()


def test_how_long_the_answers_hold(server: Bao, stage: StoreStage, path: str) -> None:
    """For `CHECK_HOLDS` seconds, for this path only."""
    store = stage.store(server.url, auth=Role(server).auth)
    store.preflight(path)
    stage.clock.ahead += CHECK_HOLDS - 1
    stage.operations()
    store.preflight(path)
    assert ["read"] == [operation for operation, _ in stage.operations()]
    store.preflight(f"{path}-b")
    looked = ["health", "mounts", "capabilities", "read"]
    assert looked == [operation for operation, _ in stage.operations()]
    stage.clock.ahead += 2
    store.preflight(path)
    assert looked == [operation for operation, _ in stage.operations()]


def test_the_way_back_is_looked_at_where_it_is_asked_for(server: Bao, stage: StoreStage, path: str) -> None:
    """`versions` above one costs the metadata, and the mount's configuration where the secret says nothing."""
    store = stage.store(server.url, auth=Role(server).auth)
    store.put(path, {"password": "p"})
    store.preflight(path)
    stage.operations()
    assert 1 == store.preflight(path, versions=2).version
    assert [("read", "200"), ("metadata", "200"), ("config", "200")] == stage.operations()
    server.must("POST", f"secret/metadata/{path}", {"max_versions": 2})
    assert 1 == store.preflight(path, versions=2).version
    assert [("read", "200"), ("metadata", "200")] == stage.operations()


def test_answers_are_asked_anew_after_a_refused_write(server: Bao, stage: StoreStage, path: str) -> None:
    """A policy that was narrowed between preflight and write: the write is refused, and preflight knows it at once."""
    role = Role(server)
    store = stage.store(server.url, auth=role.auth)
    store.put(path, {"password": "p1"})
    store.preflight(path)
    role.allow(MAY_ASK + 'path "secret/data/mqtt/*" { capabilities = ["read"] }')
    stage.operations()
    with pytest.raises(Permanent) as caught:
        store.put(path, {"password": "p2"})
    denied(caught)
    # this policy does not allow lookup-self either: the token is taken for dead, and one login is spent on that
    assert [("read", "200"), ("write", "403"), ("lookup", "403"), ("login", "200"), ("write", "403")] == (
        stage.operations()
    )
    with pytest.raises(Permanent, match="`update`") as caught:
        store.preflight(path)
    assert ["health", "mounts", "capabilities", "read"] == [operation for operation, _ in stage.operations()]
    assert f"secret/data/{path}" in lines_of(denied(caught))
    assert {"password": "p1"} == held(server, path)


# --- what the policy lacks, and the lines that add it --------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "written", "missing"),
    [
        ("", False, ["read"]),
        ('path "secret/*" { capabilities = ["list"] }', False, ["read"]),
        ('path "secret/data/mqtt/*" { capabilities = ["read"] }', False, ["create"]),
        ('path "secret/data/mqtt/*" { capabilities = ["read"] }', True, ["update"]),
        ('path "secret/data/mqtt/*" { capabilities = ["create", "update"] }', False, ["read"]),
        ('path "secret/data/+/*" { capabilities = ["update", "read"] }', False, ["create"]),
        ('path "secret/data/mqtt/*" { capabilities = ["create", "read"] }', True, ["update"]),
        ('path "secret/data/mqtt/*" { capabilities = ["create", "read"] }', False, ["update"]),
        ('path "secret/data/*" { capabilities = ["deny"] }', False, ["read"]),
        (ALL + 'path "secret/data/mqtt/*" { capabilities = ["deny"] }', True, ["read"]),
    ],
)
def test_the_lines_that_preflight_advises_make_it_pass(
    server: Bao, stage: StoreStage, path: str, policy: str, written: bool, missing: list[str]
) -> None:
    """VAULT_DENIED names what is missing and where; with its lines in the policy it passes, and so does the write."""
    if written:
        server.must("POST", f"secret/data/{path}", {"data": {"password": "p1"}})
    role = Role(server, MAY_ASK + policy)
    store = stage.store(server.url, auth=role.auth)
    with pytest.raises(Permanent) as caught:
        store.preflight(path)
    error = denied(caught)
    assert [] == [each for each in missing if f"`{each}`" not in str(error)]
    assert f"on secret/data/{path}" in str(error)
    role.allow(f"{role.policy}\n{lines_of(error)}\n")
    stage.clock.ahead += CHECK_HOLDS + 1
    assert written == store.preflight(path).version
    assert 1 + written == store.put(path, {"password": "p2"})
    assert {"password": "p2"} == held(server, path)


def test_the_lines_do_not_take_what_a_glob_gave(server: Bao, stage: StoreStage, path: str) -> None:
    """An exact path hides a glob rule: the advised line holds what the glob gave, and neighbours stay as they were."""
    role = Role(server, MAY_ASK + 'path "secret/data/mqtt/*" { capabilities = ["read", "update", "delete", "list"] }')
    store = stage.store(server.url, auth=role.auth)
    with pytest.raises(Permanent) as caught:
        store.preflight(path)
    lines = lines_of(denied(caught))
    assert f'path "secret/data/{path}" {{ capabilities = ["create", "delete", "list", "read", "update"] }}' == lines
    role.allow(f"{role.policy}\n{lines}\n")
    stage.clock.ahead += CHECK_HOLDS + 1
    assert 0 == store.preflight(path).version
    with pytest.raises(Permanent, match="`create`"):
        store.preflight(f"{path}-b")


def test_what_vault_calls_new(server: Bao, stage: StoreStage, path: str) -> None:
    """A path with metadata and no version takes `update`, not `create`: both are asked for where version is 0."""
    server.must("POST", f"secret/metadata/{path}", {"max_versions": 3})
    role = Role(server, MAY_ASK + 'path "secret/data/mqtt/*" { capabilities = ["create", "read"] }')
    store = stage.store(server.url, auth=role.auth)
    with pytest.raises(Permanent, match="lacks `update`"):
        store.preflight(path)
    with pytest.raises(Permanent) as caught:
        store.put(path, {"password": "p"})
    denied(caught)


def test_a_policy_that_may_not_ask_what_it_may(server: Bao, stage: StoreStage, path: str) -> None:
    """Without capabilities-self nothing is known: that line is what is advised, and it helps."""
    role = Role(server, ALL)
    store = stage.store(server.url, auth=role.auth)
    for verb in (store.preflight, store.survey):
        with pytest.raises(Permanent, match="capabilities-self") as caught:
            verb(path)
        lines = lines_of(denied(caught))
    role.allow(f"{role.policy}\n{lines}\n")
    assert 0 == store.preflight(path).version


def test_a_survey_names_everything(server: Bao, stage: StoreStage, path: str) -> None:
    """Also what is only useful; its lines added, nothing is missing and every verb works."""
    role = Role(server, MAY_ASK + 'path "secret/data/mqtt/*" { capabilities = ["read"] }')
    store = stage.store(server.url, auth=role.auth)
    found = store.survey(path)
    assert [
        (f"secret/data/{path}", ("create", "update"), True),
        (f"secret/metadata/{path}", ("read",), False),
        (f"secret/metadata/{path}", ("update",), False),
        (f"secret/undelete/{path}", ("update",), False),
    ] == [(each.path, each.capabilities, each.needed) for each in found.missing]
    assert 3 == len(found.policy_lines.splitlines())
    role.allow(f"{role.policy}\n{found.policy_lines}\n")
    stage.clock.ahead += CHECK_HOLDS + 1
    after = store.survey(path)
    assert ([], "", []) == (list(after.missing), after.policy_lines, list(after.notes))
    store.put(path, {"password": "p1"})
    store.annotate(path, {"key": "a"})
    server.must("DELETE", f"secret/data/{path}")
    store.undelete(path, 1)
    assert {"password": "p1"} == held(server, path)
    assert "a" == server.must("GET", f"secret/metadata/{path}")["data"]["custom_metadata"]["key"]


def test_a_path_with_quotes_can_be_advised_on(server: Bao, stage: StoreStage, path: str) -> None:
    """A quote and a backslash in the path are written as HCL has them."""
    odd = path + '/a"b\\c'
    role = Role(server, MAY_ASK)
    store = stage.store(server.url, auth=role.auth)
    role.allow(f"{role.policy}\n{store.survey(odd).policy_lines}\n")
    stage.clock.ahead += CHECK_HOLDS + 1
    assert 0 == store.preflight(odd).version
    assert 1 == store.put(odd, {"password": "p"})


# --- the engine ----------------------------------------------------------------------------------------------------


def test_a_mount_of_version_1_until_it_is_upgraded(server: Bao, stage: StoreStage) -> None:
    """It would take a version 2 write as plain data: refused with the command, which, once run, makes it pass."""
    mount = f"kv1-{uuid.uuid4()}"
    server.engine(mount, version=1)
    server.must("POST", f"{mount}/mqtt/a", {"password": "of version 1"})
    role = Role(server, least_policy(mount))
    store = stage.store(server.url, mount=mount, auth=role.auth)
    for verb in (store.preflight, store.survey, lambda path: store.annotate(path, {"key": "a"})):
        with pytest.raises(Permanent) as caught:
            verb("mqtt/a")
        assert Reason.VAULT_PATH_INVALID is caught.value.reason
        assert f"vault kv enable-versioning {mount}" in str(caught.value)
    # what `vault kv enable-versioning` sends
    server.must("POST", f"sys/mounts/{mount}/tune", {"options": {"version": "2"}})
    server.wait_for_engine(mount)
    assert StoredSecret(version=1, data={"password": "of version 1"}) == store.preflight("mqtt/a")
    assert 2 == store.put("mqtt/a", {"password": "p"})


@pytest.mark.parametrize("mount", ["nowhere", "sys", "cubbyhole", "auth/token"])
def test_a_mount_that_is_not_kv_is_refused(server: Bao, stage: StoreStage, mount: str) -> None:
    """No engine, or another one, is VAULT_PATH_INVALID for a token that may see it, VAULT_DENIED for the daemon's."""
    with pytest.raises(Permanent) as caught:
        stage.store(server.url, mount=mount).preflight("a")
    assert Reason.VAULT_PATH_INVALID is caught.value.reason
    with pytest.raises(Permanent) as caught:
        stage.store(server.url, mount=mount, auth=Role(server).auth).preflight("a")
    assert caught.value.reason in (Reason.VAULT_PATH_INVALID, Reason.VAULT_DENIED)


def test_a_namespace_of_its_own(server: Bao, stage: StoreStage) -> None:
    """Engine, policy and AppRole inside a namespace: the store stays in it, and the root's paths are not touched."""
    name = f"team-{uuid.uuid4()}"
    if server.api("POST", f"sys/namespaces/{name}", {})[0] >= 300:
        pytest.skip("this server has no namespaces")
    server.engine("secret", namespace=name)
    role = Role(server, namespace=name)
    path = f"mqtt/{name}"
    store = stage.store(server.url, auth=role.auth, namespace=name)
    store.ready()
    assert 0 == store.preflight(path, versions=2).version
    assert 1 == store.put(path, {"password": "p"})
    store.annotate(path, {"key": "a"})
    assert ([], "") == (list(store.survey(path).missing), store.survey(path).policy_lines)
    inside = server.must("GET", f"secret/data/{path}", namespace=name)["data"]
    assert ({"password": "p"}, {"key": "a"}) == (inside["data"], inside["metadata"]["custom_metadata"])
    assert 404 == server.api("GET", f"secret/data/{path}")[0]
    with pytest.raises(Permanent) as caught:
        stage.store(server.url, auth=role.auth).preflight(path)  # the role is not known outside
    assert Reason.VAULT_AUTH is caught.value.reason
    with pytest.raises(Permanent) as caught:
        stage.store(server.url, namespace="no-such-team").preflight(path)
    assert caught.value.reason in (Reason.VAULT_PATH_INVALID, Reason.VAULT_AUTH, Reason.VAULT_DENIED)


def test_an_engine_in_a_child_namespace(server: Bao, stage: StoreStage) -> None:
    """Reached by its path from the parent, where the login is: there KV version 1 is told by its want of a `config`."""
    name = f"team-{uuid.uuid4()}"
    if server.api("POST", f"sys/namespaces/{name}", {})[0] >= 300:
        pytest.skip("this server has no namespaces")
    server.must("POST", "sys/namespaces/sub", {}, namespace=name)
    for mount, version in (("new", 2), ("old", 1)):
        server.engine(mount, version=version, namespace=f"{name}/sub")
    role = Role(server, least_policy("sub/new") + least_policy("sub/old"), namespace=name)
    store = stage.store(server.url, auth=role.auth, namespace=name, mount="sub/new")
    assert 0 == store.preflight("mqtt/a", versions=2).version
    assert 1 == store.put("mqtt/a", {"password": "p"})
    inside = server.must("GET", "new/data/mqtt/a", namespace=f"{name}/sub")["data"]
    assert {"password": "p"} == inside["data"]
    with pytest.raises(Permanent, match="enable-versioning sub/old") as caught:
        stage.store(server.url, auth=role.auth, namespace=name, mount="sub/old").preflight("mqtt/a")
    assert Reason.VAULT_PATH_INVALID is caught.value.reason


# --- versions, and how long they stay ------------------------------------------------------------------------------


def test_a_secret_that_keeps_too_few_versions(server: Bao, stage: StoreStage, path: str) -> None:
    """VAULT_VERSIONS before anything is issued, where the way back would be pushed out by what is written."""
    store = stage.store(server.url, auth=Role(server).auth)
    store.put(path, {"password": "p"})
    server.must("POST", f"secret/metadata/{path}", {"max_versions": 1})
    with pytest.raises(Permanent, match="keeps 1 versions and 2 are needed") as caught:
        store.preflight(path, versions=2)
    assert Reason.VAULT_VERSIONS is caught.value.reason
    assert 1 == store.preflight(path).version
    server.must("POST", f"secret/metadata/{path}", {"max_versions": 2})
    assert 1 == store.preflight(path, versions=2).version


def test_a_mount_that_keeps_too_few_versions(server: Bao, stage: StoreStage) -> None:
    """It counts where the secret says nothing, unless the policy hides it; no number at all is Vault's ten."""
    mount = f"few-{uuid.uuid4()}"
    server.engine(mount, max_versions=1)
    policy = least_policy(mount)
    store = stage.store(server.url, mount=mount, auth=Role(server, policy).auth)
    blind = stage.store(server.url, mount=mount, auth=Role(server, policy.replace("/config", "/elsewhere")).auth)
    blinder = stage.store(server.url, mount=mount, auth=Role(server, policy.replace("/metadata/", "/x/")).auth)
    assert 0 == store.preflight("mqtt/a", versions=2).version  # nothing there that could be pushed out
    store.put("mqtt/a", {"password": "p"})
    with pytest.raises(Permanent) as caught:
        store.preflight("mqtt/a", versions=2)
    assert Reason.VAULT_VERSIONS is caught.value.reason
    assert 1 == blind.preflight("mqtt/a", versions=2).version == blinder.preflight("mqtt/a", versions=2).version
    server.must("POST", f"{mount}/metadata/mqtt/a", {"max_versions": 3})
    assert 1 == store.preflight("mqtt/a", versions=3).version
    server.must("POST", f"{mount}/metadata/mqtt/a", {"max_versions": 0})
    server.must("POST", f"{mount}/config", {"max_versions": 0})
    assert 1 == store.preflight("mqtt/a", versions=10).version
    with pytest.raises(Permanent, match="keeps 10 versions"):
        store.preflight("mqtt/a", versions=11)


def test_the_larger_of_two_numbers_counts(server: Bao, stage: StoreStage) -> None:
    """The secret's and the mount's: so KV does it, and so preflight says."""
    mount = f"more-{uuid.uuid4()}"
    server.engine(mount, max_versions=3)
    server.must("POST", f"{mount}/metadata/mqtt/a", {"max_versions": 1})
    store = stage.store(server.url, mount=mount, auth=Role(server, least_policy(mount)).auth)
    for turn in range(4):
        store.put("mqtt/a", {"password": f"p{turn}"})
    assert [False, True, True, True] == [store.read("mqtt/a", version).data is not None for version in (1, 2, 3, 4)]
    assert 4 == store.preflight("mqtt/a", versions=3).version
    with pytest.raises(Permanent, match="keeps 3 versions and 4 are needed"):
        store.preflight("mqtt/a", versions=4)


def test_a_mount_that_deletes_versions(server: Bao, stage: StoreStage) -> None:
    """Survey tells of the mount's setting too, by what it does to the current version; a deletion that was is none."""
    mount = f"short-{uuid.uuid4()}"
    server.engine(mount)
    store = stage.store(server.url, mount=mount, auth=Role(server, least_policy(mount)).auth)
    store.put("mqtt/a", {"password": "p"})
    server.must("DELETE", f"{mount}/data/mqtt/a")
    assert [] == list(store.survey("mqtt/a").notes)
    server.must("POST", f"{mount}/config", {"delete_version_after": "1h"})
    store.put("mqtt/a", {"password": "p"})
    assert ["the mount's delete_version_after takes version 2 and those after it away"] == list(
        store.survey("mqtt/a").notes
    )


def test_a_version_that_would_be_deleted_in_the_middle(server: Bao, stage: StoreStage, path: str) -> None:
    """delete_version_after within the rotation is VAULT_VERSIONS, later is not; survey says what it will do."""
    server.must("POST", f"secret/metadata/{path}", {"delete_version_after": "30m"})
    store = stage.store(server.url, auth=Role(server).auth)
    assert ["delete_version_after is 30m0s: what is written vanishes after that"] == list(store.survey(path).notes)
    store.put(path, {"password": "p"})
    with pytest.raises(Permanent, match="delete_version_after") as caught:
        store.preflight(path, versions=2, lasting=SOON)
    assert Reason.VAULT_VERSIONS is caught.value.reason
    assert 1 == store.preflight(path, versions=2, lasting=timedelta(minutes=10)).version
    assert 1 == store.preflight(path, lasting=SOON).version


# --- the token's life ----------------------------------------------------------------------------------------------


def test_preflight_refuses_a_token_about_to_end(server: Bao, stage: StoreStage) -> None:
    """A given token with seconds to live, which can't be renewed, must not start a rotation (rule 8)."""
    settings = {"ttl": "90s", "explicit_max_ttl": "90s", "policies": ["root"], "renewable": False}
    short = server.must("POST", "auth/token/create", settings)["auth"]["client_token"]
    store = stage.store(server.url, auth=TokenAuth(token=lambda: str(short)))
    store.preflight("mqtt/a")
    with pytest.raises(Permanent) as caught:
        store.preflight("mqtt/a", lasting=SOON)
    assert Reason.VAULT_AUTH is caught.value.reason


def test_preflight_lives_with_a_role_of_short_tokens(server: Bao, stage: StoreStage, path: str) -> None:
    """AppRole can log in again at any time, so short leases pass."""
    auth = Role(server, token_ttl="5s", token_max_ttl="10s").auth
    stage.store(server.url, auth=auth).preflight(path, lasting=SOON)
