"""What a WAYSCloud IoT platform knows of one account's devices, and the rules over them.

Source of the rules: "MQTT Credentials" (seed 003), the vendor's "Device Management" for the old generation, and
platforms.md for the new one. No call makes a new password for a device that exists.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from rotator.sandbox.rest_platform import Json, OnChange, PasswordAnswer, Refusal, new_password, stamp

OLD_TYPES: Final = ("sensor", "actuator", "gateway", "other")
ERROR_SHAPES: Final = ("error", "text", "object", "list")
BROKER: Final[Json] = {
    "broker": "mqtt.wayscloud.services",
    "ports": {"mqtt": 1883, "mqtts": 8883, "ws": 8083, "wss": 8084},
    "protocols": ["mqtt", "mqtts", "ws", "wss"],
    "mqtt_versions": ["3.1.1", "5.0"],
}
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(kw_only=True, slots=True)
class Device:
    """One device. Both generations show the same ones, in other words."""

    id: str
    name: str
    description: str
    type: str
    metadata: Json
    active: bool
    created_at: datetime
    username: str
    password: str = field(repr=False)


class WaysCloudState:
    """All of it, behind one lock: every public method is one transaction, the broker's part included.

    Args:
        now: the platform's clock.
        on_change: told of `live()` inside each call that changes it.

    Attributes:
        error_shape: one of `ERROR_SHAPES`: `{"error": {code, message, details}}`, or `detail` as text, object or list.
        plan_limits: `limits` of the quota.
        quota_status: the status of the refusal of one device too many.
        newest_first: the order of the list, which is not documented.
        own_usernames: whether a device's MQTT username differs from its id (new generation only).
        conflicts: how many more times an id that was just deleted is refused as taken.
    """

    def __init__(self, *, now: Callable[[], datetime], on_change: OnChange | None) -> None:
        self._now, self._on_change = now, on_change
        self._lock = threading.RLock()
        self._devices: dict[str, Device] = {}
        self._deleted: set[str] = set()
        self.error_shape = "error"
        self.plan_limits: Json = {
            "max_devices": 1000,
            "max_messages_per_month": 10000000,
            "max_bandwidth_gb": 100,
            "max_message_size_kb": 1024,
            "messages_per_second_per_device": 100,
        }
        self.quota_status = 429
        self.newest_first = True
        self.own_usernames = False
        self.conflicts = 0

    def live(self) -> dict[str, str]:
        """Usernames → passwords of the devices that let somebody in."""
        with self._lock:
            return {device.username: device.password for device in self._devices.values() if device.active}

    def refusal(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None, **details: object
    ) -> Refusal:
        """The platform's no, in the shape that `error_shape` says."""
        shapes: Mapping[str, Json] = {
            "error": {"error": {"code": code, "message": message, "details": details}},
            "text": {"detail": message},
            "object": {"detail": {"code": code, "message": message}},
            "list": {"detail": [{"loc": ["body"], "msg": message, "type": code.lower()}]},
        }
        return Refusal(status, shapes[self.error_shape], headers)

    def device(self, id: str) -> Device:
        """One device.

        Raises: Refusal.
        """
        with self._lock:
            if id not in self._devices:
                raise self.refusal(404, "DEVICE_NOT_FOUND", f"Device {id} not found")
            return self._devices[id]

    def devices(self) -> list[Device]:
        """All of them, in the order of the list."""
        with self._lock:
            found = list(self._devices.values())
        return found[::-1] if self.newest_first else found

    def page(self, query: Mapping[str, str], *, new: bool) -> Json:
        """One page of the list.

        Raises: Refusal.
        """
        limit, offset = self._number(query, "limit", 50), self._number(query, "offset", 0)
        if not 1 <= limit <= 100:
            raise self.refusal(422, "VALIDATION_ERROR", "limit must be between 1 and 100")
        for name in query:
            if name not in ("limit", "offset", "status", "type", "search"):
                raise self.refusal(422, "VALIDATION_ERROR", f"unknown parameter {name}")
        wanted = query.get("status", "all")
        rows = [self.shown(each, new=new) for each in self.devices() if wanted in ("all", _status(each))]
        return {"devices": rows[offset : offset + limit], "total": len(rows), "limit": limit, "offset": offset}

    def shown(self, device: Device, *, new: bool) -> Json:
        """A device as the API shows it, which is without its credentials."""
        common: Json = {
            "device_id": device.id,
            "name": device.name,
            "description": device.description,
            "metadata": device.metadata,
            "created_at": stamp(device.created_at),
        }
        if new:
            return {**common, "device_type": device.type, "is_active": device.active}
        return {**common, "type": device.type, "status": _status(device), "last_seen": None}

    def create(self, body: object, *, new: bool, answer: PasswordAnswer = PasswordAnswer.NORMAL) -> Json:
        """A new device, and the one answer that shows its password.

        Raises: Refusal.
        """
        fields = self._validated(body, NEW_FIELDS if new else OLD_FIELDS, NEW_REQUIRED if new else OLD_REQUIRED)
        password = new_password()
        with self._lock:
            self._refuse_one_too_many()
            id = str(fields.get("device_id", f"iot_dev_{secrets.token_hex(6)}"))
            if id in self._devices or (id in self._deleted and self.conflicts > 0):
                self.conflicts -= id not in self._devices
                raise self.refusal(409, "DEVICE_EXISTS", f"Device {id} already exists")
            device = Device(
                id=id,
                name=fields["name"],
                description=fields.get("description", ""),
                type=fields.get("device_type" if new else "type", "other"),
                metadata=fields.get("metadata", {}),
                active=fields.get("is_active", True),
                created_at=self._now(),
                username=f"mqtt-{id}" if new and self.own_usernames else id,
                password=answer.known(password),
            )
            self._devices[id] = device
            self._changed()
            shown = self.shown(device, new=new)
        if new:
            return answer.shown({**shown, "mqtt_username": device.username}, "mqtt_password", password)
        credentials = {"broker": BROKER["broker"], "port": 8883, "username": device.username, "client_id": device.id}
        return {**shown, "mqtt_credentials": answer.shown(credentials, "password", password)}

    def patch(self, id: str, body: object) -> Json:
        """Change a device of the new generation; what is not named stays as it is.

        Raises: Refusal.
        """
        fields = self._validated(body, {name: rule for name, rule in NEW_FIELDS.items() if name != "device_id"}, ())
        with self._lock:
            device = self.device(id)
            device.name = fields.get("name", device.name)
            device.description = fields.get("description", device.description)
            device.type = fields.get("device_type", device.type)
            device.metadata = fields.get("metadata", device.metadata)
            device.active = fields.get("is_active", device.active)
            self._changed()
            return self.shown(device, new=True)

    def delete(self, id: str) -> None:
        """Gone.

        Raises: Refusal.
        """
        with self._lock:
            del self._devices[self.device(id).id]
            self._deleted.add(id)
            self._changed()

    def credentials(self) -> Json:
        """Seed 003, "Get MQTT Credentials": who each device is at the broker; no passwords."""
        rows = [
            {
                "device_id": each.id,
                "name": each.name,
                "username": each.username,
                "client_id": each.id,
                "status": _status(each),
            }
            for each in self.devices()
        ]
        return {**BROKER, "devices": rows}

    def quota(self) -> Json:
        """Seed 003, "Get Platform Quota"."""
        count, most = len(self.devices()), self.plan_limits.get("max_devices")
        return {
            "plan": "professional",
            "limits": self.plan_limits,
            "usage": {"current_devices": count, "messages_this_month": 1523456, "bandwidth_used_gb": 12.5},
            "percentage_used": {
                "devices": round(100 * count / most, 1) if most else 0,
                "messages": 15.2,
                "bandwidth": 12.5,
            },
            "reset_date": "2025-12-01T00:00:00Z",
        }

    def _refuse_one_too_many(self) -> None:
        most = self.plan_limits.get("max_devices")
        if most is not None and len(self._devices) >= most:
            text = f"Device limit reached: {len(self._devices)} of {most} devices"
            raise self.refusal(self.quota_status, "DEVICE_LIMIT_REACHED", text, max_devices=most)

    def _number(self, query: Mapping[str, str], name: str, default: int) -> int:
        text = query.get(name, str(default))
        if not re.fullmatch(r"\d{1,9}", text):
            raise self.refusal(422, "VALIDATION_ERROR", f"{name} is not a whole number")
        return int(text)

    def _validated(self, body: object, rules: Mapping[str, Rule], required: tuple[str, ...]) -> Json:
        """The body itself.

        Raises: Refusal, that names the first field which is unknown, missing or has a value that is not allowed.
        """
        if not isinstance(body, dict):
            raise self.refusal(422, "VALIDATION_ERROR", "the body must be a JSON object")
        for name in required:
            if name not in body:
                raise self.refusal(422, "VALIDATION_ERROR", f"{name} is required", field=name)
        for name, value in body.items():
            if name not in rules:
                raise self.refusal(422, "VALIDATION_ERROR", f"unknown field {name}", field=name)
            if not rules[name](value):
                raise self.refusal(422, "VALIDATION_ERROR", f"{name} has a value that is not allowed", field=name)
        return dict(body)

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self.live())


def _status(device: Device) -> str:
    return "active" if device.active else "inactive"


# --- what a body may hold: field → whether a value of it is allowed

Rule = Callable[[object], bool]


def _is_text(shortest: int, longest: int) -> Rule:
    return lambda value: isinstance(value, str) and shortest <= len(value) <= longest


def _is_map_of_text(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


OLD_REQUIRED: Final = ("name", "type")
OLD_FIELDS: Final[Mapping[str, Rule]] = {
    "name": _is_text(3, 100),
    "description": _is_text(0, 1000),
    "type": lambda value: value in OLD_TYPES,
    "metadata": lambda value: isinstance(value, dict),
}
NEW_REQUIRED: Final = ("device_id", "name")
NEW_FIELDS: Final[Mapping[str, Rule]] = {
    "device_id": lambda value: isinstance(value, str) and _ID.fullmatch(value) is not None,
    "name": _is_text(1, 100),
    "description": _is_text(0, 1000),
    "device_type": _is_text(1, 100),
    "metadata": _is_map_of_text,
    "is_active": lambda value: isinstance(value, bool),
}
