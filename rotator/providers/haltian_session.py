"""Haltian's GraphQL endpoint and the login that its calls share (Haltian's "Service API: Authentication").

`login` gives an access token for `expiresIn` seconds (900) and a refresh token for `refreshExpiresIn` (43200); a
refresh replaces both. Role changes reach a session only at the next login.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final, TypeGuard

import structlog

from rotator.errors import Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Secret
from rotator.ports import Clock, Reveal
from rotator.providers.graphql import GraphqlError, Meaning, read_errors
from rotator.providers.http import HttpAnswer, Peer
from rotator.reasons import Reason
from rotator.timestamps import retry_after

LOGIN: Final = """\
mutation Login($email: String!, $organizationName: String!, $password: String!) {
  login(loginInput: {
    email: $email,
    organizationName: $organizationName,
    password: $password
  }) {
    accessToken
    expiresIn
    refreshExpiresIn
    refreshToken
    organizationId
  }
}"""
# The id stands in the document as a literal, which fits a String as well as a uuid: its type is nowhere documented.
REFRESH_SESSION: Final = """\
mutation RefreshToken($refreshToken: String!) {
  refreshToken(refreshTokenInput: {
    organizationId: %s,
    refreshToken: $refreshToken
  }) {
    accessToken
    expiresIn
    refreshExpiresIn
    refreshToken
  }
}"""

# A session is renewed this long before it ends: a minute, or a fifth of a shorter one.
_MARGIN: Final = 60.0
_MARGIN_SHARE: Final = 0.2
_RENEW_AGAIN: Final = 5.0  # seconds; how long a session that is still good is used after a renewal failed
# An action's own refusal can come with Hasura's catch-all code "unexpected"; these words still mean the login.
_ABOUT_LOGIN: Final = re.compile(r"credential|password|e-?mail|\buser\b|organi[sz]ation", re.IGNORECASE)

_log = structlog.get_logger(__name__)


class AuthRefused(Permanent):
    """The access token was refused: the call did nothing, and a new login may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One login. Times are seconds on the clock's monotonic scale; None: the platform named none."""

    access: Secret = field(repr=False)
    renew_at: float | None
    ends_at: float | None
    refresh: Secret | None = field(repr=False, default=None)
    refresh_ends_at: float | None = None
    organization_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One GraphQL answer: the asked field's value, the deciding error, and the raw body for the journal."""

    what: str  # "provider: operation", the start of each message
    status: int
    body: bytes = field(repr=False)
    readable: bool  # a JSON object with `data` or `errors`
    value: object = field(repr=False)  # None where the field is null or absent
    error: GraphqlError | None
    retry_after: timedelta | None

    @contextmanager
    def kept(self, *, changes: bool) -> Iterator[None]:
        """Let an error of a call that changes something carry the answer, for the journal to seal."""
        try:
            yield
        except RotatorError as exc:
            exc.body = self.body if changes else None
            raise

    def raise_error(self, *, changes: bool) -> None:
        """Raise what `error` means for a call that `changes` something or not; returns where there is none."""
        if self.error is None:
            return
        text = f"{self.what}: {self.error.code}: {self.error.message}"
        match self.error.meaning:
            case Meaning.UNSURE if changes:
                raise UnknownOutcome(text)
            case Meaning.UNSURE:
                raise Transient(text, reason=Reason.PROVIDER_UNAVAILABLE, retry_after=self.retry_after)
            case Meaning.AUTH:
                raise AuthRefused(text, reason=Reason.PROVIDER_AUTH)
            case Meaning.RATE_LIMITED:
                raise Transient(text, reason=Reason.PROVIDER_RATE_LIMITED, retry_after=self.retry_after)
            case Meaning.KEY_UNKNOWN:
                raise Permanent(text, reason=Reason.KEY_UNKNOWN)
            case Meaning.REFUSED:
                raise Permanent(text, reason=Reason.PROVIDER_REFUSED)

    def raise_status(self, *, changes: bool) -> None:
        """Raise what a status other than 2xx means.

        | status | for a call that changes something | else |
        | --- | --- | --- |
        | 429 | Transient PROVIDER_RATE_LIMITED: refused at the door | the same |
        | 401, 403 | AuthRefused: refused at the door | the same |
        | 408, 5xx | UnknownOutcome: a gateway may speak for a server that did it | Transient PROVIDER_UNAVAILABLE |
        | other | what `errors` say, else Permanent PROVIDER_REFUSED | the same |
        """
        text = f"{self.what}: HTTP {self.status}" + (f": {self.error.message}" if self.error else "")
        match self.status:
            case status if 200 <= status < 300:
                return
            case 429:
                raise Transient(text, reason=Reason.PROVIDER_RATE_LIMITED, retry_after=self.retry_after)
            case 401 | 403:
                raise AuthRefused(text, reason=Reason.PROVIDER_AUTH)
            case status if status == 408 or status >= 500:
                if changes:
                    raise UnknownOutcome(text)
                raise Transient(text, reason=Reason.PROVIDER_UNAVAILABLE, retry_after=self.retry_after)
            case _:
                self.raise_error(changes=changes)
                raise Permanent(text, reason=Reason.PROVIDER_REFUSED)


