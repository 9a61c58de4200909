"""systemd's notification protocol over a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from rotator.notify import notify, watchdog_interval


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_assignments_arrive_in_one_datagram(manager: socket.socket) -> None:
    """One a line, as sd_notify(3) has it."""
    notify("READY=1", "STATUS=2 keys")
    assert b"READY=1\nSTATUS=2 keys" == manager.recv(4096)


def test_each_call_is_a_datagram_of_its_own(manager: socket.socket) -> None:
    """Nothing is kept back between two."""
    notify("WATCHDOG=1")
    notify("STOPPING=1", "STATUS=schließt")
    assert [b"WATCHDOG=1", "STOPPING=1\nSTATUS=schließt".encode()] == [manager.recv(4096) for _ in range(2)]


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """An @ stands for the zero byte of Linux's abstract names, which containers' managers use."""
    name = f"rotator-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1")
        assert b"READY=1" == listening.recv(4096)


@pytest.mark.parametrize("address", [None, "", "/nonexistent/socket", "x" * 200, "relative"])
def test_nobody_to_tell_is_no_fault(address: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside systemd, or with a manager that went away: nothing happens."""
    monkeypatch.chdir(tmp_path)
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("microseconds", "process", "expected"),
    [
        ("30000000", "own", timedelta(seconds=15)),
        ("30000000", "", timedelta(seconds=15)),
        ("1", "own", timedelta(microseconds=0.5)),
        ("30000000", "1", None),
        ("", "own", None),
        ("soon", "own", None),
        ("-5", "own", None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_time(
    microseconds: str, process: str, expected: timedelta | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only when it asks for this very process."""
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if process == "own" else process)
    assert expected == watchdog_interval()


def test_no_watchdog_without_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell, a container."""
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_interval() is None
