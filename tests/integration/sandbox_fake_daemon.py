"""Stands in for the daemon where the demo itself is tested: `run --config FILE`, and `/api/keys` on its `listen`.

The environment variable FAKE_DAEMON says how it behaves: `well`, `dies` (after its first answer), `stubborn` (against
SIGTERM).
"""

from __future__ import annotations

import os
import queue
import re
import signal
import sys
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rotator.sandbox.web_server import WebServer

# Filled from a signal handler, so it must be re-entrant; an Event is not.
END: queue.SimpleQueue[int] = queue.SimpleQueue()
BEHAVIOUR = os.environ.get("FAKE_DAEMON", "well")
ANSWERS: list[None] = []


def keys(request: Request) -> JSONResponse:
    """One key that is rotated from the third answer on."""
    ANSWERS.append(None)
    if BEHAVIOUR == "dies":
        END.put(3)
    rotating = len(ANSWERS) > 2
    key = {
        "name": "building-a",
        "state": "rotating" if rotating else "ok",
        "rotation": {"step": "restart"} if rotating else None,
        "vault": {"path": "mqtt/building-a", "version": 2 if rotating else 1},
    }
    return JSONResponse({"keys": [key]})


def main() -> int:
    """Serve until SIGTERM."""
    config = Path(sys.argv[sys.argv.index("--config") + 1]).read_text()
    found = re.search(r'listen: "127\.0\.0\.1:(\d+)"', config)
    assert found is not None
    signal.signal(signal.SIGTERM, signal.SIG_IGN if BEHAVIOUR == "stubborn" else lambda *_: END.put(0))
    sys.stdout.write("the fake daemon is up\n")
    with WebServer(Starlette(routes=[Route("/api/keys", keys)]), port=int(found[1])):
        code = END.get()
    sys.stdout.write("the fake daemon's last words\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
