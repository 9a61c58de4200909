"""What deploy/vault's scripts make is enough for rotator's own store, and all that its checks ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from integration.broker_fixture import certificates
from integration.token_review import REVIEWER, Account, Reviewer
from integration.vault_scripts import api, done, run, server
from rotator.clock import SystemClock
from rotator.sandbox.vault import VaultServer
from rotator.stores import VaultStore
from rotator.stores.vault_auth import AppRoleAuth, Auth, KubernetesAuth
from rotator.stores.vault_wrapped import WrappedAppRoleAuth

PATH = "mqtt/building-a"
FIRST, SECOND = {"password": "made-up-first"}, {"password": "made-up-second"}


@pytest.fixture
def vault() -> Iterator[VaultServer]:
    """A dev server of the test's own."""
    with server() as started:
        yield started


def store(vault: VaultServer, auth: Auth) -> VaultStore:
    """The daemon's store with this login."""
    return VaultStore(urls=[vault.url], auth=auth, clock=SystemClock(), on_request=lambda _done: None)


def works(made: VaultStore, vault: VaultServer) -> None:
    """Everything that a rotation, a look and a restoring do goes through, and no line of the policy is missed."""
    with closing(made):
        made.ready()
        assert made.preflight(PATH, versions=2).version == 0
        assert (made.put(PATH, FIRST), made.put(PATH, SECOND)) == (1, 2)
        assert made.preflight(PATH, versions=2).data == SECOND
        made.annotate(PATH, {"key": "building-a"})
        with api(vault) as root:
            known = root.get(f"secret/metadata/{PATH}").json()["data"]
            assert known["custom_metadata"] == {"key": "building-a"}
            assert root.delete(f"secret/data/{PATH}").status_code == 204
        assert made.read(PATH).data is None
        made.undelete(PATH, 2)
        assert made.read(PATH).data == SECOND
        assert list(made.survey(PATH).missing) == []
        assert made.renew() is not None


def test_store_works_with_the_approle(vault: VaultServer, tmp_path: Path) -> None:
    """With the two files of setup-approle.sh."""
    done(run(vault, "setup-approle.sh", tmp_path))

    auth = AppRoleAuth(
        role_id=(tmp_path / "vault-role-id").read_text, secret_id=(tmp_path / "vault-secret-id").read_text
    )

    works(store(vault, auth), vault)


class Memory:
    """A place for the unwrapped secret id."""

    def __init__(self) -> None:
        self.content: bytes | None = None

    def load(self) -> bytes | None:
        """What was saved."""
        return self.content

    def save(self, content: bytes) -> None:
        """Keep it."""
        self.content = content


def test_store_unwraps_what_the_script_wrapped(vault: VaultServer, tmp_path: Path) -> None:
    """The wrapping token was made where the store wants it made, and its secret id logs in."""
    done(run(vault, "setup-approle.sh", tmp_path, settings={"WRAP_TTL": "5m"}))

    auth = WrappedAppRoleAuth(
        role_id=(tmp_path / "vault-role-id").read_text,
        wrapping_token=(tmp_path / "vault-wrapped-secret-id").read_text,
        keep=Memory(),
        unwraps=True,
    )

    works(store(vault, auth), vault)


def test_store_works_with_the_service_account(vault: VaultServer, tmp_path: Path) -> None:
    """With the role of setup-kubernetes.sh, in a made-up cluster."""
    account = Account(namespace="iot", name="rotator")
    (tmp_path / "reviewer").write_text(REVIEWER)
    with Reviewer([account]) as cluster:
        settings = {
            "KUBE_HOST": cluster.url,
            "KUBE_CA_FILE": str(certificates(tmp_path)),
            "REVIEWER_JWT_FILE": str(tmp_path / "reviewer"),
            "AUDIENCE": "vault",
        }
        done(run(vault, "setup-kubernetes.sh", settings=settings))

        works(store(vault, KubernetesAuth(role="rotator", jwt=lambda: account.jwt)), vault)
