"""One request to Vault and what its answer means: statuses, error texts, lost connections, several addresses.

hvac speaks through its own adapter with `ignore_exceptions`, so that each answer comes back whole: hvac's exceptions
drop the status and the headers (`Retry-After`, `Date`), and know neither 412 nor the health codes. Every request is
one `RequestDone`. No body, token or header is logged or put into an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import hvac.exceptions
import requests
import structlog
import urllib3.exceptions
from hvac.adapters import RawAdapter
from hvac.api.system_backend import Health
from requests.adapters import HTTPAdapter

from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import RequestDone, Secret
from rotator.ports import Clock, OnRequest
from rotator.reasons import Reason
from rotator.timestamps import parse_http_date, retry_after

Send = Callable[[RawAdapter], requests.Response]

_CHUNK: Final = 64 * 1024
LONGEST_ANSWER: Final = 16 * 1024 * 1024  # bytes; a secret has at most one MiB, unless Vault is configured otherwise
POOL: Final = 32  # kept connections for one address: above the daemon's threads, or urllib3 throws some away
_LONGEST_MESSAGE: Final = 200
# Statuses that a caller reads itself; all others from 300 on mean the same wherever they come from.
_CALLERS: Final = frozenset({400, 401, 403, 404, 405})
# Where another address may do better.
_ELSEWHERE: Final = frozenset({Reason.VAULT_UNREACHABLE, Reason.VAULT_SEALED, Reason.VAULT_UNAVAILABLE})
# sys/health of a node that serves: active, standby (forwards, or names the active one), performance standby.
_HEALTHY: Final = frozenset({200, 429, 473})
_UNHEALTHY: Final = {
    472: "it is a disaster recovery secondary",
    474: "it is a standby that can't reach the active node",
    501: "it is not initialized",
    530: "it was removed from its cluster",
}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PORTS: Final = {"http": 80, "https": 443}

# The status that each of hvac's exceptions stands for; hvac raises none of them here but for a wrong argument.
HVAC_STATUS: Final[Mapping[type[hvac.exceptions.VaultError], int]] = {
    hvac.exceptions.VaultError: 500,
    hvac.exceptions.InvalidRequest: 400,
    hvac.exceptions.ParamValidationError: 400,
    hvac.exceptions.Unauthorized: 401,
    hvac.exceptions.Forbidden: 403,
    hvac.exceptions.InvalidPath: 404,
    hvac.exceptions.UnsupportedOperation: 405,
    hvac.exceptions.PreconditionFailed: 412,
    hvac.exceptions.RateLimitExceeded: 429,
    hvac.exceptions.InternalServerError: 500,
    hvac.exceptions.VaultNotInitialized: 501,
    hvac.exceptions.BadGateway: 502,
    hvac.exceptions.VaultDown: 503,
    hvac.exceptions.UnexpectedError: 500,
}

# What `requests` raises, and lets through, first match wins. A write that was cut off may be sent again: `cas` makes
# that harmless.
REQUESTS_ERRORS: Final[Sequence[tuple[type[Exception], type[RotatorError], Reason]]] = (
    (requests.exceptions.InvalidHeader, Permanent, Reason.VAULT_AUTH),  # a token that can't stand in a header
    (requests.exceptions.URLRequired, Permanent, Reason.VAULT_UNREACHABLE),
    (requests.exceptions.MissingSchema, Permanent, Reason.VAULT_UNREACHABLE),
    (requests.exceptions.InvalidSchema, Permanent, Reason.VAULT_UNREACHABLE),
    (requests.exceptions.InvalidURL, Permanent, Reason.VAULT_UNREACHABLE),
    (requests.exceptions.TooManyRedirects, Permanent, Reason.VAULT_UNREACHABLE),
    (requests.exceptions.ConnectionError, Transient, Reason.VAULT_UNREACHABLE),  # with SSLError, ProxyError
    (requests.exceptions.Timeout, Transient, Reason.VAULT_UNREACHABLE),
    (requests.exceptions.ChunkedEncodingError, Transient, Reason.VAULT_UNREACHABLE),
    (requests.exceptions.RequestException, Transient, Reason.VAULT_UNAVAILABLE),
    (urllib3.exceptions.LocationValueError, Permanent, Reason.VAULT_UNREACHABLE),  # a host name that DNS can't hold
    (OSError, Transient, Reason.VAULT_UNREACHABLE),  # with a CA file that is gone
    (urllib3.exceptions.HTTPError, Transient, Reason.VAULT_UNREACHABLE),
    (ValueError, Transient, Reason.VAULT_UNREACHABLE),  # a `Location` that is no URL
    (RuntimeError, Transient, Reason.VAULT_UNAVAILABLE),
)
LIBRARY_ERRORS: Final = (OSError, ValueError, RuntimeError, hvac.exceptions.VaultError, urllib3.exceptions.HTTPError)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultAnswer:
    """A whole answer below 300, or one of those that the caller reads itself (400, 401, 403, 404, 405)."""

    status: int
    body: Mapping[str, object] = field(repr=False)  # {} where there was no JSON object
    is_json: bool

    @property
    def ok(self) -> bool:
        """Whether Vault did what was asked."""
        return self.status < 300

    @property
    def denied(self) -> bool:
        """Whether the token, or its policy, was refused; Vault answers both alike."""
        return self.status in (401, 403) or (self.status == 400 and "missing client token" in self.text)

    @property
    def text(self) -> str:
        """Vault's own words on one short line: `errors`, else `warnings`."""
        return vault_text(self.body)

    def part(self, *names: str) -> Mapping[str, object]:
        """The object below `names`, or {}."""
        here: object = self.body
        for name in names:
            here = here.get(name) if isinstance(here, Mapping) else None
        return here if isinstance(here, Mapping) else {}


