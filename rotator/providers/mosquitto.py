"""Mosquitto's dynamic security plugin (2.0 and later): clients whose password an admin sets over MQTT itself.

One key is one client of the plugin: its id is the username. The caller chooses the password, so it is sealed before
the broker hears of it, and the call may be repeated with the same one. The old password is dead at once, and Mosquitto
ends all sessions of that username. The plugin knows no time of issue and no expiry, and never tells a password.
"""

from __future__ import annotations

import contextlib
import secrets
import string
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Final, Literal

from pydantic import Field, field_validator

from rotator.config_base import ProviderPart, drop_default, seconds, usual_port
from rotator.config_types import Port, PositiveDuration, Text
from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import Abilities, Identity, Issued, ProbeTarget, RequestDone, Secret, Strategy, UpstreamKey
from rotator.ports import Clock, OnRequest, Reveal
from rotator.providers.dynamic_security import Answer, Command, ControlLink, control
from rotator.providers.kinds import Site
from rotator.reasons import Reason
from rotator.secret_refs import SecretRef

ALPHABET: Final = string.ascii_letters + string.digits  # nothing that a shell, a URL or a template would read
LENGTH: Final = 43  # characters: 256 bits, as many as secrets.token_urlsafe(32) has
PAGE: Final = 500  # clients in one answer, about 100 bytes each and more with many roles
LISTINGS: Final = 3  # times that a list is read which changes while it is read


class MosquittoSettings(ProviderPart):
    """Mosquitto's dynamic security, over MQTT. `username` is an admin's; a key's `id` is its client's username."""

    kind: Literal["mosquitto"]
    host: Text
    tls: bool = False
    port: Port = Field(default=None, validate_default=True, json_schema_extra=drop_default)
    ca_file: Text | None = None
    username: Text
    password: SecretRef
    timeout: PositiveDuration = seconds(10)

    _usual_port = field_validator("port", mode="before")(usual_port)


