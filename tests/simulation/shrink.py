"""The smallest plan that still breaks the same rule: shorter, with fewer keys, fewer faults and milder ones.

Delta debugging (Zeller, "Simplifying and isolating failure-inducing input", 2002) over the faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from simulation.simulate import Parts, Plan, Run, simulate

T = TypeVar("T")
# So many runs at most; each is of a fraction of the first one's size.
MOST_RUNS = 400


class _Search:
    """Runs candidates, and keeps the last one that still broke the rule."""

    def __init__(self, run: Run, parts: Parts | None) -> None:
        assert run.violation is not None
        self._rule, self._parts, self.left = run.violation.rule, parts, MOST_RUNS
        self.best = run

    def breaks(self, plan: Plan) -> bool:
        """Whether this plan breaks the same rule; if so, it is the best one now."""
        if self.left <= 0:
            return False
        self.left -= 1
        run = simulate(plan, self._parts)
        if run.violation is None or run.violation.rule != self._rule:
            return False
        self.best = run
        return True


def shrink(run: Run, parts: Parts | None = None) -> Run:
    """A smaller run that breaks the same rule as this one."""
    search = _Search(run, parts)
    assert run.violation is not None
    while True:
        before = search.best.plan
        _fewer_keys(search)
        _fewer_faults(search)
        _milder_faults(search)
        if search.best.plan == before or search.left <= 0:
            return search.best


def _fewer_keys(search: _Search) -> None:
    plan, violation = search.best.plan, search.best.violation
    assert violation is not None
    # those that struck, each bound to the key that it struck: with fewer keys they must not come to others
    bound = tuple(replace(fault, key=key) for fault, key in search.best.struck.items())
    search.breaks(replace(plan, faults=tuple(sorted(bound, key=lambda fault: fault.day))))
    plan = search.best.plan
    alone = tuple(number for number in plan.numbers if violation.key == f"key-{number}")
    if alone and alone != plan.numbers and search.breaks(replace(plan, numbers=alone)):
        return
    _minimal(plan.numbers, lambda kept: bool(kept) and search.breaks(replace(search.best.plan, numbers=tuple(kept))))


def _fewer_faults(search: _Search) -> None:
    late = search.best.days
    earlier = tuple(fault for fault in search.best.plan.faults if fault.day <= late)
    search.breaks(replace(search.best.plan, faults=earlier))
    _minimal(search.best.plan.faults, lambda kept: search.breaks(replace(search.best.plan, faults=tuple(kept))))


def _milder_faults(search: _Search) -> None:
    for number in range(len(search.best.plan.faults)):
        for change in ("hits", "seconds"):
            drawn = list(search.best.plan.faults)
            fault = drawn[number]
            if change == "hits" and fault.hits > 1:
                drawn[number] = replace(fault, hits=1)
            elif change == "seconds" and fault.seconds > 60:
                drawn[number] = replace(fault, seconds=60.0)
            else:
                continue
            search.breaks(replace(search.best.plan, faults=tuple(drawn)))


def _minimal(items: Sequence[T], breaks: Callable[[Sequence[T]], bool]) -> None:
    """Leave out halves, quarters, … single ones, as long as the rest still breaks."""
    kept, pieces = list(items), 2
    while kept:
        size = max(1, len(kept) // pieces)
        smaller = next((rest for rest in _without_one_piece(kept, size) if breaks(rest)), None)
        if smaller is not None:
            kept, pieces = smaller, max(2, pieces - 1)
        elif size == 1:
            return
        else:
            pieces = min(len(kept), pieces * 2)


def _without_one_piece(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[:start] + items[start + size :]
