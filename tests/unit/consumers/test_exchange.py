"""The mapping is complete: what httpx raises, and lets through, under a webhook and under proof over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import h11
import httpx
import pytest

from library_exceptions import SECRET, Meaning, made, named, names, os_errors, outcome, value_errors
from rotator.clock import SystemClock
from rotator.consumers.http_evidence import ask_http
from rotator.consumers.webhook import WebhookConsumer
from rotator.errors import Permanent, Transient
from rotator.model import Order
from rotator.reasons import Reason

ORDER = Order(key="building-a", version=7, id="1")
FAILED = (Transient, Reason.CONSUMER_RESTART_FAILED)
TOO_LONG = (Transient, Reason.CONSUMER_TIMEOUT)
NEVER_WORKS = (Permanent, Reason.CONSUMER_RESTART_FAILED)

HTTPX: Mapping[str, Meaning] = {
    **dict.fromkeys(names("httpx"), FAILED),
    **dict.fromkeys({"ConnectTimeout", "PoolTimeout", "ReadTimeout", "TimeoutException", "WriteTimeout"}, TOO_LONG),
    **dict.fromkeys({"InvalidURL", "UnsupportedProtocol"}, NEVER_WORKS),
}
OTHERS: Mapping[str, type[Exception]] = {
    **os_errors(),
    **value_errors(),
    "RuntimeError": RuntimeError,
    "LocalProtocolError": h11.LocalProtocolError,
}


class Failing(httpx.BaseTransport):
    """Raises, whatever is asked."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise self.error


def meanings(raised: Exception) -> set[Meaning]:
    """What a restart, the look before it, and the proof make of it."""
    with httpx.Client(transport=Failing(raised)) as client:
        subject = WebhookConsumer(
            "hook",
            url=f"https://hook.example/?token={SECRET}",
            secret=lambda: SECRET,
            client=client,
            timeout=timedelta(seconds=0.2),
            clock=SystemClock(),
        )
        ask = ask_http(
            "hook", client=client, url=f"https://h.example/{SECRET}", field="version", headers=dict, order=ORDER
        )
        return {
            outcome(subject.restart, ORDER, raised=raised),
            outcome(subject.preflight, raised=raised),
            outcome(ask, raised=raised),
        }


@pytest.mark.parametrize("name", sorted(HTTPX))
def test_an_exception_of_httpx(name: str) -> None:
    """All may pass but a URL that can't be one; none shows the URL, a header or a body."""
    assert {HTTPX[name]} == meanings(made(named("httpx", name)))


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_what_httpx_lets_through(name: str) -> None:
    """Sockets, names and lines; what can't be encoded will never be, and is not chained, since it holds a header."""
    raised = made(OTHERS[name])
    assert {NEVER_WORKS if isinstance(raised, UnicodeEncodeError) else FAILED} == meanings(raised)


@pytest.mark.parametrize("url", ["https://[::1", "https://exa mple/\0", "mqtt://h.example/"])
def test_a_url_that_can_not_be_one(url: str) -> None:
    """The configuration refuses what it can; the rest never works."""
    with httpx.Client() as client:
        ask = ask_http("hook", client=client, url=url, field="version", headers=dict, order=ORDER)
        assert NEVER_WORKS == outcome(ask)


def test_a_header_that_can_not_be_sent() -> None:
    """A secret with a character that no header takes."""
    with httpx.Client() as client:
        ask = ask_http(
            "hook",
            client=client,
            url="https://h.example/",
            field="version",
            headers=lambda: {"Authorization": f"{SECRET}\udc80"},
            order=ORDER,
        )
        assert NEVER_WORKS == outcome(ask)
