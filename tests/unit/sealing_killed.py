"""Runs `rotate_key` and dies by SIGKILL at the n-th thing that it does to the disk, for n = 1, 2, … until it survives.

    python sealing_killed.py TEMPLATE FOLDER

Each try works on a copy of TEMPLATE, in FOLDER/1, FOLDER/2, …, and in a process of its own. The last copy is that of
the try which came to its end. What counts as a thing: every call that makes, writes, syncs, renames or removes a file,
each statement and the commit of the journal's transaction, and the moments before and after all of that.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

from rotator.journal.database import driver_of
from rotator.journal.sqlite import SqliteJournal
from rotator.sealing import rotate_key
from rotator.settings import FileSeal

WATCHED = ("open", "write", "fsync", "rename", "replace", "unlink", "mkdir")


class Fuse:
    """Kills this process when it has burnt down."""

    def __init__(self, length: int) -> None:
        self._left = length

    def burn(self) -> None:
        """One thing is done; what the journal does on the side is not counted."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, which burns before and after."""

        def wrapper(*args: Any, **more: Any) -> Any:
            self.burn()
            result = call(*args, **more)
            self.burn()
            return result

        return wrapper


def attempt(folder: Path, length: int) -> None:
    """One rotate-key in this process, which may not survive it."""
    with closing(SqliteJournal(f"sqlite:///{folder}/rotator.db")) as journal:
        fuse = Fuse(length)
        for name in WATCHED:
            setattr(os, name, fuse.around(getattr(os, name)))
        assert journal._writer is not None
        driver_of(journal._writer._connection).set_trace_callback(lambda _statement: fuse.burn())
        journal.rewrap = fuse.around(journal.rewrap)  # type: ignore[method-assign]
        rotate_key(FileSeal(path=str(folder / "seal.key")), journal, _no_vault)


def _no_vault() -> Any:
    raise AssertionError("a key file asks no Vault")


def main(template: Path, folder: Path) -> None:
    """Try after try."""
    for number in count(1):
        copy = folder / str(number)
        shutil.copytree(template, copy)
        child = os.fork()
        if child == 0:
            attempt(copy, number)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            raise SystemExit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
