"""A journal in a file of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rotator.journal.sqlite import SqliteJournal


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/rotator.db"


@pytest.fixture
def journal(url: str) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(url)
    yield journal
    journal.close()
