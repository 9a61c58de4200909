"""A Losant platform on 127.0.0.1, as far as "Access Keys" (seed 004) and the REST API's documents show one.

    with LosantPlatform(on_change=tell_the_broker) as platform:
        key, secret = platform.add_key(name="building-a", deviceIds=[new_id()])
        ... Losant(url=platform.url, application=platform.application, token=lambda: platform.token, …)

What may go wrong: `platform.faults = Faults(operations=frozenset({"create"}), status=503)` for the transport, and
`platform.answer = LosantAnswer.UNRESTRICTED` for what the call that makes a key does.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final, Self

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rotator.sandbox.faults import PAGE, Cut, Faults, TransportFault
from rotator.sandbox.losant_state import (
    AccessKey,
    Json,
    LosantAnswer,
    LosantState,
    OnChange,
    Refusal,
    new_id,
)
from rotator.sandbox.web_server import CutConnection, WebServer

__all__ = ["Cut", "Faults", "LosantAnswer", "LosantPlatform", "Seen", "new_id"]

# operation → the scopes one of which its token needs
SCOPES: Final[Mapping[str, frozenset[str]]] = {
    "list": frozenset({"applicationKeys.*", "applicationKeys.get"}),
    "create": frozenset({"applicationKeys.*", "applicationKeys.post"}),
    "get": frozenset({"applicationKey.*", "applicationKey.get"}),
    "patch": frozenset({"applicationKey.*", "applicationKey.patch"}),
    "delete": frozenset({"applicationKey.*", "applicationKey.delete"}),
    "auth": frozenset(),
}
_KEYS: Final = {"GET": "list", "POST": "create"}
_KEY: Final = {"GET": "get", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One request that arrived: when, what it asked for, of which key, and its body (None: no JSON)."""

    at: datetime
    operation: str  # a key of SCOPES
    key_id: str = ""
    body: object = field(repr=False, default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    operation: str
    application: str
    key_id: str
    query: Mapping[str, str]
    body: object = field(repr=False)
    authorization: str = field(repr=False)


class LosantPlatform:
    """The platform over HTTP: one application, and `POST /auth/device`.

    `start` and `stop` may be called in turn: the address and everything the platform knows stay. As a context manager
    it starts and stops.

    Args:
        on_change: told of `live()` (usernames → secrets of active keys) inside each call that changes it, before its
            answer goes out.
        now: the platform's clock, also that of its `Date` header.
    """

    def __init__(
        self, *, on_change: OnChange | None = None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.now = now
        self.state = LosantState(now=lambda: self.now(), on_change=on_change)
        self.faults = Faults(operations=frozenset({"create"}))
        self.answer = LosantAnswer.NORMAL
        self.tokens: dict[str, frozenset[str]] = {}
        self.token = self.add_token("applicationKeys.*", "applicationKey.*")
        keys = "/applications/{application}/keys"
        routes = [
            Route(keys, self._serve, methods=["GET", "POST"]),
            Route(f"{keys}/{{key_id}}", self._serve, methods=["GET", "PATCH", "DELETE"]),
            Route("/auth/device", self._serve, methods=["POST"]),
        ]
        self._server = WebServer(Starlette(routes=routes))
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._stopping = threading.Event()

    # --- for tests and the demo ---------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return self._server.url

    @property
    def application(self) -> str:
        """The application's id."""
        return self.state.application

    @property
    def seen(self) -> list[Seen]:
        """All requests so far, oldest first."""
        with self._lock:
            return list(self._seen)

    def count(self, operation: str) -> int:
        """How many requests asked for this operation, refused and cut ones included."""
        return Counter(seen.operation for seen in self.seen)[operation]

    def live(self) -> dict[str, str]:
        """Usernames → secrets of the keys that let somebody in."""
        return self.state.live()

    def key(self, id: str) -> Json:
        """One key as the API shows it.

        Raises: Refusal.
        """
        return self.state.shown(self.state.key(id))

    def keys(self) -> list[Json]:
        """All keys as the API shows them, oldest first."""
        return self.state.all_shown()

    def add_token(self, *scopes: str) -> str:
        """A new API token with these scopes."""
        token = secrets.token_urlsafe(32)
        self.tokens[token] = frozenset(scopes)
        return token

    def add_key(self, **fields: object) -> tuple[AccessKey, str]:
        """A key that somebody made by hand, with these fields of the POST body.

        Returns: the key (its `id`, and its MQTT username `key`), and its secret.
        """
        made = self.state.create(fields)
        return self.state.key(made["id"]), made["secret"]

    # --- life ---------------------------------------------------------------------------------------------------

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

    # --- HTTP ---------------------------------------------------------------------------------------------------

    async def _serve(self, request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except ValueError:
            body = None
        path = request.path_params
        in_keys = _KEY if "key_id" in path else _KEYS
        call = _Call(
            operation=in_keys.get(request.method, "list") if "application" in path else "auth",
            application=path.get("application", ""),
            key_id=path.get("key_id", ""),
            query=dict(request.query_params),
            body=body,
            authorization=request.headers.get("authorization", ""),
        )
        return await run_in_threadpool(self._respond, call)

    def _respond(self, call: _Call) -> Response:
        fault = self._note(call)
        self._stopping.wait(fault.latency_before)
        if fault.cut is Cut.BEFORE_EFFECT:
            return CutConnection()
        if fault.prevents_effect:
            return self._plain(fault)
        try:
            status, answer = (201 if call.operation == "create" else 200), self._answer(call)
        except Refusal as refusal:
            status, answer = refusal.status, refusal.body
        self._stopping.wait(fault.latency_after)
        if fault.cut is Cut.AFTER_EFFECT:
            return CutConnection()
        if fault.status is not None:
            return self._plain(fault)
        if fault.content_type is not None:
            return Response(PAGE, media_type=fault.content_type, headers=self._date())
        content = json.dumps(answer).encode()
        content = content[: len(content) // 2] if fault.truncate else content
        return Response(content, status_code=status, media_type="application/json", headers=self._date())

    def _answer(self, call: _Call) -> Json:
        """Do it.

        Raises: Refusal.
        """
        if call.operation == "auth":
            return self.state.authenticate_device(call.body)
        self._authorize(call)
        match call.operation:
            case "list":
                return self.state.page(call.query)
            case "create":
                return self.state.create(call.body, self.answer)
            case "get":
                return self.key(call.key_id)
            case "patch":
                return self.state.patch(call.key_id, call.body)
            case _:
                return self.state.delete(call.key_id)

    def _authorize(self, call: _Call) -> None:
        scheme, _, token = call.authorization.partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            raise Refusal(401, "Unauthorized", "Invalid token")
        if not self.tokens[token] & SCOPES[call.operation]:
            raise Refusal(403, "Forbidden", "The token's scope does not allow this")
        if call.application != self.application:
            raise Refusal(404, "NotFound", "Application was not found")

    def _note(self, call: _Call) -> TransportFault:
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

    def _plain(self, fault: TransportFault) -> Response:
        headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
        return Response("not now", status_code=fault.status or 500, headers=self._date() | headers)

    def _date(self) -> dict[str, str]:
        return {"Date": format_datetime(self.now().astimezone(UTC), usegmt=True)}
