"""The commands about keys at their platforms: `discover`, `provision`, `retire`. None needs a daemon, or its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rotator.cli_output import err, print_json, print_text
from rotator.clock import SystemClock
from rotator.config_types import nearest
from rotator.errors import ConfigError, Fault, JournalLocked, Permanent
from rotator.reasons import Reason
from rotator.settings import FileSeal, Settings, VaultTarget, load

if TYPE_CHECKING:  # `rotator status` need not wait for Vault's and the platforms' libraries
    from rotator.discovery import Found, Managed
    from rotator.journal.seal import Seal
    from rotator.ports import Provider
    from rotator.stores.vault import VaultStore

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", envvar="ROTATOR_CONFIG", help="The configuration file.", show_default=True)
]
DEFAULT_CONFIG = Path("/etc/rotator/rotator.yaml")
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
ProviderArgument = Annotated[str, typer.Argument(metavar="PROVIDER", help="The provider's name in the configuration.")]
Pairs = Annotated[list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="What the platform is told.")]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="FIELD=TEMPLATE",
        help="A field of Vault's secret; default: username={username} and password={secret}.",
    ),
]


def discover(
    provider: ProviderArgument,
    match: Annotated[str, typer.Option(help="Only keys whose name at the platform fits this pattern.")] = "*",
    write: Annotated[Path | None, typer.Option(help="A file to write to; it must not exist.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Print the keys at a platform as configuration; those that are managed already are left out."""
    from rotator.discovery import as_yaml, called, find, listed, managed_ids, taken_names, write_new

    with _platform(config, provider) as (settings, platform, _store):
        managed = managed_ids(settings)
        keys = listed(platform)
        known = {key.id for key in keys if (provider, key.id) in managed}
        known |= {key.id for key in keys if settings.selection_of(provider, called(key)) is not None}
        fresh = [key for key in keys if key.id not in known]
        found = list(find(platform, fresh, match, taken_names(settings, managed)))
    for id in sorted(known):
        _aside(f"left out: {id} is managed by keys.{managed.get((provider, id), '… with `discover`')}")
    if write is not None:
        write_new(write, as_yaml(found))
        _aside(f"{write}: {len(found)} key{'' if len(found) == 1 else 's'}")
    if as_json:
        print_json({**_shown(found), "left_out": sorted(known)})
    elif write is None:
        print_text(as_yaml(found))


