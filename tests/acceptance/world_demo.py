"""`rotator demo` as a process, and the story of one from its start to its end, told by those around the daemon."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from acceptance.world_outside import (
    Guest,
    Look,
    Process,
    Scrape,
    VaultReader,
    Version,
    answer_to,
    belonging_to,
    family_of,
    poll,
    scrape,
)

ROOT = Path(__file__).parents[2]
WITHIN = 90.0  # seconds from the start, as the issue has it
_NUMBER = r'{topic}/temperature: \{{\n +"sensor": "temperature",\n +"number": (\d+),'


class Demo:
    """`rotator demo --plain --dir …`, started as `make run` does: by the console script beside the interpreter.

    Args:
        folder: an empty one.
        options: more of them.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.home, self.output = folder / "demo", folder / "output"
        self.seen: dict[Process, Look] = {}
        self.started = time.monotonic()
        argv = [str(Path(sys.executable).with_name("rotator")), "demo", "--plain", "--dir", str(self.home), *options]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def left(self) -> float:
        """Seconds that are left of the promised time."""
        return max(1.0, self.started + WITHIN - time.monotonic())

    def facts(self) -> dict[str, Any]:
        """`sandbox.json`, once it is there."""
        file = self.home / "sandbox.json"
        poll(lambda: file.exists() or self.process.poll() is not None, "sandbox.json", timeout=60, because=self.tell)
        assert file.exists(), f"the demo ended with exit code {self.process.returncode}\n{self.tell()}"
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of the daemon's log with this event, oldest first."""
        log = self.home / "rotator.log"
        lines = log.read_text().splitlines() if log.exists() else []
        found = [json.loads(line) for line in lines if f'"{name}"' in line and line.endswith("}")]
        return [one for one in found if one["event"] == name]

    def remember_processes(self) -> None:
        """Take note of all processes of the demo that run now."""
        self.seen |= family_of(self.process.pid)

    def runs(self, module: str) -> bool:
        """Whether a process of the demo runs this Python module now."""
        self.remember_processes()
        return any(module.encode() in look.cmdline.split(b"\0") for look in family_of(self.process.pid).values())

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self.remember_processes()
        self.process.send_signal(signal.SIGINT)

    def ended(self, timeout: float) -> tuple[int, float]:
        """Exit code, and how many seconds it took."""
        began = time.monotonic()
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired as exc:
            raise AssertionError(f"the demo still ran {timeout:g} s after the signal\n{self.tell()}") from exc
        return code, time.monotonic() - began

    def survivors(self) -> list[str]:
        """The command lines of what still runs two seconds after the end."""
        deadline = time.monotonic() + 2
        while (alive := belonging_to(self.home, self.seen)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [look.cmdline.replace(b"\0", b" ").decode(errors="replace") for look in alive.values()]

    def tell(self) -> str:
        """The ends of the demo's output and of the daemon's log, for a failure's text."""
        log = self.home / "rotator.log"
        daemon = log.read_text()[-4000:] if log.exists() else "(none)"
        return f"--- the demo's output\n{self.output.read_text()[-3000:]}\n--- the daemon's log\n{daemon}"

    def kill(self) -> None:
        """Whatever happened, nothing is left."""
        if self.process.poll() is None:
            self.remember_processes()
            self.process.kill()
        self.process.wait(10)
        for process in belonging_to(self.home, self.seen):
            os.kill(process.pid, signal.SIGKILL)


@dataclass(kw_only=True)
class ConsumerSeen:
    """One consumer, as its pid file, its own output and the broker show it."""

    pid_before: int
    pid_after: int
    version: int  # the last one that it printed for the key
    numbers: set[int]  # of the messages that it printed since then


@dataclass(kw_only=True)
class Story:
    """What was seen of one demo that rotated at least one key."""

    key: str
    username: str
    first: Version
    current: Version
    first_answer_before: str
    first_answer: str
    current_answer: str
    numbers: set[int]  # of the messages that the new password received, so they were published after the switch
    consumers: dict[str, ConsumerSeen]
    client_ids: dict[str, str]  # consumer → its client id for the key
    broker_lines: list[str] = field(repr=False)
    scrape: Scrape | None
    took: float
    places: dict[str, bytes] = field(repr=False)
    secrets: dict[str, str] = field(repr=False)
    exit_code: int
    stopped_in: float
    survivors: list[str]
    tell: str = field(repr=False)


def _numbers(guest: Guest) -> set[int]:
    return {int(json.loads(text)["number"]) for text in guest.texts()}


class Teller:
    """Looks at a running demo, and tells its story."""

    def __init__(self, demo: Demo, stack: ExitStack) -> None:
        self._demo, self._stack = demo, stack
        self._facts = demo.facts()
        self._vault = VaultReader(self._facts["vault"]["url"], self._secret("vault", "token_file"))
        stack.callback(self._vault.close)
        broker = self._facts["brokers"]["amqtt"]
        self._at = (broker["host"], broker["port"])
        observer = (broker["observer_username"], Path(broker["observer_password_file"]).read_text().strip())
        self._witness = stack.enter_context(Guest(*self._at, observer, "$SYS/broker/log/#"))

    def story(self) -> Story:
        """Watch until a key was refreshed and everything around it is well, then press Ctrl-C."""
        demo, facts = self._demo, self._facts
        topics = {name: key["topic"] for name, key in facts["keys"].items()}
        first = {name: self._vault.read(key["vault_path"], 1) for name, key in facts["keys"].items()}
        before = {name: self._answer(first[name], topics[name]) for name in topics}
        pids = {name: self._pid(name) for name in facts["consumers"]}

        key = poll(self._refreshed, "a version 2 in Vault", timeout=demo.left(), because=demo.tell)
        current, guest = self._come_in(key, topics[key])
        received = "a message that the new password and both consumers received"
        poll(lambda: self._shared(guest, key, pids), received, timeout=demo.left(), because=demo.tell)
        found = self._settled(key)
        took = time.monotonic() - demo.started
        seen = {name: self._consumer(name, key, pids[name]) for name in pids}
        numbers = _numbers(guest)
        places, known = self._places(), self._known()
        first_answer = self._answer(first[key], topics[key])
        demo.interrupt()
        exit_code, stopped_in = demo.ended(20)
        return Story(
            key=key,
            username=facts["keys"][key]["id"],
            first=first[key],
            current=current,
            first_answer_before=before[key],
            first_answer=first_answer,
            current_answer=guest.answer,
            numbers=numbers,
            consumers=seen,
            client_ids={name: one["client_ids"][key] for name, one in facts["consumers"].items()},
            broker_lines=self._witness.texts(),
            scrape=found,
            took=took,
            places={**places, "the demo's output": demo.output.read_bytes()},
            secrets=known,
            exit_code=exit_code,
            stopped_in=stopped_in,
            survivors=demo.survivors(),
            tell=demo.tell(),
        )

    def _shared(self, guest: Guest, key: str, pids: Mapping[str, int]) -> set[int]:
        """The messages to the new password that every consumer has printed."""
        return _numbers(guest).intersection(*(self._consumer(name, key, pids[name]).numbers for name in pids))

    def _refreshed(self) -> str:
        """The name of a key with a second version in Vault."""
        self._demo.remember_processes()
        for name, key in self._facts["keys"].items():
            if self._vault.read(key["vault_path"]).number >= 2:
                return str(name)
        return ""

    def _come_in(self, key: str, topic: str) -> tuple[Version, Guest]:
        """The current version, and a guest that came with it; the answer is for the test to judge."""
        path = self._facts["keys"][key]["vault_path"]
        while True:
            current = self._vault.read(path)
            guest = Guest(*self._at, (current.username, current.password), topic)
            if guest.answer == "Success" or self._vault.read(path).number == current.number:
                self._stack.callback(guest.close)
                return current, guest
            guest.close()  # it was replaced between the two looks

    def _settled(self, key: str) -> Scrape | None:
        """The first scrape that shows the rotation done, or the last one when the time is over."""
        while True:
            self._demo.remember_processes()
            found = scrape(self._facts["daemon"]["metrics"])
            done = found is not None and (
                bool(found.total("rotator_rotations_total", result="succeeded"))
                and found.total("rotator_sealed_secrets") == 0
                and found.state_of(key) == ["ok"]
            )
            if done or time.monotonic() > self._demo.started + WITHIN:
                return found
            time.sleep(0.2)

    def _consumer(self, name: str, key: str, pid_before: int) -> ConsumerSeen:
        """One consumer as it is now."""
        self._demo.remember_processes()
        topic = self._facts["keys"][key]["topic"]
        text = Path(self._facts["consumers"][name]["log"]).read_text()
        greetings = list(re.finditer(rf"^Connected .*{re.escape(topic)} \(Vault version (\d+)\)$", text, re.MULTILINE))
        base = re.escape(topic.removesuffix("/#"))
        numbers = re.findall(_NUMBER.format(topic=base), text[greetings[-1].end() :]) if greetings else []
        return ConsumerSeen(
            pid_before=pid_before,
            pid_after=self._pid(name),
            version=int(greetings[-1][1]) if greetings else 0,
            numbers={int(number) for number in numbers},
        )

    def _pid(self, name: str) -> int:
        """A consumer's process id; there is none for a moment while it is restarted."""
        file = Path(self._facts["consumers"][name]["pid_file"])
        poll(file.exists, f"the pid file of {name}", timeout=20, because=self._demo.tell)
        return int(file.read_text())

    def _answer(self, version: Version, topic: str) -> str:
        return answer_to(*self._at, (version.username, version.password), topic)

    def _secret(self, part: str, name: str) -> str:
        return Path(self._facts[part][name]).read_text().strip()

    def _known(self) -> dict[str, str]:
        """Every secret of the demo that can be known, by a name that may be shown."""
        folder = self._demo.home / "secrets"
        known = {file.name: file.read_text().strip() for file in folder.iterdir()}
        for name, key in self._facts["keys"].items():
            for version in self._vault.all(key["vault_path"]):
                known[f"version {version.number} of {name}"] = version.password
        return known

    def _places(self) -> dict[str, bytes]:
        """Everything that the daemon and its neighbours show, by name."""
        daemon = self._facts["daemon"]
        places: dict[str, bytes] = {}
        for path in ("/metrics", "/api/keys", *(f"/api/keys/{key}" for key in self._facts["keys"]), "/api/rotations"):
            answer = httpx.get(daemon["url"] + path, timeout=10)
            assert answer.status_code == 200, f"{path} answered {answer.status_code}"
            places[path] = answer.content
        for file in self._demo.home.rglob("*"):  # rotator.log, the journal, the configuration, the consumers' output
            inside = file.relative_to(self._demo.home).parts[0]
            if file.is_file() and inside not in {"secrets", "vault"}:  # a `bao` in dev mode prints its root token
                places[str(file.relative_to(self._demo.home))] = file.read_bytes()
        below_the_daemon = {one.pid for one in family_of(daemon["pid"])}
        for process, look in self._demo.seen.items():
            places[f"the command line of {process.pid}"] = look.cmdline
            if process.pid in below_the_daemon or look.parent == daemon["pid"]:
                places[f"the environment of {process.pid}"] = look.environ
        return places
