"""`make simulate`: many seeds, each a fleet over a year; of a broken rule, its seed and its smallest history.

PYTHONPATH=tests python -m simulation.years --seeds 200 --keys 100 --days 365 --jobs 2
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from benchmarks.machine import say
from simulation.shrink import shrink
from simulation.simulate import planned, simulate

# So much of a shrunken history is shown; what matters stands at its end.
LINES = 60


@dataclass(frozen=True, slots=True)
class Lived:
    """What came of one seed. `seconds` of one core; `report` is empty where no rule was broken."""

    seed: int
    key_years: float
    seconds: float
    counts: dict[str, int]
    report: str


def live(seed: int, *, keys: int, days: float) -> Lived:
    """One seed, shrunken if it broke a rule."""
    began = time.process_time()
    run = simulate(planned(seed, keys=keys, days=days))
    seconds = time.process_time() - began
    report = ""
    if run.violation is not None:
        small = shrink(run)
        kept = f"{len(small.plan.numbers)} of {keys} keys, {len(small.plan.faults)} of {len(run.plan.faults)} faults"
        lines = "\n  ".join(small.history.lines()[-LINES:])
        report = f"seed {seed}: {run.violation}\nshrunken to {kept}: {small.violation}\n  {lines}"
    return Lived(seed, run.key_years, seconds, run.counts, report)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 where a rule was broken."""
    parser = argparse.ArgumentParser(description="Simulated years.")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--days", type=float, default=365.0)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args(arguments)
    began, lived = time.monotonic(), list[Lived]()
    with ProcessPoolExecutor(max_workers=asked.jobs) as pool:
        seeds = range(asked.first, asked.first + asked.seeds)
        for one in pool.map(partial(live, keys=asked.keys, days=asked.days), seeds):
            lived.append(one)
            if one.report:
                say(one.report)
    years, cores = sum(one.key_years for one in lived), sum(one.seconds for one in lived)
    total = {name: sum(one.counts[name] for one in lived) for name in lived[0].counts}
    broken = [one.seed for one in lived if one.report]
    say(f"{len(lived)} seeds, {years:.0f} key-years, {', '.join(f'{count} {name}' for name, count in total.items())}")
    rate = f"{years / cores:.1f} key-years/s on one core"
    say(f"{time.monotonic() - began:.0f} s with {asked.jobs} processes, {rate}; broken: {broken or 'none'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
