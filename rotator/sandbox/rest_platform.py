"""What the sandbox's REST platforms share: routes on a real socket, a record of requests, faults, rate limits.

A platform subclasses `RestPlatform`, hands it a table of routes and says in `answer` what each operation does.
"""

from __future__ import annotations

import json
import math
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from enum import StrEnum
from functools import partial
from typing import Any, Final, Self

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rotator.sandbox.faults import PAGE, Cut, Faults, TransportFault
from rotator.sandbox.web_server import CutConnection, WebServer

Json = dict[str, Any]
OnChange = Callable[[Mapping[str, str]], None]
# method, path with at most `{key_id}` in it, operation
Routes = Sequence[tuple[str, str, str]]
# What every framework that speaks OpenAPI says of a path, or a method, that it does not serve.
NOT_ROUTED: Final[Mapping[int, Json]] = {404: {"detail": "Not Found"}, 405: {"detail": "Method Not Allowed"}}


class PasswordAnswer(StrEnum):
    """What a call that makes a password answers. In all cases there is a new one."""

    NORMAL = "normal"
    NO_PASSWORD = "no_password"  # the answer does not show it
    EMPTY_PASSWORD = "empty_password"
    UNUSABLE_PASSWORD = "unusable_password"  # looks well, but the broker was told of another one

    def known(self, password: str) -> str:
        """What the broker is told of where `password` was made."""
        return new_password() if self is PasswordAnswer.UNUSABLE_PASSWORD else password

    def shown(self, fields: Json, name: str, password: str) -> Json:
        """The answer: `fields`, and the password under `name`."""
        match self:
            case PasswordAnswer.NO_PASSWORD:
                return fields
            case PasswordAnswer.EMPTY_PASSWORD:
                return {**fields, name: ""}
            case _:
                return {**fields, name: password}


class Refusal(Exception):
    """The platform's no: a status, a JSON body and headers."""

    def __init__(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(body))
        self.status, self.body, self.headers = status, body, dict(headers or {})


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One request that arrived: when, what it asked for, of which key, and its body (None: no JSON)."""

    at: datetime
    operation: str
    key_id: str = ""
    body: object = field(repr=False, default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One request, read whole. Names of headers are lower case."""

    operation: str
    key_id: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    body: object = field(repr=False)  # None where there is none, or no JSON that is declared as such


class FixedWindow:
    """At most `most` requests of one caller in each window of `seconds`."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self._seconds = most, seconds
        self._taken: Counter[tuple[str, int]] = Counter()

    def wait(self, caller: str, now: datetime) -> int:
        """Take one; returns 0, or the whole seconds until the next window where none is left."""
        number, into = divmod(now.timestamp(), self._seconds)
        self._taken[caller, int(number)] += 1
        return 0 if self._taken[caller, int(number)] <= self.most else max(1, math.ceil(self._seconds - into))


class RestPlatform:
    """A platform over HTTP. `start` and `stop` may be called in turn: the address and all that it knows stay.

    As a context manager it starts and stops.

    Args:
        routes: what it serves; all else is answered with 404 or 405.
        changing: the operation that `faults` hit unless they say otherwise.
        now: the platform's clock, also that of its `Date` header.
    """

    def __init__(self, routes: Routes, *, changing: str, now: Callable[[], datetime]) -> None:
        self.now = now
        self.faults = Faults(operations=frozenset({changing}))
        served = [Route(path, partial(self._serve, name), methods=[method]) for method, path, name in routes]
        handlers: Mapping[Any, Any] = dict.fromkeys(NOT_ROUTED, self._not_routed)
        self._server = WebServer(Starlette(routes=served, exception_handlers=handlers))
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._stopping = threading.Event()

    def answer(self, call: Call) -> tuple[int, object]:
        """Do what is asked; returns status and JSON (None: an empty body).

        Raises: Refusal.
        """
        raise NotImplementedError

    def refused(self, status: int) -> object:
        """The JSON body beside a fault's status; None for plain text, as a gateway in front would answer."""
        return None

    # --- for tests and the demo

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return self._server.url

    @property
    def seen(self) -> list[Seen]:
        """All requests so far, oldest first."""
        with self._lock:
            return list(self._seen)

    def count(self, operation: str) -> int:
        """How many requests asked for this operation, refused and cut ones included."""
        return Counter(seen.operation for seen in self.seen)[operation]

    def start(self) -> Self:
        """Serve."""
        self._stopping.clear()
        self._server.start()
        return self

    def stop(self) -> None:
        """Close the port; what the platform knows stays."""
        self._stopping.set()
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # --- HTTP

    async def _serve(self, operation: str, request: Request) -> Response:
        declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            body = json.loads(await request.body()) if declared == "application/json" else None
        except ValueError:
            body = None
        call = Call(
            operation=operation,
            key_id=request.path_params.get("key_id", ""),
            query=dict(request.query_params),
            headers=dict(request.headers),
            body=body,
        )
        return await run_in_threadpool(self._respond, call)

    def _respond(self, call: Call) -> Response:
        fault = self._note(call)
        self._stopping.wait(fault.latency_before)
        if fault.cut is Cut.BEFORE_EFFECT:
            return CutConnection()
        if fault.prevents_effect:
            return self._failing(fault)
        headers: Mapping[str, str] = {}
        try:
            status, answer = self.answer(call)
        except Refusal as refusal:
            status, answer, headers = refusal.status, refusal.body, refusal.headers
        self._stopping.wait(fault.latency_after)
        if fault.cut is Cut.AFTER_EFFECT:
            return CutConnection()
        if fault.status is not None:
            return self._failing(fault)
        if fault.content_type is not None:
            return Response(PAGE, media_type=fault.content_type, headers=self._date())
        if answer is None:
            return Response(status_code=status, headers={**self._date(), **headers})
        content = json.dumps(answer).encode()
        content = content[: len(content) // 2] if fault.truncate else content
        return Response(content, status_code=status, media_type="application/json", headers={**self._date(), **headers})

    async def _not_routed(self, request: Request, exc: Exception) -> Response:
        status = getattr(exc, "status_code", 404)
        body = json.dumps(NOT_ROUTED[status])
        return Response(body, status_code=status, media_type="application/json", headers=self._date())

    def _note(self, call: Call) -> TransportFault:
        with self._lock:
            self._seen.append(Seen(at=self.now(), operation=call.operation, key_id=call.key_id, body=call.body))
            faults = self.faults
            hit = not faults.operations or call.operation in faults.operations
            if not hit or faults.times == 0:
                return TransportFault()
            fault = TransportFault.of(faults)
            if faults.times is not None and fault != TransportFault():
                faults.times -= 1
            return fault

    def _failing(self, fault: TransportFault) -> Response:
        status = fault.status or 500
        headers = self._date() | ({"Retry-After": fault.retry_after} if fault.retry_after else {})
        body = self.refused(status)
        if body is None:
            return Response("not now", status_code=status, headers=headers)
        return Response(json.dumps(body), status_code=status, media_type="application/json", headers=headers)

    def _date(self) -> dict[str, str]:
        return {"Date": format_datetime(self.now().astimezone(UTC), usegmt=True)}


def new_password() -> str:
    """As long as a platform would make one."""
    return secrets.token_urlsafe(18)


def stamp(moment: datetime) -> str:
    """`2025-11-01T10:00:00Z`, with milliseconds where there are any."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return text.replace(".000Z", "Z")
