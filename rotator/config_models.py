"""The sections of the configuration as frozen models. Names, kinds and defaults are the contract of the design."""

from __future__ import annotations

from datetime import timedelta
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)

from rotator.config_base import Part, ProviderPart, drop_default, positions, seconds, usual_port
from rotator.config_types import (
    Count,
    Cron,
    Duration,
    Name,
    Port,
    PositiveDuration,
    PublicTemplate,
    Span,
    Template,
    Text,
    Timezone,
    VaultPath,
    choice,
    tag_of,
    wrong,
)
from rotator.durations import Share
from rotator.providers import kinds
from rotator.secret_refs import SecretRef
from rotator.templates import names

DEFAULT_BEFORE_EXPIRY = Share(0.33)


# --- providers

# Each kind's section stands in its provider's file, and third parties bring their own.
_KINDS = {name: kind.settings for name, kind in kinds().items()}

if TYPE_CHECKING:
    ProviderSettings = ProviderPart
else:
    ProviderSettings = Annotated[
        reduce(or_, (Annotated[model, Tag(f"<{name}>")] for name, model in _KINDS.items())),
        Discriminator(tag_of("kind")),
        choice("kind", [*_KINDS]),
    ]

# Where a provider's secrets and certificates stand, below its name.
# The kinds whose broker lists who is connected.
LISTING = frozenset(name for name, kind in kinds().items() if kind.lists_connections)
PROVIDER_SECRETS = tuple(dict.fromkeys(at for model in _KINDS.values() for at in positions(model, secrets=True)))
PROVIDER_FILES = tuple(dict.fromkeys(at for model in _KINDS.values() for at in positions(model, secrets=False)))


# --- times


class Window(Part):
    """A recurring stretch of time: it opens whenever `cron` fires in `timezone` and lasts for `duration`."""

    cron: Cron
    duration: PositiveDuration
    timezone: Timezone = "UTC"


# --- keys


class Rotate(Part):
    """When a key is due. In `keys` it is laid over `defaults.rotate` name by name; `null` takes a default away."""

    before_expiry: Span | None = None
    max_age: PositiveDuration | None = None
    jitter: Duration = timedelta(0)
    windows: tuple[Window, ...] = ()

    @field_validator("jitter", "windows", mode="before")
    @classmethod
    def _nothing(cls, value: object, info: ValidationInfo) -> object:
        if value is not None:
            return value
        return timedelta(0) if info.field_name == "jitter" else ()

    def over(self, defaults: Rotate) -> Rotate:
        """This policy with what it leaves out taken from `defaults`, and 33% before expiry where both leave it out."""
        given: dict[str, Any] = {"before_expiry": DEFAULT_BEFORE_EXPIRY}
        for policy in (defaults, self):
            given |= {name: getattr(policy, name) for name in policy.model_fields_set}
        return Rotate(**given)


class VaultTarget(Part):
    """Where a key's secret goes: the path below the mount, and a template for every field."""

    path: VaultPath
    fields: Annotated[dict[Text, Template], Field(min_length=1)]

    @field_validator("fields")
    @classmethod
    def _holds_the_secret(cls, fields: dict[str, str]) -> dict[str, str]:
        # The daemon reads the secret back from Vault: to probe it, and to know drift.
        if "{secret}" not in fields.values():
            raise wrong("no field holds the secret", 'one of them must be "{secret}" and nothing else')
        return fields


def _password_kind(value: object) -> str:
    return "<template>" if isinstance(value, str) else "<reference>"


# Where the secret is the username, the password beside it may be one that is never rotated, and stands elsewhere.
Password = Annotated[
    Annotated[Template, Tag("<template>")] | Annotated[SecretRef, Tag("<reference>")], Discriminator(_password_kind)
]


class Verify(Part):
    """The broker at which a new secret is proven, and how."""

    host: Text
    tls: bool = False
    port: Port = Field(default=None, validate_default=True, json_schema_extra=drop_default)
    ca_file: Text | None = None
    username: Template = "{username}"
    password: Password = "{secret}"  # noqa: S105  a template, no password
    client_id: PublicTemplate | None = None
    subscribe: PublicTemplate | None = None
    timeout: PositiveDuration = seconds(10)
    propagation: Duration = seconds(60)
    interval: PositiveDuration = seconds(900)

    _usual_port = field_validator("port", mode="before")(usual_port)

    @field_validator("password")
    @classmethod
    def _proves_the_secret(cls, password: Password, info: ValidationInfo) -> Password:
        # Some platforms put the secret into the username. A login without it would prove nothing.
        username = info.data.get("username")
        templates = [each for each in (username, password) if isinstance(each, str)]
        if username is not None and not any("secret" in names(each) for each in templates):
            raise wrong("neither username nor password holds {secret}", 'such as password: "{secret}"')
        return password


class KeyCommon(Part):
    """What a key and a template for keys share. Inside `Settings`, `rotate` is final: merged with the defaults."""

    rotate: Rotate = Rotate()
    min_interval: Duration = timedelta(0)
    blackouts: tuple[Window, ...] = ()
    max_attempts: Count = 10
    grace: Duration | None = None
    adopt: Literal["wait", "rotate"] = "wait"
    verify: Verify | None = None
    consumers: tuple[Text, ...] = ()

    @field_validator("consumers")
    @classmethod
    def _once_each(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if names.count(name) > 1:
                raise wrong(f"names `{name}` twice", "once is enough")
        return names


class KeySettings(KeyCommon):
    """One managed key."""

    provider: Text
    id: Text
    pair: Name | None = None
    vault: VaultTarget
