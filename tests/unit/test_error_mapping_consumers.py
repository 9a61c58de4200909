"""The mapping is complete (5): what D-Bus and processes raise under the consumers.

See test_error_mapping.py. A restart may be made again, so nothing here is an unknown outcome.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, Final

import jeepney.auth
import jeepney.bus
import jeepney.io.blocking
import jeepney.io.common
import jeepney.low_level
import jeepney.wrappers
import pytest
from jeepney import HeaderFields, new_error, new_method_return

from library_exceptions import Meaning, below, classes, made, os_errors, outcome, raised_by_name, value_errors
from rotator.clock import SystemClock
from rotator.consumers import systemd
from rotator.consumers.command import CommandConsumer
from rotator.consumers.systemd import SystemdConsumer
from rotator.errors import Permanent, Transient
from rotator.model import Order, Ticket
from rotator.reasons import Reason

ORDER = Order(key="building-a", version=1)

FAILED = (Transient, Reason.CONSUMER_RESTART_FAILED)
NEVER_WORKS = (Permanent, Reason.CONSUMER_RESTART_FAILED)
MISSING = (Permanent, Reason.CONSUMER_MISSING)
FORBIDDEN = (Permanent, Reason.CONSUMER_FORBIDDEN)
TOO_LONG = (Transient, Reason.CONSUMER_TIMEOUT)

# --- D-Bus ----------------------------------------------------------------------------------------------------------

JEEPNEY = {
    "jeepney.auth.AuthenticationError",
    "jeepney.auth.FDNegotiationError",
    "jeepney.fds.NoFDError",
    "jeepney.low_level.SizeLimitError",
}
JEEPNEY_NEVER = {
    "jeepney.io.common.RouterClosed": "of the routers for threads and event loops; ours is one connection, one thread",
    "jeepney.io.threading.ReceiveStopped": "the same",
    "jeepney.wrappers.DBusErrorResponse": "below, by the names that it carries",
}
BY_NAME: dict[str, type[Exception]] = {
    each.__name__: each
    for each in (AttributeError, ConnectionResetError, KeyError, RuntimeError, TimeoutError, TypeError, ValueError)
}
BY_NAME_NEVER = {
    "AuthenticationError": "above",
    "DBusErrorResponse": "above",
    "FDNegotiationError": "above",
    "NotImplementedError": "of a base class that nobody uses by itself",
    "SizeLimitError": "above",
}
# What goes wrong inside jeepney, or where its answers are read, without a `raise`.
UNNAMED: dict[str, type[Exception]] = {
    "IndexError": IndexError,
    "OverflowError": OverflowError,
    "RecursionError": RecursionError,
    "struct.error": struct.error,
}
DBUS: dict[str, type[Exception]] = {
    **{name: each for name, each in classes("jeepney").items() if name not in JEEPNEY_NEVER},
    **BY_NAME,
    **UNNAMED,
    **os_errors(),
    **value_errors(),
}
UNIT: Final = {
    "LoadState": ("s", "loaded"),
    "LoadError": ("(ss)", ("", "")),
    "CanStart": ("b", True),
    "CanReload": ("b", True),
    "ActiveState": ("s", "active"),
    "SubState": ("s", "running"),
    "InvocationID": ("ay", b"\x01"),
}
SERVICE: Final = {"MainPID": ("u", 17), "NRestarts": ("u", 0), "ExecMainStartTimestamp": ("t", 1), "Result": ("s", "")}
JOB: Final = "/org/freedesktop/systemd1/job/1"


class Bus:
    """systemd as far as a restart asks it; one member may raise, or answer something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.raises: dict[str, Exception] = {}
        self.answers: dict[str, tuple[object, ...]] = {
            "Hello": (":1.1",),
            "LoadUnit": ("/org/freedesktop/systemd1/unit/a",),
            "RestartUnit": (JOB,),
            "Unit": (UNIT,),
            "Service": (SERVICE,),
            "JobRemoved": (1, JOB, "a.service", "done"),
        }
        self.refusals: dict[str, str] = {}
        mine, theirs = socket.socketpair()
        self.sockets = [mine, theirs]
        monkeypatch.setattr(systemd, "get_bus", lambda _address: self.asked("get_bus", "/nowhere"))
        monkeypatch.setattr(systemd, "prep_socket", lambda _address, timeout: self.asked("prep_socket", mine.dup()))
        blocking = jeepney.io.blocking.DBusConnection
        monkeypatch.setattr(blocking, "send_and_get_reply", lambda _self, message, timeout=None: self.reply(message))
        monkeypatch.setattr(blocking, "recv_until_filtered", lambda _self, _queue, timeout: self.removed())

    def asked(self, member: str, answer: Any) -> Any:
        """The answer, unless this is what raises."""
        if member in self.raises:
            if isinstance(answer, socket.socket):
                answer.close()
            raise self.raises[member]
        return answer

    def reply(self, message: Any) -> Any:
        member = message.header.fields[HeaderFields.member]
        if member == "GetAll":
            member = message.body[0].rpartition(".")[2]
        self.asked(member, None)
        if member == "RestartUnit" and self.answers["Service"] == (SERVICE,):
            self.answers["Service"] = ({**SERVICE, "MainPID": ("u", 18)},)
        if member in self.refusals:
            return new_error(message, self.refusals[member], "s", ("in systemd's words",))
        return new_method_return(message, "", self.answers.get(member, ()))

    def removed(self) -> Any:
        self.asked("JobRemoved", None)
        return new_method_return(jeepney.new_method_call(systemd.MANAGER, "X"), "", self.answers["JobRemoved"])

    def close(self) -> None:
        for each in self.sockets:
            each.close()


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    bus = Bus(monkeypatch)
    yield bus
    bus.close()


