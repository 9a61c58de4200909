"""Every exception class of a library, found by introspection, and an instance of each.

A test that goes through these says of every class what an adapter makes of it, so that a class which a newer release
brings along makes it fail until somebody decides. `outcome` is what such a test asks of each.
"""

from __future__ import annotations

import ast
import builtins
import errno
import importlib
import inspect
import pkgutil
import select
import socket
import sqlite3
import ssl
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import ModuleType
from typing import Any, TypeGuard

import pytest
import urllib3

from rotator.errors import RotatorError
from rotator.reasons import Reason

Meaning = tuple[type[RotatorError], Reason]

# In every instance's text: neither may come out of an adapter that shows no library's words.
SECRET = "hunter2"
TEXT = f"https://me:{SECRET}@127.0.0.1/ {SECRET}"

# What a constructor needs beyond a text, where the library that raises the class reads it again.
_ARGUMENTS: Mapping[str, Callable[[], Any]] = {
    "conn": lambda: urllib3.connection.HTTPConnection("127.0.0.1"),
    "expected": lambda: 2,
    "length": lambda: b"zz",
    "message": lambda: TEXT,
    "orig": lambda: sqlite3.OperationalError("disk I/O error"),
    "params": dict,
    "partial": lambda: 1,
    "pool": lambda: urllib3.HTTPConnectionPool("127.0.0.1"),
    "reason": lambda: socket.gaierror(socket.EAI_NONAME, TEXT),
    "request": lambda: None,
    "response": lambda: urllib3.HTTPResponse(b"zz"),
    "statement": lambda: TEXT,
    "url": lambda: TEXT,
}


@cache
def classes(package: str) -> Mapping[str, type[Exception]]:
    """All exceptions, but no warnings, that a package defines in any of its modules: full name → class.

    A module that can't be imported wants a library that is not installed, so nothing of it is ever raised.
    """
    found: dict[str, type[Exception]] = {}
    with warnings.catch_warnings(action="ignore"):
        for module in _modules(package):
            for thing in vars(module).values():
                if inspect.isclass(thing) and _is_of(thing, package):
                    found[f"{thing.__module__}.{thing.__qualname__}"] = thing
    return found


def below(base: type[Exception], *modules: ModuleType) -> Mapping[str, type[Exception]]:
    """All exceptions below `base`, itself among them, that stand in these modules: name → class."""
    found = (thing for module in modules for thing in vars(module).values())
    return {thing.__name__: thing for thing in found if inspect.isclass(thing) and issubclass(thing, base)}


def os_errors() -> Mapping[str, type[Exception]]:
    """What a socket, a name, a TLS handshake or a file raises."""
    return below(OSError, builtins, socket, ssl, select)


def value_errors() -> Mapping[str, type[Exception]]:
    """What a text raises that can't be a host, a header or a line; those that are OSErrors as well are left out."""
    found = below(ValueError, builtins)
    return {name: each for name, each in found.items() if not issubclass(each, OSError)}


def made(kind: type[Exception], text: str = TEXT) -> Exception:
    """An instance.

    Args:
        text: what it says, for an adapter that shows the library's words; by default, words that nobody may see.
    """
    if issubclass(kind, UnicodeEncodeError):
        return kind("utf-8", f"{SECRET}\udc80", len(SECRET), len(SECRET) + 1, "surrogates not allowed")
    if issubclass(kind, UnicodeTranslateError):
        return kind(f"{SECRET}\udc80", len(SECRET), len(SECRET) + 1, "surrogates not allowed")
    if issubclass(kind, UnicodeDecodeError):
        return kind("utf-8", b"\xff" + text.encode(), 0, 1, "invalid start byte")
    if issubclass(kind, OSError) and kind.__module__ in {"builtins", "socket", "ssl"}:
        return kind(errno.EIO, text)
    try:
        return _constructed(kind, text)
    except (TypeError, AttributeError, KeyError):
        bare: Exception = kind.__new__(kind, text)  # a constructor that wants what only its library has
        return bare


def names(package: str) -> set[str]:
    """The classes of a package, without their modules."""
    return {full.rpartition(".")[2] for full in classes(package)}


def named(package: str, name: str) -> type[Exception]:
    """The class of that name in a package."""
    (found,) = (each for full, each in classes(package).items() if full.rpartition(".")[2] == name)
    return found


def outcome(
    call: Callable[..., object], *args: object, raised: Exception | None = None, secrets: bool = True
) -> Meaning:
    """What comes out of an adapter: one of our errors with a reason, with its cause, without secrets.

    Args:
        call: the adapter's verb, called with `args`.
        raised: what was raised below it, where the test made it.
        secrets: whether a secret passes there, so that a text which can't be encoded may be one.
    """
    with pytest.raises(RotatorError) as caught:
        call(*args)
    error = caught.value
    assert Reason.UNFORESEEN is not error.reason
    assert SECRET not in f"{error} {error!r} {error.message}"
    error.message.encode()  # a journal and a log can write it
    if isinstance(raised, UnicodeEncodeError) and secrets:
        # it holds the whole of what could not be encoded, and its text a character of it: no traceback shows it
        assert "codec can't encode" not in "".join(traceback.format_exception(error))
    elif raised is not None:
        assert raised in causes(error)
    return type(error), error.reason


def causes(error: BaseException) -> list[BaseException]:
    """What led to an error: its cause, that one's, and so on, with what a library only wraps (urllib3's SSLError)."""
    found: list[BaseException] = []
    todo: list[object] = [error.__cause__]
    while todo:
        each = todo.pop()
        if isinstance(each, BaseException) and each not in found:
            found.append(each)
            todo += [each.__cause__, each.__context__, *each.args]
    return found


def _constructed(kind: type[Exception], text: str) -> Exception:
    try:
        parameters = [*inspect.signature(kind).parameters.values()]
    except ValueError:  # a constructor in C
        return kind(text)
    if not parameters:
        return kind()
    wanted = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if len(wanted) <= 1 and not any(p.kind is p.KEYWORD_ONLY for p in wanted):
        return kind(text)
    by_place = [_ARGUMENTS[p.name]() for p in wanted if p.kind is not p.KEYWORD_ONLY]
    return kind(*by_place, **{p.name: _ARGUMENTS[p.name]() for p in wanted if p.kind is p.KEYWORD_ONLY})


def _modules(package: str) -> Iterable[ModuleType]:
    root = importlib.import_module(package)
    yield root
    for module in pkgutil.walk_packages(root.__path__, f"{package}.", onerror=lambda _name: None):
        if {"tests", "testing", "__main__"} & set(module.name.split(".")):
            continue
        try:
            yield importlib.import_module(module.name)
        except ImportError:
            continue


def _is_of(thing: type, package: str) -> TypeGuard[type[Exception]]:
    return issubclass(thing, Exception) and not issubclass(thing, Warning) and thing.__module__.split(".")[0] == package


def raised_by_name(module: ModuleType) -> set[str]:
    """The names of what a module's own `raise` statements raise; a variable's, in lower case, are none."""
    raises = [node.exc for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Raise)]
    called = [each.func if isinstance(each, ast.Call) else each for each in raises if each is not None]
    found = {each.id for each in called if isinstance(each, ast.Name)}
    found |= {each.attr for each in called if isinstance(each, ast.Attribute)}
    return {name for name in found if name[0].isupper()}
