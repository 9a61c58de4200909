"""Tests that run inside the systemd sandbox, in one boot: the suite of consumer_cases.py over real units.

test_consumer_systemd.py starts them there and tells what came of each; pytest does not find this file by its name.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from contract.consumer_cases import ORDER, ConsumerCases, confirmed, looked
from rotator.clock import SystemClock
from rotator.consumers.asking import AskingWatch
from rotator.consumers.http_evidence import ask_http
from rotator.consumers.systemd import SystemdConsumer
from rotator.model import Order
from rotator.ports import Watch
from rotator.providers import make_client
from rotator.sandbox.processes import free_port

UNITS = Path("/etc/systemd/system")
NOBODY = 65534
NUMBERS = itertools.count(1)

UNIT = """[Unit]
StartLimitIntervalSec=0
[Service]
Type=notify
WorkingDirectory={folder}
ExecStartPre=/bin/sh -c 'sleep $(cat slow); exit $(cat exit)'
ExecStart={python} -I app.py {port}
ExecReload=/bin/sh -c 'sleep $(cat slow); kill -HUP $MAINPID; exit $(cat exit)'
Restart=always
RestartSec=50ms
TimeoutStopSec=1
StandardError=append:{folder}/stderr
"""
# The consumer: reads the secret's version where it was delivered, when it starts and on SIGHUP, and tells it over HTTP.
APP = """
import http.server, os, pathlib, signal, socket, sys

def read(*_):
    global version
    key, delivered = pathlib.Path("delivered").read_text().split()
    version = pathlib.Path("wanted").read_text() or delivered
    note("restarts", key + " " + delivered)

def note(name, line):
    with open(name, "a") as file:
        file.write(line + "\\n")

