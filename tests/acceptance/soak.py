"""`make soak`: kills without end, at random points and moments, over all strategies.

    SEED=7 KILLS=1000 python tests/acceptance/soak.py

The same checks as in `test_kills` after each rotation. A seed repeats what is done, not the moments at which it falls
into the daemon's work. Exit 1 when anything was broken.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from acceptance.kill_cases import Killer, cases
from acceptance.kill_process import DaemonServer
from acceptance.kill_scene import Scene, open_scene
from acceptance.kill_upstreams import UPSTREAMS
from rotator.sandbox.vault import VaultServer

FROM_OUTSIDE = 0.4  # the share of rotations that are killed from outside
LONGEST = 1.2  # seconds until such a kill
TOLD_EVERY = 50  # kills
ENOUGH = 10  # broken rotations, after which nothing new is learnt


class Soak:
    """Counts over all sites. Thread safe."""

    def __init__(self, seed: int, kills: int) -> None:
        self.seed, self.wanted = seed, kills
        self.kills: Counter[str] = Counter()
        self.rotations: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        self.broken: list[str] = []
        self._lock = threading.Lock()
        self._over = False
        self._began = time.monotonic()

    def goes_on(self) -> bool:
        """Whether more is to be killed."""
        return not self._over and self.kills.total() < self.wanted and len(self.broken) < ENOUGH

    def end(self) -> None:
        """Something happened that is nobody's broken promise: no more."""
        self._over = True

    def add(self, strategy: str, what: str, kills: int, broken: list[str]) -> None:
        """One rotation and its kills."""
        with self._lock:
            before = self.kills.total()
            self.kills[strategy] += kills
            self.rotations[strategy] += 1
            if broken:
                self.broken.append(f"{strategy}, {what}: {'; '.join(broken)}")
                say(f"BROKEN {self.broken[-1]}")
            if before // TOLD_EVERY != self.kills.total() // TOLD_EVERY:
                say(self.summary())

    def summary(self) -> str:
        """Where it stands."""
        parts = ", ".join(
            f"{name} {self.kills[name]} in {self.rotations[name]} rotations" for name in sorted(self.kills)
        )
        seconds = time.monotonic() - self._began
        return f"{self.kills.total()} kills ({parts}), {len(self.broken)} broken, {seconds:.0f} s"


def say(words: str) -> None:
    """To whoever waits."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def soak_one(strategy: str, folder: Path, vault: VaultServer, server: DaemonServer, soak: Soak) -> None:
    """One site, until enough were killed."""
    dice = random.Random(f"{soak.seed} {strategy}")
    every = cases(strategy)
    with open_scene(strategy, folder, vault, server) as scene:
        killer = Killer(scene)
        while soak.goes_on():
            killed, from_outside, case = scene.kills, dice.random() < FROM_OUTSIDE, dice.choice(every)
            try:
                broken = killer.moments(dice, longest=LONGEST) if from_outside else killer.case(case)
            except AssertionError as exc:
                broken = [f"{exc}"]
                start_anew(scene)
            soak.add(strategy, "from outside" if from_outside else str(case), scene.kills - killed, broken)
        shown = [secret for secret in scene.secrets if secret.encode() in scene.daemon.all_output()]
        if shown:
            soak.add(strategy, "at the end", 0, [f"{len(shown)} secrets are to be seen in the daemon's files"])
        soak.deaths.update(scene.deaths)


def start_anew(scene: Scene) -> None:
    """After a case that came to no end: a daemon that runs, and is armed for nothing."""
    scene.daemon.disarm()
    with suppress(AssertionError):
        scene.daemon.kill()
    scene.daemon.start()


def main() -> int:
    """Soak."""
    # A platform whose caller dies in the middle of a request says so at length.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1_000_000))
    soak = Soak(seed, int(os.environ.get("KILLS") or 1000))
    say(f"SEED={soak.seed} KILLS={soak.wanted}")
    with tempfile.TemporaryDirectory(prefix="rotator-soak-") as name:
        folder = Path(name)
        with (
            VaultServer() as vault,
            DaemonServer(folder / "server.log") as server,
            ThreadPoolExecutor(len(UPSTREAMS)) as pool,
        ):
            sites = [
                pool.submit(soak_one, strategy, folder / strategy.replace(" ", "-"), vault, server, soak)
                for strategy in UPSTREAMS
            ]
            try:
                wait(sites, return_when=FIRST_EXCEPTION)
            finally:
                soak.end()  # also after Ctrl-C: each site finishes its rotation, and all is ended in order
            for site in sites:
                site.result()
    say("killed from outside at: " + ", ".join(f"{step} {count}" for step, count in soak.deaths.most_common()))
    say(f"SEED={soak.seed}: {soak.summary()}")
    for broken in soak.broken:
        say(f"BROKEN {broken}")
    return 1 if soak.broken else 0


if __name__ == "__main__":
    sys.exit(main())
