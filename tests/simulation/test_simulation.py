"""Simulated years of the real engine: nothing becomes false; an engine that is broken on purpose is caught."""

from collections.abc import Callable

import pytest

from simulation.broken import BROKEN
from simulation.shrink import shrink
from simulation.simulate import Run, planned, simulate
from simulation.years import live, main

# Of the 200 seeds and 100 keys of `make simulate`, what CI has time for.
SEEDS, KEYS = 10, 20


@pytest.fixture(scope="module")
def lived() -> Callable[[int], Run]:
    """The run of a seed, lived through once."""
    known: dict[int, Run] = {}

    def run(seed: int) -> Run:
        if seed not in known:
            known[seed] = simulate(planned(seed, keys=KEYS))
        return known[seed]

    return run


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_simulated_year_breaks_no_rule(seed: int, lived: Callable[[int], Run]) -> None:
    """Keys of all strategies, faults at random; each key was rotated about every sixty days, and some answers died."""
    run = lived(seed)
    assert run.violation is None, "\n".join([str(run.violation), *run.history.lines()[-40:]])
    assert run.days >= 365
    assert run.counts["ended"] >= 5 * KEYS
    assert run.counts["struck"] >= 5


def test_the_years_together_lost_answers_and_struck_often(lived: Callable[[int], Run]) -> None:
    """The faults are no decoration: answers were lost, hundreds of times something failed, and consumers went back."""
    runs = [lived(seed) for seed in range(SEEDS)]
    assert sum(run.counts["lost"] for run in runs) >= SEEDS
    assert sum(run.counts["struck"] for run in runs) >= 10 * SEEDS
    assert sum(run.counts["in batches"] for run in runs) >= 10 * SEEDS
    assert sum(run.counts["late looks"] for run in runs) >= 10 * SEEDS
    assert sum(run.counts["on the way back"] for run in runs) > 0


def test_one_seed_is_one_history(lived: Callable[[int], Run]) -> None:
    """Byte for byte; another seed is another history."""
    again = simulate(planned(3, keys=KEYS))
    assert lived(3).history.digest() == again.history.digest()
    assert lived(4).history.digest() != again.history.digest()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_engine_is_caught_within_20_seeds(name: str) -> None:
    """And its history is shrunken to less than it was."""
    run = next(run for seed in range(20) if (run := simulate(planned(seed, keys=KEYS), BROKEN[name])).violation)
    small = shrink(run, BROKEN[name])
    assert run.violation is not None
    assert small.violation is not None
    assert run.violation.rule == small.violation.rule
    assert len(small.plan.numbers) < len(run.plan.numbers)
    assert len(small.plan.faults) <= len(run.plan.faults)
    assert len(small.history) <= len(run.history)


def test_the_command_prints_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds, key-years, key-years a second; exit 0 where nothing was broken."""
    assert 0 == main(["--seeds", "2", "--keys", "4", "--days", "90", "--jobs", "1"])
    printed = capsys.readouterr().out
    assert "2 seeds, 2 key-years" in printed
    assert "key-years/s on one core; broken: none" in printed


def test_a_run_without_a_violation_has_no_report() -> None:
    """What the command shows of a seed is empty when all went well."""
    assert "" == live(1, keys=3, days=60).report
