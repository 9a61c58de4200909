"""Consumers that a command restarts, and proof by a command: the suite over real processes, and what is theirs alone.

How a program is run, ended and told of is in tests/integration/test_consumer_command.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from contract.consumer_cases import ORDER, ConsumerCases, confirmed, looked, refused
from rotator.clock import SystemClock
from rotator.confirmation import Confirmations
from rotator.consumers.command import CommandConsumer
from rotator.errors import Permanent
from rotator.model import Identity, Order
from rotator.ports import Watch
from rotator.reasons import Reason

RESTART = """#!/bin/sh
sleep "$(cat slow)"
echo "$1 $2 $ROTATOR_KEY $ROTATOR_VERSION" >>restarts
test -s supervisor && kill "$(cat supervisor)"
: >supervisor
if test -e crashes; then
    ./supervise </dev/null >/dev/null 2>&1 &
    echo $! >supervisor
    echo nothing >running
elif test -s wanted; then
    cat wanted >running
else
    echo "$ROTATOR_VERSION" >running
fi
exit "$(cat exit)"
"""
# Starts the application again whenever it has died; for a minute, since a test that is killed can't end it.
SUPERVISE = """#!/bin/sh
for _ in $(seq 600); do
    ./application
    echo "$?" >>deaths
    sleep 0.1
