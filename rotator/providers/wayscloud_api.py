"""WAYSCloud's IoT API: who asks, and the few calls that there are. What they mean for a key stands in `wayscloud`.

A 404 may be a gateway's, or of a path that this generation does not have; so it is believed only where the list of all
devices agrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal
from urllib.parse import quote

from rotator.errors import Permanent, Transient
from rotator.model import Identity, Quota
from rotator.ports import Reveal
from rotator.providers.http import Peer
from rotator.providers.rest import Reply, Rest, is_text, sendable
from rotator.providers.wayscloud_devices import (
    NEW_PREFIX,
    Device,
    Generation,
    Malformed,
    device_of,
    generation_of,
    identities,
    quotas_of,
)
from rotator.reasons import Reason

PAGE: Final = 100  # devices in one answer, the most that the platform gives
LISTINGS: Final = 4  # times that a list is read which changes while it is read
DEVICES: Final = "/v1/iot/devices"
GONE: Final = (404, 410)
NOT_SERVED: Final = (404, 405, 501)

Choice = Literal["auto", "old", "new"]


class ApiKey:
    """An API key, read for each request and sent as its generation wants it. It is an `Auth`.

    Args:
        name: the provider's name in the configuration.
        token: reads it.
        choice: the generation; "auto": by the key's prefix.
    """

    def __init__(self, name: str, token: Reveal, choice: Choice) -> None:
        self._name, self._token, self._choice = name, token, choice

    def generation(self) -> Generation:
        """Which API the key is for.

        Raises: what reading the key raises.
        """
        return generation_of(self._token()) if self._choice == "auto" else Generation(self._choice)

    def headers(self, deadline: float) -> Mapping[str, str]:
        """The one header.

        Raises: Permanent PROVIDER_AUTH.
        """
        return self._shown(sendable(self._token(), f"{self._name}: the API key"))

    def refused(self, used: Mapping[str, str]) -> bool:
        """Worth another try only where the key was replaced meanwhile."""
        return self._shown(self._token()).items() != used.items()

    def secrets(self) -> Iterable[str]:
        """The key."""
        return [self._token()]

    def _shown(self, token: str) -> dict[str, str]:
        new = self._choice != "old" and token.startswith(NEW_PREFIX)
        return {"X-API-Key": token} if new else {"Authorization": f"Bearer {token}"}


class WaysCloudApi:
    """The IoT devices of one account. Thread safe.

    Args:
        peer: sends the requests.
        url: the API's origin.
        key: shows who asks.
    """

    def __init__(self, peer: Peer, *, url: str, key: ApiKey) -> None:
        self.name = peer.name
        self.rest = Rest(peer, url=url, auth=key)

    def ask(
        self, method: str, id: str, *, operation: str, deadline: float, changes: bool = False, body: object = None
    ) -> Reply:
        """One request about the device `id`.

        Raises: Permanent KEY_UNKNOWN for what can't be an id; else as `Rest.ask`.
        """
        if id in ("", ".", "..") or not is_text(id):
            raise self.unknown(operation, id)  # "..": in a DELETE's path, something else entirely
        path = f"{DEVICES}/{quote(id, safe='')}"
        return self.rest.ask(method, path, operation=operation, deadline=deadline, changes=changes, body=body)

    def make(self, body: object, *, operation: str, deadline: float) -> Reply:
        """The call that makes a device.

        Raises: as `Rest.ask` with `changes`.
        """
        return self.rest.ask("POST", DEVICES, operation=operation, deadline=deadline, changes=True, body=body)

    def device(self, id: str, deadline: float) -> Device | None:
        """One device; None where there is none.

        Raises: Transient, Permanent.
        """
        reply = self.ask("GET", id, operation="get_key", deadline=deadline)
        if reply.status in (*NOT_SERVED, 410):
            return self.listed(id, deadline)
        if not reply.ok:
            raise reply.error(changes=False)
        device = self._read(reply, reply.value)
        if device.id != id:
            raise reply.unreadable("the answer is about another device")
        return device

    def listed(self, id: str, deadline: float) -> Device | None:
        """One device of the list; None where it is not there.

        Raises: Transient, Permanent.
        """
        return next((device for device in self.devices(deadline) if device.id == id), None)

    def devices(self, deadline: float) -> Sequence[Device]:
        """All devices. The list is read again where devices came or went while it was read, since pages shift then.

        Raises: Transient, Permanent; PROVIDER_UNAVAILABLE where it did not hold still.
        """
        before: set[str] | None = None
        for _ in range(LISTINGS):
            found, counted = self._pages(deadline)
            ids = {device.id for device in found} if found is not None else None
            if found is not None and (counted or ids == before):
                return found
            before = ids  # without a count, only a second look shows that nothing slipped from page to page
        text = f"{self.name}: list_keys: devices came and went while they were listed, or pages are missing"
        raise Transient(text, reason=Reason.PROVIDER_UNAVAILABLE)

    def identities(self, deadline: float) -> Mapping[str, Identity]:
        """Device id → who it is at the broker; empty where the platform does not say.

        Raises: Transient, Permanent.
        """
        reply = self.rest.ask("GET", "/v1/iot/credentials", operation="credentials", deadline=deadline)
        if reply.status in NOT_SERVED:
            return {}
        if not reply.ok:
            raise reply.error(changes=False)
        try:
            return identities(reply.fields)
        except Malformed as exc:
            raise reply.unreadable(str(exc)) from exc

    def quotas(self, deadline: float) -> Sequence[Quota]:
        """The account's quotas; empty where the platform does not say.

        Raises: Transient, Permanent.
        """
        reply = self.rest.ask("GET", "/v1/iot/quota", operation="quota", deadline=deadline)
        if reply.status in NOT_SERVED:
            return []
        if not reply.ok:
            raise reply.error(changes=False)
        if not reply.fields:
            raise reply.unreadable("the answer is no quota")
        return quotas_of(reply.fields)

    def unknown(self, operation: str, id: str) -> Permanent:
        """For a device that is not there."""
        return Permanent(f"{self.name}: {operation}: no such device: {id}", reason=Reason.KEY_UNKNOWN)

    # --- the list

    def _pages(self, deadline: float) -> tuple[Sequence[Device] | None, bool]:
        """All pages, None where they don't fit together; and whether it is sure that nothing is missing."""
        found: dict[str, Device] = {}
        totals: set[int] = set()
        first: list[str] = []
        read = 0
        while True:
            params = {"limit": str(PAGE), "offset": str(read)}
            reply = self.rest.ask("GET", DEVICES, operation="list_keys", deadline=deadline, params=params)
            page, total = self._page(reply)
            ids = [device.id for device in page]
            if total is None and (not page or ids == first):
                # without a total only an empty page ends it, or the whole list again where pages are unknown
                return list(found.values()), read == len(first)
            known = len(found)
            found.update((device.id, device) for device in page)
            if len(found) - known < len(page) or (not page and read < (total or 0)):
                return None, False  # a device moved from a page that was read to this one, or the other way
            first, read = first or ids, read + len(page)
            if total is not None:
                totals.add(total)
                if read >= total:
                    break
        return (list(found.values()), True) if totals == {len(found)} else (None, False)

    def _page(self, reply: Reply) -> tuple[Sequence[Device], int | None]:
        if not reply.ok:
            raise reply.error(changes=False)
        rows = reply.value if isinstance(reply.value, list) else reply.fields.get("devices")
        if not isinstance(rows, list):
            raise reply.unreadable("the answer is no list of devices")
        total = reply.fields.get("total")
        whole = isinstance(total, int) and not isinstance(total, bool) and total >= 0
        return [self._read(reply, row) for row in rows], total if whole else None

    def _read(self, reply: Reply, row: object) -> Device:
        try:
            return device_of(row)
        except Malformed as exc:
            raise reply.unreadable(str(exc)) from exc
