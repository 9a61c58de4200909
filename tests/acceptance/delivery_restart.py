"""Restart a reader, and note what its copy held at that moment: `delivery_restart.py NAME COPY RECORDS DIRECTORY`.

ROTATOR_VERSION is the version that it was ordered for. DIRECTORY is the supervisor's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from acceptance.delivery_records import note, read_copy
from rotator.sandbox.restart import restart


def main() -> None:
    """The command."""
    name, copy, records, directory = sys.argv[1], *map(Path, sys.argv[2:])
    note(records, "restart", name, read_copy(copy), ordered=int(os.environ["ROTATOR_VERSION"]))
    restart(name, directory, 20)


if __name__ == "__main__":
    main()
