"""The Vault of the sandbox, in both modes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rotator.sandbox.vault import VaultServer, find_binary

POLICY = 'path "secret/data/mqtt/*" { capabilities = ["create", "read", "update"] }'


@pytest.fixture(scope="module")
def dev() -> Iterator[VaultServer]:
    """A dev server for the whole module."""
    with VaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def durable() -> Iterator[VaultServer]:
    """A server on files for the whole module."""
    with VaultServer(dev=False) as server:
        yield server


def test_versions_and_cas(dev: VaultServer) -> None:
    """Each write is a version, old ones stay readable, and a wrong cas is refused."""
    versions = (dev.write("mqtt/a", {"x": "1"}, cas=0), dev.write("mqtt/a", {"x": "2"}, cas=1))
    with pytest.raises(httpx.HTTPStatusError):
        dev.write("mqtt/a", {"x": "3"}, cas=1)
    expected = ((1, 2), (2, {"x": "2"}), (1, {"x": "1"}))
    assert expected == (versions, dev.read("mqtt/a"), dev.read("mqtt/a", 1))


def test_reading_nothing(dev: VaultServer) -> None:
    """A path that was never written has version 0 and no data."""
    assert dev.read("mqtt/never") == (0, None)


def test_approle_can_do_what_its_policy_says(dev: VaultServer) -> None:
    """The role logs in by role id and secret id, writes its path and no other."""
    role_id, secret_id = dev.enable_approle(POLICY)
    with httpx.Client(base_url=dev.url) as client:
        login = client.post("/v1/auth/approle/login", json={"role_id": role_id, "secret_id": secret_id})
        client.headers["X-Vault-Token"] = login.json()["auth"]["client_token"]
        codes = [
            client.post(f"/v1/secret/data/{path}", json={"data": {"a": "b"}}).status_code
            for path in ("mqtt/role", "other/role")
        ]
    assert codes == [200, 403]


def test_approle_twice_is_no_error(dev: VaultServer) -> None:
    """A second role comes beside the first."""
    assert dev.enable_approle(POLICY, role="one")[0] != dev.enable_approle(POLICY, role="two")[0]


def test_a_token_of_a_policy_reads(dev: VaultServer) -> None:
    """What a consumer gets."""
    dev.write("mqtt/token", {"x": "1"})
    token = dev.create_token('path "secret/data/mqtt/*" { capabilities = ["read"] }', name="reader")
    headers = {"X-Vault-Token": token}
    codes = (
        httpx.get(f"{dev.url}/v1/secret/data/mqtt/token", headers=headers).status_code,
        httpx.post(f"{dev.url}/v1/secret/data/mqtt/token", headers=headers, json={"data": {}}).status_code,
    )
    assert codes == (200, 403)


def test_sealed_then_unsealed(durable: VaultServer) -> None:
    """Sealed it answers 503; unsealed it has everything."""
    durable.write("mqtt/seal", {"x": "1"})
    durable.seal()
    with pytest.raises(httpx.HTTPStatusError) as refused:
        durable.read("mqtt/seal")
    durable.unseal()
    assert (refused.value.response.status_code, durable.read("mqtt/seal")) == (503, (1, {"x": "1"}))


def test_stopped_then_started(durable: VaultServer) -> None:
    """It comes back under the same address, unsealed, with its data."""
    durable.write("mqtt/stop", {"x": "1"})
    url = durable.url
    durable.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/v1/sys/health")
    durable.start()
    assert (url, (1, {"x": "1"})) == (durable.url, durable.read("mqtt/stop"))


def test_a_dev_server_forgets(tmp_path: Path) -> None:
    """What was in memory is gone after a stop, the address stays."""
    with VaultServer(directory=tmp_path) as server:
        server.write("mqtt/a", {"x": "1"})
        server.stop()
        server.start()
        assert server.read("mqtt/a") == (0, None)


def test_no_token_on_disk_or_command_line(tmp_path: Path) -> None:
    """Neither a token file in HOME nor the argv of the process shows the root token."""
    with VaultServer(directory=tmp_path) as server:
        assert server._process is not None
        argv = Path(f"/proc/{server._process.pid}/cmdline").read_bytes().decode()
        files = [file.name for file in tmp_path.rglob("*") if file.is_file()]
        assert (server.root_token in argv, files) == (False, ["vault.log"])


def test_a_dev_server_has_no_unseal_key(dev: VaultServer) -> None:
    """Said in words, instead of hanging."""
    with pytest.raises(RuntimeError, match="dev=False"):
        dev.unseal()


def test_a_binary_that_is_not_there() -> None:
    """The error names it."""
    with pytest.raises(FileNotFoundError, match="no-such-vault"):
        find_binary("no-such-vault")


def test_a_program_that_is_no_vault_is_told_by_its_log(tmp_path: Path) -> None:
    """A server that ends at once is reported at once."""
    with pytest.raises(RuntimeError, match="did not start"):
        VaultServer(binary="false", directory=tmp_path).start()
