"""Vault's transit engine as the seal's key, on a real OpenBao."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from contract.bao_server import ROOT_TOKEN, Bao
from rotator.clock import SystemClock
from rotator.errors import Permanent, RotatorError, Transient
from rotator.journal.keeping import forget_secret, seal_id
from rotator.journal.seal import KeyWrap, Seal
from rotator.journal.sqlite import Blob, SqliteJournal
from rotator.model import Identity, RequestDone
from rotator.reasons import Reason
from rotator.rotation import Rotation
from rotator.sealing import open_seal, prove, rotate_key
from rotator.settings import TransitSeal
from rotator.stores import AppRoleAuth, TokenAuth, VaultStore
from rotator.stores.transit import Transit

# docs/seal.md says that this is all that the daemon needs.
POLICY = """
path "transit/datakey/plaintext/{key}" {{ capabilities = ["update"] }}
path "transit/decrypt/{key}" {{ capabilities = ["update"] }}
path "transit/rewrap/{key}" {{ capabilities = ["update"] }}
"""
ROW = "building-a/r1"
NOW = datetime(2026, 3, 24, 12, 0, tzinfo=UTC)


@pytest.fixture
def key(bao: Bao) -> str:
    """A transit key that no other test uses."""
    if "transit/" not in bao.must("GET", "sys/mounts")["data"]:
        bao.must("POST", "sys/mounts/transit", {"type": "transit"})
    name = f"rotator-{uuid.uuid4()}"
    bao.must("POST", f"transit/keys/{name}", {})
    return name


class Vault:
    """A store that may be pointed at a port where nobody listens, and what it reported of its requests."""

    def __init__(self, bao: Bao, auth: TokenAuth | AppRoleAuth) -> None:
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            port = nobody.getsockname()[1]
        self.done: list[RequestDone] = []
        self.away = False
        self._stores = [
            VaultStore(
                urls=[url], auth=auth, timeout=timedelta(seconds=5), clock=SystemClock(), on_request=self.done.append
            )
            for url in (bao.url, f"http://127.0.0.1:{port}")
        ]

    def store(self) -> VaultStore:
        """The store, as things are."""
        return self._stores[self.away]

    def transit(self, key: str, mount: str = "transit") -> Transit:
        """A transit key by this store's login."""
        return Transit(self.store, mount=mount, key=key)

    def close(self) -> None:
        """Give back connections."""
        for store in self._stores:
            store.close()


def token_for(bao: Bao, policy: str) -> TokenAuth:
    """A token with this policy and no other."""
    name = f"seal-{uuid.uuid4()}"
    bao.must("PUT", f"sys/policies/acl/{name}", {"policy": policy})
    token = bao.must("POST", "auth/token/create", {"policies": [name]})["auth"]["client_token"]
    return TokenAuth(token=lambda: str(token))


@pytest.fixture
def vault(bao: Bao, key: str) -> Iterator[Vault]:
    """Vault with the least policy that the documentation names."""
    with closing(Vault(bao, token_for(bao, POLICY.format(key=key)))) as made:
        yield made


@pytest.fixture
def root(bao: Bao) -> Iterator[Vault]:
    """Vault with a token that may do everything."""
    with closing(Vault(bao, TokenAuth(token=lambda: ROOT_TOKEN))) as made:
        yield made


# --- wrapped by Vault --------------------------------------------------------------------------------------------


def test_a_data_key_is_made_and_unwrapped(vault: Vault, key: str) -> None:
    """32 bytes, never the same twice, and the wrapped form is Vault's own text."""
    transit = vault.transit(key)
    (plain, wrapped), (other, _) = transit.new(), transit.new()
    assert (32, plain, True) == (len(plain), transit.unwrap(wrapped), plain != other)
    assert wrapped.startswith(b"vault:v1:")
    assert f"vault-transit:transit/{key}" == transit.id
    assert ["datakey", "datakey", "decrypt"] == [request.operation for request in vault.done]
    prove(transit)


def test_after_vaults_key_was_rotated(bao: Bao, vault: Vault, key: str) -> None:
    """Old data keys open as before; rewrapped ones are of the new version, and the old version may go."""
    transit = vault.transit(key)
    plain, old = transit.new()
    bao.must("POST", f"transit/keys/{key}/rotate", {})
    assert plain == transit.unwrap(old)
    new = transit.rewrap(old)
    assert (b"vault:v2:", plain) == (new[:9], transit.unwrap(new))
    bao.must("POST", f"transit/keys/{key}/config", {"min_decryption_version": 2})
    assert plain == transit.unwrap(new)
    for refused in (transit.unwrap, transit.rewrap):
        with pytest.raises(Permanent, match="too old") as caught:
            refused(old)
        assert Reason.VAULT_TRANSIT == caught.value.reason  # the old version can be allowed again


