"""Issue 3, point 1: every strategy, every step, every fault, on the real engine, journal, seal and spool."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from rotator import lifecycle
from rotator.journal.sqlite import Erase
from rotator.managed import ManagedKey
from rotator.model import Secret, Step, Strategy
from rotator.rotation import DeliverDone, Rotation
from rotator.world import World
from simulation.crash_journal import TappedJournal
from simulation.crash_stage import Stage, Variant, prepared
from simulation.fault_checks import after_the_fault, left_on_the_disk, secrets_of
from simulation.fault_routes import ROUTES, VARIANTS, Route
from simulation.fault_table import FAULTS, IMPOSSIBLE, Plan, Row, planned, rows

ROWS = tuple(rows())
# Each row with each fault, less the combinations that can't be: a fault or a step that drops out is noticed.
LEAST_CASES = 2746


@dataclass(slots=True)
class Figures:
    """What this run has done."""

    cases: int = 0
    impossible: int = 0
    broken: int = 0
    kills: int = 0
    wakes: int = 0


@pytest.fixture(scope="session")
def figures(summary: list[str]) -> Iterator[Figures]:
    counted = Figures()
    yield counted
    summary.append(
        f"fault table: {counted.cases} cases, {counted.broken} broken invariants ({counted.impossible} combinations"
        f" can't be); {counted.kills} kills; at most {counted.wakes} engine calls until a rotation had ended"
    )


@pytest.fixture(scope="module", autouse=True)
def no_real_waiting() -> Iterator[None]:
    """The world's clock passes by itself; what waits by the real one would only cost time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rotator.issuing._AGAIN", 0.001)  # between two tries to let somebody hold an answer
        # A commit must stay in the write-ahead log until its end is damaged; `close` empties it all the same.
        patch.setattr("rotator.journal.wal.DELAY", 3600.0)
        yield


@pytest.fixture(scope="module")
def starts() -> Iterator[dict[Variant, Path]]:
    """The files with which the rotations of each variant begin; in memory, where the host has such a folder."""
    with tempfile.TemporaryDirectory(dir=_fast()) as folder:
        made: dict[Variant, Path] = {}
        for number, variant in enumerate(VARIANTS):
            (Path(folder) / str(number)).mkdir()
            made[variant] = prepared(Path(folder) / str(number), variant)
        with pytest.MonkeyPatch.context() as patch:
            # These files are up to date, which Alembic takes a fifth of the time of a row to see.
            patch.setattr("rotator.journal.database._migrate", lambda connection: None)
            yield made


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=_fast()) as name:
        yield Path(name)


def _fast() -> Path | None:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


def play(row: Row, plan: Plan, directory: Path, start: Path) -> tuple[Stage, list[str]]:
    """Put one fault in and go on until the rotation has ended; what was broken, in words."""
    with capture_logs() as logs:
        stage = Stage(directory, row.route.variant, start=start)
        try:
            row.route.prepare(stage)
            traps = [stage.set_trap(plan.place, plan.action, plan.times)]
            if plan.also is not None:
                traps.append(stage.set_trap(plan.also, plan.action))
            came_home = stage.go_on()
            broken = ["the fault was not put in"] if any(trap.times for trap in traps) else []
            broken += after_the_fault(stage, row, plan, came_home=came_home)
        finally:
            stage.close()
    broken += left_on_the_disk(stage)
    return stage, broken + [f"logged: {secret}" for secret in secrets_of(stage) if secret in repr(logs)]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_fault_at_this_step(row: Row, starts: dict[Variant, Path], folder: Path, figures: Figures) -> None:
    """Whatever strikes here, the rotation ends, and everything that must never be false is true."""
    found: list[str] = []
    for number, name in enumerate(FAULTS):
        plan = planned(name, row)
        if isinstance(plan, str):
            figures.impossible += 1
            continue
        stage, broken = play(row, plan, folder / str(number), starts[row.route.variant])
        figures.cases += 1
        figures.broken += len(broken)
        figures.kills += stage.tally.kills
        figures.wakes = max(figures.wakes, stage.tally.wakes)
        found += [f"{name}: {one}" for one in broken]
        shutil.rmtree(folder / str(number))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_route_is_what_the_table_says(route: Route, starts: dict[Variant, Path], folder: Path) -> None:
    """Without a fault, just these steps are recorded, and each touches what the table puts its faults at."""
    stage = Stage(folder / "0", route.variant, start=starts[route.variant])
    route.prepare(stage)
    assert stage.go_on()
    stage.close()
    assert route.steps == tuple(stage.tally.trace)
    assert (route.result, route.issued) == (stage.last.result, len(stage.tally.issued))
    effects = {(row.step, row.effect.point) for row in ROWS if row.route is route and row.effect is not None}
    assert effects == {(step, point) for step, point in effects if point in stage.tally.points[step]}


