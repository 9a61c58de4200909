"""The MQTT probe against a real Mosquitto, and against servers that misbehave."""

from __future__ import annotations

import dataclasses
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from integration.broker_fixture import Broker, certificates, until
from rotator.model import ProbeResult, ProbeTarget, Secret, Verdict
from rotator.sandbox.processes import free_port
from rotator.verify import MqttProber

CONNACK = b"\x20\x02\x00"


@pytest.fixture
def user(broker: Broker) -> str:
    """A client that may read `data/#`, with the password `right`."""
    name = f"user-{secrets.token_hex(4)}"
    broker.client(name, "right")
    return name


@contextmanager
def server(*answers: bytes, hold: bool = True) -> Iterator[int]:
    """A server that gives one answer to each packet, then stays silent (`hold`) or closes; yields its port."""
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            for answer in answers:
                connection.recv(4096)
                connection.sendall(answer)
            if hold:
                over.wait(20)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        over.set()
        thread.join(10)
        assert not thread.is_alive()


def probe(target: ProbeTarget) -> ProbeResult:
    """One probe by a prober of its own."""
    return MqttProber().probe(target)


def local(port: int, **settings: object) -> ProbeTarget:
    """A target on this machine that is given two seconds."""
    target = ProbeTarget(host="127.0.0.1", port=port, username="u", password=Secret("hush"), subscribe="data/#")
    return dataclasses.replace(target, **{"timeout": timedelta(seconds=2), **settings})  # type: ignore[arg-type]


def test_accepted(broker: Broker, user: str) -> None:
    """A right password whose filter is granted is accepted."""
    assert ProbeResult(verdict=Verdict.ACCEPTED, detail="subscribed") == probe(broker.target(user, "right"))


def test_accepted_without_filter(broker: Broker, user: str) -> None:
    """Without a filter the CONNACK alone decides."""
    assert probe(broker.target(user, "right", None)).verdict == Verdict.ACCEPTED


def test_refused(broker: Broker, user: str) -> None:
    """A wrong password is refused in the broker's words, which never hold the password."""
    result = probe(broker.target(user, "wrong-password"))
    assert result.verdict == Verdict.REFUSED
    assert result.detail == "Not authorized (code 135)"


def test_unknown_user_refused(broker: Broker) -> None:
    """A username that the broker does not know is refused."""
    assert probe(broker.target("nobody-at-all", "x")).verdict == Verdict.REFUSED


def test_subscription_refused(broker: Broker) -> None:
    """Without a role the broker lets the client in and refuses the filter."""
    broker.client("roleless", "right", role=None)
    result = probe(broker.target("roleless", "right"))
    assert result.verdict == Verdict.SUBSCRIPTION_REFUSED
    assert "data/#" in result.detail


def test_impossible_filter(broker: Broker, user: str) -> None:
    """A filter that MQTT does not allow is told as such."""
    result = probe(broker.target(user, "right", "data/#/more"))
    assert result.verdict == Verdict.SUBSCRIPTION_REFUSED
    assert "not an MQTT filter" in result.detail


@pytest.mark.parametrize(
    ("code", "verdict"),
    [(code, Verdict.REFUSED if code in (4, 5) else Verdict.UNREACHABLE) for code in (1, 2, 3, 4, 5, 77)],
)
def test_return_codes(code: int, verdict: Verdict) -> None:
    """Only return codes 4 and 5 speak of the credential."""
    with server(CONNACK + bytes([code])) as port:
        assert verdict == probe(local(port)).verdict


