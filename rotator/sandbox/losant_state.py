"""What a Losant platform knows of one application's access keys, and the rules over them.

Source of the rules: Losant's "Access Keys" page (seed 004) and the schemas of its REST API.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

Json = dict[str, Any]
OnChange = Callable[[Mapping[str, str]], None]

LONGEST_NAME, LONGEST_DESCRIPTION, LONGEST_TOPIC = 255, 32767, 1024
_ID = re.compile(r"[A-Fa-f\d]{24}")
_TAG_KEY = re.compile(r"[0-9a-zA-Z_-]{1,255}")


class LosantAnswer(StrEnum):
    """What the call that makes a key does and answers."""

    NORMAL = "normal"
    NO_SECRET = "no_secret"  # made, but the answer does not show the secret
    EMPTY_SECRET = "empty_secret"  # made, and the answer's secret is ""
    UNUSABLE_SECRET = "unusable_secret"  # looks well, but the broker was told of another one
    UNRESTRICTED = "unrestricted"  # made without its device restrictions
    NOTHING_SHOWN = "nothing_shown"  # made as asked, but the answer shows no device restrictions


class Refusal(Exception):
    """The platform's no: a status and `{"type", "message"}`."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body: Json = {"type": kind, "message": message}


@dataclass(kw_only=True, slots=True)
class AccessKey:
    """One key. `fields` is what its maker chose; `live` is the secret that the broker knows."""

    id: str
    key: str
    status: str
    created_at: datetime
    updated_at: datetime
    fields: Json
    live: str = field(repr=False)


class LosantState:
    """All of it, behind one lock: every public method is one transaction, the broker's part included.

    Args:
        now: the platform's clock.
        on_change: told of `live()` whenever that changed, inside the call that changed it.
    """

    def __init__(self, *, now: Callable[[], datetime], on_change: OnChange | None) -> None:
        self._now, self._on_change = now, on_change
        self._lock = threading.RLock()
        self._keys: dict[str, AccessKey] = {}
        self.application = new_id()
        self.page_limit = 100  # keys in one answer, whatever `perPage` asks for
        # device → its tags; a device that is not among them has all tags that a key asks for
        self.device_tags: dict[str, dict[str, str]] = {}

    def live(self) -> dict[str, str]:
        """Usernames → secrets of the keys that let somebody in."""
        with self._lock:
            return {key.key: key.live for key in self._keys.values() if key.status == "active"}

    def key(self, id: str) -> AccessKey:
        """One key.

        Raises: Refusal.
        """
        with self._lock:
            if id not in self._keys:
                raise Refusal(404, "NotFound", f"Application Key {id} was not found")
            return self._keys[id]

    def shown(self, key: AccessKey) -> Json:
        """A key as the API shows it, which is without its secret."""
        return {
            "id": key.id,
            "applicationKeyId": key.id,
            "applicationId": self.application,
            "creationDate": stamp(key.created_at),
            "lastUpdated": stamp(key.updated_at),
            "key": key.key,
            "status": key.status,
            **key.fields,
        }

    def all_shown(self) -> list[Json]:
        """All keys as the API shows them, oldest first."""
        with self._lock:
            return [self.shown(key) for key in self._keys.values()]

    def page(self, query: Mapping[str, str]) -> Json:
        """One page of the list, newest first unless asked otherwise.

        Raises: Refusal.
        """
        number, wanted = _number(query, "page", 0), _number(query, "perPage", 100)
        by, direction = query.get("sortField", "creationDate"), query.get("sortDirection", "desc").lower()
        if by not in ("key", "status", "id", "creationDate", "lastUpdated") or direction not in ("asc", "desc"):
            raise Refusal(400, "Validation", "sortField or sortDirection is not one of the allowed values")
        size = max(1, min(wanted, self.page_limit))
        shown = sorted(self.all_shown(), key=lambda each: str(each[by]))
        if direction == "desc":
            shown.reverse()
        items = shown[number * size : (number + 1) * size]
        return {
            "items": items,
            "count": len(items),
            "totalCount": len(shown),
            "page": number,
            "perPage": size,
            "sortField": by,
            "sortDirection": direction,
            "applicationId": self.application,
        }

    def create(self, body: object, answer: LosantAnswer = LosantAnswer.NORMAL) -> Json:
        """A new key, active; the one answer that shows its secret.

        Raises: Refusal.
        """
        fields = validated(body, POST_FIELDS)
        if answer is LosantAnswer.UNRESTRICTED:
            fields |= {"deviceIds": [], "deviceTags": []}
        secret = secrets.token_hex(32)
        with self._lock:
            now = self._now()
            key = AccessKey(
                id=new_id(),
                key=str(uuid.uuid4()),
                status="active",
                created_at=now,
                updated_at=now,
                fields=DEFAULTS | fields,
                live=secrets.token_hex(32) if answer is LosantAnswer.UNUSABLE_SECRET else secret,
            )
            self._keys[key.id] = key
            shown = self.shown(key) | {"secret": secret}
            self._changed()
        return _answered(shown, answer)

    def patch(self, id: str, body: object) -> Json:
        """Change what may be changed; device restrictions may not.

        Raises: Refusal.
        """
        fields = validated(body, PATCH_FIELDS)
        with self._lock:
            key = self.key(id)
            key.status = fields.pop("status", key.status)
            key.fields |= fields
            key.fields = {name: value for name, value in key.fields.items() if value is not None}
            key.updated_at = self._now()
            self._changed()
            return self.shown(key)

    def delete(self, id: str) -> Json:
        """Gone.

        Raises: Refusal.
        """
        with self._lock:
            del self._keys[self.key(id).id]
            self._changed()
        return {"success": True}

    def authenticate_device(self, body: object) -> Json:
        """`POST /auth/device`: whether this device may come in with this key and secret.

        Raises: Refusal.
        """
        given = body if isinstance(body, dict) else {}
        with self._lock:
            for key in self._keys.values():
                fits = key.key == given.get("key") and key.live == given.get("secret") and key.status == "active"
                if fits and self.admits(key, str(given.get("deviceId"))):
                    return {"deviceId": given.get("deviceId"), "token": secrets.token_urlsafe(24)}
        raise Refusal(401, "Unauthorized", "Invalid credentials")

    def admits(self, key: AccessKey, device: str) -> bool:
        """Whether a key's restrictions let a device in: by its id, or by one of its tags as they are at this moment."""
        listed, wanted = key.fields["deviceIds"], key.fields["deviceTags"]
        if device in listed or not (listed or wanted):
            return True
        if device not in self.device_tags:
            return bool(wanted)
        tags = self.device_tags[device].items()
        return any(
            tag.get("key", name) == name and tag.get("value", value) == value for tag in wanted for name, value in tags
        )

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self.live())


