"""Stands between the daemon and Vault: holds, refuses and cuts requests, and shifts the clock of the answers."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from enum import StrEnum
from typing import Final, Self

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rotator.sandbox.web_server import CutConnection, WebServer

METHODS: Final = ["GET", "POST", "PUT", "LIST", "DELETE"]
LONGEST: Final = 60.0  # seconds that a request is held
# What stands in a request's path → the operation that `rotator_vault_requests_total` counts it as: (reading, changing)
_OPERATIONS: Final[Mapping[str, tuple[str, str]]] = {
    "/sys/health": ("health", "health"),
    "/sys/capabilities-self": ("capabilities", "capabilities"),
    "/sys/internal/ui/mounts/": ("mounts", "mounts"),
    "/auth/token/lookup-self": ("lookup", "lookup"),
    "/auth/token/renew-self": ("renew", "renew"),
    "/login": ("login", "login"),
    "/data/": ("read", "write"),
    "/metadata/": ("metadata", "annotate"),
    "/undelete/": ("undelete", "undelete"),
    "/config": ("config", "config"),
}


class Cut(StrEnum):
    """What of an answer does not come through."""

    NOTHING = "nothing"
    REQUEST = "request"  # Vault never hears of it
    ANSWER = "answer"  # Vault did what was asked
    HALF = "half"  # … and the first half of its JSON arrives, well framed


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What one request gets instead of Vault's answer."""

    status: int | None = None  # without asking Vault
    retry_after: int | None = None  # seconds, beside `status`
    cut: Cut = Cut.NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request that was answered: when it came and when it was answered (monotonic seconds), and how (0: cut)."""

    came: float
    answered: float
    operation: str
    about: str = field(repr=False)  # path and body
    status: int
    fault: Fault | None


class FaultyVault:
    """Forwards all requests to `upstream`, but for the faults that were given. Use it as a context manager.

    Attributes:
        shift: added to the `Date` of all answers.
        token: the last Vault token that came by.
    """

    def __init__(self, upstream: str) -> None:
        self._client = httpx.Client(base_url=upstream, timeout=10)
        self._server = WebServer(Starlette(routes=[Route("/{path:path}", self._serve, methods=METHODS)]))
        self._changed = threading.Condition()
        self._closed: set[str] = set()
        self._waiting: Counter[str] = Counter()
        self._faults: dict[tuple[str, str], list[Fault]] = {}
        self._seen: list[Seen] = []
        self.shift = timedelta(0)
        self.token = ""

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._server.url

    def close(self, operation: str) -> None:
        """Hold the requests of this operation from now on."""
        with self._changed:
            self._closed.add(operation)

    def open(self, operation: str) -> None:
        """Let those that are held go on, and the next ones pass."""
        with self._changed:
            self._closed.discard(operation)
            self._changed.notify_all()

    def waiting(self, operation: str) -> int:
        """How many requests are held."""
        with self._changed:
            return self._waiting[operation]

    def give(self, operation: str, *faults: Fault, to: str = "") -> None:
        """Let the next requests of this operation that name `to` meet these faults, one each."""
        with self._changed:
            self._faults.setdefault((operation, to), []).extend(faults)

    def left(self) -> int:
        """How many faults nobody has met yet."""
        with self._changed:
            return sum(map(len, self._faults.values()))

    def seen(self, operation: str, about: str = "") -> list[Seen]:
        """The answered requests of an operation, those that name `about`, oldest first."""
        with self._changed:
            return [seen for seen in self._seen if seen.operation == operation and about in seen.about]

    def refusals(self) -> Counter[tuple[str, str]]:
        """How often a status was answered without asking Vault, by operation and status."""
        with self._changed:
            refused = [seen for seen in self._seen if seen.fault is not None and seen.fault.status is not None]
            return Counter((seen.operation, str(seen.status)) for seen in refused)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with self._changed:
            self._closed.clear()
            self._changed.notify_all()
        self._server.stop()
        self._client.close()

    async def _serve(self, request: Request) -> Response:
        body = await request.body()
        return await run_in_threadpool(self._answer, request, body)

    def _answer(self, request: Request, body: bytes) -> Response:
        came = time.monotonic()
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        operation, about = _operation(request.method, path), f"{path} {body.decode()}"
        fault = self._met(operation, about, request.headers.get("x-vault-token", ""))
        response = self._made(request, path, body, fault or Fault())
        status = 0 if isinstance(response, CutConnection) else response.status_code
        seen = Seen(came=came, answered=time.monotonic(), operation=operation, about=about, status=status, fault=fault)
        with self._changed:
            self._seen.append(seen)
        return response

    def _met(self, operation: str, about: str, token: str) -> Fault | None:
        """Wait while the operation is held; then the first fault that is meant for this request."""
        with self._changed:
            self.token = token or self.token
            self._waiting[operation] += 1
            self._changed.wait_for(lambda: operation not in self._closed, LONGEST)
            self._waiting[operation] -= 1
            for (of, to), faults in self._faults.items():
                if of == operation and to in about and faults:
                    return faults.pop(0)
        return None

    def _made(self, request: Request, path: str, body: bytes, fault: Fault) -> Response:
        if fault.status is not None:
            delay = {"Retry-After": str(fault.retry_after)} if fault.retry_after is not None else {}
            headers = {"Date": self._date(datetime.now(UTC)), **delay}
            return Response('{"errors":["not now"]}', fault.status, headers, "application/json")
        if fault.cut is Cut.REQUEST:
            return CutConnection()
        headers = {name: value for name, value in request.headers.items() if name.startswith(("x-vault", "content-t"))}
        try:
            answer = self._client.request(request.method, path, content=body, headers=headers)
        except httpx.TransportError:
            return CutConnection()
        if fault.cut is Cut.ANSWER:
            return CutConnection()
        kept = {name: answer.headers[name] for name in ("content-type", "retry-after") if name in answer.headers}
        kept["Date"] = self._date(parsedate_to_datetime(answer.headers["date"]))
        content = answer.content[: len(answer.content) // 2] if fault.cut is Cut.HALF else answer.content
        return Response(content, status_code=answer.status_code, headers=kept)

    def _date(self, moment: datetime) -> str:
        return format_datetime((moment + self.shift).astimezone(UTC), usegmt=True)


def _operation(method: str, path: str) -> str:
    reading, changing = next((names for part, names in _OPERATIONS.items() if part in path), ("other", "other"))
    return reading if method == "GET" else changing
