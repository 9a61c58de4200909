"""The seal that the configuration asks for: which key, whether the journal is sealed by it, a new one in its place.

Part of the composition root: it knows the settings, the journal and Vault.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import structlog

from rotator.errors import JournalFailed
from rotator.journal.keeping import fingerprint_key, rewrap_all, seal_id, start_anew, waiting_keys
from rotator.journal.seal import Fingerprints, KeyWrap, Seal
from rotator.journal.seal_file import make_key, replace_key, settled_key
from rotator.journal.sqlite import SqliteJournal, database_path
from rotator.reasons import Reason
from rotator.settings import FileSeal, TransitSeal
from rotator.stores.transit import Transit
from rotator.stores.vault import VaultStore

log = structlog.get_logger(__name__)

GetStore = Callable[[], VaultStore]


def open_seal(settings: FileSeal | TransitSeal, journal: SqliteJournal, store: GetStore) -> tuple[Seal, Fingerprints]:
    """The seal and the fingerprints of this journal, without asking Vault anything.

    The key of the fingerprints is got when the first print is taken, so that a daemon starts while Vault is down.

    Args:
        journal: locked, and with what was spooled taken back, since that waits sealed as well.
        store: gives the store whose login transit uses; called when Vault is first needed, not before.

    Raises: JournalFailed SEAL_KEY_MISSING, SEAL_BROKEN where the key is not the one that waiting secrets need, with
        its id and their keys.
    """
    wrapping = _settled(settings, journal, store)
    if seal_id(journal) != wrapping.id:
        start_anew(journal, wrapping.id)
    seal = Seal(wrapping)
    return seal, Fingerprints(lambda: fingerprint_key(journal, seal))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """What `rotate_key` did: the ids of the old and the new seal (the same with transit), and how many keys moved."""

    old: str
    new: str
    rewrapped: int


def rotate_key(settings: FileSeal | TransitSeal, journal: SqliteJournal, store: GetStore) -> Rotated:
    """Put a new key in the place of the old one; what is sealed stays so, and fingerprints stay the same.

    A key file: a new one, everything rewrapped in one commit, the new file in the place of the old one; a crash at any
    moment is put right by the next start. Vault's transit engine: everything under the newest version of its key.

    Raises: as `open_seal`; Transient, Permanent where Vault can't be asked. Nothing is changed then.
    """
    old = _settled(settings, journal, store)
    if seal_id(journal) != old.id:
        start_anew(journal, old.id)
    count = 0
    if isinstance(old, Transit):
        return Rotated(old=old.id, new=old.id, rewrapped=rewrap_all(journal, old.rewrap, old.id))

    def go_over(new: KeyWrap) -> None:
        nonlocal count
        count = rewrap_all(journal, lambda wrapped: new.wrap(old.unwrap(wrapped)), new.id)

    new = replace_key(_key_file(settings), go_over)
    return Rotated(old=old.id, new=new.id, rewrapped=count)


def transit(settings: TransitSeal, store: GetStore) -> Transit:
    """Vault's key that the settings name."""
    return Transit(store, mount=settings.mount, key=settings.key)


def prove(wrapping: KeyWrap | Transit) -> None:
    """Wrap a data key and open it again: whether the key is there and may be used so.

    Raises: what the key's owner raises.
    """
    plain, wrapped = wrapping.new()
    if wrapping.unwrap(wrapped) != plain:
        raise JournalFailed(f"{wrapping.id} does not open what it wrapped", reason=Reason.SEAL_BROKEN)


def refuse_while_secrets_wait(url: str) -> None:
    """Raise JournalFailed SEAL_KEY_MISSING where secrets wait in the journal: a new key could open none of them."""
    if not database_path(url).exists():
        return
    with closing(SqliteJournal(url, read_only=True)) as journal:
        known, waiting = seal_id(journal), ", ".join(waiting_keys(journal))
    if waiting:
        raise JournalFailed("a new seal key opens nothing" + _needed(known, waiting), reason=Reason.SEAL_KEY_MISSING)


def _needed(known: str | None, waiting: str) -> str:
    return f"; the seal key {known or 'that is lost'} is needed for the secrets that wait sealed: {waiting}"


def _settled(settings: FileSeal | TransitSeal, journal: SqliteJournal, store: GetStore) -> KeyWrap | Transit:
    """The configured key; made where there is none and nothing waits for the lost one."""
    known, waiting = seal_id(journal), ", ".join(waiting_keys(journal))
    needed = _needed(known, waiting)
    if isinstance(settings, TransitSeal):
        found: KeyWrap | Transit | None = transit(settings, store)
    else:
        try:
            found = settled_key(Path(settings.path), known)
        except JournalFailed as exc:
            raise JournalFailed(exc.message + needed if waiting else exc.message, reason=exc.reason) from exc
    if waiting and (found is None or known not in {None, found.id}):
        name = f"the key file {settings.path}" if isinstance(settings, FileSeal) else "state.seal"
        here = f"{name} is missing" if found is None else f"{name} is {found.id}"
        raise JournalFailed(here + needed, reason=Reason.SEAL_KEY_MISSING)
    if found is None:
        found = make_key(_key_file(settings))
        log.info("seal_key_made", path=str(_key_file(settings)), seal=found.id, replaces=known)
    return found


def _key_file(settings: FileSeal | TransitSeal) -> Path:
    assert isinstance(settings, FileSeal)
    return Path(settings.path)
