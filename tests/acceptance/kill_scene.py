"""One strategy's site: broker, platform, consumers, and a daemon that is killed while all of these live on."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from acceptance.daemon_site import Site
from acceptance.kill_process import DaemonServer, KillableDaemon
from acceptance.kill_refusal import digest
from acceptance.kill_upstreams import UPSTREAMS, BrokerDiary, Login, Upstream
from acceptance.world_outside import answer_to
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.supervisor import Supervisor, pid_file
from rotator.sandbox.token_sink import events_topic
from rotator.sandbox.vault import VaultServer

TOPIC = events_topic("kills", "{username}") + "/#"
HERE = Path(__file__).parent
KEYS = ("first", "second")  # they rotate in turn, so that there is always one that must not move
STUBBORN = "stubborn"  # gives up after two tries


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What Vault holds for a key."""

    version: int
    login: Login


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """How things were before a rotation was asked for."""

    key: str
    held: Held
    rotation: str  # the newest one's id
    calls: int
    ids: frozenset[str]
    others: dict[str, int]  # the other keys' versions in Vault


class Scene:
    """All of it.

    Attributes:
        secrets: every secret that ever was, as far as somebody outside can know.
        kills: how often the daemon was killed.
        deaths: at which steps of the journal's record it was killed from outside.
    """

    def __init__(self, strategy: str, folder: Path, vault: VaultServer, server: DaemonServer, stack: ExitStack) -> None:
        self.strategy, self.vault = strategy, vault
        self.broker = stack.enter_context(MosquittoBroker())
        self.upstream: Upstream = UPSTREAMS[strategy](self.broker)
        stack.callback(self.upstream.close)
        self.diary = BrokerDiary(self.broker)
        self.secrets: dict[str, None] = {}  # in the order in which they were seen
        self.kills = 0
        self.deaths: Counter[str] = Counter()
        self._site = Site(folder, vault, self.broker, haltian=False)
        (folder / "consumers").mkdir()
        self._supervisor = Supervisor(folder / "consumers", delay=1.0)
        stack.callback(self._supervisor.stop)
        self._add_provider()
        for name in (*KEYS, STUBBORN):
            self._add_key(name)
        config = {**self._site.config, "watch": "2s", "drift_interval": "5s"}
        self.daemon = KillableDaemon(folder, config, server)
        stack.callback(self.daemon.close)

    # --- how it is built ----------------------------------------------------------------------------------------

    def _add_provider(self) -> None:
        settings = dict(self.upstream.provider)
        for name in settings.keys() & {"password", "token"}:
            settings[name] = self._site.secret(f"provider.{name}", settings[name])
        self._site.config["providers"]["platform"] = settings

    def _add_key(self, name: str) -> None:
        login, path = self.upstream.add(name), self._path(name)
        self.secrets[login.secret] = None
        self.vault.write(path, {"id": login.id, "username": login.username, "password": login.secret, "note": "ours"})
        reader = self._reader(name)
        self._run_consumer(name, reader)
        self._site.config["keys"][name] = {
            "provider": "platform",
            "id": login.id,
            "vault": {"path": path, "fields": {"id": "{id}", "username": "{username}", "password": "{secret}"}},
            "verify": {
                "host": self.broker.host,
                "port": self.broker.port,
                "subscribe": TOPIC,
                "propagation": "3s",
            },
            "consumers": [reader],
            **({"max_attempts": 2} if name == STUBBORN else {}),
            **self.upstream.key,
        }

    def _run_consumer(self, key: str, reader: str) -> None:
        token = self._site.secret("consumer.token", self.vault.root_token)["file"]
        argv = [sys.executable, "-m", "rotator.sandbox.consumer", "--name", reader]
        argv += ["--broker", f"{self.broker.host}:{self.broker.port}", "--token-file", token]
        argv += ["--secret", f"{self._path(key)}={TOPIC}"]
        self._supervisor.add(reader, argv, {**os.environ, "VAULT_ADDR": self.vault.url})
        refusal = str(self._refusal(key))
        command = ["/bin/sh", str(HERE / "kill_restart.sh"), str(self._pid_file(key)), refusal]
        command += [sys.executable, str(HERE / "kill_refusal.py"), refusal, self.vault.url, token, self._path(key)]
        observer = {
            "username": self.broker.observer_username,
            "password": self._site.secret("observer", self.broker.observer_password),
            "client_id": f"{reader}-*",
        }
        self._site.add_consumer(reader, *command, confirm={"broker": observer}, timeout="60s")

    def _path(self, key: str) -> str:
        return f"mqtt/{self._site.policy}-{key}"

    @staticmethod
    def _reader(key: str) -> str:
        return f"{key}-reader"

    # --- what is seen from outside --------------------------------------------------------------------------------

    def held(self, key: str) -> Held:
        """What Vault holds now."""
        version, data = self.vault.read(self._path(key))
        assert data is not None
        assert data.get("note") == "ours", "a field of somebody else's was touched"
        login = Login(id=data["id"], username=data["username"], secret=data["password"])
        self.secrets[login.secret] = None
        return Held(version=version, login=login)

    def before(self, key: str) -> Before:
        """How things are now."""
        return Before(
            key=key,
            held=self.held(key),
            rotation=str(self.daemon.rotation(key).get("id", "")),
            calls=self.upstream.calls(),
            ids=frozenset(self.upstream.ids()),
            others={name: self.held(name).version for name in (*KEYS, STUBBORN) if name != key},
        )

    def broker_says(self, login: Login) -> str:
        """The broker's word to somebody who comes with this login; "Success" lets it in, to its topic too."""
        topic = TOPIC.replace("{username}", login.username)
        return answer_to(self.broker.host, self.broker.port, (login.username, login.secret), topic)

    def connected_on(self, key: str) -> str:
        """The username of the last connect of a key's consumer, by the broker's log."""
        return self.diary.last_username(f"{self._reader(key)}-{self._path(key).rpartition('/')[2]}")

    def reads(self, key: str) -> str:
        """The last thing that a key's consumer said of its connection; it names Vault's version."""
        said = [line for line in self._consumer_log(key).splitlines() if line.startswith("Connect")]
        return said[-1] if said else ""

    def runs(self, key: str) -> bool:
        """Whether a message that only the current login may read comes through to the consumer."""
        mark = secrets.token_hex(8)
        username = self.held(key).login.username
        self.broker.publish(f"{events_topic('kills', username)}/mark", json.dumps({"mark": mark}))
        return mark in self._consumer_log(key)

    def _consumer_log(self, key: str) -> str:
        file = self._supervisor.log_file(self._reader(key))
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def _pid_file(self, key: str) -> Path:
        return pid_file(self._supervisor.directory, self._reader(key))

    def _refusal(self, key: str) -> Path:
        return self._pid_file(key).with_suffix(".refusal")

    # --- troubles -------------------------------------------------------------------------------------------------

    @contextmanager
    def consumer_refuses(self, key: str) -> Iterator[None]:
        """Meanwhile the consumer starts with no other secret than the current one."""
        refusal = self._refusal(key)
        refusal.write_text(digest(self.held(key).login.secret), encoding="utf-8")
        try:
            yield
        finally:
            refusal.unlink()


@contextmanager
def open_scene(strategy: str, folder: Path, vault: VaultServer, server: DaemonServer) -> Iterator[Scene]:
    """A scene whose daemon runs; everything has ended afterwards. The thread that opens it must stay."""
    folder.mkdir()
    with ExitStack() as stack:
        scene = Scene(strategy, folder, vault, server, stack)
        scene.daemon.start()
        yield scene
