"""What the kinds `http` and `graphql` are configured with in common: what is read from answers, and who asks.

Each step (list, issue, …) is one request or document. Which names its templates may use, and what is read from its
answer, depends on the step; `STEPS` has the table, and docs/http-provider.md shows it.
"""

from __future__ import annotations

import math
import string
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from rotator.config_base import HttpPart, Part
from rotator.config_types import Count, Duration, PositiveDuration, Text, wrong
from rotator.model import Strategy
from rotator.providers.bodies import Body
from rotator.providers.expressions import Expr
from rotator.secret_refs import SecretRef
from rotator.templates import faults, names

ENTROPY: Final = 64  # bits that a chosen secret has at least
WHO: Final = frozenset({"id", "username", "client_id"})
# What never stands in a URL, since URLs are written into logs on both sides.
HIDDEN: Final = frozenset({"secret", "current", "password", "refresh"})
IN_URL: Final = frozenset({"path", "query"})

Status = Annotated[int, Field(ge=100, le=599)]


class Result(Part):
    """What is read from an answer, each by an expression; a step uses those of its line in `STEPS`."""

    items: Expr | None = None  # where a list's entries are; the rest is then read from each of them
    id: Expr | None = None
    name: Expr | None = None
    username: Expr | None = None
    client_id: Expr | None = None
    secret: Expr | None = None
    issued_at: Expr | None = None
    expires_at: Expr | None = None
    active: Expr | None = None  # false for a key that lets nobody in
    marker_text: Expr | None = None  # the text that holds the marker of a rotation; the name where this is left out
    started_at: Expr | None = None


class Success(Part):
    """When a request has done what it was sent for: a status of these (or any 2xx), and `when` finds something true.

    A body that is no JSON is no success, unless `any_body` says that the platform answers so; an empty one is.
    """

    status: Annotated[tuple[Status, ...], Field(min_length=1)] | None = None
    when: Expr | None = None
    any_body: bool = False


class Absent(Part):
    """When an answer says that there is no such thing: by its status (404; for a document 2xx), and by `when`."""

    status: Annotated[tuple[Status, ...], Field(min_length=1)] | None = None
    when: Expr | None = None


