"""What is done with the journal's sealed rows as a whole: begun under another key, rewrapped, forgotten.

Everything wrapped in the journal is wrapped by one key, whose id is the fact `seal_id`. Only for who holds the
journal's lock, but for `fingerprint_key`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from rotator.errors import JournalFailed, Permanent
from rotator.journal.seal import Seal
from rotator.journal.sqlite import ERASE, SqliteJournal
from rotator.keys import ISSUE_NOW, KeyRecord
from rotator.model import Result, RotationEvent, Step, Strategy
from rotator.reasons import Reason
from rotator.rotation import Rotation

log = structlog.get_logger(__name__)

_FINGERPRINT_KEY = "fingerprint_key"
_SEAL_ID = "seal_id"
# The daemon's own at Vault, that came wrapped: its wrapped data key, and itself sealed under that.
_KEPT = "vault_secret_id"


def seal_id(journal: SqliteJournal) -> str | None:
    """The id of the key that this journal is sealed by; None for a journal that is new."""
    known = journal.fact(_SEAL_ID)
    return known.decode() if known is not None else None


def waiting_keys(journal: SqliteJournal) -> list[str]:
    """The keys whose secret waits sealed, by name."""
    return sorted({key for key, _ in journal.waiting_secrets()})


def start_anew(journal: SqliteJournal, id: str) -> None:
    """Seal from now on by another key, where no secret waits under the old one, which is lost.

    Fingerprints go (`_drop_prints`). A rotation that has not issued checks everything again, and gets a data key anew.
    """
    _drop_prints(journal)
    for rotation in journal.open_rotations().values():
        unissued = rotation.step is Step.ISSUE and rotation.calling_since is None
        step = Step.PREFLIGHT if unissued else rotation.step
        journal.save(rotation=replace(rotation, step=step, expected=None, base_print=None))
    if journal.fact(_KEPT) is not None:
        log.warning("kept_secret_id_lost", seal=id)  # the next login at Vault needs a new wrapping token
    journal.rewrap(_unused(journal), {_SEAL_ID: id.encode(), _FINGERPRINT_KEY: None, _KEPT: None})


def fingerprint_key(journal: SqliteJournal, seal: Seal) -> bytes:
    """The key of the fingerprints, which lies wrapped in the journal; made where there is none.

    Raises: Transient, Permanent where Vault wraps and can't be asked; Permanent SEAL_BROKEN where the wrapping key is
        another one and secrets wait under the right one.
    """
    wrapped = journal.fact(_FINGERPRINT_KEY)
    if wrapped is not None:
        try:
            return seal.unwrap(wrapped)
        except Permanent as exc:
            if exc.reason is not Reason.SEAL_BROKEN or journal.waiting_secrets():
                raise
            # a transit key that was deleted and made again under its old name
            log.warning("fingerprints_start_anew", seal=seal.id, error=exc.message)
            _drop_prints(journal)
            journal.rewrap(_unused(journal), {_FINGERPRINT_KEY: None})
    wrapped = seal.new_data_key()
    # not from memory: where Vault wraps, this shows once that what is sealed can be opened again
    seal.forget(wrapped)
    key = seal.unwrap(wrapped)
    journal.set_fact(_FINGERPRINT_KEY, wrapped)
    return key


def save_secret_id(journal: SqliteJournal, seal: Seal, content: bytes) -> None:
    """Keep what came out of Vault's wrapping, sealed under a data key of its own; what was kept before is gone.

    Raises: JournalFailed; Transient, Permanent where Vault wraps and can't be asked.
    """
    wrapped = seal.new_data_key()
    try:
        sealed = seal.seal(wrapped, content, bound_to=_KEPT)
    finally:
        seal.forget(wrapped)
    journal.rewrap({}, {_KEPT: _joined(wrapped, sealed)})  # and out of the write-ahead log as well


def load_secret_id(journal: SqliteJournal, seal: Seal | Callable[[], Seal]) -> bytes | None:
    """What is kept; None where nothing is, and then the seal is not asked for.

    Raises: JournalFailed; Permanent SEAL_BROKEN; and what `seal` raises.
    """
    kept = journal.fact(_KEPT)
    if kept is None:
        return None
    wrapped, sealed = _parted(kept)
    return (seal if isinstance(seal, Seal) else seal()).open(wrapped, sealed, bound_to=_KEPT)


def _joined(wrapped: bytes, sealed: bytes) -> bytes:
    """One fact, so that a reader never sees one half with another's other half."""
    return len(wrapped).to_bytes(4, "big") + wrapped + sealed


def _parted(kept: bytes) -> tuple[bytes, bytes]:
    end = 4 + int.from_bytes(kept[:4], "big")
    return kept[4:end], kept[end:]


def _drop_prints(journal: SqliteJournal) -> None:
    """Fingerprints under a lost key can't be compared any more: Vault is looked at as at first contact."""
    for record in journal.all_keys():
        if record.fingerprint is not None or record.adopted is not None:
            journal.save(key=record.name, change=_without_fingerprint)


