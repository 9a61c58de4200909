"""Whatever a platform answers to a configured step: a named error or a result, never an exception that escapes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.generic_examples import LOSANT, SECRET, section
from rotator.clock import SystemClock
from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Identity, Secret
from rotator.providers import Site, kinds

WHO = Identity(id="k", username="u", client_id="c")
MARKER = "rotator-0123456789ab-1"
# the names that the four sections look for, so that odd values stand where good ones would
NAMED = [
    *("accessToken", "apiKeys", "clientid", "code", "connected_at", "count", "credentialsValue", "data", "description"),
    *("detail", "device", "deviceIds", "errorCode", "errors", "expiresIn", "extensions", "hasNext", "hasnext", "id"),
    *("items", "login", "message", "meta", "name", "organizationRoles", "password", "publishers", "refreshApiKeyToken"),
    *("refreshToken", "roleName", "secret", "status", "token", "totalCount", "totalElements", "type", "user_id"),
    *("is_superuser", "paused", "issuedAt", "expiresAt"),
]
ODD_TEXTS = ["k", "active", "NotFound", "2026-01-01T00:00:00Z", "\ud800", "x" * 3000, "{}", "[[", "eyJ.e30.x"]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**400, max_value=10**401)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["k", "active", "NotFound", "2026-01-01T00:00:00Z", "\ud800", "x" * 3000, "{}", "[[", "eyJ.e30.x"]
    )
)
VALUES = st.recursive(
    LEAVES,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.sampled_from(NAMED), below, max_size=6),
    max_leaves=40,
)
BODIES = (
    VALUES.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=40)
    | st.sampled_from([b"", b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe", b"1e999", b"NaN", b'{"id": 1e999}', b"<html>"])
)
ANSWERS = st.tuples(st.sampled_from([200, 200, 200, 201, 204, 302, 400, 401, 404, 408, 409, 429, 500, 503]), BODIES)


class Played:
    """A provider's platform in memory: answers in order, then the last one again."""

    def __init__(self, own: dict[str, Any]) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.asked = 0
        client = httpx.Client(transport=httpx.MockTransport(self._answer))
        site = Site(
            name="p",
            clock=SystemClock(),
            on_request=lambda done: None,
            reveal=lambda ref: lambda: "made-up",
            client=lambda wanted: client,
        )
        kind = kinds()[own["kind"]]
        self.provider: Any = kind.build(site, kind.settings(**own))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return httpx.Response(status, content=body, headers={"Retry-After": "odd"})


def sections() -> dict[str, dict[str, Any]]:
    """One of each strategy and each way to log in."""
    emqx, board, haltian = section("emqx"), section("thingsboard"), section("haltian-graphql")
    emqx["auth"]["basic"]["password"] = SECRET
    for own in (board, haltian):
        own["auth"]["login"]["password"] = SECRET
    radio = section("ishareradio-http") | {"auth": {"token": SECRET}, "rate_limit": None}
    losant = {**LOSANT, "url": "https://losant.example/keys", "auth": {"token": SECRET}}
    return {"emqx": emqx, "thingsboard": board, "ishareradio": radio, "haltian": haltian, "losant": losant}


@pytest.fixture(params=list(sections()))
def played(request: pytest.FixtureRequest) -> Iterator[Played]:
    """A platform by its section."""
    made = Played(sections()[request.param])
    yield made
    made.provider.close()


def calls(provider: Any) -> list[Any]:
    """Everything that the provider may be asked for."""
    secret, now = Secret("a-chosen-secret"), datetime(2026, 3, 24, tzinfo=UTC)
    return [
        call
        for name, call in {
            "list_keys": lambda: provider.list_keys(),
            "issue": lambda: provider.issue(WHO, secret),
            "create": lambda: provider.create(WHO, MARKER),
            "set_secret": lambda: provider.set_secret(WHO, secret),
            "evict": lambda: provider.evict(WHO, now),
            "deactivate": lambda: provider.deactivate(WHO),
            "reactivate": lambda: provider.reactivate(WHO),
            "delete": lambda: provider.delete("k"),
        }.items()
        if hasattr(provider, name)
    ]


@given(st.lists(ANSWERS, min_size=1, max_size=4))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_answer_makes_an_exception_escape(played: Played, answers: list[tuple[int, bytes]]) -> None:
    """Of any verb; and no list is read for ever."""
    for call in calls(played.provider):
        played.answers, played.asked = list(answers), 0
        with contextlib.suppress(Transient, Permanent, UnknownOutcome, BadAnswer):
            call()
        assert played.asked < 60


@given(BODIES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_failed_issue_call_of_status_200_is_never_taken_for_nothing(body: bytes) -> None:
    """What may have been done is UnknownOutcome or BadAnswer with the answer, but for a no in the platform's words."""
    played = Played(sections()["ishareradio"])
    played.answers = [(200, body)]
    error: RotatorError | None = None
    try:
        played.provider.issue(WHO)
    except RotatorError as exc:
        error = exc
    played.provider.close()
    assert error is None or (isinstance(error, UnknownOutcome | BadAnswer) and error.body == body)
