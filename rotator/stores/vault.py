"""Vault's KV version 2 engine as the place where fresh secrets go (Vault API docs, "KV secrets engine - version 2").

Each write carries `cas`, so nobody is overwritten (rule 3) and a write whose answer was lost may be made again. Fields
that this daemon does not own are kept exactly as they are, whatever their JSON type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import requests
import structlog
from hvac.adapters import RawAdapter
from hvac.api.secrets_engines import KvV2
from hvac.api.system_backend import Capabilities
from hvac.utils import format_url

from rotator.errors import Conflict, Permanent, RotatorError, Transient
from rotator.model import StoredSecret
from rotator.ports import Clock, OnRequest
from rotator.reasons import Reason
from rotator.stores.vault_login import AppRoleAuth, TokenAuth, VaultLogin
from rotator.stores.vault_wire import VaultAnswer, VaultWire, status_error

CAS_ATTEMPTS: Final = 5  # a path that changes this often between our read and our write has a writer that never rests
TOKEN_LIFE: Final = 60.0  # seconds that the token must live on before something irreversible starts (rule 8)
_CAS_MISMATCH: Final = "check-and-set parameter did not match"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Current:
    """The current version with values of any JSON type: what others keep beside our fields must go back unchanged."""

    version: int
    data: Mapping[str, Any] | None = field(repr=False)

    def shows(self, fields: Mapping[str, str]) -> bool:
        """Whether our fields are there already."""
        data = self.data
        return data is not None and all(data.get(name) == value for name, value in fields.items())


class VaultStore:
    """One KV version 2 mount (ports.Store). Thread safe.

    Args:
        urls: addresses of one cluster; the next is tried where one is unreachable, sealed or ill.
        mount: the engine's path, such as `secret`.
        namespace: of Vault Enterprise or OpenBao, None for the root.
        auth: how to log in; done when first needed.
        ca_file: PEM of the authorities to trust, None for the system's.
        timeout: for the connection, and for each read.
        clock, on_request: as everywhere.
    """

    def __init__(
        self,
        *,
        urls: Sequence[str],
        mount: str = "secret",
        namespace: str | None = None,
        auth: TokenAuth | AppRoleAuth,
        ca_file: str | None = None,
        timeout: timedelta = timedelta(seconds=10),
        clock: Clock,
        on_request: OnRequest,
    ) -> None:
        self._mount = mount.strip("/")
        self._wire = VaultWire(
            urls=urls, namespace=namespace, ca_file=ca_file, timeout=timeout, clock=clock, on_request=on_request
        )
        self._login = VaultLogin(self._wire, auth=auth, clock=clock)

    def __repr__(self) -> str:
        return f"VaultStore(mount={self._mount!r})"

    def ready(self) -> None:
        """Raise where Vault can't serve now.

        Raises:
            Transient: VAULT_UNREACHABLE, VAULT_SEALED, VAULT_UNAVAILABLE.
            Permanent: VAULT_AUTH, the login was refused.
        """
        self._wire.health()
        self._login.ready()

    def preflight(self, path: str) -> None:
        """Raise where `path` could not be read and written now; changes nothing.

        Looks at health and seal, the token's life, the token's capabilities on the path, the engine's version, and
        reads the path, which also tells whether `create` or `update` will be needed.

        Raises: as `ready`; Permanent VAULT_DENIED names the missing capability, VAULT_PATH_INVALID a wrong mount.
        """
        path = _checked(path)
        self._wire.health()
        self._login.ensure_life(TOKEN_LIFE)
        self._check_engine(path)
        granted = self._capabilities(path)
        if "root" in granted:
            self._read(path)
            return
        if "read" not in granted:
            raise self._missing("read", path)
        needed = "update" if self._read(path).version else "create"
        if needed not in granted:
            raise self._missing(needed, path)

    def read(self, path: str, version: int | None = None) -> StoredSecret:
        """The current version of `path`, or an older one.

        Values that are not strings belong to others: they are given as JSON text, so that they can be seen and
        compared, while `put` keeps the real ones.

        Returns: version 0 and data None where nothing was ever written; the version and data None where the current
            one is deleted or destroyed.
        """
        current = self._read(_checked(path), version)
        data = None if current.data is None else {name: _as_text(value) for name, value in current.data.items()}
        return StoredSecret(version=current.version, data=data)

    def put(self, path: str, fields: Mapping[str, str], *, expected: Mapping[str, str | None] | None = None) -> int:
        """Make `fields` current at `path`, keep all other fields, and return the version that holds them.

        Reads, merges, writes with `cas`, and reads again when somebody wrote in between. A version that shows `fields`
        already is returned as it is, so a lost answer is made good by calling again.

        Args:
            path: below the mount.
            fields: field name → value.
            expected: what our fields held when we last looked, None for absent. Only the names in it are compared.

        Raises:
            Conflict: VAULT_CONFLICT, one of our fields holds neither what is expected nor what is to be written.
            Transient: VAULT_CONFLICT where the path changed under each of `CAS_ATTEMPTS` writes; and as `read`.
            Permanent: as `read`.
        """
        path = _checked(path)
        for _ in range(CAS_ATTEMPTS):
            current = self._read(path)
            if current.shows(fields):
                return current.version
            self._refuse_overwriting(path, current, fields, expected or {})
            version = self._write(path, {**(current.data or {}), **fields}, cas=current.version)
            if version is not None:
                return version
        message = f"vault: write {self._shown(path)}: it changed under {CAS_ATTEMPTS} writes in a row"
        raise Transient(message, reason=Reason.VAULT_CONFLICT)

    def renew(self) -> datetime | None:
        """Keep the login alive; returns when the token ends, aware UTC, or None for one that never does."""
        return self._login.renew()

    def close(self) -> None:
        """Give back connections; never raises. The token is left to end by itself: another replica may share it."""
        self._wire.close()

    # --- one request each -------------------------------------------------------------------------------------------

    def _read(self, path: str, version: int | None = None) -> _Current:
        def send(adapter: RawAdapter) -> requests.Response:
            # raise_on_deleted_version only matters to hvac's warning about its default: nothing is raised here
            response: requests.Response = KvV2(adapter).read_secret_version(
                path, version=version, mount_point=self._mount, raise_on_deleted_version=False
            )
            return response

        what = f"read {self._shown(path)}"
        answer = self._login.call("read", send, what=what)
        if answer.ok or answer.status == 404:
            found = answer.part("data", "metadata").get("version")
            if isinstance(found, int):
                data = answer.body["data"]
                held = data.get("data") if isinstance(data, Mapping) else None
                return _Current(version=found, data=held if answer.ok and isinstance(held, Mapping) else None)
        if answer.status == 404 and answer.is_json and not answer.text and answer.body.get("errors") == []:
            return _Current(version=0, data=None)
        raise self._refused(answer, what)

    def _write(self, path: str, data: Mapping[str, Any], *, cas: int) -> int | None:
        """The version written, or None where `cas` did not match."""

        def send(adapter: RawAdapter) -> requests.Response:
            response: requests.Response = KvV2(adapter).create_or_update_secret(
                path, dict(data), cas=cas, mount_point=self._mount
            )
            return response

        what = f"write {self._shown(path)}"
        answer = self._login.call("write", send, what=what)
        if answer.status == 400 and _CAS_MISMATCH in answer.text:
            return None
        version = answer.part("data").get("version")
        if answer.ok and isinstance(version, int):
            return version
        raise self._refused(answer, what)

    def _capabilities(self, path: str) -> frozenset[str]:
        full = f"{self._mount}/data/{path}"

        def send(adapter: RawAdapter) -> requests.Response:
            response: requests.Response = Capabilities(adapter).get_capabilities(  # type: ignore[no-untyped-call]
                [full]
            )
            return response

        what = f"capabilities-self on {full}"
        answer = self._login.call("capabilities", send, what=what)
        if not answer.ok:
            raise self._refused(answer, what)
        found = answer.part("data").get(full, answer.body.get(full, answer.body.get("capabilities")))
        return frozenset(str(each) for each in found) if isinstance(found, list) else frozenset()

    def _check_engine(self, path: str) -> None:
        """Refuse what is known not to be KV version 2; a token that may not ask is let through."""

        def send(adapter: RawAdapter) -> requests.Response:
            return adapter.get(format_url("/v1/sys/internal/ui/mounts/{mount}/{path}", mount=self._mount, path=path))

        answer = self._login.call("mounts", send, what=f"mount of {self._shown(path)}")
        if not answer.ok:
            return
        engine = answer.part("data")
        if engine.get("type") not in ("kv", "generic", None):
            raise self._no_kv2(f"{self._mount} is a {engine.get('type')} engine")
        version = answer.part("data", "options").get("version")
        if engine.get("type") is not None and version != "2":
            raise self._no_kv2(f"{self._mount} is KV version 1")

    # --- errors -----------------------------------------------------------------------------------------------------

    def _refuse_overwriting(
        self, path: str, current: _Current, fields: Mapping[str, str], expected: Mapping[str, str | None]
    ) -> None:
        held = {name: _as_text(value) for name, value in (current.data or {}).items()}  # as `read` shows it
        changed = [name for name, was in expected.items() if held.get(name) not in (was, fields.get(name, was))]
        if changed:
            names = ", ".join(sorted(changed))
            message = f"vault: write {self._shown(path)}: version {current.version} by somebody else changed {names}"
            raise Conflict(message, reason=Reason.VAULT_CONFLICT)

    def _refused(self, answer: VaultAnswer, what: str) -> RotatorError:
        text = answer.text
        if answer.status == 400 and answer.denied:
            return Permanent(f"vault: {what}: {text}", reason=Reason.VAULT_AUTH)
        if answer.ok:
            return self._no_kv2(f"{what}: the answer is not that of KV version 2")
        if answer.status == 404:
            return self._no_kv2(f"{what}: HTTP 404: {text or 'no KV version 2 engine answers there'}")
        return status_error(answer.status, text, what=what)

    def _no_kv2(self, text: str) -> Permanent:
        hint = f"`vault kv enable-versioning {self._mount}` makes a KV version 1 mount version 2"
        return Permanent(f"vault: {text}; {hint}", reason=Reason.VAULT_PATH_INVALID)

    def _missing(self, capability: str, path: str) -> Permanent:
        message = f"vault: the policy lacks `{capability}` on {self._mount}/data/{path}"
        return Permanent(message, reason=Reason.VAULT_DENIED)

    def _shown(self, path: str) -> str:
        return f"{self._mount}/{path}"


def _checked(path: str) -> str:
    """The path without outer slashes; segments that a URL would swallow are refused."""
    inner = path.strip("/")
    if any(part in ("", ".", "..") for part in inner.split("/")) or not inner.isprintable():
        raise Permanent(f"vault: {path!r} is no path of a secret", reason=Reason.VAULT_PATH_INVALID)
    return inner


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
