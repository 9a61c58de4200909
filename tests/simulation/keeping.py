"""The journal and the spool of a simulated year: in memory, the same for every process that is killed over them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from rotator.journal.spool import Spool
from rotator.journal.sqlite import Blob, Change, Erase, SqliteJournal
from rotator.keys import KeyRecord
from rotator.model import RotationEvent
from rotator.rotation import Rotation
from simulation.world import AFTER, BEFORE, SimClock, World

Saved = Callable[[Rotation, Blob | Erase | None], None]


class SimJournal(SqliteJournal):
    """The real journal; each commit is a point at which something may go wrong."""

    def __init__(self, url: str, world: World, saved: Saved) -> None:
        self._world, self._saved = world, saved
        super().__init__(url)

    def save(
        self,
        *,
        key: str | None = None,
        change: Change | None = None,
        rotation: Rotation | None = None,
        data_key: bytes | None = None,
        blob: Blob | Erase | None = None,
        history: Sequence[RotationEvent] = (),
    ) -> KeyRecord | None:
        name = key or (rotation.key if rotation is not None else "")
        self._world.at("journal.save", BEFORE, name)
        record = super().save(key=key, change=change, rotation=rotation, data_key=data_key, blob=blob, history=history)
        if rotation is not None:
            self._saved(rotation, blob)
        self._world.at("journal.save", AFTER, name)
        return record


class SimSpool(Spool):
    """A spool in memory."""

    def __init__(self, refuses: Callable[[], bool], saved: Saved) -> None:
        super().__init__(Path())
        self._refuses, self._saved = refuses, saved
        self._answers: dict[str, tuple[Rotation, bytes, Blob]] = {}

    def reserve(self, rotation: str) -> None:
        self._held.add(rotation)  # there is always room

    def release(self, rotation: str) -> None:
        self._held.discard(rotation)
        self._answers.pop(rotation, None)

    def write(self, rotation: Rotation, data_key: bytes, blob: Blob) -> bool:
        if self._refuses():
            return False
        self._answers[rotation.id] = (rotation, data_key, blob)
        self._saved(rotation, blob)
        return True

    def sweep(self) -> None:
        """Nothing is ever left behind."""

    def waiting(self) -> Iterator[tuple[Rotation, bytes, Blob]]:
        yield from list(self._answers.values())


class SimStop(threading.Event):
    """The daemon's stop flag; who waits for it passes the world's time, not ours."""

    def __init__(self, clock: SimClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.pass_time(timedelta(seconds=timeout or 0))
        return self.is_set()
