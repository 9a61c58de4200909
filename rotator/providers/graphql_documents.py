"""GraphQL documents of the configuration, checked as far as that goes without the platform's schema. Pure.

Only what every schema would refuse is a fault: characters and brackets out of place, several operations, variables
that are used and not declared. The grammar is the GraphQL specification's (October 2021), section 2, less what
documents of one operation don't need.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_TOKEN: Final = re.compile(
    r"(?P<blank>[\s,\ufeff]+|#[^\n\r]*)"
    r'|(?P<text>"""(?:[^"\\]|\\.|"(?!""))*"""|"(?:[^"\\\n\r]|\\.)*")'
    r"|(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[_A-Za-z][_0-9A-Za-z]*)"
    r"|(?P<sign>\.\.\.|[!$&():=@\[\]{|}])",
    re.DOTALL,
)
_CLOSES: Final = {")": "(", "]": "[", "}": "{"}
_OPERATIONS: Final = ("query", "mutation", "subscription")


@dataclass(frozen=True, slots=True)
class Operation:
    """What a document asks for: `query` or `mutation`, and its variables (name → whether one must be given)."""

    kind: str
    variables: dict[str, bool]


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    depth: int  # of brackets around it


def read_document(document: str) -> Operation:
    """The one operation of a document.

    Raises: ValueError, with line and column of what is wrong.
    """
    tokens = list(_tokens(document))
    heads = list(_heads(document, tokens))
    if not heads:
        raise ValueError("holds no operation; it begins like `query List { … }` or `mutation Issue($id: ID!) { … }`")
    if len(heads) > 1:
        raise _fault(document, heads[1].start, "holds a second operation")
    head = heads[0]
    if head.text == "subscription":
        raise _fault(document, head.start, "a subscription can't be asked over one request")
    declared, rest = _declared(document, tokens, tokens.index(head))
    for number, token in enumerate(rest):
        if token.text == "$" and number + 1 < len(rest) and rest[number + 1].text not in declared:
            raise _fault(document, token.start, f"${rest[number + 1].text} is not declared")
    return Operation("query" if head.text == "{" else head.text, declared)


def _heads(document: str, tokens: Sequence[_Token]) -> Iterator[_Token]:
    """The tokens that operations begin with."""
    outside = True
    for token in tokens:
        if token.depth:
            continue
        if not outside:
            outside = token.text == "}"
        elif token.text in (*_OPERATIONS, "{"):
            outside = False
            yield token
        elif token.text == "fragment":
            outside = False
        else:
            raise _fault(document, token.start, f"`{token.text}` begins no operation")


def _tokens(document: str) -> Iterator[_Token]:
    at, opened = 0, list[_Token]()
    while at < len(document):
        found = _TOKEN.match(document, at)
        if found is None or found.lastgroup is None:
            raise _fault(document, at, f"{document[at]!r} can't stand here")
        text = found.group()
        if text in _CLOSES and (not opened or opened.pop().text != _CLOSES[text]):
            raise _fault(document, at, f"`{text}` closes nothing")
        token = _Token(found.lastgroup, text, at, len(opened))
        if text in _CLOSES.values():
            opened.append(token)
        if found.lastgroup != "blank":
            yield token
        at = found.end()
    if opened:
        raise _fault(document, opened[-1].start, f"`{opened[-1].text}` is never closed")


def _declared(document: str, tokens: Sequence[_Token], head: int) -> tuple[dict[str, bool], Sequence[_Token]]:
    """The variables that an operation declares, and all tokens but the declarations."""
    start = head + 1
    if tokens[head].text != "{" and start < len(tokens) and tokens[start].kind == "name":
        start += 1
    if tokens[head].text == "{" or start >= len(tokens) or tokens[start].text != "(":
        return {}, tokens
    end = next(
        number for number in range(start + 1, len(tokens)) if tokens[number].text == ")" and not tokens[number].depth
    )
    declared: dict[str, bool] = {}
    inside = tokens[start + 1 : end]
    places = [number for number, token in enumerate(inside) if token.text == "$" and token.depth == 1]
    for place, following in zip(places, [*places[1:], len(inside)], strict=True):
        own = [token.text for token in inside[place + 1 : following]]
        if len(own) < 3 or own[1] != ":":
            raise _fault(document, inside[place].start, "a variable is declared like `$id: ID!`")
        declared[own[0]] = "=" not in own and own[-1] == "!"
    return declared, [*tokens[:start], *tokens[end + 1 :]]


def _fault(document: str, at: int, text: str) -> ValueError:
    line = document.count("\n", 0, at) + 1
    column = at - (document.rfind("\n", 0, at) + 1) + 1
    return ValueError(f"{text}, at line {line}, column {column} of the document")
