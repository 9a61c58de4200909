"""A Haltian IoT platform on 127.0.0.1, as far as "MQTT API Key Management" (seed 000) shows one.

    with HaltianPlatform(lifetime=timedelta(minutes=1), sink=broker) as platform:
        acme = platform.create_organization("acme")
        platform.create_user("operator@acme.example", "made-up", acme)
        key_id, token = platform.add_key("building-a", acme, issued_ago=timedelta(seconds=30))

What a daemon may meet beyond the document is in `faults.Faults`: `platform.faults = Faults(answer=Answer.NULL)`.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Self

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rotator.sandbox.faults import PAGE, Answer, Cut, Faults, TransportFault
from rotator.sandbox.haltian_api import HaltianApi, Json, Question, error
from rotator.sandbox.haltian_state import MQTT_ROLE, Organization, PlatformState, User
from rotator.sandbox.token_sink import ForgetfulSink, TokenSink
from rotator.sandbox.web_server import CutConnection, WebServer

__all__ = ["Answer", "Cut", "Faults", "HaltianPlatform", "Seen"]

PATH = "/v1/graphql"


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One request that arrived: when, and the root fields it asked for (empty: it was not understood)."""

    at: datetime
    fields: tuple[str, ...]


class HaltianPlatform:
    """The platform over HTTP: `POST {url}` with a JSON body `{"query", "variables"}`.

    `start` and `stop` may be called in turn: the address and everything the platform knows stay. As a context manager
    it starts and stops.

    Args:
        sink: the broker that learns of tokens, inside the call that changes them and before its answer goes out.
        lifetime: of a key's token. The document says 90 days.
        access_seconds, refresh_seconds: how long the two tokens of a session live.
        now: the platform's clock, also that of its `Date` header.
    """

    def __init__(
        self,
        *,
        sink: TokenSink | None = None,
        lifetime: timedelta = timedelta(days=90),
        access_seconds: int = 900,
        refresh_seconds: int = 43200,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.now = now
        self.state = PlatformState(
            now=lambda: self.now(),
            sink=sink or ForgetfulSink(),
            lifetime=lifetime,
            access_seconds=access_seconds,
            refresh_seconds=refresh_seconds,
        )
        self._api = HaltianApi(self.state)
        self._server = WebServer(Starlette(routes=[Route(PATH, self._serve, methods=["POST"])]))
        self._lock = threading.Lock()
        self._faults = Faults()
        self._seen: list[Seen] = []
        self._stopping = threading.Event()
        self._watch: threading.Thread | None = None

    # --- for tests and the demo ---------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT/v1/graphql`."""
        return self._server.url + PATH

    @property
    def faults(self) -> Faults:
        """The switches; change them while the platform runs, or put new ones in their place."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults

    @property
    def seen(self) -> list[Seen]:
        """All requests so far, oldest first."""
        with self._lock:
            return list(self._seen)

    def count(self, field: str) -> int:
        """How many requests asked for this root field, refused and cut ones included."""
        return Counter(name for seen in self.seen for name in seen.fields)[field]

    def create_organization(self, name: str) -> Organization:
        """A new organization."""
        return self.state.create_organization(name)

    def create_user(self, email: str, password: str, organization: Organization, *, manager: bool = True) -> User:
        """A new user, or a new password for one; without `manager` no key may be seen or touched."""
        return self.state.create_user(email, password, organization, manager=manager)

    def create_integration(self, organization: Organization, description: str = "sandbox") -> str:
        """A new integration; returns its id."""
        return self.state.create_integration(organization.id, description).id

    def add_key(
        self,
        name: str,
        organization: Organization,
        *,
        issued_ago: timedelta = timedelta(0),
        integration_id: str | None = None,
        role: bool = True,
    ) -> tuple[str, str]:
        """A key as steps 3 to 5 of the document leave it.

        Args:
            name: for people.
            organization: the owner.
            issued_ago: how long ago its token was issued.
            integration_id: the integration to link it to; None makes a new one.
            role: whether it has the role MqttIntegrator.

        Returns: its id, which is its MQTT username, and its token.
        """
        key = self.state.create_key(organization.id, name, issued_at=self.now() - issued_ago)
        if role:
            self.state.assign_role(key.id, organization.id, MQTT_ROLE)
        self.state.link(integration_id or self.create_integration(organization), key.id, organization.id)
        return key.id, key.token

    def current_token(self, key_id: str) -> str:
        """The token that is valid now, whoever learnt of it."""
        return self.state.key(key_id).token

    def integration_of(self, key_id: str) -> str:
        """The id of the integration that the key is linked to; part of its topics."""
        for integration in self.state.integrations(self.state.key(key_id).organization_id):
            if key_id in integration.keys:
                return integration.id
        raise KeyError(key_id)

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Serve."""
        self._stopping.clear()
        self._server.start()
        if self._watch is None:
            self._watch = threading.Thread(target=self._end_expired, name="sandbox-haltian-expiry", daemon=True)
            self._watch.start()
        return self

    def stop(self) -> None:
        """Close the port; what the platform knows stays."""
        self._stopping.set()
        self._server.stop()
        if self._watch is not None:
            self._watch.join(10)
            self._watch = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _end_expired(self) -> None:
        while not self._stopping.wait(0.1):
            self.state.end_expired()

    # --- HTTP ---------------------------------------------------------------------------------------------------

    async def _serve(self, request: Request) -> Response:
        body = await request.body()
        authorization = request.headers.get("authorization")
        return await run_in_threadpool(self._respond, body, authorization)

    def _respond(self, body: bytes, authorization: str | None) -> Response:
        try:
            question = self._api.read(json.loads(body))
        except ValueError:
            question = error("invalid-json", "the body is not JSON")
        fields = question.fields if isinstance(question, Question) else ()
        fault = self._note(fields)
        self._stopping.wait(fault.latency_before)
        if fault.cut is Cut.BEFORE_EFFECT:
            return CutConnection()
        if fault.prevents_effect:
            return self._plain(fault)
        answer = question
        if isinstance(question, Question):
            answer = self._api.answer(question, authorization=authorization, faults=self._faults)
        self._stopping.wait(fault.latency_after)
        if fault.cut is Cut.AFTER_EFFECT:
            return CutConnection()
        if fault.status is not None:
            return self._plain(fault)
        if fault.content_type is not None:
            return Response(PAGE, media_type=fault.content_type, headers=self._date())
        return self._json(answer, truncate=fault.truncate)

    def _note(self, fields: tuple[str, ...]) -> TransportFault:
        with self._lock:
            self._seen.append(Seen(at=self.now(), fields=fields))
            faults = self._faults
            hit = not faults.operations or not faults.operations.isdisjoint(fields)
            if not hit or faults.times == 0:
                return TransportFault()
            fault = TransportFault.of(faults)
            if faults.times is not None and fault != TransportFault():
                faults.times -= 1
            return fault

    def _plain(self, fault: TransportFault) -> Response:
        headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
        return Response("not now", status_code=fault.status or 500, headers=self._date() | headers)

    def _json(self, answer: Json | Question, *, truncate: bool) -> Response:
        content = json.dumps(answer).encode()
        content = content[: len(content) // 2] if truncate else content
        return Response(content, media_type="application/json", headers=self._date())

    def _date(self) -> dict[str, str]:
        return {"Date": format_datetime(self.now().astimezone(UTC), usegmt=True)}
