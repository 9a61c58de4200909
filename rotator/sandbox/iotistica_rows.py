"""The rows that an Iotistica cloud keeps, its refusals, and the names of what a test can switch."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

Json = dict[str, Any]


class Generation(StrEnum):
    """Which of the two the platform speaks."""

    DOCUMENT = "document"
    SOURCE = "source"


class IotisticaAnswer(StrEnum):
    """What the calls that issue do and tell."""

    NORMAL = "normal"
    NO_SECRET = "no_secret"  # made, but the answer (`rotate-key`: the message) does not show the key
    EMPTY_SECRET = "empty_secret"  # made, and the key shown is ""
    UNUSABLE_SECRET = "unusable_secret"  # looks well, but the broker was told of another one
    SILENT = "silent"  # `rotate-key`: nothing is published
    GARBLED = "garbled"  # `rotate-key`: what is published is no JSON


class Refusal(Exception):
    """The platform's no: a status and `{"error", "message"}`."""

    def __init__(self, status: int, message: str, *, error: str = "", **more: str) -> None:
        super().__init__(message)
        self.status = status
        self.body: Json = {"error": error or _ERRORS.get(status, "Error"), "message": message, **more}


_ERRORS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    422: "Unprocessable Entity",
    429: "Too many requests",
}


@dataclass(kw_only=True, slots=True)
class User:
    """An operator."""

    username: str
    email: str
    password: str = field(repr=False)
    role: str = "admin"


@dataclass(kw_only=True, slots=True)
class Agent:
    """A registered device. Its MQTT password is provisioned once and never rotated."""

    uuid: str
    name: str
    mqtt_password: str = field(repr=False)
    created_at: datetime
    key_expires_at: datetime | None = None
    key_rotated_at: datetime | None = None


@dataclass(kw_only=True, slots=True)
class Pass:
    """One key that stands for an agent, over HTTP and as the MQTT username, from `since` until `until`."""

    key: str = field(repr=False)
    agent: str  # uuid; "" for a key that belongs to none
    since: datetime
    until: datetime | None = None
    device: bool = False  # the agent's own key, which `rotate-key` changes

    def valid(self, now: datetime) -> bool:
        """Whether the key counts at this moment."""
        return self.since <= now and (self.until is None or now < self.until)


@dataclass(kw_only=True, slots=True)
class ApiKey:
    """A row of `api_keys`."""

    id: int
    name: str
    key: str = field(repr=False)
    description: str | None
    agent: str
    is_active: bool
    created_at: datetime
    expires_at: datetime | None


@dataclass(kw_only=True, slots=True)
class MqttUser:
    """A row of `mqtt_users`."""

    id: int
    username: str
    password: str = field(repr=False)
    is_superuser: bool
    is_active: bool
    created_at: datetime
    updated_at: datetime
    acls: list[Json] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class ProvisioningKey:
    """A row of `provisioning_keys`."""

    id: str
    key: str = field(repr=False)
    description: str | None
    max_devices: int
    used: int
    is_active: bool
    created_at: datetime
    expires_at: datetime
