"""A consumer that reads a copy of its secret: at its start, or, with `--follow`, whenever the copy has changed.

It notes what it runs on: `began` with what it has read, `connected`, `refused` and `lost` at the broker. A refused
login does not end it: it goes on with what it has read, so that only a restart (or a changed copy) brings it another.
"""

from __future__ import annotations

import argparse
import queue
import signal
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from acceptance.delivery_records import note, read_copy
from rotator.sandbox.consumer import Credentials


class Connection:
    """One login, tried again and again."""

    def __init__(self, name: str, broker: tuple[str, int], held: Credentials, records: Path) -> None:
        self.held, self._name, self._records = held, name, records
        note(records, "began", name, held)
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name)
        self._client.username_pw_set(held.username, held.password)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._in = False
        self._client.connect_async(*broker)
        self._client.loop_start()

    def beat(self) -> None:
        """Publish a heartbeat, once it was let in."""
        if self._in:
            self._client.publish(f"heartbeat/{self._name}", str(self.held.version))

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, _client: mqtt.Client, _data: Any, _flags: Any, code: ReasonCode, _rest: Any) -> None:
        self._in = code == 0
        note(self._records, "connected" if self._in else "refused", self._name, self.held)

    def _disconnected(self, _client: mqtt.Client, _data: Any, _flags: Any, _code: ReasonCode, _rest: Any) -> None:
        if self._in:
            self._in = False
            note(self._records, "lost", self._name, self.held)


def main() -> None:
    """Until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("copy", type=Path)
    parser.add_argument("--broker", required=True, metavar="HOST:PORT")
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--heartbeat", action="store_true")
    options = parser.parse_args()
    host, _, port = options.broker.rpartition(":")
    ends: queue.SimpleQueue[None] = queue.SimpleQueue()
    signal.signal(signal.SIGTERM, lambda *_: ends.put(None))
    connection = Connection(options.name, (host, int(port)), read_copy(options.copy), options.records)
    while True:
        try:
            ends.get(timeout=0.1)
            break
        except queue.Empty:
            pass
        if options.follow and (now := read_copy(options.copy)) != connection.held:
            connection.close()
            connection = Connection(options.name, (host, int(port)), now, options.records)
        if options.heartbeat:
            connection.beat()
    connection.close()


if __name__ == "__main__":
    main()
