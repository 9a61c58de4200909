"""Consumers that a command restarts, by real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from integration.broker_fixture import until
from rotator.clock import SystemClock
from rotator.consumers import KINDS
from rotator.consumers.command import KEPT, CommandConsumer
from rotator.errors import Permanent, Transient
from rotator.model import Order
from rotator.ports import Consumer
from rotator.reasons import Reason

ORDER = Order(key="building-a", version=1)


def command(
    *argv: str, timeout: float = 10, cwd: str | None = None, env: Mapping[str, str] | None = None
) -> CommandConsumer:
    """A consumer that runs this."""
    return CommandConsumer("edge", argv=argv, cwd=cwd, env=env, timeout=timedelta(seconds=timeout), clock=SystemClock())


def shell(script: str, timeout: float = 10) -> CommandConsumer:
    """A consumer that runs this script."""
    return command("sh", "-c", script, timeout=timeout)


def gone(pid: int) -> bool:
    """Whether this process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """A file in which a script leaves the numbers of its processes, which are ended with the test."""
    path = tmp_path / "pids"
    yield path
    for line in path.read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line), signal.SIGKILL)


def test_kinds() -> None:
    """The table makes consumers that know their kind and name."""
    made: Consumer = KINDS["command"]("edge", argv=["true"], timeout=timedelta(seconds=1), clock=SystemClock())
    assert (made.kind, made.name) == ("command", "edge")


def test_restarted() -> None:
    """Exit 0 is *restarted*, at the time at which the program was started; a later look has nothing to see."""
    consumer = shell("sleep 0.2")
    before = datetime.now(UTC)
    ticket = consumer.restart(ORDER)
    assert ticket.consumer == "edge"
    assert before <= ticket.restarted_at < before + timedelta(seconds=0.2)
    consumer.check(ticket)


def test_arguments_are_no_shell_line(tmp_path: Path) -> None:
    """What a shell would read as a command is an argument."""
    command("touch", "a; touch b", cwd=str(tmp_path)).restart(ORDER)
    assert [path.name for path in tmp_path.iterdir()] == ["a; touch b"]


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program sees PATH, HOME, LANG, TZ and what is configured, nothing else of the daemon's."""
    for name, value in {"ROTATOR__VAULT__URL": "x", "VAULT_TOKEN": "hush", "HOME": "/home/me", "TZ": "UTC"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LANG", raising=False)
    script = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    command(sys.executable, "-c", script, str(tmp_path / "out"), env={"UNIT": "ingest", "TZ": "Asia/Tokyo"}).restart(
        ORDER
    )
    seen = json.loads((tmp_path / "out").read_text())
    seen.pop("LC_CTYPE", None)  # Python sets it for itself where no locale is set
    assert ("building-a", "1") == (seen.pop("ROTATOR_KEY"), seen.pop("ROTATOR_VERSION"))
    assert {"PATH": os.environ["PATH"], "HOME": "/home/me", "TZ": "Asia/Tokyo", "UNIT": "ingest"} == seen


def test_no_input_and_a_session_of_its_own() -> None:
    """Standard input is at its end, and the program leads a session."""
    shell("! read line && test $(ps -o sid= -p $$) = $$").restart(ORDER)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo first; echo no such container >&2; exit 3", "edge: exit 3: no such container"),
        ("exit 1", "edge: exit 1"),
        ("kill -9 $$", "edge: killed by SIGKILL"),
        ("printf 'bad \\033[31m'; exit 2", "edge: exit 2: bad [31m"),
        ("echo '+ mosquitto_sub -u dev -P hunter2'; exit 1", "edge: exit 1: + mosquitto_sub -u dev -P ***"),
    ],
)
def test_failed(script: str, said: str) -> None:
    """Another exit is worth another try, and the last line of output is in the message."""
    with pytest.raises(Transient) as failed:
        shell(script).restart(ORDER)
    assert (said, Reason.CONSUMER_RESTART_FAILED) == (failed.value.message, failed.value.reason)


def test_what_it_prints_is_logged_with_stars() -> None:
    """A script that shows its commands (`set -x`) shows no secret."""
    with capture_logs() as logs:
        shell("echo start; echo login --token hunter2; echo end").restart(ORDER)
    assert ["start\nlogin --token ***\nend"] == [entry["output"] for entry in logs if "output" in entry]


def test_much_output() -> None:
    """Megabytes of output neither block the program nor fill the memory; the end is what is kept."""
    with pytest.raises(Transient) as failed:
        shell(f"yes | head -c {100 * KEPT}; echo; echo the end; exit 4").restart(ORDER)
    assert failed.value.message == "edge: exit 4: the end"


