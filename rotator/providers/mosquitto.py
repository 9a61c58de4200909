"""Mosquitto's dynamic security plugin (2.0 and later): clients whose password an admin sets over MQTT itself.

One key is one client of the plugin: its id is the username. The caller chooses the password, so it is sealed before
the broker hears of it, and the call may be repeated with the same one. The old password is dead at once, and Mosquitto
ends all sessions of that username. The plugin knows no time of issue and no expiry, and never tells a password.

The daemon's own admin is such a client as well. Mosquitto 2.0 ends its session before it answers the change (tried on
2.0.11), so the answer never comes; the new password is known, and a login with it says what became of the change.
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
from rotator.errors import Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import (
    Abilities,
    Identity,
    Issued,
    ProbeTarget,
    RequestDone,
    Secret,
    Strategy,
    UpstreamKey,
)
from rotator.ports import Clock, OnRequest, Reveal
from rotator.providers.dynamic_security import Answer, Command, ControlLink, LoginRefused, control
from rotator.providers.kinds import Site
from rotator.providers.mosquitto_clients import client_of, creation, page_of, roles_of, upstream, whole
from rotator.providers.own_password import OwnPassword
from rotator.reasons import Reason
from rotator.secret_refs import SecretRef, VaultRef

ALPHABET: Final = string.ascii_letters + string.digits  # nothing that a shell, a URL or a template would read
LENGTH: Final = 43  # characters: 256 bits, as many as secrets.token_urlsafe(32) has
PAGE: Final = 500  # clients in one answer, about 100 bytes each and more with many roles
LISTINGS: Final = 3  # times that a list is read which changes while it is read
OWN_TRIES: Final = 3  # logins for one change of the own password: to send it, to see what became of it, once more
OPTIONS: Final[Mapping[str, str]] = {
    "roles": "roles of dynamic security that exist already, separated by commas; none by default",
    "client_id": "the one client id with which it may come; any by default",
    "text": "what people call it; empty by default",
}


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
        password_in_vault: whether that password is read from Vault; only then may it be rotated itself.
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
        password_in_vault: bool = False,
        timeout: timedelta,
        clock: Clock,
        on_request: OnRequest,
    ) -> None:
        self._name = name
        self._host, self._port, self._tls, self._ca_file = host, port, tls, ca_file
        self._own = OwnPassword(username, password, in_vault=password_in_vault)
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
            password_in_vault=isinstance(settings.password, VaultRef),
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
        return Abilities(strategy=self.strategy, kills_old=True, expires=False, pauses=True, creates=True, deletes=True)

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that `set_secret` may take: nothing is sent after it."""
        return self._timeout

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told."""
        return OPTIONS

    def identity(self, id: str) -> Identity:
        """The id is the username; the client id is free unless the list names one."""
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All clients of the plugin, the admins among them.

        Raises:
            Transient, Permanent: no list; reason PROVIDER_ANSWER_UNREADABLE where it isn't what the plugin documents,
                PROVIDER_UNAVAILABLE where it did not hold still.
        """
        with self._call("list_keys") as deadline, self._login(deadline) as (link, _password):
            for _ in range(LISTINGS):
                clients, totals = self._listed(link, deadline)
                if totals == {len(clients)}:  # else one came or went, and moved others over the edge of a page
                    return [upstream(username, client) for username, client in clients.items()]
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
        self._refuse("issue", identity, secret)
        with self._call("issue") as deadline:
            if identity.id == self._own.username:
                self._set_own(secret, deadline)
            else:
                with self._login(deadline) as (link, _):
                    self._set(link, identity.id, secret, deadline)
        return Issued(identity=identity, secret=secret)

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        """Make the client `name` with a password and roles; one that is there already is found again.

        A client that exists keeps what it has, gets the roles that it lacks, and a new password, since nobody has its
        old one. `marker` goes into the text name of a new one.

        Raises:
            Transient: nothing was changed, or only roles were given.
            Permanent: PROVIDER_REFUSED (an option, a role that does not exist, the daemon's own admin), PROVIDER_AUTH;
                KEY_INACTIVE: the client exists and is disabled.
            UnknownOutcome: no answer came to the change.
        """
        secret, identity = self.choose(), self.identity(name)
        if unknown := sorted(options.keys() - OPTIONS.keys()):
            raise self._refused("provision", f"no such option: {', '.join(unknown)}")
        if name == self._own.username:
            raise self._refused("provision", "this is the daemon's own admin")
        self._refuse("provision", identity, secret)
        roles = [role.strip() for role in options.get("roles", "").split(",") if role.strip()]
        with self._call("provision") as deadline, self._login(deadline) as (link, _):
            try:
                found = link.ask({"command": "getClient", "username": name}, deadline=deadline, changes=False)
            except Permanent as exc:
                if exc.reason is not Reason.KEY_UNKNOWN:
                    raise
                link.ask(creation(name, secret, roles, options, marker), deadline=deadline, changes=True)
            else:
                self._complete(link, name, found, roles, deadline)
                self._set(link, name, secret, deadline)
        return Issued(identity=identity, secret=secret)

    def deactivate(self, identity: Identity) -> None:
        """Disable a client, which ends its sessions. Disabled already, or gone, is success.

        Raises: Transient, Permanent.
        """
        self._change("deactivate", "disableClient", identity.id, absent_is_success=True)

    def reactivate(self, identity: Identity) -> None:
        """Enable a client. Enabled already is success.

        Raises: Transient, Permanent (KEY_UNKNOWN: it is gone).
        """
        self._change("reactivate", "enableClient", identity.id, absent_is_success=False)

    def delete(self, id: str) -> None:
        """Delete a client, which ends its sessions. Absent is success.

        Raises: Transient, Permanent.
        """
        self._change("delete", "deleteClient", id, absent_is_success=True)

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def _refuse(self, operation: str, identity: Identity, secret: Secret) -> None:
        """Raise for what would do harm, before anybody hears of it."""
        own = self._own.username
        if identity.id != own and identity.username == own:
            problem = "the key's username is the daemon's own admin, and its id is another's"
        elif identity.id == own and not self._own.in_vault:
            # the reference would name a dead password for ever, and nobody could send a command any more
            problem = "the daemon's own admin is rotated only where its password is read from {vault: PATH#FIELD}"
        elif not whole(identity.id) or not whole(secret.reveal()):
            # The plugin reads JSON into C strings: it would set what stands before the NUL, and call that success.
            problem = "an empty username or password, or one with a NUL or a lone surrogate, can't be set"
        else:
            return
        raise self._refused(operation, problem)

    def _refused(self, operation: str, problem: str) -> Permanent:
        return Permanent(f"{self._name}: {operation}: {problem}", reason=Reason.PROVIDER_REFUSED)

    # --- commands

    def _set(self, link: ControlLink, username: str, secret: Secret, deadline: float) -> None:
        link.ask({"command": "getClient", "username": username}, deadline=deadline, changes=False)
        link.ask(
            {"command": "setClientPassword", "username": username, "password": secret.reveal()},
            deadline=deadline,
            changes=True,
        )

    def _set_own(self, secret: Secret, deadline: float) -> None:
        """Change the password with which this very provider logs in.

        The broker ends the session instead of answering. A login tells then: where the new password is the one that it
        takes, the change happened; where it is still the old one, it is sent again.
        """
        self._own.expect(secret)
        lost: UnknownOutcome | None = None
        for _ in range(OWN_TRIES):
            try:
                with self._login(deadline) as (link, password):
                    if password != secret.reveal():
                        self._set(link, self._own.username, secret, deadline)
                    return
            except UnknownOutcome as exc:
                lost = exc
            except RotatorError as exc:
                if lost is None:
                    raise
                raise lost from exc  # it may have happened, and nobody can look now
        if lost is not None:
            raise lost

    def _change(self, operation: str, command: str, username: str, *, absent_is_success: bool) -> None:
        """One command about a client that may be repeated."""
        if username == self._own.username or not whole(username):
            raise self._refused(operation, "not this client")
        with self._call(operation) as deadline, self._login(deadline) as (link, _):
            try:
                link.ask({"command": command, "username": username}, deadline=deadline, changes=False)
            except Permanent as exc:
                if exc.reason is not Reason.KEY_UNKNOWN or not absent_is_success:
                    raise

    def _complete(self, link: ControlLink, username: str, found: Answer, roles: Sequence[str], deadline: float) -> None:
        """Give a client that exists the roles that it lacks; a role that it has would be an `Internal error`."""
        client = client_of(found)
        if client is None:
            text = f"{self._name}: provision: the answer shows no client"
            raise Transient(text, reason=Reason.PROVIDER_ANSWER_UNREADABLE)
        if client.get("disabled") is True:
            text = f"{self._name}: provision: {username} exists and is disabled"
            raise Permanent(text, reason=Reason.KEY_INACTIVE)
        held = roles_of(client)
        for role in roles:
            if role not in held:
                command: Command = {"command": "addClientRole", "username": username, "rolename": role}
                link.ask(command, deadline=deadline, changes=False)

    # --- the connection

    @contextlib.contextmanager
    def _call(self, operation: str) -> Iterator[float]:
        """The deadline of one call (of `time.monotonic()`); tells `on_request` how it went."""
        start, code = self._clock.monotonic(), Reason.UNFORESEEN.value
        try:
            yield time.monotonic() + self._timeout.total_seconds()
            code = "ok"
        except RotatorError as exc:
            code = exc.reason.value
            raise
        finally:
            seconds = self._clock.monotonic() - start
            self._on_request(RequestDone(peer=self._name, operation=operation, code=code, seconds=seconds))

    @contextlib.contextmanager
    def _login(self, deadline: float) -> Iterator[tuple[ControlLink, str]]:
        """A connection, and the password that the broker took for it: the first of the candidates that it takes."""
        with contextlib.ExitStack() as stack:
            *others, last = self._own.candidates()
            for password in others:
                with contextlib.suppress(LoginRefused):
                    link = stack.enter_context(control(self._name, self._target(password), deadline))
                    break
            else:
                password = last
                link = stack.enter_context(control(self._name, self._target(password), deadline))
            yield link, password

    def _target(self, password: str) -> ProbeTarget:
        return ProbeTarget(
            host=self._host,
            port=self._port,
            tls=self._tls,
            ca_file=self._ca_file,
            username=self._own.username,
            password=Secret(password),
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
        found = page_of(answer)
        if found is not None:
            return found
        raise Transient(
            f"{self._name}: list_keys: the answer is no list of clients", reason=Reason.PROVIDER_ANSWER_UNREADABLE
        )
