"""The watches against a real Mosquitto: kicks, connects, heartbeats, and what may have been missed."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from integration.broker_fixture import Broker, until
from rotator.clock import SystemClock
from rotator.consumers.confirm import BrokerLog, BrokerLogs, HeartbeatWatch
from rotator.model import Secret
from rotator.mqtt import quick
from rotator.ports import Watch

Connect = Callable[..., paho.Client]


@pytest.fixture
def user(broker: Broker) -> str:
    """A client that may read and write `data/#`, with the password `old`."""
    name = f"user-{secrets.token_hex(4)}"
    broker.client(name, "old")
    return name


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connects a consumer, that does not connect again by itself, and ends it with the test."""
    with ExitStack() as stack:

        def made(broker: Broker, client_id: str, username: str, password: str | None = None) -> paho.Client:
            client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False)
            client.username_pw_set(username, password or "old")
            client.connect("127.0.0.1", broker.port)
            client.loop_start()
            stack.callback(client.loop_stop)
            stack.callback(client.disconnect)
            until(client.is_connected, f"{client_id} connects")
            return client

        yield made


@pytest.fixture
def log(broker: Broker) -> Iterator[BrokerLog]:
    """The shared broker's log, heard."""
    with closing(BrokerLog(broker.observer(), clock=SystemClock())) as started:
        started.start()
        assert started.problem() == ""
        yield started


def seen(watch: Watch, count: int = 1) -> None:
    """Wait for this many sightings, by the watch's own `wait`."""
    _await(watch, lambda: len(watch.sightings()) >= count)


def lost(watch: Watch, count: int = 1) -> None:
    """Wait for this many losses, by the watch's own `wait`."""
    _await(watch, lambda: len(watch.losses()) >= count)


