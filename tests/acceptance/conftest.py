"""What every acceptance test may use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shared_folder() -> Iterator[Path]:
    """A folder below the repository, the only place that is seen inside and outside of the systemd sandbox."""
    folder = ROOT / ".sandbox-tests" / f"acceptance-{os.getpid()}"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)
