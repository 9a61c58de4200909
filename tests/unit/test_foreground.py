"""What a command does itself when no daemon runs, over a real engine and journal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from rotator import engine
from rotator.app import App
from rotator.errors import JournalFailed
from rotator.foreground import rotate_here
from rotator.journal.database import driver_of
from rotator.model import Strategy
from rotator.reasons import Reason
from unit.control_stage import ControlStage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ControlStage]:
    """One key."""
    stage = ControlStage(tmp_path, Strategy.IN_PLACE)
    yield stage
    stage.journal.close()


def app(stage: ControlStage) -> App:
    """As far as these commands use it."""
    parts = SimpleNamespace(
        engine=stage.engine, watcher=stage.watcher, control=stage.control, journal=stage.journal, settings=None
    )
    return cast(App, parts)


def test_a_disk_that_is_full_after_the_request(stage: ControlStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal of the journal is the answer, and not an empty one after all of the timeout."""
    monkeypatch.setattr(engine, "JOURNAL_PAUSE", 0.01)
    assert stage.journal._writer is not None

    def full() -> None:
        with stage.journal._writer.between() as connection:  # type: ignore[union-attr]
            driver_of(connection).execute("PRAGMA query_only=ON")

    object.__setattr__(stage.control, "poke", full)
    began = time.monotonic()
    with pytest.raises(JournalFailed) as caught:
        rotate_here(app(stage), "key-0", {"now": True}, timeout=20)
    assert (Reason.JOURNAL_UNWRITABLE, True) == (caught.value.reason, time.monotonic() - began < 10)
    assert 0 == stage.platform.calls
