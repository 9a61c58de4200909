"""One request each to a KV version 2 engine, and to what Vault says of its paths (Vault API docs, "KV secrets engine -
version 2", "/sys/capabilities-self", "/sys/internal/ui/mounts").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeGuard

import requests
from hvac.adapters import RawAdapter
from hvac.api.secrets_engines import KvV2
from hvac.api.system_backend import Capabilities
from hvac.utils import format_url

from rotator.errors import Permanent, RotatorError
from rotator.model import StoredSecret
from rotator.reasons import Reason
from rotator.stores.vault_login import VaultLogin
from rotator.stores.vault_policy import Granted
from rotator.stores.vault_wire import Send, VaultAnswer, status_error
from rotator.timestamps import parse_timestamp

DEFAULT_VERSIONS: Final = 10  # what KV keeps where neither the secret nor the mount names a number
_CAS_MISMATCH: Final = "check-and-set parameter did not match"
_WRITES: Final = frozenset({"write", "annotate", "undelete"})
_NOT_THERE_YET: Final = 412
_NO_FORWARDING: Final = "forwarding via header"
_LONGEST_WORD: Final = 64
_METADATA_MISMATCH: Final = "metadata check-and-set parameter does not match"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What Vault keeps about a secret. `custom` None: this server knows no `custom_metadata` (before 1.9)."""

    current: int
    max_versions: int  # 0: the mount's
    cas_required: bool
    delete_version_after: str  # as Go writes durations; "0s": never
    custom: Mapping[str, str] | None
    versions: Mapping[str, Any] = field(repr=False)
    revision: int | None = None  # OpenBao's version of the metadata itself, which its next write can be held to


class _Consistent(RawAdapter):
    """hvac's adapter, asking for answers that hold the write of `index`.

    A standby of OpenBao (from 2.5 on), and a performance standby, answer reads by themselves and lag behind the active
    node: so told, they pass on what they can't answer yet (OpenBao docs, "Eventual consistency").
    """

    index = ""
    forwards = True

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, raise_exception: bool = True, **more: Any
    ) -> Any:
        """As hvac's, with the two headers where there is an index."""
        asked = {"X-Vault-Index": self.index} if self.index else {}
        if asked and self.forwards:
            asked["X-Vault-Inconsistent"] = "forward-active-node"
        return super().request(
            method, url, headers={**(headers or {}), **asked}, raise_exception=raise_exception, **more
        )


