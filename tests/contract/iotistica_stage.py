"""What the tests of the Iotistica provider share: providers built from settings, and clouds that answer by script."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

import httpx

from rotator.clock import SystemClock
from rotator.model import RequestDone
from rotator.ports import Reveal
from rotator.providers import PROVIDERS, Site, make_client
from rotator.sandbox.iotistica import IotisticaPlatform
from rotator.secret_refs import EnvRef, SecretRef

MARKER, LATER = "rotator-0123456789ab-1", "rotator-0123456789ab-2"
UUID = "550e8400-e29b-41d4-a716-446655440000"


class AheadClock(SystemClock):
    """The machine's clock, to which a test may add."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class Stage:
    """Builds providers and closes them."""

    def __init__(self) -> None:
        self.clock = AheadClock()
        self.done: list[RequestDone] = []
        self.secrets: dict[str, str] = {}
        self._made: list[Any] = []

    def build(self, resource: str, *, client: httpx.Client | None = None, **settings: Any) -> Any:
        """The provider `plant` for a resource, from its section of the configuration.

        Returns: what the registry makes, whose class depends on the resource.
        """
        kind = PROVIDERS["iotistica"]
        section = {"kind": "iotistica", "resource": resource, "password": {"env": "PASSWORD"}, **settings}
        site = Site(
            name="plant",
            clock=self.clock,
            on_request=self.done.append,
            reveal=self._reveal,
            client=lambda _: client or make_client(),
        )
        provider = kind.build(site, kind.settings.model_validate(section))
        self._made.append(provider)
        return provider

    def on(self, platform: IotisticaPlatform, resource: str, **settings: Any) -> Any:
        """One for a simulator, as its admin."""
        self.secrets["PASSWORD"] = platform.password
        login = {"email": platform.email, "username": platform.username}
        return self.build(resource, **{"url": platform.url, **login, **settings})

    def at(self, cloud: Cloud, resource: str, **settings: Any) -> Any:
        """One for a cloud by script."""
        self.secrets["PASSWORD"] = "your-password"
        usual = {"url": "https://cloud.example", "email": "user@example.com"}
        return self.build(resource, client=cloud.client(), **{**usual, **settings})

    def close(self) -> None:
        """Close them all."""
        for provider in self._made:
            provider.close()

    def _reveal(self, reference: SecretRef) -> Reveal:
        assert isinstance(reference, EnvRef)
        name = reference.env
        return lambda: self.secrets[name]


class Cloud:
    """Answers `"METHOD /path"` (below /api/v1) by script; anything else as a path that there is not.

    A value is the JSON of a 200, or makes (status, JSON or bytes) of the request.
    """

    def __init__(self, script: Mapping[str, object]) -> None:
        self.script: dict[str, object] = {"POST /auth/login": {"accessToken": "eyJhbGci..."}, **script}
        self.requests: list[httpx.Request] = []
        self._lock = threading.Lock()

    def client(self) -> httpx.Client:
        """A client whose requests end here."""
        return httpx.Client(transport=httpx.MockTransport(self._answer))

    def seen(self) -> list[str]:
        """Method and path of all requests."""
        return [_line(request) for request in self.requests]

    def last(self, line: str) -> httpx.Request:
        """The last request of this method and path."""
        return next(request for request in reversed(self.requests) if _line(request) == line)

    def body(self, line: str) -> Any:
        """The JSON of the last request of this method and path; None where it had no body."""
        content = self.last(line).content
        return json.loads(content) if content else None

    def _answer(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.requests.append(request)
        line = _line(request)
        answer = self.script.get(line, lambda _: (404, {"error": "Not Found", "message": f"Route {line} not found"}))
        status, content = answer(request) if callable(answer) else (200, answer)
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return httpx.Response(status, content=body)


def _line(request: httpx.Request) -> str:
    return f"{request.method} {request.url.path.removeprefix('/api/v1')}"
