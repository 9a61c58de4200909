"""A key's windows inside its consumers', or not."""

from __future__ import annotations

from datetime import timedelta

import pytest

from rotator.config_windows import outside
from rotator.policy import Window

HOUR = timedelta(hours=1)


def window(cron: str, hours: float, timezone: str = "UTC") -> Window:
    """One window."""
    return Window(cron=cron, duration=hours * HOUR, timezone=timezone)


@pytest.mark.parametrize(
    ("key", "consumer", "fits"),
    [
        ([window("0 2 * * *", 1)], [], True),
        ([window("0 2 * * *", 1)], [window("0 1 * * *", 3)], True),
        ([window("0 2 * * *", 1)], [window("0 2 * * *", 1)], True),
        ([window("0 2 * * *", 2)], [window("0 1 * * *", 2)], False),
        ([window("0 2 * * *", 1)], [window("0 2 * * 1-5", 1)], False),
        ([window("0 2 * * 1-5", 1)], [window("0 2 * * *", 1)], True),
        ([window("0 2 * * *", 1)], [window("0 2 * * 1-5", 1), window("0 0 * * 0,6", 12)], True),
        ([window("0 2 * * *", 1), window("0 20 * * *", 1)], [window("0 1 * * *", 3)], False),
        ([window("0 2 * * *", 1, "Europe/Helsinki")], [window("0 0 * * *", 1)], False),  # summer time
        ([window("0 2 * * *", 1, "Europe/Helsinki")], [window("0 2 * * *", 1, "Europe/Helsinki")], True),
        ([window("0 23 * * *", 3)], [window("0 22 * * *", 3), window("0 0 * * *", 6)], True),  # together
        ([window("0 23 * * *", 3)], [window("0 22 * * *", 2), window("30 0 * * *", 6)], False),  # with a gap
        ([], [window("0 1 * * *", 3)], False),
        ([], [window("0 * * * *", 2)], True),
    ],
)
def test_whether_they_fit(key: list[Window], consumer: list[Window], fits: bool) -> None:
    """Each opening of a year must lie inside the consumer's whole, which may take turns."""
    assert fits is (outside(key, consumer) is None)
