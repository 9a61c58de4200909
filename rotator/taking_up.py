"""What a start makes of the journal that it finds: spooled answers, rotations in flight, and keys that came or went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rotator.errors import ConfigError, Fault
from rotator.journal.spool import Spool
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import KeyRecord
from rotator.managed import ManagedKey
from rotator.model import Result, Step, Strategy
from rotator.ports import Clock
from rotator.reasons import Reason


def take_back(spool: Spool, journal: SqliteJournal) -> None:
    """What a failing journal could not take goes back into it."""
    for rotation, data_key, blob in spool.waiting():
        known = journal.rotation(rotation.id)
        # else the journal has gone further since; an answer without a secret is spooled by a call that still seems out
        if known is None or known.answers < rotation.answers or known.step is Step.ISSUE:
            journal.save(rotation=rotation, data_key=data_key, blob=blob)
        spool.release(rotation.id)
    spool.sweep()


def introduce(journal: SqliteJournal, keys: Mapping[str, ManagedKey], clock: Clock) -> None:
    """Give every configured key a record, due for a look now; forget those that are configured no more.

    Raises: ConfigError where a key that is replaced is configured with an id that it never had.
    """
    known = {record.name: record for record in journal.all_keys()}
    strangers = [name for name, key in keys.items() if _stranger(known.get(name), key)]
    if strangers:
        raise ConfigError([_fault(name, keys[name], known[name]) for name in strangers])
    gone = [name for name in known if name not in keys]
    if gone:
        journal.forget_keys(gone)
    for name, key in keys.items():
        take_on(journal, known.get(name), key, clock)


def take_on(journal: SqliteJournal, known: KeyRecord | None, key: ManagedKey, clock: Clock) -> None:
    """Give one key a record, due for a look now; `known` is the one that the journal has of this name."""
    record = _taken_up(journal, known, key, clock)
    journal.save(key=key.name, change=lambda _old: record)


def _taken_up(journal: SqliteJournal, record: KeyRecord | None, key: ManagedKey, clock: Clock) -> KeyRecord:
    fresh = KeyRecord(name=key.name, provider=key.provider.name, id=key.id, ids=(key.id,))
    moved = record is None or record.provider != fresh.provider or key.id not in (record.ids or (record.id,))
    left = journal.open_rotation(key.name) if moved else None
    if left is not None:
        # Its sealed secret stays in the journal; its dates and identity are not the new id's.
        detail = f"the configuration names another key now, no longer {left.identity.id}"
        ended = replace(left, finished_at=clock.now(), result=Result.FAILED, reason=Reason.KEY_UNKNOWN, detail=detail)
        journal.save(rotation=ended)
    start = replace(fresh if moved or record is None else record, wake_at=clock.now(), listed_as=key.listed_as)
    # nobody is left whom the gap could concern
    return start if key.consumers else replace(start, gap_started_at=None)


def _stranger(record: KeyRecord | None, key: ManagedKey) -> bool:
    """The configured id of a key that is replaced is its first one; one outside its history would lose the current."""
    if record is None or key.provider.strategy is not Strategy.REPLACE or record.provider != key.provider.name:
        return False
    return len(record.ids) > 1 and key.id not in record.ids


def _fault(name: str, key: ManagedKey, record: KeyRecord) -> Fault:
    text = f"keys.{name}.id: {key.id} is not one of this key's ids; it is {record.id} now"
    return Fault("configuration", text, f"the configured id is the first one: {record.ids[0]}")
