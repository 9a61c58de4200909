"""The one HTTP piece that all providers share: one request, one total deadline, one `RequestDone`.

What it settles once for all of them:

- a failure before the request could leave is "nothing happened" (Transient); any later one is "it may have happened",
  which is UnknownOutcome for a call that changes something and Transient for one that only looks (rule 9). The
  transport's own trace decides where there is one, else the exception's class;
- httpx's timeouts are for each connect, write and read; here they are cut to what is left of one deadline, and a
  request whose turn comes after the deadline is not sent at all (rule 4 needs a real total);
- an answer is never longer than `LONGEST_BODY`, unpacked;
- no body, header or variable is logged.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto
from functools import cache
from typing import Any, Final, TypeVar

import h11
import httpx

from rotator.errors import Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import RequestDone
from rotator.ports import Clock, OnRequest
from rotator.providers.pace import Pace
from rotator.providers.unpacking import unpacked
from rotator.providers.wire import bound
from rotator.reasons import Reason
from rotator.timestamps import parse_http_date

T = TypeVar("T")

LONGEST_BODY: Final = 10 * 1024 * 1024  # bytes
CONNECT_TIMEOUT: Final = 10.0  # seconds, for one address; a peer that is up answers a SYN much sooner

# Where platforms and the proxies before them name a request, in lower case.
REQUEST_IDS: Final = ("x-request-id", "request-id", "x-correlation-id", "x-amzn-requestid", "x-amzn-trace-id", "cf-ray")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/=;-]{1,100}")

# What httpx raises before a byte of the request has left (httpx docs, "Exceptions"). All else may have been sent.
# A stale kept-alive connection is not among them: the peer may have read the request before it closed.
NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
    httpx.CookieConflict,
)
# Every exception that httpx has: HTTPError's tree and the three that stand beside it.
ALL_ERRORS: Final = (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError)
# What httpx lets through as it is: a host name that DNS can't hold and a `Location` that is no URL (both ValueError), a
# client that another thread closes (RuntimeError), h11's refusal to send, and sockets beside the reads and writes.
LET_THROUGH: Final = (OSError, ValueError, RuntimeError, h11.ProtocolError)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """What came back: any status, whole body."""

    status: int
    headers: Mapping[str, str] = field(repr=False)  # lower-case names
    body: bytes = field(repr=False)

    @property
    def request_id(self) -> str:
        """The peer's own name for this request; empty where it gave none that can be written down."""
        given = next((self.headers[name] for name in REQUEST_IDS if name in self.headers), "")
        return given if _REQUEST_ID.fullmatch(given) else ""


class _Phase(Enum):
    """How far a request has come."""

    BUILDING = auto()
    HANDED_OVER = auto()  # to a transport that has told nothing of it yet; one without a trace never will
    CONNECTING = auto()
    SENDING = auto()  # from here on a byte of it may have left


@dataclass(slots=True)
class _Progress:
    phase: _Phase = _Phase.BUILDING


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    url: str
    json: object = field(repr=False)
    params: Mapping[str, str] | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


