"""`http`: a platform over REST that nobody wrote a provider for, in configuration alone (docs/http-provider.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote, urljoin

from pydantic import AfterValidator, Field, Tag, model_validator

from rotator.config_base import Part
from rotator.config_types import Text, Url, wrong
from rotator.errors import Permanent, Transient
from rotator.providers.bodies import BodyTree
from rotator.providers.expressions import Unfit, excess
from rotator.providers.generic import Platform
from rotator.providers.generic_auth import auth_of
from rotator.providers.generic_reading import Asked, soft, soft_text
from rotator.providers.generic_settings import (
    AUTH,
    KNOWN_AUTH,
    BasicTag,
    Errors,
    Evict,
    GenericPart,
    Login,
    Step,
    Steps,
    TokenTag,
    check_steps,
    checked_as,
)
from rotator.providers.generic_ways import made
from rotator.providers.graphql import GraphqlError, read_errors
from rotator.providers.judging import judged
from rotator.providers.kinds import Site
from rotator.providers.paging import Page, Paging, read_pages
from rotator.providers.rest import Auth, Reply, Rest, said, sendable
from rotator.reasons import Reason
from rotator.templates import names, render
from rotator.timestamps import retry_after


def _path(path: str) -> str:
    if path and not path.startswith("/"):
        raise wrong("must begin with a slash", "it is appended to `url`")
    if "?" in path or "#" in path:
        raise wrong("holds a `?` or `#`", "parameters stand in `query`")
    return path


class Request(Step):
    """One request. Values in the path are quoted; `query`, `headers` and `body` take templates."""

    TREE: ClassVar[str] = "body"

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: Annotated[str, AfterValidator(_path)]
    query: dict[Text, str] = Field(default_factory=dict)
    headers: dict[Text, str] = Field(default_factory=dict)
    body: BodyTree | None = None

    def texts(self) -> Iterator[tuple[str, str]]:
        """All templates: the field that each stands in, and its text."""
        yield "path", self.path
        for field in ("query", "headers"):
            for text in getattr(self, field).values():
                yield field, text
        yield from super().texts()


class ListRequest(Request):
    """A request whose answer is a list, perhaps one page of it."""

    paging: Paging | None = None


class HttpEvict(Evict):
    """The sessions of a username, and how one of them is ended."""

    list: Annotated[ListRequest, checked_as("evict.list")]
    delete: Annotated[Request, checked_as("evict.delete")]


class Requests(Steps):
    """The requests of a platform. What is not there is an ability that it lacks."""

    list: Annotated[ListRequest, checked_as("list")] | None = None
    get: Annotated[Request, checked_as("get")] | None = None
    issue: Annotated[Request, checked_as("issue")] | None = None
    create: Annotated[Request, checked_as("create")] | None = None
    set: Annotated[Request, checked_as("set")] | None = None
    deactivate: Annotated[Request, checked_as("deactivate")] | None = None
    reactivate: Annotated[Request, checked_as("reactivate")] | None = None
    delete: Annotated[Request, checked_as("delete")] | None = None
    evict: HttpEvict | None = None


class HttpLogin(Login):
    """A login by requests."""

    request: Annotated[Request, checked_as("login")]
    renew: Request | None = None


class LoginAuth(Part):
    """A login, instead of a token."""

    login: HttpLogin


class HttpSettings(GenericPart):
    """A platform over REST with JSON: its requests, and what is read from their answers."""

    kind: Literal["http"]
    url: Url
    auth: Annotated[TokenTag | BasicTag | Annotated[LoginAuth, Tag("<login>")], AUTH, KNOWN_AUTH] | None = None
    requests: Requests

    @model_validator(mode="after")
    def _can_rotate(self) -> HttpSettings:
        check_steps(self.way, self.requests, "requests")
        return self


class HttpCalls:
    """Asks a platform over REST (generic.Calls). Thread safe."""

    def __init__(self, rest: Rest, settings: HttpSettings, auth: Auth | None) -> None:
        self._rest = rest
        self._steps = settings.requests
        self._errors = settings.errors
        self._url = settings.url.rstrip("/")
        self._auth = auth

    @property
    def name(self) -> str:
        """The provider's name in the configuration."""
        return self._rest.name

    @property
    def steps(self) -> Requests:
        """What is configured."""
        return self._steps

    def deadline(self, total: timedelta) -> float:
        """When a call that begins now must have ended, in monotonic seconds."""
        return self._rest.deadline(total)

    def close(self) -> None:
        """Close the client; never raises."""
        self._rest.peer.close()

    def ask(
        self,
        step: Step,
        values: Mapping[str, str],
        *,
        operation: str,
        deadline: float,
        original: object = None,
        changes: bool = False,
        hidden: Iterable[str] = (),
        params: Mapping[str, str] | None = None,
        path: str | None = None,
    ) -> Asked:
        """Send one request and say what its answer means; see `generic.Calls.ask`.

        Args:
            params: added to the query.
            path: instead of the step's own, its query included.
        """
        assert isinstance(step, Request), "the steps of this kind are requests"
        what, hidden = f"{self.name}: {operation}", list(hidden)
        query = {name: render(text, values) for name, text in step.query.items()} if path is None else {}
        try:
            body = step.body.filled(values, original) if step.body is not None else None
        except Unfit as exc:
            raise Transient(f"{what}: {exc}", reason=Reason.PROVIDER_ANSWER_UNREADABLE) from None
        reply = self._rest.ask(
            step.method,
            self._path(step, values, what) if path is None else path,
            operation=operation,
            deadline=deadline,
            body=body,
            params={**query, **(params or {})} or None,  # an empty mapping would take a link's own query away
            headers={name: _header(render(text, values), what) for name, text in step.headers.items()},
            changes=changes,
            secrets=hidden,
        )
        reply = self._with_delay(reply)
        return judged(reply, reply.value, step, self._error(reply, hidden), changes=changes)

    def pages(
        self,
        step: Step,
        values: Mapping[str, str],
        read: Callable[[Asked], Page[Any]],
        *,
        operation: str,
        deadline: float,
    ) -> Mapping[str, Any]:
        """All entries of a list, by id; see `generic.Calls.pages`."""
        at = [f"{self._url}{step.path if isinstance(step, Request) else ''}"]  # what a relative link starts from

        def ask(params: Mapping[str, str], link: str | None) -> Page[Any]:
            path = None if link is None else self._followed(at[0], link, operation)
            if path is not None:
                at[0] = self._url + path
            return read(self.ask(step, values, operation=operation, deadline=deadline, params=params, path=path))

        return read_pages(step.paging if isinstance(step, ListRequest) else None, ask)

    def _path(self, step: Request, values: Mapping[str, str], what: str) -> str:
        quoted: dict[str, str] = {}
        for name in names(step.path):
            value = values[name]
            # the first three would make it the path of something else entirely, and no platform has the fourth
            if value in ("", ".", "..") or value.encode(errors="replace").decode() != value:
                raise Permanent(f"{what}: {value!r} can't stand in a URL", reason=Reason.KEY_UNKNOWN)
            quoted[name] = quote(value, safe="")
        return render(step.path, quoted)

    def _followed(self, at: str, link: str, operation: str) -> str:
        """What follows `url` in the link to the next page; our token goes to no other place."""
        joined = urljoin(at, link)
        rest = joined.removeprefix(self._url)
        if rest == joined or not rest.startswith(("/", "?")):
            text = f"{self.name}: {operation}: the link to the next page leads elsewhere than `url`"
            raise Transient(text, reason=Reason.PROVIDER_ANSWER_UNREADABLE)
        return rest

    def _with_delay(self, reply: Reply) -> Reply:
        expression = self._errors.retry_after
        if expression is None or reply.ok or excess(reply.value):
            return reply
        told = soft(expression, reply.value)
        if isinstance(told, bool) or not isinstance(told, str | int | float):
            return reply
        delay = retry_after(str(told), self._rest.peer.clock.now())
        return reply if delay is None else replace(reply, retry_after=delay)

    def _error(self, reply: Reply, hidden: list[str]) -> GraphqlError | None:
        """What the platform says went wrong, where the configuration says how to read that."""
        told = {} if excess(reply.value) else _told(self._errors, reply.value)
        if not told:
            return None
        own = list(self._auth.secrets()) if self._auth is not None else []
        return read_errors([told], secrets=[*hidden, *own])


