"""An answer that never ends is given up, however it is packed: memory is bounded, and it has a name."""

from __future__ import annotations

import gzip
import socketserver
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from rotator.clock import SystemClock
from rotator.errors import Transient
from rotator.reasons import Reason
from rotator.stores import TokenAuth, VaultStore
from rotator.stores.vault_wire import LONGEST_ANSWER

HUGE = 20 * LONGEST_ANSWER
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def server(*parts: bytes, times: int = 1) -> Iterator[str]:
    """Answers every request with these bytes, the last of them many times."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            try:
                for part in parts[:-1]:
                    self.request.sendall(part)
                for _ in range(times):
                    self.request.sendall(parts[-1])
            except OSError:
                pass  # the other side has given up, as it should

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as made:
        made.daemon_threads = True
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()
        thread.join()


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_without_end_is_given_up(packed: bool) -> None:
    """Plain, and packed to a thousandth of its size."""
    if packed:
        body = gzip.compress(b'{"data": "' + bytes(HUGE), compresslevel=9)
        parts = (HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    else:
        parts = (HEAD + b"Content-Length: %d\r\n\r\n" % HUGE, bytes(1024 * 1024))
    with server(*parts, times=1 if packed else HUGE // (1024 * 1024)) as url:
        store = VaultStore(
            urls=[url],
            auth=TokenAuth(token=lambda: "made-up"),
            clock=SystemClock(),
            on_request=lambda _: None,
            timeout=timedelta(seconds=20),
        )
        tracemalloc.start()
        try:
            with pytest.raises(Transient) as caught:
                store.read("mqtt/a")
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            store.close()
    assert Reason.VAULT_UNAVAILABLE is caught.value.reason
    assert most < 5 * LONGEST_ANSWER