@pytest.mark.parametrize(
    ("answers", "hold", "said"),
    [
        ((), True, "did not answer CONNECT in time"),
        ((), False, "did not answer CONNECT"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), True, "did not answer CONNECT"),
        ((b"\x20\x01\x00",), True, "did not answer CONNECT"),
        ((b"\x20\xff\xff\xff\xff\xff",), True, "did not answer CONNECT"),
        ((CONNACK + b"\x00",), True, "did not answer SUBSCRIBE in time"),
        ((CONNACK + b"\x00",), False, "did not answer SUBSCRIBE"),
        ((CONNACK + b"\x00", b"\x90\x01\x00"), True, "did not answer SUBSCRIBE"),
        ((CONNACK + b"\x00", b"\x90\x02\x00\x01"), True, "did not answer SUBSCRIBE"),
    ],
)
def test_misbehaving_brokers_refuse_nothing(answers: tuple[bytes, ...], hold: bool, said: str) -> None:
    """Silence, a closed connection and broken packets are *unreachable*, and end in time."""
    with server(*answers, hold=hold) as port:
        began = time.monotonic()
        result = probe(local(port, timeout=timedelta(milliseconds=700)))
        took = time.monotonic() - began
    assert result.verdict == Verdict.UNREACHABLE
    assert said in result.detail
    assert "hush" not in result.detail
    assert took < 1.5


@pytest.mark.parametrize(("answers", "hold"), [((b"HTTP/1.1 400 Bad Request\r\n\r\n",), True), ((), False), ((), True)])
def test_misbehaving_web_sockets(answers: tuple[bytes, ...], hold: bool) -> None:
    """So is what is no web socket."""
    with server(*answers, hold=hold) as port:
        result = probe(local(port, transport="websockets", timeout=timedelta(milliseconds=700)))
    assert result.verdict is Verdict.UNREACHABLE


def test_nobody_listens() -> None:
    """A refused connection is *unreachable* and names host and port."""
    port = free_port()
    result = probe(local(port))
    assert result.verdict == Verdict.UNREACHABLE
    assert f"127.0.0.1:{port}: " in result.detail


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "no-such-host.invalid"},
        {"host": "x" * 300},
        {"host": ""},
        {"port": 0},
        {"port": 70000},
        {"password": Secret("\udcff-hush")},
        {"password": Secret("hush" * 20000)},
        {"client_id": "i" * 70000},
    ],
    ids=lambda settings: next(iter(settings)) if isinstance(settings, dict) else None,
)
def test_impossible_targets(broker: Broker, settings: dict[str, object]) -> None:
    """What can't be connected to or sent at all raises nothing and shows no secret."""
    result = probe(local(**{"port": broker.port, **settings}))  # type: ignore[arg-type]
    assert result.verdict == Verdict.UNREACHABLE
    assert "hush" not in result.detail


def tls(broker: Broker, user: str, ca_file: str | None) -> ProbeTarget:
    """A target at the TLS listener."""
    return dataclasses.replace(broker.target(user, "right"), port=broker.tls_port, tls=True, ca_file=ca_file)


def test_tls(broker: Broker, user: str) -> None:
    """TLS with the broker's own authority."""
    assert ProbeResult(verdict=Verdict.ACCEPTED, detail="subscribed") == probe(tls(broker, user, broker.ca_file))


def test_tls_refused(broker: Broker, user: str) -> None:
    """A refusal comes through TLS as well."""
    target = dataclasses.replace(tls(broker, user, broker.ca_file), password=Secret("wrong"))
    assert probe(target).verdict == Verdict.REFUSED


def test_tls_unknown_authority(broker: Broker, user: str) -> None:
    """A certificate that the system does not trust refuses nothing."""
    result = probe(tls(broker, user, None))
    assert result.verdict == Verdict.UNREACHABLE
    assert "certificate verify failed" in result.detail


def test_tls_authority_file_replaced(broker: Broker, user: str, tmp_path: Path) -> None:
    """A CA file is read again when it has changed."""
    ca_file = certificates(tmp_path)
    assert probe(tls(broker, user, str(ca_file))).verdict == Verdict.UNREACHABLE
    ca_file.write_bytes(Path(broker.ca_file).read_bytes() + b"\n")
    assert probe(tls(broker, user, str(ca_file))).verdict == Verdict.ACCEPTED


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_tls_bad_authority_file(broker: Broker, user: str, tmp_path: Path, content: str | None) -> None:
    """A CA file that is missing, or holds none, refuses nothing."""
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    assert probe(tls(broker, user, str(ca_file))).verdict == Verdict.UNREACHABLE


