"""Who a configured platform is asked as: a token, HTTP's Basic scheme, or a login that is itself configured."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from rotator.errors import Permanent, RotatorError
from rotator.jwt import unverified_expiry
from rotator.model import Secret
from rotator.ports import Clock, Reveal
from rotator.providers.expressions import Unfit
from rotator.providers.generic_reading import Asked, found, text
from rotator.providers.generic_settings import Basic, BasicAuth, Login, Step, TokenAuth
from rotator.providers.kinds import Site
from rotator.providers.rest import Auth, Fixed, Grant, is_text
from rotator.providers.rest import Login as SharedLogin
from rotator.reasons import Reason

LONGEST_LIFE: Final = 10 * 365 * 86400.0  # seconds; more is a typing error, and no timer goes there

# Asks for one step without a login: the step, its values, the deadline, and what no message may repeat.
AskOpenly = Callable[[Step, Mapping[str, str], float, Iterable[str]], Asked]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptGrant(Grant):
    """A grant, and what its renewal needs beside the refresh token."""

    kept: Mapping[str, str] = field(repr=False, default_factory=dict)


class BasicHeader:
    """HTTP's Basic scheme (RFC 7617), its password read for each request. It is an `Auth`."""

    def __init__(self, name: str, username: str, password: Reveal) -> None:
        self._name, self._username, self._password = name, username, password

    def headers(self, deadline: float) -> Mapping[str, str]:
        """The one header."""
        return {"Authorization": self._shown()}

    def refused(self, used: Mapping[str, str]) -> bool:
        """Worth another try only where the password was replaced meanwhile."""
        return used.get("Authorization") != self._shown()

    def secrets(self) -> Iterable[str]:
        """The password, plain and as it is sent."""
        return [self._password(), self._shown().removeprefix("Basic ")]

    def _shown(self) -> str:
        try:
            login = f"{self._username}:{self._password()}".encode()
        except UnicodeEncodeError:  # not chained: that exception carries the password
            login = b""
        if not login:
            raise Permanent(f"{self._name}: the password can't be sent as text", reason=Reason.PROVIDER_AUTH)
        return f"Basic {base64.b64encode(login).decode()}"


class ConfiguredLogin:
    """What a configured login and its renewal ask for."""

    def __init__(self, settings: Login, password: Reveal, ask: AskOpenly, clock: Clock) -> None:
        self._settings, self._password, self._ask, self._clock = settings, password, ask, clock

    def log_in(self, deadline: float) -> Grant:
        """A new login.

        Raises: Permanent PROVIDER_AUTH, Transient.
        """
        password = self._password()
        values = {"username": self._settings.username, "password": password}
        return self._grant(self._ask(self._settings.request, values, deadline, [password]), None)

    def renew(self, before: Grant, deadline: float) -> Grant:
        """Another grant by the one before.

        Raises: Permanent PROVIDER_AUTH, Transient.
        """
        step, refresh = self._settings.renew, before.refresh
        assert step is not None, "only a login with `renew` is renewed"
        assert refresh is not None, "the shared login asks for this with a refresh token only"
        kept = before.kept if isinstance(before, KeptGrant) else {}
        password = self._password() if "password" in step.places() else ""
        values = {"username": self._settings.username, "password": password, "refresh": refresh.reveal(), **kept}
        return self._grant(self._ask(step, values, deadline, [password, refresh.reveal()]), before)

    def _grant(self, asked: Asked, before: Grant | None) -> Grant:
        if asked.absent or asked.failure is not None:
            raise _as_refused_login(asked)
        wanted = self._settings
        try:
            access = text_of_token(wanted.access.find(asked.value))
            if access is None:
                raise Unfit("the answer holds no access token")
            refresh = text_of_token(found(wanted.refresh, asked.value))
            kept = {name: text(expression, asked.value) for name, expression in wanted.keep.items()}
            return KeptGrant(
                access=Secret(access),
                expires_in=self._life(seconds(found(wanted.expires_in, asked.value)), access),
                # a platform that renews the access token alone leaves the refresh token as it was
                refresh=Secret(refresh) if refresh is not None else before.refresh if before is not None else None,
                refresh_expires_in=seconds(found(wanted.refresh_expires_in, asked.value)),
                kept={
                    **(before.kept if isinstance(before, KeptGrant) else dict.fromkeys(kept, "")),
                    **{name: each for name, each in kept.items() if each is not None},
                },
            )
        except Unfit as exc:
            raise asked.reply.unreadable(str(exc)) from None

    def _life(self, told: float | None, access: str) -> float | None:
        if told is not None:
            return told
        ends = unverified_expiry(access)
        return None if ends is None else seconds((ends - self._clock.now()).total_seconds())


def auth_of(settings: TokenAuth | BasicAuth | Login | None, site: Site, ask: AskOpenly) -> Auth | None:
    """What shows the platform who asks."""
    match settings:
        case None:
            return None
        case TokenAuth():
            return Fixed(site.name, site.reveal(settings.token), header=settings.header, scheme=settings.scheme)
        case BasicAuth(basic=Basic(username=username, password=password)):
            return BasicHeader(site.name, username, site.reveal(password))
        case Login():
            login = ConfiguredLogin(settings, site.reveal(settings.password), ask, site.clock)
            return SharedLogin(
                login.log_in,
                clock=site.clock,
                renew=login.renew if settings.renew is not None else None,
                header=settings.header,
                scheme=settings.scheme,
            )


def seconds(value: object) -> float | None:
    """A life in seconds, as a number or digits in a text; None where it is none, or not positive."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return min(number, LONGEST_LIFE) if number > 0 and not math.isnan(number) else None


def text_of_token(value: object) -> str | None:
    """A token, as it is; None where it is none."""
    return str(value) if is_text(value) else None


def _as_refused_login(asked: Asked) -> RotatorError:
    """A login that was refused is PROVIDER_AUTH, whatever the platform calls it."""
    failure = asked.failure
    if failure is None or isinstance(failure, Permanent):
        message = failure.message if failure is not None else f"{asked.reply.what}: HTTP {asked.reply.status}"
        return Permanent(message, reason=Reason.PROVIDER_AUTH)
    return failure