def test_one_login_is_shared_with_the_store(bao: Bao, key: str) -> None:
    """A secret id that can be used once is enough for secrets and seal."""
    bao.api("POST", "sys/auth/approle", {"type": "approle"})
    name = f"seal-{uuid.uuid4()}"
    policy = POLICY.format(key=key) + 'path "secret/data/mqtt/*" { capabilities = ["read"] }'
    bao.must("PUT", f"sys/policies/acl/{name}", {"policy": policy})
    bao.must("POST", f"auth/approle/role/{name}", {"token_policies": name, "secret_id_num_uses": 1})
    role_id = bao.must("GET", f"auth/approle/role/{name}/role-id")["data"]["role_id"]
    secret_id = bao.must("POST", f"auth/approle/role/{name}/secret-id", {})["data"]["secret_id"]
    with closing(Vault(bao, AppRoleAuth(role_id=lambda: role_id, secret_id=lambda: secret_id))) as vault:
        prove(vault.transit(key))
        assert 0 == vault.store().read(f"mqtt/{name}").version
    assert ["login", "datakey", "decrypt", "read"] == [request.operation for request in vault.done]


# --- refused -----------------------------------------------------------------------------------------------------


def refusal(refused: object) -> RotatorError:
    """What a call raises."""
    assert callable(refused)
    with pytest.raises(RotatorError) as caught:
        refused()
    return caught.value


def test_what_another_key_wrapped(bao: Bao, root: Vault, key: str) -> None:
    """Another transit key, a key file, a changed text, a key that was deleted and made again: SEAL_BROKEN."""
    other = f"other-{uuid.uuid4()}"
    bao.must("POST", f"transit/keys/{other}", {})
    transit = root.transit(key)
    _, wrapped = transit.new()
    changed = wrapped[:-6] + (b"AAAA" if wrapped[-6:-2] != b"AAAA" else b"BBBB") + wrapped[-2:]
    foreign = (root.transit(other).new()[1], KeyWrap(b"k" * 32).new()[1], changed, b"vault:v1:", b"vault:v9:AAAA")
    for text in foreign:
        for refused in (transit.unwrap, transit.rewrap):
            error = refusal(lambda text=text, refused=refused: refused(text))
            assert (Permanent, Reason.SEAL_BROKEN) == (type(error), error.reason), text
    bao.must("POST", f"transit/keys/{key}/config", {"deletion_allowed": True})
    bao.must("DELETE", f"transit/keys/{key}")
    bao.must("POST", f"transit/keys/{key}", {})
    assert Reason.SEAL_BROKEN == refusal(lambda: transit.unwrap(wrapped)).reason


def test_where_there_is_no_such_key(bao: Bao, root: Vault, key: str) -> None:
    """No engine, an engine of another kind, no key, a key that wraps nothing: named, with what to correct."""
    signing = f"signing-{uuid.uuid4()}"
    bao.must("POST", f"transit/keys/{signing}", {"type": "ed25519"})
    missing = (("nowhere", key), ("secret", key), ("transit", "no-such-key"), ("transit", signing))
    for mount, name in missing:
        error = refusal(root.transit(name, mount).new)
        assert (Permanent, Reason.VAULT_TRANSIT) == (type(error), error.reason), (mount, name)
        assert f"{mount}/{name}" in error.message
        assert "state.seal" in error.advice


def test_a_policy_that_lacks_it(bao: Bao, key: str, tmp_path: Path) -> None:
    """VAULT_DENIED names the operation and the key; the first print shows it, before anything hangs on that policy."""
    policy = POLICY.format(key=key).replace("transit/decrypt", "transit/elsewhere")
    with closing(Vault(bao, token_for(bao, policy))) as vault:
        _, wrapped = vault.transit(key).new()
        error = refusal(lambda: vault.transit(key).unwrap(wrapped))
        with closing(SqliteJournal(f"sqlite:///{tmp_path}/rotator.db")) as journal:
            _, prints = open_seal(TransitSeal(kind="vault-transit", key=key), journal, vault.store)
            assert Reason.VAULT_DENIED == refusal(lambda: prints.of({})).reason
            assert journal.fact("fingerprint_key") is None
    assert (Permanent, Reason.VAULT_DENIED) == (type(error), error.reason)
    assert f"decrypt with transit/{key}" in error.message


def test_a_login_that_is_refused(bao: Bao, key: str) -> None:
    """As for the store: VAULT_AUTH."""
    with closing(Vault(bao, TokenAuth(token=lambda: "no-such-token"))) as vault:
        assert Reason.VAULT_AUTH == refusal(vault.transit(key).new).reason


