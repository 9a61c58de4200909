"""Runs inside the systemd sandbox: drives SystemdConsumer and prints what came of each case as JSON.

Usage: systemd_case.py CASE... ; a case is a function below.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from rotator.clock import SystemClock
from rotator.consumers.systemd import SystemdConsumer
from rotator.errors import RotatorError
from rotator.model import Order, Ticket

ORDER = Order(key="building-a", version=1)

UNITS = Path("/etc/systemd/system")
NOBODY = 65534
SLEEP = "ExecStart=/bin/sleep 1000"
STUBBORN = "ExecStart=/bin/sh -c 'trap \"\" TERM; touch /run/stubborn; while :; do sleep 1; done'\nTimeoutStopSec=60"

Outcome = dict[str, object]


def consumer(
    unit: str, timeout: float = 10, scope: str = "system", action: str = "restart", signal: str | None = None
) -> SystemdConsumer:
    """A consumer of this unit."""
    limit, clock = timedelta(seconds=timeout), SystemClock()
    return SystemdConsumer("ingest", unit=unit, scope=scope, action=action, signal=signal, timeout=limit, clock=clock)


def systemctl(*arguments: str) -> str:
    """Run systemctl, and return what it prints."""
    command = ["/usr/bin/systemctl", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def unit(name: str, service: str, head: str = "", folder: Path = UNITS) -> str:
    """Write a unit file and have systemd read it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"[Unit]\nDescription=test\n{head}\n[Service]\n{service}\n")
    systemctl("daemon-reload")
    return name


def show(name: str, field: str) -> str:
    """One property, as systemctl tells it."""
    return systemctl("show", "-P", field, name)


def outcome(call: Callable[[], object]) -> Outcome:
    """What a call returned or raised, and how long it took."""
    began = time.monotonic()
    found: Outcome = {"error": "", "reason": "", "message": ""}
    try:
        value = call()
        if isinstance(value, Ticket):
            found["marks"], found["restarted_at"] = dict(value.marks), value.restarted_at.timestamp()
    except RotatorError as exc:
        found |= {"error": type(exc).__name__, "reason": exc.reason.value, "message": exc.message}
    return found | {"seconds": time.monotonic() - began}


def every(subject: SystemdConsumer) -> Outcome:
    """Preflight and restart."""
    return {"preflight": outcome(subject.preflight), "restart": outcome(lambda: subject.restart(ORDER))}


def crashing(subject: SystemdConsumer) -> Outcome:
    """Restart, then look until something is wrong: the first error, by which verb, and what was well before."""
    try:
        ticket = subject.restart(ORDER)
    except RotatorError as exc:
        return {"verb": "restart", "error": type(exc).__name__, "reason": exc.reason.value, "message": exc.message}
    first = outcome(lambda: subject.check(ticket))
    found, deadline = first, time.monotonic() + 10
    while not found["error"] and time.monotonic() < deadline:
        time.sleep(0.02)
        found = outcome(lambda: subject.check(ticket))
    return found | {"verb": "check", "first": first["error"]}


def good() -> Outcome:
    name = unit("good.service", SLEEP)
    systemctl("start", name)
    before, called = show(name, "MainPID"), time.time()
    subject = consumer(name)
    found = every(subject)
    ticket = subject.restart(ORDER)
    return found | {
        "before": before,
        "called": called,
        "check": outcome(lambda: subject.check(ticket)),
        "pid": show(name, "MainPID"),
        "marks": dict(ticket.marks),
    }


def stopped() -> Outcome:
    return every(consumer(unit("stopped.service", SLEEP)))


def restarted_by_others() -> Outcome:
    name = unit("others.service", SLEEP)
    subject = consumer(name)
    ticket = subject.restart(ORDER)
    systemctl("restart", name)
    return outcome(lambda: subject.check(ticket))


def no_binary() -> Outcome:
    return every(consumer(unit("nobinary.service", "Type=exec\nExecStart=/no/such/program")))


def never_ready() -> Outcome:
    return every(consumer(unit("neverready.service", "Type=notify\nExecStart=/bin/false")))


def crash_at_start() -> Outcome:
    return crashing(consumer(unit("crash0.service", "ExecStart=/bin/false")))


def crash_later() -> Outcome:
    return crashing(consumer(unit("crash1.service", "ExecStart=/bin/sh -c 'sleep 1; exit 3'")))


def crash_and_restart() -> Outcome:
    service = "ExecStart=/bin/sh -c 'sleep 0.5; exit 3'\nRestart=always\nRestartSec=0"
    return crashing(consumer(unit("loop.service", service, "StartLimitIntervalSec=0")))


