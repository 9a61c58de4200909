"""A platform that nobody wrote a provider for: what its configured steps make of rotation's verbs.

How a step is asked (REST, GraphQL) is `Calls`; here is what its answer means. A step that is not configured is an
ability that the platform lacks: the verb is refused with PROVIDER_UNABLE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog

from rotator.errors import Permanent
from rotator.jwt import unverified_expiry
from rotator.model import (
    Abilities,
    ExpirySource,
    Identity,
    Issued,
    Strategy,
    UpstreamKey,
    marker_in,
)
from rotator.providers.expressions import Unfit
from rotator.providers.generic_reading import Asked, found, inactive, page, soft, text, words
from rotator.providers.generic_settings import CALLS, GenericPart, Result, Step, Steps
from rotator.providers.paging import Page
from rotator.providers.rest import LOOK_DEADLINE
from rotator.reasons import Reason
from rotator.templates import render
from rotator.timestamps import parse_timestamp

_log = structlog.get_logger(__name__)


class Calls(Protocol):
    """Asks one platform for one step."""

    @property
    def name(self) -> str:
        """The provider's name in the configuration."""
        ...

    @property
    def steps(self) -> Steps:
        """What is configured."""
        ...

    def deadline(self, total: timedelta) -> float:
        """When a call that begins now must have ended, in monotonic seconds."""
        ...

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
    ) -> Asked:
        """Ask, and say what the answer means.

        Args:
            values: what the names of the step's templates stand for.
            original: the answer of `get`.
            changes: whether the call changes what can't be done twice.
            hidden: what no message may repeat.

        Raises: Transient, Permanent, UnknownOutcome: no whole answer came, or nothing was sent.
        """
        ...

    def pages(
        self,
        step: Step,
        values: Mapping[str, str],
        read: Callable[[Asked], Page[Any]],
        *,
        operation: str,
        deadline: float,
    ) -> Mapping[str, Any]:
        """All entries of a list, by id; `read` makes them of one answer.

        Raises: Transient, Permanent.
        """
        ...

    def close(self) -> None:
        """Give back connections; never raises."""
        ...