def provision(
    provider: ProviderArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is to be called at the platform.")],
    vault_path: Annotated[str, typer.Option("--vault-path", help="Where its secret goes, below the mount.")],
    options: Pairs = None,
    fields: Fields = None,
    existing: Annotated[
        bool, typer.Option("--existing", help="Where a key of this name is there already, give it a new secret.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make a key, and all that belongs to it, and put its secret into Vault. Run again after a failure, it goes on."""
    from rotator.discovery import FIELDS, Found, as_yaml, entry, managed_ids, name_for, taken_names
    from rotator.model import UpstreamKey
    from rotator.provisioning import Wanted
    from rotator.provisioning import provision as make

    target = _target(vault_path, _pairs(fields, "--field") or FIELDS)
    with _platform(config, provider) as (settings, platform, store), _seal(settings, store) as seal:
        _refuse_to_observe(settings)
        _refuse_a_path_in_use(settings, target)
        given = _pairs(options, "--set")
        _check_options(platform, given)
        managed = managed_ids(settings)
        _refuse_another_place_than_the_selections(settings, provider, name, target)
        wanted = Wanted(name=name, path=target.path, fields=target.fields, options=given, existing=existing)
        folder = settings.state.path.with_name("provision")
        done = make(wanted, provider=platform, store=store, seal=seal, folder=folder, managed=managed)
        upstream = UpstreamKey(id=done.identity.id, name=name, expires_at=done.expires_at)
        found = Found(
            name=name_for(upstream, taken_names(settings, managed)),
            upstream=upstream,
            entry=entry(provider, done.identity.id, target.path, target.fields),
        )
    if as_json:
        vault = {"path": target.path, "version": done.version}
        print_json({**_shown([found]), "id": done.identity.id, "vault": vault, "resumed": done.resumed})
        return
    earlier = " (its secret was issued by an earlier run)" if done.resumed else ""
    _aside(f"{name} is {done.identity.id}, in Vault at {target.path} version {done.version}{earlier}")
    if settings.selection_of(provider, name) is None:
        print_text(as_yaml([found]))
    else:
        _aside("an entry with `discover` covers it: the daemon manages it from its next look at the platform on")


def retire(
    provider: ProviderArgument,
    id: Annotated[str, typer.Argument(metavar="ID", help="The key's id at the platform.")],
    keep: Annotated[bool, typer.Option("--keep", help="Make it useless, and don't delete it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make a key that no entry of the configuration manages useless, and delete it."""
    from rotator.discovery import comment, managed_ids
    from rotator.provisioning import retire as end
    from rotator.provisioning import to_retire

    with _platform(config, provider) as (settings, platform, _store):
        _refuse_to_observe(settings)
        managed = _with_selections(settings, platform, managed_ids(settings))
        upstream = to_retire(platform, id, keep=keep, managed=managed)
        what = f"{provider}: {id}" + (f" ({comment(upstream)})" if upstream is not None else "")
        if not yes:
            if not sys.stdin.isatty():
                raise typer.BadParameter("there is nobody to ask: --yes says that it is meant")
            typer.confirm(f"{what}: {'make it useless' if keep else 'delete it'}?", abort=True, err=True)
        end(platform, id, keep=keep, managed=managed)
    if as_json:
        print_json({"provider": provider, "id": id, "deleted": not keep})
        return
    _aside(f"{what} is {'inactive' if keep else 'deleted'}")


# --- what they share


@contextmanager
def _platform(config: Path, name: str) -> Iterator[tuple[Settings, Provider, VaultStore]]:
    """One provider, wired, and the store: neither journal nor lock."""
    from rotator.app import reach
    from rotator.logs import configure

    configure(level="WARNING")
    settings = load(config, os.environ)
    if name not in settings.providers:
        known = ", ".join(settings.providers) or "none"
        hint = nearest(name, settings.providers) or f"known are: {known}"
        raise typer.BadParameter(f"there is no provider {name!r} in the configuration; {hint}")
    with ExitStack() as stack:
        store, providers = reach(settings, stack, SystemClock(), lambda _done: None)
        yield settings, providers[name], store


@contextmanager
def _seal(settings: Settings, store: VaultStore) -> Iterator[Seal]:
    """The journal's seal: with its lock where no daemon runs, which may have to make the key; else only read."""
    from rotator.app import hold_journal
    from rotator.journal.seal import Seal
    from rotator.journal.seal_file import read_key
    from rotator.sealing import open_seal, transit

    asked = settings.state.seal
    with ExitStack() as stack:
        try:
            journal = hold_journal(settings, stack)
        except JournalLocked:
            journal = None
        if journal is not None:
            yield open_seal(asked, journal, lambda: store)[0]
        else:
            yield Seal(read_key(Path(asked.path)) if isinstance(asked, FileSeal) else transit(asked, lambda: store))


def _with_selections(settings: Settings, platform: Provider, managed: Managed) -> Managed:
    """Also those that a daemon would take on at its next look."""
    from rotator.discovery import called

    if not platform.abilities.lists or not settings.selections:
        return managed
    covered = {
        (platform.name, key.id): "… with `discover`"
        for key in platform.list_keys()
        if settings.selection_of(platform.name, called(key)) is not None and key.problem is None
    }
    return {**covered, **managed}


def _target(path: str, fields: Mapping[str, str]) -> VaultTarget:
    """What stands under `vault:` in an entry, checked as it is there."""
    from pydantic import ValidationError

    try:
        return VaultTarget(path=path, fields=dict(fields))
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = "--field" if "fields" in first["loc"] else "--vault-path"
        context = first.get("ctx", {})
        hint = f" ({context['hint']})" if context.get("hint") else ""
        raise typer.BadParameter(f"{where}: {context.get('text', 'can not be used')}{hint}") from None


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    found = {}
    for each in given or []:
        name, sign, value = each.partition("=")
        if not sign or not name:
            raise typer.BadParameter(f"{option} takes NAME=VALUE, not {each}")
        found[name] = value
    return found


def _check_options(platform: Provider, given: Mapping[str, str]) -> None:
    from rotator.ports import Provisioning

    if not isinstance(platform, Provisioning):
        return  # refused in a moment, in words of its own
    for name in given.keys() - platform.options.keys():
        known = "; ".join(f"{option}: {text}" for option, text in platform.options.items()) or "none at all"
        raise typer.BadParameter(f"{platform.name} knows no option {name!r}; there is {known}")


def _refuse_to_observe(settings: Settings) -> None:
    if settings.mode == "observe":
        raise Permanent("the configuration says `mode: observe`", reason=Reason.OBSERVE_MODE)


def _refuse_a_path_in_use(settings: Settings, target: VaultTarget) -> None:
    for name, key in settings.keys.items():
        if key.vault.path == target.path and (shared := key.vault.fields.keys() & target.fields.keys()):
            text = f"keys.{name} writes {', '.join(sorted(shared))} at {target.path} already"
            raise ConfigError([Fault("--vault-path", text, "name another path")])


def _refuse_another_place_than_the_selections(
    settings: Settings, provider: str, name: str, target: VaultTarget
) -> None:
    """A daemon takes on what a selection covers at its next look, and expects its secret where the template says."""
    from rotator.discovery import name_for
    from rotator.model import UpstreamKey

    if (selection := settings.selection_of(provider, name)) is None:
        return
    called = name_for(UpstreamKey(id=name, name=name), {*settings.keys, *settings.selections})
    expected = selection.discover.template.key(called, provider, name).vault
    if (expected.path, expected.fields) != (target.path, target.fields):
        fields = " ".join(f"--field '{field}={template}'" for field, template in expected.fields.items())
        text = f"a selection covers {name}, and expects its secret elsewhere: --vault-path {expected.path} {fields}"
        raise ConfigError([Fault("--vault-path", text, "or exclude this name from the selection")])


def _shown(found: list[Found]) -> dict[str, Any]:
    listed = {
        each.name: {
            "name": each.upstream.name,
            "expires_at": each.upstream.expires_at,
            "problem": each.upstream.problem.value if each.upstream.problem else None,
        }
        for each in found
    }
    return {"keys": {each.name: dict(each.entry) for each in found}, "listed": listed}


def _aside(text: str) -> None:
    """On stderr: what is printed beside it may be piped into a file."""
    err.print(text, highlight=False, soft_wrap=True, markup=False)
