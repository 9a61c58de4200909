"""Reading the answers of a configured platform: expressions in, texts and times out. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from rotator.errors import RotatorError
from rotator.providers.expressions import Expression, Unfit
from rotator.providers.generic_settings import Result
from rotator.providers.paging import Page
from rotator.providers.rest import Reply, is_text

T = TypeVar("T")

LONGEST_TEXT: Final = 1024  # characters of an id, a name or a username


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One answer, and what it means.

    Attributes:
        value: what expressions look into; None where the answer is none that they may.
        absent: the platform says that there is no such thing.
        failure: what to raise where it is no success.
    """

    reply: Reply
    value: Any = field(repr=False)
    absent: bool = False
    failure: RotatorError | None = None


def found(expression: Expression | None, value: object) -> Any:
    """What an expression finds; None where there is none.

    Raises: Unfit.
    """
    return None if expression is None else expression.find(value)


def text(expression: Expression | None, value: object) -> str | None:
    """The text that an expression finds; a whole number, as many ids are, counts as one.

    Raises: Unfit, where it finds something else than text or nothing.
    """
    one = found(expression, value)
    if one is None:
        return None
    if isinstance(one, int) and not isinstance(one, bool):
        one = str(one)
    if not is_text(one) or len(one) > LONGEST_TEXT:
        raise Unfit(f"the expression {expression.text if expression else ''} finds no text of a useful length")
    return str(one)


def words(expression: Expression | None, value: object) -> str:
    """What people call a key, or wrote beside it: of any length, and empty where it is no text."""
    one = soft(expression, value)
    return one.encode(errors="replace").decode() if isinstance(one, str) else ""


def soft(expression: Expression | None, value: object) -> Any:
    """As `found`; None where the answer does not fit: for what an issued secret must not be lost for."""
    try:
        return found(expression, value)
    except Unfit:
        return None


def soft_text(expression: Expression | None, value: object) -> str | None:
    """As `text`; None where the answer does not fit."""
    try:
        return text(expression, value)
    except Unfit:
        return None


def inactive(result: Result, value: object) -> bool:
    """Whether the platform says that the key lets nobody in; one that says nothing is not accused.

    Raises: Unfit.
    """
    one = found(result.active, value)
    return one is False or (isinstance(one, int) and one == 0)


def page(asked: Asked, result: Result, read: Callable[[str, Any, Result], T]) -> Page[T]:
    """One answer of a list.

    Raises: Transient PROVIDER_ANSWER_UNREADABLE where it is none; the answer's own failure.
    """
    if asked.failure is not None:
        raise asked.failure
    try:
        items = asked.value if result.items is None else found(result.items, asked.value)
        if not isinstance(items, list):
            raise Unfit("the answer holds no list")
        entries: dict[str, T] = {}
        for item in items:
            id = text(result.id, item)
            if id is None:
                raise Unfit("an entry has no id")
            entries[id] = read(id, item, result)
    except Unfit as exc:
        raise asked.reply.unreadable(str(exc)) from None
    return Page(reply=asked.reply, value=asked.value, entries=entries, count=len(items))
