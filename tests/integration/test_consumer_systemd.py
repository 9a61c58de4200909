"""Consumers that are systemd units, under a real systemd (tests/tools/systemd-sandbox)."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rotator.clock import SystemClock
from rotator.consumers.systemd import SystemdConsumer
from rotator.errors import Transient
from rotator.model import Order, Ticket
from rotator.reasons import Reason

ORDER = Order(key="building-a", version=1)

ROOT = Path(__file__).parents[2]
SANDBOX = ROOT / "tests" / "tools" / "systemd-sandbox"
CASES = [
    *("good", "stopped", "restarted_by_others", "no_binary", "never_ready", "crash_at_start", "crash_later"),
    *(
        "crash_and_restart",
        "crash_between_two_looks",
        "missing",
        "no_suffix",
        "masked",
        "broken_file",
        "refuses",
        "dependency",
        "hangs_in_stop",
    ),
    *("signalled", "dies_of_the_signal", "comes_back_from_the_signal", "signal_without_a_process", "reload_kills"),
    *("job_timeout", "reloads", "cannot_reload", "reload_or_restart", "target", "user", "forbidden"),
    *("hangs_in_reload", "start_limit", "oneshot", "oneshot_fails", "polkit"),
]


@pytest.fixture(scope="module")
def cases() -> Iterator[dict[str, Any]]:
    """What came of every case of systemd_case.py, from one boot of the sandbox."""
    assert os.geteuid() == 0, "these tests need root, to boot a systemd of their own"
    for program in ("/usr/lib/systemd/systemd", "/usr/bin/dbus-daemon"):
        assert Path(program).exists(), f"install the Debian packages systemd and dbus: {program} is missing"
    folder = ROOT / ".sandbox-tests" / f"consumer-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        inside = Path(__file__).with_name("systemd_case.py")
        command = [str(SANDBOX), sys.executable, str(inside), *CASES]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout.splitlines()[-1])  # the lines before it are logs
    finally:
        shutil.rmtree(folder)


def raised(outcome: dict[str, Any]) -> tuple[str, str]:
    """An outcome's error and reason; both empty where all went well."""
    return outcome["error"], outcome["reason"]


WELL = ("", "")
MISSING = ("Permanent", Reason.CONSUMER_MISSING.value)
UNABLE = ("Permanent", Reason.CONSUMER_RESTART_FAILED.value)
FAILED = ("Transient", Reason.CONSUMER_RESTART_FAILED.value)
TIMEOUT = ("Transient", Reason.CONSUMER_TIMEOUT.value)
CRASHED = ("Transient", Reason.CONSUMER_CRASHED.value)
FORBIDDEN = ("Permanent", Reason.CONSUMER_FORBIDDEN.value)


def test_restarted(cases: dict[str, Any]) -> None:
    """A unit is restarted: a new process, its marks in the ticket, and it stayed up."""
    case = cases["good"]
    assert [raised(case[verb]) for verb in ("preflight", "restart", "check")] == [WELL] * 3
    marks = case["restart"]["marks"]
    assert marks["main_pid"] != int(case["before"])
    assert marks["n_restarts"] == 0
    assert len(marks["invocation_id"]) == 32
    assert case["marks"]["main_pid"] == int(case["pid"])
    assert 0 <= case["restart"]["restarted_at"] - case["called"] < 5


def test_stopped_unit_is_started(cases: dict[str, Any]) -> None:
    """A unit that was not running runs after it."""
    assert raised(cases["stopped"]["restart"]) == WELL


def test_our_own_tries_use_up_no_start_limit(cases: dict[str, Any]) -> None:
    """A unit that may be started twice a minute is restarted four times: systemd would leave it stopped."""
    assert [raised(outcome) for outcome in cases["start_limit"].values()] == [WELL] * 4


def test_oneshot(cases: dict[str, Any]) -> None:
    """A unit that does its work and ends is restarted, and no crash later, when its timer has begun it anew."""
    case = cases["oneshot"]
    assert [raised(case[verb]) for verb in ("preflight", "restart", "check", "later")] == [WELL] * 4
    assert case["ran"]


def test_oneshot_that_did_not_do_its_work(cases: dict[str, Any]) -> None:
    """Its job says so."""
    assert raised(cases["oneshot_fails"]["restart"]) == FAILED


