"""Haltian IoT: MQTT API keys over GraphQL (Haltian's guide "MQTT API Key Management" and its "Authentication" page).

One key is one API key: its id is the MQTT username and stays, its token is the password. `refreshApiKeyToken` makes a
new token and kills the old one in the same moment, so the strategy is *in place* and the answer must not be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, TypeVar

import httpx
import structlog

from rotator.config_base import HttpPart
from rotator.config_types import PositiveDuration, Text, Url
from rotator.errors import BadAnswer, RotatorError, Transient
from rotator.jwt import unverified_expiry
from rotator.model import Abilities, ExpirySource, Identity, Issued, Secret, Strategy, UpstreamKey
from rotator.ports import Clock, OnRequest, Reveal
from rotator.providers.haltian_session import AuthRefused, HaltianApi, Reply, Session, Sessions
from rotator.providers.http import Peer
from rotator.providers.kinds import Site, issue_deadline
from rotator.providers.pace import Pace
from rotator.reasons import Reason
from rotator.secret_refs import SecretRef
from rotator.timestamps import parse_timestamp

T = TypeVar("T")

ROLE: Final = "MqttIntegrator"  # case-sensitive, the guide's step 4
LIST_DEADLINE: Final = timedelta(seconds=30)
LOGOUT_DEADLINE: Final = timedelta(seconds=5)

# The guide's documents, field by field. Its casing is a trap: the variable is apiKeyId, the input's field apikeyId.
REFRESH_API_KEY: Final = """\
mutation RefreshApiKey($apiKeyId: uuid!) {
  refreshApiKeyToken(refreshApiKeyTokenInput: {
    apikeyId: $apiKeyId
  }) {
    id
    organizationId
    token {
      token
      issuedAt
      expiresAt
    }
  }
}"""
LIST_API_KEYS: Final = """\
query ListApiKeys {
  apiKeys {
    id
    name
    createdAt
    updatedAt
    organization {
      id
      name
    }
    token {
      issuedAt
      expiresAt
      revokedAt
    }
    organizationRoles {
      roleName
      organizationId
    }
  }
}"""
LOGOUT: Final = "mutation { logout { success } }"

_log = structlog.get_logger(__name__)


class HaltianSettings(HttpPart):
    """Haltian IoT's GraphQL API. `lifetime` is how long its tokens live where the answer does not say."""

    kind: Literal["haltian"]
    url: Url
    organization: Text
    email: Text
    password: SecretRef
    lifetime: PositiveDuration = timedelta(days=90)