def _await(watch: Watch, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"{watch.sightings()} {watch.losses()} {watch.healthy()}"
        watch.wait(deadline - time.monotonic())


def test_rotation_as_the_broker_logs_it(broker: Broker, log: BrokerLog, user: str, connect: Connect) -> None:
    """A new password kicks the consumer, which comes back: both are seen when an own subscriber sees the lines."""
    stamps: list[tuple[str, datetime]] = []

    def heard(client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        stamps.append((message.payload.decode(), datetime.now(UTC)))
        quick(client.socket())  # or the broker holds the next line back for up to 40 ms

    own = connect(broker, f"test-{user}", "observer", "observer-password")
    own.on_message = heard
    granted = threading.Event()
    own.on_subscribe = lambda *_: granted.set()
    own.subscribe("$SYS/broker/log/#")
    assert granted.wait(10)
    watch = log.watch(username=user)
    connect(broker, f"cons ({user})", user)
    seen(watch)
    broker.control("setClientPassword", user, "new")
    lost(watch)
    connect(broker, f"cons ({user})", user, "new")
    seen(watch, 2)

    assert [f"cons ({user})"] * 2 == [sighting.client_id for sighting in watch.sightings()]
    (kick,) = watch.losses()
    assert kick.detail == "been disconnected by administrative action"
    assert watch.sightings()[0].at < kick.at < watch.sightings()[1].at
    assert watch.healthy() == ""
    until(
        lambda: sum(f"as cons ({user}) (" in line for line, _ in tuple(stamps)) == 2,
        "the own subscriber heard both connects",
    )
    theirs = sorted(at for line, at in stamps if f"cons ({user})" in line)
    ours = sorted(sighting.at for sighting in (*watch.sightings(), *watch.losses()))
    assert len(ours) == len(theirs), stamps
    assert max(abs((one - other).total_seconds()) for one, other in zip(ours, theirs, strict=True)) < 0.05
    watch.close()


def test_log_over_tls(broker: Broker, log: BrokerLog, user: str, connect: Connect) -> None:
    """Over TLS the lines come as quickly as over the plain connection."""
    target = dataclasses.replace(broker.observer(), port=broker.tls_port, tls=True, ca_file=broker.ca_file)
    with closing(BrokerLog(target, clock=SystemClock())) as other:
        other.start()
        plain, encrypted = log.watch(username=user), other.watch(username=user)
        for number in range(5):
            connect(broker, f"{user}-{number}", user).disconnect()
        for watch in (plain, encrypted):
            lost(watch, 5)
            seen(watch, 5)
        pairs = zip((*plain.sightings(), *plain.losses()), (*encrypted.sightings(), *encrypted.losses()), strict=True)
        assert max(abs((one.at - two.at).total_seconds()) for one, two in pairs) < 0.035
        assert encrypted.healthy() == ""


def test_only_the_watched(broker: Broker, log: BrokerLog, user: str, connect: Connect) -> None:
    """Other usernames, our own client ids, and ids outside the pattern are no evidence."""
    other = f"other-{user}"
    broker.client(other, "old")
    watch = log.watch(username=user, client_id="cons-*", ignore_prefixes=("cons-probe-",))
    connect(broker, f"cons-{other}", other)
    connect(broker, f"cons-probe-{user}", user)
    connect(broker, f"someone-{user}", user)
    connect(broker, f"cons-{user}", user)
    seen(watch)
    assert [f"cons-{user}"] == [sighting.client_id for sighting in watch.sightings()]
    broker.control("setClientPassword", other, "new")
    broker.control("setClientPassword", user, "new")
    lost(watch)
    assert [f"cons-{user}"] == [loss.client_id for loss in watch.losses()]


def test_every_client_of_a_username(broker: Broker, log: BrokerLog, user: str, connect: Connect) -> None:
    """Without a pattern every client id of the username counts, and several watches see the same."""
    first, second = log.watch(username=user), log.watch(username=user)
    for number in range(3):
        connect(broker, f"{user}-{number}", user)
    for watch in (first, second):
        seen(watch, 3)
        assert {f"{user}-{number}" for number in range(3)} == {one.client_id for one in watch.sightings()}
    first.close()
    connect(broker, f"{user}-later", user)
    seen(second, 4)
    assert len(first.sightings()) == 3


@pytest.mark.parametrize("pattern", [None, "cons-*"])
def test_connected_before_the_log(broker: Broker, user: str, connect: Connect, pattern: str | None) -> None:
    """Who connected before the log was heard is known only by the client id, so only a pattern sees that loss."""
    connect(broker, f"cons-{user}", user)
    with closing(BrokerLog(broker.observer(), clock=SystemClock())) as late:
        late.start()
        watch = late.watch(username=user, client_id=pattern)
        broker.control("setClientPassword", user, "new")
        connect(broker, f"cons-{user}", user, "new")
        seen(watch)
        assert [f"cons-{user}"] * (pattern is not None) == [loss.client_id for loss in watch.losses()]


def test_taken_over(broker: Broker, log: BrokerLog, user: str, connect: Connect) -> None:
    """A second connection under the same client id ends the first, once, and stays known."""
    watch = log.watch(username=user)
    connect(broker, f"cons-{user}", user)
    connect(broker, f"cons-{user}", user)
    seen(watch, 2)
    lost(watch)
    broker.control("setClientPassword", user, "new")
    lost(watch, 2)
    assert [loss.detail for loss in watch.losses()] == [
        "already connected, closing old connection",
        "been disconnected by administrative action",
    ]


def test_leaving_by_itself(broker: Broker, log: BrokerLog, user: str, connect: Connect) -> None:
    """A consumer that says DISCONNECT is a loss in the broker's own words."""
    watch = log.watch(username=user)
    connect(broker, f"cons-{user}", user).disconnect()
    lost(watch)
    assert [loss.detail for loss in watch.losses()] == ["disconnected"]


def test_refused_connects_are_no_sightings(broker: Broker, log: BrokerLog, user: str, connect: Connect) -> None:
    """A consumer that the broker turns away has not connected."""
    watch = log.watch(username=user)
    with pytest.raises(AssertionError, match="not within"):
        connect_wrong(broker, user)
    connect(broker, f"cons-{user}", user)
    seen(watch)
    assert [f"cons-{user}"] == [sighting.client_id for sighting in watch.sightings()]


def connect_wrong(broker: Broker, user: str) -> None:
    """Try a wrong password for a moment."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"wrong-{user}", reconnect_on_failure=False)
    client.username_pw_set(user, "wrong")
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        until(client.is_connected, "a wrong password", 0.3)
    finally:
        client.disconnect()
        client.loop_stop()


def test_observer_refused_at_first(broker: Broker) -> None:
    """A refused observer is told at once, goes on trying, and says once that something may have been missed."""
    name = f"late-{secrets.token_hex(4)}"
    target = dataclasses.replace(broker.observer(), username=name, password=Secret("observer-hush"))
    with closing(BrokerLog(target, clock=SystemClock())) as log:
        began = time.monotonic()
        log.start()
        watch = log.watch(username="anyone")
        assert time.monotonic() - began < 2
        assert watch.healthy().startswith("secret_refused: ")
        assert "hush" not in watch.healthy()
        broker.client(name, "observer-hush", role=None)
        until(lambda: watch.healthy().startswith("subscription_refused: "), "the observer lacks its role")
        broker.control("addClientRole", name, "observer", "1")
        until(lambda: log.problem() == "", "the observer is let in")
        assert "may have missed something" in watch.healthy()
        assert watch.healthy() == ""


def test_broker_restarts(own_broker: Broker, connect: Connect) -> None:
    """A log that was lost says so while it is away and once after, and then sees again."""
    own_broker.client("u", "old")
    with closing(BrokerLog(own_broker.observer(), clock=SystemClock())) as log:
        log.start()
        watch = log.watch(username="u")
        assert watch.healthy() == ""
        own_broker.stop()
        until(lambda: log.problem() != "", "the log notices")
        assert watch.healthy().startswith("broker_unreachable: ")
        own_broker.start()
        until(lambda: log.problem() == "", "the log is back")
        later = log.watch(username="u")
        assert watch.healthy() == "the connection was lost in between: may have missed something"
        assert watch.healthy() == ""
        assert later.healthy() == ""
        connect(own_broker, "cons", "u")
        seen(watch)


def test_broker_down_at_first(own_broker: Broker, connect: Connect) -> None:
    """A log that is started while the broker is down begins when it is up."""
    own_broker.client("u", "old")
    own_broker.stop()
    with closing(BrokerLog(own_broker.observer(), clock=SystemClock())) as log:
        log.start()
        watch = log.watch(username="u")
        assert watch.healthy().startswith("broker_unreachable: ")
        own_broker.start()
        until(lambda: log.problem() == "", "the log is heard")
        connect(own_broker, "cons", "u")
        seen(watch)


def test_wait(log: BrokerLog, broker: Broker, user: str, connect: Connect) -> None:
    """`wait` returns for news, also for what came before it was called, and else when its time is over."""
    watch = log.watch(username=user)
    began = time.monotonic()
    watch.wait(0.2)
    assert time.monotonic() - began >= 0.2
    connect(broker, f"cons-{user}", user)
    until(watch.sightings, "the connect is seen")
    began = time.monotonic()
    watch.wait(30)
    assert time.monotonic() - began < 1


def test_one_connection_for_all(broker: Broker, log: BrokerLog, connect: Connect) -> None:
    """Keys at one broker share a log; closing ends its thread, and an open watch says so."""
    before = threading.active_count()
    logs = BrokerLogs(clock=SystemClock())
    target = broker.observer()
    shared = logs.log(target)
    assert shared is logs.log(dataclasses.replace(target))
    assert shared is not logs.log(dataclasses.replace(target, host="localhost"))
    watch = shared.watch(username="anyone")
    assert before + 2 == threading.active_count()
    until(lambda: shared.problem() == "", "the log is heard")
    watch.healthy()
    began = time.monotonic()
    logs.close()
    assert time.monotonic() - began < 1
    assert before == threading.active_count()
    assert watch.healthy() == "closed"


def test_heartbeat(broker: Broker, user: str, connect: Connect) -> None:
    """Each live message is a sighting with the beginning of its payload; a retained one is none."""
    consumer = connect(broker, f"cons-{user}", user)
    topic = f"data/{user}/heartbeat"
    consumer.publish(topic, "from before", qos=1, retain=True).wait_for_publish(5)
    watch = HeartbeatWatch(broker.target(user, "old"), topic=topic, clock=SystemClock())
    assert watch.healthy() == "not started"
    with closing(watch):
        watch.start()
        assert watch.healthy() == ""
        before = datetime.now(UTC)
        consumer.publish(topic, "alive\n" + 200 * "x").wait_for_publish(5)
        seen(watch)
        (sighting,) = watch.sightings()
        assert before <= sighting.at <= datetime.now(UTC)
        assert f"{topic}: alive?" + 94 * "x" == sighting.detail
        assert watch.losses() == ()


def test_heartbeat_of_a_changed_password(broker: Broker, user: str) -> None:
    """A heartbeat watch that is itself kicked says that it may have missed something."""
    with closing(HeartbeatWatch(broker.target(user, "old"), topic="data/#", clock=SystemClock())) as watch:
        watch.start()
        assert watch.healthy() == ""
        broker.control("setClientPassword", user, "new")
        until(lambda: watch.healthy().startswith("secret_refused: "), "the watch is refused")
