"""The ways to log in at Vault, one class each (Vault API docs, "Auth methods").

Each reads its secrets anew whenever it logs in: an operator, an agent or a kubelet may have replaced them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import requests
from hvac.adapters import RawAdapter
from hvac.api.auth_methods import JWT, AppRole, Cert, Kubernetes

from rotator.errors import Permanent, Transient
from rotator.model import Secret
from rotator.ports import Clock, Reveal
from rotator.reasons import Reason
from rotator.stores.vault_wire import Send, VaultWire, raw

LONGEST_LEASE: Final = 10 * 365 * 86400  # seconds; whatever an answer says, no clock overflows
_REFUSALS: Final = 3  # in a row, of one secret id; Vault's own limit is five
_NO_SUCH_LOGIN: Final = "missing client token"  # what Vault says where a path is no login
_LOCKED_FOR: Final = 16 * 60.0  # seconds: a little more than Vault counts refusals for


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A token and what is known of its life; times are seconds on the clock's monotonic scale."""

    token: Secret = field(repr=False)
    made_at: float
    lease: float | None = None  # seconds, as first granted; None: not known
    ends_at: float | None = None  # None: not known, or never
    renewable: bool = True


class Auth(Protocol):
    """How to get a token."""

    @property
    def repeatable(self) -> bool:
        """Whether it can log in again by itself, so that a token's end is nothing to worry about."""
        ...

    def login(self, wire: VaultWire, clock: Clock) -> Login:
        """A token, fresh where `repeatable`.

        Raises: Permanent VAULT_AUTH where it is refused, SECRET_REFERENCE where what it needs can't be read; Transient.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAuth:
    """A token from elsewhere: an agent's sink, for example, which is read again when it changes."""

    token: Reveal
    repeatable: bool = field(default=False, init=False)

    def login(self, wire: VaultWire, clock: Clock) -> Login:
        """What the reference holds now; nobody is asked."""
        return Login(token=checked_token(self.token(), "vault: the given token"), made_at=clock.monotonic())


class AppRoleLogin:
    """Logs in by AppRole, and seldom with what was refused. Thread safe: the caller holds a lock.

    Vault locks a role's logins after five refused ones, for a quarter of an hour and for the right secret id as well
    (Vault docs, "User lockout"): a daemon that goes on trying would keep its operator's new secret id out.
    """

    def __init__(self, mount: str) -> None:
        self.mount = mount
        self._tried = ""  # a digest of what was refused last
        self._refusals = 0
        self._not_before = 0.0

    def __call__(self, wire: VaultWire, clock: Clock, role_id: str, secret_id: str, *, hint: str) -> Login:
        """Log in. Raises: as `log_in`."""
        digest = hashlib.sha256(f"{role_id}\0{secret_id}".encode()).hexdigest()
        if digest != self._tried:
            self._tried, self._refusals, self._not_before = digest, 0, 0.0
        wait = self._not_before - clock.monotonic()
        if wait > 0:
            wire.count("login", "held")  # so that an alert on refused logins does not end meanwhile
            text = (
                f"vault: login at auth/{self.mount}: refused {self._refusals} times, and not tried again with the same"
                f" secret id for {wait:.0f} s, lest Vault lock the role; {hint}"
            )
            raise Permanent(text, reason=Reason.VAULT_AUTH)

        def send(adapter: RawAdapter) -> requests.Response:
            return raw(AppRole(adapter).login(role_id, secret_id, use_token=False, mount_point=self.mount))

        def refused() -> None:
            self._refusals += 1
            if self._refusals >= _REFUSALS:
                self._not_before = clock.monotonic() + _LOCKED_FOR

        login = log_in(wire, clock, send, mount=self.mount, hint=hint, refused=refused)
        self._refusals = 0
        return login