def test_restarted_by_somebody_else(cases: dict[str, Any]) -> None:
    """A process that is not the one of the ticket is told."""
    assert raised(cases["restarted_by_others"]) == CRASHED
    assert "another process" in cases["restarted_by_others"]["message"]


@pytest.mark.parametrize("name", ["no_binary", "never_ready"])
def test_fails_to_start(cases: dict[str, Any], name: str) -> None:
    """A unit whose start systemd itself finds failed fails the restart with the job's result."""
    assert raised(cases[name]["preflight"]) == WELL
    assert raised(cases[name]["restart"]) == FAILED
    assert "`failed`" in cases[name]["restart"]["message"]


def test_crash_at_start(cases: dict[str, Any]) -> None:
    """A Type=simple unit that dies at once is told by the restart or by the first looks after it."""
    assert raised(cases["crash_at_start"]) == CRASHED


def test_crash_later(cases: dict[str, Any]) -> None:
    """A unit that dies three seconds after it was seen to be well is found dead."""
    case = cases["crash_later"]
    assert (case["verb"], case["first"]) == ("check", "")
    assert raised(case) == CRASHED
    # systemd reaps the process a moment before it calls the unit failed
    assert any(words in case["message"] for words in ("failed (failed, exit-code)", "its main process has ended"))
    assert case["seconds"] > 2.9


def test_crash_and_restart(cases: dict[str, Any]) -> None:
    """A unit that systemd keeps starting is found out, whichever moment of it is looked at."""
    case = cases["crash_and_restart"]
    assert (case["verb"], case["first"]) == ("check", "")
    assert raised(case) == CRASHED


def test_crash_between_two_looks(cases: dict[str, Any]) -> None:
    """A unit that died and is up again is active each time that it is looked at; its counter tells."""
    case = cases["crash_between_two_looks"]
    assert (case["first"], case["active"], case["restarts"]) == ("", "active", "1")
    assert raised(case) == CRASHED
    assert "NRestarts is 1" in case["message"]


@pytest.mark.parametrize("name", ["missing", "no_suffix", "masked"])
def test_missing(cases: dict[str, Any], name: str) -> None:
    """A unit that isn't there, has no proper name, or is masked is found before, and at, the restart."""
    assert [raised(cases[name][verb]) for verb in ("preflight", "restart")] == [MISSING, MISSING]


@pytest.mark.parametrize("name", ["broken_file", "refuses", "cannot_reload"])
def test_unable(cases: dict[str, Any], name: str) -> None:
    """A unit that can't be loaded, or does not allow what is asked, is found before, and at, the restart."""
    assert [raised(cases[name][verb]) for verb in ("preflight", "restart")] == [UNABLE, UNABLE]


def test_dependency(cases: dict[str, Any]) -> None:
    """A unit whose requirement fails is told so."""
    assert raised(cases["dependency"]["restart"]) == FAILED
    assert "`dependency`" in cases["dependency"]["restart"]["message"]


def test_hangs_in_stop(cases: dict[str, Any]) -> None:
    """A unit that does not stop costs no more than the timeout."""
    restart = cases["hangs_in_stop"]["restart"]
    assert raised(restart) == TIMEOUT
    assert 0.9 < restart["seconds"] < 10  # its stop may take 60


def test_job_timeout(cases: dict[str, Any]) -> None:
    """A job that systemd itself gives up is a timeout."""
    assert raised(cases["job_timeout"]["restart"]) == TIMEOUT


def test_reload(cases: dict[str, Any]) -> None:
    """A reload leaves the process as it is."""
    case = cases["reloads"]
    assert [raised(case[verb]) for verb in ("preflight", "restart", "check")] == [WELL] * 3
    assert case["restart"]["marks"]["main_pid"] == int(case["pid"])


def test_hangs_in_reload(cases: dict[str, Any]) -> None:
    """A reload that does not end costs no more than the timeout, and no process."""
    case = cases["hangs_in_reload"]
    assert raised(case["restart"]) == TIMEOUT
    assert 0.9 < case["restart"]["seconds"] < 5
    assert case["alive"]


def test_signal(cases: dict[str, Any]) -> None:
    """A signal reaches the main process, which stays as it is."""
    case = cases["signalled"]
    assert [raised(case[verb]) for verb in ("preflight", "restart", "check")] == [WELL] * 3
    assert case["restart"]["marks"]["main_pid"] == int(case["pid"])