class Answering(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if not os.path.exists("silent"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(version.encode())
        note("told", "told")

signal.signal(signal.SIGHUP, signal.SIG_IGN if os.path.exists("deaf") else read)
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answering)
read()
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
if os.path.exists("crash"):
    note("deaths", "died")
    sys.exit(3)
server.serve_forever(0.05)
"""


def systemctl(*arguments: str) -> str:
    """Run systemctl; what it prints."""
    command = ["/usr/bin/systemctl", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class SystemdStage:
    """A unit that tells over HTTP which version it read, and that ran on version 6 before."""

    kind = "systemd"

    def __init__(self, action: str, client: httpx.Client) -> None:
        self.stop, self.action, self._client = threading.Event(), action, client
        self.unit = f"subject-{next(NUMBERS)}.service"
        self.folder = Path("/srv") / self.unit
        self.folder.mkdir(parents=True)
        self._port = free_port()
        files = {"slow": "0", "exit": "0", "wanted": "", "delivered": "building-a 6", "told": "", "deaths": ""}
        for name, text in {**files, "app.py": APP}.items():
            (self.folder / name).write_text(text)
        self.begin()

    def begin(self) -> None:
        """Run the unit as it stands, and forget that it was started."""
        text = UNIT.format(folder=self.folder, python=sys.executable, port=self._port)
        (UNITS / self.unit).write_text(text)
        systemctl("daemon-reload")
        try:
            systemctl("restart", self.unit)
        except subprocess.CalledProcessError as error:
            error.add_note((self.folder / "stderr").read_text())
            raise
        (self.folder / "restarts").write_text("")
        (self.folder / "delivered").write_text(f"{ORDER.key} {ORDER.version}")

    def close(self) -> None:
        """Become root again, and end the unit."""
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        if (UNITS / self.unit).exists():
            systemctl("stop", self.unit)
            (UNITS / self.unit).unlink()

    def consumer(self, timeout: float = 10) -> SystemdConsumer:
        """The adapter."""
        signal = "SIGHUP" if self.action == "kill" else None
        limit, clock = timedelta(seconds=timeout), SystemClock()
        return SystemdConsumer(
            "subject", unit=self.unit, action=self.action, signal=signal, timeout=limit, clock=clock, stop=self.stop
        )

    def watch(self, order: Order) -> Watch:
        """Asks the application, ten times as often as the daemon does."""
        url = f"http://127.0.0.1:{self._port}/"
        ask = ask_http("subject", client=self._client, url=url, field="version", headers=dict, order=order)
        return AskingWatch("subject", ask=ask, clock=SystemClock(), stop=threading.Event(), pause=0.1)

    def restarts(self) -> list[tuple[str, int]]:
        """What the application wrote down each time that it read the secret."""
        lines = (line.split() for line in (self.folder / "restarts").read_text().splitlines())
        return [(key, int(version)) for key, version in lines]

    def told(self) -> int:
        """Questions that were answered; the last one may not be read yet."""
        return len((self.folder / "told").read_text().splitlines()) - 1

    def run_on(self, version: int | None) -> None:
        """What the application holds its secret for, from its next start on."""
        (self.folder / "wanted").write_text("" if version is None else str(version))

    def slow(self, seconds: float) -> None:
        """What runs before the start, or as the reload, takes this long."""
        (self.folder / "slow").write_text(str(seconds))

    def failing(self) -> None:
        """It exits with 3."""
        (self.folder / "exit").write_text("3")

    def missing(self) -> None:
        """There is no such unit."""
        systemctl("stop", self.unit)
        (UNITS / self.unit).unlink()
        systemctl("daemon-reload")

    def forbidden(self) -> None:
        """From now on this process is a user whom polkit lets do nothing."""
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, 0)
        os.setresuid(NOBODY, NOBODY, 0)

    def silent(self) -> None:
        """The application hangs up instead of answering."""
        (self.folder / "silent").touch()

    def half_down(self) -> None:
        """There is no half of a unit."""
        raise NotImplementedError

    def crashes(self) -> None:
        """The application ends as soon as it has said that it is ready, each time."""
        (self.folder / "crash").touch()

    def deaths(self) -> int:
        """Written down by the application, each time."""
        return len((self.folder / "deaths").read_text().splitlines())

    def mended(self) -> None:
        """It stays up from its next start on."""
        (self.folder / "crash").unlink()

    def ignores_reloads(self) -> None:
        """The application goes on with what it read when it started."""
        (self.folder / "deaf").touch()
        (self.folder / "delivered").write_text(f"{ORDER.key} 6")
        self.begin()


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> Iterator[SystemdStage]:
    """A unit that does well; its class says how it is told."""
    with make_client() as client, closing(SystemdStage(request.cls.ACTION, client)) as made:
        yield made


class TestRestart(ConsumerCases):
    """The suite, over a unit that is restarted."""

    ACTION = "restart"
    SEES_CRASHES = True
    test_half_down = None  # type: ignore[assignment]  # a unit has one main process


class TestReload(ConsumerCases):
    """The suite, over a unit that is reloaded."""

    ACTION = "reload"
    test_crash_looping = None  # type: ignore[assignment]  # a reload starts no process
    test_half_down = None  # type: ignore[assignment]  # a unit has one main process

    def test_ignores_the_reload(self, stage: SystemdStage) -> None:
        """A reload that the application ignores counts as restarted, and nothing confirms it."""
        ignored(stage)


class TestSignal(ConsumerCases):
    """The suite, over a unit that gets a signal."""

    ACTION = "kill"
    test_crash_looping = None  # type: ignore[assignment]  # a signal starts no process
    test_half_down = None  # type: ignore[assignment]  # a unit has one main process
    # A signal has no job: nobody says how long what it began takes, or that it failed.
    test_slow = None  # type: ignore[assignment]
    test_too_slow = None  # type: ignore[assignment]
    test_failing = None  # type: ignore[assignment]
    test_the_daemon_stops = None  # type: ignore[assignment]

    def test_ignores_the_signal(self, stage: SystemdStage) -> None:
        """A signal that the application ignores counts as restarted, and nothing confirms it."""
        ignored(stage)


def ignored(stage: SystemdStage) -> None:
    """What must come of a unit that goes on with the old version."""
    stage.ignores_reloads()
    subject = stage.consumer()
    with closing(stage.watch(ORDER)) as watch:
        ticket = subject.restart(ORDER)
        subject.check(ticket)
        looked(watch, lambda: stage.told() >= 3, "it has spoken")
        assert () == tuple(watch.sightings())
        assert "" == watch.healthy()
        systemctl("restart", stage.unit)
        confirmed(watch)  # so it would have been seen
