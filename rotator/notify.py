"""systemd's notification protocol (sd_notify(3)): a datagram to $NOTIFY_SOCKET, nothing where there is none."""

from __future__ import annotations

import os
import socket
from datetime import timedelta


def notify(*assignments: str) -> None:
    """Tell the service manager, e.g. `notify("READY=1", "STATUS=2 keys")`. Does nothing outside systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract namespace
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect(address)
            channel.sendall("\n".join(assignments).encode())
        except OSError:
            return  # a service manager that went away must not take the daemon with it


def watchdog_interval() -> timedelta | None:
    """How often systemd wants to hear from this process (half of WatchdogSec), if it does."""
    microseconds, process = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not microseconds or not microseconds.isdigit() or (process and process != str(os.getpid())):
        return None
    return timedelta(microseconds=int(microseconds) / 2)
