"""The Vault store on real servers: what its verbs say of a login that does not serve, and how one is mended.

The ways to log in have tests of their own (test_vault_login).
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from contract.bao_server import Bao
from contract.store_stage import Role, StoreStage
from rotator.errors import Permanent
from rotator.reasons import Reason
from rotator.stores import AppRoleAuth, TokenAuth
from rotator.stores.vault_auth import Auth


def test_a_mended_role_is_found_after_a_minute(server: Bao, stage: StoreStage) -> None:
    """Policies added to the role reach only a new token, so an older one is replaced when it is refused."""
    role = Role(server)
    store = stage.store(server.url, auth=role.auth)
    place = f"elsewhere/{uuid.uuid4()}"
    for _ in range(2):
        with pytest.raises(Permanent) as caught:
            store.read(place)
        assert Reason.VAULT_DENIED is caught.value.reason
    assert 1 == [operation for operation, _ in stage.operations()].count("login")
    name = f"mend-{uuid.uuid4()}"
    server.must("PUT", f"sys/policies/acl/{name}", {"policy": 'path "secret/data/*" { capabilities = ["read"] }'})
    server.must("POST", f"auth/approle/role/{role.name}", {"token_policies": [role.name, name]})
    stage.clock.ahead += 61
    assert 0 == store.read(place).version
    assert [("read", "403"), ("login", "200"), ("read", "404")] == stage.operations()


@pytest.mark.parametrize("kind", ["approle", "token"])
def test_every_verb_names_a_login_that_is_refused(server: Bao, stage: StoreStage, path: str, kind: str) -> None:
    """VAULT_AUTH, which is no matter of policy; the made-up half is not shown."""
    wrong, good = "made-up-secret", Role(server).auth
    refused: Auth = AppRoleAuth(role_id=good.role_id, secret_id=lambda: wrong)
    store = stage.store(server.url, auth=refused if kind == "approle" else TokenAuth(token=lambda: wrong))
    for verb in (
        store.ready,
        store.renew,
        lambda: store.read(path),
        lambda: store.put(path, {"password": "p"}),
        lambda: store.put(path, {"password": "p"}, known=0),
        lambda: store.preflight(path),
        lambda: store.survey(path),
        lambda: store.annotate(path, {"key": "a"}),
        lambda: store.undelete(path, 1),
    ):
        with pytest.raises(Permanent) as caught:
            verb()
        assert Reason.VAULT_AUTH is caught.value.reason
        assert wrong not in str(caught.value)


@pytest.mark.parametrize("token", ["", "has blank", "line\nbreak", "ümlaut"])
def test_a_token_that_no_header_takes_is_refused(stage: StoreStage, token: str) -> None:
    """It is VAULT_AUTH before a request is made."""
    with pytest.raises(Permanent) as caught:
        stage.store("http://127.0.0.1:9", auth=TokenAuth(token=lambda: token)).read("a")
    assert Reason.VAULT_AUTH is caught.value.reason
    assert [] == stage.done


def test_renew_says_when_the_token_ends(server: Bao, stage: StoreStage) -> None:
    """A root token never ends; a role's ends a lease from now."""
    assert stage.store(server.url).renew() is None
    ends = stage.store(server.url, auth=Role(server).auth).renew()
    assert ends is not None
    assert timedelta(minutes=59) < ends - datetime.now(UTC) <= timedelta(minutes=60)
