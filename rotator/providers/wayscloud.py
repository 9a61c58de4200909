"""WAYSCloud's IoT devices over REST, in both generations of the API ("MQTT Credentials"; see `wayscloud_devices`).

One key is one device: its id, MQTT username and client id are usually the same. No call makes a new password for a
device that exists; only the answer that made it ever shows one. So there are two ways:

- the usual: a second device with the same name, type and metadata (*replace*), whose marker stands in its metadata (old
  generation) or in its id (new). The account's quota is read first, since it may not have room for one more;
- `allow_outage: true`, new generation only: the device is deleted and made again under its id (*in place*). Nothing
  connects from the one to the other, and should the process die in between, whoever asks again has to say what the
  device was (`remember`): the platform has forgotten it.

Devices have no expiry, so they are rotated by age.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

import structlog
from pydantic import model_validator

from rotator.config_base import HttpPart, RateLimit
from rotator.config_types import Url, wrong
from rotator.errors import Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Abilities, Identity, Issued, Quota, Secret, Strategy, UpstreamKey
from rotator.providers.kinds import Site, issue_deadline
from rotator.providers.quota_words import names_quota, refusal
from rotator.providers.rest import Reply, is_text
from rotator.providers.wayscloud_api import GONE, ApiKey, Choice, WaysCloudApi
from rotator.providers.wayscloud_devices import (
    Device,
    Fields,
    Generation,
    Malformed,
    body_of,
    clone_of,
    device_of,
    identity_of,
    stand_in,
    upstream,
)
from rotator.providers.wayscloud_provision import OPTIONS, wanted
from rotator.reasons import Reason
from rotator.secret_refs import SecretRef
from rotator.timestamps import parse_timestamp

_log = structlog.get_logger(__name__)


class WaysCloudSettings(HttpPart):
    """WAYSCloud's IoT devices, by an API key with the IoT permission.

    `generation` is read off the key's prefix unless it is named. `allow_outage` deletes a device and makes it again
    under its id, instead of making a second one beside it.
    """

    kind: Literal["wayscloud"]
    url: Url = "https://api.wayscloud.services"
    token: SecretRef
    generation: Choice = "auto"
    allow_outage: bool = False
    rate_limit: RateLimit | None = RateLimit(requests=1000, per=timedelta(minutes=1), burst=200)

    @model_validator(mode="after")
    def _can_choose_the_id(self) -> WaysCloudSettings:
        if self.allow_outage and self.generation == "old":
            raise wrong("the old API chooses a device's id itself", "`generation: new` can keep it", at="allow_outage")
        return self


class _Devices:
    """What both ways share. Thread safe.

    Args:
        api: asks.
        key: the API key.
        issue_deadline: the total time of one call that makes a device, all of its requests together.
    """

    def __init__(self, api: WaysCloudApi, key: ApiKey, *, issue_deadline: timedelta = timedelta(seconds=30)) -> None:
        self._api, self._key, self._name = api, key, api.name
        self._issue_deadline = issue_deadline
        self._generation = Generation.OLD  # of the key as it was read last

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that one call which makes a device may take, all of its requests together."""
        return self._issue_deadline

    @property
    def deactivates(self) -> bool:
        """The new generation can make a device inactive, and active again."""
        return self._now() is Generation.NEW

    @property
    def options(self) -> Fields:
        """What `provision` may be told."""
        return OPTIONS

    def identity(self, id: str) -> Identity:
        """The id is the username and the client id, unless the list says something else."""
        return stand_in(id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All devices of the account; an inactive one has the problem KEY_INACTIVE.

        Raises: Transient, Permanent; PROVIDER_UNAVAILABLE where the list did not hold still.
        """
        deadline = self._api.rest.deadline()
        devices, known = self._api.devices(deadline), self._api.identities(deadline)
        return [upstream(device, known.get(device.id, stand_in(device.id))) for device in devices]

    def quotas(self) -> Sequence[Quota]:
        """Devices, messages and bandwidth: used, and the plan's limit.

        Raises: Transient, Permanent.
        """
        return self._api.quotas(self._api.rest.deadline())

    def deactivate(self, identity: Identity) -> None:
        """Make a device inactive. Inactive already, or gone, is success.

        Raises: Transient, Permanent (PROVIDER_UNABLE: the old generation).
        """
        self._set_active(identity.id, False, operation="deactivate")

    def reactivate(self, identity: Identity) -> None:
        """Make a device active again. Active already is success.

        Raises: Transient, Permanent (PROVIDER_UNABLE: the old generation; KEY_UNKNOWN: it is gone).
        """
        if self._set_active(identity.id, True, operation="reactivate") is None:
            raise self._api.unknown("reactivate", identity.id)

    def delete(self, id: str) -> None:
        """Delete a device. Absent is success.

        Raises: Transient, Permanent.
        """
        deadline = self._api.rest.deadline()
        reply = self._api.ask("DELETE", id, operation="delete", deadline=deadline)
        self._deleted(reply, id, deadline, changes=False)

    def provision(self, name: str, options: Fields, marker: str) -> Issued:
        """Make a device with this name.

        Args:
            options: of `wayscloud_provision.OPTIONS`.
            marker: goes into the metadata in the old generation; the new one finds the device by its id.

        Raises: as ports.Provisioning says; PROVIDER_REFUSED: a device with this name or id exists.
        """
        generation, deadline = self._read_generation(), self._api.rest.deadline(self._issue_deadline)
        try:
            body = wanted(name, options, generation, marker)
        except Malformed as exc:
            raise Permanent(f"{self._name}: provision: {exc}", reason=Reason.PROVIDER_REFUSED) from exc
        for device in self._api.devices(deadline):
            if device.name == name or device.id == body.get("device_id"):
                text = f"{device.id} is there, and its password can't be had again: delete it, or choose another name"
                raise Permanent(f"{self._name}: provision: {text}", reason=Reason.PROVIDER_REFUSED)
        self._room(deadline, "provision")
        return self._issued(self._made(body, deadline, operation="provision"))

    def close(self) -> None:
        """Give back the connections; never raises."""
        self._api.rest.peer.close()

    # ---

    def _read_generation(self) -> Generation:
        self._generation = self._key.generation()
        return self._generation

    def _now(self) -> Generation:
        """The key's generation; where the key can't be read, what it was the last time."""
        try:
            return self._read_generation()
        except RotatorError:
            return self._generation

    def _room(self, deadline: float, operation: str, *, freed: int = 0) -> None:
        """Raise where the account may not have one device more than now, after `freed` are gone."""
        quota = next((each for each in self._api.quotas(deadline) if each.name == "devices"), None)
        if quota is not None and quota.used - freed >= quota.limit:
            text = f"a quota is full: {quota.used:g} of {quota.limit:g} devices"
            raise Permanent(f"{self._name}: {operation}: {text}", reason=Reason.PROVIDER_QUOTA)

    def _made(self, body: Fields, deadline: float, *, operation: str) -> Reply:
        """The answer of the call that makes a device, which may have been refused."""
        reply = self._api.make(body, operation=operation, deadline=deadline)
        id = body.get("device_id")
        if reply.status != 409 or names_quota(reply) or not isinstance(id, str):
            return reply
        # this id was nobody's when we asked, so what took it may be our own request, which something sent twice
        try:
            there = self._api.device(id, deadline) is not None
        except RotatorError:
            there = True
        if there:
            raise UnknownOutcome(f"{reply.what}: HTTP 409: {id} is taken, and may have been made by this very call")
        return reply

    def _issued(self, reply: Reply, *, not_id: str | None = None, only_id: str | None = None) -> Issued:
        """Read the one answer that shows the password.

        Args:
            not_id: the id of the device beside which this one was made.
            only_id: the one id that it can have.
        """
        login = reply.fields.get("mqtt_credentials")
        shown = login.get("password") if isinstance(login, dict) else None
        shown = reply.fields.get("mqtt_password") if shown is None else shown
        if not reply.ok:
            if not is_text(shown):
                raise refusal(reply)
            # rule 1: an issued secret counts more than the status that came with it
            _log.warning("an issued secret beside an error", provider=self._name, status=reply.status)
        elif not reply.fields:
            raise reply.error(changes=True)
        secret = reply.secret(shown)
        identity = identity_of(reply.fields, login)
        if identity is None or identity.id == not_id or only_id not in (None, identity.id):
            raise reply.bad("the answer names no device, or another one", Reason.PROVIDER_ANSWER_UNREADABLE)
        return Issued(identity=identity, secret=secret, issued_at=parse_timestamp(reply.fields.get("created_at")))

    def _deleted(self, reply: Reply, id: str, deadline: float, *, changes: bool) -> None:
        if reply.ok and (reply.value is not None or not reply.body.strip()):
            return
        if not reply.ok and reply.status not in GONE:
            raise reply.error(changes=changes)
        # a gateway's 404, or a page with status 200, says nothing of the device: the list does
        if self._api.listed(id, deadline) is not None:
            raise reply.unreadable(f"HTTP {reply.status}, and the device is still listed")

    def _set_active(self, id: str, active: bool, *, operation: str) -> Device | None:
        """The device as it is then; None where there is none."""
        if self._read_generation() is Generation.OLD:
            text = f"{self._name}: {operation}: the old API can only delete a device"
            raise Permanent(text, reason=Reason.PROVIDER_UNABLE)
        deadline = self._api.rest.deadline()
        reply = self._api.ask("PATCH", id, operation=operation, deadline=deadline, body={"is_active": active})
        if not reply.ok and reply.status not in (*GONE, 409):
            raise reply.error(changes=False)
        device = self._told(reply) or self._api.device(id, deadline)
        if device is None or (device.id == id and device.active is active):
            return device
        raise reply.unreadable("the device is not as it was asked for") if reply.ok else reply.error(changes=False)

    def _told(self, reply: Reply) -> Device | None:
        """The device that an answer shows with its state; None where it shows none."""
        try:
            device = device_of(reply.value) if reply.ok else None
        except Malformed:
            return None
        return device if device is not None and device.active is not None else None


class WaysCloud(_Devices):
    """Devices that are replaced by a second one (ports.Replacing, Deactivating, Deleting, Provisioning, Metered)."""

    @classmethod
    def configured(cls, site: Site, settings: WaysCloudSettings) -> WaysCloud | WaysCloudRecreating:
        """What the section asks for."""
        key = ApiKey(site.name, site.reveal(settings.token), settings.generation)
        api = WaysCloudApi(site.peer(settings), url=settings.url, key=key)
        kind = WaysCloudRecreating if settings.allow_outage else cls
        return kind(api, key, issue_deadline=issue_deadline(settings))

    @property
    def strategy(self) -> Strategy:
        """A second device beside the first."""
        return Strategy.REPLACE

    @property
    def abilities(self) -> Abilities:
        """What the API of this key's generation can do."""
        return Abilities(
            strategy=self.strategy, kills_old=False, expires=False, pauses=self.deactivates, creates=True, deletes=True
        )

    def create(self, identity: Identity, marker: str) -> Issued:
        """Make a device like `identity.id`. Three requests: the original, the quota, the call itself.

        Raises:
            Transient: nothing was made.
            Permanent: nothing was made (KEY_UNKNOWN, KEY_INACTIVE: the original; PROVIDER_QUOTA; PROVIDER_AUTH; …).
            UnknownOutcome: a device may have been made.
            BadAnswer: NO_SECRET, EMPTY_SECRET, PROVIDER_ANSWER_UNREADABLE; a device may have been made.
        """
        generation, deadline = self._read_generation(), self._api.rest.deadline(self._issue_deadline)
        original = self._api.device(identity.id, deadline)
        if original is None:
            raise self._api.unknown("create", identity.id)
        if original.active is False:
            # the new one comes out active, so a device that somebody paused would be let in again
            raise Permanent(f"{self._name}: create: {identity.id} is inactive", reason=Reason.KEY_INACTIVE)
        try:
            body = clone_of(original, generation, marker)
        except Malformed as exc:
            text = f"{self._name}: create: {exc}"
            raise Transient(text, reason=Reason.PROVIDER_ANSWER_UNREADABLE) from exc
        self._room(deadline, "create")
        return self._issued(self._made(body, deadline, operation="create"), not_id=identity.id)


class WaysCloudRecreating(_Devices):
    """Devices that are deleted and made again under their id (ports.InPlace, and the others as `WaysCloud`)."""

    def __init__(self, api: WaysCloudApi, key: ApiKey, *, issue_deadline: timedelta = timedelta(seconds=30)) -> None:
        super().__init__(api, key, issue_deadline=issue_deadline)
        self._kept: dict[str, Device] = {}  # what devices were, until they are there again

    @property
    def strategy(self) -> Strategy:
        """The id stays."""
        return Strategy.IN_PLACE

    @property
    def abilities(self) -> Abilities:
        """What the new generation's API can do."""
        return Abilities(
            strategy=self.strategy,
            kills_old=True,
            expires=False,
            pauses=self.deactivates,
            creates=True,
            deletes=True,
            recreates=True,
        )

    def describe(self, identity: Identity) -> Fields:
        """What the device is, as the body that makes it: to be journaled before `issue`, for `remember`.

        Raises: Transient, Permanent KEY_UNKNOWN.
        """
        device = self._api.device(identity.id, self._api.rest.deadline()) or self._kept.get(identity.id)
        if device is None:
            raise self._api.unknown("describe", identity.id)
        return body_of(device, Generation.NEW, device.metadata)

    def remember(self, identity: Identity, described: Fields) -> None:
        """What `describe` said before a crash; used where the device is no longer there.

        Raises: Permanent PROVIDER_REFUSED: it describes another device, or none.
        """
        try:
            device = device_of(described)
        except Malformed as exc:
            raise Permanent(f"{self._name}: remember: {exc}", reason=Reason.PROVIDER_REFUSED) from exc
        if device.id != identity.id:
            text = f"{self._name}: remember: this describes {device.id}, not {identity.id}"
            raise Permanent(text, reason=Reason.PROVIDER_REFUSED)
        self._kept[identity.id] = device

    def issue(self, identity: Identity, current: Secret | None = None) -> Issued:
        """Delete the device and make it again. One that is not there is only made, from what is known of it.

        Raises:
            Transient, Permanent: nothing was issued; the message says so where the device is gone by then, and another
                `issue` makes it (KEY_INACTIVE, PROVIDER_QUOTA, PROVIDER_UNABLE: nothing was touched).
            UnknownOutcome: the device may be gone, or be there again.
            BadAnswer: NO_SECRET, EMPTY_SECRET, PROVIDER_ANSWER_UNREADABLE.
        """
        if self._read_generation() is Generation.OLD:
            text = f"{self._name}: issue: the old API chooses a device's id itself, so it can't be made again under it"
            raise Permanent(text, reason=Reason.PROVIDER_UNABLE)
        deadline = self._api.rest.deadline(self._issue_deadline)
        device = self._api.device(identity.id, deadline)
        if device is not None and device.active is False:
            raise Permanent(f"{self._name}: issue: {identity.id} is inactive", reason=Reason.KEY_INACTIVE)
        if device is not None:
            self._room(deadline, "issue", freed=1)
            self._kept[identity.id] = device
            reply = self._api.ask("DELETE", identity.id, operation="delete", deadline=deadline, changes=True)
            self._deleted(reply, identity.id, deadline, changes=True)
        else:
            device = self._kept.get(identity.id, Device(id=identity.id, name=identity.id))
        issued = self._made_again(device, deadline)
        self._kept.pop(identity.id, None)
        return issued

    def _made_again(self, device: Device, deadline: float) -> Issued:
        body = body_of(device, Generation.NEW, device.metadata)
        try:
            reply = self._api.make(body, operation="issue", deadline=deadline)
            if reply.status == 409 and not names_quota(reply):
                raise Transient(f"{reply.what}: the id is not free yet", reason=Reason.PROVIDER_UNAVAILABLE)
            return self._issued(reply, only_id=device.id)
        except Transient as exc:
            raise Transient(_gone(exc, device), reason=exc.reason, retry_after=exc.retry_after) from exc
        except Permanent as exc:
            error = Permanent(_gone(exc, device), reason=exc.reason)
            error.body = exc.body
            raise error from exc


def _gone(error: RotatorError, device: Device) -> str:
    return f"{error.message}: {device.id} is deleted, and lets nobody in until it is made again"