class HaltianApi:
    """Asks the endpoint one document at a time. Thread safe."""

    def __init__(self, name: str, *, url: str, peer: Peer, clock: Clock) -> None:
        self.name = name
        self._url = url
        self._peer = peer
        self._clock = clock

    def ask(
        self,
        document: str,
        variables: Mapping[str, str],
        *,
        field: str,
        operation: str,
        deadline: float,
        session: Session | None = None,
        changes: bool = False,
        secrets: Iterable[str] = (),
    ) -> Reply:
        """Send one document and return its answer where it is one of GraphQL's.

        An answer that holds a value for `field` is returned whatever else it says, so that no secret is lost (rule 1).

        Args:
            field: the one field of `data` that the document asks for.
            operation: the metric's label.
            deadline: on the clock's monotonic scale, in seconds.
            session: whose access token to send.
            changes: whether the call changes what can't be taken back.
            secrets: values that no message may repeat.

        Raises:
            Transient, AuthRefused, Permanent, UnknownOutcome: see `Reply.raise_status` and `Peer.post`.
        """
        hidden = [*secrets]
        headers = {"Accept": "application/json"}
        if session is not None:
            hidden += [session.access.reveal()]
            headers["Authorization"] = f"Bearer {session.access.reveal()}"

        def read(answer: HttpAnswer) -> tuple[str, Reply]:
            reply = self._read(answer, field, f"{self.name}: {operation}", hidden)
            ok = 200 <= reply.status < 300
            return (reply.error.code if ok and reply.error else str(reply.status)), reply

        reply = self._peer.post(
            self._url,
            operation=operation,
            json={"query": document, "variables": dict(variables)},
            headers=headers,
            deadline=deadline,
            changes=changes,
            read=read,
        )
        if reply.value is None:
            with reply.kept(changes=changes):
                self._refuse(reply, changes=changes)
        return reply

    @staticmethod
    def _refuse(reply: Reply, *, changes: bool) -> None:
        """Raise what an answer without a value means, unless it is one of GraphQL's."""
        reply.raise_status(changes=changes)
        if reply.readable:
            return
        text = f"{reply.what}: HTTP {reply.status} with a body that is no GraphQL answer"
        if changes:
            raise UnknownOutcome(text)
        raise Transient(text, reason=Reason.PROVIDER_ANSWER_UNREADABLE)

    def _read(self, answer: HttpAnswer, field: str, what: str, secrets: Iterable[str]) -> Reply:
        try:
            payload = json.loads(answer.body)
        except (ValueError, RecursionError):
            payload = None
        if not isinstance(payload, dict):
            payload = {}
        data = payload.get("data")
        return Reply(
            what=what,
            status=answer.status,
            body=answer.body,
            readable="data" in payload or bool(payload.get("errors")),
            value=data.get(field) if isinstance(data, dict) else None,
            error=read_errors(payload.get("errors"), secrets=secrets),
            retry_after=retry_after(answer.headers.get("retry-after"), self._clock.now()),
        )


