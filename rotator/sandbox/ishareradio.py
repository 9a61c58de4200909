"""An iShareRadio MQTT portal on 127.0.0.1, as far as its "MQTT client management API" (seed 001) shows one.

    with IShareRadioPlatform(on_change=tell_the_broker) as platform:
        client_id, password = platform.add_key("site-alpha-sensor")
        ... IShareRadio(…, url=platform.url, token=lambda: platform.token)

What may go wrong: `platform.faults` for the transport, `platform.password_answer` for what the calls that make a
password answer. What the document leaves open: `platform.list_shape`, `platform.serves_subscribers`, and the switches
of `platform.state`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from rotator.sandbox.faults import Cut, Faults
from rotator.sandbox.ishareradio_state import IShareRadioState
from rotator.sandbox.rest_platform import Call, FixedWindow, Json, OnChange, PasswordAnswer, Refusal, RestPlatform

__all__ = ["Cut", "Faults", "IShareRadioPlatform", "PasswordAnswer"]

TOKEN_PREFIX: Final = "isr_mqtt_rest_"
OPERATOR_PREFIX: Final = "isr_mqtt_platform_rest_"
REQUESTS_AN_HOUR: Final = 5000  # of one token
LIST_SHAPES: Final = ("publishers", "clients", "devices", "items", "")  # the field that holds the rows; "": no field

_PUBLISHERS: Final = "/api/v1/subscriber/publishers"
_SUBSCRIBERS: Final = "/api/v1/subscriber/subscriber-mqtt-passwords"
ROUTES: Final = (
    ("GET", _PUBLISHERS, "list"),
    ("POST", _PUBLISHERS, "create"),
    ("POST", f"{_PUBLISHERS}/{{key_id}}/pause", "pause"),
    ("POST", f"{_PUBLISHERS}/{{key_id}}/resume", "resume"),
    ("POST", f"{_PUBLISHERS}/{{key_id}}/rotate-credentials", "rotate"),
    ("DELETE", f"{_PUBLISHERS}/{{key_id}}", "delete"),
    ("GET", _SUBSCRIBERS, "list_subscribers"),
    ("POST", _SUBSCRIBERS, "create_subscriber"),
    ("DELETE", f"{_SUBSCRIBERS}/{{key_id}}", "delete_subscriber"),
)


@dataclass(frozen=True, slots=True)
class _Token:
    expires_at: datetime
    operator: bool


class IShareRadioPlatform(RestPlatform):
    """The portal over HTTP: one account, its REST tokens, its MQTT clients and read-only logins.

    Args:
        on_change: told of `live()` (usernames → passwords) inside each call that changes it, before it is answered.
        now: the portal's clock.
        list_shape: one of `LIST_SHAPES`, since the document does not show the list's answer.
        serves_subscribers: whether the paths for the list and the removal of read-only logins exist: not documented.

    Attributes:
        mgmt: whether the account has the Mgmt REST API add-on.
        password_answer: what the calls that make a password answer.
        window: the rate limit of each token.
    """

    def __init__(
        self,
        *,
        on_change: OnChange | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        list_shape: str = "publishers",
        serves_subscribers: bool = True,
    ) -> None:
        super().__init__(ROUTES, changing="rotate", now=now)
        self.state = IShareRadioState(now=lambda: self.now(), on_change=on_change)
        self.list_shape = list_shape
        self.serves_subscribers = serves_subscribers
        self.mgmt = True
        self.password_answer = PasswordAnswer.NORMAL
        self.window = FixedWindow(REQUESTS_AN_HOUR, 3600)
        self._tokens: dict[str, _Token] = {}
        self.token = self.add_token()

    @property
    def account(self) -> str:
        """The account's id."""
        return self.state.account

    def live(self) -> dict[str, str]:
        """Usernames → passwords of the logins that are let in."""
        return self.state.live()

    def add_token(self, *, operator: bool = False, days: float = 90) -> str:
        """A new REST token; an operator's works for every account, and so has to name one."""
        token = (OPERATOR_PREFIX if operator else TOKEN_PREFIX) + secrets.token_hex(20)
        self._tokens[token] = _Token(self.now() + timedelta(days=days), operator)
        return token

    def add_key(self, label: str = "site-alpha-sensor", *, allow_subscribe: bool = True) -> tuple[str, str]:
        """An MQTT client that somebody made in the portal: its client id, which is its username, and its password."""
        made = self.state.create({"label": label, "allow_subscribe": allow_subscribe})["device"]
        return made["client_id"], made["password"]

    def add_subscriber(self, label: str = "automation", *, days: int = 30) -> tuple[str, str, str]:
        """A read-only login that somebody made: its id, username and password."""
        made = self.state.create_subscriber({"label": label, "expires_in_days": days})
        return made["id"], made["username"], made["password"]

    def refused(self, status: int) -> object:
        """429 is the portal's own; 5xx are a gateway's."""
        return {"detail": "Too many requests"} if status == 429 else None

    def answer(self, call: Call) -> tuple[int, object]:
        """Do what is asked.

        Raises: Refusal.
        """
        self._authorize(call)
        state, answer = self.state, self.password_answer
        match call.operation:
            case "list":
                return 200, self._listed(state.publishers())
            case "create":
                return 201, state.create(call.body, answer)
            case "rotate":
                return 200, state.rotate(call.key_id, answer)
            case "pause" | "resume":
                return 200, state.pause(call.key_id, call.operation == "pause")
            case "delete":
                return 200, state.remove(call.key_id)
            case "create_subscriber":
                return 201, state.create_subscriber(call.body, answer)
            case "list_subscribers" if self.serves_subscribers:
                return 200, self._listed(state.subscribers())
            case "delete_subscriber" if self.serves_subscribers:
                return 200, state.remove_subscriber(call.key_id)
            case "list_subscribers":
                raise Refusal(405, {"detail": "Method Not Allowed"})
            case _:
                raise Refusal(404, {"detail": "Not Found"})

    def _listed(self, rows: list[Json]) -> object:
        return {self.list_shape: rows} if self.list_shape else rows

    def _authorize(self, call: Call) -> None:
        scheme, _, given = call.headers.get("authorization", "").partition(" ")
        token = self._tokens.get(given) if scheme == "Bearer" else None
        if token is None:
            raise Refusal(401, {"detail": "Invalid token"})
        now = self.now()
        if token.expires_at <= now:
            raise Refusal(401, {"detail": "Token expired"})
        if wait := self.window.wait(given, now):
            raise Refusal(429, {"detail": "Rate limit exceeded"}, {"Retry-After": str(wait)})
        account = call.headers.get("x-isr-account-id")
        if token.operator and not account:
            raise Refusal(400, {"detail": "X-ISR-Account-Id is required with a platform token"})
        if token.operator and account != self.account:
            raise Refusal(404, {"detail": "Account not found"})
        if not self.mgmt:
            raise Refusal(403, {"detail": "The Mgmt REST API add-on is not active"})
