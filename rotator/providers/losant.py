"""Losant: access keys over REST (Losant's "Access Keys" page and its REST API's "Application Keys").

One key is one access key: its `key` is the MQTT username, its `secret` the password, the device's id the client id.
Losant stores no secrets and makes no second one for a key, so the strategy is *replace*: a clone beside the original,
which is deactivated and then deleted. Only the answer that made a key ever shows its secret. Keys do not expire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Literal

import httpx
import structlog

from rotator.config_base import HttpPart
from rotator.config_types import Text, Url
from rotator.errors import Permanent, RotatorError, UnknownOutcome
from rotator.model import Abilities, Identity, Issued, ProbeResult, Secret, Strategy, UpstreamKey, Verdict
from rotator.ports import Clock, OnRequest, Reveal
from rotator.providers.http import Peer
from rotator.providers.kinds import Site, issue_deadline
from rotator.providers.losant_api import LosantApi, absent, shown
from rotator.providers.losant_keys import (
    OPTIONS,
    AccessKey,
    Malformed,
    clone_of,
    differences,
    identity_of,
    is_id,
    is_inactive,
    wanted_key,
)
from rotator.providers.pace import Pace
from rotator.providers.rest import Reply
from rotator.reasons import Reason
from rotator.secret_refs import SecretRef
from rotator.timestamps import parse_timestamp

_log = structlog.get_logger(__name__)


class LosantSettings(HttpPart):
    """Losant's access keys of one application, by an API token that may list, create, change and delete them.

    `check: true` proves the secrets of keys without a `verify` by `POST /auth/device`, which disturbs no device; each
    of those keys must name a device then, since Losant says nothing of a key without one.
    """

    kind: Literal["losant"]
    url: Url = "https://api.losant.com"
    application: Text
    token: SecretRef
    check: bool = False


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
        checks: whether keys are to be proven by `check`, which all of them must allow then.
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
        checks: bool = False,
    ) -> None:
        self._name = name
        self._issue_deadline = issue_deadline
        self._checks = checks
        self._peer = Peer(name, client=client, clock=clock, on_request=on_request, pace=pace)
        self._api = LosantApi(self._peer, url=url, application=application, token=token)

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
            checks=settings.check,
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
        return Abilities(
            strategy=self.strategy,
            kills_old=False,
            expires=False,
            pauses=True,
            creates=True,
            deletes=True,
            checks=self._checks,
        )

    @property
    def deactivates(self) -> bool:
        """A key can be made inactive, and active again."""
        return True

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that one `create` may take, all of its requests together."""
        return self._issue_deadline

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told."""
        return OPTIONS

    def identity(self, id: str) -> Identity:
        """A stand-in: only the list says which username and client id belong to an id."""
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All access keys of the application, oldest first.

        Raises:
            Transient, Permanent: no list, or not the whole of it; PROVIDER_ANSWER_UNREADABLE where it isn't what Losant
                documents, PROVIDER_UNAVAILABLE where it did not hold still.
        """
        return self._api.list_keys()

    def create(self, identity: Identity, marker: str) -> Issued:
        """Make a key with the rights and restrictions of `identity.id`, marked in its description.

        Two requests: a look at the original, then the one that makes the clone. A clone that came out other than its
        original is deleted again, since one without device restrictions would let every device in.

        Raises:
            Transient: nothing was made.
            Permanent: nothing was made, or what was made is gone again (KEY_UNKNOWN, KEY_INACTIVE: the original;
                PROVIDER_AUTH; PROVIDER_REFUSED: the request; CLONE_DIFFERS: it came out other than its original).
            UnknownOutcome: a key may have been made: no whole readable answer, HTTP 408 or 5xx, or a clone that came
                out other than its original could not be deleted.
            BadAnswer: NO_SECRET (null), EMPTY_SECRET (blank), PROVIDER_ANSWER_UNREADABLE (no new key is named, or its
                restrictions are not shown).
        """
        deadline = self._api.deadline(self._issue_deadline)
        original, body = self._original(identity, marker, deadline)
        return self._made(original, body, deadline)

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        """Make the key `name`, with the restrictions that `options` tell and the marker in its description.

        Losant never shows a secret again and makes no second one, so a key of this name that is there already is made
        anew only where it carries `marker`: then it came from this very call, whose answer was lost.

        Raises:
            Transient: nothing was made.
            Permanent: nothing was made, or what was made is gone again (PROVIDER_REFUSED: an option, no device named,
                or the name is taken; CLONE_DIFFERS: it came out other than asked for; PROVIDER_AUTH).
            UnknownOutcome, BadAnswer: as with `create`.
        """
        try:
            body = wanted_key(name, options, marker)
        except Malformed as exc:
            raise Permanent(f"{self._name}: provision: {exc}", reason=Reason.PROVIDER_REFUSED) from exc
        for key in self._api.list_keys():
            if key.name != name:
                continue
            if key.marker != marker:
                text = f"{self._name}: provision: a key of this name exists ({key.id}), and nobody can have its secret"
                advice = "adopt it with the secret that is in use, delete it, or choose another name"
                raise Permanent(f"{text}: {advice}", reason=Reason.PROVIDER_REFUSED)
            self.delete(key.id)
        return self._made(body, body, self._api.deadline(self._issue_deadline))

    def check(self, identity: Identity, secret: Secret) -> ProbeResult:
        """Ask Losant whether the key lets a device in; never raises for what a platform or a network does.

        The device is the key's own, or the first of those that it names. A key that names none (by tags alone, or for
        every device) can't be checked here: UNREACHABLE, which says nothing of its secret.
        """
        try:
            known = self._known(identity)
            if known.client_id is None:
                return ProbeResult(
                    verdict=Verdict.UNREACHABLE, detail="the key names no device to ask for: set `verify`"
                )
            reply = self._api.authenticate_device(known.client_id, known.username, secret)
        except RotatorError as exc:
            return ProbeResult(verdict=Verdict.UNREACHABLE, detail=exc.message)
        if reply.status == 401:
            return ProbeResult(verdict=Verdict.REFUSED, detail=reply.message or "HTTP 401")
        if shown(reply) is None or not reply.fields.get("token"):
            return ProbeResult(verdict=Verdict.UNREACHABLE, detail=reply.error(changes=False).message)
        return ProbeResult(verdict=Verdict.ACCEPTED, detail="authenticated")

    def deactivate(self, identity: Identity) -> None:
        """Make a key inactive. Inactive already, or gone, is success.

        Raises: Transient, Permanent.
        """
        self._set_status(identity, "inactive", operation="deactivate")

    def reactivate(self, identity: Identity) -> None:
        """Make a key active again. Active already is success.

        Raises: Transient, Permanent (KEY_UNKNOWN: it is gone).
        """
        if absent(self._set_status(identity, "active", operation="reactivate")):
            raise self._unknown_key("reactivate", identity.id)

    def delete(self, id: str) -> None:
        """Delete a key. Absent is success.

        Raises: Transient, Permanent.
        """
        self._delete(id, self._api.deadline())

    def close(self) -> None:
        """Close the client; never raises."""
        self._peer.close()

    def _unknown_key(self, operation: str, id: str) -> Permanent:
        shown = id if is_id(id) else "(not an access key's id)"
        return Permanent(f"{self._name}: {operation}: no such key: {shown}", reason=Reason.KEY_UNKNOWN)

    def _path(self, operation: str, id: str) -> str:
        if not is_id(id):
            raise self._unknown_key(operation, id)  # ".." in a DELETE's path would mean something else entirely
        return f"/{id}"

    def _known(self, identity: Identity) -> Identity:
        """`identity` with a username and a device, which the stand-in of `identity()` and keys of many devices lack."""
        if identity.client_id is not None and identity.username != identity.id:
            return identity
        path = self._path("check", identity.id)
        reply = self._api.ask("GET", path, operation="get_key", deadline=self._api.deadline())
        key = shown(reply)
        found = identity_of(key) if key is not None else None
        if key is None or found is None:
            raise reply.error(changes=False)
        devices = key.get("deviceIds")
        first = next((each for each in devices if isinstance(each, str)), None) if isinstance(devices, list) else None
        return replace(found, client_id=first)

    # --- a clone

    def _original(self, identity: Identity, marker: str, deadline: float) -> tuple[AccessKey, dict[str, object]]:
        """The key to clone, and the body that makes the clone."""
        reply = self._api.ask("GET", self._path("create", identity.id), operation="get_key", deadline=deadline)
        if absent(reply):
            raise self._unknown_key("create", identity.id)
        original = shown(reply)
        if original is None:
            raise reply.error(changes=False)
        if str(original.get("id")).lower() != identity.id.lower():
            raise reply.unreadable("the answer is about another key")
        if is_inactive(original):
            # a clone comes out active, so a key that somebody paused would be let in again
            raise Permanent(f"{self._name}: create: {identity.id} is inactive", reason=Reason.KEY_INACTIVE)
        try:
            return original, clone_of(original, marker)
        except Malformed as exc:
            raise reply.unreadable(str(exc)) from exc

    def _made(self, wanted: AccessKey, body: Mapping[str, object], deadline: float) -> Issued:
        """Send the one request that makes a key, and read the one answer that holds its secret.

        Args:
            wanted: what the new key must be like; its id is another key's, where it has one.
        """
        reply = self._api.ask("POST", operation="create", body=body, deadline=deadline, changes=True)
        made: AccessKey = reply.fields
        value = made.get("secret")
        if not isinstance(value, str) or not value.strip():
            if shown(reply) is None:
                raise reply.error(changes=True)
        elif not reply.ok:
            # rule 1: an issued secret counts more than the status that came with it
            _log.warning("an issued secret beside an error", provider=self._name, status=reply.status)
        secret = reply.secret(value)
        identity = identity_of(made)
        if identity is None or identity.id.lower() == str(wanted.get("id")).lower():
            raise reply.bad("the answer names no new key", Reason.PROVIDER_ANSWER_UNREADABLE)
        try:
            wrong = differences(wanted, made)
        except Malformed as exc:
            raise reply.bad(f"the answer's {exc}", Reason.PROVIDER_ANSWER_UNREADABLE) from exc
        if wrong:
            raise self._undone(identity.id, wrong, reply, deadline)
        return Issued(identity=identity, secret=secret, issued_at=parse_timestamp(made.get("creationDate")))

    def _undone(self, id: str, wrong: Sequence[str], reply: Reply, deadline: float) -> RotatorError:
        """Delete a clone that is not one; returns what to raise."""
        text = f"{self._name}: create: the new key came out with another {', '.join(wrong)} than asked for"
        try:
            self._delete(id, deadline)
        except RotatorError as exc:
            # it is still there: only "a key may have been made" has it looked for by its marker and deleted
            unknown = UnknownOutcome(f"{text}, and {id} could not be deleted: {exc.message}")
            unknown.body = reply.body
            return unknown
        return Permanent(f"{text}, and was deleted again", reason=Reason.CLONE_DIFFERS)

    # --- the end of a key

    def _set_status(self, identity: Identity, status: str, *, operation: str) -> Reply:
        """The answer, which says either `status` or that there is no such key."""
        path, deadline = self._path(operation, identity.id), self._api.deadline()
        reply = self._api.ask("PATCH", path, operation=operation, body={"status": status}, deadline=deadline)
        if absent(reply):
            return reply
        key = shown(reply)
        if key is None:
            raise reply.error(changes=False)
        if key.get("status") != status:
            raise reply.unreadable(f"the answer does not say that the key is {status}")
        return reply

    def _delete(self, id: str, deadline: float) -> None:
        reply = self._api.ask("DELETE", self._path("delete", id), operation="delete", deadline=deadline)
        if shown(reply) is None and not absent(reply):
            raise reply.error(changes=False)
