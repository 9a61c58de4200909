"""Consumers that are systemd units: the suite of consumer_cases.py under a real systemd (tests/tools/systemd-sandbox).

The sandbox boots once; systemd_inside.py runs there, and each of its tests is told here. What is the adapter's alone is
in tests/integration/test_consumer_systemd.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from contract import systemd_inside

ROOT = Path(__file__).parents[2]
SANDBOX = ROOT / "tests" / "tools" / "systemd-sandbox"
OPTIONS = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider", "--junitxml=told.xml"]
SUITES = (systemd_inside.TestRestart, systemd_inside.TestReload, systemd_inside.TestSignal)
NAMES = [f"{suite.__name__}.{name}" for suite in SUITES for name in dir(suite) if callable(getattr(suite, name))]
TESTS = [name for name in NAMES if ".test_" in name]

pytestmark = pytest.mark.timeout(440)  # the first of them boots a systemd and runs all


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, list[str]]]:
    """What came of each test inside."""
    assert os.geteuid() == 0, "these tests need root, to boot a systemd of their own"
    for program in ("/usr/lib/systemd/systemd", "/usr/bin/dbus-daemon"):
        assert Path(program).exists(), f"install the Debian packages systemd and dbus: {program} is missing"
    folder = ROOT / ".sandbox-tests" / f"contract-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        done = subprocess.run(
            [str(SANDBOX), sys.executable, "-m", "pytest", *OPTIONS, systemd_inside.__file__],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: a test failed, and is told below
        yield told(folder / "told.xml")
    finally:
        shutil.rmtree(folder)


def told(report: Path) -> dict[str, list[str]]:
    """What came of each test, by class and name; one entry for each of its parameters, empty where it passed."""
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it a moment ago
        suite, name = str(case.get("classname")).rpartition(".")[2], str(case.get("name")).partition("[")[0]
        found.setdefault(f"{suite}.{name}", []).append("\n".join(each.text or each.tag for each in case))
    return found


@pytest.mark.parametrize("name", TESTS)
def test_inside(outcomes: dict[str, list[str]], name: str) -> None:
    """It passed inside, with all of its parameters."""
    assert name in outcomes, "it was not run"
    assert {""} == set(outcomes[name]), "\n".join(outcomes[name])


def test_nothing_else_ran_inside(outcomes: dict[str, list[str]]) -> None:
    """Each test inside is told above."""
    assert set(TESTS) == outcomes.keys()
