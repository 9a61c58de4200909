"""Iotistica's device keys: changed in place by whoever shows the current one, and told over MQTT alone.

`POST …/device/{uuid}/rotate-key` answers when the new key ends, but not what it is: that is published to
`agent/{uuid}/config/api-key-rotation`. So the topic is subscribed to, and the SUBACK is in, before the call is made;
and the message counts more than the answer: a key that was told is the key, whatever became of the HTTP call.

The grace that the answer claims for the old key is not enforced, and a cache of 300 s may go on accepting the old key
and refusing the new, which is the `propagation` of its abilities.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import (
    Abilities,
    ExpirySource,
    Identity,
    Issued,
    ProbeResult,
    ProbeTarget,
    Secret,
    Strategy,
    UpstreamKey,
    Verdict,
)
from rotator.mqtt import TURN, Link, session
from rotator.ports import Reveal
from rotator.providers.iotistica_api import Generation, IotisticaApi, Resource, absent, failure, part, rows, text_of
from rotator.providers.iotistica_provisioning import provisioning_key
from rotator.providers.rest import Reply, is_text, sendable
from rotator.reasons import Reason
from rotator.timestamps import parse_timestamp

PAGE: Final = 100  # agents in one answer
ROTATIONS: Final = (5, 900.0)  # at most so many of one device in so many seconds (platforms.md)
CACHED_FOR: Final = timedelta(seconds=300)  # device keys in the platform's cache
TOPIC: Final = "agent/{}/config/api-key-rotation"
# Of the time that is left, for the message alone: a key that was told is heard though the HTTP call is never answered.
HEARING: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationBroker:
    """The broker on which new keys are told, and who listens there.

    `username` None: the current key is the username, as the agent's own.
    """

    host: str
    port: int
    tls: bool = False
    ca_file: str | None = None
    username: str | None = None
    password: Reveal | None = field(repr=False, default=None)
    client_id: str | None = None

    def target(self, current: Secret) -> ProbeTarget:
        """Where and as whom to listen while `current` is the device's key."""
        return ProbeTarget(
            host=self.host,
            port=self.port,
            tls=self.tls,
            ca_file=self.ca_file,
            username=self.username if self.username is not None else current.reveal(),
            password=Secret(self.password() if self.password is not None else ""),
        )


