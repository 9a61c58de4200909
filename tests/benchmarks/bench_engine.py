"""The engine's overhead: a whole rotation on fakes that answer at once, with all its journal commits.

    make bench
    .venv/bin/python tests/benchmarks/bench_engine.py [--rotations 200] [--directory DIR] [--profile]

Nothing is subtracted: the fakes' own work is in the figures. `--directory` chooses the disk.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).parent.parent))  # fakes

import fakes
from benchmarks.machine import machine, milliseconds, say
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import ISSUE_NOW, KeyRecord
from rotator.model import Result

KEY = "building-a"
WARM_UP = 20
# Longer than the journal waits before it empties its log: each rotation finds it empty, as in a quiet daemon.
QUIET = 0.3


class InMemory(SqliteJournal):
    """In the place of the stage's journal in a file."""

    def __init__(self, _url: str) -> None:
        super().__init__("sqlite://")


class Bench:
    """One stage, and rotations of its key that are asked for one after the other."""

    def __init__(self, directory: Path, journal: type[SqliteJournal]) -> None:
        vars(fakes)["SqliteJournal"] = journal  # what the stage opens
        self._stage = fakes.Stage(directory)
        self._stage.introduce()
        self.commits = 0
        self.in_journal = 0.0
        save = self._stage.journal.save

        def counted(**options: object) -> KeyRecord | None:
            began = time.perf_counter()
            try:
                return save(**options)  # type: ignore[arg-type]
            finally:
                self.commits += 1
                self.in_journal += time.perf_counter() - began

        self._save = save
        self._stage.journal.save = counted  # type: ignore[method-assign]

    def rotate(self) -> float:
        """Seconds that the engine takes for one rotation, from a request to success."""
        stage = self._stage
        stage.clock.pass_time(timedelta(days=1))
        self._save(key=KEY, change=lambda old: replace(old or stage.record, requested=ISSUE_NOW))
        seconds = 0.0
        for _ in range(50):
            began = time.perf_counter()
            stage.engine.work(KEY)
            seconds += time.perf_counter() - began
            if stage.journal.open_rotation(KEY) is None:
                break
            stage.clock.pass_time(timedelta(seconds=5))
        result = stage.journal.recent_rotations(key=KEY, limit=1)[0].result
        if result is not Result.SUCCEEDED:
            raise SystemExit(f"the rotation ended {result}")
        return seconds

    def run(self, what: str, rotations: int, *, quiet: float = 0.0) -> None:
        """Rotate, and print the figures."""
        for _ in range(WARM_UP):
            self.rotate()
        self.commits, self.in_journal = 0, 0.0
        cpu, took = time.process_time(), []
        for _ in range(rotations):
            time.sleep(quiet)
            took.append(self.rotate())
        cpu = (time.process_time() - cpu) / rotations
        share = self.in_journal / sum(took)
        say(
            f"  {what:34} {milliseconds(took)}; {self.commits / rotations:.1f} commits ({share:.0%} of the time),"
            f" processor {cpu * 1e3:.2f} ms, {1 / statistics.median(took):.0f} rotations/s"
        )

    def close(self) -> None:
        self._stage.shut_down()


def profiled(work: Callable[[], object]) -> None:
    """Run under the profiler and print where the time goes, by function."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats("rotator|dataclasses|sqlite3|thread", 45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rotations", type=int, default=200)
    parser.add_argument("--directory", type=Path, help="where the journal's file lies; a temporary folder")
    parser.add_argument("--profile", action="store_true", help="by function, journal in memory")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        directory = Path(folder)
        say(machine(directory))
        say(f"engine overhead of one rotation in place, {arguments.rotations} rotations")
        if arguments.profile:
            bench = Bench(directory / "memory", InMemory)
            profiled(lambda: bench.run("journal in memory, profiled", arguments.rotations))
            return
        for what, journal, quiet, rotations in (
            ("journal in a file", SqliteJournal, 0.0, arguments.rotations),
            ("journal in a file, one at a time", SqliteJournal, QUIET, max(20, arguments.rotations // 5)),
            ("journal in memory", InMemory, 0.0, arguments.rotations),
        ):
            stage_directory = directory / what.replace(" ", "-")
            bench = Bench(stage_directory, journal)
            bench.run(what, rotations, quiet=quiet)
            bench.close()


if __name__ == "__main__":
    main()
