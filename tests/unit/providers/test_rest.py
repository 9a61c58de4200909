"""One REST client for all: what a status means, one login, one more try after a 401, and no secret in any word."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from structlog.testing import capture_logs

from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.logs import log_request
from rotator.model import RequestDone, Secret
from rotator.providers.http import Peer, make_client
from rotator.providers.rest import Fixed, Grant, Login, Reply, Rest, said
from rotator.reasons import Reason

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
Handler = Callable[[httpx.Request], httpx.Response]


class SetClock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return self.seconds


class Site:
    """A platform in this process, and the client that asks it."""

    def __init__(self) -> None:
        self.clock = SetClock()
        self.requests: list[httpx.Request] = []
        self.done: list[RequestDone] = []
        self.answer: Handler = lambda request: httpx.Response(200, json={})
        self.client = httpx.Client(transport=httpx.MockTransport(self._serve))
        self.peer = Peer("acme", client=self.client, clock=self.clock, on_request=self.done.append)

    def _serve(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer(request)

    def shown(self) -> list[str | None]:
        """What each request showed of who asks."""
        return [request.headers.get("authorization") for request in self.requests]


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.peer.close()


def asked(rest: Rest, **more: object) -> Reply:
    options = {"operation": "list_keys", "deadline": rest.deadline(), **more}
    return rest.ask("GET", "/keys", **options)  # type: ignore[arg-type]


def test_a_request_is_what_it_was_told_to_be(site: Site) -> None:
    """Base and path, query, headers, body, method; and the answer as it came."""
    rest = Rest(site.peer, url="https://acme.example/v1/", auth=Fixed("acme", lambda: "t0ken"), headers={"X-A": "1"})
    site.answer = lambda request: httpx.Response(201, json={"id": 1})
    reply = rest.ask(
        "PUT",
        "/keys/a%2Fb",
        operation="change",
        deadline=rest.deadline(),
        body={"a": None},
        params={"q": "x y"},
        headers={"X-B": "2"},
    )
    (request,) = site.requests
    assert ("PUT", "https://acme.example/v1/keys/a%2Fb?q=x+y") == (request.method, str(request.url))
    assert {"a": None} == json.loads(request.content)
    shown = {name: request.headers[name] for name in ("authorization", "x-a", "x-b", "accept")}
    assert {"authorization": "Bearer t0ken", "x-a": "1", "x-b": "2", "accept": "application/json"} == shown
    assert (201, True, {"id": 1}, b'{"id":1}') == (reply.status, reply.ok, reply.fields, reply.body)
    assert [("change", "201")] == [(done.operation, done.code) for done in site.done]


@pytest.mark.parametrize(
    ("status", "changes", "kind", "reason"),
    [
        (429, True, Transient, Reason.PROVIDER_RATE_LIMITED),
        (429, False, Transient, Reason.PROVIDER_RATE_LIMITED),
        (401, True, Permanent, Reason.PROVIDER_AUTH),
        (403, False, Permanent, Reason.PROVIDER_AUTH),
        (408, True, UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (408, False, Transient, Reason.PROVIDER_UNAVAILABLE),
        (500, True, UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (503, False, Transient, Reason.PROVIDER_UNAVAILABLE),
        (200, True, UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (200, False, Transient, Reason.PROVIDER_ANSWER_UNREADABLE),
        (302, True, Permanent, Reason.PROVIDER_REFUSED),
        (404, True, Permanent, Reason.PROVIDER_REFUSED),
        (422, False, Permanent, Reason.PROVIDER_REFUSED),
    ],
)
def test_what_a_status_means(site: Site, status: int, changes: bool, kind: type[RotatorError], reason: Reason) -> None:
    """The table of `Reply.error`; what changed something carries the answer for the journal."""
    site.answer = lambda request: httpx.Response(status, text="<html>no</html>")
    error = asked(Rest(site.peer, url="https://acme.example", auth=None)).error(changes=changes)
    assert (kind, reason) == (type(error), error.reason)
    assert (b"<html>no</html>" if changes else None) == error.body
    assert error.message.startswith(f"acme: list_keys: HTTP {status}")


@pytest.mark.parametrize(
    ("headers", "body", "delay"),
    [
        ({"Retry-After": "30"}, {}, 30),
        ({"Retry-After": "Sat, 21 Nov 2026 12:02:00 GMT"}, {}, 120),
        ({"Retry-After": "try again in 2 minutes"}, {}, 120),
        ({}, {"retryAfter": "45 seconds"}, 45),
        ({}, {"retry_after": 7}, 7),
        ({"Retry-After": "9"}, {"retryAfter": "45"}, 9),
        ({}, {"retryAfter": ["x"]}, None),
        ({}, {}, None),
    ],
)
def test_the_delay_that_was_asked_for(
    site: Site, headers: dict[str, str], body: dict[str, object], delay: int | None
) -> None:
    """Seconds, a date, text, in the header or in the body; or nothing."""
    site.answer = lambda request: httpx.Response(429, json=body, headers=headers)
    error = asked(Rest(site.peer, url="https://acme.example", auth=None)).error(changes=True)
    assert isinstance(error, Transient)
    assert (timedelta(seconds=delay) if delay is not None else None) == error.retry_after


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"message": "no"}, "no"),
        ({"type": "NotFound", "message": "no key"}, "NotFound: no key"),
        ({"error": "no"}, "no"),
        ({"error": "denied", "message": "because"}, "denied: because"),
        ({"error": {"code": "limit", "message": "full", "details": {"a": 1}}}, "limit: full"),
        ({"detail": "no"}, "no"),
        ({"detail": {"msg": "no"}}, "no"),
        ({"detail": [{"msg": "one"}, {"msg": "two"}]}, "one: two"),
        ({"errors": [{"message": "no"}]}, "no"),
        ({"reason": "bad_request"}, "bad_request"),
        ([], ""),
        ({"error": {"error": {"error": {"error": "deep"}}}}, ""),
        (None, ""),
        ("no", "no"),
    ],
)
def test_what_an_error_says(value: object, words: str) -> None:
    """The usual shapes; nothing from what is nested too deep or is none of them."""
    assert words == said(value)


def test_no_message_repeats_a_secret(site: Site) -> None:
    """Not the token, not what the call was about, not what looks like a token."""
    rest = Rest(site.peer, url="https://acme.example", auth=Fixed("acme", lambda: "t0ken"))
    told = f"t0ken and hush and {'a' * 40}"
    site.answer = lambda request: httpx.Response(400, json={"message": told})
    assert "*** and *** and ***" == asked(rest, secrets=["hush"]).message


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.NO_SECRET),
        ("", Reason.EMPTY_SECRET),
        (" \n", Reason.EMPTY_SECRET),
        (5, Reason.PROVIDER_ANSWER_UNREADABLE),
        ("\ud800", Reason.PROVIDER_ANSWER_UNREADABLE),
    ],
)
def test_an_answer_without_a_usable_secret(site: Site, value: object, reason: Reason) -> None:
    """It is refused by name, and kept for the journal."""
    reply = asked(Rest(site.peer, url="https://acme.example", auth=None))
    with pytest.raises(BadAnswer) as caught:
        reply.secret(value)
    assert (reason, b"{}") == (caught.value.reason, caught.value.body)
    assert Secret(" s") == reply.secret(" s")


# --- who asks


def test_a_token_that_was_replaced_is_tried_once_more(site: Site) -> None:
    """A 401 did nothing at the platform, so what was asked is asked again, with the token as it is now."""
    tokens = ["old", "new", "new"]
    site.answer = lambda request: httpx.Response(200 if request.headers["x-key"] == "new" else 401)
    rest = Rest(
        site.peer, url="https://a.example", auth=Fixed("acme", lambda: tokens.pop(0), header="X-Key", scheme="")
    )
    assert 200 == asked(rest, changes=True).status
    assert ["old", "new"] == [request.headers["x-key"] for request in site.requests]


def test_a_token_that_is_refused_is_not_tried_again(site: Site) -> None:
    """The same one would be refused again."""
    site.answer = lambda request: httpx.Response(401)
    assert 401 == asked(Rest(site.peer, url="https://a.example", auth=Fixed("acme", lambda: "t"))).status
    assert 1 == len(site.requests)


@pytest.mark.parametrize("token", ["", "a b", "a\n", "ä"])
def test_a_token_that_no_header_can_hold(site: Site, token: str) -> None:
    """Nothing is sent, and it is not repeated."""
    with pytest.raises(Permanent) as caught:
        asked(Rest(site.peer, url="https://a.example", auth=Fixed("acme", lambda: token)))
    assert (Reason.PROVIDER_AUTH, []) == (caught.value.reason, site.requests)
    assert not token or token not in caught.value.message


class Desk:
    """Gives logins that live for a minute, numbered."""

    def __init__(self, *, refresh: bool = True) -> None:
        self.logins, self.renewals = 0, 0
        self.error: RotatorError | None = None
        self._refresh = refresh

    def grant(self) -> Grant:
        number = self.logins + self.renewals
        refresh = Secret(f"r{number}") if self._refresh else None
        return Grant(access=Secret(f"a{number}"), expires_in=60, refresh=refresh, refresh_expires_in=600)

    def log_in(self, deadline: float) -> Grant:
        if self.error is not None:
            raise self.error
        self.logins += 1
        return self.grant()

    def renew(self, before: Grant, deadline: float) -> Grant:
        if self.error is not None:
            raise self.error
        self.renewals += 1
        return self.grant()


def test_one_login_serves_all_and_is_renewed_before_it_ends(site: Site) -> None:
    """A fifth of its life before; the refresh token's own end brings a new login."""
    desk = Desk()
    rest = Rest(site.peer, url="https://a.example", auth=Login(desk.log_in, renew=desk.renew, clock=site.clock))
    for pause in (0, 47, 2, 700):
        site.clock.seconds += pause
        asked(rest)
    assert ["Bearer a1", "Bearer a1", "Bearer a2", "Bearer a3"] == site.shown()
    assert (2, 1) == (desk.logins, desk.renewals)


