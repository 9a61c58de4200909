"""The records that were committed last, so that the engine's reads between two steps cost nothing.

One process writes a journal (its lock file), so what that process committed is what the file holds. Values enter only
by a commit that succeeded, or by a read with no commit since; a failed commit empties the cache.
"""

from __future__ import annotations

import threading
from typing import Final, Generic, TypeVar

T = TypeVar("T")


class Missing:
    """Stands for: ask the file."""


MISSING: Final = Missing()


class Cache(Generic[T]):
    """name → value as committed; None is a value as well: the file holds nothing under this name.

    Args:
        size: how many names are kept; those that were written longest ago go first. 0: a cache that keeps nothing.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._committed: dict[str, T | None] = {}
        self._staged: dict[str, T | Missing | None] = {}
        self._doubted = False
        self._lock = threading.Lock()
        self.generation = 0  # of commits

    # --- for those who read ----------------------------------------------------------------------------------

    def get(self, name: str) -> T | Missing | None:
        """The value as committed last."""
        return self._committed.get(name, MISSING)

    def offer(self, name: str, value: T | None, generation: int) -> None:
        """Take a value that was read from the file after `generation` was looked up; too late after a commit."""
        with self._lock:
            if generation == self.generation:
                self._put(name, value)

    # --- for the transaction under way, one at a time --------------------------------------------------------

    def latest(self, name: str) -> T | Missing | None:
        """The value as the transaction under way sees it."""
        if name in self._staged:
            return self._staged[name]
        return MISSING if self._doubted else self.get(name)

    def stage(self, name: str, value: T | Missing | None) -> None:
        """Written by the transaction under way; MISSING: the file must be asked."""
        self._staged[name] = value

    def doubt(self) -> None:
        """The transaction under way may have changed anything."""
        self._staged.clear()
        self._doubted = True

    def publish(self) -> None:
        """The transaction is committed."""
        if not self._staged and not self._doubted:
            return
        with self._lock:
            self.generation += 1
            if self._doubted:
                self._committed.clear()
            for name, value in self._staged.items():
                self._put(name, value)
            self._staged.clear()
            self._doubted = False

    def clear(self) -> None:
        """The transaction failed, or somebody else wrote the file."""
        self.doubt()
        self.publish()

    def _put(self, name: str, value: T | Missing | None) -> None:
        self._committed.pop(name, None)  # so that the name moves to the end
        if isinstance(value, Missing) or not self._size:
            return
        self._committed[name] = value
        if len(self._committed) > self._size:
            del self._committed[next(iter(self._committed))]
