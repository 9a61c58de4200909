"""Key-years a second of the simulation on one core: 90-day keys due at 33 %, the journal in memory.

PYTHONPATH=tests python tests/benchmarks/bench_simulation.py
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine, say
from simulation.simulate import planned, simulate

RUNS, KEYS = 5, 100


def rate(seed: int, faults: int | None) -> float:
    """Key-years for each second of CPU, one fleet over a year."""
    plan = planned(seed, keys=KEYS, count=faults)
    began = time.process_time()
    run = simulate(plan)
    seconds = time.process_time() - began
    assert run.violation is None, run.violation
    return run.key_years / seconds


def main() -> None:
    """Print the machine and the medians."""
    with tempfile.TemporaryDirectory() as directory:
        say(machine(Path(directory)))
    for name, faults in (("no faults", 0), ("the usual faults", None)):
        rates = [rate(seed, faults) for seed in range(RUNS)]
        say(f"simulation, {name}: {statistics.median(rates):.1f} key-years/s on one core (median of {RUNS} fleets)")


if __name__ == "__main__":
    main()
