"""Consumers that are told over MQTT: the suite against a real Mosquitto, and what only a broken broker does."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import timedelta

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from contract.consumer_broker_double import BrokerDouble
from contract.consumer_cases import ORDER, ConsumerCases, confirmed, looked, refused
from integration.broker_fixture import Broker, until
from rotator.clock import SystemClock
from rotator.confirmation import Confirmations
from rotator.consumers.mqtt import MqttConsumer
from rotator.errors import Permanent, Transient
from rotator.model import Identity, Order, ProbeTarget, Secret
from rotator.ports import Watch
from rotator.reasons import Reason
from rotator.sandbox.processes import free_port

PAYLOAD = '{{"key": "{key}", "version": {version}}}'


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Mosquitto whose clients `teller` and `member` may do all below `data/`, and `mute` only read there."""
    started = Broker(tmp_path_factory.mktemp("broker"))
    started.client("teller", "told")
    started.client("mute", "told", role="observer")
    yield started
    started.stop()


@dataclass(frozen=True, kw_only=True)
class Account:
    """An access, as the configuration has it."""

    port: int
    host: str = "127.0.0.1"
    tls: bool = False
    ca_file: str | None = None
    username: str = "teller"
    password: object = "told"


class Member:
    """One process of the fleet: it acknowledges each order on a topic of its own.

    While it `crashes`, it dies upon an order before it has taken it: it says that it still runs on version 6, its
    connection ends without a word, it connects again, and the broker, which keeps its session, gives it the order anew.
    """

    def __init__(
        self, broker: Broker, root: str, name: str, version: Callable[[int], int | None], *, crashes: bool = False
    ) -> None:
        self.name, self._root, self._version, self.crashes = name, root, version, crashes
        self.orders: list[Mapping[str, object]] = []
        self.acks = self.deaths = 0
        self._ready = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"{name}-{secrets.token_hex(4)}",
            clean_session=not crashes,
            manual_ack=True,
        )
        if crashes:
            self._client.reconnect_delay_set(0, 0)
        self._client.username_pw_set("teller", "told")
        self._client.on_publish = self._heard
        self._client.on_connect = lambda client, *_: client.subscribe(f"{root}/control", 1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._told
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        assert self._ready.wait(10)

    def say(self, payload: str, *, retain: bool = False) -> None:
        """Publish on the ack topic of this member, and wait until the broker has it."""
        self._client.publish(f"{self._root}/ack/{self.name}", payload, qos=1, retain=retain).wait_for_publish(10)

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _told(self, client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        order = json.loads(message.payload)
        self.orders.append(order)
        if self.crashes:
            client.publish(f"{self._root}/ack/{self.name}", json.dumps({"key": order["key"], "version": 6}), qos=1)
            return
        version = self._version(order["version"])
        if version is not None:
            ack = json.dumps({"key": order["key"], "version": version})
            client.publish(f"{self._root}/ack/{self.name}", ack, qos=1)
            self.acks += 1
        client.ack(message.mid, message.qos)

    def _heard(self, client: paho.Client, *_: object) -> None:
        """The broker has what this member said."""
        connection = client.socket()
        if self.crashes and isinstance(connection, socket.socket):
            self.deaths += 1
            with contextlib.suppress(OSError):  # the broker was faster
                connection.shutdown(socket.SHUT_RDWR)


class MqttStage:
    """A fleet of two at a real broker."""

    kind = "mqtt"

    def __init__(self, broker: Broker, stack: ExitStack) -> None:
        self.stop, self._broker, self._stack = threading.Event(), broker, stack
        self.root = f"data/{secrets.token_hex(4)}"
        self._version: Callable[[int], int | None] = lambda ordered: ordered
        self._half = False
        self.account = Account(port=broker.port)
        self.retain = False
        self.members = [self._member(name) for name in ("a", "b")]

    def consumer(self, timeout: float = 10) -> MqttConsumer:
        """The adapter."""
        return MqttConsumer(
            "subject",
            target=lambda: Confirmations(clock=SystemClock(), read_ref=str).target(self.account),
            topic=f"{self.root}/control",
            payload=PAYLOAD,
            retain=self.retain,
            ack=f"{self.root}/ack/+",
            timeout=timedelta(seconds=timeout),
            clock=SystemClock(),
            stop=self.stop,
        )

    def watch(self, order: Order, expect: tuple[str, ...] | int = ("a", "b"), *, names_key: bool = False) -> Watch:
        """Listens to the acks."""
        maker = Confirmations(clock=SystemClock(), read_ref=str).acks(
            "subject",
            Account(port=self._broker.port),
            ack=f"{self.root}/ack/+",
            expect=expect,
            names_key=names_key,
        )
        watch = maker.open(Identity(id="a", username="a"), None, order)
        self._stack.callback(watch.close)
        return watch

    def restarts(self) -> list[tuple[str, int]]:
        """What all that are there have heard."""
        heard = [[(str(o["key"]), int(str(o["version"]))) for o in member.orders] for member in self.members]
        assert all(each[: len(min(heard, key=len))] == min(heard, key=len) for each in heard)
        return min(heard, key=len) if heard else []

    def told(self) -> int:
        """How many acks were sent; each is read before the next order's."""
        return 3 * sum(member.acks for member in self.members)

    def run_on(self, version: int | None) -> None:
        """What the next acks say; all are up again."""
        self._half = False
        self._version = lambda ordered: ordered if version is None else version

    def slow(self, seconds: float) -> None:
        """The broker takes its time for a PUBACK."""
        double = self._stack.enter_context(BrokerDouble(delay=seconds))
        self.account = Account(port=double.port)

    def failing(self) -> None:
        """Nobody listens at the broker's port."""
        self.account = Account(port=free_port())

    def missing(self) -> None:
        """Nobody is subscribed."""
        while self.members:
            self.members.pop().close()

    def forbidden(self) -> None:
        """This login may not publish there."""
        self.account = replace(self.account, username="mute")

    def silent(self) -> None:
        """The fleet hears and says nothing."""
        self._version = lambda _ordered: None

    def half_down(self) -> None:
        """One of both says nothing."""
        self._half = True

    def crashes(self) -> None:
        """One of both dies upon its order, over and over."""
        self.members.pop().close()
        self.members.append(self._member("b", crashes=True))

    def deaths(self) -> int:
        """Connections that it has lost, after it said that it is still on version 6."""
        return self.members[-1].deaths

    def mended(self) -> None:
        """It lives."""
        self.members[-1].crashes = False

    def _member(self, name: str, *, crashes: bool = False) -> Member:
        def version(ordered: int) -> int | None:
            return None if self._half and name == "b" else self._version(ordered)

        member = Member(self._broker, self.root, name, version, crashes=crashes)
        self._stack.callback(member.close)
        return member


@pytest.fixture
def stage(broker: Broker) -> Iterator[MqttStage]:
    """A fleet that does well."""
    with ExitStack() as stack:
        yield MqttStage(broker, stack)


class TestMqtt(ConsumerCases):
    """The suite, over a fleet that acknowledges."""

    MISSING = (Transient, Reason.CONSUMER_MISSING)  # it may come back by itself


@pytest.mark.parametrize("login", [{"password": "wrong"}, {"username": "nobody"}])
def test_a_login_that_is_refused(stage: MqttStage, login: dict[str, str]) -> None:
    """It is found by the look before, and by the restart."""
    stage.account = replace(stage.account, **login)  # type: ignore[arg-type]  # both are text here
    for call in (stage.consumer().preflight, lambda: stage.consumer().restart(ORDER)):
        assert (Permanent, Reason.CONSUMER_FORBIDDEN) == refused(call)


def test_acks_that_may_not_be_read(stage: MqttStage) -> None:
    """The look before subscribes to the acks; a watch that can't hear them is not opened, so nobody is told unheard."""
    stage.root = "elsewhere"
    assert (Permanent, Reason.CONSUMER_FORBIDDEN) == refused(stage.consumer().preflight)
    assert (Transient, Reason.CONSUMER_RESTART_FAILED) == refused(stage.watch, ORDER)


def test_a_login_that_is_read_anew(stage: MqttStage) -> None:
    """A password that was changed in its file counts at the next restart."""
    stage.account = replace(stage.account, password="wrong")
    subject = stage.consumer()
    assert (Permanent, Reason.CONSUMER_FORBIDDEN) == refused(subject.restart, ORDER)
    stage.account = replace(stage.account, password="told")
    subject.restart(ORDER)


def test_retained(stage: MqttStage, broker: Broker) -> None:
    """A retained message is taken although nobody listens, and reaches who comes later."""
    stage.retain = True
    stage.missing()
    stage.consumer().restart(ORDER)
    late = Member(broker, stage.root, "late", lambda ordered: ordered)
    try:
        until(lambda: [{"key": "building-a", "version": 7}] == late.orders, "who comes later is told")
    finally:
        late.close()


def speak(stage: MqttStage, watch: Watch, said: list[tuple[int, str]]) -> None:
    """Have members say these things, and wait until the watch has read them: the broker keeps their order."""
    for number, payload in said:
        stage.members[number].say(payload)
    stage.members[0].say("the end")
    marks: list[str] = []
    ear = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"ear-{secrets.token_hex(4)}")
    ear.username_pw_set("teller", "told")
    ear.on_message = lambda _client, _data, message: marks.append(message.payload.decode())
    ear.on_connect = lambda client, *_: client.subscribe(f"{stage.root}/ack/#")
    granted = threading.Event()
    ear.on_subscribe = lambda *_: granted.set()
    ear.connect("127.0.0.1", stage._broker.port)
    ear.loop_start()
    try:
        assert granted.wait(10)
        stage.members[0].say("mark")
        looked(watch, lambda: "mark" in marks, "the last words are heard by another one")
    finally:
        ear.disconnect()
        ear.loop_stop()
    for _ in range(3):
        watch.wait(0.1)


A7, B7 = (0, '{"version": 7, "key": "building-a"}'), (1, '{"version": 7, "key": "building-a"}')


@pytest.mark.parametrize(
    ("said", "expect", "names_key", "proven"),
    [
        ([A7, B7], ("a", "b"), True, True),
        ([(0, "7"), (1, '"7"')], ("a", "b"), False, True),
        ([(0, "7"), (1, "7")], ("a", "b"), True, False),  # of several keys, which one?
        ([(0, "7"), (1, "7")], 2, False, True),
        ([(0, "7"), (0, "7")], 2, False, False),  # twice the same
        ([(0, "7")], 1, False, True),
        ([A7, (1, '{"version": 6, "key": "building-a"}')], ("a", "b"), False, False),
        ([A7, (1, '{"version": 8, "key": "building-a"}')], ("a", "b"), False, False),
        ([A7, (1, '{"version": 7, "key": "building-b"}')], ("a", "b"), False, False),
        ([A7, (1, '{"version": true, "key": "building-a"}')], ("a", "b"), False, False),
        ([A7, (1, '{"version": 7.0, "key": "building-a"}')], ("a", "b"), False, False),
        ([A7, (1, '{"version": 7, "key": 5}')], ("a", "b"), False, False),
        ([A7, (1, "seven")], ("a", "b"), False, False),
        ([A7, (1, "[7]")], ("a", "b"), False, False),
        ([A7, (1, '{"version": 7, "pad": "' + "x" * 5000 + '"}')], ("a", "b"), False, False),
        ([(0, '{"version": 7, "consumer": "a"}'), (0, '{"version": 7, "consumer": "b"}')], ("a", "b"), False, True),
        ([A7, (1, '{"version": 7, "consumer": "c"}')], ("a", "b"), False, False),
        ([A7, B7], ("a", "b", "c"), False, False),
        ([A7, B7], 3, False, False),
    ],
)
def test_acks(
    stage: MqttStage, said: list[tuple[int, str]], expect: tuple[str, ...] | int, names_key: bool, proven: bool
) -> None:
    """Everybody that is expected, by just this version of just this key; all else proves nothing."""
    watch = stage.watch(ORDER, expect, names_key=names_key)
    speak(stage, watch, said)
    assert proven == bool(watch.sightings()), [each.detail for each in watch.sightings()]


def test_a_retained_ack_is_old(stage: MqttStage) -> None:
    """An ack that the broker kept from before proves nothing, though it names the version; a new one does."""
    for member in stage.members:
        member.say('{"version": 7, "key": "building-a"}', retain=True)
    watch = stage.watch(ORDER)
    speak(stage, watch, [])
    assert () == tuple(watch.sightings())
    speak(stage, watch, [A7, (0, '{"version": 7, "consumer": "a stranger"}'), B7])
    assert "version 7 acknowledged by a, b" == watch.sightings()[0].detail


def test_a_watch_that_hears_again(broker: Broker, stage: MqttStage) -> None:
    """A lost connection makes it blind, and a new one makes it see: who is told again acknowledges again."""
    watch = stage.watch(ORDER)
    broker.control("disableClient", "teller")
    try:
        looked(watch, lambda: bool(watch.healthy()), "it is cut off")
    finally:
        broker.control("enableClient", "teller")
    looked(watch, lambda: not watch.healthy(), "it is back")
    until(lambda: all(member._client.is_connected() for member in stage.members), "the fleet is back")
    speak(stage, watch, [A7, B7])
    confirmed(watch)


def double(port: int, **more: object) -> MqttConsumer:
    """A consumer at a broker's double."""
    target = ProbeTarget(host="127.0.0.1", port=port, username="teller", password=Secret("told"))
    options: dict[str, object] = {"timeout": timedelta(seconds=5), "clock": SystemClock(), **more}
    return MqttConsumer("subject", target=lambda: target, topic="t", payload=PAYLOAD, **options)  # type: ignore[arg-type]  # as given


def test_a_broker_without_mqtt_5() -> None:
    """RabbitMQ before 3.13 speaks 3.1.1 alone; its PUBACK is all that it says."""
    with BrokerDouble(old=True) as broker:
        double(broker.port).preflight()
        double(broker.port).restart(ORDER)
        assert [5, 4, 5, 4] == broker.levels
        assert b'{"key": "building-a", "version": 7}' in broker.published[0]


def test_no_puback() -> None:
    """A broker that takes the message and does not say so leaves it open; the restart is tried again."""
    with BrokerDouble(delay=None) as broker:
        subject = double(broker.port, timeout=timedelta(seconds=0.5))
        assert (Transient, Reason.CONSUMER_TIMEOUT) == refused(subject.restart, ORDER)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0x87, (Permanent, Reason.CONSUMER_FORBIDDEN)),
        (0x97, (Transient, Reason.CONSUMER_RESTART_FAILED)),  # quota exceeded
        (0x10, (Transient, Reason.CONSUMER_MISSING)),
    ],
)
def test_pubacks(code: int, expected: tuple[type[Permanent] | type[Transient], Reason]) -> None:
    """MQTT 5 says why a message was not taken."""
    with BrokerDouble(code=code) as broker:
        assert expected == refused(double(broker.port).restart, ORDER)


def test_nothing_left_behind(stage: MqttStage) -> None:
    """No thread of a restart or a watch stays."""
    before = threading.active_count()
    for _ in range(3):
        stage.consumer().restart(ORDER)
        with closing(stage.watch(ORDER)) as watch:
            watch.sightings()
    until(lambda: threading.active_count() == before, "all threads have ended")
