"""A WAYSCloud IoT platform on 127.0.0.1, as far as "MQTT Credentials" (seed 003) and platforms.md show one.

    with WaysCloudPlatform(on_change=tell_the_broker) as platform:
        device_id, password = platform.add_key("Temperature Sensor 01")
        ... WaysCloud(…, url=platform.url, token=lambda: platform.token)

Both generations of the API are served at once, told apart by the key: `platform.token` is an old one,
`platform.new_token` a new one. What may go wrong: `platform.faults` for the transport, `platform.password_answer`, and
the switches of `platform.state`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from rotator.sandbox.faults import Cut, Faults
from rotator.sandbox.rest_platform import Call, FixedWindow, OnChange, PasswordAnswer, Refusal, RestPlatform
from rotator.sandbox.wayscloud_state import ERROR_SHAPES, Device, WaysCloudState

__all__ = ["ERROR_SHAPES", "Cut", "Faults", "PasswordAnswer", "WaysCloudPlatform"]

OLD_PREFIX: Final = "wayscloud_iot_prod_"
NEW_PREFIX: Final = "wayscloud_api_"
BEARER_PREFIX: Final = "wayscloud_pat_"  # the new generation's other kind of token
REQUESTS_A_MINUTE, BURST = 1000, 200  # of one API key

ROUTES: Final = (
    ("GET", "/v1/iot/devices", "list"),
    ("POST", "/v1/iot/devices", "create"),
    ("GET", "/v1/iot/devices/{key_id}", "get"),
    ("PATCH", "/v1/iot/devices/{key_id}", "patch"),
    ("DELETE", "/v1/iot/devices/{key_id}", "delete"),
    ("GET", "/v1/iot/credentials", "credentials"),
    ("GET", "/v1/iot/quota", "quota"),
)


class WaysCloudPlatform(RestPlatform):
    """The platform over HTTP: one account, its API keys and devices.

    Args:
        on_change: told of `live()` (usernames → passwords) inside each call that changes it, before it is answered.
        now: the platform's clock.

    Attributes:
        password_answer: what the call that makes a device answers.
        not_served: operations whose path does not exist here (`credentials`, `quota` and `get` are documented for one
            generation each).
        bare_list: whether the new generation's list is a list, without `total`.
        window: the rate limit of each API key.
    """

    def __init__(
        self, *, on_change: OnChange | None = None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        super().__init__(ROUTES, changing="create", now=now)
        self.state = WaysCloudState(now=lambda: self.now(), on_change=on_change)
        self.password_answer = PasswordAnswer.NORMAL
        self.not_served: frozenset[str] = frozenset()
        self.bare_list = False
        self.window = FixedWindow(REQUESTS_A_MINUTE + BURST, 60)
        self._tokens: set[str] = set()
        self.token = self.add_token(OLD_PREFIX)
        self.new_token = self.add_token(NEW_PREFIX)
        self.bearer_token = self.add_token(BEARER_PREFIX)

    def live(self) -> dict[str, str]:
        """Usernames → passwords of the devices that let somebody in."""
        return self.state.live()

    def add_token(self, prefix: str) -> str:
        """A new API key of the generation that `prefix` stands for."""
        token = prefix + secrets.token_hex(20)
        self._tokens.add(token)
        return token

    def drop_token(self, token: str) -> None:
        """The API key was revoked."""
        self._tokens.discard(token)

    def add_key(self, name: str = "Temperature Sensor 01", **fields: object) -> tuple[str, str]:
        """A device that somebody made, with these fields of the old generation's POST: its id and its password."""
        made = self.state.create({"name": name, "type": "sensor", **fields}, new=False)
        return made["device_id"], made["mqtt_credentials"]["password"]

    def add_new_key(self, device_id: str, name: str = "Temperature Sensor 01", **fields: object) -> tuple[str, str]:
        """A device with these fields of the new generation's POST: its MQTT username and its password."""
        made = self.state.create({"device_id": device_id, "name": name, **fields}, new=True)
        return made["mqtt_username"], made["mqtt_password"]

    def key(self, id: str) -> Device:
        """One device.

        Raises: Refusal.
        """
        return self.state.device(id)

    def keys(self) -> list[Device]:
        """All devices, oldest first."""
        found = self.state.devices()
        return found[::-1] if self.state.newest_first else found

    def refused(self, status: int) -> object:
        """429 is the platform's own; 5xx are a gateway's."""
        return self.state.refusal(429, "RATE_LIMIT_EXCEEDED", "Too many requests").body if status == 429 else None

    def answer(self, call: Call) -> tuple[int, object]:
        """Do what is asked.

        Raises: Refusal.
        """
        new = self._authorize(call)
        if call.operation in self.not_served:
            raise Refusal(404, {"detail": "Not Found"})
        state = self.state
        match call.operation:
            case "list":
                page = state.page(call.query, new=new)
                return 200, page["devices"] if new and self.bare_list else page
            case "create":
                return 201, state.create(call.body, new=new, answer=self.password_answer)
            case "get":
                return 200, state.shown(state.device(call.key_id), new=new)
            case "patch" if new:
                return 200, state.patch(call.key_id, call.body)
            case "patch":
                raise Refusal(405, {"detail": "Method Not Allowed"})
            case "delete":
                state.delete(call.key_id)
                return (204, None) if new else (200, {"message": "Device deleted", "device_id": call.key_id})
            case "credentials":
                return 200, state.credentials()
            case _:
                return 200, state.quota()

    def _authorize(self, call: Call) -> bool:
        """Whether the caller speaks the new generation.

        Raises: Refusal.
        """
        scheme, _, bearer = call.headers.get("authorization", "").partition(" ")
        key = call.headers.get("x-api-key", "")
        given = key or (bearer if scheme == "Bearer" else "")
        misplaced = given.startswith(NEW_PREFIX) is not bool(key)
        if given not in self._tokens or misplaced:
            raise self.state.refusal(401, "UNAUTHORIZED", "Invalid API key")
        if wait := self.window.wait(given, self.now()):
            later = {"Retry-After": str(wait)}
            raise self.state.refusal(429, "RATE_LIMIT_EXCEEDED", "Too many requests", later)
        return not given.startswith(OLD_PREFIX)
