"""The call that can't be taken back, and what becomes of its answer (rule 1).

The answer is sealed in memory at once; it is not let go until the journal, the spool or Vault holds it.
"""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import cast

import structlog

from rotator.draft import Draft
from rotator.errors import BadAnswer, JournalFailed, Permanent, RotatorError, Stopping, Transient
from rotator.journal.spool import Spool
from rotator.journal.sqlite import Blob
from rotator.lifecycle import advance
from rotator.managed import ManagedKey
from rotator.model import Issued, Secret, Step, Strategy
from rotator.ports import Recreating
from rotator.reasons import Reason
from rotator.rotation import ChooseDone, IssueDone, Outcome, Rotation
from rotator.steps import Steps, bound_to, choosing, failure, in_place, replacing
from rotator.world import World

log = structlog.get_logger(__name__)

# Seconds between two tries to let somebody hold an answer.
_AGAIN = 1.0


class Issuing:
    """Makes issue calls, and keeps their answers."""

    def __init__(self, world: World, steps: Steps, spool: Spool) -> None:
        self._world, self._steps, self.spool = world, steps, spool
        self._ready: dict[str, bytes] = {}  # by rotation: data keys that have sealed nothing yet

    def prepare(self, rotation: Rotation) -> bytes:
        """The wrapped data key under which the answer will be sealed without asking anybody; room for it on the disk.

        Raises: RotatorError where the seal's keeper can't be asked, or the disk is full.
        """
        wrapped = self._ready.get(rotation.id) if rotation.issues == 0 else None
        if wrapped is None:
            wrapped = self._ready[rotation.id] = self._ready_data_key(rotation)
        try:
            self.spool.reserve(rotation.id)
        except OSError as exc:
            words = f"no room can be set aside for the answer: {exc.strerror or exc}"
            raise Transient(words, reason=Reason.JOURNAL_UNWRITABLE) from exc
        return wrapped

    def _ready_data_key(self, rotation: Rotation) -> bytes:
        """The one that preflight journaled; a new one where that has sealed another secret already, or is broken."""
        wrapped, seal = self._world.journal.data_key(rotation.id), self._world.seal
        row = self._world.journal.sealed(rotation.id) if rotation.issues else None
        if wrapped is not None and row is not None and rotation.strategy is Strategy.CHOSEN:
            return wrapped  # its secret is sealed already, and stays so
        if wrapped is None or row is not None:
            return seal.new_data_key()
        try:
            seal.ready(wrapped)
        except Permanent as exc:
            if exc.reason is not Reason.SEAL_BROKEN:
                raise
            return seal.new_data_key()
        return wrapped

    def forget(self, rotation: Rotation) -> None:
        """The data key has been used, or will not be."""
        self._ready.pop(rotation.id, None)

    def abandon(self, rotation: Rotation) -> None:
        """The rotation never came to be: give back what was made ready for it."""
        self._world.seal.forget(self._ready.pop(rotation.id, None))
        self._steps.forget(rotation)
        self.spool.release(rotation.id)

    def described(self, key: ManagedKey, rotation: Rotation) -> str:
        """What a key is that the call deletes and makes again; kept from the first call on, since it may be gone then.

        Raises: Transient, Permanent.
        """
        if not key.provider.abilities.recreates or rotation.described:
            return rotation.described
        return json.dumps(dict(cast("Recreating", key.provider).describe(rotation.target)))

    def choose(self, key: ManagedKey, rotation: Rotation, wrapped: bytes) -> tuple[Outcome, Blob]:
        """A secret of our own choice, sealed before anybody hears of it; or the one of an older version again.

        Raises: Permanent ROLLBACK_IMPOSSIBLE where that version is gone; the store's.
        """
        if rotation.restores is None:
            secret = choosing(key).choose()
        else:
            data = self._world.store.read(key.path, rotation.restores).data if rotation.restores > 0 else None
            held = key.secret_of(data)
            if held is None:
                words = f"Vault no longer holds version {rotation.restores} of {key.path}"
                raise Permanent(words, reason=Reason.ROLLBACK_IMPOSSIBLE)
            secret = held
        self._steps.secrets.remember(rotation, secret)
        issued = Issued(identity=rotation.identity, secret=secret)
        return ChooseDone(), self._sealed(rotation, wrapped, _plain(issued))

    def call(self, key: ManagedKey, rotation: Rotation, wrapped: bytes) -> tuple[Outcome, Blob | None]:
        """Make the call; the outcome, and the sealed answer where one came."""
        try:
            issued = self._ask(key, rotation)
        except RotatorError as exc:
            outcome = failure(exc)
            if isinstance(exc, BadAnswer) and rotation.strategy is not Strategy.IN_PLACE:
                outcome = replace(outcome, unknown=True)  # a key may have been made, or the chosen secret set
            if exc.body is None or rotation.strategy is Strategy.CHOSEN:
                return outcome, None  # the chosen secret stays what is sealed
            # what came is kept, though it is no secret
            return outcome, self._sealed(rotation, wrapped, exc.body)
        answered = self._world.clock.now()
        done = IssueDone(
            answered_at=answered,
            issued_at=issued.issued_at,
            expires_at=issued.expires_at,
            expiry_source=issued.expiry_source,
            identity=issued.identity,
        )
        if rotation.strategy is Strategy.CHOSEN:
            return done, None  # sealed already
        self._steps.secrets.remember(rotation, issued.secret)
        sealed = self._sealed(rotation, wrapped, _plain(issued))
        return done, replace(sealed, at=answered)

    def _ask(self, key: ManagedKey, rotation: Rotation) -> Issued:
        match rotation.strategy:
            case Strategy.IN_PLACE:
                if rotation.described:
                    cast("Recreating", key.provider).remember(rotation.target, json.loads(rotation.described))
                current = self._current(key) if key.provider.abilities.needs_current else None
                return in_place(key).issue(rotation.target, *([current] if current is not None else []))
            case Strategy.REPLACE:
                return replacing(key).create(rotation.identity, rotation.marker)
            case Strategy.CHOSEN:
                return choosing(key).set_secret(rotation.identity, self._chosen(rotation))

    def _current(self, key: ManagedKey) -> Secret:
        """What Vault holds, for a platform that wants to see it. Raises: Transient; Permanent NO_SECRET."""
        held = key.secret_of(self._world.store.read(key.path).data)
        if held is None:
            words = f"{key.provider.name} gives a new secret only for the current one, and Vault holds none"
            raise Permanent(words, reason=Reason.NO_SECRET)
        return held

    def _chosen(self, rotation: Rotation) -> Secret:
        return self._steps.secrets.new(rotation)

    def _sealed(self, rotation: Rotation, wrapped: bytes, plain: bytes) -> Blob:
        sealed = self._world.seal.seal(wrapped, plain, bound_to=bound_to(rotation))
        return Blob(at=self._world.clock.now(), sealed=sealed)

    # --- keeping ---------------------------------------------------------------------------------------------

    def keep(
        self,
        key: ManagedKey,
        draft: Draft,
        rotation: Rotation,
    ) -> Rotation:
        """Commit a step, and what waited for it, which `draft` holds; returns the rotation as it was kept.

        With an answer at hand this does not return, or raise, before somebody holds it.
        """
        spooled = False
        while True:
            try:
                draft.rotation = rotation
                draft.commit(self._world.journal, key.name)
            except JournalFailed as exc:
                blob = draft.blob
                if not isinstance(blob, Blob) or rotation.step is Step.ISSUE:  # nobody has heard of a chosen secret
                    raise
                log.critical("journal_unwritable", key=key.name, error=exc.message, advice=exc.advice)
                spooled = spooled or self.spool.write(rotation, draft.data_key or b"", blob)
                if not spooled and rotation.promoted_at is None:
                    rotation = self._straight_to_vault(key, rotation)
                safe = spooled or rotation.promoted_at is not None
                if safe and self._world.stop.is_set():
                    raise Stopping from exc
                threading.Event().wait(_AGAIN)
            else:
                return rotation

    def _straight_to_vault(self, key: ManagedKey, rotation: Rotation) -> Rotation:
        """Neither journal nor spool takes the answer: let Vault hold it, by `cas` as always, and proven as always."""
        table = self._steps.table()
        try:
            while rotation.step in {Step.PROBE, Step.PROMOTE} and rotation.promoted_at is None:
                step = rotation.step
                rotation = advance(rotation, table[step](key, rotation), self._world.clock.now(), key.limits)
                if rotation.step is step:
                    break
        except RotatorError as exc:
            log.critical("secret_only_in_memory", key=key.name, error=exc.message, advice=exc.advice)
        return rotation


def _plain(issued: Issued) -> bytes:
    """What is sealed: the secret, and the little that a person would need to use it by hand."""
    expires = issued.expires_at.isoformat() if issued.expires_at else None
    identity = issued.identity
    return json.dumps(
        {
            "id": identity.id,
            "username": identity.username,
            "client_id": identity.client_id,
            "secret": issued.secret.reveal(),
            "expires_at": expires,
        }
    ).encode()
