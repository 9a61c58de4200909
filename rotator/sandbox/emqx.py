"""The calls of EMQX 5's management API that a rotation needs: users of the built-in database, and MQTT clients.

    with EmqxBroker(on_change=tell_the_broker) as emqx:
        username, password = emqx.add_key("lift-1")
        ... kind: http, url: emqx.api, auth: {basic: {username: emqx.api_key, password: …}}

A changed password kicks nobody: `connect` notes a session, which stays until `DELETE /clients/{clientid}`.
"""

from __future__ import annotations

import base64
import secrets
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from rotator.sandbox.rest_platform import Call, Json, OnChange, Refusal, RestPlatform, Routes

USERS: Final = "/api/v5/authentication/password_based:built_in_database/users"
ROUTES: Final[Routes] = (
    ("GET", USERS, "list"),
    ("POST", USERS, "create"),
    ("GET", f"{USERS}/{{key_id:path}}", "get"),
    ("PUT", f"{USERS}/{{key_id:path}}", "set"),
    ("DELETE", f"{USERS}/{{key_id:path}}", "delete"),
    ("GET", "/api/v5/clients", "clients"),
    ("DELETE", "/api/v5/clients/{key_id:path}", "kick"),
)
LARGEST_PAGE: Final = 10_000
Fields = Mapping[str, type]