class Kv:
    """One mount. Thread safe. Reads hold what this object wrote before.

    Raises Transient and Permanent as `vault_wire.status_error` names them.
    """

    def __init__(self, login: VaultLogin, mount: str) -> None:
        self._login = login
        self._index = ""  # of our latest write, as the server tells it
        self._forwards = True  # HashiCorp's server refuses to be asked for that, unless it is configured to
        self.mount = mount.strip("/")

    def read(self, path: str, version: int | None = None) -> StoredSecret:
        """The current version, or an older one; version 0 where there is none."""

        def send(adapter: RawAdapter) -> requests.Response:
            # raise_on_deleted_version only matters to hvac's warning about its default: nothing is raised here
            response: requests.Response = KvV2(adapter).read_secret_version(
                path, version=version, mount_point=self.mount, raise_on_deleted_version=False
            )
            return response

        what = f"read {self.shown(path)}"
        answer = self._call("read", send, what=what)
        if answer.ok or answer.status == 404:
            about = answer.part("data", "metadata")
            found = _version(about.get("version"))
            if found is not None:
                data = answer.part("data").get("data")
                held = data if answer.ok and isinstance(data, Mapping) else None
                return StoredSecret(version=found, data=held, destroyed=about.get("destroyed") is True)
        if _nothing(answer):
            return StoredSecret(version=0, data=None)
        raise self.refused(answer, what)

    def write(self, path: str, data: Mapping[str, Any], *, cas: int) -> int | None:
        """The version written, or None where `cas` did not match."""

        def send(adapter: RawAdapter) -> requests.Response:
            response: requests.Response = KvV2(adapter).create_or_update_secret(
                path, dict(data), cas=cas, mount_point=self.mount
            )
            return response

        what = f"write {self.shown(path)}"
        answer = self._call("write", send, what=what)
        if answer.status == 400 and _CAS_MISMATCH in answer.text:
            return None
        version = _version(answer.part("data").get("version"))
        if answer.ok and version is not None:
            return version
        raise self.refused(answer, what)

    def undelete(self, path: str, version: int) -> None:
        """Take a deletion back."""

        def send(adapter: RawAdapter) -> requests.Response:
            made = KvV2(adapter).undelete_secret_versions(path, [version], mount_point=self.mount)
            response: requests.Response = made
            return response

        what = f"undelete version {version} of {self.shown(path)}"
        answer = self._call("undelete", send, what=what)
        if not answer.ok:
            raise self.refused(answer, what)

    def metadata(self, path: str) -> Metadata | None:
        """What Vault keeps about the secret; None where it was never written."""

        def send(adapter: RawAdapter) -> requests.Response:
            response: requests.Response = KvV2(adapter).read_secret_metadata(path, mount_point=self.mount)
            return response

        what = f"read the metadata of {self.shown(path)}"
        answer = self._call("metadata", send, what=what)
        if _nothing(answer):
            return None
        data = answer.part("data")
        if not answer.ok or not _is_metadata(data):
            raise self.refused(answer, what)
        custom = data.get("custom_metadata", {}) or {}
        return Metadata(
            current=_number(data.get("current_version")),
            max_versions=_number(data.get("max_versions")),
            cas_required=data.get("cas_required") is True,
            delete_version_after=str(data.get("delete_version_after") or "0s"),
            custom=dict(custom) if "custom_metadata" in data and isinstance(custom, Mapping) else None,
            versions=answer.part("data", "versions"),
            revision=_version(data.get("current_metadata_version")),
        )

    def annotate(self, path: str, known: Metadata, custom: Mapping[str, str]) -> bool:
        """Make `custom` the secret's whole `custom_metadata`; False where somebody changed the metadata since.

        hvac's call replaces all of it, and resets what it is not given: everything that is known goes back with it.
        Only OpenBao can tell that somebody was there in between, and may insist on being asked to.
        """
        lasting: dict[str, Any] = {
            "max_versions": known.max_versions,
            "cas_required": known.cas_required,
            "delete_version_after": known.delete_version_after,
            "custom_metadata": dict(custom),
        }

        def send(adapter: RawAdapter) -> requests.Response:
            if known.revision is None:
                response: requests.Response = KvV2(adapter).update_metadata(path, **lasting, mount_point=self.mount)
                return response
            url = format_url("/v1/{mount}/metadata/{path}", mount=self.mount, path=path)
            return adapter.post(url, json={**lasting, "metadata_cas": known.revision})  # hvac has no word for it

        what = f"write the metadata of {self.shown(path)}"
        answer = self._call("annotate", send, what=what)
        if answer.status == 400 and _METADATA_MISMATCH in answer.text:
            return False
        if not answer.ok:
            raise self.refused(answer, what)
        return True

    def mount_versions(self) -> int:
        """How many versions the mount keeps at least; 0 where it names no number, or may not be asked."""
        answer = self._configuration()
        return _number(answer.part("data").get("max_versions")) if answer.ok else 0

    def capabilities(self, paths: Sequence[str]) -> Granted:
        """What the token may do on each of these paths of the API."""

        def send(adapter: RawAdapter) -> requests.Response:
            response: requests.Response = Capabilities(adapter).get_capabilities(  # type: ignore[no-untyped-call]
                list(paths)
            )
            return response

        what = f"capabilities-self on {paths[0]}"
        answer = self._call("capabilities", send, what=what)
        if answer.status == 403:
            line = 'path "sys/capabilities-self" { capabilities = ["update"] }'
            words = f"vault: {what}: the policy lacks `update` on sys/capabilities-self; add: {line}"
            raise Permanent(words, reason=Reason.VAULT_DENIED)
        if not answer.ok:
            raise self.refused(answer, what)
        data = answer.part("data")
        granted: dict[str, frozenset[str]] = {}
        for path in paths:
            found = data.get(path, answer.body.get(path))
            granted[path] = (
                frozenset(each for each in found if _is_word(each)) if isinstance(found, list) else frozenset()
            )
        return granted

    def check_engine(self, path: str) -> None:
        """Refuse what is known not to be KV version 2; a token that may not ask is let through."""

        def send(adapter: RawAdapter) -> requests.Response:
            return adapter.get(format_url("/v1/sys/internal/ui/mounts/{mount}/{path}", mount=self.mount, path=path))

        answer = self._call("mounts", send, what=f"mount of {self.shown(path)}", optional=True)
        if not answer.ok:
            # from a parent namespace it may not be asked; version 1 would take the write, unversioned and without cas
            if self._configuration().status == 404:
                words = "has no configuration: it is not there (`vault secrets list`), or not KV version 2"
                raise self._no_kv2(f"{self.mount} {words}")
            return
        kind = answer.part("data").get("type")
        if not _is_word(kind):
            return
        if kind not in ("kv", "generic"):
            raise self._no_kv2(f"{self.mount} is a {kind} engine")
        if answer.part("data", "options").get("version") != "2":
            raise self._no_kv2(f"{self.mount} is KV version 1")

    def shown(self, path: str) -> str:
        """A path as messages name it."""
        return f"{self.mount}/{path}"

    # --- inside -----------------------------------------------------------------------------------------------------

    def _call(self, operation: str, send: Send, *, what: str, optional: bool = False) -> VaultAnswer:
        def consistent(plain: RawAdapter) -> requests.Response:
            adapter = _Consistent.from_adapter(plain)
            adapter.index, adapter.forwards = self._index, self._forwards
            response = send(adapter)
            if response.status_code == 400 and adapter.index and adapter.forwards and _NO_FORWARDING in response.text:
                self._forwards = adapter.forwards = False
                response = send(adapter)
            if operation in _WRITES and response.ok:
                self._index = response.headers.get("X-Vault-Index", "")
            elif response.status_code == _NOT_THERE_YET:
                self._index = ""  # a node that may not pass it on: asking for it again would be in vain
            return response

        return self._login.call(operation, consistent, what=what, optional=optional)

    def _configuration(self) -> VaultAnswer:
        def send(adapter: RawAdapter) -> requests.Response:
            response: requests.Response = KvV2(adapter).read_configuration(mount_point=self.mount)
            return response

        return self._call("config", send, what=f"read the configuration of {self.mount}", optional=True)

    def refused(self, answer: VaultAnswer, what: str) -> RotatorError:
        """What a refusal means."""
        text = answer.text
        if answer.status == 400 and answer.denied:
            return Permanent(f"vault: {what}: {text}", reason=Reason.VAULT_AUTH)
        if answer.ok and answer.part("wrap_info"):
            words = "held back by a control group: the daemon's policy must not have one"
            return Permanent(f"vault: {what}: {words}", reason=Reason.VAULT_DENIED)
        if answer.ok:
            return self._no_kv2(f"{what}: the answer is not that of KV version 2")
        if answer.status == 404:
            words = text or "no KV version 2 engine answers there"
            return self._no_kv2(f"{what}: HTTP 404: {words}; check that {self.mount} is there (`vault secrets list`)")
        return status_error(answer.status, text, what=what)

    def _no_kv2(self, text: str) -> Permanent:
        hint = f"`vault kv enable-versioning {self.mount}` makes a KV version 1 mount version 2"
        return Permanent(f"vault: {text}; {hint}", reason=Reason.VAULT_PATH_INVALID)