class Platform:
    """What all strategies have in common. Thread safe.

    Args:
        calls: asks the platform.
        settings: the provider's section.
    """

    def __init__(self, calls: Calls, settings: GenericPart) -> None:
        self._calls = calls
        self._steps = calls.steps
        self._settings = settings
        self._look = max(LOOK_DEADLINE, settings.timeout)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._calls.name

    @property
    def strategy(self) -> Strategy:
        """As configured."""
        return self._settings.way

    @property
    def abilities(self) -> Abilities:
        """What is configured."""
        call: Step = getattr(self._steps, CALLS[self.strategy])
        dated = [step.result.expires_at for step in (call, self._steps.list) if step is not None]
        return Abilities(
            strategy=self.strategy,
            kills_old=self.strategy is not Strategy.REPLACE,
            expires=self._settings.lifetime is not None or any(each is not None for each in dated),
            lists=self._steps.list is not None,
            pauses=self._steps.deactivate is not None,
            deletes=self._steps.delete is not None,
            needs_current="current" in call.places(),
            evicts=self._steps.evict is not None,
            propagation=self._settings.propagation,
        )

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that one issue call may take, login and look at the original included."""
        return self._settings.issue_deadline

    def identity(self, id: str) -> Identity:
        """By the templates of `identity`."""
        names = self._settings.identity
        return Identity(
            id=id,
            username=render(names.username, {"id": id}),
            client_id=render(names.client_id, {"id": id}) if names.client_id is not None else None,
        )

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All keys that this login sees.

        Raises: Transient, Permanent (PROVIDER_UNABLE: no `list` is configured).
        """
        step = self._configured("list")
        keys = self._calls.pages(
            step,
            {},
            lambda asked: page(asked, step.result, self._upstream),
            operation="list_keys",
            deadline=self._calls.deadline(self._look),
        )
        return list(keys.values())

    def deactivate(self, identity: Identity) -> None:
        """Make a key useless. Inactive already, or gone, is success.

        Raises: Transient, Permanent (PROVIDER_UNABLE).
        """
        self._told("deactivate", who(identity))

    def reactivate(self, identity: Identity) -> None:
        """Take a deactivation back.

        Raises: Transient, Permanent (PROVIDER_UNABLE; KEY_UNKNOWN: it is gone).
        """
        if self._told("reactivate", who(identity)).absent:
            raise self._unknown_key("reactivate", identity.id)

    def delete(self, id: str) -> None:
        """Delete a key. Absent is success.

        Raises: Transient, Permanent (PROVIDER_UNABLE).
        """
        self._told("delete", {"id": id})

    def close(self) -> None:
        """Close the client; never raises."""
        self._calls.close()

    def _told(self, name: str, values: Mapping[str, str]) -> Asked:
        step, deadline = self._configured(name), self._calls.deadline(self._look)
        asked = self._calls.ask(step, values, operation=name, deadline=deadline)
        if asked.failure is not None and not asked.absent:
            raise asked.failure
        return asked

    def _configured(self, name: str) -> Step:
        step: Step | None = getattr(self._steps, name)
        if step is None:
            text = f"{self.name}: {name}: this platform's configuration has no `{name}`"
            raise Permanent(text, reason=Reason.PROVIDER_UNABLE)
        return step

    def _unknown_key(self, operation: str, id: str) -> Permanent:
        return Permanent(f"{self.name}: {operation}: no such key: {id}", reason=Reason.KEY_UNKNOWN)

    def _original(self, step: Step, identity: Identity, operation: str, deadline: float) -> Asked | None:
        """The key as the platform shows it, where `step` uses that.

        Raises: Transient, Permanent (KEY_UNKNOWN; KEY_INACTIVE where `get` shows that it lets nobody in).
        """
        get = self._steps.get
        if get is None or not (step.uses_original or get.result.active is not None):
            return None
        asked = self._calls.ask(get, who(identity), operation="get_key", deadline=deadline)
        if asked.absent:
            raise self._unknown_key(operation, identity.id)
        if asked.failure is not None:
            raise asked.failure
        if asked.value is None:
            # a body filled in from nothing would take away what the original has
            raise asked.reply.unreadable("the answer is no JSON that can be looked into")
        try:
            paused = inactive(get.result, asked.value)
        except Unfit as exc:
            raise asked.reply.unreadable(str(exc)) from None
        if paused:
            # a paused key stays paused: on many platforms a new secret would let it in again
            raise Permanent(f"{self.name}: {operation}: {identity.id} is inactive", reason=Reason.KEY_INACTIVE)
        return asked

    def _upstream(self, id: str, entry: object, result: Result) -> UpstreamKey:
        issued_at = parse_timestamp(found(result.issued_at, entry))
        expires_at, source = self._expiry(issued_at, found(result.expires_at, entry), None)
        name = words(result.name, entry)
        marked = name if result.marker_text is None else words(result.marker_text, entry)
        told = result.username is not None or result.client_id is not None
        return UpstreamKey(
            id=id,
            name=name,
            issued_at=issued_at,
            expires_at=expires_at,
            expiry_source=source,
            problem=Reason.KEY_INACTIVE if inactive(result, entry) else None,
            marker=marker_in(marked),
            identity=self._identity(id, result, entry) if told else None,
        )

    def _identity(self, id: str, result: Result, entry: object) -> Identity:
        usual = self.identity(id)
        return Identity(
            id=id,
            username=text(result.username, entry) or usual.username,
            client_id=text(result.client_id, entry) or usual.client_id,
        )

    def _expiry(
        self, issued_at: datetime | None, answered: object, secret: str | None
    ) -> tuple[datetime | None, ExpirySource | None]:
        """The earliest of what the answer, the JWT and the lifetime say; on a tie the one named first here."""
        ends: list[tuple[datetime, ExpirySource]] = []
        if (at := parse_timestamp(answered)) is not None:
            ends.append((at, ExpirySource.ANSWER))
        if secret is not None and (at := unverified_expiry(secret)) is not None:
            ends.append((at, ExpirySource.JWT))
        if issued_at is not None and self._settings.lifetime is not None:
            try:
                ends.append((issued_at + self._settings.lifetime, ExpirySource.LIFETIME))
            except OverflowError:
                _log.warning("the time of issue lies beyond all calendars", provider=self.name)
        return min(ends, key=lambda each: each[0]) if ends else (None, None)

    def _issued(self, identity: Callable[[Asked], Identity], asked: Asked, step: Step, id: str) -> Issued:
        """Read the one answer that holds the secret; its body goes to the journal where it can't be used."""
        reply, result = asked.reply, step.result
        try:
            value = found(result.secret, asked.value)
        except Unfit as exc:
            raise asked.failure or reply.bad(str(exc), Reason.PROVIDER_ANSWER_UNREADABLE) from None
        if not isinstance(value, str) or not value.strip():
            if asked.absent:
                raise self._unknown_key(reply.what.rpartition(" ")[2], id)
            if asked.failure is not None:
                raise asked.failure
        elif asked.failure is not None or asked.absent:
            # rule 1: an issued secret counts more than the error that came with it
            _log.warning("an issued secret beside an error", provider=self.name, status=reply.status)
        secret = reply.secret(value)
        issued_at = parse_timestamp(soft(result.issued_at, asked.value))
        expires_at, source = self._expiry(issued_at, soft(result.expires_at, asked.value), secret.reveal())
        return Issued(
            identity=identity(asked),
            secret=secret,
            issued_at=issued_at,
            expires_at=expires_at,
            expiry_source=source,
        )


def who(identity: Identity) -> Mapping[str, str]:
    """What a key's names stand for in templates."""
    return {"id": identity.id, "username": identity.username, "client_id": identity.client_id or ""}
