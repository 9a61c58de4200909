"""Real kills: the daemon dies by SIGKILL at every point of every strategy, and nothing that was issued is lost.

Four sites live side by side, since they mostly wait: a platform over HTTP, Mosquitto and consumers as processes each,
and one OpenBao. After each kill the daemon starts again, and all is looked at from outside (`kill_checks`).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from acceptance.daemon_process import tell
from acceptance.kill_cases import Case, Killer, cases
from acceptance.kill_process import DaemonServer
from acceptance.kill_scene import open_scene
from rotator.sandbox.vault import VaultServer

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1200)]

OUTSIDE = 3  # rotations of each site whose daemons are killed from outside, at random moments
LONGEST = 1.2  # seconds until such a kill


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What happens on one site, and how many kills that is at least."""

    strategy: str
    wanted: Callable[[Case], bool]
    least: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a lane brought."""

    kills: int
    seconds: float


def _is_plain(case: Case) -> bool:
    return len(case.points) == 1 and not case.trouble


LANES: Mapping[str, Lane] = {
    "in place": Lane(strategy="in place", wanted=lambda _case: True, least=24),
    "replace": Lane(strategy="replace", wanted=_is_plain, least=30),
    "replace, lost answers and ways back": Lane(strategy="replace", wanted=lambda case: not _is_plain(case), least=12),
    "chosen": Lane(strategy="chosen", wanted=lambda _case: True, least=24),
}


def run(lane: Lane, folder: Path, vault: VaultServer, server: DaemonServer, stop: threading.Event) -> Report:
    """Go through one lane; an AssertionError names the case, and all that was broken after it."""
    began, seed = time.monotonic(), random.SystemRandom().randrange(1_000_000)
    with open_scene(lane.strategy, folder, vault, server) as scene:
        killer, dice = Killer(scene), random.Random(seed)
        for case in filter(lane.wanted, cases(lane.strategy)):
            assert not stop.is_set(), "the tests were ended"
            assert [] == killer.case(case), f"after {case}"
        for _ in range(OUTSIDE):
            assert [] == killer.moments(dice, longest=LONGEST), f"after kills from outside, seed {seed}"
        return Report(kills=scene.kills, seconds=time.monotonic() - began)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Future[Report]]]:
    """All lanes, under way."""
    folder, stop = tmp_path_factory.mktemp("kills"), threading.Event()
    with VaultServer() as vault, DaemonServer(folder / "server.log") as server, ThreadPoolExecutor(len(LANES)) as pool:
        lanes = enumerate(LANES.items())
        yield {name: pool.submit(run, lane, folder / f"{n}", vault, server, stop) for n, (name, lane) in lanes}
        stop.set()


@pytest.mark.parametrize("name", LANES)
def test_killed_at_every_point(name: str, reports: Mapping[str, Future[Report]]) -> None:
    """After each kill the rotation ends as it should, and everything outside agrees."""
    report = reports[name].result()
    tell(f"{name}: {report.kills} kills in {report.seconds:.0f} s, nothing broken")
    assert report.kills >= LANES[name].least


def test_kills_in_all(reports: Mapping[str, Future[Report]]) -> None:
    """At least 60 in a run."""
    kills = sum(report.result().kills for report in reports.values())
    tell(f"{kills} kills in all")
    assert kills >= 60
