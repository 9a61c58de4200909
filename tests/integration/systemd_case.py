"""Runs inside the systemd sandbox: drives SystemdConsumer and prints what came of each case as JSON.

Usage: systemd_case.py CASE... ; a case is a function below.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
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


def crashing(subject: SystemdConsumer, then: Callable[[], object] = lambda: None) -> Outcome:
    """Restart, look once, do `then`, and look until something is wrong: the first error, by which verb, and when.

    `first` is what the one look found, `seconds` how long after `then` the error came.
    """
    try:
        ticket = subject.restart(ORDER)
    except RotatorError as exc:
        return {"verb": "restart", "error": type(exc).__name__, "reason": exc.reason.value, "message": exc.message}
    first = outcome(lambda: subject.check(ticket))
    then()
    found, began = first, time.monotonic()
    while not found["error"] and time.monotonic() < began + 20:
        time.sleep(0.02)
        found = outcome(lambda: subject.check(ticket))
    return found | {"verb": "check", "first": first["error"], "seconds": time.monotonic() - began}


def until_told(name: str, after: str) -> tuple[str, Callable[[], None]]:
    """A command that does well until it is told, so that no load is mistaken for a crash; and what tells it."""
    word = Path("/run") / name
    return f"ExecStart=/bin/sh -c 'until test -e {word}; do sleep 0.02; done; {after}'", word.touch


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


def start_limit() -> Outcome:
    """More tries than the unit's StartLimitBurst allows."""
    name = unit("limited.service", SLEEP, "StartLimitIntervalSec=60\nStartLimitBurst=2")
    systemctl("start", name)
    subject = consumer(name)
    return {str(number): outcome(lambda: subject.restart(ORDER)) for number in range(4)}


def oneshot() -> Outcome:
    """One that does its work and ends; afterwards as a timer would, once more."""
    name = unit("oneshot.service", "Type=oneshot\nExecStart=/bin/touch /run/oneshot")
    subject = consumer(name)
    found = every(subject)
    ticket = subject.restart(ORDER)
    found["check"] = outcome(lambda: subject.check(ticket))
    systemctl("start", name)
    return found | {"later": outcome(lambda: subject.check(ticket)), "ran": Path("/run/oneshot").exists()}


def oneshot_fails() -> Outcome:
    return every(consumer(unit("oneshot1.service", "Type=oneshot\nExecStart=/bin/false")))


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
    service, tell = until_told("crash3", "sleep 3; exit 3")
    return crashing(consumer(unit("crash3.service", service)), tell)


def crash_and_restart() -> Outcome:
    service, tell = until_told("loop", "exit 3")
    name = unit("loop.service", f"{service}\nRestart=always\nRestartSec=0", "StartLimitIntervalSec=0")
    return crashing(consumer(name), tell)


def crash_between_two_looks() -> Outcome:
    """Dead and back before anybody looked again: active both times, by another process."""
    name = unit("back.service", f"{SLEEP}\nRestart=always\nRestartSec=0")

    def die() -> None:
        pid = show(name, "MainPID")
        systemctl("kill", "-s", "KILL", name)
        deadline = time.monotonic() + 10
        while (show(name, "MainPID") in ("0", pid) or show(name, "ActiveState") != "active") and (
            time.monotonic() < deadline
        ):
            time.sleep(0.01)

    return crashing(consumer(name), die) | {"restarts": show(name, "NRestarts"), "active": show(name, "ActiveState")}


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


def hangs_in_reload() -> Outcome:
    name = unit("reloadhang.service", f"{SLEEP}\nExecReload=/bin/sleep 60")
    systemctl("start", name)
    before = show(name, "MainPID")
    found = every(consumer(name, action="reload", timeout=1))
    return found | {"alive": before == show(name, "MainPID")}


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
    with user_of(NOBODY):
        return every(subject)


@contextmanager
def user_of(number: int) -> Iterator[None]:
    """Be this user and group, without any others."""
    os.setgroups([])
    os.setresgid(number, number, 0)
    os.setresuid(number, number, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


def polkit() -> Outcome:
    """deploy/systemd/50-rotator.rules as it stands, with the user that deploy/systemd/rotator.sysusers.conf makes."""
    deploy = Path(__file__).parents[2] / "deploy" / "systemd"
    rules = Path("/etc/polkit-1/rules.d")
    rules.mkdir(parents=True, exist_ok=True)
    shutil.copy(deploy / "50-rotator.rules", rules)
    (rules / "50-rotator.rules").chmod(0o644)
    subprocess.run(["/usr/bin/systemd-sysusers", deploy / "rotator.sysusers.conf"], check=True)
    systemctl("restart", "polkit.service")
    trap = "ExecStart=/bin/sh -c 'trap : HUP; touch /run/%n; while :; do sleep 0.05; done'\nExecReload=/bin/true"
    for name in ("ingest.service", "other.service"):
        systemctl("start", unit(name, trap))
        _wait(Path("/run") / name)
    verbs = {"kill": "SIGHUP", "reload": None, "reload-or-restart": None, "restart": None}
    with user_of(pwd.getpwnam("rotator").pw_uid):
        found: Outcome = {
            f"{verb} {name}": outcome(partial(consumer(name, action=verb, signal=signal).restart, ORDER))
            for name in ("ingest.service", "other.service")
            for verb, signal in verbs.items()
        }
        asked = ["/usr/bin/systemctl", "--no-ask-password", "stop", "ingest.service"]
        stopped = subprocess.run(asked, capture_output=True, text=True, check=False)
        for name in ("ingest.service", "other.service"):
            resets = ["/usr/bin/systemctl", "--no-ask-password", "reset-failed", name]
            found[f"reset-failed {name}"] = subprocess.run(resets, capture_output=True, check=False).returncode
    return found | {
        "stop": stopped.returncode,
        "words": stopped.stderr,
        "active": show("ingest.service", "ActiveState"),
    }


def main() -> None:
    """Run the named cases."""
    print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}))  # noqa: T201 - this is its answer


if __name__ == "__main__":
    main()
