"""What a benchmark ran on: printed above its figures, since they mean nothing without it."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import time
from pathlib import Path

_PAGES = 60


def machine(directory: Path) -> str:
    """Processor, cores, versions, and how long the disk below `directory` takes to flush."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return (
        f"{_processor()}, {cores} cores (load {load:.1f}), {platform.system()} {platform.release()}\n"
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"disk flush {_flush(directory) * 1e3:.2f} ms"
    )


def say(text: str) -> None:
    """Print a line."""
    print(text, flush=True)  # noqa: T201 - a benchmark's figures are its result


def milliseconds(seconds: list[float]) -> str:
    """Median, 95th percentile and minimum."""
    p95 = statistics.quantiles(seconds, n=20)[-1]
    return f"median {statistics.median(seconds) * 1e3:.2f} ms, p95 {p95 * 1e3:.2f}, min {min(seconds) * 1e3:.2f}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _flush(directory: Path) -> float:
    """Median seconds of one fdatasync after 8 KiB, over pages that are there: what a commit costs at the least."""
    path = directory / "flush"
    path.write_bytes(bytes(8192 * _PAGES))
    took = []
    with path.open("r+b", buffering=0) as file:
        os.fsync(file.fileno())
        for page in range(_PAGES):
            os.pwrite(file.fileno(), os.urandom(8192), page * 8192)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(took)
