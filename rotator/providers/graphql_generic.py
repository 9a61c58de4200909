"""`graphql`: a platform over GraphQL that nobody wrote a provider for, in configuration alone (docs/http-provider.md).

What its `errors` mean is read as for Haltian (`graphql.read_errors`). Results are looked for in `data`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Tag, model_validator

from rotator.config_base import Part
from rotator.config_types import Text, Url, wrong
from rotator.errors import Transient
from rotator.providers.bodies import FROM, BodyTree
from rotator.providers.expressions import Unfit
from rotator.providers.generic import Platform
from rotator.providers.generic_auth import auth_of
from rotator.providers.generic_reading import Asked
from rotator.providers.generic_settings import (
    AUTH,
    KNOWN_AUTH,
    BasicTag,
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
from rotator.providers.graphql import GraphqlError, Meaning, read_errors
from rotator.providers.graphql_documents import read_document
from rotator.providers.judging import judged, refused
from rotator.providers.kinds import Site
from rotator.providers.paging import Page, Paging, read_pages
from rotator.providers.rest import Auth, Reply, Rest
from rotator.reasons import Reason


def _document(text: str) -> str:
    try:
        read_document(text)
    except ValueError as exc:
        raise wrong(str(exc), "a GraphQL document with one operation") from exc
    return text


class Document(Step):
    """One document, and the values of its variables."""

    TREE: ClassVar[str] = "variables"

    document: Annotated[Text, AfterValidator(_document)]
    variables: BodyTree | None = None

    def given(self) -> set[str]:
        """The variables that are sent."""
        written = self.variables.written if self.variables is not None else {}
        return set(written) if isinstance(written, dict) else set()

    @model_validator(mode="after")
    def _fits(self) -> Document:
        if self.absent is not None and self.absent.when is None:
            raise wrong("`absent` needs `when`", "an expression on `data`", at="absent")
        declared, given = read_document(self.document).variables, self.given()
        if FROM in given:
            return self  # what that finds is only known later
        if unknown := sorted(given - declared.keys()):
            raise wrong(f"the document declares no ${unknown[0]}", "take it out, or correct its name", at="variables")
        if missing := sorted(name for name, needed in declared.items() if needed and name not in given):
            raise wrong(f"${missing[0]} must be given", "the document declares it with a `!`", at="variables")
        return self


class ListDocument(Document):
    """A document that asks for a list, perhaps one page of it; the parameters of `paging` are variables."""

    paging: Paging | None = None

    def given(self) -> set[str]:
        """The variables that are sent."""
        paging = self.paging
        told = {paging.param, paging.size_param} if paging is not None else set()
        return super().given() | {name for name in told if name is not None}

    @model_validator(mode="after")
    def _by_variables(self) -> ListDocument:
        if self.paging is not None and self.paging.kind == "link":
            raise wrong("a document has no links to pages", "page, offset or cursor", at="paging")
        return self


class GraphqlEvict(Evict):
    """The sessions of a username, and how one of them is ended."""

    list: Annotated[ListDocument, checked_as("evict.list")]
    delete: Annotated[Document, checked_as("evict.delete")]


class Documents(Steps):
    """The documents of a platform. What is not there is an ability that it lacks."""

    list: Annotated[ListDocument, checked_as("list")] | None = None
    get: Annotated[Document, checked_as("get")] | None = None
    issue: Annotated[Document, checked_as("issue")] | None = None
    create: Annotated[Document, checked_as("create")] | None = None
    set: Annotated[Document, checked_as("set")] | None = None
    deactivate: Annotated[Document, checked_as("deactivate")] | None = None
    reactivate: Annotated[Document, checked_as("reactivate")] | None = None
    delete: Annotated[Document, checked_as("delete")] | None = None
    evict: GraphqlEvict | None = None


class GraphqlLogin(Login):
    """A login by documents."""

    request: Annotated[Document, checked_as("login")]
    renew: Document | None = None


class LoginAuth(Part):
    """A login, instead of a token."""

    login: GraphqlLogin


class GraphqlSettings(GenericPart):
    """A platform over GraphQL: its documents, and what is read from their answers."""

    kind: Literal["graphql"]
    url: Url
    auth: Annotated[TokenTag | BasicTag | Annotated[LoginAuth, Tag("<login>")], AUTH, KNOWN_AUTH] | None = None
    documents: Documents

    @model_validator(mode="after")
    def _can_rotate(self) -> GraphqlSettings:
        check_steps(self.way, self.documents, "documents")
        return self


class GraphqlCalls:
    """Asks a platform over GraphQL (generic.Calls). Thread safe."""

    def __init__(self, rest: Rest, settings: GraphqlSettings, auth: Auth | None) -> None:
        self._rest = rest  # without a login of its own: a refused one shows in `errors`, beside a status of 200
        self._steps = settings.documents
        self._auth = auth

    @property
    def name(self) -> str:
        """The provider's name in the configuration."""
        return self._rest.name

    @property
    def steps(self) -> Documents:
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
        more: Mapping[str, object] | None = None,
    ) -> Asked:
        """Send one document and say what its answer means; see `generic.Calls.ask`.

        Args:
            more: variables beside the step's own.
        """
        assert isinstance(step, Document), "the steps of this kind are documents"
        try:
            variables = step.variables.filled(values, original) if step.variables is not None else {}
        except Unfit as exc:
            text = f"{self.name}: {operation}: {exc}"
            raise Transient(text, reason=Reason.PROVIDER_ANSWER_UNREADABLE) from None
        body = {"query": step.document, "variables": {**variables, **(more or {})}}
        secrets, auth = list(hidden), self._auth
        for again in (True, False):
            shown = auth.headers(deadline) if auth is not None else {}
            known = [*secrets, *(auth.secrets() if auth is not None else ())]
            reply = self._rest.ask(
                "POST",
                operation=operation,
                deadline=deadline,
                body=body,
                headers=shown,
                changes=changes,
                secrets=known,
            )
            error = _error(reply, known)
            if not again or auth is None or not _refuses_login(reply, error) or not auth.refused(shown):
                break
        return _judged(reply, step, error, changes=changes)

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
        paging = step.paging if isinstance(step, ListDocument) else None

        def ask(params: Mapping[str, str], _link: str | None) -> Page[Any]:
            counts = {paging.size_param} if paging is not None else set()
            if paging is not None and paging.kind != "cursor":
                counts.add(paging.param)
            more = {name: int(text) if name in counts else text for name, text in params.items()}
            return read(self.ask(step, values, operation=operation, deadline=deadline, more=more))

        return read_pages(paging, ask)


