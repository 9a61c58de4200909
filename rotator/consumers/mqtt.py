"""Consumers that are told over MQTT, and that acknowledge the version they run on.

The message goes out at QoS 1 over a connection of its own, in MQTT 5 where the broker speaks it: only there a PUBACK
says that this login may not publish, or that nobody listens. Acks are listened to from before the message on.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import structlog

from rotator.consumers.confirm import Sightings
from rotator.consumers.versions import as_version, decoded
from rotator.errors import Permanent, RotatorError, Stopping, Transient
from rotator.model import Order, ProbeTarget, Sighting, Ticket
from rotator.mqtt import (
    BAD_CREDENTIAL,
    CONNECT_TIMEOUT,
    FAILURE,
    TURN,
    Link,
    Subscription,
    mapped,
    quick,
    session,
    words,
)
from rotator.ports import Clock
from rotator.reasons import Reason
from rotator.templates import render

UNSUPPORTED: Final = 0x84  # CONNACK: the broker does not speak this version of MQTT
NOBODY: Final = 0x10  # PUBACK of MQTT 5: no matching subscribers
LOOK: Final = timedelta(seconds=5)  # for preflight
LONGEST_ACK: Final = 4096  # bytes

log = structlog.get_logger(__name__)


class MqttConsumer:
    """Restarts by a message on a control topic; the broker's PUBACK means *restarted*.

    Args:
        name: the name in the configuration.
        target: makes where and as whom, the password read anew.
        topic: where the message goes.
        payload: a template that may hold `{key}` and `{version}`.
        retain: whether the broker keeps the message for those that connect later.
        ack: the filter of the acks, for preflight alone; None where there are none.
        timeout: for all of it, in which the broker must have taken the message.
        clock: the source of `Ticket.restarted_at`, which is when the message was about to be sent.
    """

    def __init__(
        self,
        name: str,
        *,
        target: Callable[[], ProbeTarget],
        topic: str,
        payload: str,
        retain: bool = False,
        ack: str | None = None,
        timeout: timedelta,
        clock: Clock,
        stop: threading.Event | None = None,
    ) -> None:
        self._name, self._target, self._topic, self._payload = name, target, topic, payload
        self._retain, self._ack, self._timeout = retain, ack, timeout
        self._clock, self._stop = clock, stop or threading.Event()

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def kind(self) -> str:
        """`mqtt`."""
        return "mqtt"

    def preflight(self) -> None:
        """Log in at the broker, and subscribe to the acks. Publishes nothing.

        Raises: Permanent (CONSUMER_FORBIDDEN), Transient (CONSUMER_RESTART_FAILED).
        """
        with self._told(), self._connected(min(LOOK, self._timeout), self._ack):
            return

    def restart(self, order: Order) -> Ticket:
        """Publish, and wait for the PUBACK.

        Raises:
            Permanent: CONSUMER_FORBIDDEN: the login was refused, or it may not publish there.
            Transient: CONSUMER_RESTART_FAILED; CONSUMER_TIMEOUT without a PUBACK; CONSUMER_MISSING where the broker
                says that nobody is subscribed, and does not keep the message for later.
        """
        began = self._clock.now()
        payload = render(self._payload, {"key": order.key, "version": str(order.version)})
        deadline = time.monotonic() + self._timeout.total_seconds()
        with self._told(), self._connected(self._timeout, None) as link:
            link.send(self._topic, payload, retain=self._retain)
            while link.puback is None:
                if self._stop.is_set():
                    raise Stopping
                if (remaining := deadline - time.monotonic()) <= 0:
                    text = f"{self._name}: the broker did not acknowledge the message (no PUBACK) in time"
                    raise Transient(text, reason=Reason.CONSUMER_TIMEOUT)
                link.turn(min(remaining, TURN))
            self._judge(link.puback)
        return Ticket(consumer=self._name, restarted_at=began)

    def check(self, ticket: Ticket) -> None:
        """Nothing to see: the broker says nothing of those that it told."""

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Make what the broker's refusals and the network's failures are called here."""
        try:
            yield
        except RotatorError as exc:
            reason = {
                Reason.SECRET_REFUSED: Reason.CONSUMER_FORBIDDEN,
                Reason.SUBSCRIPTION_REFUSED: Reason.CONSUMER_FORBIDDEN,
                Reason.BROKER_UNREACHABLE: Reason.CONSUMER_RESTART_FAILED,
            }.get(exc.reason)
            if reason is None:
                raise
            raise type(exc)(f"{self._name}: {exc.message}", reason=reason) from exc

    @contextlib.contextmanager
    def _connected(self, limit: timedelta, topic_filter: str | None) -> Iterator[_Sender]:
        deadline, target = time.monotonic() + limit.total_seconds(), self._target()
        with contextlib.ExitStack() as stack:
            link = stack.enter_context(contextlib.closing(_Sender(target, version_5=True)))
            try:
                session(link, topic_filter, deadline)
            except Transient:
                if link.connack is None or link.connack.value != UNSUPPORTED:
                    raise
                link = stack.enter_context(contextlib.closing(_Sender(target, version_5=False)))
                session(link, topic_filter, deadline)
            yield link

    def _judge(self, puback: Any) -> None:
        """Raise for a PUBACK that is no good news."""
        text = f"{self._name}: {self._topic}: {words(puback)}"
        if puback.value in BAD_CREDENTIAL:
            raise Permanent(text, reason=Reason.CONSUMER_FORBIDDEN)
        if puback.value >= FAILURE:
            raise Transient(text, reason=Reason.CONSUMER_RESTART_FAILED)
        if puback.value == NOBODY and not self._retain:
            raise Transient(f"{self._name}: nobody is subscribed to {self._topic}", reason=Reason.CONSUMER_MISSING)


