"""The mapping is complete (1): what httpx raises, and lets through, under a provider.

Every exception class is found by introspection and raised where its library raises it: by a transport, by httpcore's
pool, by h11, by the socket. `test_error_mapping_*.py` beside this do the same for Vault, MQTT, the journal and the
consumers. A class that a newer release brings fails the first test of its library until it is decided upon here.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import h11
import httpcore
import httpx
import pytest

from broken_wire import BEFORE_ANYTHING_IS_SENT, BODY, CONNECT, HANDSHAKE, PHASES, READ, WRITE, Wire
from library_exceptions import SECRET, Meaning, made, named, names, os_errors, outcome, value_errors
from rotator.clock import SystemClock
from rotator.errors import Permanent, RotatorError, Transient, UnknownOutcome
from rotator.providers import Haltian
from rotator.reasons import Reason

PASSWORD = "pass-" + SECRET
TOKEN = "access-" + SECRET
IDENTITY = "c6f7b103-81df-4e73-8218-4f671056aee2"

UNSENT = (Transient, Reason.PROVIDER_UNREACHABLE)
UNKNOWN = (UnknownOutcome, Reason.OUTCOME_UNKNOWN)
LOST = (Transient, Reason.PROVIDER_UNREACHABLE)
UNREADABLE = (Transient, Reason.PROVIDER_ANSWER_UNREADABLE)

# Raised before a byte of the request left: nothing happened, whatever the call. All others may come after it.
HTTPX_UNSENT = {
    "ConnectError", "ConnectTimeout", "CookieConflict", "InvalidURL", "PoolTimeout", "ProxyError",
    "UnsupportedProtocol",
}  # fmt: skip
HTTPX_SENT = {
    "CloseError", "DecodingError", "HTTPError", "HTTPStatusError", "LocalProtocolError", "NetworkError",
    "ProtocolError", "ReadError", "ReadTimeout", "RemoteProtocolError", "RequestError", "RequestNotRead",
    "ResponseNotRead", "StreamClosed", "StreamConsumed", "StreamError", "TimeoutException", "TooManyRedirects",
    "TransportError", "WriteError", "WriteTimeout",
}  # fmt: skip
HTTPCORE_UNSENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
HTTPCORE_SENT = {
    "LocalProtocolError", "NetworkError", "ProtocolError", "ReadError", "ReadTimeout", "RemoteProtocolError",
    "TimeoutException", "WriteError", "WriteTimeout",
}  # fmt: skip
HTTPCORE_NEVER = {"ConnectionNotAvailable": "the pool's own word to itself: it takes another connection"}
H11 = {"LocalProtocolError", "ProtocolError", "RemoteProtocolError"}


def payload(asked: bytes) -> bytes:
    """The platform's answer to one request: whom it knows, and what it holds."""
    if b"mutation Login" in asked:
        login = {"accessToken": TOKEN, "expiresIn": 900, "refreshToken": SECRET, "refreshExpiresIn": 43200}
        return json.dumps({"data": {"login": login}}).encode()
    if b"ListApiKeys" in asked:
        return b'{"data": {"apiKeys": []}}'
    return json.dumps({"data": {"refreshApiKeyToken": {"id": IDENTITY, "token": {"token": SECRET}}}}).encode()


def http_answer(asked: bytes) -> bytes:
    """The same, as it comes over a connection."""
    body = payload(asked)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def haltian(client: httpx.Client, password: str = PASSWORD) -> Haltian:
    """The provider, on this client."""
    return Haltian(
        "acme",
        client=client,
        url=f"https://me:{SECRET}@platform.example/v1/graphql",
        organization="acme",
        email="me@acme.example",
        password=lambda: password,
        clock=SystemClock(),
        on_request=lambda _done: None,
    )


def looks(provider: Haltian) -> object:
    """A call that only looks."""
    return provider.list_keys()


def issues(provider: Haltian) -> object:
    """The call that can't be taken back."""
    return provider.issue(provider.identity(IDENTITY))


CALLS: Mapping[str, Callable[[Haltian], object]] = {"look": looks, "issue": issues}


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    """Made once: reading the system's authorities takes longer than all else here."""
    return ssl.create_default_context()


# --- httpx ----------------------------------------------------------------------------------------------------------


