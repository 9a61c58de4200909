"""What a WAYSCloud device is in the two generations of the API: how one reads, and the body that makes another. Pure.

| | old | new |
| --- | --- | --- |
| API key | `wayscloud_iot_prod_…`, as a Bearer | `wayscloud_api_…` as `X-API-Key`, or another token as a Bearer |
| id | made by the platform | `device_id` of the request |
| type | `type`, one of four | `device_type`, any text |
| state | `status` | `is_active`, which can be changed |
| password | `mqtt_credentials.password` | `mqtt_password` |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from rotator.model import MARKER, Identity, Quota, UpstreamKey, marker_in
from rotator.providers.rest import is_text
from rotator.reasons import Reason
from rotator.timestamps import parse_timestamp

Fields = Mapping[str, Any]

OLD_PREFIX: Final = "wayscloud_iot_"
NEW_PREFIX: Final = "wayscloud_api_"
MARKER_FIELD: Final = "rotator"  # in a device's metadata
LONGEST_ID: Final = 64  # characters of an id that is made here
_INACTIVE: Final = frozenset({"inactive", "disabled", "suspended", "deactivated"})
# quota → where the answer has what is used, and the limit
_QUOTAS: Final[Mapping[str, tuple[str, str]]] = {
    "devices": ("current_devices", "max_devices"),
    "messages": ("messages_this_month", "max_messages_per_month"),
    "bandwidth_gb": ("bandwidth_used_gb", "max_bandwidth_gb"),
}


class Generation(StrEnum):
    """Which of the two APIs a key is for."""

    OLD = "old"
    NEW = "new"


class Malformed(ValueError):
    """A device is not what the documents show."""


def generation_of(token: str) -> Generation:
    """What an API key's prefix says."""
    return Generation.OLD if token.startswith(OLD_PREFIX) else Generation.NEW


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device, and all of it that another one takes over."""

    id: str
    name: str
    description: str = ""
    type: str = ""  # "": not shown
    metadata: Fields = field(default_factory=dict)
    active: bool | None = None  # None: not shown
    created_at: datetime | None = None

    @property
    def marker(self) -> str:
        """Ours, in the metadata or in the id; empty where there is none."""
        told = self.metadata.get(MARKER_FIELD)
        return (marker_in(told) if isinstance(told, str) else "") or marker_in(self.id)


def device_of(row: object) -> Device:
    """A device as an answer shows it; passwords are not taken along.

    Raises: Malformed.
    """
    if not isinstance(row, dict) or not is_text(row.get("device_id")):
        raise Malformed("a device has no device_id")
    metadata = row.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise Malformed("a device's metadata is no object")
    return Device(
        id=row["device_id"],
        name=_text(row, "name"),
        description=_text(row, "description"),
        type=_text(row, "device_type") or _text(row, "type"),
        metadata=metadata or {},
        active=_active(row),
        created_at=parse_timestamp(row.get("created_at")),
    )


def upstream(device: Device, identity: Identity) -> UpstreamKey:
    """A device as a key. Its password is as old as the device, since none is ever made anew."""
    return UpstreamKey(
        id=device.id,
        name=device.name,
        issued_at=device.created_at,
        problem=Reason.KEY_INACTIVE if device.active is False else None,
        marker=device.marker,
        identity=identity,
    )


def stand_in(id: str) -> Identity:
    """Who a device usually is at the broker (seed 003: all three are one)."""
    return Identity(id=id, username=id, client_id=id)


def identities(answer: Fields) -> Mapping[str, Identity]:
    """`GET /v1/iot/credentials`: device id → who it is at the broker.

    Raises: Malformed.
    """
    rows = answer.get("devices")
    if not isinstance(rows, list):
        raise Malformed("the answer holds no devices")
    return {each.id: each for row in rows if (each := identity_of(row, row)) is not None}


def identity_of(device: object, credentials: object) -> Identity | None:
    """Who a device is, by the part of an answer that names it and the part that has its login; None: no id."""
    if not isinstance(device, dict) or not is_text(device.get("device_id")):
        return None
    login = credentials if isinstance(credentials, dict) else {}
    id = device["device_id"]
    names = (login.get("username"), device.get("mqtt_username"))
    username = next((name for name in names if isinstance(name, str) and is_text(name)), id)
    client_id = login.get("client_id")
    return Identity(id=id, username=username, client_id=client_id if is_text(client_id) else id)


def clone_of(device: Device, generation: Generation, marker: str) -> dict[str, object]:
    """The body that makes a device with the same name, type, description and metadata, and with a marker.

    Raises: Malformed: the old API needs a type, and none is shown.
    """
    if generation is Generation.OLD:
        return body_of(device, generation, {**device.metadata, MARKER_FIELD: marker})
    base = MARKER.sub("", device.id).strip("-")[: LONGEST_ID - len(marker) - 1].rstrip("-")
    return {**body_of(device, generation, device.metadata), "device_id": f"{base}-{marker}" if base else marker}


def body_of(device: Device, generation: Generation, metadata: Fields) -> dict[str, object]:
    """The body that makes this device.

    Raises: Malformed.
    """
    if generation is Generation.OLD and not device.type:
        raise Malformed("the device shows no type")
    body: dict[str, object] = {"name": device.name or device.id}
    if generation is Generation.NEW:
        body |= {"device_id": device.id, "is_active": True}
    if device.type:
        body["type" if generation is Generation.OLD else "device_type"] = device.type
    if device.description:
        body["description"] = device.description
    if metadata:
        body["metadata"] = dict(metadata)
    return body


def quotas_of(answer: Fields) -> Sequence[Quota]:
    """`GET /v1/iot/quota`: those that have both figures. A limit of nothing or less is none."""
    limits, usage = answer.get("limits"), answer.get("usage")
    if not isinstance(limits, dict) or not isinstance(usage, dict):
        return []
    figures = {name: (_number(usage.get(used)), _number(limits.get(most))) for name, (used, most) in _QUOTAS.items()}
    return [
        Quota(name=name, used=used, limit=most)
        for name, (used, most) in figures.items()
        if used is not None and most is not None and most > 0
    ]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _active(row: Fields) -> bool | None:
    if isinstance(row.get("is_active"), bool):
        return bool(row["is_active"])
    status = row.get("status")  # "error" is about the device, not about its login
    return status.strip().lower() not in _INACTIVE if isinstance(status, str) else None


def _text(row: Fields, name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) and is_text(value) else ""