def test_a_vault_that_is_away_or_sealed(bao: Bao, vault: Vault, key: str) -> None:
    """Transient, with the store's own reasons."""
    vault.away = True
    error = refusal(vault.transit(key).new)
    assert (Transient, Reason.VAULT_UNREACHABLE) == (type(error), error.reason)
    vault.away = False
    bao.must("PUT", "sys/seal", {})
    try:
        error = refusal(vault.transit(key).new)
    finally:
        bao.must("PUT", "sys/unseal", {"key": bao.unseal_key()})
    assert (Transient, Reason.VAULT_SEALED) == (type(error), error.reason)


# --- the seal on it ----------------------------------------------------------------------------------------------


def test_the_answer_is_sealed_while_vault_is_down(vault: Vault, key: str) -> None:
    """The data key of preflight, or one that was unwrapped before the call, needs Vault no more."""
    seal = Seal(vault.transit(key))
    wrapped = seal.new_data_key()
    restarted = Seal(vault.transit(key))
    restarted.ready(wrapped)
    vault.away = True
    first, second = (each.seal(wrapped, b"secret", bound_to=ROW) for each in (seal, restarted))
    for refused in (seal.new_data_key, lambda: Seal(vault.transit(key)).ready(wrapped)):
        assert Reason.VAULT_UNREACHABLE == refusal(refused).reason
    vault.away = False
    later = Seal(vault.transit(key))
    assert [b"secret"] * 2 == [later.open(wrapped, sealed, bound_to=ROW) for sealed in (first, second)]


def test_a_journal_is_opened_while_vault_is_down(vault: Vault, key: str, tmp_path: Path) -> None:
    """Prints have to wait for Vault; with Vault back they are made, and the next process takes the same ones."""
    settings = TransitSeal(kind="vault-transit", key=key)
    vault.away = True
    with closing(SqliteJournal(f"sqlite:///{tmp_path}/rotator.db")) as journal:
        _, prints = open_seal(settings, journal, vault.store)
        error = refusal(lambda: prints.of({"password": "hunter2"}))
        assert (Transient, Reason.VAULT_UNREACHABLE) == (type(error), error.reason)
        vault.away = False
        taken = prints.of({"password": "hunter2"})
        vault.away = True
        assert taken == prints.of({"password": "hunter2"})
        _, restarted = open_seal(settings, journal, vault.store)
        assert Reason.VAULT_UNREACHABLE == refusal(lambda: restarted.of({})).reason
        vault.away = False
        assert taken == restarted.of({"password": "hunter2"})


def test_rotate_key_rewraps_everything(bao: Bao, vault: Vault, key: str, tmp_path: Path) -> None:
    """By the newest version of Vault's key; with Vault away nothing changes; prints and secrets survive it."""
    settings = TransitSeal(kind="vault-transit", key=key)
    with closing(SqliteJournal(f"sqlite:///{tmp_path}/rotator.db")) as journal:
        seal, prints = open_seal(settings, journal, vault.store)
        taken = prints.of({"password": "hunter2"})
        wrapped = seal.new_data_key()
        rotation = Rotation(
            id="r1",
            key="building-a",
            provider="acme",
            identity=Identity(id="id-1", username="id-1"),
            trigger=Reason.NEAR_EXPIRY,
            started_at=NOW,
            answers=1,
            sealed=True,
        )
        sealed = seal.seal(wrapped, b"secret", bound_to=ROW)
        journal.save(rotation=rotation, data_key=wrapped, blob=Blob(at=NOW, sealed=sealed))
        bao.must("POST", f"transit/keys/{key}/rotate", {})
        vault.away = True
        assert Reason.VAULT_UNREACHABLE == refusal(lambda: rotate_key(settings, journal, vault.store)).reason
        assert wrapped == journal.data_key("r1")
        vault.away = False
        done = rotate_key(settings, journal, vault.store)
        assert (seal.id, seal.id, 2) == (done.old, done.new, done.rewrapped)
        bao.must("POST", f"transit/keys/{key}/config", {"min_decryption_version": 2})
        again, same = open_seal(settings, journal, vault.store)
        assert (seal.id, taken) == (seal_id(journal), same.of({"password": "hunter2"}))
        row = journal.sealed("r1")
        assert row is not None
        assert (b"vault:v2:", b"secret") == (row.data_key[:9], again.open(row.data_key, row.sealed, bound_to=ROW))
        forget_secret(journal, "building-a", NOW)
        assert journal.data_key("r1") is None
