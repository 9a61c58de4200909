"""Bodies of requests as the configuration writes them: a YAML tree with templates in its strings.

    {"$from": EXPR}            what the expression finds in the original (the answer of `get`), as it is. It must find
                               something, since a field that is not sent is on many platforms one that is reset; with
                               `$optional: true` beside it, the field is left out where it finds nothing
    {"$from": EXPR, a: …}      the object that it finds, with these fields laid over it
    {"$json": TREE}            the tree written as one text of JSON

A template always makes text, so `"{number}"` stays a string; all other values are sent as YAML reads them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from rotator.config_types import wrong
from rotator.providers.expressions import Expression, Unfit
from rotator.templates import render

FROM: Final = "$from"
JSON: Final = "$json"
OPTIONAL: Final = "$optional"
WORDS: Final = (FROM, JSON, OPTIONAL)
DEEPEST: Final = 32  # levels of a body
HINT: Final = 'a mapping of names to values, such as {password: "{secret}"}'

Json = Any  # what `json.dumps` takes


@dataclass(frozen=True, slots=True)
class _From:
    expression: Expression
    over: Mapping[str, object]
    optional: bool


@dataclass(frozen=True, slots=True)
class _AsText:
    tree: object


class _Nothing:
    """Stands where an expression found nothing."""


@dataclass(frozen=True, slots=True)
class Body:
    """A tree that was checked; `written` is it as YAML gave it."""

    written: object
    tree: object

    def filled(self, values: Mapping[str, str], original: object = None) -> Json:
        """The JSON to send.

        Args:
            values: what the templates' names stand for.
            original: the parsed answer of `get`.

        Raises: Unfit, where an expression does not apply to the original.
        """
        found = _fill(self.tree, values, original)
        return None if isinstance(found, _Nothing) else found

    def templates(self) -> Iterator[str]:
        """All strings."""
        return _strings(self.tree)

    @property
    def reads_original(self) -> bool:
        """Whether there is a `$from` anywhere."""
        return _reads(self.tree)


def _fill(tree: object, values: Mapping[str, str], original: object) -> Json | _Nothing:
    match tree:
        case str():
            return render(tree, values)
        case list():
            filled = [_fill(each, values, original) for each in tree]
            return [each for each in filled if not isinstance(each, _Nothing)]
        case dict():
            return _object(tree, values, original)
        case _AsText(tree=inner):
            found = _fill(inner, values, original)
            return json.dumps(None if isinstance(found, _Nothing) else found, ensure_ascii=False)
        case _From(expression=expression, over=over, optional=optional):
            found = expression.find(original)
            if found is None and optional:
                return _Nothing()
            if found is None:
                raise Unfit(f"the expression {expression.text} finds nothing in the original")
            if not over:
                return found
            if not isinstance(found, dict):
                raise Unfit(f"the expression {expression.text} finds no object in the original")
            return {**found, **_object(over, values, original)}
        case _:
            return tree


def _object(tree: Mapping[str, object], values: Mapping[str, str], original: object) -> dict[str, Json]:
    filled = {name: _fill(each, values, original) for name, each in tree.items()}
    return {name: each for name, each in filled.items() if not isinstance(each, _Nothing)}


def _strings(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    for each in _below(tree):
        yield from _strings(each)


def _reads(tree: object) -> bool:
    return isinstance(tree, _From) or any(_reads(each) for each in _below(tree))


def _below(tree: object) -> Collection[object]:
    match tree:
        case list():
            return tree
        case dict():
            return tree.values()
        case _From(over=over):
            return over.values()
        case _AsText(tree=inner):
            return [inner]
        case _:
            return ()


class _Wrong(Exception):
    def __init__(self, top: str, text: str) -> None:
        super().__init__(text)
        self.top, self.text = top, text


def _compile(tree: object, top: str, depth: int = 0) -> object:
    if depth > DEEPEST:
        raise _Wrong(top, f"is nested more than {DEEPEST} levels deep")
    match tree:
        case None | bool() | int() | str():
            return tree
        case float() if math.isfinite(tree):
            return tree
        case list():
            return [_compile(each, top, depth + 1) for each in tree]
        case dict():
            return _compile_mapping(tree, top, depth)
        case _:
            raise _Wrong(top, "holds a value that JSON has no word for; put it in quotes")


def _compile_mapping(tree: Mapping[object, object], top: str, depth: int) -> object:
    fields = {
        str(name): _compile(each, top or str(name), depth + 1) for name, each in tree.items() if name not in WORDS
    }
    if not isinstance(tree.get(OPTIONAL, False), bool):
        raise _Wrong(top or OPTIONAL, f"{OPTIONAL} is true or false, without quotes")
    if FROM in tree:
        try:
            return _From(Expression(str(tree[FROM])), fields, tree.get(OPTIONAL) is True)
        except ValueError as exc:
            raise _Wrong(top or FROM, f"{FROM}: {exc}") from exc
    if OPTIONAL in tree:
        raise _Wrong(top or OPTIONAL, f"{OPTIONAL} belongs to {FROM}")
    if JSON in tree:
        if fields:
            raise _Wrong(top or JSON, f"nothing can stand beside {JSON}")
        return _AsText(_compile(tree[JSON], top or JSON, depth + 1))
    return fields


def _checked(value: object) -> Body:
    if isinstance(value, Body):
        return value
    if not isinstance(value, dict | list):
        raise wrong("must be a mapping or a list", HINT)
    try:
        return Body(value, _compile(value, ""))
    except _Wrong as exc:
        raise wrong(exc.text, HINT, at=exc.top if exc.top in value else None) from exc


BodyTree = Annotated[
    Body,
    PlainValidator(_checked),
    PlainSerializer(lambda body: body.written),
    WithJsonSchema({"type": ["object", "array"]}),
]
