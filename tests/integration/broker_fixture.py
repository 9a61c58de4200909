"""A real Mosquitto with dynamic security for the tests of the probe and the watches."""

from __future__ import annotations

import datetime
import ipaddress
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rotator.model import ProbeTarget, Secret
from rotator.sandbox.processes import free_port

PLUGIN = "mosquitto_dynamic_security.so"


def until(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    """Wait for a condition, and fail with its name when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def certificates(folder: Path, host: str = "127.0.0.1") -> Path:
    """Write ca.pem, server.pem and server.key for a made-up authority; returns the authority's file."""
    now = datetime.datetime.now(datetime.UTC)
    life = (now - datetime.timedelta(days=1), now + datetime.timedelta(days=1))
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "made-up authority")])
    build = x509.CertificateBuilder().issuer_name(authority).not_valid_before(life[0]).not_valid_after(life[1])
    ca = (
        build.subject_name(authority)
        .public_key(authority_key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        build.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "server.pem").write_bytes(server.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "ca.pem"


class Broker:
    """One Mosquitto: a plain, a TLS and a web socket listener, an admin, and an observer of its log.

    The role `reader` may subscribe to `data/#` and publish there.
    """

    def __init__(self, folder: Path) -> None:
        programs = ("mosquitto", "mosquitto_ctrl")
        missing = [name for name in programs if shutil.which(name) is None and not Path("/usr/sbin", name).exists()]
        assert not missing, f"install the Debian package mosquitto: {missing} not found"
        plugins = sorted(Path("/usr/lib").glob(f"*/{PLUGIN}")) + sorted(Path("/usr/lib").glob(PLUGIN))
        assert plugins, f"install the Debian package mosquitto: {PLUGIN} not found"
        self.port, self.tls_port, self.web_port = free_port(), free_port(), free_port()
        self.ca_file = str(certificates(folder))
        self._config, self._log = folder / "mosquitto.conf", folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None
        state = folder / "dynsec.json"
        self._run("mosquitto_ctrl", "dynsec", "init", str(state), "admin", "admin-password")
        self._config.write_text(
            f"user root\nallow_anonymous false\nplugin {plugins[0]}\nplugin_opt_config_file {state}\n"
            f"log_dest topic\nlog_dest stderr\nlistener {self.port} 127.0.0.1\n"
            f"listener {self.web_port} 127.0.0.1\nprotocol websockets\n"
            f"listener {self.tls_port} 127.0.0.1\n"
            f"cafile {self.ca_file}\ncertfile {folder}/server.pem\nkeyfile {folder}/server.key\n"
        )
        self.start()
        self.control("createRole", "reader")
        for acl in ("subscribePattern", "publishClientSend"):
            self.control("addRoleACL", "reader", acl, "data/#", "allow")
        self.control("createRole", "observer")
        self.control("addRoleACL", "observer", "subscribePattern", "$SYS/#", "allow")
        self.control("addRoleACL", "observer", "subscribePattern", "data/#", "allow")
        self.client("observer", "observer-password", role="observer")

    def start(self) -> None:
        """Start it, on the same ports each time."""
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([program, "-c", str(self._config)], stdout=log, stderr=log)
        until(self._answers, f"mosquitto listens:\n{self._log.read_text()}")

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def control(self, *arguments: str) -> None:
        """One command of dynamic security, as the admin."""
        connection = ("-h", "127.0.0.1", "-p", str(self.port), "-u", "admin", "-P", "admin-password")
        self._run("mosquitto_ctrl", *connection, "dynsec", *arguments)

    def client(self, username: str, password: str, *, role: str | None = "reader") -> None:
        """Create a client."""
        self.control("createClient", username, "-p", password)
        if role is not None:
            self.control("addClientRole", username, role, "1")

    def target(self, username: str, password: str, subscribe: str | None = "data/#") -> ProbeTarget:
        """A target at the plain listener."""
        return ProbeTarget(
            host="127.0.0.1", port=self.port, username=username, password=Secret(password), subscribe=subscribe
        )

    def observer(self) -> ProbeTarget:
        """The observer of the log."""
        return self.target("observer", "observer-password", None)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"mosquitto ended:\n{self._log.read_text()}"
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        said = done.stdout + done.stderr  # mosquitto_ctrl 2.0 exits with 0 although the broker has refused
        assert done.returncode == 0, f"{command[0]} {command[-3:]}: {said}"
        assert "Error" not in said, f"{command[0]} {command[-3:]}: {said}"