def _told(errors: Errors, value: object) -> dict[str, str]:
    found = {"message": soft_text(errors.message, value), "code": soft_text(errors.code, value)}
    return {name: text for name, text in found.items() if text is not None}


def _header(value: str, what: str) -> str:
    # a blank inside is well in a header, though not in a token
    return value if not value or (value.isascii() and value.isprintable()) else sendable(value, f"{what}: a header")


def _words(errors: Errors) -> Callable[[object], str]:
    """What reads the platform's own words out of an error's answer."""

    def words(value: object) -> str:
        if excess(value):
            return ""
        told = _told(errors, value)
        return ": ".join(told[name] for name in ("code", "message") if name in told) if told else said(value)

    return words


def configured(site: Site, settings: HttpSettings) -> Platform:
    """A platform from its section of the configuration."""
    peer = site.peer(settings)
    words = _words(settings.errors)
    open_calls = HttpCalls(
        Rest(peer, url=settings.url, auth=None, messages=words, headers=settings.headers), settings, None
    )

    def ask(step: Step, values: Mapping[str, str], deadline: float, hidden: Iterable[str]) -> Asked:
        return open_calls.ask(step, values, operation="login", deadline=deadline, hidden=hidden)

    wanted = settings.auth.login if isinstance(settings.auth, LoginAuth) else settings.auth
    auth = auth_of(wanted, site, ask)
    rest = Rest(peer, url=settings.url, auth=auth, messages=words, headers=settings.headers)
    return made(HttpCalls(rest, settings, auth), settings)
