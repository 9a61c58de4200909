"""A reader of one secret that keeps a diary: its own word of when it was told to restart, was away, and came back.

    python -m acceptance.canary_reader --name edge-1 --diary FILE --vault URL --token-file FILE --path mqtt/x \
        --broker 127.0.0.1:1883 [--broken FILE]

It reads Vault once, at its start, logs in at the broker, and stays until SIGTERM. While the file of `--broken` is
there, it comes up only as the username that stands in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from rotator.sandbox.consumer import Credentials, read_vault

TOLD, AWAY, ON, LOST = "told", "away", "on", "lost"  # what a diary tells
PATIENCE = 15.0  # seconds for an answer of the broker's


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a diary: the wall clock in seconds, what happened, and the version of Vault's, where there is one."""

    at: float
    what: str
    version: int | None = None


class Diary:
    """A file that its consumer alone writes; thread safe."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def note(self, what: str, version: int | None = None) -> None:
        """Write down what happens now."""
        line = json.dumps({"at": time.time(), "what": what, "version": version})
        with self._lock, self._file.open("a") as file:
            file.write(line + "\n")

    def entries(self) -> list[Entry]:
        """All of it, the oldest first; a line that is being written is left for the next look."""
        with contextlib.suppress(FileNotFoundError):
            lines = self._file.read_text().splitlines(keepends=True)
            return [Entry(**json.loads(line)) for line in lines if line.endswith("\n")]
        return []

    def times(self, what: str) -> list[float]:
        """When this happened."""
        return [entry.at for entry in self.entries() if entry.what == what]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a secret is read, and where it is used."""

    vault: str
    token: str
    path: str
    host: str
    port: int

    def secret(self) -> Credentials:
        """What Vault holds now."""
        return read_vault(self.vault, self.token, self.path)


class Reader:
    """One client at the broker, with the secret that Vault held when it came."""

    def __init__(self, name: str, diary: Diary, place: Place) -> None:
        self._name, self._diary, self._place = name, diary, place
        self._client: paho.Client | None = None
        self.version: int | None = None  # on which it is; None while it is away

    def come(self) -> None:
        """Read Vault, and log in at the broker.

        Raises: OSError, KeyError: Vault; AssertionError: the broker does not let it in.
        """
        secret, answered = self._place.secret(), queue.SimpleQueue[ReasonCode]()
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"{self._name}-1",
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.username_pw_set(secret.username, secret.password)
        client.on_connect = lambda _client, _data, _flags, code, _rest: answered.put(code)
        client.on_disconnect = self._ended
        self._client = client
        client.connect(self._place.host, self._place.port)
        client.loop_start()
        code = answered.get(timeout=PATIENCE)
        assert code == 0, f"{self._name} is not let in: {code}"
        self.version = secret.version
        self._diary.note(ON, secret.version)

    def go(self) -> None:
        """Leave the broker; may be repeated."""
        client, self._client, self.version = self._client, None, None
        if client is not None:
            self._diary.note(AWAY)
            client.disconnect()
            client.loop_stop()

    def newest(self) -> int:
        """The version that Vault holds now."""
        return self._place.secret().version

    def say(self, topic: str, text: str) -> None:
        """Publish over the same session."""
        if (client := self._client) is not None:
            client.publish(topic, text)

    def _ended(self, client: paho.Client, *_rest: object) -> None:
        if client is self._client:  # `go` has not asked for it
            self._diary.note(LOST, self.version)


def _run(name: str, diary: Diary, place: Place, broken: Path | None) -> int:
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.put(number))
    reader = Reader(name, diary, place)
    only = broken.read_text() if broken is not None and broken.exists() else None
    if only in {None, place.secret().username}:
        reader.come()
    asked.get()  # one that does not come up is there all the same, and can be restarted
    diary.note(TOLD)
    reader.go()
    return 0


def main() -> int:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser()
    for each in ("--name", "--vault", "--path", "--broker"):
        parser.add_argument(each, required=True)
    parser.add_argument("--diary", required=True, type=Path)
    parser.add_argument("--token-file", required=True, type=Path)
    parser.add_argument("--broken", type=Path)
    options = parser.parse_args()
    host, _, port = options.broker.rpartition(":")
    token = options.token_file.read_text().strip()
    place = Place(vault=options.vault, token=token, path=options.path, host=host, port=int(port))
    return _run(options.name, Diary(options.diary), place, options.broken)


if __name__ == "__main__":
    sys.exit(main())
