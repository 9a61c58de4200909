"""Expressions of the configuration: what is refused before anything runs, and what odd answers do to them."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rotator.providers.expressions import DEEPEST, MOST, Expression, Unfit, excess

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.sampled_from("abcd"), below, max_size=4),
    max_leaves=20,
)
USED = (
    "a.b", "a[0].b", "a[*].b | [0]", "a < b", "a == b", "!a && b", "length(a)", "sum(a)", "ceil(sum(a))", "sort(a)",
    "sort_by(a, &b)", "join(' ', [a, b])", "contains(a, 'x')", "max_by(a, &b)", "to_number(a)", "from_json(a).b", "a.*",
    "not_null(a, b, @)", "{x: a, y: b}", "merge(a, b)", "reverse(a)", "map(&b, a)", "a[::2]", "keys(a)", "to_string(@)",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("a[", "ends too early, at position 3"),
        ("a]", "`]` can't stand here, at position 2"),
        ("a.b c", "`c` can't stand here, at position 5"),
        ("a#", "at position 2"),
        ("'x", "at position 1"),
        ("a || nope(@)", "no function nope(), at position 6"),
        ("length()", "length() takes 1, not 0 arguments, at position 1"),
        ("length(a, b)", "length() takes 1, not 2"),
        ("not_null()", "at least 1, not 0"),
        ("a[?length() > `1`]", "length() takes 1"),
        ("!a.b", "write !(a.b)"),
        ("x && !a.b.c", "write !(a.b)"),
        ("&a", "`&` can only stand before an argument"),
        ("[&a]", "`&` can only stand before an argument"),
        ("a == `active`", "between backquotes is no JSON"),
        ("(" * 600 + "a" + ")" * 600, "nested too deeply"),
        ("a" * 2001, "longer than 2000"),
    ],
)
def test_what_can_not_work_is_refused_with_its_position(text: str, fault: str) -> None:
    """Grammar, functions, arguments: all found while the configuration is read."""
    with pytest.raises(ValueError, match=re.escape(fault)):
        Expression(text)


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        ("device.password || password", {"password": "x"}, "x"),
        ("not_null(items, @)", [1], [1]),
        ("not_null(items, @)", {"items": []}, []),
        ("from_json(a).b", {"a": '{"b": 3}'}, 3),
        ("from_json(a)", {"a": "no JSON"}, None),
        ("from_json(a)", {"a": "[" * 100_000}, None),
        ("a.b.c", {"a": "text"}, None),
        ("!(a.b) && c", {"a": {"b": None}, "c": True}, True),
        ("!a[0]", {"a": [0]}, False),
    ],
)
def test_what_is_found(text: str, value: object, found: object) -> None:
    """The standard's expressions, and the one function of ours."""
    assert found == Expression(text).find(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("length(a)", {"a": 12345}),
        ("a < b", {"a": 1, "b": "hunter2"}),
        ("ceil(sum(a))", {"a": [1e308, 1e308]}),
        ("sort(a)", {"a": [1, "hunter2"]}),
        ("join('', a)", {"a": [1, "hunter2"]}),
    ],
)
def test_an_answer_of_other_types_is_named_without_its_values(text: str, value: object) -> None:
    """The library's own words repeat the value, which may be a secret; and two of these are no errors of its own."""
    with pytest.raises(Unfit) as caught:
        Expression(text).find(value)
    assert f"the expression {text} does not fit the answer" == str(caught.value).partition(" (")[0]
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


@given(st.text(max_size=30) | st.text(alphabet="ab.[]*|&(){}'`\"?<=!@:,0-", max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_an_expression_or_a_fault(text: str) -> None:
    """Nothing but ValueError comes out of the parser."""
    with contextlib.suppress(ValueError):
        Expression(text)


@given(st.sampled_from(USED), VALUES)
@settings(max_examples=500, deadline=None)
def test_any_answer_is_found_in_or_does_not_fit(text: str, value: object) -> None:
    """Nothing but Unfit comes out of an evaluation."""
    with contextlib.suppress(Unfit):
        Expression(text).find(value)


def test_an_answer_has_a_depth_and_a_size() -> None:
    """As deep and as long as allowed is well; one more is not, and neither takes recursion to find out."""
    deep: object = 1
    for _ in range(DEEPEST - 1):
        deep = [deep]
    assert "" == excess(deep)
    assert "nested" in excess([deep])
    for _ in range(100_000):
        deep = {"a": deep}
    assert "nested" in excess(deep)
    assert "" == excess([0] * (MOST - 1))
    assert "values" in excess([0] * MOST)


@pytest.mark.parametrize(
    ("value", "true"), [(None, False), (False, False), ("", False), ([], False), (0, True), ("x", True)]
)
def test_truth_is_that_of_jmespath(value: object, true: bool) -> None:
    """Null, false and empty are not true; zero is."""
    assert true == Expression("a").holds({"a": value})