@pytest.mark.parametrize("name", ["dies_of_the_signal", "comes_back_from_the_signal", "reload_kills"])
def test_does_not_survive_a_reload_or_a_signal(cases: dict[str, Any], name: str) -> None:
    """A process that a reload or a signal ends has crashed, whether systemd starts another one or not."""
    assert raised(cases[name]) == CRASHED


def test_signal_without_a_process(cases: dict[str, Any]) -> None:
    """A unit that does not run can't be signalled."""
    assert raised(cases["signal_without_a_process"]["restart"]) == FAILED


def test_reload_or_restart(cases: dict[str, Any]) -> None:
    """A unit that can't reload is restarted where either is well."""
    assert raised(cases["reload_or_restart"]["restart"]) == WELL


def test_a_unit_without_a_process(cases: dict[str, Any]) -> None:
    """A target has no process: its invocation is all that marks it."""
    assert cases["target"]["marks"] == ["invocation_id"]
    assert raised(cases["target"]["check"]) == WELL


def test_user_scope(cases: dict[str, Any]) -> None:
    """The user's own manager is another one than the system's."""
    case = cases["user"]
    assert [raised(case[verb]) for verb in ("preflight", "restart", "system")] == [WELL, WELL, MISSING]


def test_forbidden(cases: dict[str, Any]) -> None:
    """A user whom polkit does not let restart units may look, and is refused."""
    assert [raised(cases["forbidden"][verb]) for verb in ("preflight", "restart")] == [WELL, FORBIDDEN]


@pytest.mark.parametrize("verb", ["restart", "reload", "reload-or-restart", "kill"])
def test_polkit(cases: dict[str, Any], verb: str) -> None:
    """With deploy's rule, the daemon's user may do to its units what a consumer asks for, and nothing to another's."""
    case = cases["polkit"]
    assert raised(case[f"{verb} ingest.service"]) == WELL
    assert raised(case[f"{verb} other.service"]) == FORBIDDEN


def test_polkit_allows_tries_to_be_forgotten(cases: dict[str, Any]) -> None:
    """With deploy's rule a restart of its own units uses up none of their StartLimitBurst."""
    case = cases["polkit"]
    assert case["reset-failed ingest.service"] == 0
    assert case["reset-failed other.service"] != 0


def test_polkit_allows_no_stop(cases: dict[str, Any]) -> None:
    """What no consumer asks for is refused, for its own units as well."""
    case = cases["polkit"]
    assert case["stop"] != 0
    assert "uthentication" in case["words"] or "denied" in case["words"].lower()
    assert case["active"] == "active"


def consumer(scope: str = "system") -> SystemdConsumer:
    """A consumer on this machine, where no systemd is asked."""
    return SystemdConsumer(
        "ingest", unit="ingest.service", scope=scope, timeout=timedelta(seconds=2), clock=SystemClock()
    )


@pytest.mark.parametrize("address", ["unix:path=/no/such/socket", "tcp:host=127.0.0.1,port=1", "nonsense"])
def test_no_bus(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Without a D-Bus every verb says so, and is worth another try."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    ticket = Ticket(consumer="ingest", restarted_at=SystemClock().now())
    for subject in (consumer(), consumer("user")):
        for verb in (subject.preflight, partial(subject.restart, ORDER), partial(subject.check, ticket)):
            with pytest.raises(Transient, match="no D-Bus of the") as failed:
                verb()
            assert failed.value.reason is Reason.CONSUMER_RESTART_FAILED


@pytest.mark.parametrize("answers", [[], [b"OK 0123456789abcdef0123456789abcdef\r\n"]], ids=["deaf", "no greeting"])
def test_silent_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: list[bytes]) -> None:
    """A bus that takes the connection and says nothing holds nobody up for long."""
    monkeypatch.setattr("rotator.consumers.systemd.LOOK", 0.3)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            for answer in answers:
                connection.recv(1024)
                connection.sendall(answer)
            over.wait(20)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/bus")
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        began = time.monotonic()
        with pytest.raises(Transient) as failed:
            consumer().restart(ORDER)
        took = time.monotonic() - began
        over.set()
        thread.join(10)
    assert failed.value.reason is Reason.CONSUMER_RESTART_FAILED
    assert took < 2


def test_unknown_settings() -> None:
    """A scope or an action that does not exist is refused where the consumer is made."""
    with pytest.raises(ValueError, match="no such"):
        consumer("galaxy")
