"""What each of httpx's exceptions means, and the pieces of the shared HTTP part."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from rotator.clock import SystemClock
from rotator.errors import RotatorError, Transient, UnknownOutcome
from rotator.model import RequestDone
from rotator.providers.http import ALL_ERRORS, HttpAnswer, Peer, make_client
from rotator.reasons import Reason
from rotator.timestamps import parse_http_date, retry_after

NOW = datetime(2026, 3, 24, 12, 0, tzinfo=UTC)
CERTAIN = (Transient, Reason.PROVIDER_UNREACHABLE)
UNKNOWN = (UnknownOutcome, Reason.OUTCOME_UNKNOWN)

# class → what it means for a call that changes something. A new class in httpx fails the test below until it is here.
MEANINGS = {
    "HTTPError": UNKNOWN,
    "RequestError": UNKNOWN,
    "TransportError": UNKNOWN,
    "TimeoutException": UNKNOWN,
    "ConnectTimeout": CERTAIN,
    "ReadTimeout": UNKNOWN,
    "WriteTimeout": UNKNOWN,
    "PoolTimeout": CERTAIN,
    "NetworkError": UNKNOWN,
    "ConnectError": CERTAIN,
    "ReadError": UNKNOWN,
    "WriteError": UNKNOWN,
    "CloseError": UNKNOWN,
    "ProtocolError": UNKNOWN,
    "LocalProtocolError": UNKNOWN,
    "RemoteProtocolError": UNKNOWN,
    "ProxyError": CERTAIN,
    "UnsupportedProtocol": CERTAIN,
    "DecodingError": UNKNOWN,
    "TooManyRedirects": UNKNOWN,
    "HTTPStatusError": UNKNOWN,
    "InvalidURL": CERTAIN,
    "CookieConflict": CERTAIN,
    "StreamError": UNKNOWN,
    "StreamConsumed": UNKNOWN,
    "StreamClosed": UNKNOWN,
    "ResponseNotRead": UNKNOWN,
    "RequestNotRead": UNKNOWN,
}


def test_every_exception_of_httpx_has_a_meaning() -> None:
    """The table above names all that httpx exports, and the catch covers all of them."""
    exported = {name: getattr(httpx, name) for name in httpx.__all__}
    raised = {name: each for name, each in exported.items() if isinstance(each, type) and issubclass(each, Exception)}
    assert set(MEANINGS) == set(raised)
    assert [] == [name for name, each in raised.items() if not issubclass(each, ALL_ERRORS)]


def made(name: str) -> Exception:
    """An instance; their constructors differ."""
    request = httpx.Request("POST", "http://127.0.0.1:9/")
    kind = getattr(httpx, name)
    if name == "HTTPStatusError":
        return httpx.HTTPStatusError("made up", request=request, response=httpx.Response(500, request=request))
    if issubclass(kind, httpx.StreamError) and name != "StreamError":
        result: Exception = kind()
    else:
        result = kind("made up")
    return result


class Failing(httpx.BaseTransport):
    """Raises one exception for each request."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise self.error


def send(client: httpx.Client, done: list[RequestDone], *, changes: bool) -> HttpAnswer:
    """One request through a Peer."""
    clock = SystemClock()
    peer = Peer("p", client=client, clock=clock, on_request=done.append)
    return peer.post(
        "http://127.0.0.1:9/",
        operation="issue",
        json={},
        headers={},
        deadline=clock.monotonic() + 5,
        changes=changes,
        read=lambda answer: (str(answer.status), answer),
    )


@pytest.mark.parametrize("name", sorted(MEANINGS))
def test_a_failed_call_is_mapped_and_reported(name: str) -> None:
    """A change of unknown outcome is never called certain; a look is always Transient; the metric has the name."""
    for changes, expected in ((True, MEANINGS[name]), (False, None)):
        done: list[RequestDone] = []
        with httpx.Client(transport=Failing(made(name))) as client, pytest.raises(RotatorError) as caught:
            send(client, done, changes=changes)
        if expected is None:
            assert Transient is type(caught.value)
        else:
            assert expected == (type(caught.value), caught.value.reason)
        assert [name] == [each.code for each in done]


def test_a_closed_client_is_unreachable() -> None:
    """Calls after close() say so instead of failing inside httpx."""
    client = make_client()
    client.close()
    with pytest.raises(Transient) as caught:
        send(client, [], changes=True)
    assert Reason.PROVIDER_UNREACHABLE is caught.value.reason


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        (" 1.5 ", 1.5),
        ("30 seconds", 30),
        ("500ms", 0.5),
        ("2m", 120),
        ("1 Hour", 3600),
        ("Please try again in 30 seconds.", 30),
        ("Tue, 24 Mar 2026 12:00:10 GMT", 10),
        ("Tue, 24 Mar 2020 12:00:10 GMT", 0),
        ("0", 0),
        ("999999999999", 86400),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86400),
        ("", None),
        (None, None),
        ("soon", None),
        ("-5", None),
        ("30 parsecs", None),
        ("1e3", None),
        ("9" * 500, None),
    ],
)
def test_retry_after_in_all_its_forms(text: str | None, seconds: float | None) -> None:
    """Seconds, a date, words; never negative, never more than a day, None where it says nothing."""
    assert (None if seconds is None else timedelta(seconds=seconds)) == retry_after(text, NOW)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "Tue, 99 Mar 2026 12:00:00 GMT", "Tue, 24 Mar 99999 12:00:00 GMT", ","]
)
def test_what_is_no_http_date_is_none(text: str) -> None:
    """No odd text raises."""
    assert parse_http_date(text) is None
