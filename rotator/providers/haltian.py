"""Haltian IoT: MQTT API keys over GraphQL (Haltian's guide "MQTT API Key Management" and its "Authentication" page).

One key is one API key: its id is the MQTT username and stays, its token is the password. `refreshApiKeyToken` makes a
new token and kills the old one in the same moment, so the strategy is *in place* and the answer must not be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final, Literal, TypeVar

import httpx
import structlog

from rotator.config_base import HttpPart
from rotator.config_types import PositiveDuration, Text, Url
from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import Abilities, Identity, Issued, Secret, Strategy, UpstreamKey
from rotator.ports import Clock, OnRequest, Reveal
from rotator.providers.haltian_documents import DELETE_API_KEY, LIST_API_KEYS, LOGOUT, REFRESH_API_KEY
from rotator.providers.haltian_keys import Integration, KeyReader, holds_secret
from rotator.providers.haltian_provision import OPTIONS, Provision, is_list
from rotator.providers.haltian_session import AuthRefused, HaltianApi, Reply, Session, Sessions
from rotator.providers.http import Peer
from rotator.providers.kinds import Site, issue_deadline
from rotator.providers.pace import Pace
from rotator.reasons import Reason
from rotator.secret_refs import SecretRef

T = TypeVar("T")

LIST_DEADLINE: Final = timedelta(seconds=30)
LOGOUT_DEADLINE: Final = timedelta(seconds=5)
PROVISION_CALLS: Final = 2  # times the deadline of one issue call: six small requests

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
        self._reader = KeyReader(name, lifetime)
        self._provision = Provision(name, self._ask, self._reader)
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
        return Abilities(strategy=self.strategy, kills_old=True, expires=True, creates=True, deletes=True)

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that one issue call may take, login included."""
        return self._issue_deadline

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told."""
        return OPTIONS

    def identity(self, id: str) -> Identity:
        """The key's id is its MQTT username (the guide, step 3); the client id is free."""
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All API keys that this login sees; lists never hold a token.

        Raises:
            Transient, Permanent: no list; reason PROVIDER_ANSWER_UNREADABLE where it isn't what the guide shows.
        """
        field, deadline = "apiKeys", self._deadline(LIST_DEADLINE)
        reply = self._ask(LIST_API_KEYS, {}, field=field, operation="list_keys", deadline=deadline, usable=is_list)
        if not isinstance(reply.value, list):
            raise self._unreadable_list("apiKeys is no list")
        keys = [self._reader.upstream(entry) for entry in reply.value]
        if None in keys:
            raise self._unreadable_list("an entry has no id")
        return [key for key in keys if key is not None]

    def list_integrations(self) -> Sequence[Integration]:
        """All MQTT subscription integrations that this login sees, with the keys that are linked to them.

        Raises: Transient, Permanent.
        """
        return self._provision.integrations(self._deadline(LIST_DEADLINE))

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
        field, deadline = "refreshApiKeyToken", self._deadline(self._issue_deadline)
        reply = self._ask(
            REFRESH_API_KEY,
            {"apiKeyId": identity.id},
            field=field,
            operation="issue",
            deadline=deadline,
            usable=holds_secret,
            changes=True,
        )
        return self._reader.issued(reply, field, identity.id)

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        """Make the key `name`: integration, key, MqttIntegrator role and link; each is found again where it is there.

        A key of this name that exists is completed and its token refreshed, since nobody has the old one. `marker` is
        not kept: the only place for it would be the name, by which the key is found.

        Raises:
            Transient, Permanent: the step that failed did nothing; the steps before it are found again.
            UnknownOutcome, BadAnswer: the step may have been done, and is looked for when this is called again.
        """
        return self._provision.key(name, options, self._deadline(PROVISION_CALLS * self._issue_deadline))

    def delete(self, id: str) -> None:
        """Delete a key for good, which disconnects its client. Absent is success.

        Raises: Transient, Permanent.
        """
        try:
            reply = self._ask(
                DELETE_API_KEY,
                {"apiKeyId": id},
                field="deleteApiKey",
                operation="delete",
                deadline=self._deadline(LIST_DEADLINE),
                usable=lambda _: False,  # nothing is shown once only, so an error counts whatever stands beside it
            )
        except Permanent as exc:
            if exc.reason is not Reason.KEY_UNKNOWN:
                raise
        else:
            if not isinstance(reply.value, Mapping):
                text = f"{reply.what}: the answer does not say that the key is deleted"
                raise Transient(text, reason=Reason.PROVIDER_ANSWER_UNREADABLE)

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

    def _ask(
        self,
        document: str,
        variables: Mapping[str, str],
        *,
        field: str,
        operation: str,
        deadline: float,
        usable: Callable[[object], bool],
        changes: bool = False,
    ) -> Reply:
        """Send one document in the shared session, and once more after a new login where the access token was refused.

        Args:
            usable: whether the field's value is what was asked for. It then counts more than an error beside it, since
                no secret may be lost (rule 1); else that error is raised, where there is one.
        """

        def once(session: Session) -> Reply:
            reply = self._api.ask(
                document,
                variables,
                field=field,
                operation=operation,
                session=session,
                deadline=deadline,
                changes=changes,
            )
            if not usable(reply.value):
                with reply.kept(changes=changes):
                    reply.raise_error(changes=changes)
            elif reply.error is not None:
                _log.warning("errors beside an answer", provider=self._name, operation=operation, code=reply.error.code)
            return reply

        return self._logged_in(once, deadline)

    def _unreadable_list(self, what: str) -> Transient:
        return Transient(f"{self._name}: list_keys: {what}", reason=Reason.PROVIDER_ANSWER_UNREADABLE)
