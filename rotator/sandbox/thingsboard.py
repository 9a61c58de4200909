"""The calls of ThingsBoard's REST API that a rotation needs: login, devices, and the one credential of each device.

    with ThingsBoard(on_change=tell_the_broker) as board:
        device, password = board.add_key("lift-1")
        ... kind: http, url: board.api, auth: {login: {username: board.username, …}}

A new device of `add_key` has MQTT Basic credentials whose user name is the device's name. `ACCESS_TOKEN` credentials
work as well: there the token is the MQTT username, and the broker looks at no password.
"""

from __future__ import annotations

import json
import secrets
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from rotator.sandbox.rest_platform import Call, Json, OnChange, Refusal, RestPlatform, Routes
from rotator.sandbox.tokens import Signer

ROUTES: Final[Routes] = (
    ("POST", "/api/auth/login", "login"),
    ("POST", "/api/auth/token", "token"),
    ("GET", "/api/tenant/devices", "list"),
    ("GET", "/api/device/{key_id}/credentials", "get"),
    ("POST", "/api/device/credentials", "set"),
)
LARGEST_PAGE: Final = 1000
# ThingsboardErrorCode: what stands beside the status in each error
AUTHENTICATION, TOKEN_EXPIRED, BAD_REQUEST, NOT_FOUND = 10, 11, 31, 32


@dataclass(kw_only=True, slots=True)
class Device:
    """One device and its credential."""

    id: str
    name: str
    created_at: datetime
    credentials_id: str
    kind: str
    token: str = field(repr=False, default="")  # ACCESS_TOKEN: credentialsId
    value: Json | None = field(repr=False, default=None)  # MQTT_BASIC: clientId, userName, password