def deletion_of(known: Metadata, version: int) -> datetime | None:
    """When a version is, or was, deleted: aware UTC, or None."""
    about = known.versions.get(str(version))
    text = about.get("deletion_time") if isinstance(about, Mapping) else None
    return parse_timestamp(text) if isinstance(text, str) and text else None


def _nothing(answer: VaultAnswer) -> bool:
    """Vault's word for a path where nothing was ever written."""
    return answer.status == 404 and answer.is_json and not answer.text and answer.body.get("errors") == []


def _is_metadata(data: Mapping[str, object]) -> bool:
    """Whether what goes back with a write is of the right type; what a server does not know may be absent."""
    wanted = {"max_versions": int, "cas_required": bool, "delete_version_after": str}
    right = all(isinstance(data.get(name, kind()), kind) for name, kind in wanted.items())
    return right and isinstance(data.get("versions"), Mapping)


def _is_word(value: object) -> TypeGuard[str]:
    """A name of Vault's own, such as that of a capability or of a kind of engine."""
    return isinstance(value, str) and len(value) < _LONGEST_WORD and value.isascii() and value.isprintable()


def _version(value: object) -> int | None:
    """A version, which counts from 1; more than 63 bits can't be journaled."""
    number = _number(value)
    return number if 0 < number < 2**63 else None


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
