"""RabbitMQ: the users of its internal database, over the management plugin's HTTP API (3.10 and later).

One key is one user: its id is the username, at MQTT and everywhere else. The caller chooses the password, so it is
sealed before the broker hears of it, and the call may be repeated with the same one. The old password lets nobody in
any more from that moment on, but closes no connection: `evict` does. There is no time of issue and no expiry, and the
API shows a password's hash, which is not asked for.
"""

from __future__ import annotations

import contextlib
import secrets
import string
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import field_validator

from rotator.config_base import HttpPart
from rotator.config_types import Text, Url
from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import Abilities, Identity, Issued, Secret, Strategy, UpstreamKey
from rotator.ports import Reveal
from rotator.providers.http import Peer
from rotator.providers.kinds import Site, issue_deadline
from rotator.providers.own_password import Basic, OwnPassword
from rotator.providers.rest import Reply, Rest, is_text
from rotator.reasons import Reason
from rotator.secret_refs import SecretRef, VaultRef

ALPHABET: Final = string.ascii_letters + string.digits  # nothing that a shell, a URL or a template would read
LENGTH: Final = 43  # characters: 256 bits
PORTS: Final[Mapping[str, int]] = {"http": 15672, "https": 15671}  # the plugin's own
WHY: Final = "the password was rotated"  # `X-Reason` of a closed connection, for the broker's log
# The management plugin learns of a connection's age at intervals (`collect_statistics_interval`, 5 s unless it is set
# otherwise; tried: 4 to 5 s). After this long, one whose age is not known is younger than that.
STATISTICS: Final = timedelta(seconds=90)
ASK_AGAIN: Final = timedelta(seconds=5)
# What an MQTT client needs and no more: its own queues, and the exchange that MQTT's messages go through.
PERMISSIONS: Final[Mapping[str, str]] = {
    "configure": "^mqtt-subscription-.*$",
    "write": r"^(mqtt-subscription-.*|amq\.topic)$",
    "read": r"^(mqtt-subscription-.*|amq\.topic)$",
}
OPTIONS: Final[Mapping[str, str]] = {
    "tags": "the user's tags, separated by commas; none by default",
    "vhost": "the virtual host that the permissions are for; the provider's `vhost` by default",
    **{
        name: f"regular expression of what it may {name}; by default what an MQTT client needs: {pattern}"
        for name, pattern in PERMISSIONS.items()
    },
}


