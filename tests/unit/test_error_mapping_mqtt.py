"""The mapping is complete (3): what paho, the network and TLS raise under the probe and the watches.

See test_error_mapping.py. A broker that could not be asked refused nothing (rule 2), so all but a filter that no broker
could take is Transient BROKER_UNREACHABLE. Nothing is published here, so no outcome is unknown.
"""

from __future__ import annotations

import random
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt._packet
import paho.mqtt.client
import paho.mqtt.properties
import paho.mqtt.reasoncodes
import pytest

import rotator.mqtt
from broken_wire import CONNECT, HANDSHAKE, READ, WRITE, Wire
from library_exceptions import SECRET, classes, made, os_errors, outcome, raised_by_name, value_errors
from rotator.errors import Permanent, Transient
from rotator.model import ProbeTarget, Secret, Verdict
from rotator.mqtt import Link, Subscription, session
from rotator.reasons import Reason
from rotator.verify import MqttProber

UNREACHABLE = (Transient, Reason.BROKER_UNREACHABLE)
NO_FILTER = (Permanent, Reason.SUBSCRIPTION_REFUSED)

CONNACK = b"\x20\x02\x00\x00"
SUBACK = b"\x90\x03\x00\x01\x00"

# paho's own classes, and those of Python's that its `raise` statements name.
PAHO = {
    "paho.mqtt.client.WebsocketConnectionError",
    "paho.mqtt.exception.MQTTException",
    "paho.mqtt.exception.MalformedPacket",
}
PAHO_NEVER = {"paho.mqtt.subscribeoptions.MQTTException": "of a SubscribeOptions, and nobody here makes one"}
BY_NAME: dict[str, type[Exception]] = {
    "BlockingIOError": BlockingIOError,
    "ConnectionAbortedError": ConnectionAbortedError,
    "ConnectionError": ConnectionError,
    "IndexError": IndexError,
    "KeyError": KeyError,
    "ValueError": ValueError,
}
BY_NAME_NEVER = {
    "MQTTException": "above",
    "MalformedPacket": "above",
    "WebsocketConnectionError": "above",
    "RuntimeError": "for a setting that is changed while connected, or a callback version that is not ours",
    "StopIteration": "by iterating over a MQTTMessageInfo",
    "TypeError": "for arguments of a wrong type, which mypy finds",
}
# What goes wrong inside paho without a `raise` of its own.
UNNAMED: dict[str, type[Exception]] = {"UnicodeError": UnicodeError, "struct.error": struct.error}
ALL: dict[str, type[Exception]] = {
    **{name: each for name, each in classes("paho").items() if name not in PAHO_NEVER},
    **BY_NAME,
    **UNNAMED,
    **os_errors(),
    **value_errors(),
}


def target(*, tls: bool = False, transport: str = "tcp", host: str = "broker.example") -> ProbeTarget:
    """A broker that nobody ever speaks to."""
    return ProbeTarget(
        host=host,
        port=8883,
        tls=tls,
        transport=transport,
        username="ingest",
        password=Secret(SECRET),
        subscribe="haltian-iot/#",
    )


def attempt(where: ProbeTarget, within: float = 10.0, version_5: bool = False) -> None:
    """Connect and subscribe as the watches do, and listen until it breaks."""
    link = Link(where, client_id="rotator-test", version_5=version_5)
    try:
        session(link, where.subscribe, time.monotonic() + within)
        while True:
            link.turn(0.02)
    finally:
        link.close()


def mqtt_answer(asked: bytes) -> bytes:
    """A broker that lets in and grants; nothing to a web socket's greeting."""
    answer = CONNACK if b"MQTT" in asked else b""
    return answer + (SUBACK if b"haltian-iot/#" in asked else b"")