done
"""
APPLICATION = """#!/bin/sh
kill -KILL $$
"""
CONFIRM = """#!/bin/sh
echo told >>told
test -e silent && exec sleep 60
test "$(cat running)" = nothing && kill -PIPE $$  # it asked an application that died meanwhile
test "$(cat running)" = "$1" && test "$ROTATOR_VERSION" = "$1"
"""


class CommandStage:
    """A folder with a program that restarts and one that confirms."""

    kind = "command"

    def __init__(self, folder: Path) -> None:
        self.stop, self.folder = threading.Event(), folder
        self.argv = [str(folder / "restart"), "{key}", "{version}"]
        programs = {"restart": RESTART, "confirm": CONFIRM, "supervise": SUPERVISE, "application": APPLICATION}
        for name, text in programs.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        for name, text in {"slow": "0", "exit": "0", "running": "6"}.items():
            (folder / name).write_text(text)
        for name in ("wanted", "restarts", "told", "supervisor", "deaths"):
            (folder / name).touch()

    def close(self) -> None:
        """End the supervisor, where one was started."""
        if pid := (self.folder / "supervisor").read_text():
            os.kill(int(pid), signal.SIGTERM)

    def consumer(self, timeout: float = 10) -> CommandConsumer:
        """The adapter."""
        return CommandConsumer(
            "subject",
            argv=self.argv,
            cwd=str(self.folder),
            timeout=timedelta(seconds=timeout),
            clock=SystemClock(),
            stop=self.stop,
        )

    def watch(self, order: Order) -> Watch:
        """Runs the program that confirms."""
        maker = Confirmations(clock=SystemClock(), read_ref=str).command(
            "subject", argv=["./confirm", "{version}"], cwd=str(self.folder), timeout=timedelta(seconds=10)
        )
        return maker.open(Identity(id="a", username="a"), None, order)

    def restarts(self) -> list[tuple[str, int]]:
        """By the arguments, which the environment must agree with."""
        lines = [line.split() for line in (self.folder / "restarts").read_text().splitlines()]
        assert all(line[:2] == line[2:] for line in lines), lines
        return [(line[0], int(line[1])) for line in lines]

    def told(self) -> int:
        """How often the program that confirms was run to its end, all but the last surely."""
        return len((self.folder / "told").read_text().splitlines()) - 1

    def run_on(self, version: int | None) -> None:
        """What the next restart leaves."""
        (self.folder / "wanted").write_text("" if version is None else f"{version}\n")

    def slow(self, seconds: float) -> None:
        """The program takes this long."""
        (self.folder / "slow").write_text(str(seconds))

    def failing(self) -> None:
        """It exits with 3."""
        (self.folder / "exit").write_text("3")

    def missing(self) -> None:
        """It is gone."""
        (self.folder / "restart").unlink()

    def forbidden(self) -> None:
        """It may not be executed."""
        (self.folder / "restart").chmod(0o644)

    def silent(self) -> None:
        """The program that confirms hangs."""
        (self.folder / "silent").touch()

    def half_down(self) -> None:
        """There is no half of a command."""
        raise NotImplementedError

    def crashes(self) -> None:
        """What the program starts is killed each time that it comes up, and its supervisor starts it again."""
        (self.folder / "crashes").touch()

    def deaths(self) -> int:
        """The ends that the supervisor has seen, all of them by SIGKILL."""
        ends = (self.folder / "deaths").read_text().split()
        assert ["137"] * len(ends) == ends
        return len(ends)

    def mended(self) -> None:
        """The next restart starts what stays up."""
        (self.folder / "crashes").unlink()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[CommandStage]:
    """Programs that do well."""
    with closing(CommandStage(tmp_path)) as made:
        yield made


class TestCommand(ConsumerCases):
    """The suite, over a command that is proven by another."""

    test_half_down = None  # type: ignore[assignment]  # one program, one exit


def test_templates(stage: CommandStage) -> None:
    """Key and version stand in the argv, other braces stay, and the environment has both besides `env`."""
    script = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('out', 'w'))"
    subject = CommandConsumer(
        "subject",
        argv=[sys.executable, "-c", script, "{key}:{version}", "{{{version}}}", "{print $1}"],
        cwd=str(stage.folder),
        env={"UNIT": "ingest", "ROTATOR_KEY": "not this one"},
        timeout=timedelta(seconds=20),
        clock=SystemClock(),
    )
    subject.preflight()
    subject.restart(ORDER)
    argv, environment = json.loads((stage.folder / "out").read_text())
    assert ["building-a:7", "{{7}}", "{print $1}"] == argv
    wanted = {"ROTATOR_KEY": "building-a", "ROTATOR_VERSION": "7", "UNIT": "ingest", "PATH": os.environ["PATH"]}
    assert wanted == {name: environment[name] for name in wanted}
    assert {"PATH", "HOME", "LANG", "TZ", "LC_CTYPE", *wanted} >= set(environment)


def test_a_program_for_each_key(stage: CommandStage) -> None:
    """Where the program's own name holds the key, only the restart can tell whether it is there."""
    stage.argv = ["./restart-{key}"]
    stage.consumer().preflight()
    assert (Permanent, Reason.CONSUMER_MISSING) == refused(stage.consumer().restart, ORDER)
    (stage.folder / "restart").rename(stage.folder / "restart-building-a")
    (stage.folder / "restart-building-a").write_text("#!/bin/sh\ntouch done\n")
    stage.consumer().restart(ORDER)
    assert (stage.folder / "done").exists()


def test_a_confirming_program_that_is_not_there(stage: CommandStage) -> None:
    """Then the watch is blind, and says so; when the program comes, it sees."""
    (stage.folder / "confirm").rename(stage.folder / "elsewhere")
    with closing(stage.watch(Order(key="building-a", version=6))) as watch:
        looked(watch, lambda: "does not exist" in watch.healthy(), "it is blind")
        (stage.folder / "elsewhere").rename(stage.folder / "confirm")
        confirmed(watch)
        assert "" == watch.healthy()


def test_closing_ends_a_confirming_program(stage: CommandStage) -> None:
    """A watch that is closed leaves no process behind."""
    pid = stage.folder / "pid"
    (stage.folder / "confirm").write_text(f"#!/bin/sh\necho $$ >{pid}\nexec sleep 60\n")
    watch = stage.watch(ORDER)
    looked(watch, lambda: pid.exists() and pid.read_text().endswith("\n"), "it runs")
    watch.close()
    assert not Path(f"/proc/{int(pid.read_text())}").exists()