def test_the_table_is_whole() -> None:
    """Every step there is has rows, every strategy all steps of the design, and every gap its reason."""
    assert set(Step) == {row.step for row in ROWS}
    assert set(Strategy) == {route.variant.strategy for route in ROUTES}
    for variant in (one for one in VARIANTS if not one.plans and one.late is None):
        usual = next(route for route in ROUTES if route.variant is variant and route.name == "usual")
        assert len(usual.steps) == len(usual.rows)
    plans = [planned(name, row) for row in ROWS for name in FAULTS]
    reasons = [plan for plan in plans if isinstance(plan, str)]
    assert set(reasons) == IMPOSSIBLE
    assert len(plans) - len(reasons) >= LEAST_CASES


# --- the checks see what is broken -----------------------------------------------------------------------------------


def forget_the_seal(patch: pytest.MonkeyPatch) -> None:
    """The answer is journaled, and its blob is not."""
    save = TappedJournal.save

    def lossy(self: TappedJournal, *, blob: object = None, **rest: Any) -> object:
        return save(self, blob=blob if isinstance(blob, Erase) else None, **rest)

    patch.setattr(TappedJournal, "save", lossy)


def forget_the_intent(patch: pytest.MonkeyPatch) -> None:
    """Nobody notes that a call is out."""
    patch.setattr("rotator.engine.begin_call", lambda rotation, now: replace(rotation, issues=rotation.issues + 1))


def forget_the_grace(patch: pytest.MonkeyPatch) -> None:
    """The old key is deleted at once."""
    patch.setattr("rotator.lifecycle.grace_ends", lambda rotation, limits: None)


def forget_the_clock(patch: pytest.MonkeyPatch) -> None:
    """A grace period is measured by a wall clock that steps."""
    patch.setattr("rotator.beginnings.Beginnings.moved", lambda self, rotation: rotation)


def forget_the_orphans(patch: pytest.MonkeyPatch) -> None:
    """The last look sees no key of ours."""
    patch.setattr("rotator.retiring.marked", lambda listed, rotation: [])


def write_over_others(patch: pytest.MonkeyPatch) -> None:
    """Without `cas`."""

    def write(world: World, key: ManagedKey, _rotation: Rotation, fields: dict[str, str], _: Secret) -> tuple[int, str]:
        return world.store.put(key.path, fields), world.fingerprints.of(fields)

    patch.setattr("rotator.steps.write", write)


def restart_all_at_once(patch: pytest.MonkeyPatch) -> None:
    """Without canaries and batches."""

    def everybody(rotation: Rotation, *_given: object, **_options: object) -> list[str]:
        return [consumer.name for consumer in rotation.consumers]

    patch.setattr("rotator.batches.next_batch", everybody)


def take_everybody_back(patch: pytest.MonkeyPatch) -> None:
    """On the way back those are restarted, too, who never ran on the new secret."""
    reverted = lifecycle._reverted

    def touching(*given: Any) -> Rotation:
        back = reverted(*given)
        return replace(back, consumers=tuple(replace(one, touched=True) for one in back.consumers))

    patch.setattr("rotator.lifecycle._reverted", touching)


def not_wait_for_the_delivery(patch: pytest.MonkeyPatch) -> None:
    """What is not there yet counts as delivered."""
    patch.setattr("rotator.steps.Steps._deliver", lambda self, key, rotation: DeliverDone())


def forget_the_negative_proof(patch: pytest.MonkeyPatch) -> None:
    """The old secret is never tried again."""
    patch.setattr("rotator.retiring.Retiring._old_alive", lambda self, key, rotation: False)


BREAKAGES = (
    (forget_the_seal, "in place, usual, 1 issue", "killed after the journal write", "not ended"),
    (forget_the_intent, "in place, usual, 1 issue", "killed after the effect", "a lost answer was not looked for"),
    (forget_the_grace, "replace, usual, 10 delete", "refusal", "deleted after a grace of"),
    (forget_the_clock, "replace, usual, 9 reconfirm", "clock a day back", "deleted after a grace of"),
    (forget_the_orphans, "replace, usual, 1 issue", "log damaged after the effect", "left at the platform"),
    (restart_all_at_once, "replace in turn, batch by batch, 8 restart", "killed after the effect", "restarted:"),
    (take_everybody_back, "replace in turn, asked back, 9 restart", "killed before the effect", "restarted:"),
    (not_wait_for_the_delivery, "in place, delivered late, delivered, 6 restart", "refusal", "ingest was restarted"),
    (forget_the_negative_proof, "replace, usual, 11 finish, broker.probe", "old secret let in", "the fault was not"),
    (write_over_others, "replace, usual, 3 promote", "our fields written", "what somebody wrote"),
)


@pytest.mark.parametrize(("break_it", "at", "fault", "seen"), BREAKAGES, ids=[one[0].__name__ for one in BREAKAGES])
def test_a_broken_engine_is_seen(
    break_it: Callable[[pytest.MonkeyPatch], None],
    at: str,
    fault: str,
    seen: str,
    starts: dict[Variant, Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The row that should fail fails, for its reason; so the table can fail."""
    row = next(row for row in ROWS if str(row) == at)
    plan = FAULTS[fault](row)
    assert isinstance(plan, Plan)
    assert [] == play(row, plan, folder / "well", starts[row.route.variant])[1]
    break_it(monkeypatch)
    broken = play(row, plan, folder / "broken", starts[row.route.variant])[1]
    assert any(one.startswith(seen) for one in broken), broken
