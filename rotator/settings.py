"""The configuration: YAML files and the environment in, frozen models out, every fault at once.

`load` is the way in. `config/rotator.yaml` shows every setting with its default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Discriminator, Tag, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from rotator.config_base import Part, seconds
from rotator.config_checks import (
    SECRET_POSITIONS,
    check_ca_files,
    check_references,
    check_secrets,
    check_shared,
    check_wrapping,
)
from rotator.config_consumers import (
    BrokerEvidence,
    CommandConsumer,
    Confirm,
    Connection,
    ConsumerSettings,
    Delay,
    ExternalSecretDeliver,
    FileDeliver,
    HeartbeatEvidence,
    HttpEvidence,
    KubernetesConsumer,
    MqttConsumer,
    NoneConsumer,
    SystemdConsumer,
    WebhookConsumer,
)
from rotator.config_faults import add_faults
from rotator.config_file import PREFIX, Tree, overlay, read_files
from rotator.config_keys import Discover, KeyEntries, Keys, KeyTemplate, Selection
from rotator.config_models import (
    KeyCommon,
    KeySettings,
    ProviderSettings,
    Rotate,
    VaultTarget,
    Verify,
    Window,
)
from rotator.config_types import (
    Duration,
    Listen,
    Name,
    PositiveDuration,
    SchemaWithDurations,
    ShareOf,
    SqliteUrl,
    Text,
    VaultPath,
    choice,
    split_address,
    tag_of,
)
from rotator.config_vault import AppRoleAuth, CertAuth, JwtAuth, KubernetesAuth, TokenAuth, Vault
from rotator.config_windows import outside
from rotator.durations import Share
from rotator.errors import ConfigError
from rotator.secret_refs import SecretRef

__all__ = [
    "AppRoleAuth",
    "BrokerEvidence",
    "CertAuth",
    "CommandConsumer",
    "Confirm",
    "Connection",
    "ConsumerSettings",
    "Defaults",
    "Delay",
    "Discover",
    "ExternalSecretDeliver",
    "FileDeliver",
    "FileSeal",
    "HeartbeatEvidence",
    "Http",
    "HttpEvidence",
    "JwtAuth",
    "KeySettings",
    "KeyTemplate",
    "Keys",
    "KubernetesAuth",
    "KubernetesConsumer",
    "MqttConsumer",
    "NoneConsumer",
    "ProviderSettings",
    "Rotate",
    "Selection",
    "Settings",
    "State",
    "SystemdConsumer",
    "TokenAuth",
    "TransitSeal",
    "Vault",
    "VaultTarget",
    "Verify",
    "WebhookConsumer",
    "Window",
    "json_schema",
    "load",
    "notices",
]

# The settings that may stand under `defaults` as well.
FLEET_SETTINGS: Final = (
    "shutdown_grace",
    "watch",
    "drift_interval",
    "on_drift",
    "on_conflict",
    "max_due_share",
)
# The kinds of provider whose keys never get another identity, so that there is no old key to wait for.
ALWAYS_IN_PLACE: Final = frozenset({"haltian", "mosquitto", "rabbitmq"})
# The kinds whose keys never expire: nothing but `max_age` makes them due.
NEVER_EXPIRING: Final = frozenset({"losant", "mosquitto", "rabbitmq", "wayscloud"})
Entry = TypeVar("Entry", bound=KeyCommon)


class FileSeal(Part):
    """The key that seals waiting secrets lies in a file; it is made with the journal."""

    kind: Literal["file"] = "file"
    path: Text = "state/seal.key"


class TransitSeal(Part):
    """The key that seals waiting secrets is one of Vault's transit engine, reached as the secrets' store is."""

    kind: Literal["vault-transit"]
    mount: VaultPath = "transit"
    key: Name = "rotator"


Seal = Annotated[
    Annotated[FileSeal, Tag("<file>")] | Annotated[TransitSeal, Tag("<vault-transit>")],
    Discriminator(tag_of("kind")),
    choice("kind", ["file", "vault-transit"]),
]


class State(Part):
    """Where the journal lies. Relative paths are relative to the working directory."""

    url: SqliteUrl = "sqlite:///state/rotator.db"
    seal: Seal = FileSeal()

    @property
    def path(self) -> Path:
        """The journal's file."""
        return Path(self.url.removeprefix("sqlite:///"))


class Http(Part):
    """The listener of metrics, health, status page and admin API."""

    listen: Listen = "127.0.0.1:9109"
    admin_token: SecretRef | None = None

    @property
    def host(self) -> str:
        """The address to bind, without brackets."""
        return split_address(self.listen)[0]

    @property
    def port(self) -> int:
        """The port to bind; 0 for any free one."""
        return split_address(self.listen)[1]


