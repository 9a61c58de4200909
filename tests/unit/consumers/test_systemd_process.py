"""Which main process must run after what was done to a unit; real units are in tests/integration."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest

from rotator.clock import SystemClock
from rotator.consumers.systemd import SystemdConsumer
from rotator.errors import Transient
from rotator.reasons import Reason

OLD: Mapping[str, str | int] = {"invocation_id": "01", "main_pid": 17, "n_restarts": 0}
NEW: Mapping[str, str | int] = {"invocation_id": "02", "main_pid": 18, "n_restarts": 0}
REUSED: Mapping[str, str | int] = {"invocation_id": "02", "main_pid": 17, "n_restarts": 0}
AGAIN: Mapping[str, str | int] = {"invocation_id": "02", "main_pid": 18, "n_restarts": 1}
NONE: Mapping[str, str | int] = {"invocation_id": "01", "main_pid": 0, "n_restarts": 0}
TARGET: Mapping[str, str | int] = {"invocation_id": "01"}


def unit(action: str) -> SystemdConsumer:
    """A consumer that no systemd is asked for."""
    signal = "SIGHUP" if action == "kill" else None
    limit, clock = timedelta(seconds=1), SystemClock()
    return SystemdConsumer("ingest", unit="a.service", action=action, signal=signal, timeout=limit, clock=clock)


@pytest.mark.parametrize(
    ("action", "before", "after", "expected"),
    [
        ("restart", OLD, NEW, None),
        ("restart", OLD, REUSED, None),
        ("restart", OLD, OLD, Reason.CONSUMER_RESTART_FAILED),
        ("restart", NONE, NEW, None),
        ("restart", TARGET, TARGET, None),
        ("reload", OLD, OLD, None),
        ("reload", OLD, NEW, Reason.CONSUMER_CRASHED),
        ("reload", OLD, REUSED, Reason.CONSUMER_CRASHED),
        ("reload", TARGET, TARGET, None),
        ("kill", OLD, OLD, None),
        ("kill", OLD, AGAIN, Reason.CONSUMER_CRASHED),
        ("kill", OLD, NONE, Reason.CONSUMER_CRASHED),
        ("reload-or-restart", OLD, OLD, None),
        ("reload-or-restart", OLD, NEW, None),
    ],
)
def test_the_main_process(
    action: str, before: Mapping[str, str | int], after: Mapping[str, str | int], expected: Reason | None
) -> None:
    """A new one after a restart, the old one after a reload or a signal; a unit without one can't tell."""
    if expected is None:
        unit(action)._compare(before, after)
    else:
        with pytest.raises(Transient) as caught:
            unit(action)._compare(before, after)
        assert expected is caught.value.reason


@pytest.mark.parametrize(("action", "signal"), [("kill", None), ("kill", "SIGHPU"), ("reload", "SIGHUP")])
def test_a_signal_that_does_not_go_with_the_action(action: str, signal: str | None) -> None:
    """It is refused where the consumer is made."""
    with pytest.raises(ValueError, match="does not go with"):
        SystemdConsumer(
            "ingest",
            unit="a.service",
            action=action,
            signal=signal,
            timeout=timedelta(seconds=1),
            clock=SystemClock(),
        )
