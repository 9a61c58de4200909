"""An Iotistica cloud on 127.0.0.1, as far as "Authentication" (seed 002) and platforms.md show one; both generations.

    with IotisticaPlatform(generation=Generation.SOURCE, on_change=tell_the_broker, publish=broker.publish) as platform:
        agent, key = platform.add_agent("gateway-01")
        ... url=platform.url, login=platform.email, password=platform.password

What may go wrong: `platform.faults = Faults(operations=frozenset({"create_api_key"}), status=503)` for the transport,
`platform.answer = IotisticaAnswer.SILENT` for what the calls that issue do and tell, and the attributes of
`platform.state`, `platform.desk` and `platform.api` for what document and server say differently.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final, Self

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rotator.sandbox.faults import Cut, Faults, TransportFault
from rotator.sandbox.iotistica_api import Call, IotisticaApi
from rotator.sandbox.iotistica_login import LoginDesk, Turnstile
from rotator.sandbox.iotistica_rows import Agent, ApiKey, Generation, IotisticaAnswer, MqttUser, Refusal, User
from rotator.sandbox.iotistica_state import IotisticaState, OnChange, Publish, rotation_topic
from rotator.sandbox.web_server import CutConnection, WebServer

__all__ = ["Cut", "Faults", "Generation", "IotisticaAnswer", "IotisticaPlatform", "Seen", "rotation_topic"]

# method, path below /api/v1 → operation; what only one generation has
BOTH: Final = (
    ("POST", "/auth/login", "login"),
    ("POST", "/auth/refresh", "refresh"),
    ("GET", "/agents", "list_agents"),
    ("GET", "/device/{id}/state", "device_state"),
    ("POST", "/device/{id}/rotate-key", "rotate_key"),
    ("GET", "/auth/api-keys", "list_api_keys"),
    ("POST", "/auth/api-keys", "create_api_key"),
    ("DELETE", "/auth/api-keys/{id}", "revoke_api_key"),
    ("GET", "/auth/mqtt-users", "list_mqtt_users"),
    ("POST", "/auth/mqtt-users", "create_mqtt_user"),
    ("PUT", "/auth/mqtt-users/{id}", "update_mqtt_user"),
    ("DELETE", "/auth/mqtt-users/{id}", "delete_mqtt_user"),
    ("POST", "/auth/mqtt-users/{id}/acls", "add_access"),
)
OWN: Final = {
    Generation.DOCUMENT: (
        ("POST", "/provision/keys", "create_provisioning_key"),
        ("POST", "/provision/agent", "register"),
    ),
    Generation.SOURCE: (
        ("GET", "/provisioning-keys", "list_provisioning_keys"),
        ("POST", "/provisioning-keys", "create_provisioning_key"),
        ("DELETE", "/provisioning-keys/{id}", "revoke_provisioning_key"),
        ("POST", "/agent/register", "register"),
    ),
}
SIGN_IN: Final = "<!doctype html><title>Sign in</title>"
CREATING: Final = frozenset({"create_api_key", "create_mqtt_user", "create_provisioning_key", "add_access"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One request that arrived: when, what it asked for ("" for no such route), of whom, and its body."""

    at: datetime
    operation: str
    id: str = ""
    body: object = field(repr=False, default=None)


