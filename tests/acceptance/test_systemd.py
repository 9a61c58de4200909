"""One rotation under a real systemd: the shipped unit, a consumer that is a unit, Mosquitto, OpenBao.

The daemon runs as the shipped `rotator.service` (its user, its hardening, its credentials, its polkit rule); what is
asserted is told by Vault, by Mosquitto, by systemd, by the consumer's own output and by `/metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from acceptance.world_outside import BAD_CREDENTIAL, leaks
from acceptance.world_systemd import Story, Teller

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def story(shared_folder: Path) -> Iterator[Story]:
    """One rotation from the boot to the daemon's orderly end."""
    with ExitStack() as stack:
        yield Teller(shared_folder, stack).story()


def test_daemon_is_a_unit(story: Story) -> None:
    """The shipped unit starts by the daemon's own READY=1, as its own user, and ends well when it is stopped."""
    assert "notify" == story.unit_started["Type"]
    assert "rotator" == story.unit_started["User"]
    assert "active" == story.unit_started["ActiveState"], story.tell
    assert story.unit_started["StatusText"].startswith("1 key")
    assert "0" == story.unit_started["NRestarts"]
    assert {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"} == story.unit_stopped, story.tell


def test_new_version_in_vault(story: Story) -> None:
    """Vault holds a second version for the same username, with another token."""
    assert 2 == story.current.number, story.tell
    assert story.key_id == story.first.username == story.current.username
    assert story.first.password != story.current.password


def test_only_the_new_token_opens_the_broker(story: Story) -> None:
    """The old token, which was good before, is refused by Mosquitto, and the new one is accepted."""
    assert "Success" == story.first_answer_before
    assert story.first_answer in BAD_CREDENTIAL, story.tell
    assert "Success" == story.current_answer, story.tell


def test_consumer_was_restarted(story: Story) -> None:
    """systemd tells another main process, and that it was not systemd itself that started it again."""
    assert {"ActiveState": "active", "NRestarts": "0"}.items() <= story.before.items()
    assert {"ActiveState": "active", "NRestarts": "0"}.items() <= story.after.items(), story.tell
    assert story.before["MainPID"] != story.after["MainPID"], story.tell


def test_consumer_runs_on_the_new_token(story: Story) -> None:
    """The broker's log has it connect as the key after the kick; it prints version 2, and a later message."""
    assert 1 == len(story.connects()), story.tell
    assert f"u'{story.key_id}'" in story.connects()[0].text
    assert [1, 2] == story.printed_versions, story.tell
    assert story.published in story.received, story.tell


def test_metrics(story: Story) -> None:
    """`/metrics` counts one rotation, one restart and one gap, all from zero, shows nothing sealed, and the key ok."""
    counted = {
        "rotator_rotations_total": {"result": "succeeded"},
        "rotator_consumer_restarts_total": {"consumer": "ingest", "kind": "systemd", "result": "ok"},
        "rotator_credential_gap_seconds_count": {},
    }
    for name, labels in counted.items():
        assert 0 == story.metrics_before.total(name, **labels), name
        assert 1 == story.metrics.total(name, **labels), (name, story.tell)
    assert 1 == story.metrics.total("rotator_rotations_total"), story.tell
    assert 0 == story.metrics.total("rotator_sealed_secrets"), story.tell
    assert 0 == story.metrics.total("rotator_consumer_version_lag"), story.tell
    assert [] == story.metrics.values("rotator_key_gap_started_timestamp_seconds"), story.tell
    assert ["ok"] == story.metrics.state_of("building-a"), story.tell


def test_gap_is_what_the_broker_says(story: Story) -> None:
    """The gap in the metrics is the one between the kick and the first connect in the broker's log, to 100 ms."""
    measured = story.metrics.total("rotator_credential_gap_seconds_sum")
    assert 1 == story.metrics.total("rotator_credential_gap_seconds_count")
    assert measured is not None
    print(f"the gap: {measured:.4f} s in the metrics, {story.gap():.4f} s by the broker's log")  # noqa: T201 - figures
    assert pytest.approx(story.gap(), abs=0.1) == measured, story.tell
    assert story.gap() > 0.1, "a consumer that is a new process can't be back sooner"


def test_no_secret_is_shown(story: Story) -> None:
    """No secret stands in the daemon's log, journal, metrics, command line or environment."""
    assert len(story.secrets) >= 7
    assert all(story.places.values()), [name for name, text in story.places.items() if not text]

    shown = leaks(story.places, story.secrets)
    assert [] == shown
