"""Pages: how each kind ends, and lists that change while they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from rotator.errors import Transient
from rotator.providers.paging import LISTINGS, Page, Paging, read_pages
from rotator.providers.rest import Reply
from rotator.reasons import Reason


class Rows:
    """A platform's rows, served by number; `between` is called before each page but the first."""

    def __init__(self, count: int, *, most: int = 100, between: Callable[[Rows], None] = lambda rows: None) -> None:
        self.rows = [f"k{number:03}" for number in range(count)]
        self.asked: list[Mapping[str, str]] = []
        self._most, self._between = most, between

    def ask(self, params: Mapping[str, str], link: str | None) -> Page[str]:
        """One page by `page` (from 1), `offset`, `cursor` or a link that ends in a number."""
        if self.asked:
            self._between(self)
        self.asked.append(params)
        size = min(int(params.get("size", self._most)), self._most)
        at = int(params.get("offset", params.get("cursor", (link or "0").rpartition("=")[2])))
        if "page" in params:
            at = (int(params["page"]) - 1) * size
        shown = self.rows[at : at + size]
        more = at + size < len(self.rows)
        value: dict[str, Any] = {
            "more": more,
            "total": len(self.rows),
            "next": str(at + size) if more else None,
            "link": f"/keys?at={at + size}" if more else None,
        }
        reply = Reply(what="p: list", status=200, body=b"", value=value)
        return Page(reply=reply, value=value, entries={row: row for row in shown}, count=len(shown))


KINDS: list[dict[str, Any]] = [
    {"kind": "page", "param": "page", "size_param": "size", "size": 10},
    {"kind": "page", "param": "page", "size_param": "size", "size": 10, "next": "more"},
    {"kind": "page", "param": "page", "size_param": "size", "size": 10, "total": "total"},
    {"kind": "page", "param": "page", "size_param": "size", "size": 10, "next": "more", "total": "total"},
    {"kind": "offset", "param": "offset", "size_param": "size", "size": 10},
    {"kind": "offset", "param": "offset", "next": "more"},
    {"kind": "offset", "param": "offset", "total": "total"},
    {"kind": "cursor", "param": "cursor", "next": "next"},
    {"kind": "cursor", "param": "cursor", "size_param": "size", "size": 10, "next": "next"},
    {"kind": "link", "next": "link"},
]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 30])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_all_rows_are_read_once(kind: dict[str, Any], count: int) -> None:
    """No row too few, at every edge of a page."""
    rows = Rows(count, most=10)
    assert rows.rows == sorted(read_pages(Paging(**kind), rows.ask))
    assert len(rows.asked) <= 2 * (count // 10 + 1)


def test_a_smaller_page_than_asked_for_is_no_end() -> None:
    """Where the platform says that there are more, or how many there are."""
    for ends in ({"next": "more"}, {"total": "total"}):
        rows = Rows(25, most=7)
        paging = Paging.model_validate({"kind": "offset", "param": "offset", "size_param": "size", "size": 10, **ends})
        assert 25 == len(read_pages(paging, rows.ask))


@pytest.mark.parametrize("ends", [{}, {"total": "total"}, {"next": "more", "total": "total"}])
def test_keys_that_come_and_go_meanwhile_hide_no_other(ends: dict[str, str]) -> None:
    """Rows move over the edge of a page; the list is read again, and what stayed is there."""

    def strike(rows: Rows) -> None:
        if len(rows.asked) == 1:
            del rows.rows[0]  # row 10 moves to a page that was read already
        if len(rows.asked) == 2:
            rows.rows.insert(0, "new")

    rows = Rows(30, between=strike)
    paging = Paging.model_validate({"kind": "page", "param": "page", "size_param": "size", "size": 10, **ends})
    assert {"new", *(f"k{number:03}" for number in range(1, 30))} == set(read_pages(paging, rows.ask))


def test_a_list_that_never_holds_still_is_not_believed() -> None:
    """Transient, after a bounded number of readings."""
    rows = Rows(30, between=lambda rows: rows.rows.insert(0, f"new{len(rows.asked)}"))
    with pytest.raises(Transient, match="came and went") as caught:
        read_pages(Paging(kind="page", param="page", size_param="size", size=10), rows.ask)
    assert Reason.PROVIDER_UNAVAILABLE is caught.value.reason
    assert len(rows.asked) < LISTINGS * 10


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ({"kind": "page", "param": "page", "next": "more"}, {"more": True}, "ends after 0 entries"),
        ({"kind": "page", "param": "page", "total": "total"}, {"total": "many"}, "total is no number"),
        ({"kind": "page", "param": "page", "total": "total"}, {"total": True}, "total is no number"),
        ({"kind": "page", "param": "page", "next": "length(more)"}, {"more": 1}, "does not fit"),
        ({"kind": "cursor", "param": "cursor", "next": "next"}, {"next": "0"}, "lead back"),
        ({"kind": "cursor", "param": "cursor", "next": "next"}, {"next": [1]}, "no text"),
        ({"kind": "link", "next": "link"}, {"link": {"href": 1}}, "no text"),
    ],
)
def test_pages_that_can_not_be_are_named(kind: dict[str, Any], change: dict[str, object], problem: str) -> None:
    """A list without an end, or without sense, is unreadable and not read for ever."""

    def ask(params: Mapping[str, str], link: str | None) -> Page[str]:
        page = Rows(0).ask({}, None)
        page.value.update(change)
        return page

    with pytest.raises(Transient, match=problem) as caught:
        read_pages(Paging(**kind), ask)
    assert Reason.PROVIDER_ANSWER_UNREADABLE is caught.value.reason


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ({"kind": "page", "size": 1}, "needs `param`"),
        ({"kind": "cursor", "param": "c", "size": 1}, "needs `next`"),
        ({"kind": "link", "size": 1}, "needs `next`"),
        ({"kind": "page", "param": "p"}, "where the list ends"),
        ({"kind": "page", "param": "p", "total": "t", "size_param": "s"}, "needs `size`"),
    ],
)
def test_paging_that_could_not_end_is_refused(kind: dict[str, Any], fault: str) -> None:
    """While the configuration is read."""
    with pytest.raises(ValidationError) as caught:
        Paging(**kind)
    assert fault in caught.value.errors()[0]["ctx"]["text"]
