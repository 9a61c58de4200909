"""Iotistica's provisioning keys, with each of which one agent registers itself before it expires.

By the document a key is made without being told anything, and is neither listed nor deleted: it has no id, so the
marker of the rotation that made it stands for it. By the source keys are listed (without their secret), described and
revoked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from rotator.errors import Permanent
from rotator.model import (
    Abilities,
    Credential,
    ExpirySource,
    Identity,
    Issued,
    Secret,
    Strategy,
    UpstreamKey,
    marker_in,
)
from rotator.ports import Reveal
from rotator.providers.iotistica_api import (
    Generation,
    IotisticaApi,
    Resource,
    absent,
    failure,
    marked,
    no_route,
    part,
    row_id,
    rows,
    text_of,
    unmarked,
)
from rotator.providers.iotistica_keys import NO_PAUSE, life_of
from rotator.providers.rest import Reply
from rotator.reasons import Reason
from rotator.timestamps import parse_timestamp

DOCUMENT_PATH: Final = "/provision/keys"
SOURCE_PATH: Final = "/provisioning-keys"
USUAL_LIFE: Final = timedelta(days=30)


def provisioning_key(
    api: IotisticaApi, *, description: str, fleet: str | None, lifetime: timedelta, deadline: float
) -> tuple[Secret, Reply]:
    """Make a key for one agent; returns it with the answer that held it.

    Raises:
        Transient, Permanent: nothing was made (PROVIDER_QUOTA: the licence allows no more agents).
        UnknownOutcome: a key may have been made.
        BadAnswer: a key was made, and the answer does not hold it.
    """

    def ask(path: str, body: Mapping[str, str | int] | None) -> Callable[[], Reply]:
        return lambda: api.operator.ask("POST", path, operation="create", deadline=deadline, body=body, changes=True)

    days = max(1, math.ceil(lifetime / timedelta(days=1)))
    source: dict[str, str | int] = {"maxDevices": 1, "expiresInDays": days, "description": description}
    if fleet is not None:
        source["fleetUuid"] = fleet
    reply = api.first_that_fits(
        "provisioning",
        {Generation.DOCUMENT: ask(DOCUMENT_PATH, None), Generation.SOURCE: ask(SOURCE_PATH, source)},
    )
    key = reply.fields.get("key")
    if not reply.fields or (not reply.ok and not isinstance(key, str)):
        raise failure(reply, changes=True)
    return reply.secret(key), reply


class ProvisioningKeys(Resource):
    """The provisioning keys of one cloud, or of one fleet (ports.Replacing, ports.Watched). Thread safe.

    Args:
        api, issue_deadline, licence: see `Resource`.
        fleet: the fleet that the keys belong to, where the platform asks for one.
        lifetime: how long new keys live, in whole days; None: as long as the key that they replace, or 30 days.
    """

    def __init__(
        self,
        api: IotisticaApi,
        *,
        issue_deadline: timedelta,
        licence: Reveal | None,
        fleet: str | None,
        lifetime: timedelta | None,
    ) -> None:
        super().__init__(api, issue_deadline=issue_deadline, licence=licence)
        self._fleet = fleet
        self._lifetime = lifetime

    @property
    def strategy(self) -> Strategy:
        """A new key beside the old one."""
        return Strategy.REPLACE

    @property
    def abilities(self) -> Abilities:
        """By the source; the document's cloud neither lists nor deletes them, which `auto` finds when it asks."""
        more = self._api.may_be(Generation.SOURCE)
        return Abilities(
            strategy=Strategy.REPLACE, kills_old=False, expires=True, lists=more, creates=True, deletes=more
        )

    @property
    def deactivates(self) -> bool:
        """A revoked key can't be brought back."""
        return False

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told."""
        return {"days": "how many days the key lives"}

    def identity(self, id: str) -> Identity:
        """The id alone: a provisioning key is no MQTT login."""
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All keys, spent and revoked ones included.

        Raises: Transient, Permanent (PROVIDER_UNABLE: the document's cloud lists none).
        """
        return [_upstream(row) for row in self._rows(self._api.operator.deadline())]

    def credentials(self) -> Sequence[Credential]:
        """The licence, and each key that can still be used; without them where the cloud lists none.

        Raises: Transient, Permanent.
        """
        listed = self._rows_if_any(self._api.operator.deadline()) or []
        keys = [key for key in map(_upstream, listed) if key.problem is None]
        return [
            *super().credentials(),
            *(Credential(name=key.name or key.id, expires_at=key.expires_at) for key in keys),
        ]

    def create(self, identity: Identity, marker: str) -> Issued:
        """Make a key described as `identity.id` is, with `marker`. One request that changes something.

        Raises:
            Transient, Permanent: nothing was made.
            UnknownOutcome: a key may have been made.
            BadAnswer: a key was made, and the answer does not hold it.
        """
        deadline = self._deadline()
        listed = self._rows_if_any(deadline)
        original = next((row for row in listed or [] if row_id(row) == identity.id), {})
        if listed is not None and not original:
            raise self._unknown("create", identity.id)
        lifetime = self._lifetime or life_of(original) or USUAL_LIFE
        return self._made(text_of(original, "description"), marker, lifetime, deadline)

    def deactivate(self, identity: Identity) -> None:
        """Never called, since `deactivates` is False.

        Raises: Permanent PROVIDER_UNABLE.
        """
        raise self._refused("deactivate", NO_PAUSE, Reason.PROVIDER_UNABLE)

    def reactivate(self, identity: Identity) -> None:
        """Never called, since `deactivates` is False.

        Raises: Permanent PROVIDER_UNABLE.
        """
        raise self._refused("reactivate", NO_PAUSE, Reason.PROVIDER_UNABLE)

    def delete(self, id: str) -> None:
        """Revoke a key. Absent is success.

        Raises: Transient, Permanent (PROVIDER_UNABLE: the document's cloud deletes none; they end by themselves).
        """
        deadline = self._api.operator.deadline()

        def ask(path: str) -> Callable[[], Reply]:
            return lambda: self._api.operator.ask(
                "DELETE",
                f"{path}/{part(id)}",
                operation="delete",
                deadline=deadline,
                body={"reason": "Replaced by rotator"},  # the source reads it, and fails without a body
            )

        reply = self._api.first_that_fits("provisioning", _by_path(ask))
        if no_route(reply):
            raise self._refused("delete", "this cloud deletes no provisioning keys: they end", Reason.PROVIDER_UNABLE)
        if not absent(reply) and not (reply.ok and reply.fields):
            raise reply.error(changes=False)

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        """Make a key described as `name`.

        Raises: as `create`; Permanent PROVIDER_REFUSED where one of this description can still be used.
        """
        self._check_options(options)
        days = options.get("days", "")
        if days and (not days.isdecimal() or not 1 <= int(days) <= 3650):
            raise self._refused("provision", "`days` must be a whole number from 1 to 3650")
        deadline = self._deadline()
        for row in self._rows_if_any(deadline) or []:
            if _is_usable(row) and unmarked(text_of(row, "description")) == unmarked(name):
                why = f"there is a key {name!r} ({row_id(row)}), whose secret can't be had: rotate or retire it"
                raise self._refused("provision", why)
        lifetime = timedelta(days=int(days)) if days else self._lifetime or USUAL_LIFE
        return self._made(name, marker, lifetime, deadline)

    def _rows_if_any(self, deadline: float) -> Sequence[Mapping[str, Any]] | None:
        """The list; None from the document's cloud, which has none.

        Raises: Transient, Permanent.
        """
        try:
            return self._rows(deadline)
        except Permanent as exc:
            if exc.reason is not Reason.PROVIDER_UNABLE:
                raise
            return None

    def _rows(self, deadline: float) -> Sequence[Mapping[str, Any]]:
        params = {"fleetUuid": self._fleet} if self._fleet is not None else None

        def ask(path: str) -> Callable[[], Reply]:
            return lambda: self._api.operator.ask("GET", path, operation="list_keys", deadline=deadline, params=params)

        reply = self._api.first_that_fits("provisioning", _by_path(ask))
        if no_route(reply):
            raise self._refused("list_keys", "this cloud lists no provisioning keys", Reason.PROVIDER_UNABLE)
        found = [{name: value for name, value in row.items() if name != "key"} for row in rows(reply, "keys")]
        if not all(map(row_id, found)):
            raise reply.unreadable("an entry has no id")
        return found

    def _made(self, name: str, marker: str, lifetime: timedelta, deadline: float) -> Issued:
        secret, reply = provisioning_key(
            self._api, description=marked(name, marker), fleet=self._fleet, lifetime=lifetime, deadline=deadline
        )
        ends = parse_timestamp(reply.fields.get("expiresAt") or reply.fields.get("expires_at"))
        return Issued(
            identity=self.identity(row_id(reply.fields) or marker),
            secret=secret,
            expires_at=ends,
            expiry_source=ExpirySource.ANSWER if ends is not None else None,
        )


def _by_path(ask: Callable[[str], Callable[[], Reply]]) -> Mapping[Generation, Callable[[], Reply]]:
    return {Generation.DOCUMENT: ask(DOCUMENT_PATH), Generation.SOURCE: ask(SOURCE_PATH)}


def _is_usable(row: Mapping[str, Any]) -> bool:
    used, most = row.get("agents_provisioned"), row.get("max_agents")
    spent = isinstance(used, int) and isinstance(most, int) and used >= most
    return row.get("is_active") is not False and not spent


def _upstream(row: Mapping[str, Any]) -> UpstreamKey:
    ends, description, usable = parse_timestamp(row.get("expires_at")), text_of(row, "description"), _is_usable(row)
    return UpstreamKey(
        id=row_id(row),
        name=unmarked(description),
        issued_at=parse_timestamp(row.get("created_at")),
        expires_at=ends,
        expiry_source=ExpirySource.ANSWER if ends is not None else None,
        problem=None if usable else Reason.KEY_INACTIVE,
        marker=marker_in(description) if usable else "",  # what can't be used any more is no orphan
    )