class IotisticaPlatform:
    """The platform over HTTP, with one admin.

    `start` and `stop` may be called in turn: the address and everything the platform knows stay. As a context manager
    it starts and stops.

    Args:
        generation: whether it speaks as the document or as the server's source.
        on_change: told of `live()` (MQTT usernames → passwords) inside each call that changes it, before its answer
            goes out, and when a cache has run out.
        publish: told of what the platform sends over MQTT: topic, payload.
        now: the platform's clock, also that of its `Date` header and its tokens.
        limits: whether the documents' rate limits are kept.

    Attributes:
        faults, answer: what goes wrong.
        retry_after_header: a 429 has the header beside the body's text.
        html: operations that take place and are answered by a proxy's sign-in page, with 200.
        state, desk, turnstile, api: the platform's parts, with switches of their own.
    """

    def __init__(
        self,
        *,
        generation: Generation = Generation.DOCUMENT,
        on_change: OnChange | None = None,
        publish: Publish | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        limits: bool = True,
    ) -> None:
        self.now = now
        self.generation = generation
        self.state = IotisticaState(generation=generation, now=lambda: self.now(), on_change=on_change, publish=publish)
        self.desk = LoginDesk(generation=generation, now=lambda: self.now())
        self.turnstile = Turnstile(lambda: self.now())
        if not limits:
            self.turnstile.limits = {}
        self.username, self.email, self.password = "admin", "admin@example.com", secrets.token_hex(8)
        self.desk.users.append(User(username=self.username, email=self.email, password=self.password))
        self.faults = Faults(operations=frozenset())
        self.answer = IotisticaAnswer.NORMAL
        self.retry_after_header = True
        self.html: frozenset[str] = frozenset()
        self.api = IotisticaApi(self.state, self.desk, self.turnstile)
        self._routes = [
            (method, re.compile(f"/api/v1{path.replace('{id}', '(?P<id>[^/]+)')}"), operation)
            for method, path, operation in (*BOTH, *OWN[generation])
        ]
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        self._server = WebServer(Starlette(routes=[Route("/{path:path}", self._serve, methods=methods)]))
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._stopping = threading.Event()
        self._timers: list[threading.Timer] = []

    # --- for tests and the demo ---------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return self._server.url

    @property
    def login(self) -> str:
        """The admin's name, as this generation's login takes it."""
        return self.email if self.generation is Generation.DOCUMENT else self.username

    @property
    def seen(self) -> list[Seen]:
        """All requests so far, oldest first."""
        with self._lock:
            return list(self._seen)

    def count(self, operation: str) -> int:
        """How many requests asked for this operation, refused and cut ones included."""
        return Counter(seen.operation for seen in self.seen)[operation]

    def live(self) -> dict[str, str]:
        """MQTT usernames → passwords that let somebody in now."""
        return self.state.live()

    def add_agent(self, name: str, **more: str) -> tuple[Agent, str]:
        """A registered device, with its key."""
        return self.state.register(name, **more)

    def add_key(self, name: str, *, agent: str = "", **more: Any) -> ApiKey:
        """An API key that somebody made by hand; its `key` is the MQTT username of its agent (a uuid)."""
        return self.state.create_api_key(name, agent=agent, **more)

    def add_mqtt_user(self, username: str, password: str, **flags: bool) -> MqttUser:
        """An MQTT user."""
        return self.state.create_mqtt_user(username, password, **flags)

    def licence(self) -> str:
        """The licence, a signed JWT."""
        ends = int(self.state.licence_ends_at.timestamp())
        return self.desk.signer.sign({"sub": "customer", "maxDevices": self.state.device_limit, "exp": ends})

    def end_sessions(self) -> None:
        """No token that was given so far counts any more."""
        self.desk.signer = type(self.desk.signer)()

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Serve."""
        self._stopping.clear()
        self._server.start()
        return self

    def stop(self) -> None:
        """Close the port; what the platform knows stays."""
        self._stopping.set()
        for timer in self._timers:
            timer.cancel()
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # --- HTTP ---------------------------------------------------------------------------------------------------

    async def _serve(self, request: Request) -> Response:
        content = await request.body()
        try:
            body = json.loads(content) if content else None
        except ValueError:
            body = content
        call = Call(
            operation="",
            id="",
            query=dict(request.query_params),
            headers=dict(request.headers.items()),
            body=body,
        )
        return await run_in_threadpool(self._respond, self._routed(request.method, request.url.path, call))

    def _routed(self, method: str, path: str, call: Call) -> Call:
        for known, pattern, operation in self._routes:
            found = pattern.fullmatch(path)
            if known == method and found is not None:
                return call.of(operation, found.groupdict().get("id", ""))
        return call.of("", f"{method}:{path}")

    def _respond(self, call: Call) -> Response:
        fault = self._note(call)
        self._stopping.wait(fault.latency_before)
        if fault.cut is Cut.BEFORE_EFFECT:
            return CutConnection()
        if fault.prevents_effect:
            return self._plain(fault)
        try:
            status, answer = (201 if call.operation in CREATING else 200), self.api.answer(call, self.answer)
        except Refusal as refusal:
            status, answer = refusal.status, refusal.body
        self._follow_the_caches()
        self._stopping.wait(fault.latency_after)
        if fault.cut is Cut.AFTER_EFFECT:
            return CutConnection()
        if fault.status is not None:
            return self._plain(fault)
        if call.operation in self.html or fault.content_type is not None:
            return Response(SIGN_IN, media_type="text/html", headers=self._headers(None))
        headers = self._headers(str(answer["retryAfter"]) if "retryAfter" in answer else None)
        content = json.dumps(answer).encode()
        content = content[: len(content) // 2] if fault.truncate else content
        return Response(content, status_code=status, media_type="application/json", headers=headers)

    def _follow_the_caches(self) -> None:
        """Have the broker told again when what a cache still holds has run out."""
        for wait in self.state.taken_waits():
            timer = threading.Timer(wait + 0.01, self.state.announce)
            timer.daemon = True
            self._timers.append(timer)
            timer.start()

    def _note(self, call: Call) -> TransportFault:
        with self._lock:
            self._seen.append(Seen(at=self.now(), operation=call.operation, id=call.id, body=call.body))
            faults = self.faults
            hit = not faults.operations or call.operation in faults.operations
            if not hit or faults.times == 0:
                return TransportFault()
            fault = TransportFault.of(faults)
            if faults.times is not None and fault != TransportFault():
                faults.times -= 1
            return fault

    def _plain(self, fault: TransportFault) -> Response:
        if fault.status == 429:
            body = {"error": "Too many requests", "message": "Rate limit exceeded.", "retryAfter": fault.retry_after}
            content = json.dumps(body).encode()
            headers = self._headers(fault.retry_after)
            return Response(content, status_code=429, media_type="application/json", headers=headers)
        return Response("not now", status_code=fault.status or 500, headers=self._headers(fault.retry_after))

    def _headers(self, retry_after: str | None) -> Mapping[str, str]:
        date = {"Date": format_datetime(self.now().astimezone(UTC), usegmt=True)}
        return date | ({"Retry-After": retry_after} if retry_after and self.retry_after_header else {})
