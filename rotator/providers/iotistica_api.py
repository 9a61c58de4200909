"""Iotistica's REST API in its two generations: the login, the way that fits, and what its answers have in common.

The document ("Authentication") and the server's source disagree over paths and fields. A call that a server can't
make sense of (400, 404 or 422 about its shape) did nothing, so it is asked again in the other generation's way, and the
way that worked is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

import structlog

from rotator.errors import Permanent, RotatorError
from rotator.jwt import unverified_expiry
from rotator.model import MARKER, Credential, Secret
from rotator.ports import Clock, Reveal
from rotator.providers.http import Peer
from rotator.providers.rest import Grant, Login, Reply, Rest, is_text
from rotator.reasons import Reason

LONGEST_LIFE: Final = 10**10  # seconds; what is longer, or NaN, is no life
ACCESS_LIFE: Final = 900.0  # seconds; the source's default, where neither answer nor token say
REVOKED_FOR: Final = timedelta(seconds=60)  # caches honour a revoked API key for as long
LONGEST_NAME: Final = 255  # characters; the source's columns

# What a server says of a request whose shape it does not know. "already exists" and the like are about its content.
_SHAPE: Final = re.compile(
    r"\b(route|fields?|required|unknown|unexpected|unrecogni[sz]ed|propert(y|ies)|schema|email|username)\b(?!.*\bexists\b)",
    re.IGNORECASE,
)
_NO_ROUTE: Final = re.compile(r"\broute\b|\bcannot (get|post|put|delete)\b", re.IGNORECASE)

_log = structlog.get_logger(__name__)


class Generation(StrEnum):
    """Which of the two a request is made for."""

    DOCUMENT = "document"
    SOURCE = "source"


Ways = Mapping[Generation, Callable[[], Reply]]


class IotisticaApi:
    """Asks one Iotistica cloud as one of its operators. Thread safe.

    Args:
        peer: sends the requests.
        login_peer: sends logins and refreshes, which have a limit of their own.
        url: the cloud's address, such as `https://cloud.example`; `/api/v1` is added.
        email, username: the operator; the document's login takes the first, the source's the second.
        password: read at each login.
        generation: the only one to be asked; None: whichever works.
    """

    def __init__(
        self,
        peer: Peer,
        login_peer: Peer,
        *,
        url: str,
        email: str,
        username: str,
        password: Reveal,
        generation: Generation | None,
    ) -> None:
        base = f"{url.rstrip('/')}/api/v1"
        self._peers = (peer, login_peer)
        self._clock: Clock = peer.clock
        self._email, self._username, self._password = email, username, password
        self._only = generation
        self._works: dict[str, Generation] = {}
        self._door = Rest(login_peer, url=base, auth=None)
        self.operator = Rest(peer, url=base, auth=Login(self._log_in, renew=self._renew, clock=peer.clock))
        self.device = Rest(peer, url=base, auth=None)  # each request shows a device's own key

    @property
    def name(self) -> str:
        """The provider's name in the configuration."""
        return self.operator.name

    @property
    def clock(self) -> Clock:
        """The provider's clock."""
        return self._clock

    def close(self) -> None:
        """Give back the connections; never raises. Access tokens end by themselves, in minutes."""
        for peer in self._peers:
            peer.close()

    def first_that_fits(self, what: str, ways: Ways) -> Reply:
        """Ask in the way that worked last, and in the other one where the server can't make sense of it.

        Args:
            what: what is asked for; the way that works is remembered for each.
            ways: what to do in each generation; one that can't be done is left out.

        Returns: the last answer, whatever its status.
        """
        order = [generation for generation in self._order(what) if generation in ways]
        for generation in order[:-1]:
            reply = ways[generation]()
            if not misfit(reply):
                break
        else:
            generation = order[-1]
            reply = ways[generation]()
        if reply.ok:
            self._works[what] = generation
        return reply

    def may_be(self, generation: Generation) -> bool:
        """Whether the configuration lets this generation be asked."""
        return self._only in (None, generation)

    def _order(self, what: str) -> Sequence[Generation]:
        if self._only is not None:
            return [self._only]
        first = self._works.get(what) or self._works.get("login") or Generation.DOCUMENT
        return [first, *(other for other in Generation if other is not first)]

    # --- the login

    def _log_in(self, deadline: float) -> Grant:
        password = self._password()

        def ask(body: Mapping[str, str]) -> Callable[[], Reply]:
            return lambda: self._door.ask(
                "POST", "/auth/login", operation="login", deadline=deadline, body=body, secrets=[password]
            )

        reply = self.first_that_fits(
            "login",
            {
                Generation.DOCUMENT: ask({"email": self._email, "password": password}),
                Generation.SOURCE: ask({"username": self._username, "password": password}),
            },
        )
        return self._granted(reply, None)

    def _renew(self, grant: Grant, deadline: float) -> Grant:
        assert grant.refresh is not None  # `Login` renews by nothing else
        token = grant.refresh.reveal()
        body = {"refreshToken": token}
        reply = self._door.ask(
            "POST", "/auth/refresh", operation="refresh", deadline=deadline, body=body, secrets=[token]
        )
        return self._granted(reply, grant.refresh)

    def _granted(self, reply: Reply, refresh_before: Secret | None) -> Grant:
        """The tokens of an answer: flat (the document) or below `data` (the source); a refresh may name one alone."""
        data = reply.fields.get("data")
        told: Mapping[str, Any] = data if isinstance(data, dict) else reply.fields
        access, refresh, life = told.get("accessToken"), told.get("refreshToken"), told.get("expiresIn")
        if not reply.ok:
            raise reply.error(changes=False)
        if not isinstance(access, str) or not access:
            raise reply.unreadable("the answer holds no access token")
        if told.get("mustChangePassword") is True:
            _log.warning("the operator's password must be changed at the platform", provider=self.name)
        if not isinstance(life, int | float) or isinstance(life, bool) or not 0 < life < LONGEST_LIFE:
            life = self._life_of(access) or ACCESS_LIFE
        kept = Secret(refresh) if isinstance(refresh, str) and refresh else refresh_before
        return Grant(
            access=Secret(access),
            expires_in=float(life),
            refresh=kept,
            refresh_expires_in=self._life_of(kept.reveal()) if kept is not None else None,
        )

    def _life_of(self, token: str) -> float | None:
        """Seconds until a JWT's `exp`; None where it names none, or one that our clock has passed already."""
        ends = unverified_expiry(token)
        left = (ends - self._clock.now()).total_seconds() if ends is not None else 0.0
        return left if left > 0 else None