@dataclass(kw_only=True, slots=True)
class User:
    """One user of the built-in database."""

    password: str = field(repr=False)
    is_superuser: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One connected MQTT client."""

    clientid: str
    username: str
    connected_at: datetime


class EmqxBroker(RestPlatform):
    """The management API over HTTP, for one API key.

    Args:
        on_change: told of `live()` (usernames → passwords) inside each call that changes it.
        on_kick: told of the client id inside the call that ends a session.
        now: the broker's clock.
    """

    def __init__(
        self,
        *,
        on_change: OnChange | None = None,
        on_kick: Callable[[str], None] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(ROUTES, changing="set", now=now)
        self._on_change, self._on_kick = on_change, on_kick
        self.api_key, self.api_secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        self.page_limit = LARGEST_PAGE  # users or clients in one answer, whatever `limit` asks for
        self._state = threading.RLock()
        self._users: dict[str, User] = {}
        self._sessions: dict[str, Session] = {}

    # --- for tests and the demo

    @property
    def api(self) -> str:
        """The API's base: `http://127.0.0.1:PORT/api/v5`."""
        return f"{self.url}/api/v5"

    def live(self) -> dict[str, str]:
        """Usernames → passwords that the broker accepts for a new connection."""
        with self._state:
            return {name: user.password for name, user in self._users.items()}

    def user(self, user_id: str) -> Json | None:
        """One user as the API shows it; None where there is none."""
        with self._state:
            return self._shown(user_id) if user_id in self._users else None

    def sessions(self) -> list[str]:
        """The client ids that are connected, oldest first."""
        with self._state:
            return list(self._sessions)

    def add_key(self, name: str = "", *, is_superuser: bool = False) -> tuple[str, str]:
        """A user that somebody made by hand. Returns: its name, which is its id, and its password."""
        name, password = name or f"user-{secrets.token_hex(4)}", secrets.token_urlsafe(16)
        with self._state:
            self._users[name] = User(password=password, is_superuser=is_superuser)
            self._changed()
        return name, password

    def connect(self, username: str, clientid: str) -> None:
        """A client that logged in now, and stays whatever becomes of its password."""
        with self._state:
            self._sessions[clientid] = Session(clientid=clientid, username=username, connected_at=self.now())

    # --- HTTP

    def refused(self, status: int) -> object:
        """EMQX's own shape, where it answers at all."""
        return {"code": "SERVICE_UNAVAILABLE", "message": "not now"} if status >= 500 else None

    def answer(self, call: Call) -> tuple[int, object]:
        """Do what is asked.

        Raises: Refusal.
        """
        expected = base64.b64encode(f"{self.api_key}:{self.api_secret}".encode()).decode()
        if call.headers.get("authorization") != f"Basic {expected}":
            raise refusal(401, "BAD_API_KEY_OR_SECRET", "Check api_key/api_secret")
        with self._state:
            match call.operation:
                case "list":
                    return self._page(call, [self._shown(name) for name in sorted(self._users)])
                case "get":
                    return 200, self._shown(self._known(call))
                case "create":
                    return self._create(call)
                case "set":
                    return self._set(call)
                case "delete":
                    del self._users[self._known(call)]
                    self._changed()
                    return 204, None
                case "clients":
                    return self._page(call, self._clients(call), allowed={"username"})
                case _:
                    return self._kick(call)

    def _known(self, call: Call) -> str:
        if call.key_id not in self._users:
            raise refusal(404, "NOT_FOUND", "User not found")
        return call.key_id

    def _shown(self, user_id: str) -> Json:
        return {"user_id": user_id, "is_superuser": self._users[user_id].is_superuser}

    def _create(self, call: Call) -> tuple[int, object]:
        body = _fields(call, required={"user_id": str, "password": str}, optional={"is_superuser": bool})
        user_id = body["user_id"]
        if user_id in self._users:
            raise refusal(409, "ALREADY_EXISTS", "User already exists")
        self._users[user_id] = User(password=body["password"], is_superuser=body.get("is_superuser", False))
        self._changed()
        return 201, self._shown(user_id)

    def _set(self, call: Call) -> tuple[int, object]:
        user_id = self._known(call)
        body = _fields(call, required={"password": str}, optional={"is_superuser": bool})
        # what is not named falls back to its default: the trap that the example's `get` is for
        self._users[user_id] = User(password=body["password"], is_superuser=body.get("is_superuser", False))
        self._changed()
        return 200, self._shown(user_id)

    def _clients(self, call: Call) -> list[Json]:
        wanted = call.query.get("username")
        return [
            {
                "clientid": session.clientid,
                "username": session.username,
                "connected": True,
                "connected_at": session.connected_at.isoformat(timespec="milliseconds"),
            }
            for session in self._sessions.values()
            if wanted in (None, session.username)
        ]

    def _kick(self, call: Call) -> tuple[int, object]:
        if self._sessions.pop(call.key_id, None) is None:
            raise refusal(404, "CLIENTID_NOT_FOUND", "Client ID not found")
        if self._on_kick is not None:
            self._on_kick(call.key_id)
        return 204, None

    def _page(self, call: Call, entries: list[Json], allowed: Collection[str] = ()) -> tuple[int, object]:
        if unknown := call.query.keys() - {"page", "limit", *allowed}:
            raise refusal(400, "BAD_REQUEST", f"unknown query parameter: {min(unknown)}")
        page, limit = _number(call, "page", 1), _number(call, "limit", 100)
        if not 1 <= limit <= LARGEST_PAGE or page < 1:
            raise refusal(400, "BAD_REQUEST", "page or limit out of range")
        limit = min(limit, self.page_limit)
        shown = entries[(page - 1) * limit : page * limit]
        meta = {"page": page, "limit": limit, "count": len(entries), "hasnext": page * limit < len(entries)}
        return 200, {"data": shown, "meta": meta}

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self.live())


def refusal(status: int, code: str, message: str) -> Refusal:
    """EMQX's way to say no: `{"code", "message"}`."""
    return Refusal(status, {"code": code, "message": message})


def _fields(call: Call, *, required: Fields, optional: Fields) -> Json:
    """The body, which holds these fields of these types and no others.

    Raises: Refusal.
    """
    if not isinstance(call.body, dict):
        raise refusal(400, "BAD_REQUEST", "the body is no JSON object")
    known = {**required, **optional}
    for name, value in call.body.items():
        if name not in known:
            raise refusal(400, "BAD_REQUEST", f"unknown field: {name}")
        if not isinstance(value, known[name]):
            raise refusal(400, "BAD_REQUEST", f"{name}: not of the right type")
    if missing := required.keys() - call.body.keys():
        raise refusal(400, "BAD_REQUEST", f"{min(missing)}: required")
    return dict(call.body)


def _number(call: Call, name: str, default: int) -> int:
    text = call.query.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise refusal(400, "BAD_REQUEST", f"{name} is no whole number")
    return int(text)
