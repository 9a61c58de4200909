"""Lists that come page by page, and that keys are made in and deleted from while they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from rotator.config_base import Part
from rotator.config_types import Count, Text, wrong
from rotator.errors import Transient
from rotator.providers.expressions import Expr, Unfit
from rotator.providers.rest import Reply
from rotator.reasons import Reason

T = TypeVar("T")

LISTINGS: Final = 4  # times that a list is read which changes while it is read


class Paging(Part):
    """How the next page is asked for, and how the last one is known.

    `page` and `offset` count, from `first` on, in the parameter `param`; `cursor` hands on what `next` finds, and
    `link` goes to the URL that it finds. A counted list ends where `next` finds nothing true, else at `total`, else
    with a page of fewer than `size` entries.
    """

    kind: Literal["page", "offset", "cursor", "link"]
    param: Text | None = None
    size_param: Text | None = None
    size: Count | None = None
    first: int | None = Field(default=None, ge=0)
    next: Expr | None = None
    total: Expr | None = None

    @model_validator(mode="after")
    def _can_end(self) -> Paging:
        if self.kind != "link" and self.param is None:
            raise wrong(f"paging by {self.kind} needs `param`", "the parameter that names the page")
        if self.kind in ("cursor", "link") and self.next is None:
            raise wrong(f"paging by {self.kind} needs `next`", "the expression that finds the next page")
        if self.next is None and self.total is None and self.size is None:
            raise wrong("nothing says where the list ends", "name one of next, total and size")
        if self.size_param is not None and self.size is None:
            raise wrong("`size_param` needs `size`", "such as 100", at="size_param")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """One answer's entries, by id; `count` counts those that come twice as well."""

    reply: Reply
    value: Any = field(repr=False)
    entries: Mapping[str, T]
    count: int


# Asks for one page: the parameters that say which, and the link to it where there is one.
Ask = Callable[[Mapping[str, str], str | None], Page[T]]


def read_pages(paging: Paging | None, ask: Ask[T]) -> Mapping[str, T]:
    """All entries, each once.

    A page that is counted out moves when keys are made or deleted meanwhile, so a list of several pages is only
    believed where the platform's total agrees with what was read, or where two readings of it agree.

    Raises:
        Transient: PROVIDER_ANSWER_UNREADABLE for a list that can't be one, PROVIDER_UNAVAILABLE for one that did not
            hold still; and what `ask` raises.
    """
    if paging is None:
        return ask({}, None).entries
    if paging.kind in ("cursor", "link"):
        return _followed(paging, ask)
    before: frozenset[str] | None = None
    for _ in range(LISTINGS):
        reading = _counted(paging, ask)
        if reading.held_still(before):
            return reading.entries
        before = frozenset(reading.entries)
    text = f"{reading.what}: keys came and went while they were listed"
    raise Transient(text, reason=Reason.PROVIDER_UNAVAILABLE)


@dataclass(slots=True)
class _Reading(Generic[T]):
    """One time through all pages."""

    entries: dict[str, T] = field(default_factory=dict)
    totals: set[int] = field(default_factory=set)
    pages: int = 0
    count: int = 0
    what: str = ""

    def take(self, page: Page[T]) -> None:
        self.entries.update(page.entries)
        self.pages += 1
        self.count += page.count
        self.what = page.reply.what

    def held_still(self, before: frozenset[str] | None) -> bool:
        if self.totals:
            return self.totals == {len(self.entries)}
        return self.pages == 1 or before == self.entries.keys()


def _counted(paging: Paging, ask: Ask[T]) -> _Reading[T]:
    reading = _Reading[T]()
    number = paging.first if paging.first is not None else int(paging.kind == "page")
    while True:
        page, known = ask({str(paging.param): str(number), **_size(paging)}, None), len(reading.entries)
        reading.take(page)
        total = _total(paging, page)
        if total is not None:
            reading.totals.add(total)
        if not _more(paging, page, reading, total):
            return reading
        if not page.count:
            raise page.reply.unreadable(f"the list ends after {reading.count} entries, and says that there are more")
        if len(reading.entries) == known:
            # else a platform that always says "more", or that does not know `param`, is asked until the deadline
            raise page.reply.unreadable("a page of the list shows what was read already, and says that there is more")
        number += 1 if paging.kind == "page" else page.count


def _followed(paging: Paging, ask: Ask[T]) -> Mapping[str, T]:
    reading = _Reading[T]()
    seen: set[str] = set()
    at: str | None = None
    while True:
        by_link = paging.kind == "link" and at is not None
        params = _size(paging) if at is None or by_link else {str(paging.param): at, **_size(paging)}
        page = ask({} if by_link else params, at if by_link else None)
        reading.take(page)
        found = _find(paging.next, page)
        if found is None or found is False or found == "":
            return reading.entries
        if not isinstance(found, str | int) or isinstance(found, bool):
            raise page.reply.unreadable("what leads to the next page is no text")
        at = str(found)
        if at in seen:
            raise page.reply.unreadable("the pages of the list lead back to one that was read already")
        seen.add(at)


def _size(paging: Paging) -> Mapping[str, str]:
    return {paging.size_param: str(paging.size)} if paging.size_param is not None else {}


def _more(paging: Paging, page: Page[T], reading: _Reading[T], total: int | None) -> bool:
    if paging.next is not None:
        try:
            return paging.next.holds(page.value)
        except Unfit as exc:
            raise page.reply.unreadable(str(exc)) from None
    if total is not None:
        return reading.count < total
    return page.count >= (paging.size or 1)


def _total(paging: Paging, page: Page[T]) -> int | None:
    if paging.total is None:
        return None
    found = _find(paging.total, page)
    if not isinstance(found, int) or isinstance(found, bool):
        raise page.reply.unreadable("the list's total is no number")
    return found


def _find(expression: Expr | None, page: Page[T]) -> Any:
    if expression is None:
        return None
    try:
        return expression.find(page.value)
    except Unfit as exc:
        raise page.reply.unreadable(str(exc)) from None