def _unused(journal: SqliteJournal) -> dict[str, None]:
    """The data keys under which nothing is sealed yet, to be dropped: new ones are made before anything is issued."""
    return {key.rotation: None for key in journal.wrapped_keys() if not key.sealed}


def rewrap_all(journal: SqliteJournal, rewrap: Callable[[bytes], bytes], id: str) -> int:
    """Wrap every data key anew, and the fingerprints' and the secret id's, and note the new seal's id: one commit.

    Args:
        rewrap: wrapped by the old key → wrapped by the new one.
        id: of the new seal.

    Returns: how many keys were rewrapped.

    Raises: what `rewrap` raises for a key that a secret, or the fingerprints, need; nothing is changed then.
    """
    changed: dict[str, bytes | None] = {}
    for key in journal.wrapped_keys():
        try:
            changed[key.rotation] = rewrap(key.data_key)
        except Permanent as exc:
            if key.holds_secret or exc.reason is not Reason.SEAL_BROKEN:
                raise
            log.warning("left_closed", rotation=key.rotation, error=exc.message)  # its key was lost before
    named: dict[str, bytes | None] = {_SEAL_ID: id.encode()}
    wrapped = journal.fact(_FINGERPRINT_KEY)
    if wrapped is not None:
        named[_FINGERPRINT_KEY] = rewrap(wrapped)
    kept = journal.fact(_KEPT)
    if kept is not None:
        data_key, sealed = _parted(kept)
        named[_KEPT] = _joined(rewrap(data_key), sealed)
    journal.rewrap(changed, named)
    return len(changed) + (wrapped is not None) + (kept is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What `forget_secret` did."""

    blobs: int
    rotates: bool  # whether the next start rotates the key
    orphan: str  # the id of a key that the lost answer made at the provider; empty where there is none


def forget_secret(journal: SqliteJournal, name: str, now: datetime) -> Forgotten:
    """Accept that what waits sealed for a key is lost: erase it, end its rotation, have the key rotated again.

    Raises: Permanent BAD_REQUEST where nothing is sealed for this key.
    """
    rows = journal.sealed_rows(name)
    if not rows:
        raise Permanent(f"nothing lies sealed for {name}", reason=Reason.BAD_REQUEST)
    # Else what is sealed is an answer without a secret, and its rotation goes on.
    lost = [row.rotation for row in rows if row.holds_secret or row.rotation.answers]
    rotation, orphan = rows[-1].rotation, ""
    event = RotationEvent(
        at=now,
        key=name,
        provider=rotation.provider,
        name="secret_forgotten",
        rotation=rotation.id,
        result="failed",
        reason=Reason.SECRET_FORGOTTEN,
    )
    history = [event]
    ended = rotation.finished_at is None and rotation in lost
    if ended:
        orphan = _orphan(rotation)
        detail = f"the key {orphan} that it made stays at {rotation.provider}: delete it there" if orphan else ""
        rotation = replace(
            rotation,
            finished_at=now,
            result=Result.FAILED,
            reason=Reason.SECRET_FORGOTTEN,
            detail=detail,
            not_before=None,
            quarantine=None,
            sealed=False,
        )
        history.append(replace(event, name="rotation_ended", detail=detail))
    record = journal.key(name)
    # the secret of an id that the configuration has changed since is missed by nobody
    missed = record is not None and any(record.id in {one.identity.id, one.target.id} for one in lost)
    journal.save(
        key=name if missed else None,
        change=lambda old: _to_be_rotated(old if old is not None else record, now),
        rotation=rotation,
        blob=ERASE,
        history=history,
    )
    return Forgotten(blobs=len(rows), rotates=missed, orphan=orphan)


def _orphan(rotation: Rotation) -> str:
    made = rotation.new_identity if rotation.strategy is Strategy.REPLACE else None
    return made.id if made is not None else ""


def _to_be_rotated(record: KeyRecord | None, now: datetime) -> KeyRecord:
    """Nothing is assumed of what the lost answer said: the provider's list is learnt anew, and a rotation is due."""
    if record is None:
        raise JournalFailed("the key's record is gone", reason=Reason.JOURNAL_UNREADABLE)
    return replace(
        record,
        listed_at=None,
        issued_at=None,
        expires_at=None,
        expiry_source=None,
        implausible=False,
        draw=None,
        drawn_for=None,
        rotate_at=None,
        due_reason=None,
        last_issue_at=None,
        last_reason=Reason.SECRET_FORGOTTEN,
        last_detail="",
        requested=ISSUE_NOW,  # the old secret may be dead already: no window and no pause keeps it waiting
        wake_at=now,
    )


def _without_fingerprint(record: KeyRecord | None) -> KeyRecord:
    if record is None:
        raise JournalFailed("the key's record is gone", reason=Reason.JOURNAL_UNREADABLE)
    return replace(record, fingerprint=None, adopted=None)
