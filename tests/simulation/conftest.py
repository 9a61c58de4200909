"""Figures that tests of the simulation leave for the end of a run."""

from __future__ import annotations

import pytest

_LINES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> list[str]:
    """Lines that are printed when all tests have run, with `-s` or without."""
    return pytestconfig.stash.setdefault(_LINES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print them."""
    lines = config.stash.get(_LINES, [])
    if lines:
        terminalreporter.section("simulation")
    for line in lines:
        terminalreporter.write_line(line)
