"""The points at which a daemon is killed, and how one kill goes: die, start again, look at everything."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Final

from acceptance.kill_checks import Broken, Expected, broken
from acceptance.kill_process import Point
from acceptance.kill_scene import KEYS, STUBBORN, Before, Scene
from acceptance.kill_upstreams import ReplaceUpstream

WHEN: Final = ("before_effect", "after_effect", "before_write", "after_write")
WRITES: Final = ("before_write", "after_write")
# Answers die with the process here: the call is over, and no commit holds what came back.
LOST: Final = ("after_effect", "before_write", "mid_write")
_STEPS: Final = {
    "in place": ("preflight", "issue", "promote", "probe", "deliver", "restart", "confirm", "settle", "finish"),
    "replace": (
        *("preflight", "issue", "probe", "promote", "deliver", "restart", "confirm", "settle"),
        *("deactivate", "reconfirm", "delete", "finish"),
    ),
    "chosen": (
        *("preflight", "choose", "issue", "promote", "probe", "deliver", "restart", "confirm", "settle", "finish"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Points at which one rotation's daemon is killed, one after the other; and what else goes wrong.

    Attributes:
        trouble: "" or how the rotation comes to its way back: the "consumer" or the "broker" refuses the new secret.
    """

    points: tuple[Point, ...]
    trouble: str = ""

    def __str__(self) -> str:
        points = " → ".join(map(str, self.points))
        return points + (f" ({self.trouble} refuses)" if self.trouble else "")


def points(strategy: str) -> Iterator[Point]:
    """Every point of a rotation that goes well."""
    for when in WRITES:
        yield Point(step="begin", when=when)
    for step in _STEPS[strategy]:
        if step == "issue":
            yield from (Point(step="call", when=when) for when in WRITES)
        yield from (Point(step=step, when=when) for when in WHEN)
        if step in {"choose", "issue", "promote"}:
            yield Point(step=step, when="mid_write")


def cases(strategy: str) -> list[Case]:
    """All cases of one strategy."""
    single = [Case(points=(point,)) for point in points(strategy)]
    lost = Point(step="issue", when="after_effect")
    single += _after(Point(step="issue", when="after_write"), "finish", ("after_write",))
    match strategy:
        case "in place":
            return [*single, *_after(lost, "look", ("before_effect", "before_write"))]
        case "replace":
            return [
                *single,
                *_after(lost, "look", ("before_effect", "before_write")),
                *_after(lost, "clean", WHEN),
                *_trouble("broker", [("probe", "after_write"), ("clean", "before_effect"), ("clean", "after_effect")]),
                *_trouble("consumer", [(step, when) for step in ("way_back", "revert") for when in WHEN]),
                *_trouble("consumer", [("clean", when) for when in WHEN]),
            ]
        case _:
            return [
                *single,
                *_after(lost, "issue", ("before_effect", "after_effect")),
                *_trouble("consumer", [(step, when) for step in ("way_back", "revert") for when in WHEN]),
            ]


def _after(first: Point, step: str, whens: Sequence[str]) -> list[Case]:
    """A second kill, on the way that the first one caused."""
    return [Case(points=(first, Point(step=step, when=when))) for when in whens]


def _trouble(trouble: str, where: Sequence[tuple[str, str]]) -> list[Case]:
    return [Case(points=(Point(step=step, when=when),), trouble=trouble) for step, when in where]


class Killer:
    """Kills a scene's daemon, and tells what is broken afterwards."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._turn = cycle(KEYS)

    def case(self, case: Case) -> Broken:
        """Let the daemon kill itself at each point, start it again, and look."""
        scene, daemon = self._scene, self._scene.daemon
        key = STUBBORN if case.trouble == "consumer" else next(self._turn)
        before = scene.before(key)
        lost = 0
        with self._in_trouble(case, key):
            daemon.arm(key, case.points[0])
            daemon.ask(key)
            for point in case.points[1:]:
                daemon.struck()
                lost += self._answers_lost(before, lost)
                scene.kills += 1
                daemon.arm(key, point)
                daemon.launch()
            daemon.struck()
            lost += self._answers_lost(before, lost)
            scene.kills += 1
            daemon.start()
            calls = 2 if scene.strategy == "chosen" and case.trouble else 1  # the old secret was set again as well
            found = broken(scene, before, replace(_end_of(case), calls=(calls + lost,)))
        calling = {"issue", "way_back"} if scene.strategy == "chosen" else {"issue"}
        wanted = sum(point.step in calling and point.when in LOST for point in case.points)
        if lost != wanted:
            found.append(f"{lost} answers died with the process, not {wanted}")
        return found

    def moments(self, dice: random.Random, *, longest: float, most: int = 3) -> Broken:
        """Kill it from outside at random moments, up to `most` times in one rotation."""
        scene, daemon = self._scene, self._scene.daemon
        before = scene.before(next(self._turn))
        out: set[int] = set()  # issue calls whose answers may have died
        daemon.ask(before.key)
        for number in range(dice.randint(1, most)):
            if number:
                daemon.launch()
            assert daemon.ended_within(dice.uniform(0, longest)) is None, "it ended by itself"
            daemon.kill()
            scene.kills += 1
            record = daemon.record(before.key)
            if record.get("id", before.rotation) == before.rotation:
                scene.deaths["before its begin"] += 1
                continue
            scene.deaths["after its end" if record["finished_at"] else record["step"]] += 1
            if record["step"] in {"issue", "look"} and record["calling_since"]:
                out.add(record["issues"])
        daemon.start()
        return broken(scene, before, Expected(calls=range(1, len(out) + 2)))

    def _answers_lost(self, before: Before, known: int) -> int:
        """How many answers died with the process: calls that the platform saw, without the journaled answers."""
        record = self._scene.daemon.record(before.key)
        answers = record["answers"] if record.get("id", before.rotation) != before.rotation else 0
        if self._scene.strategy == "chosen" and answers and record["rolling_back"] and record["step"] != "way_back":
            answers += 1  # the old secret was set again, and the journal knows it
        return self._scene.upstream.calls() - before.calls - answers - known

    @contextmanager
    def _in_trouble(self, case: Case, key: str) -> Iterator[None]:
        upstream = self._scene.upstream
        with ExitStack() as stack:
            if case.trouble == "consumer":
                stack.enter_context(self._scene.consumer_refuses(key))
            elif case.trouble == "broker":
                assert isinstance(upstream, ReplaceUpstream)
                upstream.refuse(True)
                stack.callback(upstream.refuse, False)
            yield


def _end_of(case: Case) -> Expected:
    match case.trouble:
        case "consumer":
            return Expected(result="rolled_back", versions=2)
        case "broker":
            return Expected(result="rolled_back", versions=0)
        case _:
            return Expected()
