"""The daemon's own token at Vault: given to it, or got by AppRole; renewed, and replaced when it is refused.

Vault answers an expired token and a policy that forbids with the same 403, so a refusal is looked into (lookup-self)
before a new login is spent: a `secret_id` may have a limited number of uses.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

import requests
from hvac.adapters import RawAdapter
from hvac.api.auth_methods import AppRole, Token

from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import Secret
from rotator.ports import Clock, Reveal
from rotator.reasons import Reason
from rotator.stores.vault_wire import Send, VaultAnswer, VaultWire

# A living token younger than this is not replaced for being refused; an older one is, since its role's policies may
# have been mended and reach only a new token.
_YOUNG: Final = 60.0
_END_MARGIN: Final = 0.1  # of a lease: a token so near its end is replaced before it is used


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAuth:
    """A token from elsewhere (an agent's file, for example); read anew when it is refused and at each renewal."""

    token: Reveal


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRoleAuth:
    """Login by AppRole; both halves are read at each login."""

    role_id: Reveal
    secret_id: Reveal
    mount: str = "approle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A token and what is known of its life; times are seconds on the clock's monotonic scale."""

    token: Secret = field(repr=False)
    made_at: float
    lease: float | None = None  # seconds, as first granted; None: not known
    ends_at: float | None = None  # None: not known, or never
    renewable: bool = True


class VaultLogin:
    """Holds the token that all requests share. Thread safe: one login at a time."""

    def __init__(self, wire: VaultWire, *, auth: TokenAuth | AppRoleAuth, clock: Clock) -> None:
        self._wire = wire
        self._auth = auth
        self._clock = clock
        self._lock = threading.Lock()
        self._login: Login | None = None
        self._failure: RotatorError | None = None
        self._failures = 0

    def call(self, operation: str, send: Send, *, what: str) -> VaultAnswer:
        """One request with the token; where it is refused and another token may help, once more with that."""
        login = self.current()
        answer = self._wire.call(operation, send, what=what, token=login.token)
        if not answer.denied:
            return answer
        other = self._after_refusal(login)
        return answer if other is None else self._wire.call(operation, send, what=what, token=other.token)

    def current(self) -> Login:
        """The login, made where there is none or it ends about now.

        Raises:
            Permanent: VAULT_AUTH, refused; those who waited for it are refused with it.
            Transient: no login was possible now.
        """
        login = self._login
        if login is not None and not self._over(login):
            return login
        seen = self._failures
        with self._lock:
            login = self._login
            if login is not None and not self._over(login):
                return login
            if self._failure is not None and self._failures != seen:
                raise _again(self._failure)
            return self._replace()

    def ready(self) -> None:
        """Raise where the token is not accepted: AppRole logs in, a given token is looked up."""
        login = self.current()
        if isinstance(self._auth, TokenAuth):
            self._lookup(login)

    def ensure_life(self, needed: float) -> None:
        """Raise Permanent VAULT_AUTH where the token can't be made to live `needed` seconds more.

        A role whose tokens are shorter than that passes: AppRole logs in again whenever one ends.
        """
        login = self.current()
        if isinstance(self._auth, AppRoleAuth):
            if login.ends_at is not None and self._left(login) < min(needed, (login.lease or needed) / 2):
                self._replace_unless_newer(login)
            return
        if self._left(self._lookup(login)) >= needed:
            return
        self.renew()
        left = self._left(self._lookup(self.current()))
        if left < needed:
            raise Permanent(f"vault: the token ends in {left:.0f} s and can't be renewed", reason=Reason.VAULT_AUTH)

    def renew(self) -> datetime | None:
        """Renew the token; AppRole logs in anew where a renewal no longer adds to its life.

        Returns: when the token ends, aware UTC; None for one that never does.

        Raises: Permanent VAULT_AUTH, Transient.
        """
        login = self._renew_approle() if isinstance(self._auth, AppRoleAuth) else self._renew_given()
        return None if login.ends_at is None else self._clock.now() + timedelta(seconds=self._left(login))

    # --- one kind of login each -------------------------------------------------------------------------------------

    def _renew_approle(self) -> Login:
        login = self.current()
        lease = login.lease
        if lease is None:
            return login  # a role may give tokens that never end
        if login.renewable and (renewed := self._renew_self(login)) is not None:
            login = self._keep(login, renewed)
        elif login.renewable:
            return self._replace_unless_newer(login)  # refused: it ended or was revoked
        # max_ttl shortens renewals towards its end: below half the first lease a new token is the better one
        if self._left(login) >= lease / 2:
            return login
        try:
            return self._replace_unless_newer(login)
        except Transient:
            if self._over(login):
                raise
            return login

    def _renew_given(self) -> Login:
        login, given = self.current(), self._given()
        if given.token != login.token:
            login = self._keep(login, given)
        looked = self._lookup(login)
        if looked.ends_at is not None and looked.renewable:
            looked = self._renew_self(looked) or looked
        return looked

    def _after_refusal(self, refused: Login) -> Login | None:
        """Another token to try, or None where the policy must be what forbids."""
        with self._lock:
            login = self._login
            if login is not None and login is not refused and login.token != refused.token:
                return login
            if isinstance(self._auth, TokenAuth):
                given = self._given()
                if given.token != refused.token:
                    self._login = given
                    return given
                self._lookup(refused)
                return None
            young = self._clock.monotonic() - refused.made_at < _YOUNG
            if young and self._wire.call("lookup", _lookup_self, what="lookup-self", token=refused.token).ok:
                return None
            return self._replace()

    def _replace_unless_newer(self, old: Login) -> Login:
        with self._lock:
            login = self._login
            return login if login is not None and login.token != old.token else self._replace()

    def _keep(self, old: Login, new: Login) -> Login:
        """Put `new` in the place of `old`, unless another thread was faster."""
        with self._lock:
            if self._login is None or self._login.token == old.token:
                self._login = new
            return self._login

    def _replace(self) -> Login:
        """Log in; the caller holds the lock."""
        try:
            self._login = self._approle(self._auth) if isinstance(self._auth, AppRoleAuth) else self._given()
        except RotatorError as exc:
            self._failure, self._failures = exc, self._failures + 1
            raise
        return self._login

    def _given(self) -> Login:
        assert isinstance(self._auth, TokenAuth)
        return Login(token=_token(self._auth.token(), "vault: the given token"), made_at=self._clock.monotonic())

    def _approle(self, auth: AppRoleAuth) -> Login:
        role_id, secret_id = auth.role_id(), auth.secret_id()

        def send(adapter: RawAdapter) -> requests.Response:
            login = AppRole(adapter).login(role_id, secret_id, use_token=False, mount_point=auth.mount)
            response: requests.Response = login
            return response

        start = self._clock.monotonic()
        answer = self._wire.call("login", send, what=f"login at auth/{auth.mount}")
        if not answer.ok:
            text = f"vault: login at auth/{auth.mount}: HTTP {answer.status}: {answer.text}"
            raise Permanent(text, reason=Reason.VAULT_AUTH)
        granted = answer.part("auth")
        lease = _seconds(granted.get("lease_duration"))
        return Login(
            token=_token(granted.get("client_token"), f"vault: login at auth/{auth.mount}: the answer's token"),
            made_at=start,
            lease=lease,
            ends_at=None if lease is None else start + lease,
            renewable=granted.get("renewable") is True,
        )

    # --- what Vault knows of the token ------------------------------------------------------------------------------

    def _lookup(self, login: Login) -> Login:
        start = self._clock.monotonic()
        answer = self._wire.call("lookup", _lookup_self, what="lookup-self", token=login.token)
        if not answer.ok:
            text = f"vault: the token is not accepted (expired, revoked, or without lookup-self): {answer.text}"
            raise Permanent(text, reason=Reason.VAULT_AUTH)
        known = answer.part("data")
        left = _seconds(known.get("ttl"))
        never = left is None and known.get("expire_time") is None
        return replace(
            login,
            ends_at=None if never else start + (left or 0),
            renewable=known.get("renewable") is True,
        )

    def _renew_self(self, login: Login) -> Login | None:
        start = self._clock.monotonic()
        answer = self._wire.call("renew", _renew_token, what="renew-self", token=login.token)
        lease = _seconds(answer.part("auth").get("lease_duration")) if answer.ok else None
        return None if lease is None else replace(login, ends_at=start + lease)

    def _left(self, login: Login) -> float:
        """Seconds of life that are left, as far as known."""
        return float("inf") if login.ends_at is None else login.ends_at - self._clock.monotonic()

    def _over(self, login: Login) -> bool:
        return isinstance(self._auth, AppRoleAuth) and self._left(login) <= (login.lease or 0) * _END_MARGIN


def _lookup_self(adapter: RawAdapter) -> requests.Response:
    response: requests.Response = Token(adapter).lookup_self()  # type: ignore[no-untyped-call]  # hvac's stub
    return response


def _renew_token(adapter: RawAdapter) -> requests.Response:
    response: requests.Response = Token(adapter).renew_self()  # type: ignore[no-untyped-call]  # hvac's stub
    return response


def _token(value: object, what: str) -> Secret:
    """A token that can stand in a header; anything else was never one."""
    if isinstance(value, str) and value and value.isascii() and value.isprintable() and " " not in value:
        return Secret(value)
    raise Permanent(f"{what} is empty or holds characters that no token has", reason=Reason.VAULT_AUTH)


def _seconds(value: object) -> float | None:
    """A positive number of seconds; Vault writes 0 for "does not end"."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _again(failure: RotatorError) -> RotatorError:
    """The same failure for another caller: one exception object raised in two threads mixes up their tracebacks."""
    if isinstance(failure, Transient):
        return Transient(failure.message, reason=failure.reason, retry_after=failure.retry_after)
    return Permanent(failure.message, reason=failure.reason)
