"""The mapping is complete (2): what hvac, requests and urllib3 raise, and let through, under the store.

See test_error_mapping.py. A write is safe to repeat, since it carries `cas`, so nothing here is an unknown outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
import requests
import urllib3

from broken_wire import CONNECT, HANDSHAKE, PHASES, Wire
from library_exceptions import SECRET, Meaning, classes, made, named, names, os_errors, outcome, value_errors
from rotator.clock import SystemClock
from rotator.errors import Permanent, Transient
from rotator.reasons import Reason
from rotator.stores import AppRoleAuth, TokenAuth, VaultStore

URL = f"http://me:{SECRET}@vault.example:8200"
CONNECTOR = "urllib3.util.connection.create_connection"

UNREACHABLE = (Transient, Reason.VAULT_UNREACHABLE)
UNAVAILABLE = (Transient, Reason.VAULT_UNAVAILABLE)
WRONG_ADDRESS = (Permanent, Reason.VAULT_UNREACHABLE)
REFUSED_TOKEN = (Permanent, Reason.VAULT_AUTH)
DENIED = (Permanent, Reason.VAULT_DENIED)
NO_KV2 = (Permanent, Reason.VAULT_PATH_INVALID)

REQUESTS: Mapping[str, Meaning] = {
    "ChunkedEncodingError": UNREACHABLE,
    "ConnectTimeout": UNREACHABLE,
    "ConnectionError": UNREACHABLE,
    "ContentDecodingError": UNAVAILABLE,
    "CookieConflictError": UNAVAILABLE,
    "HTTPError": UNAVAILABLE,
    "InvalidHeader": REFUSED_TOKEN,  # found while a request is made; see below for an answer's
    "InvalidJSONError": UNAVAILABLE,
    "InvalidProxyURL": WRONG_ADDRESS,
    "InvalidSchema": WRONG_ADDRESS,
    "InvalidURL": WRONG_ADDRESS,
    "JSONDecodeError": UNAVAILABLE,
    "MissingSchema": WRONG_ADDRESS,
    "ProxyError": UNREACHABLE,
    "ReadTimeout": UNREACHABLE,
    "RequestException": UNAVAILABLE,
    "RetryError": UNAVAILABLE,
    "SSLError": UNREACHABLE,
    "StreamConsumedError": UNAVAILABLE,
    "Timeout": UNREACHABLE,
    "TooManyRedirects": WRONG_ADDRESS,
    "URLRequired": WRONG_ADDRESS,
    "UnrewindableBodyError": UNAVAILABLE,
}
HVAC: Mapping[str, Meaning] = {
    "BadGateway": UNAVAILABLE,
    "Forbidden": DENIED,
    "InternalServerError": UNAVAILABLE,
    "InvalidPath": NO_KV2,
    "InvalidRequest": NO_KV2,
    "ParamValidationError": NO_KV2,
    "PreconditionFailed": UNAVAILABLE,
    "RateLimitExceeded": (Transient, Reason.VAULT_RATE_LIMITED),
    "Unauthorized": DENIED,
    "UnexpectedError": UNAVAILABLE,
    "UnsupportedOperation": NO_KV2,
    "VaultDown": UNAVAILABLE,
    "VaultError": UNAVAILABLE,
    "VaultNotInitialized": UNAVAILABLE,
}
WRONG_ADDRESSES = dict.fromkeys(
    ("LocationParseError", "LocationValueError", "ProxySchemeUnknown", "URLSchemeUnknown"), WRONG_ADDRESS
)
# Raised by urllib3's pool while it sends: requests makes its own of most, and lets the others through.
URLLIB3: Mapping[str, Meaning] = {
    **dict.fromkeys(
        (
            "BodyNotHttplibCompatible", "CertificateError", "ClosedPoolError", "ConnectTimeoutError", "DecodeError",
            "EmptyPoolError", "FullPoolError", "HTTPError", "HeaderParsingError", "HostChangedError", "IncompleteRead",
            "InvalidChunkLength", "MaxRetryError", "NameResolutionError", "NewConnectionError", "PoolError",
            "ProtocolError", "ProxyError", "ProxySchemeUnsupported", "ReadTimeoutError", "RequestError",
            "ResponseError", "ResponseNotChunked", "SSLError", "TimeoutError", "TimeoutStateError",
            "UnrewindableBodyError",
        ),
        UNREACHABLE,
    ),
    **WRONG_ADDRESSES,
    "InvalidHeader": UNAVAILABLE,  # of an answer
}  # fmt: skip


def http_answer(asked: bytes) -> bytes:
    """Vault's answer to a read: version 1 without our fields; and to a write: version 2."""
    body = b'{"data": {"version": 2}}'
    if asked.startswith(b"GET"):
        body = b'{"data": {"data": {}, "metadata": {"version": 1}}}'
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def a_store(url: str = URL, **more: Any) -> VaultStore:
    """A store with a token, or with `auth`."""
    auth = more.pop("auth", TokenAuth(token=lambda: SECRET))
    return VaultStore(
        urls=[url],
        auth=auth,
        timeout=timedelta(seconds=1),
        clock=SystemClock(),
        on_request=lambda _done: None,
        **more,
    )