def _error(reply: Reply, secrets: Iterable[str]) -> GraphqlError | None:
    return read_errors(reply.fields.get("errors"), secrets=secrets)


def _refuses_login(reply: Reply, error: GraphqlError | None) -> bool:
    """Whether the login was refused and nothing was done."""
    if reply.status == 401:
        return True
    data = reply.fields.get("data")
    nothing = not isinstance(data, dict) or all(value is None for value in data.values())
    return error is not None and error.meaning is Meaning.AUTH and nothing


def _judged(reply: Reply, step: Step, error: GraphqlError | None, *, changes: bool) -> Asked:
    data = reply.fields.get("data")
    value = data if isinstance(data, dict) else None
    asked = judged(reply, value, step, error, changes=changes, absent_in=range(200, 300))
    if error is None:
        return asked
    certain = reply.ok or (400 <= reply.status < 500 and reply.status not in (401, 403, 408, 429))
    failure = refused(reply, error, changes=changes) if certain else asked.failure
    absent = asked.absent or (certain and error.meaning is Meaning.KEY_UNKNOWN)
    return Asked(reply=reply, value=asked.value, absent=absent, failure=failure)


def configured(site: Site, settings: GraphqlSettings) -> Platform:
    """A platform from its section of the configuration."""
    rest = Rest(site.peer(settings), url=settings.url, auth=None, headers=settings.headers)
    openly = GraphqlCalls(rest, settings, None)

    def ask(step: Step, values: Mapping[str, str], deadline: float, hidden: Iterable[str]) -> Asked:
        return openly.ask(step, values, operation="login", deadline=deadline, hidden=hidden)

    wanted = settings.auth.login if isinstance(settings.auth, LoginAuth) else settings.auth
    return made(GraphqlCalls(rest, settings, auth_of(wanted, site, ask)), settings)
