"""Runs as deploy/systemd/rotator.service's main process, tries what the daemon needs and what it must not reach, and
prints what it found as one line of JSON."""

import json
import mmap
import os
import pwd
import resource
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hvac
import jeepney
import paho.mqtt.client
import prometheus_client
import sqlalchemy
from apscheduler.schedulers.background import BackgroundScheduler
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from jeepney.io.blocking import open_dbus_connection


def attempt(call: Callable[[], object]) -> str:
    """`ok`, or the name of the error that the kernel answered with."""
    try:
        call()
    except OSError as exc:
        return type(exc).__name__ if exc.errno is None else os.strerror(exc.errno)
    return "ok"


def restart(unit: str) -> str:
    """Ask the real systemd to restart a unit; `ok` or the D-Bus error's name."""
    manager = jeepney.DBusAddress(
        "/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager"
    )
    with open_dbus_connection("SYSTEM") as bus:
        reply = bus.send_and_get_reply(jeepney.new_method_call(manager, "RestartUnit", "ss", (unit, "replace")))
    if reply.header.message_type is jeepney.MessageType.method_return:
        return "ok"
    return str(reply.header.fields[jeepney.HeaderFields.error_name])


def journal_mode() -> str:
    """SQLite in the mode that the journal uses, in the directory where the daemon keeps it."""
    with sqlite3.connect("state.db") as db:
        mode = db.execute("pragma journal_mode=wal").fetchone()[0]
        db.execute("pragma synchronous=full")
        db.execute("create table if not exists t (x)")
    return str(mode)


def credentials() -> dict[str, str]:
    """Each credential's name and whether others could read it."""
    folder = Path(os.environ["CREDENTIALS_DIRECTORY"])
    return {file.name: stat.filemode(file.stat().st_mode) for file in sorted(folder.iterdir()) if file.read_text()}


def notify(text: str) -> None:
    """sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["NOTIFY_SOCKET"])
        sock.send(text.encode())


def main() -> None:
    """Print what was found, say READY, and stay until systemd ends it."""
    scheduler = BackgroundScheduler()
    scheduler.start()
    ssl.create_default_context()
    AESGCM(bytes(32)).encrypt(bytes(12), b"x", None)
    status = Path("/proc/self/status").read_text()
    everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    process = prometheus_client.generate_latest().decode()
    found = {
        "imported": [module.__name__ for module in (hvac, paho.mqtt.client, sqlalchemy)],
        "directory": str(Path.cwd()),
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "capabilities": int(status.split("CapBnd:")[1].split()[0], 16),
        "no new privileges": "NoNewPrivs:\t1" in status,
        "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "journal": journal_mode(),
        "start time": "process_start_time_seconds" in process,
        "watchdog": os.environ["WATCHDOG_USEC"],
        "credentials": credentials(),
        "child": subprocess.run(["/bin/true"], start_new_session=True, check=False).returncode,
        "tcp": attempt(socket.create_server(("127.0.0.1", 0)).close),
        "write /etc": attempt(lambda: Path("/etc/rotator/x").touch()),
        "write /opt": attempt(lambda: Path("/opt/rotator/x").touch()),
        "read /root": attempt(lambda: os.listdir("/root")),
        "raw packets": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
        "executable memory": attempt(lambda: mmap.mmap(-1, 4096, prot=everything)),
        "restart a consumer": restart("ingest.service"),
        "restart another": restart("other.service"),
    }
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    scheduler.shutdown()
    notify("READY=1")
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