@pytest.fixture
def store() -> Iterator[VaultStore]:
    store = a_store()
    yield store
    store.close()


@pytest.fixture
def by_role() -> Iterator[VaultStore]:
    store = a_store(auth=AppRoleAuth(role_id=lambda: "role", secret_id=lambda: SECRET))
    yield store
    store.close()


def reads(store: VaultStore) -> object:
    return store.read("mqtt/a")


def writes(store: VaultStore) -> object:
    return store.put("mqtt/a", {"password": SECRET})


def checks(store: VaultStore) -> None:
    store.preflight("mqtt/a")


def serves(store: VaultStore) -> None:
    store.ready()


def renews(store: VaultStore) -> object:
    return store.renew()


VERBS: tuple[Callable[[VaultStore], object], ...] = (reads, writes, checks, serves, renews)


def raising(error: Exception) -> Callable[..., Any]:
    """What stands in a library's method, and raises."""

    def fail(*_args: object, **_options: object) -> Any:
        raise error

    return fail


def test_every_exception_of_requests_urllib3_and_hvac_is_decided_upon() -> None:
    """None is missing from the tables above, and none of them is gone."""
    assert names("requests") == set(REQUESTS)
    assert names("urllib3") == set(URLLIB3)
    assert names("hvac") == set(HVAC)
    assert len(classes("urllib3")) == len(URLLIB3)  # no name stands for two classes


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_an_exception_of_requests(
    name: str, store: VaultStore, by_role: VaultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every verb, and the login, make the same of it; the message holds neither the URL nor anything secret."""
    raised = made(named("requests", name))
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", raising(raised))
    for verb in VERBS:
        assert REQUESTS[name] == outcome(verb, store, raised=raised), verb
    assert REQUESTS[name] == outcome(reads, by_role, raised=raised)


@pytest.mark.parametrize("name", sorted(HVAC))
def test_an_exception_of_hvac(name: str, store: VaultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It means what its status means."""
    raised = made(named("hvac", name))
    monkeypatch.setattr("hvac.adapters.RawAdapter.request", raising(raised))
    for verb in VERBS:
        assert HVAC[name] == outcome(verb, store, raised=raised), verb


@pytest.mark.parametrize("name", sorted(URLLIB3))
def test_an_exception_of_urllib3(name: str, store: VaultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether requests made its own of it or not."""
    raised = made(named("urllib3", name))
    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", raising(raised))
    for verb in VERBS:
        assert URLLIB3[name] == outcome(verb, store, raised=raised), verb


@pytest.mark.parametrize("name", sorted(URLLIB3))
def test_an_exception_of_urllib3_in_a_body(name: str, store: VaultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is lost while the answer comes: worth another try, whatever the name."""
    raised = made(named("urllib3", name))
    Wire(http_answer).put_in_place(monkeypatch, CONNECTOR)
    monkeypatch.setattr(urllib3.HTTPResponse, "stream", raising(raised))
    expected = {"DecodeError": UNAVAILABLE, **WRONG_ADDRESSES}.get(name, UNREACHABLE)
    for verb in (reads, writes):
        assert expected == outcome(verb, store, raised=raised), verb


# --- sockets, names, TLS --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(os_errors()))
@pytest.mark.parametrize("phase", PHASES)
def test_an_error_of_the_socket(phase: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read's connection, and the one of a write behind a read that went well."""
    store = a_store(URL.replace("http:", "https:") if phase == HANDSHAKE else URL)
    for number, verb in ((0, reads), (1, writes)):
        raised = made(os_errors()[name])
        wire = Wire(http_answer, number=number, phase=phase, error=raised)
        with monkeypatch.context() as patch:
            wire.put_in_place(patch, CONNECTOR)
            assert UNREACHABLE == outcome(verb, store, raised=raised), verb
            assert wire.opened == number + 1
    store.close()


@pytest.mark.parametrize("name", sorted(value_errors()))
def test_a_value_that_can_not_be_sent(name: str, store: VaultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person has to mend what can't be encoded; the others may be an answer's fault."""
    raised = made(value_errors()[name])
    Wire(http_answer, number=0, phase=CONNECT, error=raised).put_in_place(monkeypatch, CONNECTOR)
    expected = REFUSED_TOKEN if name == "UnicodeEncodeError" else UNREACHABLE
    assert expected == outcome(reads, store, raised=raised)


def test_a_working_connection_is_no_error(store: VaultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wire that breaks in the tests above works where nothing breaks it."""
    wire = Wire(http_answer)
    wire.put_in_place(monkeypatch, CONNECTOR)
    assert 2 == store.put("mqtt/a", {"password": SECRET})


# --- what is wrong on this side, and what comes back ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "more", "expected"),
    [
        (f"http://{'a' * 64}.example", {}, WRONG_ADDRESS),
        (f"http://me:{SECRET}@a..b", {}, WRONG_ADDRESS),
        ("http://127.0.0.1:99999", {}, WRONG_ADDRESS),
        ("ftp://vault.example", {}, WRONG_ADDRESS),
        ("http://127.0.0.1:1", {"namespace": "équipe✓"}, REFUSED_TOKEN),
        ("http://127.0.0.1:1", {"namespace": "a\nb"}, REFUSED_TOKEN),
        ("https://127.0.0.1:1", {"ca_file": "/no/such/file"}, UNREACHABLE),
    ],
)
def test_a_setting_that_no_request_can_be_made_of(url: str, more: dict[str, str], expected: Meaning) -> None:
    """Found at the first request, and said so."""
    store = a_store(url, **more)
    assert expected == outcome(reads, store)
    store.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 307 X\r\nContent-Length: 0\r\nLocation: http://[bad\r\n\r\n", UNREACHABLE),
        (b"HTTP/1.1 307 X\r\nContent-Length: 0\r\nLocation: \xff\xfe\r\n\r\n", UNREACHABLE),
        (b"HTTP/1.1 200 X\r\nContent-Length: 1,2\r\n\r\n{}", UNAVAILABLE),
        (b"HTTP/1.1 200 X\r\nContent-Length: 3\r\nContent-Encoding: gzip\r\n\r\nabc", UNAVAILABLE),
        (b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", UNREACHABLE),
        (b"no HTTP at all\r\n\r\n", UNREACHABLE),
        (b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\n\xff\xfe", UNAVAILABLE),
        (b"HTTP/1.1 200 X\r\nContent-Length: 6000\r\n\r\n" + b"[" * 6000, UNAVAILABLE),
        (b'HTTP/1.1 500 X\r\nContent-Length: 22\r\n\r\n{"errors": ["\\ud800"]}', UNAVAILABLE),
    ],
    ids=lambda value: repr(value[:70]) if isinstance(value, bytes) else "",
)
def test_an_answer_that_is_none(
    answer: bytes, expected: Meaning, store: VaultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redirects to nowhere, broken framings, bodies that are no JSON."""
    Wire(lambda _asked: answer).put_in_place(monkeypatch, CONNECTOR)
    assert expected == outcome(reads, store)
