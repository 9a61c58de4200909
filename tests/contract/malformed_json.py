"""JSON that nobody should send: odd values, valid JSON with something odd in it, and how both are written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import strategies as st

DEPTH: Final = 100_000
Way = tuple[int | str, ...]  # where a node stands: the keys and positions that lead to it
Json = Any  # what json.loads makes, with `Raw` and `Twice` anywhere in it


@dataclass(frozen=True, slots=True)
class Raw:
    """Written as it is: what `json.dumps` would not write."""

    text: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Twice:
    """The value of a key that stands twice in its object: first with `first`, then with `second`."""

    first: Json
    second: Json


def nested(opening: bytes, closing: bytes, depth: int, inner: bytes = b"1") -> bytes:
    """`inner`, so many levels deep."""
    return opening * depth + inner + closing * depth


# What a node of an answer is replaced by.
ODD: Final[Sequence[Json]] = (
    None, True, False, 0, -1, 1, 1.5, 1e308, 5e-324, 2**63, 10**22,
    Raw(b"1e400"), Raw(b"-1e400"), Raw(b"9" * 400), Raw(b"-" + b"9" * 400), Raw(b"9" * 5000),
    Raw(b"NaN"), Raw(b"Infinity"), Raw(b"-Infinity"),
    "", " ", "\x00", "\r\nX-Odd: 1", "..", "/", "http://[::1", "//elsewhere.example/x", "%zz", "ä ß €", "\u2028",
    "x" * 70_000,
    Raw(b'"\\ud800"'), Raw(b'"a-\\udfff-z"'), Raw(b'"\xff\xfe"'), Raw(b'"\xed\xa0\x80"'), Raw(b'"unfinished'),
    "9999-12-31T23:59:59.999999-14:00", "0001-01-01T00:00:00+14:00", "2026-13-45", "1e400", "9" * 400, "-1", "NaN",
    "eyJ.e30.x", "a.eyJleHAiOiA5OTk5OTk5OTk5OTk5OTk5OTk5OX0.c", "a.eyJleHAiOjFlNDAwfQ.c",
    [], {}, [[]], [None], [{}], {"": None}, {"id": None}, ["a", 1, None], {"message": {"message": []}},
    Raw(nested(b"[", b"]", 90)), Raw(nested(b'{"a":', b"}", 400)), Raw(nested(b"[", b"]", DEPTH)),
    Raw(nested(b'{"a":', b"}", DEPTH)), Raw(b"," + b"x"), Raw(b""),
)  # fmt: skip

# Whole bodies, each sent in the place of each answer.
BODIES: Final[Mapping[str, bytes]] = {
    "empty": b"",
    "blank": b" \r\n",
    "null": b"null",
    "true": b"true",
    "number": b"7",
    "text": b'"text"',
    "huge_float": b"1e400",
    "huge_integer": b"9" * 400,
    "longer_integer": b"9" * 5000,
    "nan": b"NaN",
    "list": b"[]",
    "list_of_nulls": b"[null, null]",
    "object": b"{}",
    "nulls": b'{"data": null, "errors": null, "items": null, "keys": null, "devices": null, "total": null}',
    "errors_of_all_shapes": b'{"errors": [null, 1, "x", [], {"message": 1e400, "extensions": {"code": [1]}}]}',
    "error_of_all_shapes": b'{"error": {"message": ["a", {"b": null}], "code": NaN}, "detail": [[[]]], "message": 7}',
    "deep_lists": nested(b"[", b"]", DEPTH),
    "deep_objects": nested(b'{"data":', b"}", DEPTH, b"null"),
    "deep_and_open": b"[" * DEPTH,
    "deep_enough_to_parse": nested(b'{"error":', b"}", 900, b'"x"'),
    "invalid_utf8": b"\xff\xfe\x00",
    "invalid_utf8_inside": b'{"data": "\xc3\x28", "id": "\xff"}',
    "utf16": '{"id": "ä"}'.encode("utf-16"),
    "surrogate": b'"\\ud800"',
    "surrogates": b'{"message": "\\ud800", "error": "\\udfff", "errors": [{"message": "\\udc80", "code": "\\ud800"}]}',
    "html": b"<!doctype html><title>Sign in</title>",
    "truncated": b'{"data": {"id": "',
    "two_values": b"{} {}",
    "gzip": gzip.compress(b"{}"),
}


def ways(node: Json, at: Way = ()) -> Iterator[Way]:
    """The way to each node, the root's (nothing) first."""
    yield at
    if isinstance(node, dict):
        for key, value in node.items():
            yield from ways(value, (*at, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from ways(value, (*at, number))


def at(node: Json, way: Way) -> Json:
    """The node that a way leads to."""
    for step in way:
        node = node[step]
    return node


def changed(node: Json, way: Way, change: Callable[[Json], Json]) -> Json:
    """A copy in which the node at `way` is what `change` makes of it; `Gone` takes it away."""
    if not way:
        return change(node)
    step, rest = way[0], way[1:]
    value = changed(node[step], rest, change)
    if isinstance(node, dict):
        return {**node, step: value} if value is not Gone else {key: node[key] for key in node if key != step}
    return [*node[:step], *([] if value is Gone else [value]), *node[int(step) + 1 :]]


class Gone:
    """Instead of a value: nothing, not even null."""


def written(node: Json) -> bytes:
    """The bytes of a tree."""
    match node:
        case Raw(text):
            return text
        case dict():
            return b"{" + b", ".join(_members(node)) + b"}"
        case list():
            return b"[" + b", ".join(written(each) for each in node) + b"]"
        case Twice(_, second):  # as a root or in a list, where no key stands twice
            return written(second)
    return json.dumps(node).encode() if node is not Gone else b""


def _members(node: dict[str, Json]) -> Iterator[bytes]:
    for key, value in node.items():
        for each in (value.first, value.second) if isinstance(value, Twice) else (value,):
            yield json.dumps(key).encode() + b": " + written(each)


def _doubled(value: Json) -> Json:
    return [*value, *value] if isinstance(value, list) else [value, value]


# What becomes of a node, given something odd and another node of the same answer.
CHANGES: Final[Sequence[Callable[[Json, Json], Callable[[Json], Json]]]] = (
    lambda odd, _: lambda _: odd,
    lambda _, __: lambda _: Gone,
    lambda odd, _: lambda value: Twice(value, odd),
    lambda odd, _: lambda value: Twice(odd, value),
    lambda _, __: lambda value: [value],
    lambda _, __: lambda value: {"data": value},
    lambda _, __: _doubled,
    lambda _, other: lambda _: other,
)


@st.composite
def mutations(draw: st.DrawFn, body: bytes) -> bytes:
    """A valid JSON body in which one to three nodes were replaced, removed, doubled, wrapped, or put elsewhere."""
    tree = json.loads(body)
    for _ in range(draw(st.integers(1, 3))):
        every = [way for way in ways(tree) if not isinstance(at(tree, way), Raw | Twice)]
        if not every or tree is Gone:
            break
        way = draw(st.sampled_from(every))
        odd, other = draw(st.sampled_from(ODD)), at(tree, draw(st.sampled_from(every)))
        tree = changed(tree, way, draw(st.sampled_from(CHANGES))(odd, other))
    return written(tree)


ANY_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.sampled_from(ODD),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "data",
                    "items",
                    "keys",
                    "devices",
                    "users",
                    "error",
                    "errors",
                    "message",
                    "id",
                    "token",
                    "key",
                    "secret",
                ]
            )
            | st.text(max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
).map(written)
