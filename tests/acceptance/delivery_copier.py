"""Hands on what Vault holds, some seconds late: a process between Vault and what reads the copies.

VAULT_ADDR=… python delivery_copier.py --delay 60 --token-file vault.token --records records PATH=FILE …

The version that is there at its start is handed on at once.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from acceptance.delivery_records import note, write_copy
from rotator.sandbox.consumer import Credentials, read_vault

LOOK = 0.1  # seconds


class Copy:
    """One path, and the file that it is copied to."""

    def __init__(self, path: str, file: Path, delay: float, records: Path) -> None:
        self.path, self._file, self._delay, self._records = path, file, delay, records
        self._known = 0
        self._waiting: list[tuple[float, Credentials]] = []

    def seen(self, held: Credentials) -> None:
        """Vault holds this now."""
        if held.version != self._known:
            self._waiting.append((time.monotonic() + (self._delay if self._known else 0), held))
            self._known = held.version

    def hand_on(self) -> None:
        """Write what has waited for long enough."""
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            held = self._waiting.pop(0)[1]
            note(self._records, "handed", self.path, held)  # before: nobody can have read it earlier
            write_copy(self._file, held)


def main() -> None:
    """Until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, required=True)
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("copies", nargs="+", metavar="PATH=FILE")
    options = parser.parse_args()
    token = options.token_file.read_text().strip()
    pairs = [copy.split("=", 1) for copy in options.copies]
    copies = [Copy(path, Path(file), options.delay, options.records) for path, file in pairs]
    while True:
        for copy in copies:
            copy.seen(read_vault(os.environ["VAULT_ADDR"], token, copy.path))
            copy.hand_on()
        time.sleep(LOOK)  # it looks as copiers do, at intervals


if __name__ == "__main__":
    main()
