"""What all sections of the configuration are made of, and what all HTTP providers' settings have in common.

Below the providers, so that each provider's own settings stand in its own file.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from rotator.config_types import Count, PositiveDuration, Text, Url, wrong
from rotator.secret_refs import FileRef

Where = tuple[str | int, ...]


def seconds(number: float) -> timedelta:
    """A short name for the defaults."""
    return timedelta(seconds=number)


class Part(BaseModel):
    """A section: frozen, no unknown names, no input in its errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def drop_default(schema: dict[str, Any]) -> None:
    """None only stands for "the usual one"; editors would show it as a value."""
    schema.pop("default", None)


def usual_port(value: object, info: ValidationInfo) -> object:
    """MQTT's own port, where none is named."""
    if value is None:
        return 8883 if info.data.get("tls") else 1883
    return value


class RateLimit(Part):
    """At most `requests` in each `per` on average, and `burst` of them at once where there was quiet before."""

    requests: Count
    per: PositiveDuration = timedelta(minutes=1)
    burst: Count = 10


class ProviderPart(Part):
    """A provider's section; each kind narrows `kind` to its own name."""

    kind: str


class HttpPart(ProviderPart):
    """What every provider that is reached over HTTP can be told.

    `timeout` is for one request. `client_cert` and `client_key` (PEM) show who we are where the platform asks for that.
    `rate_limit: null` sends as fast as the work goes; `concurrency` is how many requests are under way at once.
    """

    timeout: PositiveDuration = seconds(10)
    ca_file: Text | None = None
    client_cert: Text | None = None
    client_key: Text | None = None
    proxy: Url | None = None
    rate_limit: RateLimit | None = None
    concurrency: Annotated[Count, Field(le=256)] = 16

    @model_validator(mode="after")
    def _certificate_with_key(self) -> HttpPart:
        if self.client_key is not None and self.client_cert is None:
            raise wrong("a client key needs its certificate", "name it as `client_cert`", at="client_key")
        return self


def positions(model: type[BaseModel], *, secrets: bool) -> Iterator[Where]:
    """Where secret references (or else files of certificates) stand in a section, nested sections included.

    Lists of sections are not looked into: no section that has secrets stands in a list.
    """
    for name, field in model.model_fields.items():
        models = [each for each in _classes(field.annotation) if issubclass(each, BaseModel)]
        if FileRef in models:
            if secrets:
                yield (name,)
        elif name in CERTIFICATES:
            if not secrets:
                yield (name,)
        else:
            yield from dict.fromkeys((name, *below) for each in models for below in positions(each, secrets=secrets))


CERTIFICATES = ("ca_file", "client_cert", "client_key")


def _classes(annotation: object) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for each in get_args(annotation):
        yield from _classes(each)
