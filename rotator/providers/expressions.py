"""JMESPath expressions of the configuration, applied to what a platform answered.

An expression is checked when the configuration is read: grammar, functions and their number of arguments. What it is
applied to is somebody else's data, so no answer may make it raise anything but `Unfit`, or take long: an answer's depth
and size are bounded, and an expression can't multiply what it reads (JMESPath has no joins and no recursion).

Beside the standard's functions there is `from_json(text)`: the value that a text of JSON is, null where it is none.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import jmespath
from jmespath.exceptions import IncompleteExpressionError, JMESPathError, LexerError, ParseError
from jmespath.functions import Functions, signature
from jmespath.parser import ParsedResult
from jmespath.visitor import Options
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from rotator.config_types import wrong

DEEPEST: Final = 100  # levels of an answer; the documents that we know have six
MOST: Final = 1_000_000  # values in an answer; a list of 50,000 keys has fewer
LONGEST: Final = 2000  # characters of an expression
HINT: Final = "JMESPath, such as device.password or items[0].id"

# What evaluation raises beside JMESPathError on odd data: "a" < 1, sums beyond all floats, `==` of deep nesting.
ODD: Final = (JMESPathError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


class Unfit(Exception):
    """An expression does not apply to an answer. The text never holds a value of it."""


class _Functions(Functions):  # named by the library's own convention: `_func_NAME` is `NAME` in an expression
    @signature({"types": ["string"]})
    def _func_from_json(self, text: str) -> object:
        try:
            found: object = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return None if excess(found) else found


_OPTIONS: Final = Options(custom_functions=_Functions())


class Expression:
    """One checked expression; equal where the text is.

    Args:
        text: JMESPath.

    Raises: ValueError, with the position of what is wrong, counted from 1.
    """

    __slots__ = ("_parsed", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._parsed = _parse(text)
        if fault := next(_misused(self._parsed.parsed, text), ""):
            raise ValueError(fault)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def find(self, value: object) -> Any:
        """What the expression finds in a parsed answer (see `excess`); None where it finds nothing.

        Raises: Unfit, where the answer has other types than the expression's functions and comparisons take.
        """
        try:
            return self._parsed.search(value, options=_OPTIONS)
        except ODD as exc:
            kind = type(exc).__name__
        # outside of the `except`: the library's own text repeats the value, which may be a secret (rule 6)
        raise Unfit(f"the expression {self.text} does not fit the answer ({kind})")

    def holds(self, value: object) -> bool:
        """Whether it finds something that is true as JMESPath has it: not null, false, or empty.

        Raises: Unfit.
        """
        found = self.find(value)
        return found is not None and found is not False and found not in ("", [], {})


def excess(value: object) -> str:
    """Why a parsed answer is too much to be looked at; empty where it isn't."""
    level, seen = [value], 1
    for _ in range(DEEPEST):
        below: list[object] = []
        for each in level:
            if isinstance(each, Mapping):
                below.extend(each.values())
            elif isinstance(each, list):
                below.extend(each)
        if not below:
            return ""
        seen += len(below)
        if seen > MOST:
            return f"the answer holds more than {MOST} values"
        level = below
    return f"the answer is nested more than {DEEPEST} levels deep"


def _parse(text: str) -> ParsedResult:
    if not text.strip():
        raise ValueError("must not be empty")
    if len(text) > LONGEST:
        raise ValueError(f"is longer than {LONGEST} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PendingDeprecationWarning)  # a literal that is no JSON
            return jmespath.compile(text)
    except PendingDeprecationWarning:
        fault = "is no JMESPath: a literal between backquotes is no JSON; write '…' for plain text"
    except IncompleteExpressionError:
        fault = f"is no JMESPath: it ends too early, at position {len(text) + 1}"
    except LexerError as exc:
        fault = f"is no JMESPath: a character that can't stand here, at position {exc.lex_position + 1}"
    except ParseError as exc:
        fault = f"is no JMESPath: `{exc.token_value}` can't stand here, at position {exc.lex_position + 1}"
    except RecursionError:
        fault = "is nested too deeply"
    except ODD:
        fault = "is no JMESPath"
    raise ValueError(fault)


def _misused(node: Mapping[str, Any], text: str, *, argument: bool = False) -> Iterator[str]:
    """What the grammar allows and evaluation would not."""
    if node["type"] == "expref" and not argument:
        yield "is no JMESPath: `&` can only stand before an argument of a function"
    if node["type"] == "subexpression" and node["children"][0]["type"] == "not_expression":
        # the grammar's own trap: `!a.b` is a field `b` of `!a`, which never is
        yield "does not mean what it says: `!` holds more tightly than `.`; write !(a.b) for !a.b"
    calls = node["type"] == "function_expression"
    if calls:
        yield from _called(node["value"], len(node["children"]), text)
    for child in node["children"]:
        if isinstance(child, Mapping):  # a slice has numbers there
            yield from _misused(child, text, argument=calls)


def _called(name: str, given: int, text: str) -> Iterator[str]:
    position = text.find(f"{name}(") + 1
    if name not in _Functions.FUNCTION_TABLE:
        yield f"is no JMESPath: there is no function {name}(), at position {position}"
        return
    wanted = _Functions.FUNCTION_TABLE[name]["signature"]
    variadic = bool(wanted) and bool(wanted[-1].get("variadic"))
    if given < len(wanted) or (given > len(wanted) and not variadic):
        least = "at least " if variadic else ""
        yield f"is no JMESPath: {name}() takes {least}{len(wanted)}, not {given} arguments, at position {position}"


def _checked(value: object) -> Expression:
    if isinstance(value, Expression):
        return value
    if not isinstance(value, str):
        raise wrong("must be text", HINT)
    try:
        return Expression(value)
    except ValueError as exc:
        raise wrong(str(exc), HINT) from exc


Expr = Annotated[
    Expression,
    PlainValidator(_checked),
    PlainSerializer(lambda value: value.text, return_type=str),
    WithJsonSchema({"type": "string", "description": "a JMESPath expression"}),
]