class Failing(httpx.BaseTransport):
    """Logs in, and then raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if b"mutation Login" in request.read():
            return httpx.Response(200, content=payload(request.content))
        raise self.error


def test_every_exception_of_httpx_is_decided_upon() -> None:
    """None is missing from the tables above, and none of them is gone."""
    assert names("httpx") == HTTPX_SENT | HTTPX_UNSENT
    assert names("httpcore") == HTTPCORE_SENT | HTTPCORE_UNSENT | set(HTTPCORE_NEVER)
    assert names("h11") == H11
    assert [] == sorted((HTTPX_SENT & HTTPX_UNSENT) | (HTTPCORE_SENT & HTTPCORE_UNSENT))


@pytest.mark.parametrize("name", sorted(names("httpx")))
def test_an_exception_of_httpx(name: str) -> None:
    """Nothing was sent, or what an issue call did is unknown; a look is always worth another try."""
    raised = made(named("httpx", name))
    with httpx.Client(transport=Failing(raised)) as client:
        assert (UNSENT if name in HTTPX_UNSENT else UNKNOWN) == outcome(issues, haltian(client), raised=raised)
        expected = UNREADABLE if name == "DecodingError" else LOST
        assert expected == outcome(looks, haltian(client), raised=raised)


# --- httpcore and h11 -----------------------------------------------------------------------------------------------


class FailingPool(httpcore.ConnectionPool):
    """httpcore under httpx's own transport, which has to translate."""

    error: Exception

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        asked = b"".join(request.stream)  # type: ignore[arg-type]  # it is the synchronous one
        if b"mutation Login" in asked:
            return httpcore.Response(200, content=payload(asked))
        raise self.error


@pytest.mark.parametrize("name", sorted(HTTPCORE_SENT | HTTPCORE_UNSENT))
def test_an_exception_of_httpcore(name: str, context: ssl.SSLContext) -> None:
    """httpx makes its own of each, and the meaning survives."""
    transport = httpx.HTTPTransport(verify=context)
    transport._pool = pool = FailingPool()  # httpx offers no way to bring one
    pool.error = made(named("httpcore", name))
    with httpx.Client(transport=transport) as client:
        assert (UNSENT if name in HTTPCORE_UNSENT else UNKNOWN) == outcome(issues, haltian(client), raised=pool.error)
        assert LOST == outcome(looks, haltian(client), raised=pool.error)


