"""Bodies with templates: what is sent, and what is refused."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rotator.providers.bodies import Body, BodyTree
from rotator.providers.expressions import Unfit

ADAPTER: TypeAdapter[Body] = TypeAdapter(BodyTree)
ORIGINAL: dict[str, Any] = {"flag": False, "n": 3, "list": [1, {"a": None}], "text": '{"user": "u"}', "null": None}


def filled(tree: object, **values: str) -> Any:
    """What is sent for a tree as YAML gives it."""
    return ADAPTER.validate_python(tree).filled(values, ORIGINAL)


@pytest.mark.parametrize(
    ("tree", "sent"),
    [
        ({"a": "{number}"}, {"a": "12"}),
        ({"a": 12, "b": True, "c": None, "d": 1.5}, {"a": 12, "b": True, "c": None, "d": 1.5}),
        ({"a": "{{{x}}}"}, {"a": '{q"}'}),
        (["{number}", {"b": ["{x}"]}], ["12", {"b": ['q"']}]),
        ({"a": {"$from": "flag"}}, {"a": False}),
        ({"a": {"$from": "list"}, "b": {"$from": "n"}}, {"a": [1, {"a": None}], "b": 3}),
        ({"a": {"$from": "missing", "$optional": True}, "b": 1}, {"b": 1}),
        ({"a": {"$from": "n", "$optional": True}}, {"a": 3}),
        ({"a": [{"$from": "null", "$optional": True}, 1]}, {"a": [1]}),
        ({"$from": "@", "n": "{number}", "flag": {"$from": "x", "$optional": True}}, {**ORIGINAL, "n": "12"}),
        ({"a": {"$json": {"x": "{x}", "n": {"$from": "n"}}}}, {"a": '{"x": "q\\"", "n": 3}'}),
        (
            {"a": {"$json": {"$from": "from_json(text)", "password": "{x}"}}},
            {"a": '{"user": "u", "password": "q\\""}'},
        ),
        ({"$from": "missing", "$optional": True}, None),
        ({"a": {"$json": {"$from": "missing", "$optional": True}}}, {"a": "null"}),
    ],
)
def test_what_is_sent(tree: object, sent: object) -> None:
    """Templates make text; `$from` hands on whole JSON; `$json` quotes as JSON does."""
    assert sent == filled(tree, number="12", x='q"')


def test_the_original_stays_as_it_is() -> None:
    """What is laid over the original is laid over a copy."""
    before = repr(ORIGINAL)
    filled({"$from": "@", "n": 1})
    assert before == repr(ORIGINAL)


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"a": {"$from": "n", "b": 1}}, "the expression n finds no object in the original"),
        ({"a": {"$from": "missing", "b": 1}}, "the expression missing finds nothing in the original"),
        ({"a": {"$from": "null"}}, "the expression null finds nothing in the original"),
        ({"a": {"$json": {"$from": "missing", "$optional": False}}}, "finds nothing"),
    ],
)
def test_what_is_not_there_is_not_silently_left_out(tree: object, problem: str) -> None:
    """A field that is not sent is one that is reset; and fields are laid over objects only."""
    with pytest.raises(Unfit) as caught:
        filled(tree)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        ("text", "must be a mapping or a list"),
        ({"a": dt.date(2026, 1, 1)}, "put it in quotes"),
        ({"a": float("nan")}, "put it in quotes"),
        ({"a": {"$from": "x["}}, "$from: is no JMESPath: it ends too early, at position 3"),
        ({"a": {"$json": 1, "b": 2}}, "nothing can stand beside $json"),
        ({"a": {"$optional": True}}, "$optional belongs to $from"),
        ({"a": {"$from": "n", "$optional": "true"}}, "true or false"),
    ],
)
def test_what_is_no_body(tree: object, fault: str) -> None:
    """What JSON has no word for, and faulty expressions; the fault names the field at the top."""
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(tree)
    (error,) = caught.value.errors()
    assert fault in error["ctx"]["text"]
    assert error["ctx"]["at"] == ("a" if isinstance(tree, dict) else "")


def test_a_tree_has_an_end() -> None:
    """Deeper than any body, as an anchor of YAML could make it."""
    tree: object = "x"
    for _ in range(50):
        tree = [tree]
    with pytest.raises(ValidationError, match="nested"):
        ADAPTER.validate_python(tree)


@pytest.mark.parametrize(
    ("tree", "strings", "reads"),
    [
        ({"a": "x", "b": ["y", {"c": "z"}], "d": 1}, {"x", "y", "z"}, False),
        ({"a": {"$json": {"b": "x", "c": {"$from": "n"}}}}, {"x"}, True),
        ({"$from": "@", "a": "x"}, {"x"}, True),
    ],
)
def test_templates_are_found_wherever_they_stand(tree: object, strings: set[str], reads: bool) -> None:
    """Those inside `$json` and beside `$from` as well, and whether the original is needed."""
    body = ADAPTER.validate_python(tree)
    assert (strings, reads) == (set(body.templates()), body.reads_original)
