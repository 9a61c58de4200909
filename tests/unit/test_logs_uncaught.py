"""What nobody catches ends up in the log like everything else: cleaned, and without any frame's variables."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJidWlsZGluZy1hIn0.c2lnbmF0dXJl-_x"
PROGRAM = """
import sys, threading
from rotator.logs import configure, log_uncaught

def fail(text):
    held = "hunter2" * 2
    raise ENDING

configure(json_lines=True)
log_uncaught()
if sys.argv[1] == "thread":
    thread = threading.Thread(target=fail, args=(sys.argv[2],))
    thread.start()
    thread.join()
else:
    fail(sys.argv[2])
"""


def run(where: str, ending: str, text: str = f"Bearer {JWT}") -> subprocess.CompletedProcess[str]:
    """A process in which this is raised, in its first thread or in another."""
    argv = [sys.executable, "-c", PROGRAM.replace("ENDING", ending), where, text]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("where", "code"), [("thread", 0), ("main", 1)])
def test_an_exception_is_one_cleaned_line(where: str, code: int) -> None:
    """With its traceback, and with nothing that is, or looks, secret."""
    done = run(where, "RuntimeError(text)")
    line = json.loads(done.stderr)
    assert (code, "", "uncaught", "critical") == (done.returncode, done.stdout, line["event"], line["level"])
    assert "in fail" in line["exception"]
    assert "RuntimeError" in line["exception"]
    assert (False, False) == (JWT in done.stderr, "hunter2hunter2" in done.stderr)


def test_endings_that_are_no_failure() -> None:
    """A thread that ends itself says nothing; Ctrl-C is what it always was."""
    assert "" == run("thread", "SystemExit(3)").stderr
    interrupted = run("main", "KeyboardInterrupt")
    assert interrupted.returncode != 0
    assert "KeyboardInterrupt" in interrupted.stderr
    assert "uncaught" not in interrupted.stderr


def test_a_command_that_fails_unforeseen_shows_no_variable() -> None:
    """Before any command has set up logging of its own, and although typer has a hook of its own."""
    program = (
        "import rotator.cli as c\n"
        "def load(*_, **__):\n"
        f"    held = 'hunter2' * 2\n    raise LookupError('Bearer {JWT}')\n"
        "c.load = load\n"
        "c.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "status"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (1, "") == (done.returncode, done.stdout)
    assert "LookupError" in json.loads(done.stderr)["exception"]
    assert (False, False) == (JWT in done.stderr, "hunter2hunter2" in done.stderr)