class ThingsBoard(RestPlatform):
    """One tenant over HTTP.

    Args:
        on_change: told of `live()` (usernames → passwords) inside each call that changes it.
        now: the platform's clock.
    """

    def __init__(
        self, *, on_change: OnChange | None = None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        super().__init__(ROUTES, changing="set", now=now)
        self._on_change = on_change
        self.username, self.password = "tenant@example.org", secrets.token_urlsafe(16)
        self.token_life, self.refresh_life = timedelta(minutes=150), timedelta(days=7)
        self.page_limit = LARGEST_PAGE  # devices in one answer, whatever `pageSize` asks for
        self._signer = Signer()
        self._state = threading.RLock()
        self._tokens: dict[str, datetime] = {}
        self._refresh_tokens: dict[str, datetime] = {}
        self._devices: dict[str, Device] = {}

    # --- for tests and the demo

    @property
    def api(self) -> str:
        """The API's base: `http://127.0.0.1:PORT/api`."""
        return f"{self.url}/api"

    def live(self) -> dict[str, str]:
        """MQTT usernames → passwords that are let in; an access token stands for its own password."""
        with self._state:
            return dict(_login_of(device) for device in self._devices.values())

    def credentials(self, id: str) -> Json:
        """A device's credential as the API shows it, its secret included."""
        with self._state:
            return _shown(self._devices[id])

    def add_key(self, name: str = "", *, kind: str = "MQTT_BASIC", client_id: str | None = None) -> tuple[str, str]:
        """A device that somebody made by hand. Returns: its id, and its password or access token."""
        name, secret = name or f"device-{secrets.token_hex(4)}", secrets.token_urlsafe(15)
        basic = {"clientId": client_id, "userName": name, "password": secret}
        device = Device(
            id=str(uuid.uuid4()),
            name=name,
            created_at=self.now(),
            credentials_id=str(uuid.uuid4()),
            kind=kind,
            token=secret if kind == "ACCESS_TOKEN" else "",
            value=basic if kind == "MQTT_BASIC" else None,
        )
        with self._state:
            self._devices[device.id] = device
            self._changed()
        return device.id, secret

    def remove(self, id: str) -> None:
        """Somebody deleted the device."""
        with self._state:
            del self._devices[id]
            self._changed()

    def end_sessions(self) -> None:
        """All access tokens are refused from now on; refresh tokens stay."""
        with self._state:
            self._tokens.clear()

    # --- HTTP

    def answer(self, call: Call) -> tuple[int, object]:
        """Do what is asked.

        Raises: Refusal.
        """
        with self._state:
            if call.operation == "login":
                return self._login(call)
            if call.operation == "token":
                return self._renew(call)
            self._authorize(call)
            match call.operation:
                case "list":
                    return self._page(call)
                case "get":
                    return 200, _shown(self._device(call.key_id))
                case _:
                    return self._set(call)

    def refusal(self, status: int, code: int, message: str) -> Refusal:
        """ThingsBoard's way to say no: `{status, message, errorCode, timestamp}`."""
        timestamp = int(self.now().timestamp() * 1000)
        return Refusal(status, {"status": status, "message": message, "errorCode": code, "timestamp": timestamp})

    def _login(self, call: Call) -> tuple[int, object]:
        if call.body != {"username": self.username, "password": self.password}:
            raise self.refusal(401, AUTHENTICATION, "Invalid username or password")
        return 200, self._granted()

    def _renew(self, call: Call) -> tuple[int, object]:
        token = call.body.get("refreshToken") if isinstance(call.body, dict) and len(call.body) == 1 else None
        ends = self._refresh_tokens.pop(token, None) if isinstance(token, str) else None
        if ends is None or ends <= self.now():
            raise self.refusal(401, AUTHENTICATION, "Authentication failed")
        return 200, self._granted()

    def _granted(self) -> Json:
        ends = self.now() + self.token_life
        token = self._signer.sign({"sub": self.username, "exp": int(ends.timestamp())})
        refresh = secrets.token_urlsafe(24)
        self._tokens[token] = ends
        self._refresh_tokens[refresh] = self.now() + self.refresh_life
        return {"token": token, "refreshToken": refresh, "scope": None}

    def _authorize(self, call: Call) -> None:
        scheme, _, token = call.headers.get("x-authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self._tokens:
            raise self.refusal(401, AUTHENTICATION, "Authentication failed")
        if self._tokens[token] <= self.now():
            raise self.refusal(401, TOKEN_EXPIRED, "Token has expired")

    def _device(self, id: object) -> Device:
        if not isinstance(id, str) or id not in self._devices:
            raise self.refusal(404, NOT_FOUND, f"Device with id [{id}] is not found")
        return self._devices[id]

    def _page(self, call: Call) -> tuple[int, object]:
        query = call.query
        numbers = [query.get(name, "") for name in ("pageSize", "page")]
        if query.keys() != {"pageSize", "page"} or not all(text.isascii() and text.isdecimal() for text in numbers):
            raise self.refusal(400, BAD_REQUEST, "pageSize and page are required, and nothing else is known")
        size, page = min(int(numbers[0]), self.page_limit), int(numbers[1])
        if size < 1:
            raise self.refusal(400, BAD_REQUEST, "Incorrect page link page size. Page size must be greater than zero.")
        devices = [
            {
                "id": {"entityType": "DEVICE", "id": device.id},
                "createdTime": int(device.created_at.timestamp() * 1000),
                "name": device.name,
                "type": "default",
                "label": None,
            }
            for device in self._devices.values()
        ]
        total = len(devices)
        return 200, {
            "data": devices[page * size : (page + 1) * size],
            "totalPages": -(-total // size),
            "totalElements": total,
            "hasNext": (page + 1) * size < total,
        }

    def _set(self, call: Call) -> tuple[int, object]:
        body = call.body if isinstance(call.body, dict) else {}
        owner = body.get("deviceId")
        device = self._device(owner.get("id") if isinstance(owner, dict) else None)
        shown = _shown(device)
        if unknown := body.keys() - shown.keys():
            raise self.refusal(400, BAD_REQUEST, f"Unrecognized field: {min(unknown)}")
        if body.get("id") != shown["id"] or owner != shown["deviceId"]:
            raise self.refusal(400, BAD_REQUEST, "Unable to create device credentials: there is one for this device")
        match body.get("credentialsType"):
            case "ACCESS_TOKEN":
                token = body.get("credentialsId")
                if not isinstance(token, str) or not token:
                    raise self.refusal(400, BAD_REQUEST, "Device credentials id should be specified!")
                device.kind, device.token, device.value = "ACCESS_TOKEN", token, None
            case "MQTT_BASIC":
                device.kind, device.token, device.value = "MQTT_BASIC", "", self._basic(body.get("credentialsValue"))
            case _:
                raise self.refusal(400, BAD_REQUEST, "Device credentials type should be specified!")
        self._changed()
        return 200, _shown(device)

    def _basic(self, text: object) -> Json:
        try:
            value = json.loads(text) if isinstance(text, str) else None
        except ValueError:
            value = None
        if not isinstance(value, dict) or not value.keys() <= {"clientId", "userName", "password"}:
            raise self.refusal(400, BAD_REQUEST, "Invalid credentials body for simple mqtt credentials!")
        if not value.get("clientId") and not value.get("userName"):
            raise self.refusal(400, BAD_REQUEST, "Both mqtt client id and user name are empty!")
        return value

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self.live())


def _shown(device: Device) -> Json:
    return {
        "id": {"id": device.credentials_id},
        "createdTime": int(device.created_at.timestamp() * 1000),
        "deviceId": {"entityType": "DEVICE", "id": device.id},
        "credentialsType": device.kind,
        "credentialsId": device.token or f"|{device.id}",
        "credentialsValue": json.dumps(device.value) if device.value is not None else None,
    }


def _login_of(device: Device) -> tuple[str, str]:
    value: Mapping[str, object] = device.value or {}
    if device.kind == "ACCESS_TOKEN":
        return device.token, device.token
    return str(value.get("userName")), str(value.get("password"))
