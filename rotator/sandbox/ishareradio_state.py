"""What an iShareRadio MQTT portal knows of one account, and the rules over it.

Source of the rules: "MQTT client management API (Mgmt add-on)" (seed 001) and platforms.md. Where both are silent
(marked "not documented"), there is a switch, or the portal does as programs with an OpenAPI page do: errors are
`{"detail": …}`.
"""

from __future__ import annotations

import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rotator.sandbox.rest_platform import Json, OnChange, PasswordAnswer, Refusal, new_password, stamp


@dataclass(kw_only=True, slots=True)
class Publisher:
    """One MQTT client: a login that may publish, and subscribe where that was allowed."""

    client_id: str
    label: str
    allow_subscribe: bool
    created_at: datetime
    paused: bool = False
    password: str = field(repr=False)
    before: str = field(repr=False, default="")  # the password before this one


@dataclass(kw_only=True, slots=True)
class Subscriber:
    """One read-only login. Its password can't be changed."""

    id: str
    username: str
    label: str
    created_at: datetime
    expires_at: datetime
    password: str = field(repr=False)


class IShareRadioState:
    """All of it, behind one lock: every public method is one transaction, the broker's part included.

    Args:
        now: the portal's clock.
        on_change: told of `live()` inside each call that changes it.

    Attributes:
        account: the tenant's id, the first segment of every topic.
        max_subscribers: how many read-only logins the plan has.
        rotate_nested: whether `rotate-credentials` answers `{"device": {"password": …}}`, as the call that creates
            does, or `{"password": …}`. Not documented.
        old_password_lives: whether the password before still lets its client in. Not documented.
    """

    def __init__(self, *, now: Callable[[], datetime], on_change: OnChange | None) -> None:
        self._now, self._on_change = now, on_change
        self._lock = threading.RLock()
        self._publishers: dict[str, Publisher] = {}
        self._subscribers: dict[str, Subscriber] = {}
        self.account = str(uuid.uuid4())
        self.max_subscribers = 100
        self.rotate_nested = True
        self.old_password_lives = False

    def live(self) -> dict[str, str]:
        """Usernames → the passwords that were made last, of logins that are neither paused nor expired."""
        with self._lock:
            now = self._now()
            publishers = {each.client_id: each.password for each in self._publishers.values() if not each.paused}
            readers = {each.username: each.password for each in self._subscribers.values() if each.expires_at > now}
            return publishers | readers

    def accepts(self, username: str, password: str) -> bool:
        """Whether the broker lets this login in now."""
        with self._lock:
            if self.live().get(username) == password:
                return True
            publisher = self._publishers.get(username)
            old = publisher is not None and not publisher.paused and publisher.before == password != ""
            return old and self.old_password_lives

    # --- MQTT clients

    def publisher(self, client_id: str) -> Publisher:
        """One of them.

        Raises: Refusal.
        """
        with self._lock:
            if client_id not in self._publishers:
                raise Refusal(404, {"detail": f"Publisher {client_id} not found"})
            return self._publishers[client_id]

    def publishers(self) -> list[Json]:
        """All rows of the list, oldest first; no passwords."""
        with self._lock:
            return [self._row(each) for each in self._publishers.values()]

    def create(self, body: object, answer: PasswordAnswer = PasswordAnswer.NORMAL) -> Json:
        """A new MQTT client, and the one answer that shows its password.

        Raises: Refusal.
        """
        fields = validated(body, {"label": str, "allow_subscribe": bool}, required={"label"})
        password = new_password()
        with self._lock:
            made = Publisher(
                client_id=f"pub-{secrets.token_hex(6)}",
                label=fields["label"],
                allow_subscribe=fields.get("allow_subscribe", False),
                created_at=self._now(),
                password=answer.known(password),
            )
            self._publishers[made.client_id] = made
            self._changed()
            row = self._row(made)
        device = {name: row[name] for name in ("client_id", "label", "allow_subscribe", "paused")}
        return {"device": answer.shown(device, "password", password), "publish_topic": row["topic"]}

    def rotate(self, client_id: str, answer: PasswordAnswer = PasswordAnswer.NORMAL) -> Json:
        """A new password for a client; whether it is paused stays as it is.

        Raises: Refusal.
        """
        password = new_password()
        with self._lock:
            client = self.publisher(client_id)
            client.before, client.password = client.password, answer.known(password)
            self._changed()
        shown = answer.shown({"client_id": client_id}, "password", password)
        return {"device": shown} if self.rotate_nested else shown

    def pause(self, client_id: str, paused: bool) -> Json:
        """Pause or resume a client. The one that it is already is no error: not documented.

        Raises: Refusal.
        """
        with self._lock:
            client = self.publisher(client_id)
            client.paused = paused
            self._changed()
            return {"client_id": client_id, "paused": paused}

    def remove(self, client_id: str) -> Json:
        """Gone.

        Raises: Refusal.
        """
        with self._lock:
            del self._publishers[self.publisher(client_id).client_id]
            self._changed()
        return {"removed": True, "client_id": client_id}

    def _row(self, client: Publisher) -> Json:
        prefix = f"{self.account}/{client.client_id}"
        return {
            "client_id": client.client_id,
            "label": client.label,
            "topic": f"{prefix}/#",
            "history_topic_prefix": prefix,
            "allow_publish": True,
            "allow_subscribe": client.allow_subscribe,
            "paused": client.paused,
            "created_at": stamp(client.created_at),
        }

    # --- read-only logins

    def subscribers(self) -> list[Json]:
        """All of them, oldest first; no passwords. Not documented."""
        with self._lock:
            return [self._subscriber_row(each) for each in self._subscribers.values()]

    def create_subscriber(self, body: object, answer: PasswordAnswer = PasswordAnswer.NORMAL) -> Json:
        """A new read-only login, and the one answer that shows its password.

        Raises: Refusal.
        """
        fields = validated(body, {"label": str, "expires_in_days": int}, required={"label", "expires_in_days"})
        if not 1 <= fields["expires_in_days"] <= 3650:
            raise _invalid("expires_in_days", "must be between 1 and 3650")
        password = new_password()
        with self._lock:
            now = self._now()
            active = sum(each.expires_at > now for each in self._subscribers.values())
            if active >= self.max_subscribers:
                raise Refusal(403, {"detail": f"max_subscribers reached ({active}/{self.max_subscribers})"})
            made = Subscriber(
                id=str(uuid.uuid4()),
                username=f"sub-{secrets.token_hex(6)}",
                label=fields["label"],
                created_at=now,
                expires_at=now + timedelta(days=fields["expires_in_days"]),
                password=answer.known(password),
            )
            self._subscribers[made.id] = made
            self._changed()
            return answer.shown(self._subscriber_row(made), "password", password)

    def remove_subscriber(self, id: str) -> Json:
        """Gone. Not documented.

        Raises: Refusal.
        """
        with self._lock:
            if id not in self._subscribers:
                raise Refusal(404, {"detail": f"Subscriber password {id} not found"})
            del self._subscribers[id]
            self._changed()
        return {"revoked": True}

    def _subscriber_row(self, login: Subscriber) -> Json:
        return {
            "id": login.id,
            "username": login.username,
            "label": login.label,
            "subscribe_filter": f"{self.account}/#",
            "created_at": stamp(login.created_at),
            "expires_at": stamp(login.expires_at),
        }

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self.live())


def _invalid(name: str, problem: str) -> Refusal:
    return Refusal(422, {"detail": [{"loc": ["body", name], "msg": problem, "type": "value_error"}]})


def validated(body: object, rules: dict[str, type], required: set[str]) -> Json:
    """The body itself.

    Raises: Refusal, that names the first field which is unknown, missing or of another type.
    """
    if not isinstance(body, dict):
        raise _invalid("", "a JSON object is required")
    for name in required - body.keys():
        raise _invalid(name, "field required")
    for name, value in body.items():
        if name not in rules:
            raise _invalid(name, "extra fields not permitted")
        if type(value) is not rules[name] or value == "":  # a bool is no int here
            raise _invalid(name, f"not a valid {rules[name].__name__}")
    return dict(body)
