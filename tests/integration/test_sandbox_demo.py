"""`run_demo` as a process of its own, with a stand-in for the daemon: what it shows and what it leaves."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rotator.sandbox.processes import tail, wait_until

CODE = """
import sys
from pathlib import Path
from rotator.sandbox.demo import run_demo
sys.exit(run_demo(plain=sys.argv[1] == "plain", directory=Path(sys.argv[2]), daemon=[sys.executable, sys.argv[3]]))
"""
FAKE = Path(__file__).with_name("sandbox_fake_daemon.py")


def running(pid: int) -> bool:
    """Whether a process of that id runs (one that waits to be reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> set[int]:
    """The process ids of all children, of whatever thread."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= {int(child) for child in (task / "children").read_text().split()}
    return found


class Demo:
    """A demo in a process of its own."""

    def __init__(self, home: Path, *, behaviour: str = "well", terminal: bool = False) -> None:
        self.home, self.output = home / "demo", home / "output"
        environment = {**os.environ, "FAKE_DAEMON": behaviour, "TERM": "xterm", "COLUMNS": "150", "LINES": "50"}
        argv = [
            sys.executable,
            "-W",
            "error",
            "-c",
            CODE,
            "picture" if terminal else "plain",
            str(self.home),
            str(FAKE),
        ]
        self._reader: threading.Thread | None = None
        if terminal:
            ours, theirs = pty.openpty()
            self.process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
            os.close(theirs)
            self._reader = threading.Thread(target=self._copy, args=(ours,))
            self._reader.start()
        else:
            with self.output.open("wb") as output:
                self.process = subprocess.Popen(argv, stdout=output, stderr=output, env=environment)

    def _copy(self, terminal: int) -> None:
        with self.output.open("wb") as output:
            while True:
                try:
                    data = os.read(terminal, 65536)
                except OSError:  # the other side is closed
                    data = b""
                if not data:
                    break
                output.write(data)
                output.flush()
        os.close(terminal)

    @property
    def text(self) -> str:
        """What it showed so far."""
        return tail(self.output, 100_000)

    def wait_for(self, text: str) -> None:
        """Wait until it showed this."""
        try:
            wait_until(text, lambda: text in self.text, timeout=30)
        except TimeoutError:
            raise AssertionError(f"no {text!r} in: {self.text}") from None

    def facts(self) -> Any:
        """Its `sandbox.json`."""
        file = self.home / "sandbox.json"
        wait_until("sandbox.json", file.exists, timeout=30)
        return json.loads(file.read_text())

    def all_up(self) -> set[int]:
        """The ids of daemon, Vault and the two consumers, once all of them run."""
        self.facts()
        wait_until("four children", lambda: len(children(self.process.pid)) == 4, timeout=30)
        return children(self.process.pid)

    def ends(self) -> int:
        """Its exit code."""
        code = self.process.wait(40)
        if self._reader is not None:
            self._reader.join(10)
        return code

    def close(self) -> None:
        """Whatever a failing test left."""
        if self.process.poll() is None:
            self.process.kill()
        self.ends()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts a demo, and ends it."""
    demos: list[Demo] = []

    def begin(**settings: Any) -> Demo:
        demos.append(Demo(tmp_path, **settings))
        return demos[-1]

    yield begin
    for demo in demos:
        demo.close()


def nobody_left(pids: set[int]) -> None:
    """Wait until all of these are gone."""
    wait_until(f"the end of {pids}", lambda: not any(running(pid) for pid in pids), timeout=10)


def test_plain_lines_and_a_clean_end(start: Any) -> None:
    """Addresses first, a line for each change, and after SIGTERM exit 0 with nobody left."""
    demo = start()
    demo.wait_for("building-a  rotating: restart")
    facts, pids = demo.facts(), demo.all_up()
    demo.process.send_signal(signal.SIGTERM)
    assert demo.ends() == 0
    nobody_left(pids)
    text = demo.text
    expected = (facts["daemon"]["metrics"], facts["vault"]["url"], "building-a  Vault holds version 2", "stopped")
    assert [part for part in expected if part not in text] == []
    assert "last words" in tail(Path(facts["daemon"]["log"]))


def test_everything_in_sandbox_json_is_there(start: Any) -> None:
    """Vault, broker, platform and consumers work as it says, and no secret stands in it."""
    demo = start()
    facts = demo.facts()
    root = Path(facts["vault"]["token_file"]).read_text().strip()
    for name, key in facts["keys"].items():
        url = f"{facts['vault']['url']}/v1/secret/data/{key['vault_path']}"
        data = httpx.get(url, headers={"X-Vault-Token": root}).json()["data"]["data"]
        assert data["username"] == key["id"], name
        assert data["password"] not in json.dumps(facts)
    for name, consumer in facts["consumers"].items():
        log = Path(consumer["log"])
        both = [f"/{key['id']}/temperature" for key in facts["keys"].values()]
        wait_until(f"{name}'s messages", lambda: all(part in tail(log, 1000) for part in both), timeout=20)  # noqa: B023
    assert root not in json.dumps(facts)
    assert httpx.post(facts["platforms"]["haltian"]["url"], json={}).json()["errors"][0]["extensions"]["code"]


def test_the_picture_on_a_terminal(start: Any) -> None:
    """The live table appears, and Ctrl-C ends it cleanly."""
    demo = start(terminal=True)
    demo.wait_for("rotating: restart")
    pids = demo.all_up()
    demo.process.send_signal(signal.SIGINT)
    assert demo.ends() == 0
    nobody_left(pids)
    assert [part for part in ("rotator demo", "life left", "version 2", "stopped") if part not in demo.text] == []


def test_a_daemon_that_dies_is_told_with_its_log(start: Any) -> None:
    """Exit 1, its exit code and last words, where the files are, and nobody left."""
    demo = start(behaviour="dies")
    assert demo.ends() == 1
    text = demo.text
    expected = ("exit code 3", "the fake daemon's last words", f"still in {demo.home}")
    assert [part for part in expected if part not in text] == []
    nobody_left(set(_pids_below(demo.home)))


def _pids_below(home: Path) -> list[int]:
    """Every process whose command line names the demo's folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(home) in line:
                found.append(int(process.name))
    return found


def test_a_second_signal_ends_everything_at_once(start: Any) -> None:
    """A daemon that does not want to stop does not keep the demo."""
    demo = start(behaviour="stubborn")
    pids = demo.all_up()
    demo.wait_for("rotating: restart")
    demo.process.send_signal(signal.SIGINT)
    demo.wait_for("stopping")
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(5) == 128 + signal.SIGINT
    nobody_left(pids)


def test_a_killed_demo_leaves_nobody(start: Any) -> None:
    """Even SIGKILL: the daemon is asked to end, everything else is ended."""
    demo = start()
    pids = demo.all_up()
    demo.wait_for("rotating: restart")
    demo.process.kill()
    demo.process.wait(5)
    nobody_left(pids)


def test_a_folder_that_is_not_empty_is_refused(start: Any, tmp_path: Path) -> None:
    """Exit 2, since an old journal would not know the new keys."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "something").touch()
    demo = start()
    assert (demo.ends(), "is not empty" in demo.text) == (2, True)