class Resource:
    """What all of Iotistica's resources have in common.

    Args:
        api: asks the cloud.
        issue_deadline: the total time of one issue call.
        licence: reads the cloud's licence (a JWT), to watch its end; None: not watched.
    """

    def __init__(self, api: IotisticaApi, *, issue_deadline: timedelta, licence: Reveal | None) -> None:
        self._api = api
        self._issue_deadline = issue_deadline
        self._licence = licence

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._api.name

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that one issue call may take, login included."""
        return self._issue_deadline

    def credentials(self) -> Sequence[Credential]:
        """The licence's end, where there is one to be watched. An expired one blocks new registrations.

        Raises: Permanent where the licence can't be read.
        """
        if self._licence is None:
            return []
        ends = unverified_expiry(self._licence().strip())
        if ends is None:
            raise Permanent(f"{self.name}: the licence is no JWT with an `exp`", reason=Reason.SECRET_REFERENCE)
        return [Credential(name="licence", expires_at=ends)]

    def close(self) -> None:
        """Give back the connections; never raises."""
        self._api.close()

    def _deadline(self) -> float:
        return self._api.operator.deadline(self._issue_deadline)

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told."""
        raise NotImplementedError

    def _check_options(self, options: Mapping[str, str]) -> None:
        """Refuse what `provision` can't be told. Raises: Permanent PROVIDER_REFUSED."""
        unknown = sorted(options.keys() - self.options.keys())
        if unknown:
            raise self._refused("provision", f"no such option: {', '.join(unknown)}")

    def _unknown(self, operation: str, id: str) -> Permanent:
        return Permanent(f"{self.name}: {operation}: no such key: {id}", reason=Reason.KEY_UNKNOWN)

    def _refused(self, operation: str, why: str, reason: Reason = Reason.PROVIDER_REFUSED) -> Permanent:
        return Permanent(f"{self.name}: {operation}: {why}", reason=reason)


def misfit(reply: Reply) -> bool:
    """Whether the server could not make sense of the request's shape; it did nothing then."""
    return no_route(reply) or (reply.status in (400, 404, 422) and _SHAPE.search(reply.message) is not None)


def no_route(reply: Reply) -> bool:
    """Whether a 404 is about the path, and not about what the path names."""
    return reply.status == 404 and (not reply.fields or _NO_ROUTE.search(reply.message) is not None)


def absent(reply: Reply) -> bool:
    """Whether the platform itself says that there is no such thing; a gateway's 404 says nothing of a key."""
    return reply.status == 404 and "error" in reply.fields and not no_route(reply)


def failure(reply: Reply, *, changes: bool) -> RotatorError:
    """`Reply.error`, and a full licence by its name."""
    if reply.status == 403 and "limit exceeded" in reply.message.lower():
        return Permanent(f"{reply.what}: {reply.message}", reason=Reason.PROVIDER_QUOTA)
    return reply.error(changes=changes)


def rows(reply: Reply, name: str) -> Iterator[Mapping[str, Any]]:
    """The objects of a list that stands below `name`, or is the answer.

    Raises: Transient, Permanent.
    """
    if not reply.ok:
        raise reply.error(changes=False)
    value = reply.value if isinstance(reply.value, list) else reply.fields.get(name)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise reply.unreadable(f"the answer holds no list of {name}")
    yield from value


def row_id(row: Mapping[str, Any], name: str = "id") -> str:
    """A row's id as text, '' where it has none."""
    value = row.get(name)
    return str(value) if is_text(value) or (isinstance(value, int) and not isinstance(value, bool)) else ""


def text_of(row: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that is text and not blank; '' where there is none."""
    return next((str(value) for name in names if is_text(value := row.get(name))), "")


def unmarked(text: str) -> str:
    """A name without the markers of rotations."""
    return " ".join(MARKER.sub(" ", text).split())


def marked(text: str, marker: str) -> str:
    """A name with this marker and no older one, short enough for the platform."""
    return f"{unmarked(text)[: LONGEST_NAME - len(marker) - 1]} {marker}".strip()


def part(id: str) -> str:
    """An id as one part of a path; `..` and the like lead nowhere else."""
    return quote(id, safe="", errors="replace").replace(".", "%2E")