def unit() -> SystemdConsumer:
    """The consumer under test."""
    return SystemdConsumer("ingest", unit="a.service", timeout=timedelta(seconds=0.3), clock=SystemClock())


MEMBERS = ("get_bus", "prep_socket", "Hello", "LoadUnit", "Unit", "Service", "AddMatch", "RestartUnit", "JobRemoved")
IN_A_LOOK = ("get_bus", "prep_socket", "Hello", "LoadUnit", "Unit", "Service")


def test_every_exception_of_jeepney_is_decided_upon() -> None:
    """Its own classes, and what its `raise` statements name: none is missing above, and none of those is gone."""
    assert set(classes("jeepney")) == JEEPNEY | set(JEEPNEY_NEVER)
    modules = (jeepney.auth, jeepney.bus, jeepney.io.blocking, jeepney.io.common, jeepney.low_level, jeepney.wrappers)
    assert set().union(*map(raised_by_name, modules)) == set(BY_NAME) - {"KeyError"} | set(BY_NAME_NEVER)


def test_a_unit_that_restarts_is_no_error(bus: Bus) -> None:
    """The bus that breaks in the tests below works where nothing breaks it."""
    ticket = unit().restart(ORDER)
    assert {"invocation_id": "01", "main_pid": 18, "n_restarts": 0} == dict(ticket.marks)
    unit().check(ticket)
    unit().preflight()


@pytest.mark.parametrize("name", sorted(DBUS))
@pytest.mark.parametrize("member", MEMBERS)
def test_an_exception_of_dbus(member: str, name: str, bus: Bus) -> None:
    """Whatever it is, the restart is worth another try; but silence while a job runs is a job that is not done."""
    raised = bus.raises[member] = made(DBUS[name], "boom")
    silent = member == "JobRemoved" and isinstance(raised, TimeoutError)
    assert (TOO_LONG if silent else FAILED) == outcome(partial(unit().restart, ORDER), raised=raised, secrets=False)
    if member in IN_A_LOOK:
        assert FAILED == outcome(unit().preflight, raised=raised, secrets=False)
        ticket = Ticket(consumer="ingest", restarted_at=SystemClock().now())
        assert FAILED == outcome(unit().check, ticket, raised=raised, secrets=False)


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        *((name, FORBIDDEN) for name in systemd._FORBIDDEN),
        *((name, MISSING) for name in systemd._MISSING),
        *((name, NEVER_WORKS) for name in systemd._NEVER),
        ("org.freedesktop.DBus.Error.NoReply", FAILED),
        ("org.freedesktop.DBus.Error.ServiceUnknown", FAILED),
        ("a.name.that.nobody.knows", FAILED),
    ],
)
def test_a_refusal_over_dbus(refusal: str, expected: Meaning, bus: Bus) -> None:
    """By its name, whoever is asked."""
    for member in ("Hello", "LoadUnit", "Unit", "RestartUnit"):
        bus.refusals = {member: refusal}
        assert expected == outcome(lambda: unit().restart(ORDER)), member


@pytest.mark.parametrize(
    ("member", "answer"),
    [
        ("Hello", ()),
        ("LoadUnit", ()),
        ("LoadUnit", ("a", "b")),
        ("LoadUnit", (17,)),
        ("Unit", ()),
        ("Unit", ({},)),
        ("Unit", ({"LoadState": "loaded"},)),
        ("Unit", ([],)),
        ("Unit", ({**UNIT, "LoadState": ("s", "error"), "LoadError": ("s", None)},)),
        ("Unit", ({**UNIT, "InvocationID": ("s", "text")},)),
        ("Service", ({**SERVICE, "ExecMainStartTimestamp": ("t", 2**64 - 1)},)),
        ("Service", ({**SERVICE, "MainPID": ("s", "x")},)),
        ("RestartUnit", ()),
        ("JobRemoved", ()),
        ("JobRemoved", (1, JOB)),
    ],
)
def test_an_answer_over_dbus_that_is_none(member: str, answer: tuple[object, ...], bus: Bus) -> None:
    """Another systemd, or something that only poses as one."""
    bus.answers[member] = answer
    assert FAILED == outcome(lambda: unit().restart(ORDER))


