"""Reading which version a consumer says that it runs on."""

from __future__ import annotations

import json
from collections.abc import Mapping


def as_version(value: object) -> int | None:
    """A whole number, as JSON's own or as digits in a text; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def decoded(payload: bytes) -> object:
    """JSON, or None where it is none; a number alone is JSON as well."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return None


def version_in(body: bytes, field: str) -> int | None:
    """The version that an answer names: in a JSON field (dotted), or as a body that is just the number."""
    found = decoded(body)
    if isinstance(found, Mapping):
        for name in field.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
    return as_version(found)