class Defaults(Part):
    """What holds for all keys. All but `rotate` may stand at the top level too, where it wins."""

    rotate: Rotate = Rotate()
    shutdown_grace: Duration | None = None
    watch: PositiveDuration | None = None
    drift_interval: PositiveDuration | None = None
    on_drift: Literal["alert", "restore"] | None = None
    on_conflict: Literal["stop", "take_over"] | None = None
    max_due_share: ShareOf | None = None


class Settings(BaseSettings):
    """The whole configuration. Make it with `load`, which merges files and environment and knows the lines."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, env_prefix=PREFIX, env_nested_delimiter="__"
    )

    # First, so that `keys` can be merged with it.
    defaults: Defaults = Defaults()
    mode: Literal["manage", "observe"] = "manage"
    state: State = State()
    http: Http = Http()
    vault: Vault
    providers: dict[Name, ProviderSettings] = {}
    consumers: dict[Name, ConsumerSettings] = {}
    keys: KeyEntries = Keys({}, {})
    shutdown_grace: Duration = seconds(60)
    watch: PositiveDuration = seconds(300)
    drift_interval: PositiveDuration = seconds(900)
    on_drift: Literal["alert", "restore"] = "alert"
    on_conflict: Literal["stop", "take_over"] = "stop"
    max_due_share: ShareOf = Share(0.1)
    allow_insecure_files: bool = False

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` passes in: it has laid the environment over the files already (see config_file)."""
        return (init_settings,)

    @field_validator("keys")
    @classmethod
    def _merge_defaults(cls, entries: dict[str, Any], info: ValidationInfo) -> Keys:
        """`defaults.rotate` laid below that of each entry; the selections apart from the keys."""
        defaults = info.data.get("defaults", Defaults())
        keys, selections = {}, {}
        for name, entry in entries.items():
            if isinstance(entry, Selection):
                template = _merged(entry.discover.template, defaults)
                discover = entry.discover.model_copy(update={"template": template})
                selections[name] = entry.model_copy(update={"discover": discover})
            else:
                keys[name] = _merged(entry, defaults)
        return Keys(keys, selections)

    @property
    def selections(self) -> Mapping[str, Selection]:
        """The entries of `keys` that stand for keys which the platform's list names."""
        return self.keys.selections

    def shared_consumers(self) -> frozenset[str]:
        """Those of more than one key, or that may be: a selection stands for any number."""
        keys = Counter(consumer for key in self.keys.values() for consumer in key.consumers)
        chosen = (consumer for each in self.selections.values() for consumer in each.discover.template.consumers)
        return frozenset(chosen) | {consumer for consumer, count in keys.items() if count > 1}

    def selection_of(self, provider: str, listed_as: str) -> Selection | None:
        """The first selection that a key of this provider with this name there belongs to."""
        fitting = (each for each in self.selections.values() if each.provider == provider)
        return next((each for each in fitting if each.discover.covers(listed_as)), None)


def _merged(entry: Entry, defaults: Defaults) -> Entry:
    return entry.model_copy(update={"rotate": entry.rotate.over(defaults.rotate)})


