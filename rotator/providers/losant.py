"""Losant: access keys over REST (Losant's "Access Keys" page and its REST API's "Application Keys").

One key is one access key: its `key` is the MQTT username, its `secret` the password, the device's id the client id.
Losant stores no secrets and makes no second one for a key, so the strategy is *replace*: a clone beside the original,
which is deactivated and then deleted. Only the answer that made a key ever shows its secret. Keys do not expire.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Literal

import httpx
import structlog

from rotator.config_base import HttpPart
from rotator.config_types import Text, Url
from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Abilities, Identity, Issued, Secret, Strategy, UpstreamKey
from rotator.ports import Clock, OnRequest, Reveal
from rotator.providers.kinds import Site, issue_deadline
from rotator.providers.losant_api import LosantApi, Reply
from rotator.providers.losant_keys import (
    AccessKey,
    Malformed,
    clone_of,
    differences,
    identity_of,
    is_id,
    is_inactive,
    is_text,
    upstream,
)
from rotator.providers.pace import Pace
from rotator.reasons import Reason
from rotator.secret_refs import SecretRef
from rotator.timestamps import parse_timestamp

PAGE: Final = 100  # keys in one answer, the most that Losant gives
LISTINGS: Final = 3  # times that a list is read which changes while it is read
LOOK_DEADLINE: Final = timedelta(seconds=30)  # of a call that may be repeated

_log = structlog.get_logger(__name__)


class LosantSettings(HttpPart):
    """Losant's access keys of one application, by an API token that may list, create, change and delete them."""

    kind: Literal["losant"]
    url: Url = "https://api.losant.com"
    application: Text
    token: SecretRef


