"""What each call of an Iotistica cloud's REST API takes and answers, strict about every field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from rotator.sandbox.iotistica_login import LoginDesk, Turnstile
from rotator.sandbox.iotistica_rows import ApiKey, Generation, IotisticaAnswer, Json, MqttUser, ProvisioningKey, Refusal
from rotator.sandbox.iotistica_state import IotisticaState, stamp

Rule = Callable[[object], bool]
# which calls show a login of an admin, and which one of any operator
ADMIN: Final = frozenset(
    {
        "list_api_keys",
        "create_api_key",
        "revoke_api_key",
        "list_mqtt_users",
        "create_mqtt_user",
        "update_mqtt_user",
        "delete_mqtt_user",
        "add_access",
        "list_provisioning_keys",
        "create_provisioning_key",
        "revoke_provisioning_key",
    }
)
DEVICE: Final = frozenset({"device_state", "rotate_key"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One request: what it asks for, of whom, and with what."""

    operation: str
    id: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)  # lower-case names
    body: object = field(repr=False)  # the parsed JSON; bytes where it is none; None for none

    def of(self, operation: str, id: str) -> Call:
        """The same, known to be about this."""
        return replace(self, operation=operation, id=id)


class IotisticaApi:
    """Answers calls out of the state.

    Attributes:
        nested_key: a new API key is told as `{"key": {"key": …}}` (the source), else flat.
        flat_name: the name of a flat key: `apiKey` or `key`.
        names_id: the answer to a new API key names its id.
        tolerant: unknown fields are ignored, as the server's source ignores them.
        fleet: the fleet without which the server's source shows and makes no provisioning key; "": none is asked for.
        page: agents in one answer, whatever `limit` asks for.
        lists_key_dates: the list of agents says when each key was made and when it ends.
    """

    def __init__(self, state: IotisticaState, desk: LoginDesk, turnstile: Turnstile) -> None:
        self._state, self._desk, self._turnstile = state, desk, turnstile
        self._document = state.generation is Generation.DOCUMENT
        self.nested_key = not self._document
        self.flat_name = "apiKey"
        self.names_id = True
        self.tolerant = False
        self.fleet = ""
        self.page = 100
        self.lists_key_dates = False
        self._answers: Mapping[str, Callable[[Call, IotisticaAnswer], Json]] = {
            "login": lambda call, _: desk.log_in(call.body),
            "refresh": lambda call, _: desk.refresh(call.body),
            "list_agents": self._list_agents,
            "device_state": lambda call, _: {call.id: {"version": 1, "apps": {}, "config": {}}},
            "rotate_key": self._rotate_key,
            "list_api_keys": self._list_api_keys,
            "create_api_key": self._create_api_key,
            "revoke_api_key": self._revoke_api_key,
            "list_mqtt_users": self._list_mqtt_users,
            "create_mqtt_user": self._create_mqtt_user,
            "update_mqtt_user": self._update_mqtt_user,
            "delete_mqtt_user": self._delete_mqtt_user,
            "add_access": self._add_access,
            "list_provisioning_keys": self._list_provisioning_keys,
            "create_provisioning_key": self._create_provisioning_key,
            "revoke_provisioning_key": self._revoke_provisioning_key,
            "register": self._register,
        }

    def answer(self, call: Call, answer: IotisticaAnswer) -> Json:
        """Do it.

        Raises: Refusal.
        """
        if call.operation not in self._answers:
            raise Refusal(404, f"Route {call.id} not found", statusCode="404")
        self._turnstile.count("all")
        if call.operation in ("login", "refresh"):
            self._turnstile.count("auth")
        elif call.operation in DEVICE:
            self._as_device(call)
        elif call.operation != "register":
            self._desk.authorize(call.headers.get("authorization", ""), admin=call.operation in ADMIN)
        with self._state.lock:
            return self._answers[call.operation](call, answer)

    def _as_device(self, call: Call) -> None:
        key = call.headers.get("x-device-api-key", "")
        if not key:
            raise Refusal(401, "Device API key required.")
        if call.id not in self._state.agents:
            raise Refusal(404, "Device not found")
        if not self._state.accepts(call.id, key):
            raise Refusal(401, "Invalid device API key")

    # --- agents

    def _list_agents(self, call: Call, _: IotisticaAnswer) -> Json:
        page, limit = _number(call.query, "page", 1), min(_number(call.query, "limit", 10), self.page)
        agents = list(self._state.agents.values())
        shown: list[Json] = []
        for agent in agents[(page - 1) * limit : page * limit]:
            row: Json = {"id": agent.uuid, "uuid": agent.uuid, "name": agent.name, "device_name": agent.name}
            if self.lists_key_dates:
                ends = [each.since for each in self._state.passes if each.agent == agent.uuid and each.device]
                row["api_key_last_rotated_at"] = stamp(agent.key_rotated_at or ends[0])
                row["api_key_expires_at"] = _stamp(agent.key_expires_at)
            shown.append({**row, "created_at": stamp(agent.created_at)})
        pages = {"page": page, "limit": limit, "totalDevices": len(agents), "totalPages": -(-len(agents) // limit)}
        return {"count": len(shown), "agents": shown, "pagination": pages}

    def _rotate_key(self, call: Call, answer: IotisticaAnswer) -> Json:
        self._turnstile.count("rotate_key", call.id)
        self._checked(call.body or {}, {"reason": _is_text})
        return self._state.rotate_device_key(call.id, answer)

    def _register(self, call: Call, _: IotisticaAnswer) -> Json:
        if self._document:
            fields = self._checked(call.body, {"key": _is_text, "agentName": _is_text}, {"key", "agentName"})
            self._state.spend(fields["key"])
            agent, key = self._state.register(fields["agentName"])
            return {"apiKey": key, "agentUuid": agent.uuid}
        needed = {"uuid", "deviceName", "deviceType", "deviceApiKey"}
        fields = self._checked(call.body, dict.fromkeys(needed, _is_text), needed)
        if not call.headers.get("x-provisioning-key"):
            raise Refusal(401, "Provisioning key required in x-provisioning-key header")
        self._state.spend(call.headers["x-provisioning-key"])
        agent, key = self._state.register(fields["deviceName"], uuid_=fields["uuid"], key=fields["deviceApiKey"])
        user = self._state.create_mqtt_user(f"agent_{agent.uuid}", agent.mqtt_password)
        mqtt = {"username": user.username, "password": user.password}
        return {"uuid": agent.uuid, "deviceName": agent.name, "deviceType": fields["deviceType"], "mqtt": mqtt}

    # --- API keys

    def _list_api_keys(self, call: Call, _: IotisticaAnswer) -> Json:
        return {"success": True, "keys": [self._api_key(row) for row in reversed(self._state.api_keys.values())]}

    def _api_key(self, row: ApiKey) -> Json:
        shown: Json = {
            "id": row.id,
            "name": row.name,
            "key": row.key,
            "key_prefix": row.key[:8],
            "description": row.description,
            "is_active": row.is_active,
            "created_at": stamp(row.created_at),
            "expires_at": _stamp(row.expires_at),
            "last_used_at": None,
        }
        return shown | ({"agentUuid": row.agent} if row.agent else {})

    def _create_api_key(self, call: Call, answer: IotisticaAnswer) -> Json:
        if self._document:
            fields = self._checked(call.body, {"name": _is_text, "agentUuid": _is_text}, {"name", "agentUuid"})
        else:
            rules: Mapping[str, Rule] = {"name": _is_text, "description": _is_text_or_null, "expires_at": _is_time}
            fields = self._checked(call.body, rules, {"name"})
        row = self._state.create_api_key(
            fields["name"].strip(),
            description=fields.get("description"),
            agent=fields.get("agentUuid", ""),
            expires_at=_time(fields.get("expires_at")),
            answer=answer,
        )
        shown = self._api_key(row)
        if not self.names_id:
            del shown["id"]
        if answer is IotisticaAnswer.NO_SECRET:
            del shown["key"]
        elif answer is IotisticaAnswer.EMPTY_SECRET:
            shown["key"] = ""
        if self.nested_key:
            return {"success": True, "message": "API key created successfully", "key": shown}
        return {self.flat_name if name == "key" else name: value for name, value in shown.items()}

    def _revoke_api_key(self, call: Call, _: IotisticaAnswer) -> Json:
        self._state.revoke_api_key(_row(call.id))
        return {"success": True, "message": "API key revoked successfully"}

    # --- MQTT users

    def _list_mqtt_users(self, call: Call, _: IotisticaAnswer) -> Json:
        return {"success": True, "users": [_mqtt_user(user) for user in reversed(self._state.mqtt_users.values())]}

    def _create_mqtt_user(self, call: Call, _: IotisticaAnswer) -> Json:
        rules: Mapping[str, Rule] = {"username": _is_text, **_MQTT_USER}
        fields = self._checked(call.body, rules, {"username", "password"})
        user = self._state.create_mqtt_user(fields.pop("username"), fields.pop("password"), **fields)
        return {"success": True, "message": "MQTT user created successfully", "user": _mqtt_user(user)}

    def _update_mqtt_user(self, call: Call, _: IotisticaAnswer) -> Json:
        user = self._state.update_mqtt_user(_row(call.id), self._checked(call.body, _MQTT_USER))
        return {"success": True, "message": "MQTT user updated successfully", "user": _mqtt_user(user)}

    def _delete_mqtt_user(self, call: Call, _: IotisticaAnswer) -> Json:
        self._state.delete_mqtt_user(_row(call.id))
        return {"success": True, "message": "MQTT user deleted successfully"}

    def _add_access(self, call: Call, _: IotisticaAnswer) -> Json:
        rules: Mapping[str, Rule] = {"topic": _is_text, "access": lambda value: value in (1, 2, 3)}
        fields = self._checked(call.body, rules, {"topic", "access"})
        rule = self._state.add_access(_row(call.id), fields["topic"], fields["access"])
        return {"success": True, "message": "ACL rule created successfully", "acl": rule}

    # --- provisioning keys

    def _list_provisioning_keys(self, call: Call, _: IotisticaAnswer) -> Json:
        self._in_fleet(call.query.get("fleetUuid"))
        keys = [_provisioning_key(each) for each in reversed(self._state.provisioning_keys.values())]
        return {"count": len(keys), "keys": keys}

    def _create_provisioning_key(self, call: Call, answer: IotisticaAnswer) -> Json:
        fields: Json = {}
        if not self._document:
            fields = self._checked(call.body, _PROVISIONING)
            self._in_fleet(fields.get("fleetUuid"))
        else:
            self._checked(call.body or {}, {})
        made = self._state.create_provisioning_key(
            days=fields.get("expiresInDays", 365),
            max_devices=1 if self._document else fields.get("maxDevices", 100),
            description=fields.get("description"),
        )
        shown: Json = {"key": made.key, "expiresAt": stamp(made.expires_at)}
        if answer is IotisticaAnswer.NO_SECRET:
            del shown["key"]
        elif answer is IotisticaAnswer.EMPTY_SECRET:
            shown["key"] = ""
        return shown if self._document else {"id": made.id, **shown, "description": made.description}

    def _revoke_provisioning_key(self, call: Call, _: IotisticaAnswer) -> Json:
        if not isinstance(call.body, dict):
            raise Refusal(500, "Cannot destructure property 'reason'", error="Failed to revoke provisioning key")
        key = self._state.provisioning_keys.get(call.id)
        if key is not None:  # the source answers the same for one that never was
            key.is_active = False
        return {"status": "ok", "message": "Provisioning key revoked", "keyId": call.id}

    def _in_fleet(self, fleet: object) -> None:
        if self.fleet and fleet != self.fleet:
            raise Refusal(400, "fleetUuid (fleet UUID) is required and must be a string", error="Invalid request")

    def _checked(
        self, body: object, rules: Mapping[str, Rule], needed: frozenset[str] | set[str] = frozenset()
    ) -> Json:
        """The body itself.

        Raises: Refusal, that names the first field which is missing, unknown or of a wrong type.
        """
        if not isinstance(body, dict):
            raise Refusal(400, "The body must be a JSON object")
        for name in sorted(needed - body.keys()):
            raise Refusal(400, f"{name} is required")
        for name, value in body.items():
            if name not in rules and not self.tolerant:
                raise Refusal(400, f"Unknown field: {name}")
            if name in rules and not rules[name](value):
                raise Refusal(400, f"{name} has a value that is not allowed")
        return {name: value for name, value in body.items() if name in rules}


def _mqtt_user(user: MqttUser) -> Json:
    return {
        "id": user.id,
        "username": user.username,
        "is_superuser": user.is_superuser,
        "is_active": user.is_active,
        "created_at": stamp(user.created_at),
        "updated_at": stamp(user.updated_at),
        "acls": user.acls,
    }


def _provisioning_key(key: ProvisioningKey) -> Json:
    return {
        "id": key.id,
        "description": key.description,
        "max_agents": key.max_devices,
        "agents_provisioned": key.used,
        "expires_at": stamp(key.expires_at),
        "is_active": key.is_active,
        "created_at": stamp(key.created_at),
    }


def _row(text: str) -> int:
    return int(text) if text.isdecimal() else -1


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise Refusal(400, f"{name} is not a whole number")
    return int(text)


def _time(text: Any) -> datetime | None:
    moment = datetime.fromisoformat(text) if text else None
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def _stamp(moment: datetime | None) -> str | None:
    return stamp(moment) if moment is not None else None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_text_or_null(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_time(value: object) -> bool:
    try:
        return value is None or (isinstance(value, str) and _time(value) is not None)
    except ValueError:
        return False


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10000


_MQTT_USER: Final[Mapping[str, Rule]] = {"password": _is_text, "is_superuser": _is_flag, "is_active": _is_flag}
_PROVISIONING: Final[Mapping[str, Rule]] = {
    "fleetUuid": _is_text,
    "maxDevices": _is_count,
    "expiresInDays": lambda value: _is_count(value) and value <= 3650,  # type: ignore[operator]  # a count is a number
    "description": _is_text_or_null,
}
