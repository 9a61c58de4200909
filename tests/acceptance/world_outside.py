"""Looking at the daemon's world from outside: Vault over HTTP, the broker by MQTT, `/metrics`, and `/proc`.

Nothing here asks the daemon what it did; only its metrics are read, as Prometheus would.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode
from prometheus_client.parser import text_string_to_metric_families

from rotator.mqtt import quick

T = TypeVar("T")
BAD_CREDENTIAL = ("Bad user name or password", "Not authorized")  # return codes 4 and 5 of MQTT 3.1.1
# A JWT, and the tokens of Vault and OpenBao: what nobody knows in advance shows itself by its form.
TOKEN_FORMS = (
    re.compile(rb"eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"),
    re.compile(rb"\b(?:hvs|hvb|s|b)\.[A-Za-z0-9]{24,}"),
)


def poll(look: Callable[[], T | None], what: str, *, timeout: float, because: Callable[[], str] = lambda: "") -> T:
    """Look until the answer is true, and return it; an AssertionError with `because()` when the time is over."""
    deadline = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s in vain for {what}\n{because()}"
        time.sleep(0.1)
    return found


# --- Vault -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a secret as Vault itself tells it."""

    number: int
    username: str
    password: str = field(repr=False)


class VaultReader:
    """Reads KV version 2 below `secret/` over HTTP."""

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.Client(base_url=url, headers={"X-Vault-Token": token}, timeout=10)

    def read(self, path: str, version: int = 0) -> Version:
        """The current version, or the one asked for."""
        answer = self._client.get(f"/v1/secret/data/{path}", params={"version": version})
        assert answer.status_code == 200, f"Vault answered {answer.status_code} for {path}"
        found = answer.json()["data"]
        return Version(
            number=found["metadata"]["version"],
            username=found["data"]["username"],
            password=found["data"]["password"],
        )

    def all(self, path: str) -> list[Version]:
        """All versions, the oldest first."""
        return [self.read(path, number) for number in range(1, self.read(path).number + 1)]

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()


# --- the broker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A message, stamped on its arrival."""

    at: float
    topic: str
    text: str


class Guest:
    """A connection of the test's own, with a client id of its own; a context manager.

    Args:
        login: username and password.
        topic_filter: what to subscribe to once it is let in.

    Attributes:
        answer: the broker's word to CONNECT; "Success" when it was let in.
    """

    def __init__(self, host: str, port: int, login: tuple[str, str], topic_filter: str) -> None:
        self.answer = ""
        self._lines: list[Line] = []
        self._lock = threading.Lock()
        self._answered, self._subscribed = threading.Event(), threading.Event()
        self._granted = False
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"acceptance-{secrets.token_hex(4)}",
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self._client.username_pw_set(*login)
        self._client.on_connect = self._connected
        self._client.on_subscribe = self._suback
        self._client.on_message = self._received
        self._filter = topic_filter
        self._client.connect(host, port)
        self._client.loop_start()
        try:
            assert self._answered.wait(10), "the broker did not answer CONNECT within 10 s"
            if self.answer == "Success":
                assert self._subscribed.wait(10), "the broker did not answer SUBSCRIBE within 10 s"
                assert self._granted, f"the broker refused the subscription to {topic_filter}"
        except AssertionError:
            self.close()
            raise

    def lines(self) -> list[Line]:
        """Everything that came so far, the oldest first."""
        with self._lock:
            return list(self._lines)

    def texts(self) -> list[str]:
        """The payloads of `lines`."""
        return [line.text for line in self.lines()]

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _connected(self, client: mqtt.Client, _data: object, _flags: object, code: object, _rest: object) -> None:
        self.answer = str(code)
        if self.answer == "Success":
            client.subscribe(self._filter)
        self._answered.set()

    def _suback(self, client: mqtt.Client, _data: object, _mid: int, codes: list[ReasonCode], _rest: object) -> None:
        self._granted = not any(code.is_failure for code in codes)
        quick(client.socket())
        self._subscribed.set()

    def _received(self, client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        at = time.time()  # first of all: the gap is measured by it
        with self._lock:
            self._lines.append(Line(at=at, topic=message.topic, text=message.payload.decode()))
        quick(client.socket())  # without it, Nagle's delay adds 40 ms to a line that follows another


def answer_to(host: str, port: int, login: tuple[str, str], topic_filter: str) -> str:
    """The broker's word to a client that comes with this username and password."""
    with Guest(host, port, login, topic_filter) as guest:
        return guest.answer


# --- metrics ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """One reading of `/metrics`."""

    text: str = field(repr=False)
    samples: Mapping[str, list[tuple[Mapping[str, str], float]]] = field(repr=False)

    def values(self, name: str, **labels: str) -> list[float]:
        """The values of all series of this name that have these labels."""
        return [value for have, value in self.samples.get(name, []) if labels.items() <= have.items()]

    def total(self, name: str, **labels: str) -> float | None:
        """The sum over the series; None when there is none."""
        values = self.values(name, **labels)
        return sum(values) if values else None

    def state_of(self, key: str) -> list[str]:
        """The states that a key is shown in."""
        series = self.samples.get("rotator_key_state", [])
        return [labels["state"] for labels, value in series if labels["key"] == key and value == 1]


def scrape(url: str) -> Scrape | None:
    """`/metrics` now; None while nobody answers there."""
    try:
        answer = httpx.get(url, timeout=5)
    except httpx.TransportError:
        return None
    if answer.status_code != 200:
        return None
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return Scrape(text=answer.text, samples=samples)


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its id, and the start time that tells it from a later one of the same id."""

    pid: int
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What /proc showed of a process."""

    process: Process
    parent: int
    cmdline: bytes
    environ: bytes = field(repr=False)
    cwd: str


def processes() -> Iterator[Look]:
    """All processes that run now; one that only waits to be reaped does not."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            state, parent, *rest = (folder / "stat").read_text().rpartition(")")[2].split()
            if state in "ZX":
                continue
            yield Look(
                process=Process(int(folder.name), rest[17]),  # field 22 of proc_pid_stat(5)
                parent=int(parent),
                cmdline=(folder / "cmdline").read_bytes(),
                environ=(folder / "environ").read_bytes(),
                cwd=str((folder / "cwd").readlink()),
            )


def belonging_to(folder: Path, seen: Collection[Process] = ()) -> dict[Process, Look]:
    """What runs and was seen before, or names this folder in its command line, environment or working directory."""
    name = str(folder).encode()
    return {
        look.process: look
        for look in processes()
        if look.process in seen or name in look.cmdline or name in look.environ or name in look.cwd.encode()
    }


def family_of(pid: int) -> dict[Process, Look]:
    """A process and everything that descends from it."""
    by_parent: dict[int, list[Look]] = {}
    found: dict[Process, Look] = {}
    for look in processes():
        by_parent.setdefault(look.parent, []).append(look)
        if look.process.pid == pid:
            found[look.process] = look
    todo = [pid]
    while todo:
        for look in by_parent.get(todo.pop(), []):
            found[look.process] = look
            todo.append(look.process.pid)
    return found


# --- secrets ---------------------------------------------------------------------------------------------------------


def leaks(places: Mapping[str, bytes], known: Mapping[str, str]) -> list[str]:
    """Where a secret is seen: each place, and the name of what it shows (never the secret itself).

    Args:
        places: name → everything that stands there.
        known: name → secret; besides these, whatever has a token's form.
    """
    found = []
    for place, text in places.items():
        found += [f"{name} in {place}" for name, secret in known.items() if secret.encode() in text]
        found += [f"something of a token's form in {place}" for form in TOKEN_FORMS if form.search(text)]
    return found