def vault_text(body: Mapping[str, object]) -> str:
    """What Vault says went wrong, shortened; its texts name paths and rules, never values."""
    for name in ("errors", "warnings"):
        found = body.get(name)
        if isinstance(found, list) and found:
            text = "; ".join(str(each) for each in found if isinstance(each, str | int))
            # half of a surrogate pair, which JSON can hold, can be written neither to the journal nor to a log
            line = " ".join(text.encode(errors="replace").decode().split())
            return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 1] + "…"
    return ""


def status_error(status: int, text: str, *, what: str, delay: timedelta | None = None) -> RotatorError:
    """What a status from 300 on means where the caller knows no better.

    Args:
        status: HTTP status.
        text: Vault's own words, or "".
        what: the operation and its path, the start of the message.
        delay: from `Retry-After`.
    """
    message = f"vault: {what}: HTTP {status}" + (f": {text}" if text else "")
    match status:
        case 429:
            return Transient(message, reason=Reason.VAULT_RATE_LIMITED, retry_after=delay)
        case 401 | 403:
            return Permanent(message, reason=Reason.VAULT_DENIED)
        case 503 if "sealed" in text.lower():
            return Transient(message, reason=Reason.VAULT_SEALED, retry_after=delay)
        case 400 if "upgrad" in text.lower():
            # "Upgrading from non-versioned to versioned data. This backend will be unavailable for a brief period"
            return Transient(message, reason=Reason.VAULT_UNAVAILABLE, retry_after=delay)
        case 413:
            words = f"{message}: the secret with all its fields is larger than Vault, or a proxy before it, takes"
            return Transient(words, reason=Reason.VAULT_UNAVAILABLE)
        case 408 | 412 | 425 | 472 | 473:
            return Transient(message, reason=Reason.VAULT_UNAVAILABLE, retry_after=delay)
        case _ if status >= 500:
            return Transient(message, reason=Reason.VAULT_UNAVAILABLE, retry_after=delay)
        case _:
            return Permanent(message, reason=Reason.VAULT_PATH_INVALID)


def library_error(exc: Exception, *, what: str) -> RotatorError:
    """What an exception of requests or hvac means."""
    if isinstance(exc, hvac.exceptions.VaultError):
        return status_error(HVAC_STATUS.get(type(exc), 500), type(exc).__name__, what=what)
    if isinstance(exc, requests.exceptions.InvalidHeader) and exc.request is not None:
        # urllib3 found it in the answer; one of ours is found while the request is made
        return Transient(f"vault: {what}: InvalidHeader in the answer", reason=Reason.VAULT_UNAVAILABLE)
    if isinstance(exc, UnicodeEncodeError):  # http.client's; a token was looked at before
        return Permanent(f"vault: {what}: the namespace can't stand in a header", reason=Reason.VAULT_AUTH)
    for kind, error, reason in REQUESTS_ERRORS:
        if isinstance(exc, kind):
            return error(f"vault: {what}: {type(exc).__name__}", reason=reason)
    return Transient(f"vault: {what}: {type(exc).__name__}", reason=Reason.VAULT_UNAVAILABLE)