def test_every_exception_of_paho_is_decided_upon() -> None:
    """Its own classes, and what its `raise` statements name: none is missing above, and none of those is gone."""
    assert set(classes("paho")) == PAHO | set(PAHO_NEVER)
    modules = (paho.mqtt.client, paho.mqtt._packet, paho.mqtt.properties, paho.mqtt.reasoncodes)
    assert set().union(*map(raised_by_name, modules)) == set(BY_NAME) | set(BY_NAME_NEVER)


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("method", ["connect", "subscribe", "loop_read", "loop_write", "loop_misc"])
def test_an_exception_of_paho(method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its client raises, the probe says *unreachable*, and a watch is told to try again."""
    raised = made(ALL[name], "boom")

    class Client(rotator.mqtt._Client):
        """paho's, and one method of it raises."""

    def fail(*_args: object, **_options: object) -> Any:
        raise raised

    monkeypatch.setattr(Client, method, fail)
    monkeypatch.setattr(rotator.mqtt, "_Client", Client)
    Wire(mqtt_answer).put_in_place(monkeypatch, "socket.create_connection")
    monkeypatch.setattr(rotator.mqtt.Link, "_wait", lambda *_args: 3)  # ready for both, so that both loops turn
    about_the_filter = method == "subscribe" and isinstance(raised, ValueError) and not isinstance(raised, OSError)
    chained = None if about_the_filter else raised
    assert (NO_FILTER if about_the_filter else UNREACHABLE) == outcome(attempt, target(), raised=chained)
    verdict = Verdict.SUBSCRIPTION_REFUSED if about_the_filter else Verdict.UNREACHABLE
    assert verdict is MqttProber().probe(target()).verdict


@pytest.mark.parametrize("transport", ["tcp", "websockets"])
@pytest.mark.parametrize("name", sorted(os_errors()))
@pytest.mark.parametrize("phase", [CONNECT, HANDSHAKE, WRITE, READ])
def test_an_error_of_the_socket(phase: str, name: str, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket's own errors, under paho: it keeps those of a connection that stood for itself, and says *lost*."""
    raised = made(os_errors()[name], "boom")
    wire = Wire(mqtt_answer, number=0, phase=phase, error=raised)
    wire.put_in_place(monkeypatch, "socket.create_connection")
    kept = phase in {CONNECT, HANDSHAKE}
    where = target(tls=True, transport=transport)
    again = isinstance(raised, BlockingIOError | ssl.SSLWantReadError | ssl.SSLWantWriteError) and not kept
    within = 0.2 if again else 10.0  # which say that it goes on later
    assert UNREACHABLE == outcome(attempt, where, within, raised=raised if kept else None)
    assert 1 == wire.opened


@pytest.mark.parametrize("name", sorted(os_errors()))
def test_closing_never_raises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks while DISCONNECT is said, or its socket while it is closed."""
    Wire(mqtt_answer).put_in_place(monkeypatch, "socket.create_connection")
    link = Link(target(), client_id="rotator-test")
    link.open()
    sock: Any = link._client.socket()
    sock.breaks, sock.error = WRITE, made(os_errors()[name], "boom")
    link.close()
    link.close()
    assert -1 == sock.fileno()


@pytest.mark.parametrize(
    "where",
    [
        target(host=""),
        target(host="a..b"),
        target(host="a" * 64 + ".example"),
        ProbeTarget(host="127.0.0.1", port=0),
        ProbeTarget(host="127.0.0.1", port=1, tls=True, ca_file="/no/such/file"),
        ProbeTarget(host="127.0.0.1", port=1, tls=True, ca_file="\0"),
        ProbeTarget(host="127.0.0.1", port=1, username="u", password=Secret(f"{SECRET}\udc80")),
    ],
    ids=lambda where: repr(where)[:60],
)
def test_a_target_that_can_not_be_asked(where: ProbeTarget) -> None:
    """Found before anything is sent, and said without the secret."""
    assert UNREACHABLE == outcome(attempt, where)
    result = MqttProber().probe(where)
    assert Verdict.UNREACHABLE is result.verdict
    assert SECRET not in result.detail
    assert "udc80" not in result.detail


# --- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version_5", [False, True])
@pytest.mark.parametrize("seed", range(100))
def test_packets_that_are_none(seed: int, version_5: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a good CONNACK or without one, whatever a peer sends is no more than a broker that can't be asked."""
    dice = random.Random(seed)
    kinds = [0x20, 0x90, 0x30, 0x32, 0x34, 0x40, 0x50, 0x62, 0x70, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0]
    connack = b"\x20\x03\x00\x00\x00" if version_5 else CONNACK
    garbage = connack if dice.random() < 0.7 else b""
    for _ in range(dice.randint(1, 5)):
        body = bytes(
            dice.choice([0, 0, 1, 2, 5, 0x80, 0x87, 0xFF, dice.randrange(256)]) for _ in range(dice.randrange(9))
        )
        garbage += bytes([dice.choice([*kinds, dice.randrange(256)]), len(body)]) + body
    Wire(lambda _asked: garbage, ends=True).put_in_place(monkeypatch, "socket.create_connection")
    kind, reason = outcome(attempt, target(), 10.0, version_5)
    assert (kind, reason) in (UNREACHABLE, NO_FILTER, (Permanent, Reason.SECRET_REFUSED))


@pytest.mark.parametrize(
    "line",
    [b"Sec-WebSocket-Accept: \xff", b"Sec-WebSocket-Accept", b"Sec-WebSocket-Accept: other", b"Connection: close", b""],
)
def test_a_web_socket_that_is_none(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """paho splits and decodes these lines as if they were always well formed."""
    answer = b"HTTP/1.1 101 Switching\r\n%b\r\n\r\n" % line
    Wire(lambda _asked: answer).put_in_place(monkeypatch, "socket.create_connection")
    assert UNREACHABLE == outcome(attempt, target(transport="websockets"))


class Told:
    """What a watch was told, and when something changed."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.states: list[str] = []
        self.changed = threading.Condition()

    def until(self, condition: Callable[[], bool]) -> bool:
        with self.changed:
            return self.changed.wait_for(condition, 20)


def watching(told: Told, *, fault: type[Exception] | None = None) -> Subscription:
    """A subscription that reports to `told`, and whose callback may have a fault of its own."""

    def heard(topic: str, _payload: bytes, _retained: bool) -> None:
        if fault is not None:
            raise fault
        with told.changed:
            told.topics.append(topic)
            told.changed.notify_all()

    def changed() -> None:
        with told.changed:
            told.states.append(subscription.state()[0])
            told.changed.notify_all()

    subscription = Subscription(target(), "haltian-iot/#", on_message=heard, on_change=changed)
    return subscription


def test_a_topic_that_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is nobody's heartbeat; the watch goes on, and hears the next."""
    messages = b"\x30\x03\x00\x01\xff" + b"\x30\x04\x00\x02ok"
    Wire(lambda asked: mqtt_answer(asked) + (messages if b"#" in asked else b"")).put_in_place(
        monkeypatch, "socket.create_connection"
    )
    told = Told()
    subscription = watching(told)
    subscription.start()
    heard = told.until(lambda: bool(told.topics))
    subscription.close()
    assert heard
    assert ["ok"] == told.topics
    assert "" == told.states[0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # which is what is made here
def test_a_fault_of_our_own_does_not_pass_for_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch whose thread has ended says so for ever: it would else seem to hear, and see nobody."""
    Wire(lambda asked: mqtt_answer(asked) + (b"\x30\x04\x00\x02ok" if b"#" in asked else b"")).put_in_place(
        monkeypatch, "socket.create_connection"
    )
    told = Told()
    subscription = watching(told, fault=ZeroDivisionError)
    subscription.start()
    assert told.until(lambda: Reason.UNFORESEEN.value in told.states)
    assert (Reason.UNFORESEEN.value, 1) == subscription.state()
    subscription.close()
