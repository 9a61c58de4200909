"""The types of single settings: text in, checked value out, and their JSON Schema.

Every type refuses in words of its own, since pydantic's repeat the input and speak of Python.
"""

from __future__ import annotations

import difflib
import re
import zoneinfo
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

from cronsim import CronSim, CronSimError
from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, StringConstraints, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from rotator.durations import (
    DURATION_EXAMPLE,
    DURATION_PATTERN,
    SHARE_PATTERN,
    SPAN_EXAMPLE,
    Share,
    format_duration,
    format_span,
    parse_duration,
    parse_share,
    parse_span,
)
from rotator.templates import FIELDS, WITHOUT_SECRET, faults

T = TypeVar("T")

NAME_PATTERN: Final = "^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
# What systemd.unit(5) allows in a name, and the kinds of unit that can be restarted to any effect.
UNIT_PATTERN: Final = r"^[A-Za-z0-9:_.\\@-]+\.(service|socket|target|timer|path|scope|slice|mount)$"
CRON_EXAMPLE: Final = 'five fields: minute hour day month weekday, such as "0 2 * * 1-5"'


def wrong(text: str, hint: str | None = None, *, at: str | None = None) -> PydanticCustomError:
    """A fault for a validator to raise. `at`: the field below the validated value that it is about."""
    return PydanticCustomError("rotator", "{text}", {"text": text, "hint": hint or "", "at": at or ""})


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that looks most like `name`, in words; None when none does."""
    found = difflib.get_close_matches(name.lower(), sorted(known), n=1)
    return f"did you mean `{found[0]}`?" if found else None


def _text(parse: Callable[[str], T], hint: str, kinds: tuple[type, ...]) -> PlainValidator:
    """A validator that takes text, or a value that is one of `kinds` already."""

    def validate(value: object) -> object:
        if isinstance(value, kinds):
            return value
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise wrong("must be text", hint)
        try:
            return parse(str(value))
        except ValueError as exc:
            text, _, example = str(exc).partition("; ")
            raise wrong(text, example or hint) from exc

    return PlainValidator(validate)


def positive(value: timedelta) -> timedelta:
    """Refuse a duration of nothing."""
    if value <= timedelta(0):
        raise wrong("must be more than 0s", DURATION_EXAMPLE)
    return value


def _parse_positive(text: str) -> timedelta:
    return positive(parse_duration(text))


_DURATION_SCHEMA: Final = {"type": "string", "pattern": DURATION_PATTERN}
_SHARE_SCHEMA: Final = {"type": "string", "pattern": SHARE_PATTERN}
_AS_TEXT: Final = PlainSerializer(format_duration, return_type=str, when_used="json")

Duration = Annotated[
    timedelta, _text(parse_duration, DURATION_EXAMPLE, (timedelta,)), _AS_TEXT, WithJsonSchema(_DURATION_SCHEMA)
]
PositiveDuration = Annotated[
    timedelta, _text(_parse_positive, DURATION_EXAMPLE, (timedelta,)), _AS_TEXT, WithJsonSchema(_DURATION_SCHEMA)
]
Span = Annotated[
    timedelta | Share,
    _text(parse_span, SPAN_EXAMPLE, (timedelta, Share)),
    PlainSerializer(format_span, return_type=str, when_used="json"),
    WithJsonSchema({"anyOf": [_DURATION_SCHEMA, _SHARE_SCHEMA]}),
]
ShareOf = Annotated[
    Share,
    _text(parse_share, "write it like 10%", (Share,)),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema(_SHARE_SCHEMA),
]


def _no_bool(value: object) -> object:
    # Python's True is 1, and so is pydantic's.
    if isinstance(value, bool):
        raise wrong("must be a whole number", "such as 10")
    return value


Text = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_no_bool)]
Port = Annotated[int, Field(ge=1, le=65535), BeforeValidator(_no_bool)]


def _text_rule(check: Callable[[str], str]) -> BeforeValidator:
    """A further rule for what is text; the type itself says so where it is not."""
    return BeforeValidator(lambda value: check(value) if isinstance(value, str) else value)


def _name(value: str) -> str:
    if re.match(NAME_PATTERN, value) is None:
        hint = "at most 63 letters, digits, `-`, `_` and `.`; a letter or digit at both ends"
        raise wrong("is not a name that can be used", hint)
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or any(sign.isspace() for sign in value):
        raise wrong("must be a URL", "such as https://vault.example:8200")
    if "@" in parts.netloc:
        raise wrong("a URL here holds no user and no password", "they have settings of their own")
    return value


def split_address(value: str) -> tuple[str, int]:
    """`host:port` or `[::1]:port` in its parts. Raises: ValueError."""
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be host:port")
    if not host or (":" in host and not bracketed) or any(sign.isspace() for sign in host):
        raise ValueError("must be host:port")
    return (host[1:-1] if bracketed else host), int(port)


def _listen(value: str) -> str:
    try:
        split_address(value)
    except ValueError as exc:
        raise wrong(str(exc), "such as 127.0.0.1:9109 or [::1]:9109") from exc
    return value


def _sqlite(value: str) -> str:
    if value.startswith(("postgresql", "postgres:", "mysql", "mariadb")):
        raise wrong("only sqlite is supported by this version", "such as sqlite:///state/rotator.db")
    path = value.removeprefix("sqlite:///")
    if path == value or not path or path.startswith(":memory:") or "?" in path:
        raise wrong("must be sqlite:/// and the path of a file", "such as sqlite:///state/rotator.db")
    return value


def _unit(value: str) -> str:
    if re.match(UNIT_PATTERN, value) is None:
        plain = re.match(r"^[A-Za-z0-9:_\\@-]+$", value)
        hint = f"did you mean `{value}.service`?" if plain else "such as ingest.service"
        raise wrong("must be the full name of a systemd unit", hint)
    return value


def _cron(value: str) -> str:
    if len(value.split()) != 5:
        raise wrong(f"a cron expression has five fields, not {len(value.split())}", CRON_EXAMPLE)
    try:
        # The start only has to be any moment; iterating finds expressions that never fire.
        next(CronSim(value, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as exc:
        raise wrong(f"is not a cron expression: {str(exc).lower()}", CRON_EXAMPLE) from exc
    except StopIteration as exc:
        raise wrong("this cron expression never fires", CRON_EXAMPLE) from exc
    return value


def _timezone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as exc:
        zones = {zone.lower(): zone for zone in zoneinfo.available_timezones()}
        near = difflib.get_close_matches(value.lower(), sorted(zones), n=1)
        hint = f"did you mean `{zones[near[0]]}`?" if near else "such as Europe/Helsinki or UTC"
        raise wrong("is not a time zone", hint) from exc
    return value


def _vault_path(value: str) -> str:
    if value.startswith("/") or value.endswith("/") or any(part in ("", ".", "..") for part in value.split("/")):
        raise wrong("must be a path below the mount, without a slash at either end", "such as mqtt/building-a")
    if "#" in value or any(sign.isspace() for sign in value):
        raise wrong("must hold neither spaces nor `#`", "such as mqtt/building-a")
    return value


def _template(allowed: Collection[str]) -> BeforeValidator:
    def check(value: str) -> str:
        if found := faults(value, allowed):
            places = ", ".join(f"{{{name}}}" for name in FIELDS if name in allowed)
            raise wrong("; ".join(found), f"a template may hold {places}")
        return value

    return _text_rule(check)


Name = Annotated[str, _text_rule(_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]
Url = Annotated[str, _text_rule(_url), WithJsonSchema({"type": "string", "pattern": "^https?://[^\\s/]+"})]
Listen = Annotated[str, _text_rule(_listen), WithJsonSchema({"type": "string", "pattern": "^.+:[0-9]+$"})]
SqliteUrl = Annotated[str, _text_rule(_sqlite), WithJsonSchema({"type": "string", "pattern": "^sqlite:///."})]
Unit = Annotated[str, _text_rule(_unit), WithJsonSchema({"type": "string", "pattern": UNIT_PATTERN})]
Cron = Annotated[str, _text_rule(_cron)]
Timezone = Annotated[str, _text_rule(_timezone)]
VaultPath = Annotated[str, _text_rule(_vault_path), StringConstraints(min_length=1)]
Template = Annotated[str, _template(FIELDS), StringConstraints(min_length=1)]
PublicTemplate = Annotated[str, _template(WITHOUT_SECRET), StringConstraints(min_length=1)]


def choice(field: str, known: Collection[str], later: Collection[str] = ()) -> BeforeValidator:
    """Refuse a mapping whose `field` is absent, unknown, or `later` than this version."""

    def check(value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        options = ", ".join(known)
        if field not in value:
            raise wrong(f"`{field}` is missing", f"one of {options}")
        name = value[field]
        if isinstance(name, str) and name in known:
            return value
        if isinstance(name, str) and name in later:
            raise wrong(f"`{name}` is not supported by this version", f"one of {options}", at=field)
        hint = nearest(name, [*known, *later]) if isinstance(name, str) else None
        raise wrong(f"must be one of {options}", hint or "one of these", at=field)

    return BeforeValidator(check)


def tag_of(field: str, only: str = "") -> Callable[[Any], str]:
    """A discriminator over `field` whose tags look like `<name>`, so that they can be told from names in a location."""

    def tag(value: Any) -> str:
        name = value.get(field, only) if isinstance(value, Mapping) else getattr(value, field, only)
        return f"<{name}>"

    return tag


class SchemaWithDurations(GenerateJsonSchema):
    """pydantic's JSON Schema with defaults written as this configuration writes them, not as ISO 8601."""

    def encode_default(self, dft: Any) -> Any:
        """A default as it would stand in the file."""
        if isinstance(dft, timedelta | Share):
            return format_span(dft)
        return super().encode_default(dft)

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """A mapping; where its names must fit a pattern, no others are allowed."""
        made = super().dict_schema(schema)
        return {**made, "additionalProperties": False} if "patternProperties" in made else made
