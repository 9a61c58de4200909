"""`provision` and `retire`: a key that was not there, with its secret in Vault; a key that nobody needs any more.

The answer that holds the new secret is sealed into a file below `state/provision/` before anything else happens with it
(rule 1), and Vault is written from there: after a crash, or while Vault is away, the same command run again goes on.
Neither touches the journal, so both work beside a running daemon.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

import structlog

from rotator.discovery import Managed, called, listed
from rotator.errors import Permanent, RotatorError, Transient
from rotator.journal.seal import Seal, sync_directory
from rotator.journal.spool import RESERVED_BYTES
from rotator.managed import ManagedKey
from rotator.model import MARKER, Identity, Issued, Secret, UpstreamKey
from rotator.policy import Policy
from rotator.ports import Deactivating, Deleting, Provider, Provisioning, Store
from rotator.promoting import only_over
from rotator.reasons import Reason
from rotator.rotation import Limits
from rotator.timestamps import parse_timestamp

log = structlog.get_logger(__name__)

# Seconds between two tries to let somebody hold an answer.
_AGAIN: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What `provision` is asked for: the key's name at the platform, options, and where its secret goes."""

    name: str
    path: str
    fields: Mapping[str, str]
    options: Mapping[str, str] = field(default_factory=dict)
    existing: bool = False  # whether a key of this name that is there already may be given a new secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """The new key, and the version of Vault's secret that holds it."""

    identity: Identity
    expires_at: datetime | None
    version: int
    resumed: bool  # the secret had been issued by an earlier run