def new_id() -> str:
    """24 hex digits, as all of Losant's ids."""
    return secrets.token_hex(12)


def stamp(moment: datetime) -> str:
    """`2016-06-13T04:00:00.000Z`, as the API prints it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _answered(shown: Json, answer: LosantAnswer) -> Json:
    match answer:
        case LosantAnswer.NO_SECRET:
            del shown["secret"]
        case LosantAnswer.EMPTY_SECRET:
            shown["secret"] = ""
        case LosantAnswer.NOTHING_SHOWN:
            del shown["deviceIds"], shown["deviceTags"]
        case _:
            pass
    return shown


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text):
        raise Refusal(400, "Validation", f"{name} is not a whole number")
    return int(text)


# --- what a body may hold: field → whether a value of it is allowed

Rule = Callable[[object], bool]


def _text(longest: int, shortest: int = 0) -> Rule:
    return lambda value: isinstance(value, str) and shortest <= len(value) <= longest


def _one_of(*allowed: str) -> Rule:
    return lambda value: value in allowed


def _list_of(rule: Rule, most: int | None = None) -> Rule:
    return lambda value: (
        isinstance(value, list) and (most is None or len(value) <= most) and all(rule(each) for each in value)
    )


def _is_device_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _is_tag(value: object) -> bool:
    if not isinstance(value, dict) or not value.keys() <= {"key", "value"}:
        return False
    name, wanted = value.get("key", "any"), value.get("value", "any")
    return isinstance(name, str) and _TAG_KEY.fullmatch(name) is not None and _text(255, 1)(wanted)


def _is_topic(value: object) -> bool:
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_TOPIC:
        return False
    levels = value.split("/")
    wild = all(level in ("+", "#") or not set("+#") & set(level) for level in levels) and "#" not in levels[:-1]
    return wild and levels[0] != "losant" and not value.startswith("$SYS")


def _is_address(value: object) -> bool:
    try:
        ipaddress.ip_network(str(value), strict=False)
    except ValueError:
        return False
    return isinstance(value, str) and len(value) <= 48


_CHANGEABLE: Mapping[str, Rule] = {
    "name": _text(LONGEST_NAME, 1),
    "description": _text(LONGEST_DESCRIPTION),
    "filterType": _one_of("all", "whitelist", "blacklist", "none"),
    "pubTopics": _list_of(_is_topic),
    "subTopics": _list_of(_is_topic),
    "addressFilterType": _one_of("all", "whitelist", "blacklist"),
    "addresses": _list_of(_is_address, 100),
}
POST_FIELDS: Mapping[str, Rule] = {
    **_CHANGEABLE,
    "deviceIds": _list_of(_is_device_id, 1000),
    "deviceTags": _list_of(_is_tag, 100),
}
PATCH_FIELDS: Mapping[str, Rule] = {
    **_CHANGEABLE,
    "status": _one_of("active", "inactive"),
    "name": lambda value: value is None or _text(LONGEST_NAME, 1)(value),
}
DEFAULTS: Json = {
    "deviceIds": [],
    "deviceTags": [],
    "filterType": "none",
    "pubTopics": [],
    "subTopics": [],
    "addressFilterType": "all",
    "addresses": [],
    "description": "",
}


def validated(body: object, rules: Mapping[str, Rule]) -> Json:
    """The body itself.

    Raises: Refusal, that names the first field which is unknown or has a value that is not allowed.
    """
    if not isinstance(body, dict):
        raise Refusal(400, "Validation", "The body must be an object")
    for name, value in body.items():
        if name not in rules:
            raise Refusal(400, "Validation", f'Schema validation failed: additional property "{name}"')
        if not rules[name](value):
            raise Refusal(400, "Validation", f'Schema validation failed: "{name}" has a value that is not allowed')
    return dict(body)
