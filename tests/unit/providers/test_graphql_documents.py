"""GraphQL documents without a schema: what they declare, and what every schema would refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from graphql import parse
from graphql.error import GraphQLSyntaxError
from hypothesis import given, settings
from hypothesis import strategies as st

from rotator.providers.graphql_documents import read_document

EXAMPLE = Path(__file__).parents[3] / "config" / "examples" / "haltian-graphql.yaml"
REFRESH = "mutation Refresh($id: uuid!, $n: [Int!] = [1], $x: In) { a(b: {c: $id, d: $n}, e: $x) { token } }"


@pytest.mark.parametrize(
    ("document", "kind", "variables"),
    [
        ("{ keys { id } }", "query", {}),
        ("query { keys { id } }", "query", {}),
        ("query Keys { keys { id } }", "query", {}),
        (REFRESH, "mutation", {"id": True, "n": False, "x": False}),
        ('query Q($a: In! = {x: ")", y: """ } """}) { keys(a: $a) { id } }', "query", {"a": False}),
        ("query query { query }", "query", {}),
        ("fragment F on K { id } { ...F }", "query", {}),
        ("query Q { ...F } fragment F on Key { id # } ) $no\n }", "query", {}),
        ('{ a(b: "$no {{ \\" ") { c } }', "query", {}),
        ("query Q @live { a(n: -1.5e3, l: [1, 2]) @include(if: true) { b } }", "query", {}),
    ],
)
def test_what_a_document_declares(document: str, kind: str, variables: dict[str, bool]) -> None:
    """graphql-core takes each of them too."""
    found = read_document(document)
    assert (kind, variables) == (found.kind, found.variables)
    parse(document)


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ("", "no operation"),
        ("keys { id }", "`keys` begins no operation, at line 1, column 1"),
        ("{ a } b", "`b` begins no operation, at line 1, column 7"),
        ("fragment F on Key { id }", "no operation"),
        ("{ keys { id }", "`{` is never closed, at line 1, column 1"),
        ("query {\n  keys(a: 1 { id }\n}", "`}` closes nothing"),
        ("query {\n  keys } }", "`}` closes nothing, at line 2, column 10"),
        ("query { a ? }", "'?' can't stand here, at line 1, column 11"),
        ('query { a(b: "open) }', "can't stand here, at line 1, column 14"),
        ("query A { a } query B { b }", "second operation, at line 1, column 15"),
        ("subscription { a }", "a subscription"),
        ("query { a(id: $id) }", "$id is not declared, at line 1, column 15"),
        ("query Q($id) { a(id: $id) }", "declared like"),
    ],
)
def test_what_is_refused_with_its_place(document: str, fault: str) -> None:
    """Brackets, strings, operations, variables: with line and column."""
    with pytest.raises(ValueError, match=re.escape(fault)):
        read_document(document)


def documents(tree: Any) -> list[str]:
    """All documents of a configuration."""
    if isinstance(tree, dict):
        own = [tree["document"]] if "document" in tree else []
        return own + [each for below in tree.values() for each in documents(below)]
    return []


def test_the_example_s_documents_are_graphql() -> None:
    """By graphql-core's parser; that they fit the schema is shown by the contract tests."""
    found = documents(yaml.safe_load(EXAMPLE.read_text()))
    assert 5 == len(found)
    for document in found:
        read_document(document)
        parse(document)


@given(st.text(alphabet='{}()[]$:!="# \\\nabq...,1', max_size=40) | st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_document_or_a_fault(text: str) -> None:
    """Nothing but ValueError; and brackets that are refused here, graphql-core refuses too."""
    fault = ""
    try:
        read_document(text)
    except ValueError as exc:
        fault = str(exc)
    if "closes nothing" in fault or "never closed" in fault:
        with pytest.raises(GraphQLSyntaxError):
            parse(text)
