"""AppRole with a secret id that came response-wrapped: unwrapped once, then kept sealed (Vault docs, "Response
wrapping", "AppRole").

A wrapping token can be used once. Where it was used before us, or is another one than the operator's, whoever did that
may hold a secret id of ours: that is told as VAULT_WRAPPING_TOKEN_USED, and never passed over.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

import requests
import structlog
from hvac.adapters import RawAdapter
from hvac.api.system_backend import Wrapping

from rotator.errors import Permanent, RotatorError
from rotator.model import Credential, Secret
from rotator.ports import Clock, Reveal
from rotator.reasons import Reason
from rotator.stores.vault_auth import AppRoleLogin, Login, checked_token, seconds
from rotator.stores.vault_wire import VaultAnswer, VaultWire
from rotator.timestamps import parse_timestamp

_REFUSED: Final = (400, 401, 403)  # how Vault says that it knows no such wrapping token
_NEXT: Final = "make another secret id, wrapped, and put its wrapping token in the place of this one"

_log = structlog.get_logger(__name__)


class Keep(Protocol):
    """Where an unwrapped secret id is kept over restarts; nobody else may be able to read it there."""

    def load(self) -> bytes | None:
        """What was saved last; None where nothing ever was. Raises: RotatorError."""
        ...

    def save(self, content: bytes) -> None:
        """Put `content`, durably, in the place of what was there. Raises: RotatorError."""
        ...


class StillWrapped(Permanent):
    """No login is possible yet, and nothing is wrong: the process that runs the daemon will unwrap the secret id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What is kept. `came_in` and `begun` are digests of wrapping tokens."""

    came_in: str = ""
    secret_id: Secret = field(default_factory=lambda: Secret(""), repr=False)
    ends_at: datetime | None = None  # None: never, or not known
    begun: str = ""  # the unwrapping of this one was begun, and no answer is here

    def usable(self, now: datetime) -> bool:
        """Whether there is a secret id that has not ended."""
        return bool(self.secret_id) and (self.ends_at is None or now < self.ends_at)

    def dump(self) -> bytes:
        ends_at = self.ends_at.isoformat() if self.ends_at is not None else None
        texts = {"came_in": self.came_in, "secret_id": self.secret_id.reveal(), "begun": self.begun}
        return json.dumps({**texts, "ends_at": ends_at}).encode()

    @classmethod
    def read(cls, content: bytes) -> _Kept:
        known = json.loads(content)
        return cls(
            came_in=known["came_in"],
            secret_id=Secret(known["secret_id"]),
            ends_at=parse_timestamp(known["ends_at"]),
            begun=known["begun"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """What `sys/wrapping/lookup` said of a living wrapping token; both None where it said nothing usable."""

    digest: str
    made_at: datetime | None
    ends_at: datetime | None


class WrappedAppRoleAuth:
    """Login by AppRole with the secret id out of a wrapping token. Thread safe.

    Args:
        role_id, mount: as with AppRole.
        wrapping_token: read at each look; another content is another secret id, which replaces the kept one.
        keep: where the secret id lies once it is unwrapped.
        unwraps: False for a process that must not use the wrapping token up: it does with what is kept.
        written: when the place of the wrapping token was last written to, for the words of an alarm; None: not known.
    """

    repeatable: Final = True

    def __init__(
        self,
        *,
        role_id: Reveal,
        wrapping_token: Reveal,
        keep: Keep,
        unwraps: bool,
        mount: str = "approle",
        written: Callable[[], datetime | None] = lambda: None,
    ) -> None:
        self._role_id = role_id
        self._wrapping_token = wrapping_token
        self._keep = keep
        self._unwraps = unwraps
        self._mount = mount
        self._login = AppRoleLogin(mount)
        self._written = written
        self._lock = threading.Lock()  # two threads must not unwrap one token
        self._unsaved: _Kept | None = None  # unwrapped, and the keep failed: lost with the process
        self._looked: _Looked | None = None

    def __repr__(self) -> str:
        return f"WrappedAppRoleAuth(mount={self._mount!r})"

    def login(self, wire: VaultWire, clock: Clock) -> Login:
        """With the newest secret id that can be had.

        Raises: as `look` where none is kept that could do; Permanent VAULT_AUTH where Vault refuses it; Transient.
        """
        with self._lock:
            kept = self._newest(wire, clock)
            ended = f" (it ended at {_shown(kept.ends_at)})" if kept.ends_at and not kept.usable(clock.now()) else ""
            hint = f"the kept secret id is used up, expired or destroyed{ended}: {_NEXT}"
            return self._login(wire, clock, self._role_id(), kept.secret_id.reveal(), hint=hint)

    def look(self, wire: VaultWire, clock: Clock) -> None:
        """Take a new wrapping token up: it lives for minutes, and the next login may be hours away.

        Raises:
            Permanent: VAULT_WRAPPING_TOKEN_USED, the alarm; SECRET_REFERENCE where nothing is kept and the wrapping
                token can't be read.
            StillWrapped: this process must not unwrap, and nothing is kept.
            Transient: Vault can't be asked now.
            JournalFailed: the secret id could not be kept; nothing was unwrapped.
        """
        with self._lock:
            try:
                self._take_up(wire, clock)
            except StillWrapped:
                kept = self._kept()
                if kept is None or not kept.usable(clock.now()):
                    raise

    def credentials(self) -> Sequence[Credential]:
        """When the kept secret id ends. Raises: RotatorError where the keep can't be read."""
        with self._lock:
            kept = self._kept()
        return [Credential(name="secret-id", expires_at=kept.ends_at)] if kept is not None and kept.secret_id else []

    # --- the caller holds the lock ------------------------------------------------------------------------------------

    def _newest(self, wire: VaultWire, clock: Clock) -> _Kept:
        """What the present wrapping token holds; where that can't be had, the one before it, if it still serves."""
        try:
            return self._take_up(wire, clock)
        except RotatorError as exc:
            kept = self._kept()
            if kept is None or not kept.usable(clock.now()):
                raise
            if not isinstance(exc, StillWrapped):
                _log.warning("vault_kept_secret_id_used", reason=exc.reason.value, error=exc.message)
            return kept

    def _take_up(self, wire: VaultWire, clock: Clock) -> _Kept:
        kept = self._kept()
        try:
            token = checked_token(self._wrapping_token(), "vault: the wrapping token")
        except Permanent:
            if kept is not None and kept.secret_id:
                return kept  # it may be taken away once it has served
            raise
        digest = hashlib.sha256(token.reveal().encode()).hexdigest()
        if kept is not None and kept.came_in == digest:
            return kept
        looked = self._look_up(wire, clock, token, digest, kept)
        if not self._unwraps:
            until = f", and good until {_shown(looked.ends_at)}" if looked.ends_at is not None else ""
            text = f"vault: the secret id is still wrapped{until}: the daemon unwraps it when it starts"
            raise StillWrapped(text, reason=Reason.VAULT_AUTH)
        return self._unwrap(wire, clock, token, looked, kept or _Kept())

    def _look_up(self, wire: VaultWire, clock: Clock, token: Secret, digest: str, kept: _Kept | None) -> _Looked:
        """Make sure that the token is alive and wraps a secret id of this mount; this does not use it up."""

        def send(adapter: RawAdapter) -> requests.Response:
            return adapter.post("/v1/sys/wrapping/lookup", json={"token": token.reveal()})  # hvac has no verb for it

        answer = wire.call("wrapping_lookup", send, what="lookup of the wrapping token")
        if not answer.ok:
            raise self._gone(answer, "lookup", self._known(clock, digest, kept))
        data = answer.part("data")
        path = str(data.get("creation_path", ""))
        if not _makes_secret_ids(path, self._mount):
            wire.count("unwrap", "refused")
            text = (
                f"vault: the wrapping token was made by {path!r}, not by auth/{self._mount}/role/…/secret-id:"
                f" somebody put it there in the place of ours, and it is not unwrapped; {_NEXT}"
            )
            raise Permanent(text, reason=Reason.VAULT_WRAPPING_TOKEN_USED)
        made_at, life = parse_timestamp(data.get("creation_time")), seconds(data.get("creation_ttl"))
        ends_at = made_at + timedelta(seconds=life) if made_at is not None and life is not None else None
        self._looked = _Looked(digest=digest, made_at=made_at, ends_at=ends_at)
        return self._looked

    def _unwrap(self, wire: VaultWire, clock: Clock, token: Secret, looked: _Looked, before: _Kept) -> _Kept:
        self._keep.save(replace(before, begun=looked.digest).dump())  # and what can't be kept is not unwrapped
        # at one address only: a second request would find the token used, by ourselves
        answer = wire.call("unwrap", _send_unwrap, what="unwrap of the secret id", token=token, elsewhere=False)
        if not answer.ok:
            known = "it was good a moment ago, at our own lookup: somebody has just used it"
            raise self._gone(answer, "unwrap", known)
        data = answer.part("data")
        secret_id, life = data.get("secret_id"), seconds(data.get("secret_id_ttl"))
        if not isinstance(secret_id, str) or not secret_id:
            raise Permanent("vault: the wrapping token held no secret id", reason=Reason.VAULT_AUTH)
        start = looked.made_at or clock.now()  # the secret id is as old as its wrapping
        ends_at = start + timedelta(seconds=life) if life is not None else None
        self._unsaved = _Kept(came_in=looked.digest, secret_id=Secret(secret_id), ends_at=ends_at)
        _log.info("vault_secret_id_unwrapped", ends_at=_shown(ends_at))
        return self._kept() or self._unsaved

    def _kept(self) -> _Kept | None:
        """What is kept; what could not be saved is tried again."""
        if self._unsaved is None:
            content = self._keep.load()
            return _Kept.read(content) if content is not None else None
        kept = self._unsaved
        try:
            self._keep.save(kept.dump())
            self._unsaved = None
        except RotatorError as exc:
            _log.error("vault_secret_id_not_kept", reason=exc.reason.value, error=exc.message)
        return kept

    # --- words ------------------------------------------------------------------------------------------------------

    def _known(self, clock: Clock, digest: str, kept: _Kept | None) -> str:
        """What tells theft from a plain expiry, as far as anything does."""
        if kept is not None and kept.begun == digest:
            return "our own unwrapping of it was cut off before its answer came, and may be what used it"
        looked = self._looked if self._looked is not None and self._looked.digest == digest else None
        if looked is not None and looked.ends_at is not None and clock.now() < looked.ends_at:
            return f"it was good when we last looked, and would have been until {_shown(looked.ends_at)}: it was used"
        written = self._written()
        place = f", written there {_shown(written)}," if written is not None else ""
        # also where a journal, or the key of its seal, was lost
        ours = "and it is none that our journal knows of" if kept is None else "and it is not the one that we have used"
        which = "nothing tells which, so take it for stolen"
        return f"somebody used it before us, or it{place} expired unused, {ours}; {which}"

    def _gone(self, answer: VaultAnswer, what: str, known: str) -> Permanent:
        text = f"vault: {what} of the wrapping token: HTTP {answer.status}: {answer.text}"
        if answer.status not in _REFUSED:
            return Permanent(text, reason=Reason.VAULT_AUTH)
        return Permanent(f"{text}; {known}; {_NEXT}", reason=Reason.VAULT_WRAPPING_TOKEN_USED)


def _makes_secret_ids(path: str, mount: str) -> bool:
    """Whether a response of this path is a secret id of this mount, for whatever role."""
    parts, start = path.split("/"), ["auth", *mount.strip("/").split("/"), "role"]
    return (
        len(parts) == len(start) + 2 and parts[: len(start)] == start and parts[-1] == "secret-id" and parts[-2] != ""
    )


def _send_unwrap(adapter: RawAdapter) -> requests.Response:
    response: requests.Response = Wrapping(adapter).unwrap()  # type: ignore[no-untyped-call]  # hvac's stub
    return response


def _shown(moment: datetime | None) -> str:
    return moment.isoformat(timespec="seconds") if moment is not None else "never"
