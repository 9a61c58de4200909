"""What the copier, the readers and their restarts note of themselves: one JSON object a line, in one file for all."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from rotator.sandbox.consumer import Credentials

Record = dict[str, Any]


def digest(password: str) -> str:
    """What a record holds in the place of a secret."""
    return hashlib.sha256(password.encode()).hexdigest()[:16]


def note(file: Path, what: str, name: str, held: Credentials, **more: Any) -> None:
    """Append one record, in one write, with the time of now in seconds."""
    record = {"at": time.time(), "what": what, "name": name, "version": held.version, "digest": digest(held.password)}
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (json.dumps({**record, **more}) + "\n").encode())
    finally:
        os.close(descriptor)


def records(file: Path, what: str, name: str, **fields: Any) -> list[Record]:
    """Those of one kind and name, the oldest first."""
    found: list[Record] = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    wanted = {"what": what, "name": name, **fields}.items()
    return [record for record in found if wanted <= record.items()]


def write_copy(file: Path, held: Credentials) -> None:
    """Put what Vault held into a copy, at once and whole."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"username": held.username, "password": held.password, "version": held.version}))
    fresh.chmod(0o600)
    fresh.replace(file)


def read_copy(file: Path) -> Credentials:
    """What a copy holds. Raises: FileNotFoundError."""
    found = json.loads(file.read_text())
    return Credentials(username=found["username"], password=found["password"], version=found["version"])
