"""Children: they end with their parent, on request, and when they don't want to."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rotator.sandbox.processes import end, free_port, spawn, tail, wait_until

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
PARENT = """
import sys, time
from pathlib import Path
from rotator.sandbox.processes import spawn
child = spawn([sys.executable, "-c", "import time; time.sleep(60)"], Path(sys.argv[1]))
print(child.pid, flush=True)
time.sleep(60)
"""


def gone(pid: int) -> bool:
    """Whether no process of that id runs; one that waits to be reaped does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """Even a parent that is killed takes its child along."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_until("the child's end", lambda: gone(child), timeout=5)


def test_a_child_is_not_in_our_session(tmp_path: Path) -> None:
    """So a Ctrl-C in the terminal reaches us alone."""
    child = spawn([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    try:
        wait_until("the new session", lambda: os.getsid(child.pid) == child.pid, timeout=5)
    finally:
        assert end(child) == -signal.SIGTERM


def test_ending_a_stubborn_child_kills_it(tmp_path: Path) -> None:
    """After the grace comes SIGKILL."""
    log = tmp_path / "log"
    child = spawn([sys.executable, "-c", STUBBORN], log)
    wait_until("the child", lambda: tail(log) == "up", timeout=5)
    assert end(child, grace=0.1) == -signal.SIGKILL


def test_ending_twice_gives_the_same_code(tmp_path: Path) -> None:
    """A second end finds the first one's result."""
    child = spawn([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log")
    wait_until("the child's end", lambda: child.poll() is not None, timeout=5)
    assert (end(child), end(child)) == (3, 3)


def test_waiting_in_vain_says_for_what() -> None:
    """The error names what did not come."""
    with pytest.raises(TimeoutError, match="in vain for the moon"):
        wait_until("the moon", lambda: False, timeout=0.01)


def test_a_free_port_is_one_that_the_kernel_gives_to_nobody_else() -> None:
    """Above the privileged ones, below those of outgoing connections; and it can be bound."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = free_port()
        assert 10_000 <= port < lowest
        socket.create_server(("127.0.0.1", port)).close()


def test_a_port_in_use_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is taken."""
    taken = free_port()
    choices = iter((taken, taken + 1))
    monkeypatch.setattr(secrets, "randbelow", lambda _: next(choices) - 10_000)
    with socket.create_server(("127.0.0.1", taken)):
        assert free_port() == taken + 1


def test_the_tail_of_no_file_is_empty(tmp_path: Path) -> None:
    """A log that was never written is no error."""
    assert tail(tmp_path / "none") == ""
