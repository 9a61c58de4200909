"""Debian's RabbitMQ as a child process, with its MQTT and management plugins, a node name and an epmd of its own.

    with RabbitmqBroker() as broker:
        broker.add_user("meter", "made-up", tags="monitoring")
        ... Rabbitmq(url=broker.url, username=broker.admin_username, password=lambda: broker.admin_password, …)

Sources: rabbitmq.conf(5), rabbitmq-env.conf(5), and RabbitMQ's guides "Definitions" and "Password hashing".
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from rotator.sandbox.processes import end, free_port, spawn, tail, wait_until

Json = dict[str, Any]

SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the one on the PATH changes its user first
START_TIMEOUT: Final = 90.0  # seconds; an Erlang machine on a busy two-core host takes 15
EVERYTHING: Final[Mapping[str, str]] = {"configure": ".*", "write": ".*", "read": ".*"}


def find_programs() -> tuple[str, str]:
    """RabbitMQ's server and Erlang's port mapper.

    Raises:
        FileNotFoundError: one of them is not installed.
    """
    mapper = shutil.which("epmd")
    if mapper is None or not SERVER.exists():
        raise FileNotFoundError(f"no epmd on the PATH, or no {SERVER}: install the Debian package rabbitmq-server")
    return str(SERVER), mapper


def password_hash(password: str) -> str:
    """A password as definitions hold it: base64 of a 4-byte salt and the SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


