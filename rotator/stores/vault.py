"""Vault's KV version 2 engine as the place where fresh secrets go (Vault API docs, "KV secrets engine - version 2").

Each write carries `cas`, so nobody is overwritten (rule 3) and a write whose answer was lost may be made again. Fields
that this daemon does not own are kept exactly as they are, whatever their JSON type.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from rotator.errors import Permanent, Transient
from rotator.model import Credential, StoredSecret
from rotator.ports import Clock, Judge, OnRequest
from rotator.reasons import Reason
from rotator.stores.vault_auth import Auth
from rotator.stores.vault_kv import DEFAULT_VERSIONS, Kv, Metadata, deletion_of
from rotator.stores.vault_login import VaultLogin
from rotator.stores.vault_policy import Granted, Missing, SecretPaths, missing, policy_lines
from rotator.stores.vault_wire import VaultWire

CAS_ATTEMPTS: Final = 5  # a path that changes this often between our read and our write has a writer that never rests
TOKEN_LIFE: Final = 60.0  # seconds that the token must live on before something irreversible starts (rule 8)
CHECK_HOLDS: Final = 15.0  # seconds for which seal status, engine and capabilities are not asked for again
FOREVER: Final = timedelta(days=36500)
LONGEST_VALUE: Final = 512  # bytes of a value of custom_metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What `check --online` tells of a path: what the policy lacks, the lines that add it, and its traps."""

    missing: Sequence[Missing]
    policy_lines: str
    notes: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """What was found out about a path, and until when that holds (monotonic seconds)."""

    granted: Granted
    holds_until: float


