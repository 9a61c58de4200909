"""REST with JSON, as the platforms speak it: one request, one `Reply`, one meaning for each status, one login for all.

A provider asks and looks at `Reply`; what its platform says of itself (paths, shapes, what a 404 means) stays there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Protocol

from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Secret
from rotator.ports import Clock, Reveal
from rotator.providers.graphql import harmless
from rotator.providers.http import HttpAnswer, Peer
from rotator.reasons import Reason
from rotator.timestamps import retry_after

LOOK_DEADLINE: Final = timedelta(seconds=30)  # of a call that may be repeated

# A login is renewed this long before it ends: a minute, or a fifth of a shorter one.
_MARGIN: Final = 60.0
_MARGIN_SHARE: Final = 0.2
_NESTED: Final = ("error", "detail", "errors")  # where platforms put what they say of a failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer, whatever its status, and the raw body for the journal."""

    what: str  # "provider: operation", the start of each message
    status: int
    body: bytes = field(repr=False)
    value: Any = field(repr=False)  # the parsed JSON; None where the body is none
    message: str = ""  # the platform's own words, fit to be logged
    retry_after: timedelta | None = None
    request_id: str = ""

    @property
    def ok(self) -> bool:
        """A status of success."""
        return 200 <= self.status < 300

    @property
    def fields(self) -> Mapping[str, Any]:
        """The answer where it is a JSON object, else nothing."""
        return self.value if isinstance(self.value, dict) else {}

    def error(self, *, changes: bool) -> RotatorError:
        """What an answer that can't be used means for a call that `changes` something or not.

        | status | for a call that changes something | else |
        | --- | --- | --- |
        | 429 | Transient PROVIDER_RATE_LIMITED: refused at the door | the same |
        | 401, 403 | Permanent PROVIDER_AUTH: refused at the door | the same |
        | 408, 5xx | UnknownOutcome: a gateway may speak for a server that did it | Transient PROVIDER_UNAVAILABLE |
        | 2xx | UnknownOutcome: not the document's shape | Transient PROVIDER_ANSWER_UNREADABLE |
        | other | Permanent PROVIDER_REFUSED | the same |

        An error of a call that changes something carries the answer, for the journal to seal.
        """
        named = f" (request {self.request_id})" if self.request_id else ""
        text = f"{self.what}: HTTP {self.status}{named}" + (f": {self.message}" if self.message else "")
        error: RotatorError
        match self.status:
            case 429:
                error = Transient(text, reason=Reason.PROVIDER_RATE_LIMITED, retry_after=self.retry_after)
            case 401 | 403:
                error = Permanent(text, reason=Reason.PROVIDER_AUTH)
            case status if status == 408 or status >= 500 or status < 300:
                error = UnknownOutcome(text) if changes else self._looked(text)
            case _:
                error = Permanent(text, reason=Reason.PROVIDER_REFUSED)
        error.body = self.body if changes else None
        return error

    def unreadable(self, problem: str) -> Transient:
        """For an answer to a look that is not what the platform documents."""
        return Transient(f"{self.what}: {problem}", reason=Reason.PROVIDER_ANSWER_UNREADABLE)

    def bad(self, problem: str, reason: Reason) -> BadAnswer:
        """For an answer to a call that issues, and that holds no usable secret; it carries the body."""
        return BadAnswer(f"{self.what}: {problem}", reason=reason, body=self.body)

    def secret(self, value: object) -> Secret:
        """The secret that `value` is.

        Raises: BadAnswer NO_SECRET (null), EMPTY_SECRET (blank), PROVIDER_ANSWER_UNREADABLE (no text).
        """
        if value is None:
            raise self.bad("the answer holds no secret", Reason.NO_SECRET)
        if isinstance(value, str) and not value.strip():
            raise self.bad("the answer's secret is empty", Reason.EMPTY_SECRET)
        if not is_text(value):
            raise self.bad("the answer's secret is no text", Reason.PROVIDER_ANSWER_UNREADABLE)
        return Secret(str(value))

    def _looked(self, text: str) -> Transient:
        if self.status < 300:
            return self.unreadable(f"HTTP {self.status} with a body that is not the document's")
        return Transient(text, reason=Reason.PROVIDER_UNAVAILABLE, retry_after=self.retry_after)


class Auth(Protocol):
    """What shows a platform who asks."""

    def headers(self, deadline: float) -> Mapping[str, str]:
        """Headers for one request; may log in or renew a login first.

        Raises: Transient, Permanent PROVIDER_AUTH.
        """
        ...

    def refused(self, used: Mapping[str, str]) -> bool:
        """The platform refused `used` (401); True where another try with new `headers` may go better."""
        ...

    def secrets(self) -> Iterable[str]:
        """What no message may repeat."""
        ...


