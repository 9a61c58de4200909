"""The engine on a seal whose key Vault keeps: what can't be sealed is not issued, and what was issued is sealed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import START, Stage
from remote_wrap import RemoteWrap
from rotator.journal.seal import Seal
from rotator.model import Identity, Issued, Result, Step
from rotator.reasons import Reason
from rotator.rotation import ConsumerProgress, Rotation


@pytest.fixture
def remote() -> RemoteWrap:
    """Whoever keeps the seal's key."""
    return RemoteWrap()


@pytest.fixture
def stage(tmp_path: Path, remote: RemoteWrap) -> Iterator[Stage]:
    """An engine with a key that is due."""
    made = Stage(tmp_path)
    restart(made, remote)
    made.introduce()
    yield made
    made.shut_down()


def restart(stage: Stage, remote: RemoteWrap) -> None:
    """A new process: no data key is in memory."""
    stage.shut_down()
    stage.seal = Seal(remote)
    stage.boot()


def failures(stage: Stage) -> set[Reason | None]:
    """Why steps failed."""
    return {event.reason for event in stage.events if event.name == "step" and event.result == "failed"}


def test_what_could_not_be_sealed_is_not_issued(stage: Stage, remote: RemoteWrap) -> None:
    """No data key, no call (rule 8); with its keeper back the key is rotated."""
    remote.away = True
    stage.work(20)
    assert (0, {Reason.VAULT_SEALED}) == (stage.platform.issued, failures(stage))
    remote.away = False
    stage.work(400)
    assert (1, "secret-1") == (stage.platform.issued, stage.consumer.runs_on)


def test_an_answer_is_sealed_without_its_keeper(stage: Stage, remote: RemoteWrap) -> None:
    """Away from the issue call on: one request in all, and the rotation comes to its end."""
    issue = stage.platform.issue

    def issue_and_lose_the_keeper(identity: Identity) -> Issued:
        remote.away = True
        return issue(identity)

    stage.platform.issue = issue_and_lose_the_keeper  # type: ignore[method-assign]
    stage.work(5)
    assert Result.SUCCEEDED == stage.journal.recent_rotations()[0].result
    assert (1, 1, "secret-1") == (stage.platform.issued, remote.asked, stage.consumer.runs_on)


def test_after_a_restart_the_data_key_is_unwrapped_before_the_call(stage: Stage, remote: RemoteWrap) -> None:
    """The process died between preflight and issue: nothing is issued until the journaled data key is open."""
    rotation = Rotation(
        id="r1",
        key="building-a",
        provider="acme",
        identity=Identity(id="id-1", username="id-1"),
        trigger=Reason.NEAR_EXPIRY,
        started_at=START,
        step=Step.ISSUE,
        consumers=(ConsumerProgress(name="ingest"),),
    )
    stage.journal.save(rotation=rotation, data_key=stage.seal.new_data_key())
    restart(stage, remote)
    remote.away = True
    stage.work(20)
    assert (0, {Reason.VAULT_SEALED}) == (stage.platform.issued, failures(stage))
    remote.away = False
    stage.work(400)
    assert (1, "secret-1") == (stage.platform.issued, stage.consumer.runs_on)