# --- processes ------------------------------------------------------------------------------------------------------

SUBPROCESS = {"CalledProcessError", "SubprocessError", "TimeoutExpired"}
PROCESS: dict[str, Meaning] = {
    **dict.fromkeys(os_errors(), FAILED),
    **dict.fromkeys(value_errors(), NEVER_WORKS),
    **dict.fromkeys(SUBPROCESS, FAILED),
    "FileNotFoundError": MISSING,
    "NotADirectoryError": MISSING,
    "PermissionError": FORBIDDEN,
}


def shell(script: str, *, timeout: float = 5, **more: Any) -> CommandConsumer:
    """A consumer that a line of shell restarts."""
    return CommandConsumer(
        "edge", argv=["sh", "-c", script], timeout=timedelta(seconds=timeout), clock=SystemClock(), **more
    )


def raising(error: BaseException) -> Callable[..., Any]:
    """What stands in a library's place, and raises."""

    def fail(*_args: object, **_options: object) -> Any:
        raise error

    return fail


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """All processes that the test starts; they are ended with it."""
    found: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        """Python's, and remembered."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            found.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    yield found
    monkeypatch.undo()
    for process in found:
        if process.poll() is None:
            process.kill()
        process.wait(5)


def test_every_exception_of_subprocess_is_decided_upon() -> None:
    """None is missing from the tables above, and none of them is gone."""
    assert set(below(subprocess.SubprocessError, subprocess)) == SUBPROCESS


@pytest.mark.parametrize("name", sorted(PROCESS))
def test_a_process_that_can_not_be_started(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing and what is forbidden say so; what no process can be given is not tried again."""
    every = {**os_errors(), **value_errors(), **below(subprocess.SubprocessError, subprocess)}
    raised = made(every[name], "boom")
    monkeypatch.setattr(subprocess, "Popen", raising(raised))
    assert PROCESS[name] == outcome(partial(shell("true").restart, ORDER), raised=raised, secrets=False)


@pytest.mark.parametrize(
    ("consumer", "expected"),
    [
        (shell("true\0"), NEVER_WORKS),
        (shell("true", env={"A=B": "c"}), NEVER_WORKS),
        (shell("true", env={"A": "\ud800"}), NEVER_WORKS),
        (shell("true" + " " * 10_000_000), FAILED),
    ],
    ids=["NUL", "name", "surrogate", "too long"],
)
def test_a_command_that_can_not_be_run(consumer: CommandConsumer, expected: Meaning) -> None:
    """A configuration may hold what no operating system takes."""
    assert expected == outcome(lambda: consumer.restart(ORDER))


@pytest.mark.parametrize("name", sorted(os_errors()))
@pytest.mark.parametrize("place", ["os.set_blocking", "os.read", "selectors.DefaultSelector"])
def test_a_process_that_can_not_be_followed(
    place: str, name: str, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file descriptor left, or a broken pipe: it is ended, and worth another try."""
    raised = made(os_errors()[name], "boom")
    module, _, attribute = place.rpartition(".")
    target = {"os": os, "selectors": selectors}[module]
    real = getattr(target, attribute)

    def fail(*args: Any) -> Any:
        if not started:  # Popen itself reads from a pipe
            return real(*args)
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr(target, attribute, fail)
        if place == "os.read" and isinstance(raised, BlockingIOError):
            shell("true").restart(ORDER)  # which says that there is nothing to read now
        else:
            assert FAILED == outcome(partial(shell("echo a; exec sleep 60").restart, ORDER), raised=raised)
    assert [0 if "read" in place and isinstance(raised, BlockingIOError) else -signal.SIGTERM] == [
        process.poll() for process in started
    ]


def test_a_process_of_somebody_else(started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    """sudo's child takes no signal of ours: it is given up in time, not waited for until it ends."""
    refused = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    monkeypatch.setattr(os, "killpg", raising(refused))
    began = time.monotonic()
    assert TOO_LONG == outcome(lambda: shell("echo asking; exec sleep 60", timeout=0.2).restart(ORDER))
    assert time.monotonic() - began < 20
    assert [None] == [process.poll() for process in started]


def test_a_signal_without_a_name(started: list[subprocess.Popen[bytes]]) -> None:
    """Most real-time signals have none in Python."""
    number = signal.SIGRTMIN + 1
    consumer = shell(f"kill -{number} $$")
    with pytest.raises(Transient, match=f"edge: killed by signal {number}"):
        consumer.restart(ORDER)
