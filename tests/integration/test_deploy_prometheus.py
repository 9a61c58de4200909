"""deploy/prometheus: promtool accepts the rules, and each alert fires and is silent where it should."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "prometheus"
RULES = DEPLOY / "rotator.rules.yml"
TESTS = sorted(DEPLOY.glob("*.test.yml"))


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Debian's promtool; its output."""
    program = shutil.which("promtool")
    assert program, "this test needs promtool: install the Debian package prometheus"
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=100, check=False)


def test_rules_are_accepted() -> None:
    """`promtool check rules` counts every rule of the file and finds no fault."""
    rules = len(re.findall(r"^ +- (?:alert|record):", RULES.read_text(), re.MULTILINE))

    done = promtool("check", "rules", str(RULES))

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {rules} rules found" in done.stdout


@pytest.mark.parametrize("file", TESTS, ids=lambda file: str(file.name))
def test_alerts_fire_and_stay_silent(file: Path) -> None:
    """`promtool test rules` finds every alert firing and silent as written."""
    done = promtool("test", "rules", str(file))

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_threshold_would_be_noticed(tmp_path: Path) -> None:
    """The same tests fail when an alert compares with another share of the life, so they do test the rules."""
    wrong = RULES.read_text().replace("> 0 < 0.15", "> 0 < 0.25")
    assert wrong != RULES.read_text()
    (tmp_path / RULES.name).write_text(wrong)
    (copied,) = (shutil.copy(file, tmp_path) for file in TESTS if file.name == "rotator.rules.test.yml")

    done = promtool("test", "rules", str(copied))

    assert done.returncode == 1
    assert "RotatorKeyExpiring" in done.stdout + done.stderr


def test_operations_of_the_rules_are_those_of_the_store() -> None:
    """An alert about Vault's requests names no operation that the store does not report."""
    code = "".join(file.read_text() for file in (ROOT / "rotator" / "stores").glob("*.py"))
    reported = set(re.findall(r'(?:call|count|_once)\((?:index, )?"(\w+)"', code))
    selectors = re.findall(r'rotator_vault_requests_total\{operation[=!]~?"([a-z_|]+)"', RULES.read_text())

    assert "unwrap" in {name for selector in selectors for name in selector.split("|")}
    assert {name for selector in selectors for name in selector.split("|")} <= reported