class Haltian:
    """A Haltian organization's API keys (ports.Provider). Thread safe: all keys share one session.

    Args:
        name: the provider's name in the configuration.
        client: made for this provider alone; `close()` closes it. Redirects should be off.
        url: the GraphQL endpoint, such as `https://…/v1/graphql`.
        organization, email, password: the login of an Organization Manager; the password is read at each login.
        clock: wall clock and monotonic clock.
        on_request: told of each request.
        lifetime: how long a token lives after `issuedAt` where nothing else says so (the guide: 90 days).
        issue_deadline: the total time of one issue call, login included.
    """

    def __init__(
        self,
        name: str,
        *,
        client: httpx.Client,
        url: str,
        organization: str,
        email: str,
        password: Reveal,
        clock: Clock,
        on_request: OnRequest,
        lifetime: timedelta = timedelta(days=90),
        issue_deadline: timedelta = timedelta(seconds=30),
        pace: Pace | None = None,
    ) -> None:
        self._name = name
        self._client = client
        self._clock = clock
        self._lifetime = lifetime
        self._issue_deadline = issue_deadline
        peer = Peer(name, client=client, clock=clock, on_request=on_request, pace=pace)
        self._api = HaltianApi(name, url=url, peer=peer, clock=clock)
        self._sessions = Sessions(self._api, organization=organization, email=email, password=password, clock=clock)

    @classmethod
    def configured(cls, site: Site, settings: HaltianSettings) -> Haltian:
        """One from its section of the configuration."""
        return cls(
            site.name,
            client=site.client(settings),
            url=settings.url,
            organization=settings.organization,
            email=settings.email,
            password=site.reveal(settings.password),
            clock=site.clock,
            on_request=site.on_request,
            lifetime=settings.lifetime,
            issue_deadline=issue_deadline(settings),
            pace=site.pace(settings),
        )

    def __repr__(self) -> str:
        return f"Haltian({self._name!r})"

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def strategy(self) -> Strategy:
        """The old token is dead as soon as a new one exists (the guide, step 7)."""
        return Strategy.IN_PLACE

    @property
    def abilities(self) -> Abilities:
        """What the platform's documents allow."""
        return Abilities(strategy=self.strategy, kills_old=True, expires=True)

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that one issue call may take, login included."""
        return self._issue_deadline

    def identity(self, id: str) -> Identity:
        """The key's id is its MQTT username (the guide, step 3); the client id is free."""
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All API keys that this login sees; lists never hold a token.

        Raises:
            Transient, Permanent: no list; reason PROVIDER_ANSWER_UNREADABLE where it isn't what the guide shows.
        """
        deadline = self._deadline(LIST_DEADLINE)
        return self._logged_in(lambda session: self._list_once(session, deadline), deadline)

    def issue(self, identity: Identity, current: Secret | None = None) -> Issued:
        """Have a new token issued for the key `identity.id`; its old one is dead from the same moment on.

        One request, but for one exception: where the access token was refused, nothing was done, so it is sent once
        more after a new login.

        Raises:
            Transient: nothing was issued (unreachable, login not possible now, rate limited).
            Permanent: nothing was issued (login or request refused, key unknown).
            UnknownOutcome: the request may have taken effect: no whole readable answer, HTTP 408 or 5xx, or the
                platform reported a failure inside itself.
            BadAnswer: NO_SECRET (null), EMPTY_SECRET (blank), PROVIDER_ANSWER_UNREADABLE (another key's id, or not the
                guide's shape).
        """
        deadline = self._deadline(self._issue_deadline)
        return self._logged_in(lambda session: self._issue_once(identity, session, deadline), deadline)

    def close(self) -> None:
        """Log out, as well as that goes in five seconds, and close the client; never raises."""
        session = self._sessions.leave()
        if session is not None:
            try:
                deadline = self._deadline(LOGOUT_DEADLINE)
                self._api.ask(LOGOUT, {}, field="logout", operation="logout", session=session, deadline=deadline)
            except RotatorError as exc:
                _log.debug("logout failed", provider=self._name, reason=exc.reason.value)
        self._client.close()

    def _deadline(self, total: timedelta) -> float:
        return self._clock.monotonic() + total.total_seconds()

    def _logged_in(self, call: Callable[[Session], T], deadline: float) -> T:
        session = self._sessions.current(deadline)
        try:
            return call(session)
        except AuthRefused:
            self._sessions.forget(session)
        session = self._sessions.current(deadline)
        try:
            return call(session)
        except AuthRefused:
            self._sessions.forget(session)
            raise

    def _list_once(self, session: Session, deadline: float) -> Sequence[UpstreamKey]:
        reply = self._api.ask(
            LIST_API_KEYS,
            {},
            field="apiKeys",
            operation="list_keys",
            session=session,
            deadline=deadline,
        )
        if not isinstance(reply.value, list):
            reply.raise_error(changes=False)
            raise self._unreadable_list("apiKeys is no list")
        return [self._upstream(entry) for entry in reply.value]

    def _upstream(self, entry: object) -> UpstreamKey:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str):
            raise self._unreadable_list("an entry has no id")
        token = entry.get("token")
        if not isinstance(token, Mapping):
            token = {}
        issued_at = parse_timestamp(token.get("issuedAt"))
        expires_at, source = self._expiry(issued_at, token.get("expiresAt"), None)
        name = entry.get("name")
        return UpstreamKey(
            id=entry["id"],
            name=name if isinstance(name, str) else "",
            issued_at=issued_at,
            expires_at=expires_at,
            expiry_source=source,
            problem=_problem(token, entry.get("organizationRoles")),
        )

    def _unreadable_list(self, what: str) -> Transient:
        return Transient(f"{self._name}: list_keys: {what}", reason=Reason.PROVIDER_ANSWER_UNREADABLE)

    def _issue_once(self, identity: Identity, session: Session, deadline: float) -> Issued:
        reply = self._api.ask(
            REFRESH_API_KEY,
            {"apiKeyId": identity.id},
            field="refreshApiKeyToken",
            operation="issue",
            session=session,
            deadline=deadline,
            changes=True,
        )
        token = reply.value.get("token") if isinstance(reply.value, Mapping) else None
        secret = token.get("token") if isinstance(token, Mapping) else None
        if not isinstance(secret, str) or not secret.strip():
            with reply.kept(changes=True):
                reply.raise_error(changes=True)
        elif reply.error is not None:
            # rule 1: an issued token counts more than the error beside it, since the old one is dead already
            _log.warning("errors beside an issued secret", provider=self._name, code=reply.error.code)
        return self._issued(identity, reply)

    def _issued(self, identity: Identity, reply: Reply) -> Issued:
        """Read the one answer that holds the secret; `reply.body` goes to the journal where it can't be used."""
        if reply.value is None:
            raise self._bad(reply, "refreshApiKeyToken is null", Reason.NO_SECRET)
        if not isinstance(reply.value, Mapping):
            raise self._bad(reply, "refreshApiKeyToken is no object", Reason.PROVIDER_ANSWER_UNREADABLE)
        token = reply.value.get("token")
        if token is None:
            raise self._bad(reply, "the answer holds no token", Reason.NO_SECRET)
        if not isinstance(token, Mapping):
            raise self._bad(reply, "token is no object", Reason.PROVIDER_ANSWER_UNREADABLE)
        secret = self._secret(reply, token.get("token"))
        answered = reply.value.get("id")
        if answered is not None and str(answered).lower() != identity.id.lower():
            raise self._bad(reply, "the answer is about another key", Reason.PROVIDER_ANSWER_UNREADABLE)
        issued_at = parse_timestamp(token.get("issuedAt"))
        expires_at, source = self._expiry(issued_at, token.get("expiresAt"), secret)
        return Issued(
            identity=identity,
            secret=Secret(secret),
            issued_at=issued_at,
            expires_at=expires_at,
            expiry_source=source,
        )

    def _secret(self, reply: Reply, value: object) -> str:
        if value is None:
            raise self._bad(reply, "the answer's token is null", Reason.NO_SECRET)
        if not isinstance(value, str):
            raise self._bad(reply, "the answer's token is no text", Reason.PROVIDER_ANSWER_UNREADABLE)
        if not value.strip():
            raise self._bad(reply, "the answer's token is empty", Reason.EMPTY_SECRET)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise self._bad(reply, "the answer's token is no text", Reason.PROVIDER_ANSWER_UNREADABLE)
        return value

    def _bad(self, reply: Reply, what: str, reason: Reason) -> BadAnswer:
        return BadAnswer(f"{self._name}: issue: {what}", reason=reason, body=reply.body)

    def _expiry(
        self, issued_at: datetime | None, answered: object, secret: str | None
    ) -> tuple[datetime | None, ExpirySource | None]:
        """The earliest of what the answer, the JWT and the lifetime say; on a tie the one named first here."""
        found: list[tuple[datetime, ExpirySource]] = []
        if (at := parse_timestamp(answered)) is not None:
            found.append((at, ExpirySource.ANSWER))
        if secret is not None and (at := unverified_expiry(secret)) is not None:
            found.append((at, ExpirySource.JWT))
        if issued_at is not None:
            try:
                found.append((issued_at + self._lifetime, ExpirySource.LIFETIME))
            except OverflowError:
                _log.warning("issuedAt lies beyond all calendars", provider=self._name)
        return min(found, key=lambda each: each[0]) if found else (None, None)


def _problem(token: Mapping[str, object], roles: object) -> Reason | None:
    """Why a listed key can't serve as an MQTT credential. A list that shows no roles at all accuses nobody."""
    if token.get("revokedAt") is not None:
        return Reason.KEY_REVOKED
    if isinstance(roles, list) and not any(
        isinstance(each, Mapping) and each.get("roleName") == ROLE for each in roles
    ):
        return Reason.ROLE_MISSING
    return None