def test_a_refused_session_is_made_anew_once(site: Site) -> None:
    """The platform forgot it; a second refusal is the answer."""
    desk = Desk(refresh=False)
    rest = Rest(site.peer, url="https://a.example", auth=Login(desk.log_in, renew=desk.renew, clock=site.clock))
    site.answer = lambda request: httpx.Response(401)
    assert 401 == asked(rest).status
    assert ["Bearer a1", "Bearer a2"] == site.shown()


def test_a_refused_renewal_falls_back_to_the_login(site: Site) -> None:
    """A refresh token that was revoked is no reason to give up."""
    desk = Desk()
    login = Login(desk.log_in, renew=lambda before, deadline: _refuse(), clock=site.clock)
    for pause in (0, 59):
        site.clock.seconds += pause
        login.headers(site.clock.seconds + 5)
    assert (2, 0) == (desk.logins, desk.renewals)


def _refuse() -> Grant:
    raise Permanent("refused", reason=Reason.PROVIDER_AUTH)


class Queue:
    """A lock that tells who has come to it."""

    def __init__(self) -> None:
        self.came, self._lock = threading.Semaphore(0), threading.Lock()

    def __enter__(self) -> None:
        self.came.release()
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


def test_a_wrong_password_is_tried_once_for_all_who_wait(site: Site) -> None:
    """A hundred keys that try the same one lock the account; who comes later asks again."""
    entered, go = threading.Event(), threading.Event()
    tries: list[float] = []

    def log_in(deadline: float) -> Grant:
        tries.append(deadline)
        entered.set()
        assert go.wait(20)
        return _refuse()

    login, refusals, queue = Login(log_in, clock=site.clock), [], Queue()
    login._lock = queue  # type: ignore[assignment]

    def ask() -> None:
        with pytest.raises(Permanent) as caught:
            login.headers(site.clock.seconds + 5)
        refusals.append(caught.value.reason)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    threads[0].start()
    assert entered.wait(20)
    for thread in threads[1:]:
        thread.start()
    assert all(queue.came.acquire(timeout=20) for _ in threads)
    go.set()
    for thread in threads:
        thread.join(20)
    assert [Reason.PROVIDER_AUTH] * 8 == refusals
    assert 1 == len(tries)
    ask()
    assert (9, 2) == (len(refusals), len(tries))