class DeviceKeys(Resource):
    """The keys of one cloud's agents (ports.InPlace, ports.Checking, ports.Provisioning). Thread safe.

    Args:
        api, issue_deadline, licence: see `Resource`.
        broker: where new keys are told.
        fleet: the fleet of new agents, where the platform asks for one.
    """

    def __init__(
        self,
        api: IotisticaApi,
        *,
        issue_deadline: timedelta,
        licence: Reveal | None,
        broker: RotationBroker,
        fleet: str | None,
    ) -> None:
        super().__init__(api, issue_deadline=issue_deadline, licence=licence)
        self._broker = broker
        self._fleet = fleet
        self._lock = threading.Lock()
        self._rotated: dict[str, deque[float]] = {}

    @property
    def strategy(self) -> Strategy:
        """The platform makes the new key and kills the old one."""
        return Strategy.IN_PLACE

    @property
    def abilities(self) -> Abilities:
        """The grace that the answer claims is not enforced, so the old key counts as dead at once."""
        return Abilities(
            strategy=Strategy.IN_PLACE,
            kills_old=True,
            expires=True,
            creates=True,
            needs_current=True,
            checks=True,
            propagation=CACHED_FOR,
        )

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told."""
        return {"type": "the device's type (default: gateway)"}

    def identity(self, id: str) -> Identity:
        """The id is the agent's uuid. The MQTT username is the key itself, so the client id stands in for it."""
        return Identity(id=id, username=f"agent-{id}", client_id=f"agent-{id}")

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All agents, page by page; the dates of their keys where the platform names them.

        Raises: Transient, Permanent.
        """
        return [self._upstream(row) for row in self._agents(self._api.operator.deadline())]

    def issue(self, identity: Identity, current: Secret | None = None) -> Issued:
        """Have a new key made and hear which.

        Raises:
            Transient: nothing was issued (broker or platform can't be reached; the limit of five in 15 minutes).
            Permanent: nothing was issued (KEY_UNKNOWN, PROVIDER_AUTH: the current key or the MQTT login was refused).
            UnknownOutcome: a key was issued, or may have been, and was not heard of.
            BadAnswer: NO_SECRET, EMPTY_SECRET, PROVIDER_ANSWER_UNREADABLE: what was heard holds no key.
        """
        deadline = self._deadline()
        uuid = self._uuid(identity.id)
        if current is None:
            raise self._refused("issue", "the current key is needed and nobody has it", Reason.PROVIDER_UNABLE)
        sendable(current.reveal(), f"{self.name}: issue: the current key")
        with self._listening(uuid, current, deadline) as ear:
            self._take_turn(uuid)
            left = deadline - self._api.clock.monotonic()
            reply, error = self._call(uuid, current, deadline - left * HEARING)
            if error is not None and not isinstance(error, UnknownOutcome):
                raise error
            told = ear.told(deadline, self._api.clock.monotonic)
        if told is None:
            raise error or self._unheard(reply, ear)
        ends = parse_timestamp(told.get("expires_at")) or _ends(reply)
        return Issued(
            identity=self.identity(identity.id),
            secret=Secret(told["new_api_key"]),
            expires_at=ends,
            expiry_source=ExpirySource.ANSWER if ends is not None else None,
        )

    def check(self, identity: Identity, secret: Secret) -> ProbeResult:
        """Whether the platform lets this key read its agent's state, which disturbs nobody."""
        try:
            headers = {"X-Device-API-Key": sendable(secret.reveal(), "the key")}
            reply = self._api.device.ask(
                "GET",
                f"/device/{part(self._uuid(identity.id))}/state",
                operation="check",
                deadline=self._api.device.deadline(),
                headers=headers,
                secrets=[secret.reveal()],
            )
        except RotatorError as exc:
            return ProbeResult(verdict=Verdict.UNREACHABLE, detail=exc.message)
        if reply.ok:
            return ProbeResult(verdict=Verdict.ACCEPTED)
        verdict = Verdict.REFUSED if reply.status in (401, 403) else Verdict.UNREACHABLE
        return ProbeResult(verdict=verdict, detail=f"HTTP {reply.status}: {reply.message}")

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        """Register the agent `name` by a provisioning key that is made for it.

        Raises: as `issue`; Permanent PROVIDER_REFUSED where there is one of this name, since its key can't be had;
        PROVIDER_QUOTA where the licence allows no more.
        """
        self._check_options(options)
        deadline = self._deadline()
        for row in self._agents(deadline):
            if text_of(row, "name", "device_name") == name:
                why = f"there is an agent {name!r} ({text_of(row, 'uuid', 'id')}), whose key only itself can change"
                raise self._refused("provision", why)
        made, _ = provisioning_key(
            self._api, description=f"{name} {marker}", fleet=self._fleet, lifetime=timedelta(days=1), deadline=deadline
        )
        uuid, key = str(UUID(bytes=secrets.token_bytes(16), version=4)), Secret(secrets.token_hex(32))
        reply = self._registered(name, uuid, options.get("type", "gateway"), key, made, deadline)
        if "apiKey" in reply.fields:  # the document: the platform makes both
            uuid, key = text_of(reply.fields, "agentUuid"), reply.secret(reply.fields["apiKey"])
        if not uuid:
            raise reply.bad("the answer names no agent", Reason.PROVIDER_ANSWER_UNREADABLE)
        return Issued(identity=self.identity(uuid), secret=key)

    # --- agents

    def _agents(self, deadline: float) -> Sequence[Mapping[str, Any]]:
        """All agents. One that is made meanwhile may move another to the next page, so each is taken once."""
        found: dict[str, Mapping[str, Any]] = {}
        number = 1
        while True:
            params = {"page": str(number), "limit": str(PAGE)}
            reply = self._api.operator.ask("GET", "/agents", operation="list_keys", deadline=deadline, params=params)
            page = list(rows(reply, "agents"))
            if not all(text_of(row, "uuid", "id") for row in page):
                raise reply.unreadable("an entry has no uuid")
            before = len(found)
            found.update((text_of(row, "uuid", "id"), row) for row in page)
            pages = reply.fields.get("pagination")
            last = pages.get("totalPages") if isinstance(pages, dict) else None
            if not isinstance(last, int) or number >= last or len(found) == before:
                return list(found.values())
            number += 1

    def _upstream(self, row: Mapping[str, Any]) -> UpstreamKey:
        uuid = text_of(row, "uuid", "id")
        ends = parse_timestamp(row.get("api_key_expires_at"))
        return UpstreamKey(
            id=uuid,
            name=text_of(row, "name", "device_name", "agentName"),
            issued_at=parse_timestamp(row.get("api_key_last_rotated_at")),
            expires_at=ends,
            expiry_source=ExpirySource.ANSWER if ends is not None else None,
            problem=Reason.KEY_INACTIVE if row.get("is_active") is False else None,
            identity=self.identity(uuid),
        )

    def _uuid(self, id: str) -> str:
        try:
            return str(UUID(id))
        except ValueError:
            raise self._unknown("issue", "(not an agent's uuid)") from None

    # --- the call and the message

    def _take_turn(self, uuid: str) -> None:
        """Count one rotation of this device.

        Raises: Transient where the platform would refuse it: its counting begins anew with each refused call.
        """
        most, window = ROTATIONS
        with self._lock:
            now, rotated = self._api.clock.monotonic(), self._rotated.setdefault(uuid, deque())
            while rotated and rotated[0] <= now - window:
                rotated.popleft()
            if len(rotated) >= most:
                text = f"{self.name}: issue: {uuid} was rotated {most} times in {window / 60:.0f} minutes"
                wait = timedelta(seconds=rotated[0] + window - now)
                raise Transient(text, reason=Reason.PROVIDER_RATE_LIMITED, retry_after=wait)
            rotated.append(now)

    def _call(self, uuid: str, current: Secret, deadline: float) -> tuple[Reply | None, RotatorError | None]:
        try:
            reply = self._api.device.ask(
                "POST",
                f"/device/{part(uuid)}/rotate-key",
                operation="issue",
                deadline=deadline,
                headers={"X-Device-API-Key": current.reveal()},
                changes=True,
                secrets=[current.reveal()],
            )
        except RotatorError as exc:
            return None, exc
        if absent(reply):
            return reply, self._unknown("issue", uuid)
        if not reply.ok or not reply.fields:
            return reply, failure(reply, changes=True)
        return reply, None

    @contextlib.contextmanager
    def _listening(self, uuid: str, current: Secret, deadline: float) -> Iterator[_Ear]:
        """Subscribed to the topic of a device's new keys.

        Raises: Transient BROKER_UNREACHABLE; Permanent PROVIDER_AUTH where the login or the subscription is refused.
        """
        ear = _Ear(TOPIC.format(uuid))
        client_id = self._broker.client_id or f"rotator-keys-{secrets.token_hex(4)}"
        left = deadline - self._api.clock.monotonic()
        try:
            link = Link(self._broker.target(current), client_id=client_id, on_message=ear.hear)
            with contextlib.closing(link):
                session(link, ear.topic, time.monotonic() + left)
                ear.link = link
                yield ear
        except Permanent as exc:
            if exc.reason not in (Reason.SECRET_REFUSED, Reason.SUBSCRIPTION_REFUSED):
                raise
            raise Permanent(f"{self.name}: mqtt: {exc.message}", reason=Reason.PROVIDER_AUTH) from exc

    def _unheard(self, reply: Reply | None, ear: _Ear) -> RotatorError:
        """What it means that a key was issued, and that no message told it."""
        what = f"{self.name}: issue"
        if ear.bad is not None:
            return BadAnswer(f"{what}: {ear.problem}", reason=ear.reason, body=ear.bad)
        error = UnknownOutcome(f"{what}: a key was issued, and nothing came on {ear.topic} ({ear.problem})")
        error.body = reply.body if reply is not None else None
        return error

    # --- a new agent

    def _registered(self, name: str, uuid: str, kind: str, key: Secret, provisioning: Secret, deadline: float) -> Reply:
        hidden = [key.reveal(), provisioning.reveal()]

        def ask(path: str, body: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
            return self._api.device.ask(
                "POST", path, operation="provision", deadline=deadline, body=body, headers=headers, changes=True,
                secrets=hidden,
            )  # fmt: skip

        source = {"uuid": uuid, "deviceName": name, "deviceType": kind, "deviceApiKey": key.reveal()}
        reply = self._api.first_that_fits(
            "register",
            {
                Generation.DOCUMENT: lambda: ask(
                    "/provision/agent", {"key": provisioning.reveal(), "agentName": name}, {}
                ),
                Generation.SOURCE: lambda: ask(
                    "/agent/register", source, {"X-Provisioning-Key": provisioning.reveal()}
                ),
            },
        )
        if not reply.ok or not reply.fields:
            raise failure(reply, changes=True)
        return reply


class _Ear:
    """What was heard of one device's new key since the subscription was made."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.link: Link | None = None
        self.bad: bytes | None = None  # the last message without a usable key
        self.reason = Reason.NO_SECRET
        self.problem = "nothing was heard in time"
        self._good: Mapping[str, Any] | None = None

    def hear(self, topic: str, payload: bytes, retained: bool) -> None:
        """Take one message; a retained one is an old rotation's."""
        if retained or topic != self.topic:
            return
        try:
            message = json.loads(payload)
        except (ValueError, RecursionError):
            message = None
        key = message.get("new_api_key") if isinstance(message, dict) else None
        if is_text(key):
            self._good = message
            return
        self.bad = payload
        if not isinstance(message, dict):
            self.reason, self.problem = Reason.PROVIDER_ANSWER_UNREADABLE, "the message is no JSON object"
        elif key is None:
            self.reason, self.problem = Reason.NO_SECRET, "the message holds no key"
        elif isinstance(key, str) and not key.strip():
            self.reason, self.problem = Reason.EMPTY_SECRET, "the message's key is empty"
        else:
            self.reason, self.problem = Reason.PROVIDER_ANSWER_UNREADABLE, "the message's key is no text"

    def told(self, deadline: float, monotonic: Callable[[], float]) -> Mapping[str, Any] | None:
        """The message with the new key; None where none came by the deadline, or the connection was lost."""
        assert self.link is not None
        while self._good is None and (left := deadline - monotonic()) > 0:
            try:
                self.link.turn(min(left, TURN))
            except Transient as exc:
                self.problem = exc.message if self.bad is None else self.problem
                break
        return self._good


def _ends(reply: Reply | None) -> datetime | None:
    """When the new key ends, by the HTTP answer."""
    data = reply.fields.get("data") if reply is not None else None
    return parse_timestamp(data.get("expires_at")) if isinstance(data, dict) else None