class Peer:
    """Sends requests to one provider and reports each to `on_request`. Thread safe, as httpx.Client is.

    Args:
        name: the provider's name in the configuration, the `peer` of each `RequestDone`.
        client: made once and kept; its own timeouts are not used.
        clock: for deadlines (monotonic) and the peer's clock skew (now).
        on_request: called once for each request, whatever came of it.
        pace: how fast and how many at once; None: without bound.
    """

    def __init__(
        self, name: str, *, client: httpx.Client, clock: Clock, on_request: OnRequest, pace: Pace | None = None
    ) -> None:
        self._name = name
        self._client = client
        self._clock = clock
        self._on_request = on_request
        self._pace = pace or Pace(name, clock=clock, concurrency=256)

    @property
    def name(self) -> str:
        """The provider's name in the configuration."""
        return self._name

    @property
    def clock(self) -> Clock:
        """What its deadlines are measured by."""
        return self._clock

    def close(self) -> None:
        """Give back the connections; never raises."""
        self._client.close()

    def post(
        self,
        url: str,
        *,
        operation: str,
        json: object,
        headers: Mapping[str, str],
        deadline: float,
        changes: bool,
        read: Callable[[HttpAnswer], tuple[str, T]],
    ) -> T:
        """`request` by POST."""
        return self.request(
            "POST", url, operation=operation, json=json, headers=headers, deadline=deadline, changes=changes, read=read
        )

    def request(
        self,
        method: str,
        url: str,
        *,
        operation: str,
        headers: Mapping[str, str],
        deadline: float,
        changes: bool,
        read: Callable[[HttpAnswer], tuple[str, T]],
        json: object = None,
        params: Mapping[str, str] | None = None,
    ) -> T:
        """Send one request and return what `read` makes of the whole answer, whatever its status.

        Args:
            operation: the metric's label.
            json: the body; None for none.
            params: added to the URL's query.
            deadline: on the clock's monotonic scale, in seconds; all of the call ends by then.
            changes: whether the call changes something at the provider that can't be taken back.
            read: takes the answer, returns the metric's `code` and the result; it must not raise. Without an answer the
                code is the exception's name.

        Raises:
            Transient: nothing was sent (PROVIDER_RATE_LIMITED: our own pace did not let it go); or, where `changes` is
                False, no whole answer came.
            Permanent: PROVIDER_AUTH, nothing was sent, since a value can't be written as text.
            UnknownOutcome: `changes`, and no whole answer came to a request that may have been sent.
        """
        with self._pace.turn(deadline):
            request = _Request(method=method, url=url, json=json, params=params, headers=headers)
            return self._send(request, operation=operation, deadline=deadline, changes=changes, read=read)

    def _send(
        self,
        request: _Request,
        *,
        operation: str,
        deadline: float,
        changes: bool,
        read: Callable[[HttpAnswer], tuple[str, T]],
    ) -> T:
        start, code, skew, request_id = self._clock.monotonic(), "unsent", None, ""
        progress = _Progress()
        try:
            if deadline <= start:
                raise httpx.ConnectTimeout("no time was left to send the request")
            if self._client.is_closed:
                raise httpx.ConnectError("the client is closed")
            answer = self._exchange(request, deadline, progress)
            skew, request_id = self._skew(answer, start), answer.request_id
            code, result = read(answer)
            return result
        except (*ALL_ERRORS, *LET_THROUGH) as exc:
            code = type(exc).__name__
            # what can't be encoded stands in that exception whole, and a character of it in its text (rule 6)
            cause = None if isinstance(exc, UnicodeEncodeError) else exc
            raise self._failure(exc, progress.phase, operation=operation, changes=changes) from cause
        finally:
            seconds = self._clock.monotonic() - start
            self._on_request(
                RequestDone(
                    peer=self._name,
                    operation=operation,
                    code=code,
                    seconds=seconds,
                    skew=skew,
                    request_id=request_id,
                )
            )

    def _exchange(self, wanted: _Request, deadline: float, progress: _Progress) -> HttpAnswer:
        timeouts: dict[str, float] = {}
        self._shrink(timeouts, deadline)

        def before(event: str, info: Mapping[str, Any]) -> None:
            # httpcore reads `timeouts` anew in each phase, so this makes the phases' timeouts one total.
            if not event.endswith(".started"):
                return
            left = self._shrink(timeouts, deadline)
            if progress.phase is _Phase.HANDED_OVER:
                progress.phase = _Phase.CONNECTING
            if event.endswith("send_request_headers.started"):
                if left <= 0:
                    raise httpx.ConnectTimeout("the deadline passed before the request was sent")
                if info["request"].method != b"CONNECT":  # which asks a proxy for a tunnel, ahead of our request
                    progress.phase = _Phase.SENDING

        request = self._client.build_request(
            wanted.method,
            wanted.url,
            json=wanted.json,
            params=wanted.params,
            headers=wanted.headers,
            extensions={"timeout": timeouts, "trace": before},
        )
        progress.phase = _Phase.HANDED_OVER
        response = self._client.send(request, stream=True)
        try:
            body = bytearray()
            # a transport in memory may have read and unpacked it already
            pieces = response.iter_bytes() if response.is_stream_consumed else unpacked(response, LONGEST_BODY)
            for piece in pieces:
                body += piece
                if self._clock.monotonic() > deadline:
                    raise httpx.ReadTimeout("the deadline passed while the answer came")
            return HttpAnswer(status=response.status_code, headers=dict(response.headers), body=bytes(body))
        finally:
            response.close()

    def _shrink(self, timeouts: dict[str, float], deadline: float) -> float:
        left = deadline - self._clock.monotonic()
        wait = max(left, 0.001)  # zero would mean "do not wait" to a socket: an error that says nothing of time
        timeouts.update(connect=min(wait, CONNECT_TIMEOUT), pool=wait, write=wait, read=wait)
        return left

    def _skew(self, answer: HttpAnswer, start: float) -> timedelta | None:
        at = parse_http_date(answer.headers.get("date", ""))
        if at is None:
            return None
        half = timedelta(seconds=(self._clock.monotonic() - start) / 2)  # the answer was made somewhere in between
        return at - (self._clock.now() - half)

    def _failure(self, exc: Exception, phase: _Phase, *, operation: str, changes: bool) -> RotatorError:
        what = f"{self._name}: {operation}: {type(exc).__name__}"
        if phase is _Phase.BUILDING and isinstance(exc, UnicodeEncodeError):
            text = f"{what}: a value of the login, or the key's id, can't be sent as text"
            return Permanent(text, reason=Reason.PROVIDER_AUTH)
        unsent = isinstance(exc, NOT_SENT) if phase is _Phase.HANDED_OVER else phase is not _Phase.SENDING
        if unsent:
            return Transient(f"{what} before the request was sent", reason=Reason.PROVIDER_UNREACHABLE)
        if changes:
            return UnknownOutcome(f"{what}: the request may have taken effect")
        if isinstance(exc, httpx.DecodingError | ValueError):
            return Transient(f"{what}: the answer can't be read", reason=Reason.PROVIDER_ANSWER_UNREADABLE)
        return Transient(f"{what}: no whole answer came", reason=Reason.PROVIDER_UNREACHABLE)


def make_client(
    *, verify: ssl.SSLContext | bool = True, connections: int = 32, proxy: str | None = None
) -> httpx.Client:
    """An httpx client fit for a provider: kept connections for a pool of threads, no redirects.

    A redirect of a POST is followed by no rule that all servers share, so it is an error that names the status.
    """
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    client = httpx.Client(verify=verify, limits=limits, follow_redirects=False, proxy=proxy)
    for transport in (client._transport, *client._mounts.values()):  # those of proxies, by environment or by argument
        bound(transport)
    return client


def make_tls(*, ca_file: str | None, client_cert: str | None, client_key: str | None) -> ssl.SSLContext | bool:
    """What `verify` of `make_client` takes: the system's authorities, or those of `ca_file`; and who we are.

    Raises: OSError, ssl.SSLError where a file can't be read or is none.
    """
    if ca_file is None and client_cert is None:
        return _usual_tls()
    context = ssl.create_default_context(cafile=ca_file)
    if client_cert is not None:
        context.load_cert_chain(client_cert, client_key)
    return context


@cache
def _usual_tls() -> ssl.SSLContext:
    """httpx's own authorities, read once: that takes 30 ms."""
    return httpx.create_ssl_context()
