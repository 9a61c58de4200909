"""One HTTP request of a consumer's: one total deadline, a short answer, no redirects, and nothing of it in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import h11
import httpx

from rotator.errors import Permanent, Transient
from rotator.reasons import Reason

LONGEST: Final = 64 * 1024  # bytes of an answer that are read
CONNECT_TIMEOUT: Final = 5.0  # seconds, for one address

# Every exception that httpx has, and what it lets through as it is (see providers/http.py).
_ERRORS: Final = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.CookieConflict,
    httpx.StreamError,
    OSError,
    ValueError,
    RuntimeError,
    h11.ProtocolError,
)
# No later try sends these either.
_NEVER: Final = (httpx.UnsupportedProtocol, httpx.InvalidURL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    headers: Mapping[str, str] = field(repr=False)  # lower-case names
    body: bytes = field(repr=False)


def exchange(
    client: httpx.Client,
    method: str,
    url: str,
    *,
    what: str,
    deadline: float,
    headers: Mapping[str, str],
    content: bytes | None = None,
) -> Answer:
    """Send one request and read its whole answer.

    Args:
        client: one that follows no redirects (`providers.make_client`).
        what: begins every message; the URL is not shown, since its query may be one's password.
        deadline: of `time.monotonic()`; all of the call ends by then.

    Raises:
        Transient: CONSUMER_TIMEOUT, or CONSUMER_RESTART_FAILED where no whole answer came.
        Permanent: CONSUMER_RESTART_FAILED where no request can be made of this.
    """
    timeouts: dict[str, float] = {}

    def shrink(_event: str, _info: Mapping[str, Any]) -> None:
        # httpcore reads the timeouts anew in each phase, so this makes them one total
        left = max(deadline - time.monotonic(), 0.001)
        timeouts.update(connect=min(left, CONNECT_TIMEOUT), pool=left, write=left, read=left)

    shrink("", {})
    try:
        request = client.build_request(
            method,
            url,
            content=content,
            headers={**headers, "accept-encoding": "identity"},  # so that what is counted is what is kept
            extensions={"timeout": timeouts, "trace": shrink},
        )
        response = client.send(request, stream=True, follow_redirects=False)
        try:
            return Answer(status=response.status_code, headers=dict(response.headers), body=_body(response, deadline))
        finally:
            response.close()
    except httpx.TimeoutException as exc:
        raise Transient(f"{what}: no answer in time ({type(exc).__name__})", reason=Reason.CONSUMER_TIMEOUT) from exc
    except _ERRORS as exc:
        # what can't be encoded stands in that exception whole, and it may be a header's secret
        cause = None if isinstance(exc, UnicodeEncodeError) else exc
        kind = Permanent if isinstance(exc, _NEVER) or cause is None else Transient
        raise kind(f"{what}: no answer ({type(exc).__name__})", reason=Reason.CONSUMER_RESTART_FAILED) from cause


def _body(response: httpx.Response, deadline: float) -> bytes:
    """The first `LONGEST` bytes of it; what is longer is nobody's version, and the connection is not kept."""
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) >= LONGEST:
            break
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout("the deadline passed while the answer came")
    return bytes(body[:LONGEST])