class Step(Part):
    """What a request over REST and a GraphQL document have in common."""

    TREE: ClassVar[str]  # the field that holds the body

    result: Result = Result()
    success: Success = Success()
    absent: Absent | None = None

    @property
    def tree(self) -> Body | None:
        """The body."""
        found: Body | None = getattr(self, self.TREE)
        return found

    def texts(self) -> Iterator[tuple[str, str]]:
        """All templates: the field that each stands in, and its text."""
        if self.tree is not None:
            for text in self.tree.templates():
                yield self.TREE, text

    def places(self) -> set[str]:
        """The names that its templates use."""
        return {name for _, text in self.texts() for name in names(text)}

    @property
    def uses_original(self) -> bool:
        """Whether the answer of `get` is needed to fill it in."""
        return (self.tree is not None and self.tree.reads_original) or "name" in self.places()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of `STEPS`: names of templates, what is read, what of that must be there, and whether `$from` may be."""

    names: Collection[str] = WHO
    needs: Collection[str] = ()
    reads: Collection[str] = ()
    original: bool = False


STEPS: Final[Mapping[str, Line]] = {
    "list": Line(
        names=(),
        needs=("id",),
        reads=("items", "name", "username", "client_id", "issued_at", "expires_at", "active", "marker_text"),
    ),
    "get": Line(reads=("name", "active")),
    "issue": Line(names={*WHO, "current"}, needs=("secret",), reads=("id", "issued_at", "expires_at"), original=True),
    "create": Line(
        names={*WHO, "name", "marker"},
        needs=("id", "secret"),
        reads=("username", "client_id", "issued_at", "expires_at"),
        original=True,
    ),
    "set": Line(names={*WHO, "secret"}, reads=("issued_at", "expires_at"), original=True),
    "deactivate": Line(),
    "reactivate": Line(),
    "delete": Line(names=("id",)),
    "evict.list": Line(needs=("id",), reads=("items", "started_at")),
    "evict.delete": Line(names={*WHO, "session"}),
    "login": Line(names=("username", "password")),
}

S = TypeVar("S", bound=Step)


def checked_as(name: str) -> AfterValidator:
    """Hold a step to its line in `STEPS`."""

    def check(step: S) -> S:
        hold(step, STEPS[name])
        return step

    return AfterValidator(check)


def hold(step: Step, line: Line) -> None:
    """Raise what is wrong with a step, at the field that it is about."""
    known = ", ".join(f"{{{each}}}" for each in sorted(line.names))
    hint = f"a template here may hold {known}" if known else "there are no names for templates here"
    for field, text in step.texts():
        if found := faults(text, line.names):
            raise wrong("; ".join(found), hint, at=field)
        if field in IN_URL and (shown := sorted(HIDDEN & set(names(text)))):
            raise wrong(f"{{{shown[0]}}} can't stand in a URL, which logs show", "send it in the body", at=field)
    if step.tree is not None and step.tree.reads_original and not line.original:
        raise wrong("there is no original here for `$from`", "write the value itself", at=step.TREE)
    read = {field for field in Result.model_fields if getattr(step.result, field) is not None}
    if missing := sorted(set(line.needs) - read):
        raise wrong(f"the result names no `{missing[0]}`", "an expression that finds it in the answer", at="result")
    if unused := sorted(read - {*line.needs, *line.reads}):
        raise wrong(f"`{unused[0]}` is not read from this answer", "take it out", at="result")


# --- who asks


class Header(Part):
    """Where a token stands in a request."""

    header: Text = "Authorization"
    scheme: str = "Bearer "


class TokenAuth(Header):
    """A token that somebody else makes and renews."""

    token: SecretRef


class Basic(Part):
    """A user, or an API key, and its password."""

    username: Text
    password: SecretRef


class BasicAuth(Part):
    """HTTP's Basic scheme."""

    basic: Basic


class Login(Header):
    """A login that gives tokens. Its expressions read the answers of `request` and of `renew` alike.

    `renew` is asked before the access token ends; its templates may hold `{refresh}` and the names of `keep`, which are
    read from the login's answer. Without `expires_in`, the access token's own `exp` counts where it is a JWT.
    """

    username: Text
    password: SecretRef
    request: Step
    renew: Step | None = None
    access: Expr
    refresh: Expr | None = None
    expires_in: Expr | None = None  # seconds
    refresh_expires_in: Expr | None = None
    keep: dict[Text, Expr] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_be_sent(self) -> Login:
        if self.renew is not None:
            try:
                hold(self.renew, Line(names={"username", "password", "refresh", *self.keep}))
            except PydanticCustomError as exc:
                raise wrong(f"renew: {exc}", (exc.context or {}).get("hint"), at="renew") from None
        return self


def auth_kind(value: object) -> str:
    """The tag of a section `auth`: the one of its names that says which kind it is."""
    names = value if isinstance(value, Mapping) else type(value).model_fields if isinstance(value, Part) else ()
    return next((f"<{name}>" for name in ("basic", "login") if name in names), "<token>")


def one_of_auth(value: object) -> object:
    """Refuse a section `auth` that is none of the three kinds."""
    if isinstance(value, Mapping) and not {"token", "basic", "login"} & set(value):
        raise wrong("names none of token, basic and login", "such as {token: {file: PATH}}")
    return value


TokenTag = Annotated[TokenAuth, Tag("<token>")]
BasicTag = Annotated[BasicAuth, Tag("<basic>")]
AUTH: Final = Discriminator(auth_kind)
KNOWN_AUTH: Final = BeforeValidator(one_of_auth)


# --- the section


