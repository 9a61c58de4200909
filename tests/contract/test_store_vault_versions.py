"""The Vault store on real servers: deleted, destroyed and pushed out versions, and `custom_metadata`."""

from __future__ import annotations

import uuid

import pytest

from contract.bao_server import Bao
from contract.store_stage import Role, StoreStage, held, kept, least_policy
from rotator.errors import Permanent, Transient
from rotator.model import StoredSecret
from rotator.reasons import Reason

NO_METADATA = 'path "secret/data/mqtt/*" { capabilities = ["create", "update", "read"] }\n' + (
    'path "sys/capabilities-self" { capabilities = ["update"] }\n'
)
FACTS = {"key": "building-a", "provider": "haltian-eu", "id": "c6f7", "rotation": "r1"}


# --- versions that are gone ----------------------------------------------------------------------------------------


def test_a_deleted_version_still_counts(server: Bao, stage: StoreStage, path: str) -> None:
    """Data None with the version that the next cas needs; a put writes over it, and it can be undeleted."""
    store = stage.store(server.url, auth=Role(server).auth)
    store.put(path, {"password": "p1"})
    server.must("DELETE", f"secret/data/{path}")
    deleted = StoredSecret(version=1, data=None)
    assert deleted == store.read(path) == store.read(path, 1) == store.preflight(path)
    shown: list[StoredSecret] = []
    assert 2 == store.put(path, {"password": "p1"}, judge=shown.append)
    assert [deleted] == shown
    assert {"password": "p1"} == held(server, path)
    assert deleted == store.read(path, 1)
    store.undelete(path, 1)
    store.undelete(path, 1)
    assert StoredSecret(version=1, data={"password": "p1"}) == store.read(path, 1)


def test_a_destroyed_version_is_told_from_a_deleted_one(server: Bao, stage: StoreStage, path: str) -> None:
    """Nothing brings it back; it still counts, and a put writes over it."""
    store = stage.store(server.url, auth=Role(server).auth)
    store.put(path, {"password": "p1"})
    server.must("PUT", f"secret/destroy/{path}", {"versions": [1]})
    destroyed = StoredSecret(version=1, data=None, destroyed=True)
    assert destroyed == store.read(path) == store.preflight(path)
    store.undelete(path, 1)
    assert destroyed == store.read(path)
    assert 2 == store.put(path, {"password": "p2"}, known=1)
    assert {"password": "p2"} == held(server, path)


def test_a_secret_that_was_removed_begins_again(server: Bao, stage: StoreStage, path: str) -> None:
    """With its metadata everything is gone: version 0, and the next put makes version 1."""
    store = stage.store(server.url, auth=Role(server).auth)
    for turn in range(3):
        store.put(path, {"password": f"p{turn}"})
    server.must("DELETE", f"secret/metadata/{path}")
    nothing = StoredSecret(version=0, data=None)
    assert nothing == store.read(path) == store.read(path, 3) == store.preflight(path)
    shown: list[StoredSecret] = []
    assert 1 == store.put(path, {"password": "p9"}, known=3, judge=shown.append)
    assert [nothing] == shown


def test_metadata_without_a_version(server: Bao, stage: StoreStage, path: str) -> None:
    """An operator may describe a secret before anybody writes it: version 0, and all of the description stays."""
    described = {"max_versions": 4, "custom_metadata": {"owner": "ops"}}
    server.must("POST", f"secret/metadata/{path}", described)
    store = stage.store(server.url, auth=Role(server).auth)
    assert StoredSecret(version=0, data=None) == store.preflight(path, versions=3)
    assert 1 == store.put(path, {"password": "p1"})
    assert described == {name: kept(server, path)[name] for name in described}


def test_a_version_that_was_pushed_out_is_not_there(server: Bao, stage: StoreStage, path: str) -> None:
    """max_versions took it: as one that was never written; the version number goes on."""
    server.must("POST", f"secret/metadata/{path}", {"max_versions": 2})
    store = stage.store(server.url, auth=Role(server).auth)
    assert [1, 2, 3, 4] == [store.put(path, {"password": f"p{turn}"}) for turn in range(4)]
    assert [(0, None), (0, None), (3, {"password": "p2"}), (4, {"password": "p3"})] == [
        (found.version, found.data) for found in (store.read(path, version) for version in (1, 2, 3, 4))
    ]
    store.undelete(path, 1)  # the server takes it, and there is nothing to bring back
    assert StoredSecret(version=0, data=None) == store.read(path, 1)