class AppRoleAuth:
    """Login by AppRole; both halves are read at each login."""

    repeatable: Final = True

    def __init__(self, *, role_id: Reveal, secret_id: Reveal, mount: str = "approle") -> None:
        self.role_id = role_id
        self.secret_id = secret_id
        self._login = AppRoleLogin(mount)

    def __repr__(self) -> str:
        return f"AppRoleAuth(mount={self._login.mount!r})"

    def login(self, wire: VaultWire, clock: Clock) -> Login:
        """With both halves as they are now."""
        hint = "a secret id that is used up, expired or destroyed has to be replaced by a new one"
        return self._login(wire, clock, self.role_id(), self.secret_id(), hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesAuth:
    """Login as a service account; Vault has Kubernetes review its token."""

    role: str
    jwt: Reveal
    mount: str = "kubernetes"
    repeatable: bool = field(default=True, init=False)

    def login(self, wire: VaultWire, clock: Clock) -> Login:
        """With the token that the kubelet has put there last."""
        jwt = self.jwt()

        def send(adapter: RawAdapter) -> requests.Response:
            return raw(Kubernetes(adapter).login(self.role, jwt, use_token=False, mount_point=self.mount))

        return log_in(wire, clock, send, mount=self.mount)


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtAuth:
    """Login by a JSON Web Token that somebody else signed, and puts there anew before it ends."""

    role: str
    jwt: Reveal
    mount: str = "jwt"
    repeatable: bool = field(default=True, init=False)

    def login(self, wire: VaultWire, clock: Clock) -> Login:
        """With the token that is there now."""
        jwt = self.jwt()

        def send(adapter: RawAdapter) -> requests.Response:
            return raw(JWT(adapter).jwt_login(self.role, jwt, use_token=False, path=self.mount))

        return log_in(wire, clock, send, mount=self.mount)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertAuth:
    """Login by the certificate that the wire shows at the TLS handshake. `role` None: any that fits."""

    role: str | None = None
    mount: str = "cert"
    repeatable: bool = field(default=True, init=False)

    def login(self, wire: VaultWire, clock: Clock) -> Login:
        """With `client_cert` and `client_key` as they are now: a kept connection shows those of its handshake."""
        wire.close()

        def send(adapter: RawAdapter) -> requests.Response:
            login = Cert(adapter).login(name=self.role or "", use_token=False, mount_point=self.mount)
            return raw(login)

        return log_in(wire, clock, send, mount=self.mount)


def log_in(
    wire: VaultWire,
    clock: Clock,
    send: Send,
    *,
    mount: str,
    hint: str = "",
    refused: Callable[[], None] = lambda: None,
) -> Login:
    """Send a login and read its answer.

    Args:
        hint: what a person can do about a refusal, beside Vault's own words.
        refused: called where what was shown was looked at and refused, which Vault may count.

    Raises: Permanent VAULT_AUTH; Transient.
    """
    start, what = clock.monotonic(), f"login at auth/{mount}"
    answer = wire.call("login", send, what=what)
    if not answer.ok and not answer.is_json:
        words = f"vault: {what}: HTTP {answer.status} with a body that is not Vault's; is there a proxy in between?"
        raise Transient(words, reason=Reason.VAULT_UNAVAILABLE)
    if not answer.ok:
        text = f"vault: {what}: HTTP {answer.status}: {answer.text}"
        if answer.status not in (400, 401) or _NO_SUCH_LOGIN in answer.text:
            # a role that is locked answers 403 too, and asking it prolongs nothing
            hint = "Vault says so too where no such login is enabled, or where it is locked"
        else:
            refused()
        raise Permanent(text + (f"; {hint}" if hint else ""), reason=Reason.VAULT_AUTH)
    granted = answer.part("auth")
    if granted.get("mfa_requirement"):
        words = f"vault: {what}: Vault asks for a second factor, which no daemon has: take MFA off this login"
        raise Permanent(words, reason=Reason.VAULT_AUTH)
    lease = seconds(granted.get("lease_duration"))
    return Login(
        token=checked_token(granted.get("client_token"), f"vault: {what}: the answer's token"),
        made_at=start,
        lease=lease,
        ends_at=None if lease is None else start + lease,
        renewable=granted.get("renewable") is True,
    )


def checked_token(value: object, what: str) -> Secret:
    """A token that can stand in a header; anything else was never one."""
    if isinstance(value, str) and value and value.isascii() and value.isprintable() and " " not in value:
        return Secret(value)
    raise Permanent(f"{what} is empty or holds characters that no token has", reason=Reason.VAULT_AUTH)


def seconds(value: object) -> float | None:
    """A positive number of seconds; Vault writes 0 for "does not end"."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        return None
    return float(min(value, LONGEST_LEASE))
