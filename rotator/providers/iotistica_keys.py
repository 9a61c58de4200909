"""Iotistica's API keys: made beside the old one under a marked name, which is then revoked (*replace*).

The key is the secret, and by the document it is the MQTT username of its agent; the MQTT password was provisioned with
the agent and stays. So the username of an `Identity`, which is shown and logged, is the agent's client id
(`agent-{uuid}`), or the key's name where no agent is known, and `verify` puts `{secret}` into the username.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import structlog

from rotator.errors import BadAnswer, RotatorError
from rotator.model import Abilities, ExpirySource, Identity, Issued, Strategy, UpstreamKey, marker_in
from rotator.ports import Reveal
from rotator.providers.iotistica_api import (
    REVOKED_FOR,
    Generation,
    IotisticaApi,
    Resource,
    absent,
    failure,
    marked,
    part,
    row_id,
    rows,
    text_of,
    unmarked,
)
from rotator.providers.rest import Reply
from rotator.reasons import Reason
from rotator.timestamps import parse_timestamp

PATH: Final = "/auth/api-keys"
NO_PAUSE: Final = "a key can only be revoked, for good"

_log = structlog.get_logger(__name__)


class ApiKeys(Resource):
    """The API keys of one Iotistica cloud (ports.Replacing, ports.Provisioning). Thread safe.

    Args:
        api, issue_deadline, licence: see `Resource`.
        agents: the agent (a uuid) of each key that is to have one, by the key's name or id; where the platform's list
            names it, that counts.
        lifetime: how long new keys live; None: as long as the key that they replace, which may be for ever.
    """

    def __init__(
        self,
        api: IotisticaApi,
        *,
        issue_deadline: timedelta,
        licence: Reveal | None,
        agents: Mapping[str, str],
        lifetime: timedelta | None,
    ) -> None:
        super().__init__(api, issue_deadline=issue_deadline, licence=licence)
        self._agents = agents
        self._lifetime = lifetime

    @property
    def strategy(self) -> Strategy:
        """A new key beside the old one."""
        return Strategy.REPLACE

    @property
    def abilities(self) -> Abilities:
        """Keys don't expire by the document; by the source they do where they were made so."""
        expires = self._lifetime is not None
        return Abilities(
            strategy=Strategy.REPLACE,
            kills_old=False,
            expires=expires,
            creates=True,
            deletes=True,
            propagation=REVOKED_FOR,
        )

    @property
    def deactivates(self) -> bool:
        """A revoked key can't be brought back."""
        return False

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told."""
        return {"agent": "the uuid of the agent that the key is for", "description": "what the key is for"}

    def identity(self, id: str) -> Identity:
        """A stand-in: only the list says which agent a key belongs to."""
        return self._identity(id, "", self._agents.get(id, ""))

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All API keys, oldest first. The platform lists them in full; nothing of a secret leaves this call.

        Raises: Transient, Permanent.
        """
        found = [self._upstream(row) for row in self._rows(self._api.operator.deadline())]
        return sorted(found, key=lambda key: (key.issued_at is not None, key.issued_at, key.id))

    def create(self, identity: Identity, marker: str) -> Issued:
        """Make a key like `identity.id`, with its name and `marker`. One request that changes something.

        Raises:
            Transient: nothing was made.
            Permanent: nothing was made (KEY_UNKNOWN, KEY_INACTIVE: the original; PROVIDER_AUTH; PROVIDER_REFUSED).
            UnknownOutcome: a key may have been made.
            BadAnswer: NO_SECRET, EMPTY_SECRET, PROVIDER_ANSWER_UNREADABLE: a key was made.
        """
        deadline = self._deadline()
        original = next((row for row in self._rows(deadline) if row_id(row) == identity.id), None)
        if original is None:
            raise self._unknown("create", identity.id)
        if original.get("is_active") is False:
            raise self._refused("create", f"{identity.id} is revoked, and stays so", Reason.KEY_INACTIVE)
        description = original.get("description")
        return self._made(
            marked(text_of(original, "name"), marker),
            description=description if isinstance(description, str) else None,
            agent=self._agent(original),
            lifetime=self._lifetime or life_of(original),
            deadline=deadline,
        )

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
        """Revoke a key for good. It stays in the platform's list. Absent is success.

        Raises: Transient, Permanent.
        """
        deadline = self._api.operator.deadline()
        reply = self._api.operator.ask("DELETE", f"{PATH}/{part(id)}", operation="delete", deadline=deadline)
        if not absent(reply) and not (reply.ok and reply.fields):
            raise failure(reply, changes=False)

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        """Make the key `name`.

        Raises: as `create`; Permanent PROVIDER_REFUSED where there is one of this name already.
        """
        self._check_options(options)
        deadline = self._deadline()
        for row in self._rows(deadline):
            if row.get("is_active") is not False and unmarked(text_of(row, "name")) == unmarked(name):
                why = f"there is a key {name!r} (id {row_id(row)}), whose secret can't be had: rotate or retire it"
                raise self._refused("provision", why)
        return self._made(
            marked(name, marker),
            description=options.get("description"),
            agent=options.get("agent") or self._agents.get(name, ""),
            lifetime=self._lifetime,
            deadline=deadline,
        )

    # --- the list

    def _rows(self, deadline: float) -> Sequence[Mapping[str, Any]]:
        """The list's rows without their keys, which no other code of ours ever sees."""
        reply = self._api.operator.ask("GET", PATH, operation="list_keys", deadline=deadline)
        found = [{name: value for name, value in row.items() if name != "key"} for row in rows(reply, "keys")]
        if not all(map(row_id, found)):
            raise reply.unreadable("an entry has no id")
        return found

    def _upstream(self, row: Mapping[str, Any]) -> UpstreamKey:
        expires_at, revoked = parse_timestamp(row.get("expires_at")), row.get("is_active") is False
        name = text_of(row, "name")
        return UpstreamKey(
            id=row_id(row),
            name=unmarked(name),
            issued_at=parse_timestamp(row.get("created_at")),
            expires_at=expires_at,
            expiry_source=ExpirySource.ANSWER if expires_at is not None else None,
            problem=Reason.KEY_INACTIVE if revoked else None,
            # a revoked key is listed for ever: it is no orphan that waits to be deleted
            marker="" if revoked else marker_in(name),
            identity=self._identity(row_id(row), unmarked(name), self._agent(row)),
        )

    def _agent(self, row: Mapping[str, Any]) -> str:
        """The uuid of a key's agent, '' where it is not known."""
        told = text_of(row, "agentUuid", "agent_uuid")
        return told or self._agents.get(row_id(row)) or self._agents.get(unmarked(text_of(row, "name")), "")

    def _identity(self, id: str, name: str, agent: str) -> Identity:
        return Identity(id=id, username=client_of(agent) or name or id, client_id=client_of(agent))

    # --- a new key

    def _made(
        self, name: str, *, description: str | None, agent: str, lifetime: timedelta | None, deadline: float
    ) -> Issued:
        ends = self._api.clock.now() + lifetime if lifetime is not None else None

        def ask(body: Mapping[str, str]) -> Reply:
            return self._api.operator.ask("POST", PATH, operation="create", deadline=deadline, body=body, changes=True)

        source = {"name": name, **({"description": description} if description else {})}
        if ends is not None:
            source["expires_at"] = ends.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        ways: dict[Generation, Callable[[], Reply]] = {Generation.SOURCE: lambda: ask(source)}
        if agent:
            ways[Generation.DOCUMENT] = lambda: ask({"name": name, "agentUuid": agent})
        elif not self._api.may_be(Generation.SOURCE):
            why = f"name the agent of {unmarked(name)!r} in `agents`: the document's API asks for it"
            raise self._refused("create", why)
        reply = self._api.first_that_fits("api-keys", ways)
        return self._issued(reply, name, agent, deadline)

    def _issued(self, reply: Reply, name: str, agent: str, deadline: float) -> Issued:
        """Read the one answer that holds the secret: `{key: {key, …}}` (the source), or flat, as `apiKey` or `key`."""
        told = reply.fields.get("key")
        row: Mapping[str, Any] = told if isinstance(told, dict) else reply.fields
        key = row.get("key") if isinstance(told, dict) else row.get("apiKey", told)
        if not reply.ok:
            if not isinstance(key, str) or not key.strip():
                raise failure(reply, changes=True)
            # rule 1: an issued secret counts more than the status that came with it
            _log.warning("an issued secret beside an error", provider=self.name, status=reply.status)
        if not reply.fields:
            raise reply.error(changes=True)
        secret = reply.secret(key)
        expires_at = parse_timestamp(row.get("expires_at"))
        agent = text_of(row, "agentUuid", "agent_uuid") or agent
        return Issued(
            identity=self._identity(row_id(row) or self._id_of(name, reply, deadline), unmarked(name), agent),
            secret=secret,
            issued_at=parse_timestamp(row.get("created_at") or row.get("createdAt")),
            expires_at=expires_at,
            expiry_source=ExpirySource.ANSWER if expires_at is not None else None,
        )

    def _id_of(self, name: str, reply: Reply, deadline: float) -> str:
        """The id of a key that was just made, from the list, where the answer did not name it."""
        problem = "no key of its name is listed"
        try:
            for row in self._rows(deadline):
                if text_of(row, "name") == name:
                    return row_id(row)
        except RotatorError as exc:
            problem = exc.message
        raise BadAnswer(
            f"{reply.what}: the answer names no id, and {problem}",
            reason=Reason.PROVIDER_ANSWER_UNREADABLE,
            body=reply.body,
        )


def client_of(agent: str | None) -> str | None:
    """The MQTT client id of an agent; None where there is none."""
    return f"agent-{agent}" if agent else None


def life_of(row: Mapping[str, Any]) -> timedelta | None:
    """How long a key was meant to live when it was made."""
    began, ends = parse_timestamp(row.get("created_at")), parse_timestamp(row.get("expires_at"))
    return ends - began if began is not None and ends is not None and ends > began else None
