"""What is told of a rotation that went back: one failure is one failure, and a restart is only what was restarted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from rotator.logs import redact
from rotator.model import Result, Step, Strategy
from rotator.reasons import Reason
from unit.restart_house import OLD, House

REASON = Reason.CONSUMER_NOT_CONFIRMED
DETAIL = "ingest: not seen on the new secret"


@pytest.fixture
def went_back(tmp_path: Path) -> Iterator[House]:
    """A house where `ingest` runs on the old key only, `other` has not been its turn, and `watcher` follows Vault."""
    house = House(tmp_path, Strategy.REPLACE, ["ingest", "other", "watcher"])
    house.plan(ingest={"canary": True}, watcher={"follows": True})
    house.key = replace(house.key, limits=replace(house.key.limits, max_attempts=2))
    ingest = house.workers["ingest"]
    connect = ingest.connect
    ingest.connect = lambda: connect() if ingest.runs_on[0] == OLD else None  # type: ignore[method-assign]
    house.boot()
    house.ask()
    house.work(timedelta(minutes=10))
    assert Result.ROLLED_BACK is house.rotation.result
    yield house
    house.journal.close()


def test_the_last_step_of_a_way_back_did_well(went_back: House) -> None:
    """The steps that failed are those that did; the way back's end is told with its reason, and not as one of them."""
    steps = [event for event in went_back.events if event.name == "step"]
    assert [(Step.CONFIRM, REASON)] * 2 == [(event.step, event.reason) for event in steps if event.result != "ok"]
    assert (Step.CLEAN, "ok", None) == (steps[-1].step, steps[-1].result, steps[-1].reason)
    (ended,) = [event for event in went_back.events if event.name == "rotation_ended"]
    assert ("rolled_back", REASON) == (ended.result, ended.reason)


def test_the_key_counts_what_failed_and_keeps_the_words(went_back: House) -> None:
    """Two failed steps are two; whom nobody saw can still be read when all is over."""
    record = went_back.record
    assert (2, REASON, DETAIL) == (record.failures, record.last_reason, record.last_detail)


def test_who_follows_by_itself_is_never_restarted(went_back: House) -> None:
    """It is proven on the way back, and counted nowhere."""
    restarted = [event.extra["consumer"] for event in went_back.events if event.name == "restart"]
    assert ["ingest"] * 3 == restarted
    proven = {each.name for each in went_back.rotation.consumers if each.confirmed_at is not None}
    assert {"ingest", "watcher"} == proven


def test_the_log_names_who_was_not_seen(went_back: House) -> None:
    """A name behind "secret:" would be taken for one, and be hidden by stars."""
    steps = [event for event in went_back.events if event.step is Step.CONFIRM and event.detail]
    assert [DETAIL] * 2 == [redact(None, "", {"detail": event.detail})["detail"] for event in steps]