@pytest.mark.parametrize("name", sorted(H11))
@pytest.mark.parametrize("method", ["send", "next_event"])
def test_an_exception_of_h11(name: str, method: str, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken protocol leaves open what the other side has read, also where httpcore lets h11's own class through."""
    for call, expected in (("issue", UNKNOWN), ("look", LOST)):
        raised = made(named("h11", name))
        with monkeypatch.context() as patch, httpx.Client(transport=httpx.HTTPTransport(verify=context)) as client:
            wire = Wire(http_answer)
            wire.put_in_place(patch, "socket.create_connection")
            provider = haltian(client)
            looks(provider)  # logged in

            def fail(_connection: h11.Connection, *_args: object, raised: Exception = raised) -> Any:
                raise raised

            patch.setattr(h11.Connection, method, fail)
            assert expected == outcome(CALLS[call], provider, raised=raised)


# --- sockets, names, TLS --------------------------------------------------------------------------------------------


def played(
    phase: str, raised: Exception, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Meaning]:
    """What each call makes of an error of its own connection; the login before it has one that works."""
    results = {}
    for name, call in CALLS.items():
        wire = Wire(http_answer, number=1, phase=phase, error=raised)
        with monkeypatch.context() as patch, httpx.Client(transport=httpx.HTTPTransport(verify=context)) as client:
            wire.put_in_place(patch, "socket.create_connection")
            results[name] = outcome(call, haltian(client), raised=raised)
            assert wire.opened == 2
    return results


@pytest.mark.parametrize("name", sorted(os_errors()))
@pytest.mark.parametrize("phase", PHASES)
def test_an_error_of_the_socket(
    phase: str, name: str, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the connection stands nothing was sent; after it, an issue call may have happened."""
    found = played(phase, made(os_errors()[name]), context, monkeypatch)
    assert {"issue": UNSENT if phase in BEFORE_ANYTHING_IS_SENT else UNKNOWN, "look": LOST} == found


@pytest.mark.parametrize("name", sorted(value_errors()))
@pytest.mark.parametrize("phase", [CONNECT, HANDSHAKE])
def test_a_host_that_can_not_be_one(
    phase: str, name: str, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpx lets these through: a label that DNS can't hold, a name that TLS can't ask for. Nothing was sent."""
    assert {"issue": UNSENT, "look": UNSENT} == played(phase, made(value_errors()[name]), context, monkeypatch)


@pytest.mark.parametrize(("phase", "expected"), [(READ, UNSENT), (BODY, UNKNOWN)])
def test_a_proxy_that_breaks(
    phase: str, expected: Meaning, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is asked for a tunnel, nothing of the request has left; in the tunnel, all of it may have."""

    def answer(asked: bytes) -> bytes:
        _tunnel, _, request = asked.partition(b"\r\n\r\n")
        return b"HTTP/1.1 200 OK\r\n\r\n" + (http_answer(request) if request else b"")

    raised = ConnectionResetError("boom")
    Wire(answer, number=1, phase=phase, error=raised).put_in_place(monkeypatch, "socket.create_connection")
    transport = httpx.HTTPTransport(verify=context, proxy="http://proxy.example:3128")
    with httpx.Client(transport=transport) as client:
        assert expected == outcome(issues, haltian(client), raised=raised)


def test_a_working_connection_is_no_error(context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wire that breaks in the tests above works where nothing breaks it."""
    wire = Wire(http_answer)
    wire.put_in_place(monkeypatch, "socket.create_connection")
    with httpx.Client(transport=httpx.HTTPTransport(verify=context)) as client:
        provider = haltian(client)
        assert [] == list(provider.list_keys())
        assert SECRET == provider.issue(provider.identity(IDENTITY)).secret.reveal()
    assert {WRITE, READ, BODY} | BEFORE_ANYTHING_IS_SENT == set(PHASES)


# --- what is wrong on this side, and what comes back ----------------------------------------------------------------


def test_a_password_that_is_no_text() -> None:
    """An environment variable may hold bytes that are no UTF-8: a person has to mend that, and nobody sees them."""
    with httpx.Client(transport=Failing(httpx.ReadError("never"))) as client:
        provider = haltian(client, password=f"{SECRET}\udc80")
        for call in CALLS.values():
            raised = made(UnicodeEncodeError)
            assert (Permanent, Reason.PROVIDER_AUTH) == outcome(call, provider, raised=raised)


def test_a_client_that_another_thread_closes() -> None:
    """httpx has a RuntimeError for that, and whether the request left is not known."""
    raised = RuntimeError("Cannot send a request, as the client has been closed.")
    with httpx.Client(transport=Failing(raised)) as client:
        assert UNKNOWN == outcome(issues, haltian(client), raised=raised)
        assert LOST == outcome(looks, haltian(client), raised=raised)


@pytest.mark.parametrize("name", sorted({**os_errors(), **value_errors()}))
def test_what_httpx_lets_through_as_it_is(name: str) -> None:
    """From beside the reads and writes that it translates, and with no word of how far the request came."""
    raised = made({**os_errors(), **value_errors()}[name])
    with httpx.Client(transport=Failing(raised)) as client:
        assert UNKNOWN == outcome(issues, haltian(client), raised=raised)
        expected = UNREADABLE if isinstance(raised, ValueError) else LOST
        assert expected == outcome(looks, haltian(client), raised=raised)


@pytest.mark.parametrize(
    ("target", "looked"),
    [(b"http://xn--/", UNREADABLE), (b"http://[::1", LOST), (b"http://a:b/", LOST), (b"/\x01", LOST)],
)
def test_a_redirect_to_nowhere(
    target: bytes, looked: Meaning, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpx reads `Location` though no redirect is followed, and its complaint comes after the request was sent."""

    def answer(asked: bytes) -> bytes:
        if b"mutation Login" in asked:
            return http_answer(asked)
        return b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: %b\r\n\r\n" % target

    Wire(answer).put_in_place(monkeypatch, "socket.create_connection")
    with httpx.Client(transport=httpx.HTTPTransport(verify=context)) as client:
        provider = haltian(client)
        assert {"issue": UNKNOWN, "look": looked} == {name: outcome(call, provider) for name, call in CALLS.items()}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff\xfe", b"<html>", b"[" * 100_000, b"9" * 5000, b"NaN", b'{"data": ' * 500, b'"\\ud800"',
        b'{"errors": {"message": "\\ud800", "extensions": {"code": ["\\udfff"]}}}',
        b'{"errors": [{"message": "x", "code": ' + b"[" * 900 + b"]" * 900 + b"}]}",
    ],
    ids=lambda body: repr(body[:40]),
)  # fmt: skip
def test_an_answer_that_is_none(body: bytes) -> None:
    """Whatever json makes of it, an issue call's answer is kept for the journal, and the message can be written."""

    def answer(request: httpx.Request) -> httpx.Response:
        content = request.read()
        return httpx.Response(200, content=payload(content) if b"mutation Login" in content else body)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        provider = haltian(client)
        with pytest.raises(RotatorError) as issued:
            issues(provider)
        with pytest.raises(RotatorError) as looked:
            looks(provider)
    assert body == issued.value.body
    for error in (issued.value, looked.value):
        assert Reason.UNFORESEEN is not error.reason
        error.message.encode()
    assert isinstance(looked.value, Transient | Permanent)