class Mosquitto:
    """The clients of one Mosquitto's dynamic security (ports.Choosing). Thread safe: each call has its own connection.

    One connection a call, and none kept: a rotation is rare and a connection takes a few milliseconds; none has to be
    watched, mended, or shared between threads; each call logs in with the password that is valid by then.

    Args:
        name: the provider's name in the configuration.
        host, port, tls, ca_file: the broker; `ca_file` (PEM) None stands for the system's authorities.
        username, password: an admin of dynamic security without a client id of its own; the password is read at each
            login.
        timeout: the total of one call, connection included.
        clock: for the durations that `on_request` is told.
        on_request: told of each call: its `code` is "ok" or the error's reason.
    """

    def __init__(
        self,
        name: str,
        *,
        host: str,
        port: int,
        tls: bool = False,
        ca_file: str | None = None,
        username: str,
        password: Reveal,
        timeout: timedelta,
        clock: Clock,
        on_request: OnRequest,
    ) -> None:
        self._name = name
        self._host, self._port, self._tls, self._ca_file = host, port, tls, ca_file
        self._username, self._password = username, password
        self._timeout = timeout
        self._clock = clock
        self._on_request = on_request

    @classmethod
    def configured(cls, site: Site, settings: MosquittoSettings) -> Mosquitto:
        """One from its section of the configuration."""
        return cls(
            site.name,
            host=settings.host,
            port=settings.port,
            tls=settings.tls,
            ca_file=settings.ca_file,
            username=settings.username,
            password=site.reveal(settings.password),
            timeout=settings.timeout,
            clock=site.clock,
            on_request=site.on_request,
        )

    def __repr__(self) -> str:
        return f"Mosquitto({self._name!r})"

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def strategy(self) -> Strategy:
        """The caller chooses the password."""
        return Strategy.CHOSEN

    @property
    def abilities(self) -> Abilities:
        """What the platform's documents allow."""
        return Abilities(strategy=self.strategy, kills_old=True, expires=False)

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that `set_secret` may take: nothing is sent after it."""
        return self._timeout

    def identity(self, id: str) -> Identity:
        """The id is the username; the client id is free unless the list names one."""
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All clients of the plugin, the admins among them.

        Raises:
            Transient, Permanent: no list; reason PROVIDER_ANSWER_UNREADABLE where it isn't what the plugin documents,
                PROVIDER_UNAVAILABLE where it did not hold still.
        """
        with self._call("list_keys") as (link, deadline):
            for _ in range(LISTINGS):
                clients, totals = self._listed(link, deadline)
                if totals == {len(clients)}:  # else one came or went, and moved others over the edge of a page
                    return [_upstream(username, client) for username, client in clients.items()]
            raise Transient(
                f"{self._name}: list_keys: clients came and went while they were listed",
                reason=Reason.PROVIDER_UNAVAILABLE,
            )

    def choose(self) -> Secret:
        """43 random letters and digits; nobody hears of it yet."""
        return Secret("".join(secrets.choice(ALPHABET) for _ in range(LENGTH)))

    def set_secret(self, identity: Identity, secret: Secret) -> Issued:
        """Make `secret` the password of the client `identity.id`; its roles, groups and state stay as they are.

        The client is asked for first, on the same connection: so what would only be silence after the change (a login
        that may not send commands, or not read their answers) is found before it.

        Raises:
            Transient: nothing was changed (PROVIDER_UNREACHABLE, PROVIDER_UNAVAILABLE).
            Permanent: nothing was changed (PROVIDER_AUTH, PROVIDER_REFUSED; KEY_UNKNOWN: no such client).
            UnknownOutcome: the command went out and its answer never came, or tells of a fault inside the plugin.
        """
        self._refuse(identity, secret)
        with self._call("issue") as (link, deadline):
            link.ask({"command": "getClient", "username": identity.id}, deadline=deadline, changes=False)
            link.ask(
                {"command": "setClientPassword", "username": identity.id, "password": secret.reveal()},
                deadline=deadline,
                changes=True,
            )
        return Issued(identity=identity, secret=secret)

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def _refuse(self, identity: Identity, secret: Secret) -> None:
        """Raise for what would do harm, before anybody hears of it."""
        if self._username in (identity.id, identity.username):
            # Mosquitto 2.0 ends the admin's own session before it answers, and the daemon would be locked out.
            problem = "rotating the daemon's own admin is not supported yet"
        elif not _whole(identity.id) or not _whole(secret.reveal()):
            # The plugin reads JSON into C strings: it would set what stands before the NUL, and call that success.
            problem = "an empty username or password, or one with a NUL or a lone surrogate, can't be set"
        else:
            return
        raise Permanent(f"{self._name}: issue: {problem}", reason=Reason.PROVIDER_REFUSED)

    @contextlib.contextmanager
    def _call(self, operation: str) -> Iterator[tuple[ControlLink, float]]:
        """A connection for one call and its deadline (of `time.monotonic()`); tells `on_request` how it went."""
        start, code = self._clock.monotonic(), Reason.UNFORESEEN.value
        deadline = time.monotonic() + self._timeout.total_seconds()
        try:
            with control(self._name, self._target(), deadline) as link:
                yield link, deadline
            code = "ok"
        except RotatorError as exc:
            code = exc.reason.value
            raise
        finally:
            seconds = self._clock.monotonic() - start
            self._on_request(RequestDone(peer=self._name, operation=operation, code=code, seconds=seconds))

    def _target(self) -> ProbeTarget:
        return ProbeTarget(
            host=self._host,
            port=self._port,
            tls=self._tls,
            ca_file=self._ca_file,
            username=self._username,
            password=Secret(self._password()),
        )

    def _listed(self, link: ControlLink, deadline: float) -> tuple[Mapping[str, Mapping[str, object]], set[int]]:
        """All pages: username → client, and how many clients there were by each page."""
        found: dict[str, Mapping[str, object]] = {}
        totals: set[int] = set()
        offset = 0
        while True:
            command: Command = {"command": "listClients", "verbose": True, "count": PAGE, "offset": offset}
            page, total = self._page(link.ask(command, deadline=deadline, changes=False))
            found.update(page)
            totals.add(total)
            offset += len(page)
            if not page or offset >= total:
                return found, totals

    def _page(self, answer: Answer) -> tuple[Mapping[str, Mapping[str, object]], int]:
        match answer:
            case {"data": {"totalCount": int(total), "clients": list(clients)}}:
                page = {each["username"]: each for each in clients if _is_client(each)}
                if len(page) == len(clients):
                    return page, total
        raise Transient(
            f"{self._name}: list_keys: the answer is no list of clients", reason=Reason.PROVIDER_ANSWER_UNREADABLE
        )


def _is_client(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("username"), str)


def _upstream(username: str, client: Mapping[str, object]) -> UpstreamKey:
    client_id, name = client.get("clientid"), client.get("textname")
    return UpstreamKey(
        id=username,
        name=name if isinstance(name, str) else "",
        problem=Reason.KEY_INACTIVE if client.get("disabled") is True else None,
        identity=Identity(id=username, username=username, client_id=client_id if isinstance(client_id, str) else None),
    )


def _whole(text: str) -> bool:
    """Whether text arrives in a C string as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text) and "\0" not in text
