"""Iotistica's MQTT users, whose passwords the caller chooses.

One key is one MQTT user: its id is the username (`agent_<uuid>`, as the platform makes them), not the row's number. A
PUT may set the password and two flags; what it does with a flag that it is not given is nowhere documented, so both are
read first and sent along.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rotator.errors import Permanent
from rotator.model import Abilities, Identity, Issued, Secret, Strategy, UpstreamKey
from rotator.providers.iotistica_api import Resource, absent, part, row_id, rows, text_of
from rotator.providers.iotistica_keys import client_of
from rotator.providers.rest import Reply
from rotator.reasons import Reason

PATH: Final = "/auth/mqtt-users"
ALPHABET: Final = string.ascii_letters + string.digits
LENGTH: Final = 43  # characters: 256 bits
OF_AGENT: Final = "agent_"
FLAGS: Final = ("is_active", "is_superuser")
READ, WRITE = 1, 2


class MqttUsers(Resource):
    """The MQTT users of one Iotistica cloud (ports.Choosing, ports.Provisioning). Thread safe."""

    @property
    def strategy(self) -> Strategy:
        """The caller chooses the password."""
        return Strategy.CHOSEN

    @property
    def abilities(self) -> Abilities:
        """The old password is refused at once; passwords don't expire."""
        return Abilities(strategy=Strategy.CHOSEN, kills_old=True, expires=False, creates=True, deletes=True)

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told."""
        return {
            "superuser": "`true` for one whom no access rule binds",
            "read": "topic filters that it may read, with commas between them",
            "write": "topic filters that it may write to",
        }

    def identity(self, id: str) -> Identity:
        """The id is the username; an agent connects as `agent-{uuid}`."""
        agent = id.removeprefix(OF_AGENT) if id.startswith(OF_AGENT) else None
        return Identity(id=id, username=id, client_id=client_of(agent))

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All MQTT users. No time of issue: `updated_at` moves with the flags as well.

        Raises: Transient, Permanent.
        """
        return [
            UpstreamKey(
                id=row["username"],
                name=row["username"],
                problem=Reason.KEY_INACTIVE if row.get("is_active") is False else None,
                identity=self.identity(row["username"]),
            )
            for row in self._rows(self._api.operator.deadline())
        ]

    def choose(self) -> Secret:
        """43 random letters and digits; nobody hears of it yet."""
        return Secret("".join(secrets.choice(ALPHABET) for _ in range(LENGTH)))

    def set_secret(self, identity: Identity, secret: Secret) -> Issued:
        """Make `secret` the password of the MQTT user `identity.id`; both flags stay as they are.

        Raises:
            Transient: nothing was changed.
            Permanent: nothing was changed (KEY_UNKNOWN, PROVIDER_AUTH, PROVIDER_REFUSED).
            UnknownOutcome: the password may have been changed.
        """
        deadline = self._deadline()
        row = self._row(identity.id, deadline)
        if row is None:
            raise self._unknown("issue", identity.id)
        self._set(row, secret, deadline)
        return Issued(identity=self.identity(identity.id), secret=secret)

    def delete(self, id: str) -> None:
        """Delete the MQTT user with this username. Absent is success.

        Raises: Transient, Permanent.
        """
        deadline = self._api.operator.deadline()
        row = self._row(id, deadline)
        if row is None:
            return
        path = f"{PATH}/{part(row_id(row))}"
        reply = self._api.operator.ask("DELETE", path, operation="delete", deadline=deadline)
        if not absent(reply) and not (reply.ok and reply.fields):
            raise reply.error(changes=False)

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        """Make the MQTT user `name`, or give the one that there is a new password; add the access that it lacks.

        The platform has no place for a marker. The password comes last, so that an error before it changed none.

        Raises:
            Transient, Permanent: no password was set (PROVIDER_AUTH, PROVIDER_REFUSED); what was made is found again.
            UnknownOutcome: the user may have been made, or its password set; another try finds it.
        """
        self._check_options(options)
        superuser = options.get("superuser", "false")
        if superuser not in ("true", "false"):
            raise self._refused("provision", "`superuser` must be true or false")
        deadline, secret = self._deadline(), self.choose()
        row = self._row(name, deadline)
        if row is None:
            made = {"username": name, "password": self.choose().reveal(), "is_superuser": superuser == "true"}
            self._change("POST", PATH, "provision", {**made, "is_active": True}, deadline)
            row = self._row(name, deadline)
            if row is None:
                raise self._unknown("provision", name)
        self._give_access(row, _wanted(options), deadline)
        self._set(row, secret, deadline)
        return Issued(identity=self.identity(name), secret=secret)

    def _give_access(self, row: Mapping[str, Any], wanted: Mapping[str, int], deadline: float) -> None:
        """Add the access rules that are not there yet. One that a lost answer left is found by another try."""
        rules = row.get("acls")
        there = {
            (rule.get("topic"), rule.get("access"))
            for rule in (rules if isinstance(rules, list) else ())
            if isinstance(rule, dict)
        }
        path = f"{PATH}/{part(row_id(row))}/acls"
        for topic, access in wanted.items():
            if (topic, access) not in there:
                body = {"topic": topic, "access": access}
                reply = self._api.operator.ask("POST", path, operation="access", deadline=deadline, body=body)
                if not reply.ok or not reply.fields:
                    raise reply.error(changes=False)

    def _rows(self, deadline: float) -> Sequence[Mapping[str, Any]]:
        reply = self._api.operator.ask("GET", PATH, operation="list_keys", deadline=deadline)
        found = list(rows(reply, "users"))
        if not all(row_id(row) and text_of(row, "username") for row in found):
            raise reply.unreadable("an entry has no id or no username")
        return found

    def _row(self, username: str, deadline: float) -> Mapping[str, Any] | None:
        return next((row for row in self._rows(deadline) if row["username"] == username), None)

    def _set(self, row: Mapping[str, Any], secret: Secret, deadline: float) -> None:
        flags = {name: row[name] for name in FLAGS if isinstance(row.get(name), bool)}
        if len(flags) != len(FLAGS):
            text = f"{self.name}: issue: the list does not say whether the user is active or a superuser"
            raise Permanent(text, reason=Reason.PROVIDER_ANSWER_UNREADABLE)
        body = {"password": secret.reveal(), **flags}
        reply = self._change("PUT", f"{PATH}/{part(row_id(row))}", "issue", body, deadline)
        if absent(reply):
            raise self._unknown("issue", row["username"])

    def _change(self, method: str, path: str, operation: str, body: Mapping[str, Any], deadline: float) -> Reply:
        """Send a password; returns an answer that says yes, or that there is no such user.

        Raises: Transient, Permanent, UnknownOutcome.
        """
        hidden = [str(body["password"])]
        reply = self._api.operator.ask(
            method, path, operation=operation, deadline=deadline, body=body, changes=True, secrets=hidden
        )
        if absent(reply) or (reply.ok and (reply.fields.get("success") is True or "user" in reply.fields)):
            return reply
        raise reply.error(changes=True)


def _wanted(options: Mapping[str, str]) -> Mapping[str, int]:
    """Topic filter → access, as the platform counts it: 1 to read, 2 to write, 3 for both."""
    wanted: dict[str, int] = {}
    for name, access in (("read", READ), ("write", WRITE)):
        for topic in filter(None, (each.strip() for each in options.get(name, "").split(","))):
            wanted[topic] = wanted.get(topic, 0) | access
    return wanted