class _Sender(Link):
    """One connection for one message; `puback` is the code that came for it."""

    def __init__(self, target: ProbeTarget, *, version_5: bool) -> None:
        # `rotator-`: the watches on the broker's log don't take this client for a consumer
        super().__init__(target, client_id=f"rotator-tell-{secrets.token_hex(4)}", version_5=version_5)
        self._client.on_publish = self._taken
        self.puback: Any = None
        self._sent = 0

    def send(self, topic: str, payload: str, *, retain: bool) -> None:
        """Send PUBLISH at QoS 1; the answer comes with `turn`, in `puback`. Raises: Transient (BROKER_UNREACHABLE)."""
        with mapped(topic):
            self._sent = self._client.publish(topic, payload, qos=1, retain=retain).mid
            quick(self._client.socket())

    def _taken(self, _client: Any, _data: Any, message: int, code: Any, _properties: Any) -> None:
        if message == self._sent:
            self.puback = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """What one message on the ack topic says; `key` and `consumer` are None where it names none."""

    version: int
    key: str | None = None
    consumer: str | None = None


def parse_ack(payload: bytes) -> Ack | None:
    """An ack: a number alone, or a JSON object with `version` and, at will, `key` and `consumer`; else None."""
    found = decoded(payload) if len(payload) <= LONGEST_ACK else None
    if not isinstance(found, Mapping):
        version = as_version(found)
        return Ack(version=version) if version is not None else None
    version, key, consumer = as_version(found.get("version")), found.get("key"), found.get("consumer")
    if version is None or not isinstance(key, str | None) or not isinstance(consumer, str | None):
        return None
    return Ack(version=version, key=key, consumer=consumer)


def matched(topic_filter: str, topic: str) -> str:
    """The levels of a topic that the wildcards of a filter matched, joined by slashes; '' where there are none."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    found = [level for want, level in zip(wanted, levels, strict=False) if want == "+"]
    if wanted[-1] == "#":
        found += levels[len(wanted) - 1 :]
    return "/".join(found)


class AckWatch:
    """The acks of one order (ports.Watch): a sighting when all that are expected have acknowledged just its version.

    Args:
        name: the consumer's name in the configuration.
        target: where and as whom.
        ack: the filter of the acks.
        expect: who must acknowledge, or how many different ones.
        order: what is to be acknowledged.
        names_key: count only acks that name the key, since this consumer is told of several.
        clock: stamps the acks as they arrive.
    """

    def __init__(
        self,
        name: str,
        target: ProbeTarget,
        *,
        ack: str,
        expect: Sequence[str] | int,
        order: Order,
        names_key: bool = False,
        clock: Clock,
    ) -> None:
        self._name, self._filter, self._expect, self._order = name, ack, expect, order
        self._names_key, self._clock = names_key, clock
        self._have: set[str] = set()  # of the subscription's thread alone
        self._sightings = Sightings()
        self._subscription = Subscription(target, ack, on_message=self._arrived, on_change=self._sightings.tell)

    def start(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect, and wait until acks are heard: who is told before that may have answered unheard.

        Raises: Transient (CONSUMER_RESTART_FAILED); it is closed then.
        """
        self._subscription.start(timeout)
        if problem := self._subscription.state()[0]:
            self.close()
            text = f"{self._name}: acks on {self._filter} can't be heard: {problem}"
            raise Transient(text, reason=Reason.CONSUMER_RESTART_FAILED)

    def sightings(self) -> Sequence[Sighting]:
        """Each moment at which an ack came and none was missing any more, oldest first."""
        return self._sightings.sightings()

    def losses(self) -> Sequence[Sighting]:
        """Nothing: who stops says no ack."""
        return ()

    def wait(self, timeout: float) -> None:
        """Return when something came since the last `wait`, or after `timeout` seconds."""
        self._sightings.wait(timeout)

    def healthy(self) -> str:
        """Why nothing is heard now. A break that is over does not count: to tell everybody again costs nothing."""
        return self._subscription.state()[0]

    def close(self) -> None:
        """Leave the broker, and end the thread."""
        self._subscription.close()

    def _arrived(self, topic: str, payload: bytes, retained: bool) -> None:
        at = self._clock.now()
        ack = parse_ack(payload) if not retained else None
        if ack is None or ack.version != self._order.version or not self._is_of_this_key(ack):
            return
        who = ack.consumer or matched(self._filter, topic)
        if isinstance(self._expect, int):
            self._have.add(who)
            missing = max(0, self._expect - len(self._have))
        else:
            self._have |= {who} & set(self._expect)
            missing = len(set(self._expect) - self._have)
        log.info("acknowledged", consumer=self._name, by=who, version=ack.version, missing=missing)
        if not missing:
            told = ", ".join(sorted(self._have))
            self._sightings.add(Sighting(at=at, detail=f"version {ack.version} acknowledged by {told}"))

    def _is_of_this_key(self, ack: Ack) -> bool:
        return ack.key == self._order.key if ack.key is not None else not self._names_key