class Answer:
    """The files of one provisioning: what was begun, room for the answer, the sealed answer.

    Args:
        folder: `state/provision`.
        provider, name: whose answer it is; a sealed one opens for these alone.
    """

    def __init__(self, folder: Path, provider: str, name: str) -> None:
        self._folder = folder
        self._bound_to = json.dumps(["provision", provider, name])
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip("-.") or "key"
        mark = hashlib.sha256(self._bound_to.encode()).hexdigest()[:12]  # names of keys may hold anything
        self._begun, self._reserved, self.sealed = (
            folder / f"{stem}-{mark}.{kind}" for kind in ("begun", "reserved", "sealed")
        )

    def marker(self) -> str | None:
        """The marker of a run that began and did not end; None where there is none."""
        try:
            text = self._begun.read_text(encoding="ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return text if MARKER.fullmatch(text) else None

    def begin(self) -> str:
        """Set room aside on the disk, and note under which marker the key will be made; the same one if run again.

        Raises: Transient JOURNAL_UNWRITABLE where the disk has no room.
        """
        marker = self.marker() or f"rotator-{uuid.uuid4().hex[:12]}-1"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(self._begun, marker.encode())
            descriptor = os.open(self._reserved, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVED_BYTES)
            finally:
                os.close(descriptor)
            sync_directory(self._folder)
        except OSError as exc:
            words = f"no room can be set aside for the answer: {exc.strerror or exc}"
            raise Transient(words, reason=Reason.JOURNAL_UNWRITABLE) from exc
        return marker

    def keep(self, seal: Seal, data_key: bytes, issued: Issued) -> None:
        """Seal an answer into the room that was set aside, durably.

        Raises: OSError.
        """
        sealed = seal.seal(data_key, _plain(issued), bound_to=self._bound_to)
        parts = {"seal": seal.id, "data_key": _text(data_key), "sealed": _text(sealed)}
        _write(self._reserved, json.dumps(parts).encode())
        self._reserved.rename(self.sealed)
        sync_directory(self._folder)

    def waiting(self, seal: Seal) -> Issued | None:
        """The answer that an earlier run sealed; None where none waits.

        Raises: Permanent SEAL_BROKEN where it can't be opened.
        """
        try:
            parts = json.loads(self.sealed.read_bytes())
            data_key, sealed = base64.b64decode(parts["data_key"]), base64.b64decode(parts["sealed"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as exc:
            words = f"{self.sealed} can't be read: remove it to have a new secret made"
            raise Permanent(words, reason=Reason.SEAL_BROKEN) from exc
        try:
            return _issued(seal.open(data_key, sealed, bound_to=self._bound_to))
        except Permanent as exc:
            words = f"{self.sealed} was sealed by {parts.get('seal')}, and the seal is {seal.id} now: {exc.message}"
            raise Permanent(words, reason=Reason.SEAL_BROKEN) from exc

    def remove(self) -> None:
        """Vault holds the secret."""
        for path in (self.sealed, self._begun, self._reserved):
            path.unlink(missing_ok=True)
        sync_directory(self._folder)


def provision(
    wanted: Wanted, *, provider: Provider, store: Store, seal: Seal, folder: Path, managed: Managed
) -> Provisioned:
    """Make a key and bring its secret to Vault; or go on where an earlier run ended.

    Args:
        folder: `state/provision`.
        managed: the ids that entries of the configuration manage.

    Raises:
        Permanent: PROVIDER_UNABLE; BAD_REQUEST where a key of that name is there already, or its place in Vault is
            taken; the store's, the seal's and the provider's.
        Transient, UnknownOutcome, BadAnswer: as these raise them. Run again, it goes on.
    """
    if not provider.abilities.creates or not isinstance(provider, Provisioning):
        words = f"{provider.name}: rotator can't make keys at this platform"
        raise Permanent(words, reason=Reason.PROVIDER_UNABLE)
    store.preflight(wanted.path)
    with _alone(folder):
        answer = Answer(folder, provider.name, wanted.name)
        issued, version = answer.waiting(seal), None
        resumed = issued is not None
        if issued is None:
            _refuse_a_taken_place(wanted, store)
            _refuse_anothers_key(wanted, provider, managed, begun=answer.marker() is not None)
            data_key = seal.new_data_key()
            marker = answer.begin()
            with undisturbed():
                issued = provider.provision(wanted.name, wanted.options, marker)
                version = _kept(wanted, provider, store, answer, seal, data_key, issued)
        version = version or _put(wanted, provider, store, issued)
        answer.remove()
    return Provisioned(identity=issued.identity, expires_at=issued.expires_at, version=version, resumed=resumed)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One provisioning at a time."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as exc:
        words = "another `rotator provision` is at work here"
        raise Transient(words, reason=Reason.JOURNAL_LOCKED) from exc
    finally:
        os.close(descriptor)


def _refuse_a_taken_place(wanted: Wanted, store: Store) -> None:
    held = store.read(wanted.path).data or {}
    if taken := sorted(wanted.fields.keys() & held.keys()):
        words = f"Vault holds {', '.join(taken)} at {wanted.path} already: name another path, or other fields"
        raise Permanent(words, reason=Reason.BAD_REQUEST)


def _refuse_anothers_key(wanted: Wanted, provider: Provider, managed: Managed, *, begun: bool) -> None:
    """A key of that name would be given a new secret, and whoever uses the old one would lose it."""
    if not provider.abilities.lists:
        return
    for upstream in provider.list_keys():
        if wanted.name not in {called(upstream), upstream.id}:
            continue
        if (owner := managed.get((provider.name, upstream.id))) is not None:
            words = f"{provider.name}: keys.{owner} manages {upstream.id} of this name: `rotator rotate {owner} --now`"
            raise Permanent(words, reason=Reason.BAD_REQUEST)
        if not begun and not wanted.existing:
            words = f"{provider.name} has {upstream.id} of this name already; --existing gives it a new secret"
            raise Permanent(words, reason=Reason.BAD_REQUEST)


def _kept(
    wanted: Wanted, provider: Provider, store: Store, answer: Answer, seal: Seal, data_key: bytes, issued: Issued
) -> int | None:
    """Let the disk hold the answer, or else Vault, whose version is returned then; not before does this end."""
    while True:
        try:
            answer.keep(seal, data_key, issued)
        except OSError as exc:
            log.critical("provision_unwritable", provider=provider.name, error=str(exc))
        else:
            return None
        try:
            return _put(wanted, provider, store, issued)
        except RotatorError as exc:
            log.critical("secret_only_in_memory", provider=provider.name, error=exc.message, advice=exc.advice)
        threading.Event().wait(_AGAIN)


def _put(wanted: Wanted, provider: Provider, store: Store, issued: Issued) -> int:
    key = ManagedKey(
        name=wanted.name,
        provider=provider,
        id=issued.identity.id,
        policy=Policy(),
        limits=Limits(),
        path=wanted.path,
        fields=wanted.fields,
    )
    fields = key.rendered(issued.identity, issued.secret, expires_at=issued.expires_at)
    return store.put(wanted.path, fields, judge=only_over(wanted.path, {}, fields))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM: between an answer and its seal, they would lose a secret."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- retire


def retire(provider: Provider, id: str, *, keep: bool, managed: Managed) -> None:
    """Make a key that no entry manages useless, and delete it unless `keep`.

    Raises: Permanent PROVIDER_UNABLE; BAD_REQUEST where an entry manages it; the provider's.
    """
    upstream = to_retire(provider, id, keep=keep, managed=managed)
    if provider.abilities.pauses and isinstance(provider, Deactivating):
        provider.deactivate((upstream.identity if upstream else None) or provider.identity(id))
    if not keep:
        cast("Deleting", provider).delete(id)


def to_retire(provider: Provider, id: str, *, keep: bool, managed: Managed) -> UpstreamKey | None:
    """The key as it is listed, None where the platform lists none; changes nothing.

    Raises: as `retire`; Permanent KEY_UNKNOWN where it is not listed.
    """
    abilities = provider.abilities
    if keep and not (abilities.pauses and isinstance(provider, Deactivating)):
        words = f"{provider.name}: keys can't be made useless here without being deleted"
        raise Permanent(words, reason=Reason.PROVIDER_UNABLE)
    if not keep and not (abilities.deletes and isinstance(provider, Deleting)):
        words = f"{provider.name}: rotator can't delete keys at this platform"
        hint = "; --keep makes one useless" if abilities.pauses else ""
        raise Permanent(words + hint, reason=Reason.PROVIDER_UNABLE)
    if (owner := managed.get((provider.name, id))) is not None:
        words = f"keys.{owner} manages {id}: take it out of the configuration first"
        raise Permanent(words, reason=Reason.BAD_REQUEST)
    if not abilities.lists:
        return None
    for upstream in listed(provider):
        if upstream.id == id:
            return upstream
    raise Permanent(f"{provider.name} lists no key {id}", reason=Reason.KEY_UNKNOWN)


# --- the sealed record


def _plain(issued: Issued) -> bytes:
    identity = issued.identity
    return json.dumps(
        {
            "id": identity.id,
            "username": identity.username,
            "client_id": identity.client_id,
            "secret": issued.secret.reveal(),
            "expires_at": issued.expires_at.isoformat() if issued.expires_at else None,
        }
    ).encode()


def _issued(plain: bytes) -> Issued:
    found: dict[str, Any] = json.loads(plain)
    return Issued(
        identity=Identity(id=found["id"], username=found["username"], client_id=found["client_id"]),
        secret=Secret(found["secret"]),
        expires_at=parse_timestamp(found["expires_at"]) if found["expires_at"] else None,
    )


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _write(path: Path, content: bytes) -> None:
    """Over what is there, so that reserved blocks are used, and only then cut to size."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
