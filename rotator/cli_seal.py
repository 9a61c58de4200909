"""The commands about the seal and the journal's file: `seal init`, `seal rotate-key`, `seal forget`, and `backup`.

They need no daemon; those that change the journal take its lock, and say who holds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rotator.cli_output import out
from rotator.clock import SystemClock
from rotator.errors import Permanent
from rotator.reasons import Reason
from rotator.settings import FileSeal, Settings, load

if TYPE_CHECKING:  # `rotator status` need not wait for a database's and Vault's libraries
    from rotator.journal.sqlite import SqliteJournal
    from rotator.stores.vault import VaultStore

seal = typer.Typer(no_args_is_help=True, help="The key that seals secrets which wait in the journal.")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", envvar="ROTATOR_CONFIG", help="The configuration file.", show_default=True)
]
DEFAULT_CONFIG = Path("/etc/rotator/rotator.yaml")


@seal.command()
def init(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Make the key file before the first start, to keep a copy of it; with Vault's transit engine, try the key."""
    from rotator.journal.seal_file import make_key
    from rotator.sealing import prove, refuse_while_secrets_wait, transit

    settings = _loaded(config)
    asked = settings.state.seal
    if not isinstance(asked, FileSeal):
        with ExitStack() as stack:
            store = _store(settings, stack)
            prove(transit(asked, lambda: store))
        _say(f"Vault's key {asked.mount}/{asked.key} wraps and unwraps data keys")
        return
    if Path(asked.path).exists():
        raise Permanent(f"there is a seal key at {asked.path} already: it stays", reason=Reason.BAD_REQUEST)
    refuse_while_secrets_wait(settings.state.url)
    made = make_key(Path(asked.path))
    _say(f"{asked.path} is the seal key {made.id}: keep a copy of it, apart from the journal's backups")


@seal.command("rotate-key")
def rotate_key(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Seal everything by a new key: a new key file, or the newest version of Vault's key. No daemon may run."""
    from rotator import sealing

    settings = _loaded(config)
    with ExitStack() as stack:
        store = _store(settings, stack)
        journal = stack.enter_context(_locked_journal(settings))
        _refuse_while_provisioned(settings)
        done = sealing.rotate_key(settings.state.seal, journal, lambda: store)
    keys = f"{done.rewrapped} wrapped key{'' if done.rewrapped == 1 else 's'}"
    if done.old == done.new:
        _say(f"{keys} rewrapped by the newest version of {done.new}")
        return
    _say(f"the seal key {done.new} has taken the place of {done.old}; {keys} rewrapped")
    _say(f"keep a copy of the new one; backups from before still need the key {done.old}")


@seal.command()
def forget(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key's name in the configuration.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Accept that the secret which waits sealed for a key is lost: erase it, and have the key rotated again."""
    from rotator.journal.keeping import forget_secret, waiting_keys

    settings = _loaded(config)
    with _locked_journal(settings) as journal:
        done = forget_secret(journal, key, SystemClock().now())
        left = waiting_keys(journal)
    _say(f"{key}: {done.blobs} sealed record{'' if done.blobs == 1 else 's'} erased")
    if done.rotates:
        _say(f"{key} is rotated again as soon as the daemon runs")
    if done.orphan:
        _say(f"the key {done.orphan} that the lost answer made is still at the provider: delete it there")
    if left:
        _say(f"still sealed: {', '.join(left)}")


def backup(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Where the copy goes; it must not exist.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Copy the journal, beside a running daemon as well. The seal key is left out."""
    from rotator.journal.backup import back_up

    settings = _loaded(config)
    done = back_up(settings.state.path, path)
    _say(f"{path}: {done.size} bytes, checked, readable by its owner only")
    asked = settings.state.seal
    where = asked.path if isinstance(asked, FileSeal) else f"Vault's {asked.mount}/{asked.key}"
    _say(f"the seal key {done.sealed_by} ({where}) is not in it: without that key, what waits sealed stays closed")


def _refuse_while_provisioned(settings: Settings) -> None:
    """What `provision` left sealed lies outside the journal, and a new key would not open it."""
    if waiting := sorted(settings.state.path.with_name("provision").glob("*.sealed")):
        words = f"{waiting[0]} waits for Vault, sealed by this key: run that `rotator provision` again first"
        raise Permanent(words, reason=Reason.BAD_REQUEST)


def _loaded(config: Path) -> Settings:
    from rotator.logs import configure

    configure(level="WARNING")
    return load(config, os.environ, secrets=False)


@contextmanager
def _locked_journal(settings: Settings) -> Iterator[SqliteJournal]:
    """The journal, ours alone, with what was spooled taken back.

    Raises: JournalLocked where a daemon runs; JournalFailed, also where there is no journal.
    """
    from rotator.journal.database import no_journal
    from rotator.journal.spool import Spool
    from rotator.journal.sqlite import SqliteJournal, locked
    from rotator.taking_up import take_back

    path = settings.state.path
    if not path.exists():
        raise no_journal(path)
    with ExitStack() as stack:
        stack.enter_context(locked(path))
        journal = SqliteJournal(settings.state.url)
        stack.callback(journal.close)
        take_back(Spool(path.with_name("spool")), journal)
        yield journal


def _store(settings: Settings, stack: ExitStack) -> VaultStore:
    from rotator.app import make_store

    store = make_store(settings, lambda _done: None, SystemClock())
    stack.callback(store.close)
    return store


def _say(text: str) -> None:
    out.print(text, highlight=False, soft_wrap=True, markup=False)