class Sessions:
    """The one session that all calls share: made when first needed, renewed before it ends. Thread safe."""

    def __init__(self, api: HaltianApi, *, organization: str, email: str, password: Reveal, clock: Clock) -> None:
        self._api = api
        self._organization = organization
        self._email = email
        self._password = password
        self._clock = clock
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._failure: RotatorError | None = None
        self._failures = 0

    def current(self, deadline: float) -> Session:
        """A session that is good now; logs in or renews where there is none. One thread asks, the others wait for it.

        Raises:
            Permanent: PROVIDER_AUTH, the login was refused; whoever waited for it is refused with it, since a hundred
                keys that try the same wrong password lock the account.
            Transient: no login was possible now.
        """
        session = self._session
        if session is not None and not self._due(session):
            return session
        seen = self._failures
        if not self._lock.acquire(timeout=max(0.0, deadline - self._clock.monotonic())):
            text = f"{self._api.name}: another call's login took too long"
            raise Transient(text, reason=Reason.PROVIDER_UNREACHABLE)
        try:
            session = self._session
            if session is not None and not self._due(session):
                return session
            if self._failure is not None and self._failures != seen:
                raise _again(self._failure)
            try:
                self._session = self._renewed(session, deadline)
            except RotatorError as exc:
                self._failure, self._failures = exc, self._failures + 1
                raise
            return self._session
        finally:
            self._lock.release()

    def forget(self, session: Session) -> None:
        """`session` was refused: the next call logs in anew. A session that came after it stays."""
        with self._lock:
            if self._session is session:
                self._session = None

    def leave(self) -> Session | None:
        """Give up the session, for the logout."""
        with self._lock:
            session, self._session = self._session, None
        return session

    def _due(self, session: Session) -> bool:
        return session.renew_at is not None and self._clock.monotonic() >= session.renew_at

    def _renewed(self, session: Session | None, deadline: float) -> Session:
        if session is None or session.refresh is None:
            return self._login(deadline)
        now = self._clock.monotonic()
        if session.refresh_ends_at is not None and now >= session.refresh_ends_at:
            return self._login(deadline)
        try:
            return self._refresh(session, session.refresh, deadline)
        except Permanent as exc:
            _log.info("session renewal refused, logging in", provider=self._api.name, reason=exc.reason.value)
        except Transient as exc:
            _log.info("session renewal failed", provider=self._api.name, reason=exc.reason.value)
            now = self._clock.monotonic()
            if session.ends_at is not None and now < session.ends_at:
                return replace(session, renew_at=min(now + _RENEW_AGAIN, session.ends_at))
        return self._login(deadline)

    def _login(self, deadline: float) -> Session:
        password = self._password()
        start = self._clock.monotonic()
        try:
            reply = self._api.ask(
                LOGIN,
                {"email": self._email, "organizationName": self._organization, "password": password},
                field="login",
                operation="login",
                deadline=deadline,
                secrets=[password],
            )
        except AuthRefused as exc:
            # a wrong password is not an access token that a new login could mend
            raise Permanent(exc.message, reason=Reason.PROVIDER_AUTH) from exc
        session = _session(reply, start)
        if session is None:
            _raise_login_error(reply)
            raise Permanent(f"{reply.what}: the answer holds no access token", reason=Reason.PROVIDER_AUTH)
        return session

    def _refresh(self, session: Session, refresh: Secret, deadline: float) -> Session:
        start = self._clock.monotonic()
        alive = session.ends_at is None or start < session.ends_at
        reply = self._api.ask(
            REFRESH_SESSION % json.dumps(session.organization_id),
            {"refreshToken": refresh.reveal()},
            field="refreshToken",
            operation="refresh_session",
            deadline=deadline,
            session=session if alive else None,  # Hasura refuses whatever comes with an expired JWT
            secrets=[refresh.reveal(), session.access.reveal()],
        )
        renewed = _session(reply, start)
        if renewed is None:
            reply.raise_error(changes=False)
            raise Permanent(f"{reply.what}: the answer holds no access token", reason=Reason.PROVIDER_AUTH)
        return replace(renewed, organization_id=renewed.organization_id or session.organization_id)


def _raise_login_error(reply: Reply) -> None:
    error = reply.error
    if error is None:
        return
    unsure = error.meaning is Meaning.UNSURE and not _ABOUT_LOGIN.search(error.message)
    if unsure or error.meaning is Meaning.RATE_LIMITED:
        reply.raise_error(changes=False)
    raise Permanent(f"{reply.what}: {error.code}: {error.message}", reason=Reason.PROVIDER_AUTH)


def _session(reply: Reply, start: float) -> Session | None:
    value = reply.value if isinstance(reply.value, Mapping) else {}
    access, refresh = value.get("accessToken"), value.get("refreshToken")
    if not _is_token(access):
        return None
    life, refresh_life = _seconds(value.get("expiresIn")), _seconds(value.get("refreshExpiresIn"))
    organization_id = value.get("organizationId")
    return Session(
        access=Secret(access),
        renew_at=None if life is None else start + life - min(_MARGIN, life * _MARGIN_SHARE),
        ends_at=None if life is None else start + life,
        refresh=Secret(refresh) if _is_token(refresh) else None,
        refresh_ends_at=None if refresh_life is None else start + refresh_life,
        organization_id=organization_id if isinstance(organization_id, str) else "",
    )


def _is_token(value: object) -> TypeGuard[str]:
    """Whether `value` can stand in a header: what can't was never an access token."""
    return isinstance(value, str) and bool(value) and value.isascii() and value.isprintable() and " " not in value


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < 10**10 else None


def _again(failure: RotatorError) -> RotatorError:
    """The same failure for another caller: one exception object raised in two threads mixes up their tracebacks."""
    if isinstance(failure, Transient):
        return Transient(failure.message, reason=failure.reason, retry_after=failure.retry_after)
    return Permanent(failure.message, reason=failure.reason)