def load(path: Path, environ: Mapping[str, str], *, secrets: bool = True) -> Settings:
    """Read `path` and `keys.d/*.yaml` beside it, lay `ROTATOR__…` variables over them, and check all of it.

    Args:
        path: the main file. Faults name it, and what lies in keys.d, relative to its folder.
        environ: the environment, for overrides and for `{env: …}` and `{credential: …}`.
        secrets: also look whether each referenced secret can be read. Commands that only ask a running daemon need
            none of them, and run where they are not (systemd's credentials belong to the service alone).

    Raises: ConfigError with every fault that could be found, in the order of the lines.
    """
    tree = read_files(path)
    settings = None
    if tree.readable:
        _tidy(tree)
        overlay(tree, environ, top=Settings.model_fields, references=SECRET_POSITIONS)
        _hoist_defaults(tree)
        try:
            settings = Settings(**tree.root)
        except ValidationError as exc:
            add_faults(tree, exc, Settings)
        check_references(tree)
        if secrets:
            check_secrets(tree, environ)
            check_ca_files(tree)
        check_shared(tree)
        check_wrapping(tree)
        if settings is not None:
            _check_windows(tree, settings)
            _check_due(tree, settings)
    if tree.faults or settings is None:
        # Raised outside the `except`: pydantic's exception must not be chained, since it keeps the input.
        raise ConfigError(tree.sorted_faults())
    return settings


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the main file, for editors. Durations and spans are strings."""
    schema = Settings.model_json_schema(schema_generator=SchemaWithDurations)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "rotator.yaml"}


def notices(settings: Settings) -> list[str]:
    """What was set but has no effect in this version, or none on such keys."""
    found = []
    seal = settings.state.seal
    if isinstance(seal, FileSeal) and _beside(Path(seal.path), settings.state.path):
        found.append(
            f"the seal key {seal.path} lies beside the journal: whoever copies the folder has both; keep it elsewhere"
        )
    shared = settings.shared_consumers()
    for name, consumer in settings.consumers.items():
        if isinstance(consumer, MqttConsumer) and consumer.ack is not None and name in shared:
            found.append(f"consumers.{name} serves several keys: an ack counts only where it names its key as `key`")
    found += _versions_of_others(settings)
    for name, key in settings.keys.items():
        if not _always_in_place(settings, key):
            continue
        if key.grace is not None:
            found.append(
                f"keys.{name}.grace has no effect on keys that keep their identity: the old secret is dead at once"
            )
        found += [
            f"consumers.{consumer}.{option} has no effect for keys.{name}, which keeps its identity: all its consumers"
            " restart at once"
            for consumer in key.consumers
            for option in ("canary", "max_unavailable")
            if getattr(settings.consumers[consumer], option)
        ]
    return found


def _versions_of_others(settings: Settings) -> Iterator[str]:
    """Proofs by a version in Vault that other keys move as well."""
    paths = Counter(key.vault.path for key in settings.keys.values())
    for name, key in settings.keys.items():
        for consumer in key.consumers if paths[key.vault.path] > 1 else ():
            wanted = settings.consumers[consumer]
            confirm = wanted.confirm
            versioned = confirm is not None and (confirm.http is not None or confirm.argv is not None)
            acked = isinstance(wanted, MqttConsumer) and wanted.ack is not None
            if wanted.accept == "confirmed" and (versioned or acked):
                yield (
                    f"consumers.{consumer} is proven by the version in Vault, which other keys at {key.vault.path} move"
                    f" as well as keys.{name}: prove it at the broker"
                )


def _always_in_place(settings: Settings, key: KeySettings) -> bool:
    provider = settings.providers.get(key.provider)
    return provider is not None and provider.kind in ALWAYS_IN_PLACE


def _check_windows(tree: Tree, settings: Settings) -> None:
    """A key that takes its consumers down is rotated only while all of them may be restarted."""
    for name, key in settings.keys.items():
        for consumer in key.consumers if _always_in_place(settings, key) else ():
            if consumer not in settings.consumers:
                continue
            at = outside(key.rotate.windows, settings.consumers[consumer].windows)
            if at is not None:
                where = ("keys", name, "rotate", "windows") if key.rotate.windows else ("keys", name)
                theirs = f"consumers.{consumer}.windows"
                text = f"keys.{name} takes {consumer} down when it is rotated, and may be outside {theirs}"
                hint = f"such as at {at:%A %H:%M} UTC: give the key windows that lie inside"
                tree.fault(tree.place(where), text, hint)


def _check_due(tree: Tree, settings: Settings) -> None:
    """A key that never expires and has no `max_age` would never be due."""
    entries: list[tuple[str, str, KeyCommon]] = [(name, key.provider, key) for name, key in settings.keys.items()]
    entries += [(name, each.provider, each.discover.template) for name, each in settings.selections.items()]
    for name, named, key in entries:
        provider = settings.providers.get(named)
        if provider is not None and provider.kind in NEVER_EXPIRING and key.rotate.max_age is None:
            text = f"keys.{name} has no `rotate.max_age`, and keys of kind {provider.kind} never expire"
            tree.fault(tree.place(("keys", name)), text, "such as rotate: {max_age: 60d}, here or in `defaults`")


def _beside(key: Path, journal: Path) -> bool:
    """Whether a key file is there, and in the journal's own folder."""
    return key.exists() and key.parent.resolve() == journal.parent.resolve()


def _tidy(tree: Tree) -> None:
    for name in [name for name in tree.root if name.startswith("_")]:
        # BaseSettings would take `_env_file` and its like as orders to itself.
        tree.fault(tree.place((name,)), f"unknown name `{name}`", "take it out")
        del tree.root[name]
    # `keys:` with nothing, or only comments, below it is an empty section and not a fault.
    for name in ("state", "http", "providers", "consumers", "keys", "defaults"):
        if name in tree.root and tree.root[name] is None:
            tree.root[name] = {}


def _hoist_defaults(tree: Tree) -> None:
    defaults = tree.table("defaults")
    for name in FLEET_SETTINGS:
        if name in defaults and name not in tree.root:
            tree.root[name] = defaults.pop(name)
            tree.move(("defaults", name), (name,))
