"""The reserved way out when the journal can't be written: a sealed, fsynced file beside it (rule 1).

Room is reserved on disk before the issue call, so that a full disk can't take the answer; at the next start what lies
here goes back into the journal.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from rotator.journal.seal import sync_directory
from rotator.journal.sqlite import Blob
from rotator.rotation import Rotation

log = structlog.get_logger(__name__)

RESERVED_BYTES = 64 * 1024
_TRIAL = "trial"  # no rotation's id
IDLE_ROOMS = 8  # as many rotations as issue at one time, or so
_ROTATION = TypeAdapter(Rotation)
_BLOB = TypeAdapter(Blob)


class Spool:
    """Sealed records that wait for the journal, one file a rotation."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: set[str] = set()  # what this process has set room aside for
        self._idle: list[
            Path
        ] = []  # room that rotations gave back, for the next ones: cheaper than to ask the disk anew
        self._spooled: set[str] = set()  # what this process has written
        self.refused = ""  # why there was no room when it was last asked for; empty where there was

    def reserve(self, rotation: str) -> None:
        """Set room aside.

        Raises: OSError where the disk has none; nothing was issued then.
        """
        if rotation in self._held:
            return
        with suppress(IndexError, OSError):  # none is idle, or somebody tidied up
            self._idle.pop().rename(self._reserved(rotation))
            self._held.add(rotation)
            return
        try:
            self._set_aside(rotation)
        except OSError as exc:
            self.refused = f"no room can be set aside in {self._directory}: {exc.strerror or exc}"
            raise
        self.refused = ""
        self._held.add(rotation)

    def _set_aside(self, rotation: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._reserved(rotation), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVED_BYTES)
        finally:
            os.close(descriptor)

    def try_reserving(self) -> None:
        """See whether there is room now.

        Raises: OSError.
        """
        self.reserve(_TRIAL)
        self.release(_TRIAL)

    def holds(self, rotation: str) -> bool:
        """Whether this process has set room aside for it and not given it back."""
        return rotation in self._held

    def sweep(self) -> None:
        """Give back what processes that died had set aside; the next call sets room aside anew."""
        for path in self._directory.glob("*.reserved"):
            path.unlink(missing_ok=True)

    def release(self, rotation: str) -> None:
        """Give the room back, and drop what was spooled: the journal holds it."""
        if rotation in self._held and rotation not in self._spooled and len(self._idle) < IDLE_ROOMS:
            self._held.discard(rotation)
            idle = self._reserved(f"idle-{rotation}")
            with suppress(OSError):
                self._reserved(rotation).rename(idle)
                self._idle.append(idle)
            return
        self._held.discard(rotation)
        self._spooled.discard(rotation)
        written = self._written(rotation).exists()
        for path in (self._reserved(rotation), self._written(rotation)):
            path.unlink(missing_ok=True)
        if written:
            sync_directory(self._directory)

    def write(self, rotation: Rotation, data_key: bytes, blob: Blob) -> bool:
        """Keep a sealed record; False when the disk refuses even that."""
        document = {
            "rotation": _ROTATION.dump_python(rotation, mode="json"),
            "data_key": base64.b64encode(data_key).decode(),
            "at": blob.at.isoformat(),
            "sealed": base64.b64encode(blob.sealed).decode(),
        }
        reserved = self._reserved(rotation.id)
        self._spooled.add(rotation.id)
        try:
            descriptor = os.open(reserved, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                # over the reserved blocks, and only then cut to size: a full disk has nothing to refuse
                file.write(json.dumps(document).encode())
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            reserved.rename(self._written(rotation.id))
            sync_directory(self._directory)
        except OSError as exc:
            log.critical("spool_unwritable", error=str(exc))
            return False
        return True

    def waiting(self) -> Iterator[tuple[Rotation, bytes, Blob]]:
        """What was spooled and has not been taken back into the journal."""
        for path in sorted(self._directory.glob("*.sealed")) if self._directory.is_dir() else []:
            try:
                document = json.loads(path.read_bytes())
                yield (
                    _ROTATION.validate_python(document["rotation"]),
                    base64.b64decode(document["data_key"]),
                    _BLOB.validate_python({"at": document["at"], "sealed": base64.b64decode(document["sealed"])}),
                )
            except (OSError, ValueError, TypeError, KeyError, ValidationError) as exc:
                log.critical("spool_unreadable", file=str(path), error=type(exc).__name__)

    def _reserved(self, rotation: str) -> Path:
        return self._directory / f"{rotation}.reserved"

    def _written(self, rotation: str) -> Path:
        return self._directory / f"{rotation}.sealed"
