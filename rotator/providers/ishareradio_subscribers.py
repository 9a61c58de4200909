"""iShareRadio's read-only logins (`sub-…`): made with a life in days; none can be given a new password.

Only the call that makes one is documented. The list and the removal are tried in the same folder, as the portal does
with its MQTT clients; where they are not served, this resource can't be managed, and says so (PROVIDER_UNABLE).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from rotator.errors import Permanent
from rotator.model import (
    MARKER,
    Abilities,
    Credential,
    ExpirySource,
    Identity,
    Issued,
    Strategy,
    UpstreamKey,
)
from rotator.providers.http import Peer
from rotator.providers.ishareradio_api import (
    Portal,
    Row,
    label,
    nested,
    paused,
    rows_of,
    subscriber,
    subscriber_identity,
    two_passwords,
)
from rotator.providers.quota_words import refusal
from rotator.providers.rest import Reply, is_text
from rotator.reasons import Reason
from rotator.timestamps import parse_timestamp

OPTIONS: Final[Mapping[str, str]] = {"expires_in_days": "how long it lives; the provider's setting by default"}
NOT_SERVED: Final = (404, 405, 501)
LONGEST_LIFE: Final = 36500  # days; more would leave the calendar


class IShareRadioSubscribers:
    """The read-only logins of one account (ports.Replacing, Provisioning, Watched). Thread safe.

    Args:
        peer: sends the requests; `close()` closes it.
        portal: the folder of these logins.
        days: how long a login lives that is made here.
        token_expires_at: when the REST token ends, where that is known.
        issue_deadline: the total time of one `create`, all of its requests together.
    """

    def __init__(
        self,
        peer: Peer,
        *,
        portal: Portal,
        days: int,
        token_expires_at: datetime | None = None,
        issue_deadline: timedelta = timedelta(seconds=30),
    ) -> None:
        self._name, self._peer, self._portal = peer.name, peer, portal
        self._days = days
        self._token_expires_at = token_expires_at
        self._issue_deadline = issue_deadline

    def __repr__(self) -> str:
        return f"IShareRadioSubscribers({self._name!r})"

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def strategy(self) -> Strategy:
        """A second login beside the first."""
        return Strategy.REPLACE

    @property
    def abilities(self) -> Abilities:
        """What the document shows, and what is tried: see the module."""
        return Abilities(strategy=self.strategy, kills_old=False, expires=True, creates=True, deletes=True)

    @property
    def deactivates(self) -> bool:
        """Nothing of the kind is documented."""
        return False

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that one `create` may take, all of its requests together."""
        return self._issue_deadline

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told."""
        return OPTIONS

    def identity(self, id: str) -> Identity:
        """A stand-in: only the list says which username belongs to an id."""
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All read-only logins of the account.

        Raises: Transient, Permanent (PROVIDER_UNABLE: this portal does not serve the list).
        """
        found = [subscriber(row) for row in self._rows(self._portal.rest.deadline())]
        return [key for key in found if key is not None]

    def create(self, identity: Identity, marker: str) -> Issued:
        """Make a login with the label of `identity.id` and the marker: one look at the list, then the call itself.

        Raises:
            Transient, Permanent: nothing was made (KEY_UNKNOWN, KEY_INACTIVE: the original; PROVIDER_UNABLE: no list;
                PROVIDER_QUOTA: the plan's `max_subscribers`).
            UnknownOutcome: a login may have been made.
            BadAnswer: NO_SECRET, EMPTY_SECRET, PROVIDER_ANSWER_UNREADABLE; a login may have been made.
        """
        deadline = self._portal.rest.deadline(self._issue_deadline)
        original = self._row(identity.id, deadline)
        if original is None:
            raise self._portal.unknown("create", identity.id)
        if paused(original):
            raise Permanent(f"{self._name}: create: {identity.id} is inactive", reason=Reason.KEY_INACTIVE)
        rest = " ".join(MARKER.sub("", label(original)).split())
        return self._made("create", f"{rest} {marker}".strip(), self._days, deadline)

    def deactivate(self, identity: Identity) -> None:
        """Raises: Permanent PROVIDER_UNABLE, always."""
        raise self._unable("deactivate", "a read-only login can't be paused")

    def reactivate(self, identity: Identity) -> None:
        """Raises: Permanent PROVIDER_UNABLE, always."""
        raise self._unable("reactivate", "a read-only login can't be paused")

    def delete(self, id: str) -> None:
        """Remove a login. Absent is success.

        Raises: Transient, Permanent (PROVIDER_UNABLE: this portal does not serve the removal).
        """
        deadline = self._portal.rest.deadline()
        reply = self._portal.ask("DELETE", id, operation="delete", deadline=deadline)
        if reply.ok and (reply.value is not None or not reply.body.strip()):
            return
        if not reply.ok and reply.status not in (*NOT_SERVED, 410):
            raise reply.error(changes=False)
        if self._row(id, deadline) is not None:
            raise self._unable("delete", "the portal lists this login, and does not serve its removal: remove it there")

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        """Make a read-only login with the label `name` and the marker.

        Raises: as ports.Provisioning says; PROVIDER_REFUSED: a login with this label exists.
        """
        days = options.get("expires_in_days", str(self._days)).strip()
        unknown = sorted(options.keys() - OPTIONS.keys())
        if unknown or not is_text(name):
            raise self._refused(f"no such option: {', '.join(unknown)}" if unknown else "a login needs a name")
        if not days.isascii() or not days.isdecimal() or not 1 <= int(days[:9]) <= LONGEST_LIFE:
            raise self._refused(f"expires_in_days must be a whole number from 1 to {LONGEST_LIFE}")
        deadline = self._portal.rest.deadline(self._issue_deadline)
        for row in self._rows(deadline):
            if MARKER.sub("", label(row)).strip() == name:
                there = subscriber_identity(row)
                id = there.id if there is not None else "one"
                text = f"{id} has this label, and its password can't be had again: remove it, or choose another name"
                raise self._refused(text)
        return self._made("provision", f"{name} {marker}", int(days), deadline)

    def credentials(self) -> Sequence[Credential]:
        """The REST token, where the configuration says when it ends."""
        return [] if self._token_expires_at is None else [Credential(name="token", expires_at=self._token_expires_at)]

    def close(self) -> None:
        """Give back the connections; never raises."""
        self._peer.close()

    # ---

    def _made(self, operation: str, wanted: str, days: int, deadline: float) -> Issued:
        body = {"label": wanted, "expires_in_days": days}
        asked = self._peer.clock.now()
        reply = self._portal.rest.ask("POST", operation=operation, deadline=deadline, body=body, changes=True)
        row = nested(reply)
        if not reply.ok and not is_text(row.get("password")):
            raise refusal(reply)
        if reply.ok and not reply.fields:
            raise reply.error(changes=True)
        if two_passwords(reply):
            raise reply.bad("the answer holds two passwords", Reason.PROVIDER_ANSWER_UNREADABLE)
        secret = reply.secret(row.get("password"))
        identity = subscriber_identity(row)
        if identity is None:
            raise reply.bad("the answer names no username", Reason.PROVIDER_ANSWER_UNREADABLE)
        told = parse_timestamp(row.get("expires_at"))
        return Issued(
            identity=identity,
            secret=secret,
            issued_at=parse_timestamp(row.get("created_at")),
            expires_at=told or asked + timedelta(days=days),
            expiry_source=ExpirySource.ANSWER if told else ExpirySource.LIFETIME,
        )

    def _rows(self, deadline: float) -> Sequence[Row]:
        reply: Reply = self._portal.rest.ask("GET", operation="list_keys", deadline=deadline)
        if reply.status in NOT_SERVED:
            text = f"this portal does not serve a list of read-only logins (HTTP {reply.status}; it is not documented)"
            raise self._unable("list_keys", text)
        return rows_of(reply, subscriber_identity)

    def _row(self, id: str, deadline: float) -> Row | None:
        rows = ((subscriber_identity(row), row) for row in self._rows(deadline))
        return next((row for identity, row in rows if identity is not None and identity.id == id), None)

    def _unable(self, operation: str, problem: str) -> Permanent:
        return Permanent(f"{self._name}: {operation}: {problem}", reason=Reason.PROVIDER_UNABLE)

    def _refused(self, problem: str) -> Permanent:
        return Permanent(f"{self._name}: provision: {problem}", reason=Reason.PROVIDER_REFUSED)
