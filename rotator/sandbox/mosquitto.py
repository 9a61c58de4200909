"""Debian's Mosquitto as a child process, with the dynamic security plugin holding a platform's tokens as passwords.

Sources: mosquitto.conf(5), mosquitto_ctrl_dynsec(1), and `mosquitto_ctrl dynsec init` for the shape of the file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from rotator.sandbox.processes import end, free_port, spawn, tail, wait_until
from rotator.sandbox.token_sink import EVENTS_PREFIX, HEARTBEAT_PREFIX, TELEMETRY_PREFIX

CONTROL = "$CONTROL/dynamic-security/v1"
ITERATIONS = 101
Command = dict[str, Any]


def find_plugin(root: Path = Path("/usr/lib")) -> Path:
    """The dynamic security plugin of the installed Mosquitto.

    Raises:
        FileNotFoundError: Debian's package `mosquitto` is not installed.
    """
    for found in sorted(root.rglob("mosquitto_dynamic_security.so")):
        return found
    raise FileNotFoundError(f"no mosquitto_dynamic_security.so below {root}: install the Debian package mosquitto")


def find_program() -> str:
    """The `mosquitto` program; Debian puts it where only root's PATH looks.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise FileNotFoundError("no mosquitto on the PATH or in /usr/sbin: install the Debian package mosquitto")
    return found


def _acl(acltype: str, topic: str) -> Command:
    return {"acltype": acltype, "topic": topic, "allow": True}


def _client(username: str, password: str, role: str) -> Command:
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    return {
        "username": username,
        "password": base64.b64encode(digest).decode(),
        "salt": base64.b64encode(salt).decode(),
        "iterations": ITERATIONS,
        "roles": [{"rolename": role}],
    }