class ChosenSecret(Part):
    """What a secret of ours is made of (strategy `chosen`)."""

    alphabet: Text = string.ascii_letters + string.digits
    length: Annotated[Count, Field(le=1024)] = 43

    @field_validator("alphabet")
    @classmethod
    def _plain(cls, alphabet: str) -> str:
        if not alphabet.isascii() or not alphabet.isprintable() or " " in alphabet:
            raise wrong("must be printable ASCII without blanks", "letters, digits, and signs that the platform takes")
        if len(set(alphabet)) != len(alphabet):
            raise wrong("names a character twice", "each once, so that all are as likely")
        return alphabet

    @model_validator(mode="after")
    def _hard_to_guess(self) -> ChosenSecret:
        bits = self.length * math.log2(len(self.alphabet))
        if bits < ENTROPY:
            raise wrong(f"such secrets have {bits:.0f} bits", f"at least {ENTROPY}: make them longer", at="length")
        return self


class Names(Part):
    """Who a key is at the broker where no answer says so; templates that may hold `{id}`."""

    username: Text = "{id}"
    client_id: Text | None = None

    @field_validator("username", "client_id")
    @classmethod
    def _of_the_id(cls, text: str | None) -> str | None:
        if text is not None and (found := faults(text, ("id",))):
            raise wrong("; ".join(found), "a template here may hold {id}")
        return text


class Errors(Part):
    """Where an error's answer says what went wrong."""

    message: Expr | None = None
    code: Expr | None = None
    retry_after: Expr | None = None  # seconds, a date, or text such as "30 seconds"


class GenericPart(HttpPart):
    """What both kinds are told.

    `lifetime` is how long a secret lives where no answer says so; `propagation`, how long the platform may go on
    refusing a new one and accepting the old.
    """

    strategy: Literal["in_place", "replace", "chosen"]
    secret: ChosenSecret = ChosenSecret()
    identity: Names = Names()
    lifetime: PositiveDuration | None = None
    propagation: Duration = timedelta(0)
    errors: Errors = Errors()
    headers: dict[Text, str] = Field(default_factory=dict)

    @property
    def way(self) -> Strategy:
        """The strategy."""
        return Strategy(self.strategy)

    @property
    def issue_deadline(self) -> timedelta:
        """The total time of one call: a login, a look at the original, the call, and both again after a 401."""
        return self.timeout * 4


class Evict(Part):
    """How old sessions are found and ended; both kinds narrow the two to steps of their own."""

    list: Step
    delete: Step


class Steps(Part):
    """The steps of a platform; both kinds narrow them. What is not there is an ability that it lacks."""

    list: Step | None
    get: Step | None
    issue: Step | None
    create: Step | None
    set: Step | None
    deactivate: Step | None
    reactivate: Step | None
    delete: Step | None
    evict: Evict | None


# The step that gives a key its new secret.
CALLS: Final[Mapping[Strategy, str]] = {
    Strategy.IN_PLACE: "issue",
    Strategy.REPLACE: "create",
    Strategy.CHOSEN: "set",
}


def check_steps(strategy: Strategy, steps: Steps, at: str) -> None:
    """Hold the steps to the strategy. Raises: pydantic's error with a fault at the field `at`."""
    call: Step | None = getattr(steps, CALLS[strategy])
    if call is None:
        raise wrong(f"strategy {strategy} needs `{CALLS[strategy]}`", "what gives a key its new secret", at=at)
    for other, theirs in CALLS.items():
        if other is not strategy and getattr(steps, theirs) is not None:
            raise wrong(f"`{theirs}` belongs to strategy {other}, not to {strategy}", "take it out", at=at)
    if (steps.deactivate is None) != (steps.reactivate is None):
        raise wrong("`deactivate` and `reactivate` belong together", "what can't be taken back is `delete`", at=at)
    if steps.get is None and call.uses_original:
        raise wrong(f"`{CALLS[strategy]}` uses the original, and there is no `get`", "what reads it", at=at)
    if strategy is not Strategy.REPLACE:
        return
    if steps.list is None:
        raise wrong("strategy replace needs `list`", "to find what a lost answer left behind", at=at)
    if steps.delete is None:
        raise wrong("strategy replace needs `delete`", "to retire the old key", at=at)
    if "marker" not in call.places():
        raise wrong("`create` leaves no {marker} at the new key", 'such as {label: "{name} {marker}"}', at=at)
