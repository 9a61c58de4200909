"""The daemon's own token at Vault, however it is got: renewed, and replaced when it is refused.

Vault answers an expired token and a policy that forbids with the same 403, so a refusal is looked into (lookup-self)
before a new login is spent: a `secret_id` may have a limited number of uses.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import requests
import structlog
from hvac.adapters import RawAdapter
from hvac.api.auth_methods import Token

from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import Credential, Secret
from rotator.ports import Clock
from rotator.reasons import Reason
from rotator.stores.vault_auth import Auth, Login, seconds
from rotator.stores.vault_wire import Send, VaultAnswer, VaultWire
from rotator.stores.vault_wrapped import WrappedAppRoleAuth

# A living token younger than this is not replaced for being refused; an older one is, since its role's policies may
# have been mended and reach only a new token.
_YOUNG: Final = 60.0
_PATIENT: Final = 900.0  # what that grows to while new tokens are refused as well: then the policy forbids
_END_MARGIN: Final = 0.1  # of a lease: a token so near its end is replaced before it is used
_FRESH: Final = 2 / 3  # of a lease: a token with more left is looked up, which writes nothing, and not renewed
_READ_EVERY: Final = 1.0  # seconds: how soon a token that an agent has replaced is taken up

_log = structlog.get_logger(__name__)


class VaultLogin:
    """Holds the token that all requests share. Thread safe: one login at a time."""

    def __init__(self, wire: VaultWire, *, auth: Auth, clock: Clock) -> None:
        self._wire = wire
        self._auth = auth
        self._clock = clock
        self._lock = threading.Lock()
        self._login: Login | None = None
        self._failure: RotatorError | None = None
        self._failures = 0
        self._read_at = float("-inf")  # when a given token was last read
        self._unreadable = False
        self._looked: Login | None = None  # what a given token's last lookup or renewal said
        self._looked_at = float("-inf")
        self._patience = _YOUNG  # the age from which a living token is replaced for being refused
        self._capped: Secret | None = None  # a token whose last renewal added nothing: its max TTL is reached
        self._refused = 0  # tokens in a row that were refused both lookup-self and renew-self
        self._unasked: Secret | None = None  # one of them, where the policy must be what forbids

    def call(self, operation: str, send: Send, *, what: str, optional: bool = False) -> VaultAnswer:
        """One request with the token; where it is refused and another token may help, once more with that.

        Args:
            optional: the least policy may forbid it, so that a refusal says nothing of the token.
        """
        login = self.current()
        answer = self._wire.call(operation, send, what=what, token=login.token)
        if not answer.denied or optional:
            return answer
        other = self._after_refusal(login)
        if other is None:
            return answer
        answer = self._wire.call(operation, send, what=what, token=other.token)
        if not answer.denied:
            self._patience = _YOUNG
        return answer

    def current(self) -> Login:
        """The login, made where there is none or it ends about now; a given token as its place holds it now.

        Raises:
            Permanent: VAULT_AUTH, refused; those who waited for it are refused with it.
            Transient: no login was possible now.
        """
        login = self._login
        if login is not None and not self._over(login):
            return login if self._auth.repeatable else self._reread(login)
        seen = self._failures
        with self._lock:
            login = self._login
            if login is not None and not self._over(login):
                return login
            if self._failure is not None and self._failures != seen:
                raise _again(self._failure)
            return self._replace()

    def ready(self) -> None:
        """Raise where the token is not accepted: logs in where that is possible, a given token is looked up.

        Raises: as `current`; Permanent VAULT_WRAPPING_TOKEN_USED.
        """
        if isinstance(self._auth, WrappedAppRoleAuth):
            self._auth.look(self._wire, self._clock)
        login = self.current()
        if not self._auth.repeatable:
            self._lookup(login)

    def credentials(self) -> Sequence[Credential]:
        """What the logins hang on and that ends by itself: an unwrapped secret id. Raises: RotatorError."""
        return self._auth.credentials() if isinstance(self._auth, WrappedAppRoleAuth) else []

    def ensure_life(self, needed: float) -> None:
        """Raise Permanent VAULT_AUTH where the token can't be made to live `needed` seconds more.

        A role whose tokens are shorter than that passes where logins can be repeated: one follows whenever one ends.
        """
        login = self.current()
        if self._auth.repeatable:
            if login.ends_at is not None and self._left(login) < min(needed, (login.lease or needed) / 2):
                self._replace_unless_newer(login)
            return
        if self._left(self._lookup(login)) >= needed:
            return
        self.renew()
        looked = self._lookup(self.current())
        left = self._left(looked)
        # one that a renewal brings back to its lease is kept going by `renew`; at its max TTL none does
        lasts = looked.renewable and left > (looked.lease or 0) * _FRESH > 0
        if left < needed and not lasts:
            raise Permanent(f"vault: the token ends in {left:.0f} s and can't be renewed", reason=Reason.VAULT_AUTH)

    def renew(self) -> datetime | None:
        """See to it that the token lives: renew one that a third of its life is gone of, look up a younger one.

        A repeatable login is made anew where a renewal no longer adds to the token's life, or is refused.

        Returns: when the token ends, aware UTC; None for one that never does.

        Raises: Permanent VAULT_AUTH, Transient.
        """
        login = self._renew_own() if self._auth.repeatable else self._renew_given()
        return None if login.ends_at is None else self._clock.now() + timedelta(seconds=self._left(login))

    # --- a login of our own, and a given token ------------------------------------------------------------------------

    def _renew_own(self) -> Login:
        login = self.current()
        lease = login.lease
        if lease is None:
            return login  # a role may give tokens that never end
        rests = self._left(login) > lease * _FRESH or login.token == self._capped
        if login.token == self._unasked:
            pass  # requests tell whether it lives
        elif rests and self._asked(login).ok:
            self._refused = 0
        elif login.renewable and (renewed := self._renew_self(login)) is not None:
            self._refused, login = 0, self._keep(login, renewed)
        elif login.renewable:
            self._refused += 1
            if self._refused == 1:
                return self._replace_unless_newer(login)  # it ended or was revoked
            self._unasked = login.token
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
        login = self.current()
        with self._lock:
            login = self._given(login)
        looked = self._lookup(login, within=_READ_EVERY)  # `ready` has just asked
        aged = looked.ends_at is not None and self._left(looked) <= (looked.lease or float("inf")) * _FRESH
        if aged and looked.renewable and looked.token != self._capped:
            looked = self._looked = self._renew_self(looked) or looked
        return looked

    def _reread(self, known: Login) -> Login:
        """The given token, read again where the last reading is a while ago and nobody else is at it."""
        if self._clock.monotonic() - self._read_at < _READ_EVERY or not self._lock.acquire(blocking=False):
            return known
        try:
            return self._given(known)
        finally:
            self._lock.release()

    def _given(self, known: Login) -> Login:
        """What the place of a given token holds now; the known one while it can't be read: an agent may be at it.

        The caller holds the lock.
        """
        self._read_at = self._clock.monotonic()
        try:
            given = self._auth.login(self._wire, self._clock)
        except RotatorError as exc:
            if not self._unreadable:
                _log.warning("vault_token_unreadable", reason=exc.reason.value, error=exc.message)
            self._unreadable = True
            return known
        self._unreadable = False
        if given.token == known.token:
            return known
        _log.info("vault_token_taken_up")
        self._login = given
        return given

    def _after_refusal(self, refused: Login) -> Login | None:
        """Another token to try, or None where the policy must be what forbids."""
        with self._lock:
            login = self._login
            if login is not None and login is not refused and login.token != refused.token:
                return login
            if not self._auth.repeatable:
                given = self._given(refused)
                if given.token != refused.token:
                    return given
                self._lookup(refused)
                return None
            young = self._clock.monotonic() - refused.made_at < self._patience
            if young and self._asked(refused).ok:
                return None
            self._patience = min(self._patience * 2, _PATIENT)
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
            self._login = self._auth.login(self._wire, self._clock)
        except RotatorError as exc:
            self._failure, self._failures = exc, self._failures + 1
            raise
        return self._login

    # --- what Vault knows of the token ------------------------------------------------------------------------------

    def _asked(self, login: Login) -> VaultAnswer:
        return self._wire.call("lookup", _lookup_self, what="lookup-self", token=login.token)

    def _lookup(self, login: Login, *, within: float = 0.0) -> Login:
        """The login as Vault knows it, or knew it less than `within` seconds ago."""
        start, known = self._clock.monotonic(), self._looked
        if known is not None and known.token == login.token and start - self._looked_at < within:
            return known
        answer = self._asked(login)
        if not answer.ok:
            text = f"vault: the token is not accepted (expired, revoked, or without lookup-self): {answer.text}"
            raise Permanent(text, reason=Reason.VAULT_AUTH)
        data = answer.part("data")
        left = seconds(data.get("ttl"))
        never = left is None and data.get("expire_time") is None
        self._looked_at = start
        self._looked = looked = replace(
            login,
            lease=seconds(data.get("period")) or seconds(data.get("creation_ttl")),
            ends_at=None if never else start + (left or 0),
            renewable=data.get("renewable") is True,
        )
        return looked

    def _renew_self(self, login: Login) -> Login | None:
        start = self._clock.monotonic()
        answer = self._wire.call("renew", _renew_token, what="renew-self", token=login.token)
        lease = seconds(answer.part("auth").get("lease_duration")) if answer.ok else None
        if lease is None:
            return None
        if login.ends_at is not None and start + lease < login.ends_at + 1.0:
            self._capped = login.token
        return replace(login, ends_at=start + lease)

    def _left(self, login: Login) -> float:
        """Seconds of life that are left, as far as known."""
        return float("inf") if login.ends_at is None else login.ends_at - self._clock.monotonic()

    def _over(self, login: Login) -> bool:
        return self._auth.repeatable and self._left(login) <= (login.lease or 0) * _END_MARGIN


def _lookup_self(adapter: RawAdapter) -> requests.Response:
    response: requests.Response = Token(adapter).lookup_self()  # type: ignore[no-untyped-call]  # hvac's stub
    return response


def _renew_token(adapter: RawAdapter) -> requests.Response:
    response: requests.Response = Token(adapter).renew_self()  # type: ignore[no-untyped-call]  # hvac's stub
    return response


def _again(failure: RotatorError) -> RotatorError:
    """The same failure for another caller: one exception object raised in two threads mixes up their tracebacks."""
    if isinstance(failure, Transient):
        return Transient(failure.message, reason=failure.reason, retry_after=failure.retry_after)
    return Permanent(failure.message, reason=failure.reason)