class Losant:
    """The access keys of one Losant application (ports.Replacing). Thread safe.

    Args:
        name: the provider's name in the configuration.
        client: made for this provider alone; `close()` closes it. Redirects should be off.
        url: the API's base, such as `https://api.losant.com`.
        application: the application's id.
        token: an API token with the scopes `applicationKeys.*` and `applicationKey.*`, read for each request.
        clock: wall clock and monotonic clock.
        on_request: told of each request.
        issue_deadline: the total time of one `create`, all of its requests together.
    """

    def __init__(
        self,
        name: str,
        *,
        client: httpx.Client,
        url: str,
        application: str,
        token: Reveal,
        clock: Clock,
        on_request: OnRequest,
        issue_deadline: timedelta = timedelta(seconds=30),
        pace: Pace | None = None,
    ) -> None:
        self._name = name
        self._client = client
        self._clock = clock
        self._issue_deadline = issue_deadline
        self._api = LosantApi(
            name,
            client=client,
            clock=clock,
            on_request=on_request,
            url=url,
            application=application,
            token=token,
            pace=pace,
        )

    @classmethod
    def configured(cls, site: Site, settings: LosantSettings) -> Losant:
        """One from its section of the configuration."""
        return cls(
            site.name,
            client=site.client(settings),
            url=settings.url,
            application=settings.application,
            token=site.reveal(settings.token),
            clock=site.clock,
            on_request=site.on_request,
            issue_deadline=issue_deadline(settings),
            pace=site.pace(settings),
        )

    def __repr__(self) -> str:
        return f"Losant({self._name!r})"

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def strategy(self) -> Strategy:
        """Secrets "cannot be recovered or regenerated" (the page, "Access Secret"): a new key beside the old one."""
        return Strategy.REPLACE

    @property
    def abilities(self) -> Abilities:
        """What the platform's documents allow."""
        return Abilities(strategy=self.strategy, kills_old=False, expires=False, pauses=True, deletes=True)

    @property
    def deactivates(self) -> bool:
        """A key can be made inactive, and active again."""
        return True

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that one `create` may take, all of its requests together."""
        return self._issue_deadline

    def identity(self, id: str) -> Identity:
        """A stand-in: only the list says which username and client id belong to an id."""
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All access keys of the application, oldest first.

        Raises:
            Transient, Permanent: no list, or not the whole of it; PROVIDER_ANSWER_UNREADABLE where it isn't what Losant
                documents, PROVIDER_UNAVAILABLE where it did not hold still.
        """
        deadline = self._deadline(LOOK_DEADLINE)
        for _ in range(LISTINGS):
            keys = self._listed(deadline)
            if keys is not None:
                return keys
        text = f"{self._name}: list_keys: keys were deleted while they were listed"
        raise Transient(text, reason=Reason.PROVIDER_UNAVAILABLE)

    def create(self, identity: Identity, marker: str) -> Issued:
        """Make a key with the rights and restrictions of `identity.id`, marked in its description.

        Two requests: a look at the original, then the one that makes the clone. A clone that came out other than its
        original is deleted again, since one without device restrictions would let every device in.

        Raises:
            Transient: nothing was made.
            Permanent: nothing was made, or what was made is gone again (KEY_UNKNOWN, KEY_INACTIVE: the original;
                PROVIDER_AUTH; PROVIDER_REFUSED: the request, or the clone came out other than its original).
            UnknownOutcome: a key may have been made: no whole readable answer, HTTP 408 or 5xx, or a clone that came
                out other than its original could not be deleted.
            BadAnswer: NO_SECRET (null), EMPTY_SECRET (blank), PROVIDER_ANSWER_UNREADABLE (no new key is named, or its
                restrictions are not shown).
        """
        deadline = self._deadline(self._issue_deadline)
        original, body = self._original(identity, marker, deadline)
        reply = self._api.ask("POST", operation="create", body=body, deadline=deadline, changes=True)
        return self._issued(original, reply, deadline)

    def deactivate(self, identity: Identity) -> None:
        """Make a key inactive. Inactive already, or gone, is success.

        Raises: Transient, Permanent.
        """
        self._set_status(identity, "inactive", operation="deactivate")

    def reactivate(self, identity: Identity) -> None:
        """Make a key active again. Active already is success.

        Raises: Transient, Permanent (KEY_UNKNOWN: it is gone).
        """
        if self._set_status(identity, "active", operation="reactivate").absent:
            raise self._unknown_key("reactivate", identity.id)

    def delete(self, id: str) -> None:
        """Delete a key. Absent is success.

        Raises: Transient, Permanent.
        """
        self._delete(id, self._deadline(LOOK_DEADLINE))

    def close(self) -> None:
        """Close the client; never raises."""
        self._client.close()

    def _deadline(self, total: timedelta) -> float:
        return self._clock.monotonic() + total.total_seconds()

    def _unknown_key(self, operation: str, id: str) -> Permanent:
        shown = id if is_id(id) else "(not an access key's id)"
        return Permanent(f"{self._name}: {operation}: no such key: {shown}", reason=Reason.KEY_UNKNOWN)

    def _path(self, operation: str, id: str) -> str:
        if not is_id(id):
            raise self._unknown_key(operation, id)  # ".." in a DELETE's path would mean something else entirely
        return f"/{id}"

    # --- the list

    def _listed(self, deadline: float) -> Sequence[UpstreamKey] | None:
        """All pages; None where a key was deleted meanwhile, which moved others to a page that was read already."""
        found: dict[str, UpstreamKey] = {}
        total: int | None = None
        number = 0
        while True:
            # oldest first, so that a key made meanwhile comes last and moves no other
            path = f"?page={number}&perPage={PAGE}&sortField=creationDate&sortDirection=asc"
            reply = self._api.ask("GET", path, operation="list_keys", deadline=deadline)
            page, now_total = self._page(reply)
            before = len(found)
            found.update((key.id, key) for key in page)
            if total is not None and now_total is not None and now_total < total:
                return None
            total, number = now_total, number + 1
            if (len(page) < PAGE) if total is None else (len(found) >= total):
                return list(found.values())
            if len(found) == before:
                raise reply.unreadable(f"the list ends after {before} of {total} keys")

    def _page(self, reply: Reply) -> tuple[Sequence[UpstreamKey], int | None]:
        if not reply.ok or reply.value is None:
            raise reply.error(changes=False)
        items, total = reply.value.get("items"), reply.value.get("totalCount")
        if not isinstance(items, list):
            raise reply.unreadable("the answer holds no items")
        page: list[UpstreamKey] = []
        for item in items:
            key = upstream(item) if isinstance(item, dict) else None
            if key is None:
                raise reply.unreadable("an entry has no id or no key")
            page.append(key)
        return page, total if isinstance(total, int) and not isinstance(total, bool) else None

    # --- a clone

    def _original(self, identity: Identity, marker: str, deadline: float) -> tuple[AccessKey, dict[str, object]]:
        """The key to clone, and the body that makes the clone."""
        reply = self._api.ask("GET", self._path("create", identity.id), operation="get_key", deadline=deadline)
        if reply.absent:
            raise self._unknown_key("create", identity.id)
        if not reply.ok or reply.value is None:
            raise reply.error(changes=False)
        original = reply.value
        if str(original.get("id")).lower() != identity.id.lower():
            raise reply.unreadable("the answer is about another key")
        if is_inactive(original):
            # a clone comes out active, so a key that somebody paused would be let in again
            raise Permanent(f"{self._name}: create: {identity.id} is inactive", reason=Reason.KEY_INACTIVE)
        try:
            return original, clone_of(original, marker)
        except Malformed as exc:
            raise reply.unreadable(str(exc)) from exc

    def _issued(self, original: AccessKey, reply: Reply, deadline: float) -> Issued:
        """Read the one answer that holds the secret; its body goes to the journal where it can't be used."""
        clone: AccessKey = reply.value or {}
        secret = clone.get("secret")
        if not isinstance(secret, str) or not secret.strip():
            if not reply.ok:
                raise reply.error(changes=True)
        elif not reply.ok:
            # rule 1: an issued secret counts more than the status that came with it
            _log.warning("an issued secret beside an error", provider=self._name, status=reply.status)
        secret = self._secret(reply, secret)
        identity = identity_of(clone)
        if identity is None or identity.id.lower() == str(original["id"]).lower():
            raise self._bad(reply, "the answer names no new key", Reason.PROVIDER_ANSWER_UNREADABLE)
        try:
            wrong = differences(original, clone)
        except Malformed as exc:
            raise self._bad(reply, f"the answer's {exc}", Reason.PROVIDER_ANSWER_UNREADABLE) from exc
        if wrong:
            raise self._undone(identity.id, wrong, reply, deadline)
        return Issued(identity=identity, secret=Secret(secret), issued_at=parse_timestamp(clone.get("creationDate")))

    def _secret(self, reply: Reply, value: object) -> str:
        if value is None:
            raise self._bad(reply, "the answer holds no secret", Reason.NO_SECRET)
        if isinstance(value, str) and not value.strip():
            raise self._bad(reply, "the answer's secret is empty", Reason.EMPTY_SECRET)
        if not isinstance(value, str) or not is_text(value):
            raise self._bad(reply, "the answer's secret is no text", Reason.PROVIDER_ANSWER_UNREADABLE)
        return value

    def _bad(self, reply: Reply, what: str, reason: Reason) -> BadAnswer:
        return BadAnswer(f"{self._name}: create: {what}", reason=reason, body=reply.body)

    def _undone(self, id: str, wrong: Sequence[str], reply: Reply, deadline: float) -> RotatorError:
        """Delete a clone that is not one; returns what to raise."""
        text = f"{self._name}: create: the new key came out with another {', '.join(wrong)} than the original"
        try:
            self._delete(id, deadline)
        except RotatorError as exc:
            # it is still there: only "a key may have been made" has it looked for by its marker and deleted
            unknown = UnknownOutcome(f"{text}, and {id} could not be deleted: {exc.message}")
            unknown.body = reply.body
            return unknown
        return Permanent(f"{text}, and was deleted again", reason=Reason.PROVIDER_REFUSED)

    # --- the end of a key

    def _set_status(self, identity: Identity, status: str, *, operation: str) -> Reply:
        """The answer, which says either `status` or that there is no such key."""
        path, deadline = self._path(operation, identity.id), self._deadline(LOOK_DEADLINE)
        reply = self._api.ask("PATCH", path, operation=operation, body={"status": status}, deadline=deadline)
        if reply.absent:
            return reply
        if not reply.ok or reply.value is None:
            raise reply.error(changes=False)
        if reply.value.get("status") != status:
            raise reply.unreadable(f"the answer does not say that the key is {status}")
        return reply

    def _delete(self, id: str, deadline: float) -> None:
        reply = self._api.ask("DELETE", self._path("delete", id), operation="delete", deadline=deadline)
        if not reply.ok and not reply.absent:
            raise reply.error(changes=False)