def test_an_undelete_that_the_policy_lacks_is_refused_unasked(server: Bao, stage: StoreStage, path: str) -> None:
    """VAULT_DENIED with the line to add, before a login could be spent on the refusal; with the line it works."""
    role = Role(server, NO_METADATA)
    store = stage.store(server.url, auth=role.auth)
    store.put(path, {"password": "p1"})
    server.must("DELETE", f"secret/data/{path}")
    stage.operations()
    with pytest.raises(Permanent) as caught:
        store.undelete(path, 1)
    assert Reason.VAULT_DENIED is caught.value.reason
    assert ["health", "mounts", "capabilities"] == [operation for operation, _ in stage.operations()]
    role.allow(NO_METADATA + str(caught.value).partition("add: ")[2])
    stage.clock.ahead += 16
    store.undelete(path, 1)
    assert {"password": "p1"} == held(server, path)


# --- custom_metadata -----------------------------------------------------------------------------------------------


def test_facts_are_laid_over_those_of_others(server: Bao, stage: StoreStage, path: str) -> None:
    """Others' `custom_metadata` and all settings of the secret stay; the same facts again write nothing."""
    mine = {"owner": "ops", "key": "an older name"}
    settings = {"max_versions": 7, "cas_required": True, "delete_version_after": "3h25m19s"}
    server.must("POST", f"secret/metadata/{path}", {**settings, "custom_metadata": mine})
    store = stage.store(server.url, auth=Role(server).auth)
    store.put(path, {"password": "p1"})
    store.annotate(path, FACTS)
    after = kept(server, path)
    assert {**mine, **FACTS} == after["custom_metadata"]
    assert settings == {name: after[name] for name in settings}
    stage.operations()
    store.annotate(path, FACTS)
    assert [("metadata", "200")] == stage.operations()
    store.annotate(path, {"rotation": "r2"})
    assert [("metadata", "200"), ("annotate", "204")] == stage.operations()
    assert {**mine, **FACTS, "rotation": "r2"} == kept(server, path)["custom_metadata"]
    assert 1 == store.read(path).version  # no version of the secret was made for it


def test_values_are_made_to_fit(server: Bao, stage: StoreStage, path: str) -> None:
    """512 bytes, printable; an empty one takes its name away, since Vault keeps none."""
    store = stage.store(server.url, auth=Role(server).auth)
    store.put(path, {"password": "p1"})
    store.annotate(path, {"expires_at": "2026-11-21", "other": "x"})
    facts = {"expires_at": "", "long": "ä" * 300, "odd": "a\nb\x00\u2028\ud800", "cut": "x" + "ä" * 256}
    store.annotate(path, facts)
    wanted = {"other": "x", "long": "ä" * 256, "odd": "a?b???", "cut": "x" + "ä" * 255}
    assert wanted == kept(server, path)["custom_metadata"]
    stage.operations()
    store.annotate(path, facts)
    assert [("metadata", "200")] == stage.operations()


def test_more_facts_than_vault_keeps(server: Bao, stage: StoreStage, path: str) -> None:
    """64 names are what it keeps: it refuses in its own words, and what was there stays."""
    full = {f"theirs-{number}": "x" for number in range(63)}
    server.must("POST", f"secret/metadata/{path}", {"custom_metadata": full})
    store = stage.store(server.url, auth=Role(server).auth)
    with pytest.raises(Permanent, match="64"):
        store.annotate(path, FACTS)
    assert full == kept(server, path)["custom_metadata"]


