"""What an Iotistica cloud knows of its users, agents, keys and MQTT users, and the rules over them.

Source of the rules: Iotistica's "Authentication" page (seed 002) and what platforms.md tells of the server's source.
"""

from __future__ import annotations

import json
import secrets
import threading
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from rotator.sandbox.iotistica_rows import (
    Agent,
    ApiKey,
    Generation,
    IotisticaAnswer,
    Json,
    MqttUser,
    Pass,
    ProvisioningKey,
    Refusal,
)

OnChange = Callable[[Mapping[str, str]], None]
Publish = Callable[[str, str], None]

KEY_LIFE = timedelta(days=90)  # of a device key, by the source
CLAIMED_GRACE = timedelta(days=7)  # what `rotate-key` says of the old key, and does not keep


class IotisticaState:
    """All of it, behind one lock: every public method is one transaction, the broker's part included.

    Args:
        generation: decides what keys look like, and which MQTT usernames there are.
        now: the platform's clock.
        on_change: told of `live()` whenever that changed, inside the call that changed it.
        publish: sends what the platform says over MQTT: topic, payload.

    Attributes:
        mqtt_password: the provisioned MQTT password of agents that get none of their own, and of keys without an agent.
        api_key_cache: seconds for which the broker and the API still honour a revoked API key (the source: 60).
        device_key_cache: seconds for which they still honour a rotated device key and refuse the new one (300).
        put_forgets_flags: a PUT of an MQTT user that names no flags sets them to their defaults.
        device_limit: agents that the licence allows.
        licence_ends_at: when the licence ends; from then on new registrations are blocked.
    """

    def __init__(
        self,
        *,
        generation: Generation,
        now: Callable[[], datetime],
        on_change: OnChange | None,
        publish: Publish | None,
    ) -> None:
        self.generation = generation
        self._now, self._on_change, self._publish = now, on_change, publish
        self.lock = threading.RLock()
        self.agents: dict[str, Agent] = {}
        self.passes: list[Pass] = []
        self.api_keys: dict[int, ApiKey] = {}
        self.mqtt_users: dict[int, MqttUser] = {}
        self.provisioning_keys: dict[str, ProvisioningKey] = {}
        self._ids = 0
        self.mqtt_password = secrets.token_hex(8)
        self.api_key_cache = self.device_key_cache = 0.0
        self.put_forgets_flags = True
        self.device_limit = 100
        self.licence_ends_at = now() + timedelta(days=365)
        self._waits: list[float] = []

    # --- what the broker asks

    def live(self) -> dict[str, str]:
        """MQTT usernames → passwords that let somebody in now."""
        with self.lock:
            now = self._now()
            found = {each.key: self._password(each.agent) for each in self.passes if each.valid(now)}
            return found | {user.username: user.password for user in self.mqtt_users.values() if user.is_active}

    def accepts(self, uuid: str, key: str) -> bool:
        """Whether this key stands for this agent now."""
        with self.lock:
            now = self._now()
            return any(each.key == key and each.agent == uuid and each.valid(now) for each in self.passes)

    def announce(self) -> None:
        """Tell the broker of `live()`: a cache may have run out."""
        if self._on_change is not None:
            self._on_change(self.live())

    def taken_waits(self) -> list[float]:
        """After how many seconds the broker must be told again, each named once."""
        with self.lock:
            waits, self._waits = self._waits, []
            return waits

    def _cached(self, seconds: float) -> datetime:
        """When a change counts that a cache hides for this long."""
        if seconds > 0:
            self._waits.append(seconds)
        return self._now() + timedelta(seconds=seconds)

    def _password(self, agent: str) -> str:
        return self.agents[agent].mqtt_password if agent in self.agents else self.mqtt_password

    # --- agents and their keys

    def register(self, name: str, *, uuid_: str = "", key: str = "", mqtt_password: str = "") -> tuple[Agent, str]:
        """A new agent; returns it with its key.

        Raises: Refusal: the licence, or there is one with this uuid.
        """
        with self.lock:
            now = self._now()
            if now >= self.licence_ends_at:
                raise Refusal(403, "The license has expired: new registrations are blocked", error="License required")
            if len(self.agents) >= self.device_limit:
                text = f"Your plan allows a maximum of {self.device_limit} agents."
                raise Refusal(403, text, error="Agent limit exceeded")
            if uuid_ in self.agents:
                raise Refusal(409, "Device already registered with this UUID.", error="Device already registered")
            agent = Agent(
                uuid=uuid_ or str(uuid.uuid4()),
                name=name,
                mqtt_password=mqtt_password or self.mqtt_password,
                created_at=now,
                key_expires_at=now + KEY_LIFE,
            )
            self.agents[agent.uuid] = agent
            key = key or self.new_key()
            self.passes.append(Pass(key=key, agent=agent.uuid, since=now, device=True))
            self.announce()
            return agent, key

    def rotate_device_key(self, uuid: str, answer: IotisticaAnswer) -> Json:
        """A new key for the agent, told over MQTT alone.

        Raises: Refusal.
        """
        with self.lock:
            agent, now = self.agents[uuid], self._now()
            new, switch = self.new_key(), self._cached(self.device_key_cache)
            for each in self.passes:
                if each.agent == uuid and each.device:
                    each.until = min(each.until or switch, switch)
            stored = self.new_key() if answer is IotisticaAnswer.UNUSABLE_SECRET else new
            self.passes.append(Pass(key=stored, agent=uuid, since=switch, device=True))
            agent.key_rotated_at, agent.key_expires_at = now, now + KEY_LIFE
            ends = {"expires_at": stamp(now + KEY_LIFE), "grace_period_ends": stamp(now + CLAIMED_GRACE)}
            # before the broker forgets the old key, since it may end the sessions of whoever listens with it
            self._tell(uuid, new, ends, answer)
            self.announce()
            data = {**ends, "old_key_valid_until": ends["grace_period_ends"]}
            return {"message": "API key rotated successfully", "data": data}

    def _tell(self, uuid: str, key: str, ends: Mapping[str, str], answer: IotisticaAnswer) -> None:
        message: Json = {"event": "api_key_rotated", "new_api_key": key, **ends, "timestamp": stamp(self._now())}
        match answer:
            case IotisticaAnswer.SILENT:
                return
            case IotisticaAnswer.NO_SECRET:
                del message["new_api_key"]
            case IotisticaAnswer.EMPTY_SECRET:
                message["new_api_key"] = ""
            case _:
                pass
        if self._publish is not None:
            text = "{not json" if answer is IotisticaAnswer.GARBLED else json.dumps(message)
            self._publish(rotation_topic(uuid), text)

    # --- API keys

    def create_api_key(
        self,
        name: str,
        *,
        description: str | None = None,
        agent: str = "",
        expires_at: datetime | None = None,
        answer: IotisticaAnswer = IotisticaAnswer.NORMAL,
    ) -> ApiKey:
        """A new API key, active.

        Raises: Refusal: its name is taken, or there is no such agent.
        """
        with self.lock:
            if any(each.name == name for each in self.api_keys.values()):
                raise Refusal(400, "API key name already exists")
            if agent and agent not in self.agents:
                raise Refusal(404, "Agent not found")
            now = self._now()
            row = ApiKey(
                id=self.new_id(),
                name=name,
                key=self.new_key(),
                description=description,
                agent=agent,
                is_active=True,
                created_at=now,
                expires_at=expires_at,
            )
            self.api_keys[row.id] = row
            stored = self.new_key() if answer is IotisticaAnswer.UNUSABLE_SECRET else row.key
            self.passes.append(Pass(key=stored, agent=agent, since=now, until=expires_at))
            self.announce()
            return row

    def revoke_api_key(self, id: int) -> None:
        """Inactive; honoured for as long as caches hold it.

        Raises: Refusal.
        """
        with self.lock:
            if id not in self.api_keys:
                raise Refusal(404, "API key not found")
            row = self.api_keys[id]
            if row.is_active:
                row.is_active = False
                end = self._cached(self.api_key_cache)
                for each in self.passes:
                    if each.key == row.key:
                        each.until = min(each.until or end, end)
                self.announce()

    # --- MQTT users

    def create_mqtt_user(
        self, username: str, password: str, *, is_superuser: bool = False, is_active: bool = True
    ) -> MqttUser:
        """A new MQTT user.

        Raises: Refusal: the username is taken.
        """
        with self.lock:
            if any(each.username == username for each in self.mqtt_users.values()):
                raise Refusal(400, "Username already exists")
            now = self._now()
            user = MqttUser(
                id=self.new_id(),
                username=username,
                password=password,
                is_superuser=is_superuser,
                is_active=is_active,
                created_at=now,
                updated_at=now,
            )
            self.mqtt_users[user.id] = user
            self.announce()
            return user

    def update_mqtt_user(self, id: int, fields: Mapping[str, Any]) -> MqttUser:
        """Change password and flags.

        Raises: Refusal.
        """
        with self.lock:
            if id not in self.mqtt_users:
                raise Refusal(404, "MQTT user not found")
            if not fields:
                raise Refusal(400, "No fields to update")
            user = self.mqtt_users[id]
            user.password = fields.get("password", user.password)
            kept = (False, True) if self.put_forgets_flags else (user.is_superuser, user.is_active)
            user.is_superuser, user.is_active = fields.get("is_superuser", kept[0]), fields.get("is_active", kept[1])
            user.updated_at = self._now()
            self.announce()
            return user

    def add_access(self, id: int, topic: str, access: int) -> Json:
        """Let an MQTT user read (1), write (2) or both (3) below a topic filter.

        Raises: Refusal.
        """
        with self.lock:
            if id not in self.mqtt_users:
                raise Refusal(404, "MQTT user not found")
            rule: Json = {"id": self.new_id(), "topic": topic, "access": access, "priority": 0}
            self.mqtt_users[id].acls.append(rule)
            return rule

    def delete_mqtt_user(self, id: int) -> None:
        """Gone.

        Raises: Refusal.
        """
        with self.lock:
            if self.mqtt_users.pop(id, None) is None:
                raise Refusal(404, "MQTT user not found")
            self.announce()

    # --- provisioning keys

    def create_provisioning_key(self, *, days: int, max_devices: int, description: str | None) -> ProvisioningKey:
        """A key with which agents register themselves."""
        with self.lock:
            now = self._now()
            made = ProvisioningKey(
                id=str(uuid.uuid4()),
                key=f"prov_{secrets.token_hex(16)}",
                description=description,
                max_devices=max_devices,
                used=0,
                is_active=True,
                created_at=now,
                expires_at=now + timedelta(days=days),
            )
            self.provisioning_keys[made.id] = made
            return made

    def spend(self, key: str) -> None:
        """Use a provisioning key once; the document deletes it then.

        Raises: Refusal.
        """
        with self.lock:
            for each in self.provisioning_keys.values():
                if each.key == key and each.is_active and each.used < each.max_devices:
                    if each.expires_at <= self._now():
                        raise Refusal(401, "Provisioning key has expired", error="Failed to register agent")
                    each.used += 1
                    if self.generation is Generation.DOCUMENT:
                        del self.provisioning_keys[each.id]
                    return
            raise Refusal(401, "Invalid provisioning key", error="Failed to register agent")

    def new_id(self) -> int:
        """A row's number."""
        self._ids += 1
        return self._ids

    def new_key(self) -> str:
        """A key as this generation writes it."""
        return (
            f"iotsk_live_{secrets.token_hex(24)}" if self.generation is Generation.DOCUMENT else secrets.token_hex(32)
        )


def rotation_topic(uuid: str) -> str:
    """Where a device's new key is told."""
    return f"agent/{uuid}/config/api-key-rotation"


def stamp(moment: datetime) -> str:
    """`2016-06-13T04:00:00.000`: UTC, and no word of it."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
