"""Keys that the configuration does not name one by one: a pattern of the platform's names, and a template for all.

`{name}` stands only in a template's `vault.path`, which is no template elsewhere; whatever is one already (fields,
logins, topics) has `{key}` for the same, and keeps its own rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

from pydantic import Discriminator, Tag, field_validator

from rotator.config_base import Part
from rotator.config_models import KeyCommon, KeySettings, VaultTarget
from rotator.config_types import Name, Text, wrong

NAME_PLACE = "{name}"


class TemplateTarget(VaultTarget):
    """Where the secret of each key of a selection goes: `{name}` in the path stands for the key's name."""

    @field_validator("path")
    @classmethod
    def _one_for_each_key(cls, path: str) -> str:
        if NAME_PLACE not in path:
            raise wrong("all keys of the selection would share this path", "such as mqtt/{name}")
        if set("{}") & set(path.replace(NAME_PLACE, "")):
            raise wrong("only {name} may stand in braces here", "such as mqtt/{name}")
        return path


class KeyTemplate(KeyCommon):
    """The settings of each key of a selection."""

    vault: TemplateTarget

    def key(self, name: str, provider: str, id: str) -> KeySettings:
        """The settings of one of them."""
        given = {field: getattr(self, field) for field in KeyCommon.model_fields}
        target = VaultTarget(path=self.vault.path.replace(NAME_PLACE, name), fields=self.vault.fields)
        return KeySettings(provider=provider, id=id, vault=target, **given)


class Discover(Part):
    """Which of a platform's keys are meant, by shell patterns (fnmatch) of their names there."""

    match: Text
    exclude: tuple[Text, ...] = ()
    template: KeyTemplate

    def covers(self, name: str) -> bool:
        """Whether a key of this name is meant."""
        return fnmatchcase(name, self.match) and not any(fnmatchcase(name, pattern) for pattern in self.exclude)


class Selection(Part):
    """An entry that stands for all keys of a provider whose names match."""

    provider: Text
    discover: Discover


class Keys(dict[str, KeySettings]):
    """The keys that are named one by one; `selections` are the entries that have `discover` in the place of `id`."""

    def __init__(self, keys: Mapping[str, KeySettings], selections: Mapping[str, Selection]) -> None:
        super().__init__(keys)
        self.selections = dict(selections)


def _entry_kind(value: object) -> str:
    found = "discover" in value if isinstance(value, Mapping) else isinstance(value, Selection)
    return "<discover>" if found else "<key>"


if TYPE_CHECKING:
    KeyEntries = Keys
else:
    KeyEntries = dict[
        Name,
        Annotated[
            Annotated[KeySettings, Tag("<key>")] | Annotated[Selection, Tag("<discover>")],
            Discriminator(_entry_kind),
        ],
    ]