def test_tls_to_a_plain_port(broker: Broker, user: str) -> None:
    """TLS where the broker speaks none is *unreachable*, within the time given."""
    target = dataclasses.replace(
        tls(broker, user, broker.ca_file), port=broker.port, timeout=timedelta(milliseconds=700)
    )
    assert probe(target).verdict == Verdict.UNREACHABLE


def test_tls_is_quick(broker: Broker, user: str) -> None:
    """The 43 ms that a delayed acknowledgement costs each TLS connection are not there (measured.md)."""
    target = tls(broker, user, broker.ca_file)
    took = []
    for _ in range(10):
        began = time.perf_counter()
        assert probe(target).verdict == Verdict.ACCEPTED
        took.append(time.perf_counter() - began)
    assert min(took) < 0.035


def test_web_sockets(broker: Broker, user: str) -> None:
    """The probe speaks MQTT over web sockets."""
    target = dataclasses.replace(broker.target(user, "right"), port=broker.web_port, transport="websockets")
    assert probe(target).verdict == Verdict.ACCEPTED
    assert probe(dataclasses.replace(target, password=Secret("wrong"))).verdict == Verdict.REFUSED


@pytest.fixture
def consumer(broker: Broker, user: str) -> Iterator[tuple[paho.Client, list[str]]]:
    """A consumer that is connected as `cons-…`, and the reasons for which it was cut off."""
    lost: list[str] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"cons-{user}", reconnect_on_failure=False)
    client.username_pw_set(user, "right")
    client.on_disconnect = lambda _client, _data, _flags, code, _properties: lost.append(str(code))
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    until(client.is_connected, "the consumer connects")
    yield client, lost
    client.disconnect()
    client.loop_stop()


def test_probe_leaves_the_consumer_alone(broker: Broker, user: str, consumer: tuple[paho.Client, list[str]]) -> None:
    """Under a client id of its own the probe throws nobody out: the consumer still gets messages after it."""
    client, lost = consumer
    heard: list[bytes | bytearray] = []
    client.on_message = lambda _client, _data, message: heard.append(message.payload)
    client.subscribe("data/after")
    assert probe(broker.target(user, "right")).verdict == Verdict.ACCEPTED

    def speaks() -> bool:
        client.publish("data/after", b"still here")
        return bool(heard)

    until(speaks, "the consumer hears itself")
    assert lost == []


def test_probe_under_a_fixed_client_id(broker: Broker, user: str, consumer: tuple[paho.Client, list[str]]) -> None:
    """A configured client id is used, and throws out whoever holds it."""
    _, lost = consumer
    target = dataclasses.replace(broker.target(user, "right"), client_id=f"cons-{user}")
    assert probe(target).verdict == Verdict.ACCEPTED
    until(lambda: lost, "the consumer is thrown out")


def test_many_at_once_leave_nothing_behind(broker: Broker, user: str) -> None:
    """One prober serves many threads, and no thread or file stays."""
    prober, targets = MqttProber(), [broker.target(user, "right"), broker.target(user, "wrong"), local(free_port())] * 8
    probe(targets[0])
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(8) as pool:
        verdicts = [result.verdict for result in pool.map(prober.probe, targets)]
    assert verdicts == [Verdict.ACCEPTED, Verdict.REFUSED, Verdict.UNREACHABLE] * 8
    assert threads == threading.active_count()
    assert files == len(os.listdir("/proc/self/fd"))


def test_target_and_result_hide_the_password(broker: Broker, user: str) -> None:
    """Neither the target's nor the result's text holds the password."""
    target = broker.target(user, "right-but-hidden")
    shown: Callable[[object], str] = repr
    assert "right-but-hidden" not in shown(target) + shown(probe(target))