class VaultStore:
    """One KV version 2 mount (ports.Store). Thread safe.

    Args:
        urls: addresses of one cluster; the next is tried where one is unreachable, sealed or ill.
        mount: the engine's path, such as `secret`.
        namespace: of Vault Enterprise or OpenBao, None for the root.
        auth: how to log in; done when first needed.
        ca_file: PEM of the authorities to trust, None for the system's.
        client_cert: PEM files of our own certificate and its key, for a server that asks for one.
        timeout: for the connection, and for each read.
        clock, on_request: as everywhere.
    """

    def __init__(
        self,
        *,
        urls: Sequence[str],
        mount: str = "secret",
        namespace: str | None = None,
        auth: Auth,
        ca_file: str | None = None,
        client_cert: tuple[str, str] | None = None,
        timeout: timedelta = timedelta(seconds=10),
        clock: Clock,
        on_request: OnRequest,
    ) -> None:
        self._clock = clock
        self._wire = VaultWire(
            urls=urls,
            namespace=namespace,
            ca_file=ca_file,
            client_cert=client_cert,
            timeout=timeout,
            clock=clock,
            on_request=on_request,
        )
        self._login = VaultLogin(self._wire, auth=auth, clock=clock)
        self._kv = Kv(self._login, mount)
        self._lock = threading.Lock()
        self._looked: dict[str, _Looked] = {}

    def __repr__(self) -> str:
        return f"VaultStore(mount={self._kv.mount!r})"

    def ready(self) -> None:
        """Raise where Vault can't serve now.

        Raises:
            Transient: VAULT_UNREACHABLE, VAULT_SEALED, VAULT_UNAVAILABLE.
            Permanent: VAULT_AUTH, the login was refused.
        """
        self._wire.health()
        self._login.ready()

    def preflight(self, path: str, *, lasting: timedelta = timedelta(0), versions: int = 1) -> StoredSecret:
        """Raise where `path` could not be read and written now; changes nothing.

        Looks at health and seal, the engine's version, the token's life and its capabilities on all paths of the secret
        (the answers hold for `CHECK_HOLDS` seconds), and reads the path, which also tells whether `create` or `update`
        will be needed.

        Args:
            path: below the mount.
            lasting: for how long the token must be good.
            versions: how many versions must be kept; more than one also asks for the secret's metadata.

        Raises: as `ready`; Permanent VAULT_DENIED names what the policy lacks and the lines to add, VAULT_PATH_INVALID
            a wrong mount, VAULT_VERSIONS a way back that would not last.
        """
        path = _checked(path)
        granted = self._look(path)
        self._login.ensure_life(max(TOKEN_LIFE, lasting.total_seconds()))
        paths = SecretPaths.of(self._kv.mount, path)
        self._refuse_missing(missing(paths, granted, written=False), granted, only="read")
        stored = self._kv.read(path)
        self._refuse_missing(missing(paths, granted, written=bool(stored.version)), granted)
        if versions > 1 and stored.data is not None and _may(granted, paths.metadata, "read"):
            self._refuse_losing_the_way_back(path, stored.version, versions, lasting)
        return stored

    def survey(self, path: str) -> Survey:
        """What a person should know of the path before anything is rotated. Raises: as `ready`."""
        path = _checked(path)
        granted = self._look(path)
        paths = SecretPaths.of(self._kv.mount, path)
        found = missing(paths, granted, written=False)
        notes = []
        known = self._kv.metadata(path) if _may(granted, paths.metadata, "read") else None
        if known is not None and _lasts(known.delete_version_after):
            notes.append(f"delete_version_after is {known.delete_version_after}: what is written vanishes after that")
        elif known is not None and self._ends_within(known, known.current, FOREVER):
            notes.append(f"the mount's delete_version_after takes version {known.current} and those after it away")
        if known is not None and known.custom is None:
            notes.append("this server knows no custom_metadata")
        return Survey(missing=found, policy_lines=policy_lines(found, granted), notes=notes)

    def read(self, path: str, version: int | None = None) -> StoredSecret:
        """The current version of `path`, or an older one.

        Returns: version 0 and data None where nothing was ever written, or the older version is no longer kept; the
            version and data None where it is deleted or destroyed.
        """
        return self._kv.read(_checked(path), version)

    def put(self, path: str, fields: Mapping[str, str], *, judge: Judge | None = None, known: int | None = None) -> int:
        """Make `fields` current at `path`, keep all other fields, and return the version that holds them.

        Reads, merges, writes with `cas`, and reads again when somebody wrote in between. A version that shows `fields`
        already is returned as it is, so a lost answer is made good by calling again.

        Args:
            path: below the mount.
            fields: field name → value.
            judge: is shown what is about to be written over; raises Conflict where that must not be.
            known: a version with no fields but ours that may be written over: one request, while it is the current one.

        Raises:
            Conflict: the judge's.
            Transient: VAULT_CONFLICT where the path changed under each of `CAS_ATTEMPTS` writes; and as `read`.
            Permanent: as `read`.
        """
        path = _checked(path)
        if known is not None and (version := self._write(path, fields, cas=known)) is not None:
            return version
        for _ in range(CAS_ATTEMPTS):
            current = self._kv.read(path)
            held = current.data or {}
            if current.data is not None and all(held.get(name) == value for name, value in fields.items()):
                return current.version
            if judge is not None:
                judge(current)
            version = self._write(path, {**held, **fields}, cas=current.version)
            if version is not None:
                return version
        message = f"vault: write {self._kv.shown(path)}: it changed under {CAS_ATTEMPTS} writes in a row"
        raise Transient(message, reason=Reason.VAULT_CONFLICT)

    def undelete(self, path: str, version: int) -> None:
        """Take a version's deletion back. Raises: Transient; Permanent VAULT_DENIED with the policy lines to add."""
        path = _checked(path)
        paths = SecretPaths.of(self._kv.mount, path)
        granted = self._look(path)
        lacking = [each for each in missing(paths, granted, written=True) if each.path == paths.undelete]
        if lacking:
            raise _denied(lacking, granted)
        self._kv.undelete(path, version)

    def annotate(self, path: str, facts: Mapping[str, str]) -> None:
        """Lay `facts` over the path's `custom_metadata`, values cut at 512 bytes; what others keep there stays.

        An empty fact takes its name away: Vault keeps no empty values. Nothing happens where the server knows no
        `custom_metadata`, or the policy does not let us read and write it.

        Raises: as `read`; Transient VAULT_CONFLICT where others change it all the time.
        """
        path = _checked(path)
        paths = SecretPaths.of(self._kv.mount, path)
        granted = self._look(path)
        if not (_may(granted, paths.metadata, "read") and _may(granted, paths.metadata, "update")):
            return
        ours = {name: _fitting(value) for name, value in facts.items()}
        for _ in range(CAS_ATTEMPTS):
            known = self._kv.metadata(path)
            if known is None or known.custom is None:
                return
            wanted = {name: value for name, value in {**known.custom, **ours}.items() if value or name not in ours}
            if wanted == known.custom or self._kv.annotate(path, known, wanted):
                return
        message = (
            f"vault: write the metadata of {self._kv.shown(path)}: it changed under {CAS_ATTEMPTS} writes in a row"
        )
        raise Transient(message, reason=Reason.VAULT_CONFLICT)

    def renew(self) -> datetime | None:
        """Keep the login alive; returns when the token ends, aware UTC, or None for one that never does."""
        return self._login.renew()

    def credentials(self) -> Sequence[Credential]:
        """What the logins hang on and that ends by itself: an unwrapped secret id. Raises: RotatorError."""
        return self._login.credentials()

    def close(self) -> None:
        """Give back connections; never raises. The token is left to end by itself: another replica may share it."""
        self._wire.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _look(self, path: str) -> Granted:
        """Health, engine and capabilities; asked anew after `CHECK_HOLDS` seconds, and after a refused write."""
        now = self._clock.monotonic()
        with self._lock:
            known = self._looked.get(path)
        if known is not None and now < known.holds_until:
            return known.granted
        self._wire.health()
        self._kv.check_engine(path)
        paths = SecretPaths.of(self._kv.mount, path)
        granted = self._kv.capabilities(paths.all)
        if not any(each.needed for each in missing(paths, granted, written=False)):  # a mended policy is seen at once
            with self._lock:
                self._looked[path] = _Looked(granted=granted, holds_until=now + CHECK_HOLDS)
        return granted

    def _write(self, path: str, data: Mapping[str, object], *, cas: int) -> int | None:
        try:
            return self._kv.write(path, data, cas=cas)
        except Permanent:
            with self._lock:
                self._looked.pop(path, None)
            raise

    def _refuse_missing(self, found: Sequence[Missing], granted: Granted, *, only: str | None = None) -> None:
        lacking = [each for each in found if each.needed and only in (None, *each.capabilities)]
        if lacking:
            raise _denied(lacking, granted)

    def _refuse_losing_the_way_back(self, path: str, version: int, versions: int, lasting: timedelta) -> None:
        """Raise VAULT_VERSIONS where the current version would be pushed out, or deleted, while it may be needed."""
        known = self._kv.metadata(path)
        if known is None:
            return
        kept = known.max_versions
        if kept < versions:  # of the secret's number and the mount's, KV takes the larger (its AddVersion)
            kept = max(kept, self._kv.mount_versions()) or DEFAULT_VERSIONS
        shown = self._kv.shown(path)
        if kept < versions:
            words = f"{shown} keeps {kept} versions and {versions} are needed: the way back would be pushed out"
            raise Permanent(f"vault: {words}", reason=Reason.VAULT_VERSIONS)
        if self._ends_within(known, version, lasting):
            words = f"delete_version_after takes version {version} of {shown}, the way back, before it could be used"
            raise Permanent(f"vault: {words}", reason=Reason.VAULT_VERSIONS)

    def _ends_within(self, known: Metadata, version: int, lasting: timedelta) -> bool:
        at, now = deletion_of(known, version), self._clock.now()
        return at is not None and now < at <= now + lasting


def _denied(lacking: Sequence[Missing], granted: Granted) -> Permanent:
    words = "; ".join(str(each) for each in lacking)
    return Permanent(f"vault: {words}; add: {policy_lines(lacking, granted)}", reason=Reason.VAULT_DENIED)


def _may(granted: Granted, path: str, capability: str) -> bool:
    held = granted.get(path, frozenset())
    return capability in held or "root" in held


def _lasts(duration: str) -> bool:
    """Whether a duration as Go writes it is more than nothing."""
    return any(digit in "123456789" for digit in duration)


def _fitting(value: str) -> str:
    """The value as `custom_metadata` takes it: printable, and not too long."""
    printable = "".join(each if each.isprintable() else "?" for each in value)
    return printable.encode()[:LONGEST_VALUE].decode(errors="ignore")


def _checked(path: str) -> str:
    """The path without outer slashes; segments that a URL would swallow are refused."""
    inner = path.strip("/")
    if any(part in ("", ".", "..") for part in inner.split("/")) or not inner.isprintable():
        raise Permanent(f"vault: {path!r} is no path of a secret", reason=Reason.VAULT_PATH_INVALID)
    return inner