def test_nothing_of_a_login_is_shown(site: Site) -> None:
    """Neither by its own text nor by that of what it gave."""
    desk = Desk()
    login = Login(desk.log_in, clock=site.clock)
    login.headers(site.clock.seconds + 5)
    assert ["a1", "r1"] == list(login.secrets())
    assert "a1" not in repr(desk.grant())
    dropped = login.dropped()
    assert dropped is not None
    assert (Secret("a1"), [], None) == (dropped.access, list(login.secrets()), login.dropped())


def test_a_client_speaks_through_a_proxy() -> None:
    """`proxy` is where the request goes; an address that nobody listens at is found before anything is sent."""
    client = make_client(proxy="http://127.0.0.1:9")
    clock = SetClock()
    rest = Rest(
        Peer("acme", client=client, clock=clock, on_request=lambda done: None), url="http://a.example", auth=None
    )
    with pytest.raises(Transient) as caught:
        asked(rest, changes=True)
    rest.peer.close()
    assert Reason.PROVIDER_UNREACHABLE is caught.value.reason


# --- the platform's own names for requests


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"X-Request-Id": "req-1"}, "req-1"),
        ({"x-correlation-id": "0af7:651"}, "0af7:651"),
        ({"CF-Ray": "8f1-HEL", "X-Request-Id": "req-2"}, "req-2"),
        ({"X-Request-Id": "two words"}, ""),
        ({"X-Request-Id": "x" * 101}, ""),
        ({}, ""),
    ],
)
def test_a_request_goes_by_the_platforms_name(site: Site, headers: dict[str, str], named: str) -> None:
    """It stands in the error, and in what the log is told; what can't be written down is left out."""
    site.answer = lambda request: httpx.Response(500, headers=headers)
    reply = asked(Rest(site.peer, url="https://a.example", auth=None))
    assert ([named], named) == ([done.request_id for done in site.done], reply.request_id)
    words = f"acme: list_keys: HTTP 500 (request {named})" if named else "acme: list_keys: HTTP 500"
    assert words == reply.error(changes=False).message


def test_the_log_names_the_request_and_nothing_of_it(site: Site) -> None:
    """At DEBUG: who, what, how it went, how long; no address, no header, no body."""
    site.answer = lambda request: httpx.Response(200, json={"secret": "hush"}, headers={"X-Request-Id": "req-1"})
    rest = Rest(site.peer, url="https://a.example", auth=Fixed("acme", lambda: "t0ken"))
    asked(rest, body={"password": "hush"})
    with capture_logs() as lines:
        log_request(site.done[0])
    (line,) = lines
    assert {"event": "request", "log_level": "debug", "peer": "acme", "operation": "list_keys", "code": "200"} == {
        name: line[name] for name in ("event", "log_level", "peer", "operation", "code")
    }
    assert ("req-1", {"seconds", "request_id"}) == (
        line["request_id"],
        set(line) - {"event", "log_level", "peer", "operation", "code"},
    )
