"""A consumer under its supervisor, with platform, broker and Vault: what a rotation means for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from integration.sandbox_listener import Listener
from rotator.sandbox.amqtt_broker import AmqttBroker
from rotator.sandbox.haltian import HaltianPlatform
from rotator.sandbox.processes import tail, wait_until
from rotator.sandbox.supervisor import Supervisor, pid_file
from rotator.sandbox.token_sink import events_topic
from rotator.sandbox.vault import VaultServer

LOGIN = """mutation { login(loginInput: {email: "e", organizationName: "acme", password: "p"}) { accessToken } }"""
REFRESH = """mutation($id: uuid!) {
refreshApiKeyToken(refreshApiKeyTokenInput: {apikeyId: $id}) { token { token } }
}"""


class World:
    """One key, its consumer `dashboards`, and everything around them."""

    def __init__(self, stack: ExitStack, directory: Path, vault: VaultServer) -> None:
        self.directory, self.vault = directory, vault
        self.broker = stack.enter_context(AmqttBroker())
        self.platform = stack.enter_context(HaltianPlatform(sink=self.broker))
        acme = self.platform.create_organization("acme")
        self.platform.create_user("e", "p", acme)
        self.key_id, self.first_token = self.platform.add_key("building-a", acme)
        self.topic = events_topic(self.platform.integration_of(self.key_id), self.key_id)
        self.path = f"mqtt/{self.key_id}"
        self.store(self.first_token)
        token_file = directory / "vault.token"
        token_file.write_text(vault.root_token)
        self.supervisor = Supervisor(directory, delay=0.2)
        stack.callback(self.supervisor.stop)
        argv = [sys.executable, "-m", "rotator.sandbox.consumer", "--name", "dashboards", "--heartbeat", "0.2"]
        argv += ["--broker", f"127.0.0.1:{self.broker.port}", "--token-file", str(token_file)]
        argv += ["--client-id", "dash", "--secret", f"{self.path}={self.topic.replace(self.key_id, '{username}')}/#"]
        self.supervisor.add("dashboards", argv, {"VAULT_ADDR": vault.url})

    def store(self, token: str) -> None:
        """Put the key's secret into Vault."""
        self.vault.write(self.path, {"username": self.key_id, "password": token})

    def refresh(self) -> str:
        """Have the platform issue a new token, as the daemon would; the old one is dead afterwards."""
        with httpx.Client() as client:
            session = client.post(self.platform.url, json={"query": LOGIN}).json()["data"]["login"]["accessToken"]
            headers = {"Authorization": f"Bearer {session}"}
            asked = {"query": REFRESH, "variables": {"id": self.key_id}}
            answer = client.post(self.platform.url, json=asked, headers=headers).json()
        return str(answer["data"]["refreshApiKeyToken"]["token"]["token"])

    def log(self) -> str:
        """What the consumer printed so far."""
        return tail(self.directory / "dashboards.log", 10_000)

    def wait_for(self, text: str) -> None:
        """Wait until the consumer printed this."""
        try:
            wait_until(text, lambda: text in self.log(), timeout=15)
        except TimeoutError:
            raise AssertionError(f"no {text!r} in: {self.log()}") from None

    def restart(self, name: str = "dashboards") -> subprocess.CompletedProcess[str]:
        """The argv of a `command` consumer."""
        argv = [sys.executable, "-m", "rotator.sandbox.restart", name, "--dir", str(self.directory), "--timeout", "5"]
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)


@pytest.fixture(scope="module")
def vault() -> Iterator[VaultServer]:
    """One dev server; each test has a path of its own."""
    with VaultServer() as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, vault: VaultServer) -> Iterator[World]:
    """A world whose consumer is connected."""
    with ExitStack() as stack:
        world = World(stack, tmp_path, vault)
        world.wait_for("(Vault version 1)")
        yield world


def test_it_prints_what_it_receives(world: World) -> None:
    """Topic and indented JSON, as the document's example does."""
    world.broker.publish(f"{world.topic}/temperature", '{"value": 21.5}')
    world.wait_for('/temperature: {\n  "value": 21.5\n}')


def test_a_rotation_by_hand(world: World) -> None:
    """Refresh, Vault, restart: a new process on version 2 that receives; the old token is useless."""
    before = pid_file(world.directory, "dashboards").read_text()
    world.store(world.refresh())
    done = world.restart()
    world.wait_for("(Vault version 2)")
    world.broker.publish(f"{world.topic}/temperature", '{"after": "rotation"}')
    world.wait_for('"after": "rotation"')
    world.store(world.first_token)
    world.restart()
    world.wait_for("Connection failed: Not authorized")
    assert done.returncode == 0, done.stderr
    assert before != pid_file(world.directory, "dashboards").read_text()


def test_a_refused_consumer_ends_and_is_started_until_vault_has_the_new_secret(world: World) -> None:
    """Kicked by a refresh, it fails on the old secret, and comes in by itself once Vault has the new one."""
    new = world.refresh()
    world.wait_for("Connection failed: Not authorized")
    world.store(new)
    world.wait_for("(Vault version 2)")


def test_a_restart_works_between_two_lives(world: World) -> None:
    """Asked for while the consumer is failing, it still waits for a process that runs."""
    new = world.refresh()
    world.wait_for("Connection failed: Not authorized")
    world.store(new)
    done = world.restart()
    world.wait_for("(Vault version 2)")
    assert done.returncode == 0, done.stderr


def test_a_restart_of_nobody_fails(world: World) -> None:
    """Exit code 1, and the name in the text."""
    done = world.restart("nobody")
    assert (done.returncode, "no program nobody" in done.stderr) == (1, True)


def test_a_restart_without_a_supervisor_fails(world: World) -> None:
    """The supervisor is gone: nothing starts again, and the command says so in time."""
    world.supervisor.stop()
    done = world.restart()
    assert (done.returncode, "was not running again" in done.stderr) == (1, True)


def test_it_sends_heartbeats_with_its_version(world: World) -> None:
    """On `heartbeat/NAME`, where the observer hears them."""
    observer = Listener("127.0.0.1", world.broker.port, "observer", world.broker.observer_password, "the-observer")
    with observer.connected():
        observer.subscribe("heartbeat/dashboards")
        observer.wait_for("message")
        assert '"version": 1' in observer.messages()[0][1]


def test_stopping_the_supervisor_ends_the_consumer(world: World) -> None:
    """No process and no pid file is left."""
    pid = pid_file(world.directory, "dashboards").read_text()
    world.supervisor.stop()
    left = (Path("/proc", pid).exists(), pid_file(world.directory, "dashboards").exists())
    assert left == (False, False)


def test_one_name_is_one_program(world: World) -> None:
    """A second program of a name is refused."""
    with pytest.raises(ValueError, match="dashboards"):
        world.supervisor.add("dashboards", ["true"])


def test_a_consumer_without_vault_says_so_and_fails(tmp_path: Path) -> None:
    """Exit code 1 and no traceback."""
    (tmp_path / "token").write_text("made-up")
    argv = [sys.executable, "-m", "rotator.sandbox.consumer", "--name", "c", "--broker", "127.0.0.1:1"]
    argv += ["--token-file", str(tmp_path / "token"), "--secret", "mqtt/a=x"]
    environment = {"VAULT_ADDR": "http://127.0.0.1:9"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False, env=environment)
    assert (done.returncode, "c can't start" in done.stdout, done.stderr) == (1, True, "")