class RabbitmqSettings(HttpPart):
    """RabbitMQ's users, over its management API. `username` has the tag `administrator`; a key's `id` is a username.

    `vhost` is where `rotator provision` gives permissions. A URL without a port means the management plugin's own.
    """

    kind: Literal["rabbitmq"]
    url: Url
    username: Text
    password: SecretRef
    vhost: Text = "/"

    @field_validator("url")
    @classmethod
    def _usual_port(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.port is not None:
            return url
        return urlunsplit(parts._replace(netloc=f"{parts.netloc}:{PORTS[parts.scheme]}"))


class Rabbitmq:
    """The users of one RabbitMQ (ports.Choosing). Thread safe.

    Args:
        peer: sends the requests; `close()` closes it.
        url: where the management API is, without `/api`.
        username, password: a user with the tag `administrator`; the password is read for each request.
        password_in_vault: whether that password is read from Vault; only then may it be rotated itself.
        vhost: where `provision` gives permissions, unless it is told otherwise.
        issue_deadline: the total time of one `set_secret`.
    """

    def __init__(
        self,
        peer: Peer,
        *,
        url: str,
        username: str,
        password: Reveal,
        password_in_vault: bool = False,
        vhost: str = "/",
        issue_deadline: timedelta = timedelta(seconds=30),
    ) -> None:
        self._peer = peer
        self._own = OwnPassword(username, password, in_vault=password_in_vault)
        self._rest = Rest(peer, url=f"{url.rstrip('/')}/api", auth=Basic(peer.name, self._own), messages=_words)
        self._vhost = vhost
        self._issue_deadline = issue_deadline

    @classmethod
    def configured(cls, site: Site, settings: RabbitmqSettings) -> Rabbitmq:
        """One from its section of the configuration."""
        return cls(
            site.peer(settings),
            url=settings.url,
            username=settings.username,
            password=site.reveal(settings.password),
            password_in_vault=isinstance(settings.password, VaultRef),
            vhost=settings.vhost,
            issue_deadline=issue_deadline(settings),
        )

    def __repr__(self) -> str:
        return f"Rabbitmq({self.name!r})"

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._peer.name

    @property
    def strategy(self) -> Strategy:
        """The caller chooses the password."""
        return Strategy.CHOSEN

    @property
    def abilities(self) -> Abilities:
        """What the management API allows."""
        return Abilities(strategy=self.strategy, kills_old=True, expires=False, creates=True, deletes=True, evicts=True)

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that `set_secret` may take."""
        return self._issue_deadline

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told."""
        return OPTIONS

    def identity(self, id: str) -> Identity:
        """The id is the username; the client id is free."""
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All users of the internal database, the administrators among them.

        Raises: Transient, Permanent: no list; reason PROVIDER_ANSWER_UNREADABLE where it isn't what the API documents.
        """
        params = {"columns": "name,tags"}  # without it, the list holds everybody's password hash
        reply = self._rest.ask("GET", "/users", operation="list_keys", params=params, deadline=self._rest.deadline())
        if not reply.ok:
            raise reply.error(changes=False)
        return [UpstreamKey(id=name, name=name, identity=self.identity(name)) for name, _ in _entries(reply)]

    def choose(self) -> Secret:
        """43 random letters and digits; nobody hears of it yet."""
        return Secret("".join(secrets.choice(ALPHABET) for _ in range(LENGTH)))

    def set_secret(self, identity: Identity, secret: Secret) -> Issued:
        """Make `secret` the password of the user `identity.id`; tags, limits and permissions stay as they are.

        Two requests: the API overwrites the tags that a change does not name, and makes a user that does not exist, so
        the user is looked at first.

        Raises:
            Transient: nothing was changed.
            Permanent: nothing was changed (PROVIDER_AUTH, PROVIDER_REFUSED; KEY_UNKNOWN: no such user).
            UnknownOutcome: no whole readable answer came to the change, or HTTP 408 or 5xx.
        """
        self._refuse(identity.id, secret)
        deadline = self._rest.deadline(self._issue_deadline)
        if identity.id == self._own.username:
            self._own.expect(secret)  # should the answer be lost, this may be what lets us in from now on
        tags = self._tags(identity.id, deadline)
        if tags is None:
            raise self._unknown_key("issue", identity.id)
        reply = self._put_user("issue", identity.id, secret, tags, deadline)
        if reply.status == 201:
            # it was deleted between the two requests, and must not come back by us
            with contextlib.suppress(RotatorError):  # what stays is a user without permissions: nobody gets in
                self._delete(identity.id, deadline)
            raise self._unknown_key("issue", identity.id)
        return Issued(identity=identity, secret=secret)

    def evict(self, identity: Identity, before: datetime) -> int:
        """Close the connections of this user that began before `before`, over every protocol; returns how many.

        The broker says when a connection began some seconds after the fact only: one without a time is young. Where
        `before` is just as young, nothing can be told yet.

        Raises:
            Transient: as of each look; OLD_SESSIONS: ask again in some seconds, when the broker knows how old
                all connections are.
            Permanent: PROVIDER_UNABLE: its statistics are switched off, so it never knows.
        """
        deadline = self._rest.deadline()
        names = self._connections("evict", identity.id, deadline)
        began = _times(self._looked("/connections", "list_connections", deadline, columns="name,connected_at"))
        ended = sum(self._close(name, deadline) for name in names if name in began and began[name] < before)
        if any(name not in began for name in names):
            self._refuse_the_unknown(identity, before, deadline)
        return ended

    def connections(self, username: str) -> Sequence[str]:
        """This user's connections over every protocol, as soon as the broker has let them in.

        Raises: Transient, Permanent.
        """
        return self._connections("connections", username, self._rest.deadline())

    def client_id(self, connection: str) -> str | None:
        """An MQTT connection's client id; the broker tells it some seconds after the fact, like all statistics.

        Raises: Transient, Permanent.
        """
        path, params = f"/connections/{quote(connection, safe='')}", {"columns": "name,protocol,variable_map.client_id"}
        reply = self._rest.ask("GET", path, operation="get_connection", params=params, deadline=self._rest.deadline())
        if _absent(reply):
            return None
        if not reply.ok:
            raise reply.error(changes=False)
        known = reply.fields.get("variable_map")
        named = known.get("client_id") if isinstance(known, dict) else None
        if is_text(named):
            return str(named)
        return "" if reply.fields.get("protocol") else None

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        """Make the user `name` with a password, tags and permissions; each that is there already is found again.

        A user that exists keeps its tags, limits and permissions where `options` does not name others, and gets a new
        password. There is no place for `marker`: a name is found by itself.

        Raises:
            Transient: nothing was changed, or the user has its password and lacks its permissions.
            Permanent: PROVIDER_REFUSED, PROVIDER_AUTH.
            UnknownOutcome: no answer came to a change.
        """
        unknown = sorted(options.keys() - OPTIONS.keys())
        if unknown or name == self._own.username:
            problem = f"no such option: {', '.join(unknown)}" if unknown else "this is the daemon's own login"
            raise Permanent(f"{self.name}: provision: {problem}", reason=Reason.PROVIDER_REFUSED)
        secret, identity = self.choose(), self.identity(name)
        self._refuse(name, secret)
        deadline = self._rest.deadline(self._issue_deadline)
        vhost = options.get("vhost", self._vhost)
        self._looked(f"/vhosts/{quote(vhost, safe='')}", "get_vhost", deadline, columns="name")
        tags = self._tags(name, deadline)
        self._put_user("create", name, secret, options.get("tags", tags or ""), deadline)
        self._permit(name, vhost, {each: options[each] for each in PERMISSIONS if each in options}, deadline)
        return Issued(identity=identity, secret=secret)

    def delete(self, id: str) -> None:
        """Delete a user, with its permissions; its connections are closed. Absent is success.

        Raises: Transient, Permanent (PROVIDER_REFUSED: the daemon's own login).
        """
        if id == self._own.username or not _whole(id):
            raise Permanent(f"{self.name}: delete: not this user", reason=Reason.PROVIDER_REFUSED)
        self._delete(id, self._rest.deadline())

    def close(self) -> None:
        """Close the client; never raises."""
        self._peer.close()

    # --- users

    def _refuse(self, id: str, secret: Secret) -> None:
        """Raise for what would do harm, before anybody hears of it."""
        if id == self._own.username and not self._own.in_vault:
            problem = "the daemon's own login is rotated only where its password is read from {vault: PATH#FIELD}"
        elif not _whole(id) or not _whole(secret.reveal()):
            # an empty password is accepted, and lets nobody in
            problem = "an empty username or password, or one that can't be sent as text, can't be set"
        else:
            return
        raise Permanent(f"{self.name}: issue: {problem}", reason=Reason.PROVIDER_REFUSED)

    def _tags(self, id: str, deadline: float) -> object:
        """A user's tags as this version of the API has them: a list, or text with commas; None: no such user."""
        params = {"columns": "name,tags"}
        reply = self._rest.ask("GET", _user(id), operation="get_user", params=params, deadline=deadline)
        if _absent(reply):
            return None
        if not reply.ok:
            raise reply.error(changes=False)
        tags = reply.fields.get("tags")
        listed = isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
        if reply.fields.get("name") != id or not (listed or isinstance(tags, str)):
            raise reply.unreadable("the answer is not this user with its tags")
        return tags

    def _put_user(self, operation: str, id: str, secret: Secret, tags: object, deadline: float) -> Reply:
        reply = self._rest.ask(
            "PUT",
            _user(id),
            operation=operation,
            body={"password": secret.reveal(), "tags": tags},
            deadline=deadline,
            changes=True,
            secrets=[secret.reveal()],
        )
        if reply.status not in (201, 204):  # another success is not RabbitMQ's: who knows what became of it
            raise reply.error(changes=True)
        return reply

    def _delete(self, id: str, deadline: float) -> None:
        reply = self._rest.ask("DELETE", _user(id), operation="delete", deadline=deadline)
        if not reply.ok and not _absent(reply):
            raise reply.error(changes=False)

    def _permit(self, id: str, vhost: str, asked: Mapping[str, str], deadline: float) -> None:
        """Give permissions: all where there are none, `asked` over those that there are."""
        path = f"/permissions/{quote(vhost, safe='')}/{quote(id, safe='')}"
        reply = self._rest.ask("GET", path, operation="get_permissions", deadline=deadline)
        if not reply.ok and not _absent(reply):
            raise reply.error(changes=False)
        there = {name: reply.fields.get(name) for name in PERMISSIONS} if reply.ok else {}
        wanted = {**PERMISSIONS, **there, **asked}
        if wanted != there:
            reply = self._rest.ask("PUT", path, operation="set_permissions", body=wanted, deadline=deadline)
            if not reply.ok:
                raise reply.error(changes=False)

    def _unknown_key(self, operation: str, id: str) -> Permanent:
        return Permanent(f"{self.name}: {operation}: there is no user {id!r}", reason=Reason.KEY_UNKNOWN)

    # --- connections

    def _connections(self, operation: str, username: str, deadline: float) -> list[str]:
        if not _whole(username):
            raise self._unknown_key(operation, username)
        path = f"/connections/username/{quote(username, safe='')}"
        listed = self._looked(path, "list_connections", deadline, columns="name,user")
        return [name for name, entry in _entries(listed) if entry.get("user") == username]

    def _looked(self, path: str, operation: str, deadline: float, *, columns: str) -> Reply:
        reply = self._rest.ask("GET", path, operation=operation, params={"columns": columns}, deadline=deadline)
        if not reply.ok:
            raise reply.error(changes=False)
        return reply

    def _close(self, name: str, deadline: float) -> bool:
        """Whether it was still there."""
        path, headers = f"/connections/{quote(name, safe='')}", {"X-Reason": WHY}
        reply = self._rest.ask("DELETE", path, operation="close_connection", headers=headers, deadline=deadline)
        if not reply.ok and not _absent(reply):
            raise reply.error(changes=False)
        return reply.ok

    def _refuse_the_unknown(self, identity: Identity, before: datetime, deadline: float) -> None:
        """Raise unless a connection whose age is not known yet must be younger than `before`."""
        overview = self._looked("/overview", "overview", deadline, columns="disable_stats")
        if overview.fields.get("disable_stats") is True:
            text = f"{self.name}: evict: the management plugin's statistics are off, so no session's age is known"
            raise Permanent(text, reason=Reason.PROVIDER_UNABLE)
        if self._peer.clock.now() - before < STATISTICS:
            text = f"{self.name}: evict: the broker does not know yet how old all sessions of {identity.id!r} are"
            raise Transient(text, reason=Reason.OLD_SESSIONS, retry_after=ASK_AGAIN)


def _words(value: object) -> str:
    """`{"error": "bad_request", "reason": "tags_not_present"}` as one line."""
    told = [value.get(name) for name in ("error", "reason")] if isinstance(value, dict) else []
    return ": ".join(text for text in told if isinstance(text, str))


def _user(id: str) -> str:
    return f"/users/{quote(id, safe='')}"


def _absent(reply: Reply) -> bool:
    """The broker itself says that there is no such thing; a gateway's 404 says nothing of a user."""
    return reply.status == 404 and isinstance(reply.fields.get("error"), str)


def _times(reply: Reply) -> dict[str, datetime]:
    """Connection → when it began, by the broker's clock (milliseconds since 1970); none without a time."""
    return {name: at for name, entry in _entries(reply) if (at := _moment(entry.get("connected_at"))) is not None}


def _entries(reply: Reply) -> list[tuple[str, Mapping[str, object]]]:
    if not isinstance(reply.value, list):
        raise reply.unreadable("the answer is no list")
    found: list[tuple[str, Mapping[str, object]]] = []
    for entry in reply.value:
        if not isinstance(entry, dict) or not is_text(entry.get("name")):
            raise reply.unreadable("an entry has no name")
        found.append((entry["name"], entry))
    return found


def _moment(value: object) -> datetime | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _whole(text: str) -> bool:
    """Whether text is there, can be written down, and leads nowhere else in a URL."""
    return bool(text) and text not in (".", "..") and text.encode(errors="replace").decode() == text