@pytest.mark.parametrize("written", [True, False])
def test_a_policy_without_metadata_is_left_alone(server: Bao, stage: StoreStage, path: str, written: bool) -> None:
    """Nothing is asked that would be refused, so that no lookup and no login is spent."""
    store = stage.store(server.url, auth=Role(server, NO_METADATA).auth)
    if written:
        store.put(path, {"password": "p1"})
    store.ready()
    stage.operations()
    store.annotate(path, FACTS)
    assert ["health", "mounts", "capabilities"] == [operation for operation, _ in stage.operations()]
    store.annotate(path, FACTS)
    assert [] == stage.operations()


def test_a_secret_that_is_not_there_gets_no_facts(server: Bao, stage: StoreStage, path: str) -> None:
    """Facts alone would make a secret of no version."""
    store = stage.store(server.url, auth=Role(server).auth)
    store.annotate(path, FACTS)
    assert 404 == server.api("GET", f"secret/metadata/{path}")[0]


def test_one_who_changes_the_metadata_in_between_is_not_lost(server: Bao, stage: StoreStage, path: str) -> None:
    """OpenBao takes a cas for the metadata too, and may insist on it: read again, laid over, written."""
    owner = {"owner": "a"}
    server.must("POST", f"secret/metadata/{path}", {"metadata_cas_required": True, "custom_metadata": owner})
    known = "current_metadata_version" in kept(server, path)  # Vault has nothing of the kind, and nobody else writes
    others = iter([{"owner": "b"}, {"owner": "b", "team": "c"}] if known else [])

    def interrupt() -> None:
        found = next(others, None)
        if found is not None:
            version = kept(server, path)["current_metadata_version"]
            server.must("POST", f"secret/metadata/{path}", {"metadata_cas": version, "custom_metadata": found})

    stage.after["metadata"] = interrupt
    stage.store(server.url, auth=Role(server).auth).annotate(path, {"key": "building-a"})
    wanted = {"owner": "b", "team": "c"} if known else owner
    assert {**wanted, "key": "building-a"} == kept(server, path)["custom_metadata"]


def test_metadata_that_never_rests_is_given_up(server: Bao, stage: StoreStage, path: str) -> None:
    """Transient VAULT_CONFLICT after five tries, where the server can tell; what others wrote stays."""
    server.must("POST", f"secret/metadata/{path}", {"custom_metadata": {"turn": "0"}})
    known = "current_metadata_version" in kept(server, path)
    turns = iter(range(1, 100) if known else [])

    def interrupt() -> None:
        turn = next(turns, None)
        if turn is not None:
            server.must("POST", f"secret/metadata/{path}", {"custom_metadata": {"turn": str(turn)}})

    stage.after["metadata"] = interrupt
    store = stage.store(server.url)
    if not known:
        store.annotate(path, {"key": "building-a"})
        assert {"turn": "0", "key": "building-a"} == kept(server, path)["custom_metadata"]
        return
    with pytest.raises(Transient) as caught:
        store.annotate(path, {"key": "building-a"})
    assert Reason.VAULT_CONFLICT is caught.value.reason
    assert {"turn": "5"} == kept(server, path)["custom_metadata"]


def test_the_least_policy_is_the_one_that_is_given_out(server: Bao, stage: StoreStage) -> None:
    """With another mount and prefix, as the set-up scripts write it: everything that the store does works."""
    mount = f"kv-{uuid.uuid4()}"
    server.engine(mount)
    role = Role(server, least_policy(mount, "sub/keys"))
    store = stage.store(server.url, mount=mount, auth=role.auth)
    path = "sub/keys/a"
    assert 0 == store.preflight(path, versions=2).version
    store.put(path, {"password": "p1"})
    store.put(path, {"password": "p2"}, known=1)
    assert 2 == store.preflight(path, versions=2).version
    store.annotate(path, FACTS)
    server.must("DELETE", f"{mount}/data/{path}")
    store.undelete(path, 2)
    assert ([], "") == (list(store.survey(path).missing), store.survey(path).policy_lines)
    assert {"password": "p2"} == held(server, path, mount)
    assert store.renew() is not None
    assert {"200", "204", "404"} >= {code for _, code in stage.operations()}  # nothing was refused on the way
    with pytest.raises(Permanent) as caught:
        store.preflight("elsewhere/a")
    assert Reason.VAULT_DENIED is caught.value.reason