class _Bounded(HTTPAdapter):
    """Reads no more of an answer than Vault could ever send: something else may answer in its place."""

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        response = super().send(request, *args, **options)
        if response._content is False:  # not read yet; requests itself would read all of it
            content = bytearray()
            for chunk in response.iter_content(_CHUNK):
                content += chunk
                if len(content) > LONGEST_ANSWER:
                    response.close()
                    raise requests.exceptions.ContentDecodingError(f"the answer is longer than {LONGEST_ANSWER} bytes")
            response._content = bytes(content)
        return response


class VaultWire:
    """Sends requests to the first of several addresses that serves. Thread safe.

    Args:
        urls: of one cluster, in the order to try; the last that served is tried first.
        namespace: `X-Vault-Namespace` for all but sys/health, which lives in the root namespace.
        ca_file: PEM of the authorities to trust, None for the system's.
        client_cert: PEM files of our own certificate and its key, for servers that ask for one.
        timeout: for the connection, and for each read.
        clock, on_request: as everywhere; `peer` is "vault".
    """

    def __init__(
        self,
        *,
        urls: Sequence[str],
        namespace: str | None,
        ca_file: str | None,
        client_cert: tuple[str, str] | None = None,
        timeout: timedelta,
        clock: Clock,
        on_request: OnRequest,
    ) -> None:
        if not urls:
            raise ValueError("at least one Vault address is needed")
        self._urls = tuple(url.rstrip("/") for url in urls)
        self._namespace = namespace
        self._timeout = timeout.total_seconds()
        self._clock = clock
        self._on_request = on_request
        self._serving = 0
        self._session = requests.Session()
        self._session.verify = ca_file or True
        self._session.cert = client_cert
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Bounded(pool_connections=len(urls), pool_maxsize=POOL, max_retries=0))

    def call(
        self, operation: str, send: Send, *, what: str, token: Secret | None = None, elsewhere: bool = True
    ) -> VaultAnswer:
        """One request; a next address is tried where one is unreachable, sealed or ill.

        A standby that does not forward names the active node. That is asked where it is one of ours; no token goes to
        an address that the configuration does not name.

        Args:
            operation: the metric's label.
            send: makes the request with hvac on the adapter that it is given.
            what: the operation and its path, for messages.
            token: sent where given.
            elsewhere: False for a request that must not be made twice: only a redirect leads to another address.

        Returns: an answer below 300 or with status 400, 401, 403, 404, 405.

        Raises:
            Transient, Permanent: see `status_error` and `REQUESTS_ERRORS`; of several addresses, the first one's.
        """
        first: RotatorError | None = None
        start = self._serving
        untried = [(start + step) % len(self._urls) for step in range(len(self._urls))]
        while untried:
            index = untried.pop(0)
            try:
                response, delay = self._once(index, operation, send, what, token)
                if response.status_code in _REDIRECTS:
                    active = self._active(index, response.headers.get("Location", ""), untried, what=what)
                    untried.remove(active)
                    untried.insert(0, active)
                    continue
                answer = self._judge(response, delay, what=what)
            except Transient as exc:
                first = first or exc
                if exc.reason not in _ELSEWHERE or not elsewhere:
                    raise
                continue
            if index != start:
                _log.info("vault answers at another address", address=index + 1, of=len(self._urls))
            self._serving = index
            return answer
        assert first is not None  # a redirect leads to an address that was not tried, and the last of them answers
        raise first

    def _active(self, index: int, location: str, untried: Sequence[int], *, what: str) -> int:
        """The address that a redirect leads to.

        Raises: Transient VAULT_UNREACHABLE where that is none of ours, or was asked already.
        """
        try:
            target = urljoin(self._urls[index] + "/", location)
            found, shown = _origin(target), f"{urlsplit(target).scheme}://{urlsplit(target).netloc.rpartition('@')[2]}"
        except ValueError:
            found, shown = None, "nowhere"
        mine = [each for each, url in enumerate(self._urls) if found is not None and _origin(url) == found]
        left = [each for each in mine if each in untried]
        if left:
            return left[0]
        why = "which was asked already" if mine else "which is not in `vault.url`, so no token is sent there"
        raise Transient(f"vault: {what}: redirected to {shown}, {why}", reason=Reason.VAULT_UNREACHABLE)

    def count(self, operation: str, code: str) -> None:
        """Report a request that was not sent, since it must not be."""
        self._on_request(RequestDone(peer="vault", operation=operation, code=code, seconds=0.0, skew=None))

    def health(self) -> None:
        """Raise where no address serves: Transient VAULT_UNREACHABLE, VAULT_SEALED or VAULT_UNAVAILABLE."""
        first: RotatorError | None = None
        start = self._serving
        for step in range(len(self._urls)):
            index = (start + step) % len(self._urls)
            try:
                response, _ = self._once(index, "health", _read_health, "health", None, namespaced=False)
                if response.status_code in _REDIRECTS:  # no node does that, a balancer does
                    self._active(index, response.headers.get("Location", ""), (), what="health")
            except Transient as exc:
                first = first or exc
                continue
            if response.status_code in _HEALTHY:
                self._serving = index
                return
            first = first or _unhealthy(response.status_code, _json(response))
        assert first is not None  # there is at least one address
        raise first

    def close(self) -> None:
        """Give back connections."""
        self._session.close()

    def _once(
        self, index: int, operation: str, send: Send, what: str, token: Secret | None, *, namespaced: bool = True
    ) -> tuple[requests.Response, timedelta | None]:
        adapter = RawAdapter(
            base_uri=self._urls[index],
            token=token.reveal() if token else "",  # "" and not None: hvac would look for ~/.vault-token
            session=self._session,
            timeout=self._timeout,  # type: ignore[arg-type]  # requests takes fractions, hvac's stub says int
            namespace=self._namespace if namespaced else None,
            ignore_exceptions=True,
            allow_redirects=False,  # requests would take the token along to any host
        )
        start, code, skew = self._clock.monotonic(), "unsent", None
        try:
            response = send(adapter)
            code = str(response.status_code)
            at = parse_http_date(response.headers.get("Date", ""))
            if at is not None:
                half = timedelta(seconds=(self._clock.monotonic() - start) / 2)  # the answer was made in between
                skew = at - (self._clock.now() - half)
            return response, retry_after(response.headers.get("Retry-After"), self._clock.now())
        except LIBRARY_ERRORS as exc:  # requests' own are OSErrors
            code = type(exc).__name__
            # what can't be encoded stands in that exception whole, and a character of it in its text (rule 6)
            raise library_error(exc, what=what) from (None if isinstance(exc, UnicodeEncodeError) else exc)
        finally:
            seconds = self._clock.monotonic() - start
            self._on_request(RequestDone(peer="vault", operation=operation, code=code, seconds=seconds, skew=skew))

    @staticmethod
    def _judge(response: requests.Response, delay: timedelta | None, *, what: str) -> VaultAnswer:
        body, status = _json(response), response.status_code
        if status >= 300 and (status not in _CALLERS or (status == 400 and "upgrad" in vault_text(body or {}).lower())):
            raise status_error(status, vault_text(body or {}), what=what, delay=delay)
        if status == 200 and body is None:
            message = f"vault: {what}: HTTP 200 with a body that is not Vault's; is there a proxy in between?"
            raise Transient(message, reason=Reason.VAULT_UNAVAILABLE)
        return VaultAnswer(status=status, body=body or {}, is_json=body is not None)


def raw(answer: object) -> requests.Response:
    """hvac's raw adapter gives the response itself; its stubs say otherwise."""
    assert isinstance(answer, requests.Response)
    return answer


def _read_health(adapter: RawAdapter) -> requests.Response:
    response: requests.Response = Health(adapter).read_health_status(method="GET")
    return response


def _unhealthy(status: int, body: Mapping[str, object] | None) -> RotatorError:
    if status == 503 and (body or {}).get("sealed") is True:
        return Transient("vault: health: it is sealed", reason=Reason.VAULT_SEALED)
    words = _UNHEALTHY.get(status, f"HTTP {status}")
    return Transient(f"vault: health: {words}", reason=Reason.VAULT_UNAVAILABLE)


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port. Raises: ValueError."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)


def _json(response: requests.Response) -> Mapping[str, object] | None:
    """The body as an object, or None. The decoder's error is dropped: it carries the whole body (rule 6)."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None
