"""Ports, waiting and children: the few things that every part of the sandbox needs from the operating system."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# A child that outlives its parent would hold ports and files. Linux can end it with its parent, but only when the
# child asks for it, between fork and exec; `preexec_fn` is not safe in a program with threads, so a tiny Python asks
# and then becomes the program.
_BOUND = """
import os, sys, ctypes
try:
    ctypes.CDLL(None).prctl(1, int(sys.argv[1]))
except (OSError, AttributeError):
    pass
if os.getppid() != int(sys.argv[2]):
    raise SystemExit(1)
os.execvp(sys.argv[3], sys.argv[3:])
"""


_children: set[subprocess.Popen[bytes]] = set()


def spawn(
    argv: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    orphaned: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, so that a Ctrl-C in our terminal does not reach it.

    Args:
        argv: the program; its process id is the returned one's.
        log: where its output is appended.
        environment: all of it; None means ours.
        orphaned: the signal it gets when the *thread* that calls this ends, however it ends. Where the kernel has no
            prctl(PR_SET_PDEATHSIG), the child then simply lives on.
    """
    whole = [sys.executable, "-I", "-S", "-c", _BOUND, str(int(orphaned)), str(os.getpid()), *argv]
    with log.open("ab") as output:
        child = subprocess.Popen(
            whole, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    _children.difference_update([one for one in list(_children) if one.returncode is not None])
    _children.add(child)
    return child


def kill_all() -> None:
    """Kill every child and what it started, at once."""
    for child in list(_children):
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago. Only for programs that can't bind port 0 themselves.

    Below the ports that the kernel gives to outgoing connections and to port 0, since one of those may be in use by
    somebody else when the program binds it, or binds it again after a restart.
    """
    while True:
        port = 10_000 + secrets.randbelow(_lowest_ephemeral() - 10_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _lowest_ephemeral() -> int:
    """Where the kernel's own choice of ports begins."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except FileNotFoundError:  # not Linux
        return 32_768
    return max(lowest, 11_000)


def wait_until(what: str, look: Callable[[], bool], *, timeout: float, interval: float = 0.02) -> None:
    """Look again and again until `look` says yes.

    Args:
        what: what is waited for; part of the error's text.
        look: returns whether it is there.
        timeout: seconds.
        interval: seconds between two looks.

    Raises:
        TimeoutError: it did not come in time.
    """
    deadline = time.monotonic() + timeout
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(interval)


def end(process: subprocess.Popen[bytes], *, grace: float = 5.0, ending: signal.Signals = signal.SIGTERM) -> int:
    """End a child: ask, wait `grace` seconds, then kill. Returns its exit code; may be repeated."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(ending)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log file; empty where there is none."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
