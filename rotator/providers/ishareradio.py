"""iShareRadio's MQTT portal, by its Mgmt REST API ("MQTT client management API").

`resource: publishers` (the usual): one key is one MQTT client; `rotate-credentials` makes its password anew, *in
place*. Publishers have no expiry, so they are rotated by age. `resource: subscribers`: one key is one read-only login,
whose password can't be changed; a second one is made beside it (*replace*), and it ends by itself.

Passwords are shown by the call that makes them and by no other. The portal's own REST token ends too, can only be
renewed by a person, and no call tells when: `token_expires_at` in the configuration says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Annotated, Final, Literal

import structlog
from pydantic import BeforeValidator, Field, WithJsonSchema

from rotator.config_base import HttpPart, RateLimit
from rotator.config_types import Count, Text, Url, wrong
from rotator.errors import Permanent
from rotator.model import Abilities, Credential, Identity, Issued, Secret, Strategy, UpstreamKey
from rotator.ports import Reveal
from rotator.providers.http import Peer
from rotator.providers.ishareradio_api import (
    PUBLISHERS,
    SUBSCRIBERS,
    Portal,
    PortalToken,
    Row,
    label,
    nested,
    paused,
    publisher,
    publisher_identity,
    two_passwords,
)
from rotator.providers.ishareradio_subscribers import LONGEST_LIFE, IShareRadioSubscribers
from rotator.providers.kinds import Site, issue_deadline
from rotator.providers.quota_words import refusal
from rotator.providers.rest import Reply, is_text
from rotator.reasons import Reason
from rotator.secret_refs import SecretRef
from rotator.timestamps import parse_timestamp

_log = structlog.get_logger(__name__)

OPTIONS: Final[Mapping[str, str]] = {"allow_subscribe": "true or false (default): whether it may subscribe as well"}
_YES_NO: Final[Mapping[str, bool]] = {"true": True, "false": False}


def _moment(value: object) -> object:
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    found = value.isoformat() if isinstance(value, datetime) else value
    moment = parse_timestamp(found) if isinstance(found, str) else None
    if moment is None:
        raise wrong("must be a point in time", "such as 2027-01-31T00:00:00Z; without a zone it is UTC")
    return moment


Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]


class IShareRadioSettings(HttpPart):
    """An iShareRadio MQTT portal, by a REST API token of an account with the Mgmt add-on.

    `account` is needed by operator tokens alone. `token_expires_at` is what the portal showed when the token was made.
    `expires_in_days` is how long a read-only login lives that is made for `resource: subscribers`.
    """

    kind: Literal["ishareradio"]
    url: Url = "https://mqtt.ishareradio.com"
    token: SecretRef
    token_expires_at: Moment | None = None
    account: Text | None = None
    resource: Literal["publishers", "subscribers"] = "publishers"
    expires_in_days: Annotated[Count, Field(le=LONGEST_LIFE)] = 30
    rate_limit: RateLimit | None = RateLimit(requests=5000, per=timedelta(hours=1), burst=100)


class IShareRadio:
    """The MQTT clients of one account (ports.InPlace, Deactivating, Deleting, Provisioning, Watched). Thread safe.

    Args:
        peer: sends the requests; `close()` closes it.
        url: the portal's origin.
        token: a REST API token, read for each request.
        account: the account's id, for an operator's token.
        token_expires_at: when the token ends, where that is known.
        issue_deadline: the total time of one `issue`.
    """

    def __init__(
        self,
        peer: Peer,
        *,
        url: str,
        token: Reveal,
        account: str | None = None,
        token_expires_at: datetime | None = None,
        issue_deadline: timedelta = timedelta(seconds=30),
    ) -> None:
        self._name, self._peer = peer.name, peer
        self._token_expires_at = token_expires_at
        self._issue_deadline = issue_deadline
        self._portal = Portal(peer, url=url, folder=PUBLISHERS, auth=PortalToken(peer.name, token, account))

    @classmethod
    def configured(cls, site: Site, settings: IShareRadioSettings) -> IShareRadio | IShareRadioSubscribers:
        """What the section's `resource` asks for."""
        peer, token, deadline = site.peer(settings), site.reveal(settings.token), issue_deadline(settings)
        if settings.resource == "publishers":
            return cls(
                peer,
                url=settings.url,
                token=token,
                account=settings.account,
                token_expires_at=settings.token_expires_at,
                issue_deadline=deadline,
            )
        portal = Portal(
            peer, url=settings.url, folder=SUBSCRIBERS, auth=PortalToken(peer.name, token, settings.account)
        )
        return IShareRadioSubscribers(
            peer,
            portal=portal,
            days=settings.expires_in_days,
            token_expires_at=settings.token_expires_at,
            issue_deadline=deadline,
        )

    def __repr__(self) -> str:
        return f"IShareRadio({self._name!r})"

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def strategy(self) -> Strategy:
        """A client keeps its id and gets a new password."""
        return Strategy.IN_PLACE

    @property
    def abilities(self) -> Abilities:
        """What the document shows. It does not say that the old password dies at once; who counts on that is right."""
        return Abilities(strategy=self.strategy, kills_old=True, expires=False, pauses=True, creates=True, deletes=True)

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that one `issue` may take."""
        return self._issue_deadline

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told."""
        return OPTIONS

    def identity(self, id: str) -> Identity:
        """The client id is the username as well."""
        return Identity(id=id, username=id, client_id=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All MQTT clients of the account; a paused one has the problem KEY_INACTIVE.

        Raises: Transient, Permanent.
        """
        found = (publisher(row) for row in self._portal.rows(self._portal.rest.deadline()))
        return [key for key in found if key is not None]

    def issue(self, identity: Identity, current: Secret | None = None) -> Issued:
        """A new password for `identity.id`, by one request. Whether the client is paused stays as it is.

        Raises:
            Transient, Permanent: nothing was issued (KEY_UNKNOWN, PROVIDER_AUTH, PROVIDER_REFUSED, …).
            UnknownOutcome: no whole readable answer, HTTP 408 or 5xx.
            BadAnswer: NO_SECRET, EMPTY_SECRET, PROVIDER_ANSWER_UNREADABLE (no text, two passwords, another client).
        """
        deadline = self._portal.rest.deadline(self._issue_deadline)
        reply = self._portal.ask(
            "POST", identity.id, "rotate-credentials", operation="issue", deadline=deadline, changes=True
        )
        if reply.status == 404 and self._row(identity.id, deadline) is None:
            raise self._portal.unknown("issue", identity.id)
        secret = self._password(reply)
        named = nested(reply).get("client_id")
        if named is not None and named != identity.id:
            raise reply.bad("the answer is about another client", Reason.PROVIDER_ANSWER_UNREADABLE)
        return Issued(identity=identity, secret=secret)

    def deactivate(self, identity: Identity) -> None:
        """Pause a client. Paused already, or gone, is success.

        Raises: Transient, Permanent.
        """
        self._set_paused(identity.id, "pause", operation="deactivate")

    def reactivate(self, identity: Identity) -> None:
        """Resume a client. Running already is success.

        Raises: Transient, Permanent (KEY_UNKNOWN: it is gone).
        """
        if self._set_paused(identity.id, "resume", operation="reactivate") is None:
            raise self._portal.unknown("reactivate", identity.id)

    def delete(self, id: str) -> None:
        """Remove a client. Absent is success.

        Raises: Transient, Permanent.
        """
        deadline = self._portal.rest.deadline()
        reply = self._portal.ask("DELETE", id, operation="delete", deadline=deadline)
        if reply.ok and (reply.value is not None or not reply.body.strip()):
            return
        if not reply.ok and reply.status not in (404, 410):
            raise reply.error(changes=False)
        # a gateway's 404, or a page with status 200, says nothing of the client: the list does
        if self._row(id, deadline) is not None:
            raise reply.unreadable(f"HTTP {reply.status}, and the client is still listed")

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        """Make the MQTT client with the label `name`. One that has this label already is given a new password.

        Args:
            options: of `OPTIONS`.
            marker: not used: the label is what finds the client again.

        Raises: as ports.Provisioning says; KEY_INACTIVE: the client with this label is paused.
        """
        body = self._wanted(name, options)
        deadline = self._portal.rest.deadline(self._issue_deadline)
        same = [row for row in self._portal.rows(deadline) if label(row) == name]
        if len(same) > 1:
            raise self._refused(f"{len(same)} clients have the label {name}: rename or remove all but one")
        identity = publisher_identity(same[0]) if same else None
        if identity is not None:
            if paused(same[0]):
                text = f"{self._name}: provision: {identity.id} has this label and is paused"
                raise Permanent(text, reason=Reason.KEY_INACTIVE)
            return self.issue(identity)
        reply = self._portal.rest.ask("POST", operation="provision", deadline=deadline, body=body, changes=True)
        secret = self._password(reply)
        made = publisher_identity(nested(reply))
        if made is None:
            raise reply.bad("the answer names no client id", Reason.PROVIDER_ANSWER_UNREADABLE)
        return Issued(identity=made, secret=secret)

    def credentials(self) -> Sequence[Credential]:
        """The REST token, where the configuration says when it ends."""
        return [] if self._token_expires_at is None else [Credential(name="token", expires_at=self._token_expires_at)]

    def close(self) -> None:
        """Give back the connections; never raises."""
        self._peer.close()

    # ---

    def _wanted(self, name: str, options: Mapping[str, str]) -> Mapping[str, object]:
        unknown = sorted(options.keys() - OPTIONS.keys())
        told = options.get("allow_subscribe", "false").strip().lower()
        if unknown:
            raise self._refused(f"no such option: {', '.join(unknown)}")
        if told not in _YES_NO:
            raise self._refused("allow_subscribe must be true or false")
        if not is_text(name):
            raise self._refused("a client needs a name")
        return {"label": name, "allow_subscribe": _YES_NO[told]}

    def _refused(self, problem: str) -> Permanent:
        return Permanent(f"{self._name}: provision: {problem}", reason=Reason.PROVIDER_REFUSED)

    def _password(self, reply: Reply) -> Secret:
        """The new password in the one answer that shows it."""
        shown = nested(reply).get("password")
        if not reply.ok:
            if not is_text(shown):
                raise refusal(reply)
            # rule 1: an issued secret counts more than the status that came with it
            _log.warning("an issued secret beside an error", provider=self._name, status=reply.status)
        elif not reply.fields:
            raise reply.error(changes=True)
        if two_passwords(reply):
            raise reply.bad("the answer holds two passwords", Reason.PROVIDER_ANSWER_UNREADABLE)
        return reply.secret(shown)

    def _row(self, id: str, deadline: float) -> Row | None:
        return next((row for row in self._portal.rows(deadline) if row.get("client_id") == id), None)

    def _set_paused(self, id: str, verb: Literal["pause", "resume"], *, operation: str) -> Row | None:
        """What shows that it is so; None where there is no such client.

        A refusal may mean that it was so already, and the document shows no answer: the list has the last word.
        """
        deadline, wanted = self._portal.rest.deadline(), verb == "pause"
        reply = self._portal.ask("POST", id, verb, operation=operation, deadline=deadline)
        if reply.ok and paused(nested(reply)) is wanted:
            return nested(reply)
        if not reply.ok and reply.status not in (400, 404, 409, 410, 422):
            raise reply.error(changes=False)
        row = self._row(id, deadline)
        if row is None or paused(row) is wanted or (reply.ok and paused(row) is None):
            return row
        raise reply.unreadable(f"the list shows another state after {verb}") if reply.ok else reply.error(changes=False)
