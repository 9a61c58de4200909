"""Templates of Vault fields and MQTT logins: `{name}` from a documented list, `{{` and `}}` for braces, nothing else.

There are no format specifications, attributes or conversions on purpose: a template must never reach into an object,
and `str.format` would let it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

FIELDS: Final[Mapping[str, str]] = {
    "id": "the key's id at its provider",
    "username": "the MQTT username of the current identity",
    "client_id": "the MQTT client id that belongs to the identity; empty where the platform gives none",
    "secret": "the secret itself",
    "expires_at": "when the secret expires, ISO 8601 in UTC; empty where that is not known",
    "key": "the key's name in the configuration",
    "provider": "the provider's name in the configuration",
}
WITHOUT_SECRET: Final = frozenset(FIELDS) - {"secret"}

# In order: an escaped brace, a place, a brace that is neither, plain text.
_TOKEN = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<name>[^{}]*)\}|(?P<stray>[{}])|(?P<text>[^{}]+)")


def render(template: str, values: Mapping[str, str]) -> str:
    """The template with its places filled in.

    Raises: ValueError for a template that `faults` would refuse. The text names places, never values.
    """
    if found := faults(template, values):
        raise ValueError("; ".join(found))
    pieces = []
    for match in _TOKEN.finditer(template):
        if match["name"] is not None:
            pieces.append(values[match["name"]])
        else:
            pieces.append(match["brace"][0] if match["brace"] else match["text"])
    return "".join(pieces)


def names(template: str) -> list[str]:
    """The places of a template in their order, known or not."""
    return [match["name"] for match in _TOKEN.finditer(template) if match["name"] is not None]


def faults(template: str, allowed: Collection[str]) -> list[str]:
    """What is wrong with a template, one line each; empty when nothing is. `allowed` are the names it may use."""
    return list(_faults(template, allowed))


def _faults(template: str, allowed: Collection[str]) -> Iterator[str]:
    for match in _TOKEN.finditer(template):
        if match["stray"]:
            yield f"a single {match['stray']!r} at position {match.start() + 1}; write {match['stray'] * 2} for a brace"
        name = match["name"]
        if name is None or name in allowed:
            continue
        if name in FIELDS:
            yield f"{{{name}}} can't be used here"
        elif head := re.match(r"\s*(\w+)\s*(?:[:!.\[].*|\s)$", name, re.DOTALL):
            yield f"{{{name}}}: only a plain {{name}} is allowed, such as {{{_nearest(head[1], allowed) or 'id'}}}"
        elif near := _nearest(name, allowed):
            yield f"{{{name}}} is unknown, did you mean {{{near}}}?"
        else:
            yield f"{{{name}}} is unknown"


def _nearest(name: str, allowed: Collection[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name.strip().lower(), sorted(allowed), n=1)), None)