class RabbitmqBroker:
    """The broker on 127.0.0.1: MQTT on `port`, the management API at `url`; nothing else listens but Erlang's own.

    Ports, users and permissions outlive `stop` and a later `start`.

    Args:
        directory: where configuration, data and log go; None makes a temporary one.
        statistics: seconds between two looks of the management plugin at its connections; RabbitMQ's own is 5.

    Attributes:
        admin_username, admin_password: a user with the tag `administrator` and all permissions in `/`.
    """

    def __init__(self, directory: Path | None = None, *, statistics: float = 5.0) -> None:
        self.host, self.port, self.management_port = "127.0.0.1", 0, 0
        self.admin_username, self.admin_password = "sandbox-admin", secrets.token_urlsafe(18)
        self._statistics = statistics
        self._own_directory = directory is None
        self._directory = Path(tempfile.mkdtemp(prefix="rotator-rabbitmq-")) if directory is None else directory
        self._mapper_port = self._node_port = 0
        self._node = f"sandbox-{secrets.token_hex(4)}@localhost"
        self._mapper: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The management API: `http://127.0.0.1:PORT`."""
        return f"http://{self.host}:{self.management_port}"

    @property
    def log_file(self) -> Path:
        """What RabbitMQ wrote to its console."""
        return self._directory / "rabbitmq.log"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise RuntimeError("RabbitMQ is not running")
        return self._process.pid

    def start(self) -> Self:
        """Run RabbitMQ; returns when its API answers its admin and its MQTT port is open. May be repeated.

        Raises:
            FileNotFoundError: RabbitMQ is not installed.
            RuntimeError: it did not start; the text has the end of its log.
        """
        if self._process is not None:
            return self
        server, mapper = find_programs()
        environment = self._write_configuration()
        # Erlang starts a port mapper that stays for ever where none runs: ours is there first, and goes with us.
        self._mapper = spawn([mapper, "-port", str(self._mapper_port)], self.log_file, environment=environment)
        try:
            wait_until("epmd", lambda: _listens(self._mapper_port), timeout=10)
            self._process = spawn([server], self.log_file, environment=environment)
            wait_until("RabbitMQ", self._is_up, timeout=START_TIMEOUT, interval=0.1)
        except TimeoutError as exc:
            self.stop()
            raise RuntimeError(f"RabbitMQ did not start:\n{tail(self.log_file)}") from exc
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it, and its port mapper after it. May be repeated."""
        if self._process is not None:
            end(self._process, grace=20.0)
            self._process = None
        if self._mapper is not None:
            end(self._mapper)
            self._mapper = None

    def close(self) -> None:
        """End it for good, at once: its temporary directory goes."""
        if self._process is not None:
            end(self._process, grace=5.0, ending=signal.SIGKILL)
            self._process = None
        self.stop()
        if self._own_directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One call of the management API as the admin; returns the answer's JSON, None where it is empty.

        Args:
            method: of HTTP.
            path: what follows `/api/`, its parts quoted.
            body: sent as JSON.

        Raises:
            RuntimeError: the API refused it; the text has its words.
        """
        with httpx.Client(timeout=20, trust_env=False) as client:
            answer = client.request(
                method,
                f"{self.url}/api/{path}",
                auth=(self.admin_username, self.admin_password),
                json=body,
            )
        if not answer.is_success:
            raise RuntimeError(f"RabbitMQ refused {method} {path}: HTTP {answer.status_code}: {answer.text}")
        return answer.json() if answer.content else None

    def add_user(
        self, username: str, password: str, *, tags: str = "", permissions: Mapping[str, str] | None = EVERYTHING
    ) -> None:
        """A user that somebody made by hand.

        Args:
            username, password: its login.
            tags: comma text, such as `monitoring`.
            permissions: regular expressions for `configure`, `write` and `read` in the vhost `/`; None: none at all.
        """
        name = quote(username, safe="")
        self.call("PUT", f"users/{name}", {"password": password, "tags": tags})
        if permissions is not None:
            self.call("PUT", f"permissions/%2F/{name}", dict(permissions))

    def user(self, username: str) -> Json:
        """What the API shows of a user: name, hash, tags, limits."""
        return dict(self.call("GET", f"users/{quote(username, safe='')}"))

    def permissions(self, username: str) -> list[Json]:
        """A user's permissions in all vhosts."""
        return list(self.call("GET", f"users/{quote(username, safe='')}/permissions"))

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # no `__exit__` follows, and the temporary folder would stay
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _is_up(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"RabbitMQ ended:\n{tail(self.log_file)}")
        try:
            self.call("GET", "overview")
        except (httpx.HTTPError, RuntimeError):
            return False
        return _listens(self.port)

    def _write_configuration(self) -> dict[str, str]:
        """Write all files, and return the environment in which the programs find them."""
        folder = self._directory
        if not self.port:
            ports = [free_port() for _ in range(4)]
            self.port, self.management_port, self._mapper_port, self._node_port = ports
            (folder / "definitions.json").write_text(json.dumps(self._first_definitions()))
            (folder / "definitions.json").chmod(0o600)
        lines = [
            "listeners.tcp = none",
            f"mqtt.listeners.tcp.1 = {self.host}:{self.port}",
            "mqtt.allow_anonymous = false",
            "mqtt.vhost = /",
            f"management.tcp.ip = {self.host}",
            f"management.tcp.port = {self.management_port}",
            f"collect_statistics_interval = {round(self._statistics * 1000)}",
            "loopback_users = none",
            "log.console = true",
            "log.console.level = info",
            "log.file = false",
        ]
        # Definitions are loaded over what there is at every start: only the first one may, or it would undo changes.
        if not (folder / "mnesia").exists():
            lines.append(f"load_definitions = {folder / 'definitions.json'}")
        (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (folder / "enabled_plugins").write_text("[rabbitmq_management,rabbitmq_mqtt].\n")
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(folder),  # where Erlang makes its cookie
            "LANG": "C.UTF-8",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the server, so a signal reaches it
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": self.host,
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "no-such-file"),  # nothing of the host's own RabbitMQ
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "no-such-file.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
        }

    def _first_definitions(self) -> Json:
        admin = {
            "name": self.admin_username,
            "password_hash": password_hash(self.admin_password),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": "administrator",
        }
        return {
            "users": [admin],
            "vhosts": [{"name": "/"}],
            "permissions": [{"user": self.admin_username, "vhost": "/", **EVERYTHING}],
        }


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