def test_endless_output() -> None:
    """A program that writes without an end is ended in time."""
    began = time.monotonic()
    with pytest.raises(Transient) as failed:
        command("yes", timeout=0.3).restart(ORDER)
    assert failed.value.reason is Reason.CONSUMER_TIMEOUT
    assert time.monotonic() - began < 3


def test_too_long(pids: Path) -> None:
    """A program that takes too long is ended with all of its children, even those that ignore TERM."""
    script = f"trap '' TERM; sleep 60 & echo $$ $! >{pids}; echo waiting; wait; sleep 60"
    began = time.monotonic()
    with pytest.raises(Transient) as failed:
        shell(script, timeout=0.3).restart(ORDER)
    assert (failed.value.message, failed.value.reason) == (
        "edge: still running after 0.3 s, ended: waiting",
        Reason.CONSUMER_TIMEOUT,
    )
    assert time.monotonic() - began < 4
    for pid in map(int, pids.read_text().split()):
        until(lambda pid=pid: gone(pid), f"process {pid} is ended")  # type: ignore[misc]


def test_left_in_the_background(pids: Path) -> None:
    """What a program leaves running when it ends is left alone, and not waited for, though it holds the output."""
    began = time.monotonic()
    shell(f"sleep 60 & echo $! >{pids}").restart(ORDER)
    assert time.monotonic() - began < 2
    assert not gone(int(pids.read_text()))


def test_closed_output() -> None:
    """A program that closes its output is still waited for."""
    with pytest.raises(Transient, match="exit 7"):
        shell("exec >&- 2>&-; sleep 0.2; exit 7").restart(ORDER)


@pytest.mark.parametrize("argv", [["no-such-program-anywhere"], ["/no/such/program"], ["./no-such-program"]])
def test_missing(argv: list[str], tmp_path: Path) -> None:
    """A program that isn't there is found before, and at, the restart."""
    consumer = command(*argv, cwd=str(tmp_path))
    for verb in (consumer.preflight, partial(consumer.restart, ORDER)):
        with pytest.raises(Permanent) as failed:
            verb()
        assert failed.value.reason is Reason.CONSUMER_MISSING


def test_missing_folder() -> None:
    """So is a folder that isn't there, by its name."""
    consumer = command("true", cwd="/no/such/folder")
    for verb in (consumer.preflight, partial(consumer.restart, ORDER)):
        with pytest.raises(Permanent, match="/no/such/folder") as failed:
            verb()
        assert failed.value.reason is Reason.CONSUMER_MISSING


def test_forbidden(tmp_path: Path) -> None:
    """A file that may not be executed is refused before, and at, the restart."""
    program = tmp_path / "restart"
    program.write_text("#!/bin/sh\n")
    for verb in (command(str(program)).preflight, partial(command(str(program)).restart, ORDER)):
        with pytest.raises(Permanent) as failed:
            verb()
        assert failed.value.reason is Reason.CONSUMER_FORBIDDEN


def test_no_program(tmp_path: Path) -> None:
    """A file that the machine can't run is not tried again."""
    program = tmp_path / "restart"
    program.write_bytes(b"\x00 neither a script nor a binary")
    program.chmod(0o755)
    with pytest.raises(Permanent) as failed:
        command(str(program)).restart(ORDER)
    assert failed.value.reason is Reason.CONSUMER_RESTART_FAILED


def test_preflight_runs_nothing(tmp_path: Path) -> None:
    """A look before changes nothing, for a program on PATH, by its path, or beside the folder."""
    script = tmp_path / "restart"
    script.write_text("#!/bin/sh\ntouch ran\n")
    script.chmod(0o755)
    command("sh", "-c", "touch ran", cwd=str(tmp_path)).preflight()
    command(str(script), cwd=str(tmp_path)).preflight()
    command("./restart", cwd=str(tmp_path)).preflight()
    command("restart", cwd=str(tmp_path), env={"PATH": str(tmp_path)}).preflight()
    assert [path.name for path in tmp_path.iterdir()] == ["restart"]


def test_no_argv() -> None:
    """An empty command is refused where it is made."""
    with pytest.raises(ValueError, match="argv"):
        command()


def test_nothing_left_behind() -> None:
    """No thread, file or child process stays."""
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        shell("echo ok").restart(ORDER)
    assert (threads, files) == (threading.active_count(), len(os.listdir("/proc/self/fd")))