class Fixed:
    """A token that somebody else makes and renews, read for each request. It is an `Auth`."""

    def __init__(self, name: str, token: Reveal, *, header: str = "Authorization", scheme: str = "Bearer ") -> None:
        self._name = name
        self._token = token
        self._last = ""  # that was sent
        self._header, self._scheme = header, scheme

    def headers(self, deadline: float) -> Mapping[str, str]:
        """The one header."""
        self._last = sendable(self._token(), f"{self._name}: the API token")
        return {self._header: self._scheme + self._last}

    def refused(self, used: Mapping[str, str]) -> bool:
        """Worth another try only where the token was replaced meanwhile."""
        return used.get(self._header) != self._scheme + self._token()

    def secrets(self) -> Iterable[str]:
        """The token."""
        return [self._last]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a login gives. Lives are in seconds from the answer on; None: the platform names none."""

    access: Secret = field(repr=False)
    expires_in: float | None = None
    refresh: Secret | None = field(repr=False, default=None)
    refresh_expires_in: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    grant: Grant
    renew_at: float | None  # monotonic seconds
    refresh_ends_at: float | None


class Login:
    """A login that all calls share: made when first needed, renewed before it ends. It is an `Auth`. Thread safe.

    Args:
        log_in: asks for a login; takes a deadline (monotonic seconds).
        renew: asks for another by the one before; None where the platform has no such call. Where it is refused, a new
            login is made.
        clock: its monotonic side.
    """

    def __init__(
        self,
        log_in: Callable[[float], Grant],
        *,
        clock: Clock,
        renew: Callable[[Grant, float], Grant] | None = None,
        header: str = "Authorization",
        scheme: str = "Bearer ",
    ) -> None:
        self._log_in, self._renew = log_in, renew
        self._clock = clock
        self._header, self._scheme = header, scheme
        self._lock = threading.Lock()  # one thread asks, the others wait for its answer
        self._session: _Session | None = None
        self._failure: RotatorError | None = None
        self._failures = 0

    def headers(self, deadline: float) -> Mapping[str, str]:
        """The header with an access token that is good now.

        Raises: Permanent PROVIDER_AUTH: refused, and so is whoever waited for it, since a hundred keys that try the
        same wrong password lock the account; Transient: not possible now.
        """
        failures = self._failures
        with self._lock:
            session = self._session
            now = self._clock.monotonic()
            if session is None or (session.renew_at is not None and session.renew_at <= now):
                if self._failures != failures and self._failure is not None:
                    raise self._failure
                session = self._session = self._made(session, deadline)
        return {self._header: self._scheme + sendable(session.grant.access.reveal(), "the access token")}

    def refused(self, used: Mapping[str, str]) -> bool:
        """Drop the session that `used` came from; a new login may go better."""
        with self._lock:
            if self._session is not None and used.get(self._header) == self._shown(self._session):
                self._session = None
        return True

    def secrets(self) -> Iterable[str]:
        """The tokens of the login there is."""
        session = self._session
        if session is None:
            return []
        grant = session.grant
        return [token.reveal() for token in (grant.access, grant.refresh) if token is not None]

    def dropped(self) -> Grant | None:
        """Forget the login and return it, for a last call that ends it at the platform."""
        with self._lock:
            session, self._session = self._session, None
        return session.grant if session is not None else None

    def _shown(self, session: _Session) -> str:
        return self._scheme + session.grant.access.reveal()

    def _made(self, before: _Session | None, deadline: float) -> _Session:
        try:
            return self._taken(self._renewed(before, deadline) or self._log_in(deadline))
        except RotatorError as exc:
            self._failure, self._failures = exc, self._failures + 1
            raise

    def _renewed(self, before: _Session | None, deadline: float) -> Grant | None:
        if before is None or before.grant.refresh is None or self._renew is None:
            return None
        if before.refresh_ends_at is not None and before.refresh_ends_at <= self._clock.monotonic():
            return None
        try:
            return self._renew(before.grant, deadline)
        except Permanent:
            return None  # the refresh token is spent or revoked; who we are is asked anew

    def _taken(self, grant: Grant) -> _Session:
        now, life = self._clock.monotonic(), grant.expires_in
        margin = min(_MARGIN, _MARGIN_SHARE * life) if life is not None else 0.0
        ends = grant.refresh_expires_in
        return _Session(
            grant=grant,
            renew_at=now + max(life - margin, 0.0) if life is not None else None,
            refresh_ends_at=now + ends if ends is not None else None,
        )


def said(value: object) -> str:
    """What an error answer says, whichever of the usual shapes it has; empty where it says nothing.

    `{message}`, `{type, message}`, `{error: text}`, `{error: {code, message}}`, `{error, message}`, `{detail: text}`,
    `{detail: [{msg}]}`, `{errors: [{message}]}`.
    """
    return ": ".join(dict.fromkeys(_words(value, 3)))


def _words(value: object, depth: int) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth:
        for each in value[:3]:
            yield from _words(each, depth - 1)
    elif isinstance(value, dict) and depth:
        for name in ("type", "code", *_NESTED, "message", "msg", "reason"):
            if name in value:
                yield from _words(value[name], depth - 1)


class Rest:
    """Asks one platform. Thread safe.

    Args:
        peer: sends the requests.
        url: the API's base; paths are appended to it.
        auth: shows who asks; None where nobody is asked.
        messages: reads the platform's words out of an error's JSON.
        headers: sent with each request.
    """

    def __init__(
        self,
        peer: Peer,
        *,
        url: str,
        auth: Auth | None,
        messages: Callable[[object], str] = said,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.peer = peer
        self._url = url.rstrip("/")
        self._auth = auth
        self._messages = messages
        self._headers = {"Accept": "application/json", **(headers or {})}

    @property
    def name(self) -> str:
        """The provider's name in the configuration."""
        return self.peer.name

    def deadline(self, total: timedelta = LOOK_DEADLINE) -> float:
        """When a call that begins now must have ended, in monotonic seconds."""
        return self.peer.clock.monotonic() + total.total_seconds()

    def ask(
        self,
        method: str,
        path: str = "",
        *,
        operation: str,
        deadline: float,
        body: object = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        changes: bool = False,
        secrets: Iterable[str] = (),
    ) -> Reply:
        """Send one request and return its answer, whatever the status; after a 401, once more with a new login.

        Args:
            path: appended to the base URL; its parts are quoted by the caller (`urllib.parse.quote(…, safe="")`).
            operation: the metric's label.
            deadline: on the clock's monotonic scale, in seconds.
            body: sent as JSON; None for none.
            params: the URL's query.
            headers: beside those of all requests.
            changes: whether the call changes what can't be done twice.
            secrets: what no message may repeat, beside what `auth` knows.

        Raises:
            Permanent: PROVIDER_AUTH, nothing was sent: no login, or a token that can't stand in a header.
            Transient, UnknownOutcome: no whole answer came; see `Peer.request`.
        """
        for again in (True, False):
            shown = self._auth.headers(deadline) if self._auth is not None else {}
            hidden = [*secrets, *(self._auth.secrets() if self._auth is not None else ())]

            def read(answer: HttpAnswer, hidden: list[str] = hidden) -> tuple[str, Reply]:
                return str(answer.status), self._read(answer, operation, hidden)

            reply = self.peer.request(
                method,
                self._url + path,
                operation=operation,
                json=body,
                params=params,
                headers={**self._headers, **(headers or {}), **shown},
                deadline=deadline,
                changes=changes,
                read=read,
            )
            # a 401 was refused at the door, so the same may be asked again
            if reply.status != 401 or self._auth is None or not again or not self._auth.refused(shown):
                break
        return reply

    def _read(self, answer: HttpAnswer, operation: str, hidden: Iterable[str]) -> Reply:
        value = parsed(answer.body)
        text = self._messages(value) if answer.status >= 300 else ""
        now = self.peer.clock.now()
        delay = retry_after(answer.headers.get("retry-after"), now)
        if delay is None and isinstance(value, dict) and answer.status == 429:
            told = value.get("retryAfter", value.get("retry_after"))
            delay = retry_after(str(told), now) if isinstance(told, str | int | float) else None
        return Reply(
            what=f"{self.name}: {operation}",
            status=answer.status,
            body=answer.body,
            value=value,
            message=harmless(text, secrets=hidden),
            retry_after=delay,
            request_id=answer.request_id,
        )


def parsed(body: bytes) -> Any:
    """The JSON that a body is; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def is_text(value: object) -> bool:
    """Whether `value` is text that is not blank and can be written down (no half of a surrogate pair)."""
    return isinstance(value, str) and bool(value.strip()) and value.encode(errors="replace").decode() == value


def sendable(token: str, what: str) -> str:
    """`token`, where it can stand in a header.

    Raises: Permanent PROVIDER_AUTH.
    """
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise Permanent(f"{what} can't stand in a header", reason=Reason.PROVIDER_AUTH)
    return token