def missing() -> Outcome:
    return every(consumer("no-such.service"))


def no_suffix() -> Outcome:
    return every(consumer("no-suffix"))


def masked() -> Outcome:
    (UNITS / "masked.service").symlink_to("/dev/null")
    systemctl("daemon-reload")
    return every(consumer("masked.service"))


def broken_file() -> Outcome:
    return every(consumer(unit("broken.service", "Type=simple")))


def refuses() -> Outcome:
    return every(consumer(unit("refuses.service", SLEEP, "RefuseManualStart=yes")))


def dependency() -> Outcome:
    unit("need.service", "Type=oneshot\nExecStart=/bin/false")
    return every(consumer(unit("needs.service", SLEEP, "Requires=need.service\nAfter=need.service")))


def hangs_in_stop() -> Outcome:
    name = unit("stubborn.service", STUBBORN)
    systemctl("start", name)
    deadline = time.monotonic() + 10
    while not Path("/run/stubborn").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    found = every(consumer(name, timeout=1))
    systemctl("kill", "-s", "KILL", name)
    return found


def job_timeout() -> Outcome:
    service = "Type=notify\nExecStart=/bin/sleep 1000\nTimeoutStartSec=60"
    return every(consumer(unit("slow.service", service, "JobRunningTimeoutSec=1")))


def reloads() -> Outcome:
    name = unit("reloads.service", f"{SLEEP}\nExecReload=/bin/true")
    systemctl("start", name)
    subject = consumer(name, action="reload")
    found = every(subject)
    ticket = subject.restart(ORDER)
    return found | {"check": outcome(lambda: subject.check(ticket)), "pid": show(name, "MainPID")}


def signalled() -> Outcome:
    trap = "ExecStart=/bin/sh -c 'trap \"touch /run/hup\" HUP; touch /run/trapped; while :; do sleep 0.05; done'"
    name = unit("signalled.service", trap)
    systemctl("start", name)
    _wait(Path("/run/trapped"))
    subject = consumer(name, action="kill", signal="SIGHUP")
    found = every(subject)
    ticket = subject.restart(ORDER)
    _wait(Path("/run/hup"))
    return found | {"check": outcome(lambda: subject.check(ticket)), "pid": show(name, "MainPID")}


def dies_of_the_signal() -> Outcome:
    name = unit("mortal.service", SLEEP)
    systemctl("start", name)
    return crashing(consumer(name, action="kill", signal="SIGHUP"))


def comes_back_from_the_signal() -> Outcome:
    name = unit("lazarus.service", f"{SLEEP}\nRestart=always\nRestartSec=0")
    systemctl("start", name)
    return crashing(consumer(name, action="kill", signal="SIGHUP"))


def signal_without_a_process() -> Outcome:
    return every(consumer(unit("nobody.service", SLEEP), action="kill", signal="SIGHUP"))


def reload_kills() -> Outcome:
    # a moment later, or the job itself might fail by it
    kills = "ExecReload=/bin/sh -c '(sleep 0.3; kill -KILL $MAINPID) &'"
    name = unit("fragile.service", f"{SLEEP}\n{kills}\nRestart=always\nRestartSec=0")
    systemctl("start", name)
    return crashing(consumer(name, action="reload"))


def _wait(path: Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def cannot_reload() -> Outcome:
    systemctl("start", unit("noreload.service", SLEEP))
    return every(consumer("noreload.service", action="reload"))


def reload_or_restart() -> Outcome:
    return every(consumer(unit("either.service", SLEEP), action="reload-or-restart"))


def target() -> Outcome:
    (UNITS / "group.target").write_text("[Unit]\nDescription=test\n")
    systemctl("daemon-reload")
    subject = consumer("group.target")
    ticket = subject.restart(ORDER)
    return {"marks": sorted(ticket.marks), "check": outcome(lambda: subject.check(ticket))}


def user() -> Outcome:
    unit("mine.service", SLEEP, folder=Path("/etc/systemd/user"))
    systemctl("start", "user@0.service")
    os.environ.pop("DBUS_SESSION_BUS_ADDRESS", None)
    return every(consumer("mine.service", scope="user")) | {"system": outcome(consumer("mine.service").preflight)}


def forbidden() -> Outcome:
    subject = consumer(unit("guarded.service", SLEEP))
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        return every(subject)
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


def main() -> None:
    """Run the named cases."""
    print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}))  # noqa: T201 - this is its answer


if __name__ == "__main__":
    main()