class MosquittoBroker:
    """The broker on 127.0.0.1; a `TokenSink`.

    A grant sets a client's password, which in Mosquitto ends all sessions of that username at once. Port and
    accounts outlive `stop` and a later `start`.

    Args:
        directory: where configuration and log go; None makes a temporary one.

    Attributes:
        observer_username, observer_password: an account that may read `$SYS/#` and `heartbeat/#`.
        admin_username, admin_password: an account that may send dynamic security commands and publish anywhere.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.host, self.port = "127.0.0.1", 0
        self.observer_username, self.observer_password = "observer", secrets.token_urlsafe(18)
        self.admin_username, self.admin_password = "sandbox-admin", secrets.token_urlsafe(18)
        self._own_directory = directory is None
        self._directory = Path(tempfile.mkdtemp(prefix="rotator-mosquitto-")) if directory is None else directory
        self._process: subprocess.Popen[bytes] | None = None
        self._admin: _Admin | None = None
        self._known: set[str] = set()

    @property
    def log_file(self) -> Path:
        """What Mosquitto wrote to stderr."""
        return self._directory / "mosquitto.log"

    def start(self) -> Self:
        """Run Mosquitto; returns when its admin is connected. May be repeated.

        Raises:
            FileNotFoundError: Mosquitto is not installed.
            RuntimeError: it did not start; the text has the end of its log.
        """
        if self._process is not None:
            return self
        argv = [find_program(), "-c", str(self._write_configuration())]
        self._process = spawn(argv, self.log_file)
        self._admin = _Admin(self.host, self.port, self.admin_username, self.admin_password)
        try:
            wait_until("Mosquitto", self._admin.try_connect, timeout=10, interval=0.02)
        except TimeoutError as exc:
            self.stop()
            raise RuntimeError(f"Mosquitto did not start:\n{tail(self._directory / 'mosquitto.log')}") from exc
        return self

    def stop(self) -> None:
        """End it. May be repeated."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        if self._process is not None:
            end(self._process)
            self._process = None

    def close(self) -> None:
        """End it for good: its temporary directory goes."""
        self.stop()
        if self._own_directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def grant(self, username: str, token: str) -> None:
        """See `TokenSink`."""
        if username in self._known:
            commands = [
                {"command": "setClientPassword", "username": username, "password": token},
                {"command": "enableClient", "username": username},
            ]
        else:
            commands = self._creation(username, token)
        self.command(commands)
        self._known.add(username)

    def revoke(self, username: str) -> None:
        """See `TokenSink`."""
        if username in self._known:
            self.command([{"command": "disableClient", "username": username}])

    def publish(self, topic: str, payload: str) -> None:
        """Publish a message (QoS 1) and wait until Mosquitto has it."""
        self._running().publish(topic, payload)

    def command(self, commands: Sequence[Command]) -> list[Command]:
        """Send dynamic security commands and return their responses, in order.

        Raises:
            RuntimeError: a command was refused; the text has the plugin's words.
        """
        return self._running().command(commands)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # no `__exit__` follows, and the temporary folder would stay
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _running(self) -> _Admin:
        if self._admin is None:
            raise RuntimeError("Mosquitto is not running")
        return self._admin

    @staticmethod
    def _creation(username: str, token: str) -> list[Command]:
        # One role a key: patterns such as %u are not filled in by the plugin of Mosquitto 2.0.
        role = f"key-{username}"
        acls = [
            _acl("subscribePattern", f"{EVENTS_PREFIX}/+/{username}/#"),
            _acl("subscribePattern", f"{TELEMETRY_PREFIX}/#"),
            _acl("publishClientSend", f"{HEARTBEAT_PREFIX}/#"),
        ]
        return [
            {"command": "createRole", "rolename": role, "acls": acls},
            {"command": "createClient", "username": username, "password": token, "roles": [{"rolename": role}]},
        ]

    def _write_configuration(self) -> Path:
        security = self._directory / "dynamic-security.json"
        if not security.exists():
            security.write_text(json.dumps(self._first_accounts()))
            security.chmod(0o600)
        self.port = self.port or free_port()
        lines = [
            f"listener {self.port} {self.host}",
            "set_tcp_nodelay true",
            "allow_anonymous false",
            "persistence false",
            f"plugin {find_plugin()}",
            f"plugin_opt_config_file {security}",
            "log_dest topic",
            "log_dest stderr",
            "log_type all",
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # else it would drop to a user that can't write the plugin's file
        path = self._directory / "mosquitto.conf"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _first_accounts(self) -> Command:
        # The default for publishClientReceive does not reach $CONTROL and $SYS: those are named.
        control, system = "$CONTROL/dynamic-security/#", "$SYS/#"
        admin = [_acl(kind, control) for kind in ("publishClientSend", "publishClientReceive", "subscribePattern")]
        admin.append(_acl("publishClientSend", "#"))
        observer = [_acl("publishClientReceive", system), _acl("subscribePattern", system)]
        observer.append(_acl("subscribePattern", f"{HEARTBEAT_PREFIX}/#"))
        return {
            "clients": [
                _client(self.admin_username, self.admin_password, "admin"),
                _client(self.observer_username, self.observer_password, "observer"),
            ],
            "roles": [{"rolename": "admin", "acls": admin}, {"rolename": "observer", "acls": observer}],
            "defaultACLAccess": {
                "publishClientSend": False,
                "publishClientReceive": True,
                "subscribe": False,
                "unsubscribe": True,
            },
        }


class _Admin:
    """The connection through which commands go; answers are matched by `correlationData`."""

    def __init__(self, host: str, port: int, username: str, password: str) -> None:
        self._host, self._port = host, port
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="sandbox-admin", reconnect_on_failure=False)
        self._client.username_pw_set(username, password)
        self._ready = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe(f"{CONTROL}/response")
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._receive
        self._answered = threading.Condition()
        self._answers: dict[str, Command] = {}

    def try_connect(self) -> bool:
        """Whether the connection stands and answers would arrive."""
        try:
            self._client.connect(self._host, self._port)
        except OSError:
            return False
        self._client.loop_start()
        return self._ready.wait(5)

    def command(self, commands: Sequence[Command]) -> list[Command]:
        marks = [secrets.token_hex(8) for _ in commands]
        marked = [{**one, "correlationData": mark} for one, mark in zip(commands, marks, strict=True)]
        self._client.publish(CONTROL, json.dumps({"commands": marked}), qos=1)
        with self._answered:
            if not self._answered.wait_for(lambda: self._answers.keys() >= set(marks), timeout=5):
                raise RuntimeError("Mosquitto's dynamic security did not answer within 5 s")
            answers = [self._answers.pop(mark) for mark in marks]
        refused = [f"{answer['command']}: {answer['error']}" for answer in answers if "error" in answer]
        if refused:
            raise RuntimeError(f"Mosquitto's dynamic security refused {'; '.join(refused)}")
        return answers

    def publish(self, topic: str, payload: str) -> None:
        self._client.publish(topic, payload, qos=1).wait_for_publish(5)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _receive(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        with self._answered:
            for answer in json.loads(message.payload)["responses"]:
                self._answers[answer.get("correlationData", "")] = answer
            self._answered.notify_all()
