"""iShareRadio's Mgmt REST API: who asks, and how its rows read.

The document shows requests, and of answers only words. So what it leaves open is read in each form that is likely, and
what an answer does not say is looked up in the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from rotator.errors import Permanent
from rotator.model import Identity, UpstreamKey, marker_in
from rotator.ports import Reveal
from rotator.providers.http import Peer
from rotator.providers.rest import Fixed, Reply, Rest, is_text, sendable
from rotator.reasons import Reason
from rotator.timestamps import parse_timestamp

Row = Mapping[str, Any]

PUBLISHERS: Final = "/api/v1/subscriber/publishers"
SUBSCRIBERS: Final = "/api/v1/subscriber/subscriber-mqtt-passwords"
OPERATOR_PREFIX: Final = "isr_mqtt_platform_rest_"  # of a token that works for all accounts of an operator

_LISTS: Final = ("publishers", "clients", "devices", "items", "subscribers", "passwords")
_NESTED: Final = ("device", "subscriber", "client", "credentials")  # where an answer about one login may hold it
_PAUSED: Final = frozenset({"paused", "inactive", "disabled", "suspended", "revoked"})


class PortalToken:
    """A REST API token, read for each request; an operator's names the account that it is used for. It is an `Auth`.

    Args:
        name: the provider's name in the configuration.
        token: reads it.
        account: the account's id; sent with an operator's token only.
    """

    def __init__(self, name: str, token: Reveal, account: str | None) -> None:
        self._name, self._account = name, account
        self._fixed = Fixed(name, token)

    def headers(self, deadline: float) -> Mapping[str, str]:
        """The headers of one request.

        Raises: Permanent PROVIDER_AUTH: a token that can't be sent, or an operator's without an account.
        """
        shown = self._fixed.headers(deadline)
        if not shown["Authorization"].startswith(f"Bearer {OPERATOR_PREFIX}"):
            return shown
        if self._account is None:
            text = f"an operator's token ({OPERATOR_PREFIX}…) needs `account`, the id of the account it is for"
            raise Permanent(f"{self._name}: {text}", reason=Reason.PROVIDER_AUTH)
        return {**shown, "X-ISR-Account-Id": sendable(self._account, f"{self._name}: `account`")}

    def refused(self, used: Mapping[str, str]) -> bool:
        """Worth another try only where the token was replaced meanwhile."""
        return self._fixed.refused(used)

    def secrets(self) -> Iterable[str]:
        """The token."""
        return self._fixed.secrets()


class Portal:
    """One folder of the API, such as `PUBLISHERS`. Thread safe.

    Args:
        peer: sends the requests.
        url: the portal's origin.
        folder: the path below it.
        auth: shows who asks.
    """

    def __init__(self, peer: Peer, *, url: str, folder: str, auth: PortalToken) -> None:
        self.rest = Rest(peer, url=url.rstrip("/") + folder, auth=auth)
        self.name = peer.name

    def ask(
        self, method: str, id: str = "", verb: str = "", *, operation: str, deadline: float, changes: bool = False
    ) -> Reply:
        """One request about the login `id`, without a body.

        Raises: Permanent KEY_UNKNOWN for what can't be an id; else as `Rest.ask`.
        """
        if id in ("", ".", "..") or not is_text(id):
            raise self.unknown(operation, id)  # "..": in a DELETE's path, something else entirely
        path = f"/{quote(id, safe='')}" + (f"/{verb}" if verb else "")
        return self.rest.ask(method, path, operation=operation, deadline=deadline, changes=changes)

    def rows(self, deadline: float) -> Sequence[Row]:
        """The list of MQTT clients; each row has a readable identity.

        Raises: Transient, Permanent; PROVIDER_ANSWER_UNREADABLE where it is none, or not the whole of it.
        """
        return rows_of(self.rest.ask("GET", operation="list_keys", deadline=deadline), publisher_identity)

    def unknown(self, operation: str, id: str) -> Permanent:
        """For a login that is not there."""
        return Permanent(f"{self.name}: {operation}: no such login: {id}", reason=Reason.KEY_UNKNOWN)


def rows_of(reply: Reply, identity: Callable[[Row], Identity | None]) -> Sequence[Row]:
    """A list's rows: a bare list, or one in an object under one of the likely names.

    Args:
        identity: says whose a row is. One that is nobody's makes the list unreadable: a key would vanish with it.

    Raises: Transient, Permanent.
    """
    if not reply.ok:
        raise reply.error(changes=False)
    found = reply.value
    if isinstance(found, dict):
        found = next((found[name] for name in _LISTS if isinstance(found.get(name), list)), None)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise reply.unreadable("the answer is no list of logins")
    if any(identity(row) is None for row in found):
        raise reply.unreadable("a row names no login")
    total = reply.fields.get("total")
    if isinstance(total, int) and total > len(found):
        raise reply.unreadable(f"the list holds {len(found)} of {total} logins, and no way to the others is documented")
    return found


def nested(reply: Reply) -> Row:
    """What an answer about one login says, whether it stands at the top or one level below. Lower levels win."""
    fields = reply.fields
    inner: Row = next((fields[name] for name in _NESTED if isinstance(fields.get(name), dict)), {})
    return {**fields, **inner}


def two_passwords(reply: Reply) -> bool:
    """Whether an answer holds two that differ, so that nobody can say which one counts."""
    fields = reply.fields
    shown = [
        each.get("password") for each in (fields, *(fields.get(name) for name in _NESTED)) if isinstance(each, dict)
    ]
    return len({str(each) for each in shown if each is not None}) > 1


def paused(row: Row) -> bool | None:
    """Whether a row says that its login is paused; None where it says nothing of it."""
    for name, meaning in (
        ("paused", True),
        ("is_paused", True),
        ("active", False),
        ("is_active", False),
        ("enabled", False),
    ):
        if isinstance(row.get(name), bool):
            return row[name] is meaning
    for name in ("status", "state"):
        if isinstance(row.get(name), str):
            return row[name].strip().lower() in _PAUSED
    return bool(row["paused_at"]) if "paused_at" in row else None


def label(row: Row) -> str:
    """The name that a person gave it; empty where there is none."""
    value = row.get("label")
    return value if isinstance(value, str) and is_text(value) else ""


def publisher_identity(row: Row) -> Identity | None:
    """Who an MQTT client is: its client id is its username too, unless the row names another; None: unreadable."""
    id = row.get("client_id")
    if not isinstance(id, str) or not is_text(id):
        return None
    return Identity(id=id, username=_username(row) or id, client_id=id)


def subscriber_identity(row: Row) -> Identity | None:
    """Who a read-only login is: by its id where there is one, else by its username; None: unreadable."""
    username, id = _username(row), row.get("id")
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not username:
        return None
    return Identity(id=id if isinstance(id, str) and is_text(id) else username, username=username)


def publisher(row: Row) -> UpstreamKey | None:
    """One MQTT client of the list; None where it is unreadable.

    `created_at` is not when its password was made, which can be replaced, so it is no time of issue.
    """
    identity = publisher_identity(row)
    if identity is None:
        return None
    problem = Reason.KEY_INACTIVE if paused(row) else None
    return UpstreamKey(
        id=identity.id, name=label(row), problem=problem, marker=marker_in(label(row)), identity=identity
    )


def subscriber(row: Row) -> UpstreamKey | None:
    """One read-only login of the list; None where it is unreadable. Its password is as old as the login."""
    identity = subscriber_identity(row)
    if identity is None:
        return None
    return UpstreamKey(
        id=identity.id,
        name=label(row),
        issued_at=parse_timestamp(row.get("created_at")),
        expires_at=parse_timestamp(row.get("expires_at")),
        problem=Reason.KEY_INACTIVE if paused(row) else None,
        marker=marker_in(label(row)),
        identity=identity,
    )


def _username(row: Row) -> str:
    found = next((row[name] for name in ("username", "mqtt_username") if is_text(row.get(name))), "")
    return str(found)
