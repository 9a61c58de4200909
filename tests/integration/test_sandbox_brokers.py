"""Both brokers of the sandbox behave alike: who comes in and out, who may read what, and what the log says."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator

import pytest

from integration.sandbox_listener import Listener
from rotator.sandbox.brokers import AmqttBroker, MosquittoBroker

Broker = AmqttBroker | MosquittoBroker
KEY, OTHER = "c6f7b103-81df-4e73-8218-4f671056aee2", "00000000-81df-4e73-8218-4f671056aee2"
FILTER = f"haltian-iot/events/31efcae6/{KEY}/#"
LOG = "$SYS/broker/log/N"
CONNECTED = re.compile(r"\d{10}: New client connected from 127\.0\.0\.1:\d+ as cons \(p2, c1, k60, u'" + KEY + r"'\)\.")


@pytest.fixture(params=[AmqttBroker, MosquittoBroker])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A running broker without keys."""
    with request.param() as running:
        yield running


@pytest.fixture
def enter(broker: Broker) -> Iterator[Callable[[str, str, str], Listener]]:
    """Connects clients, and ends them."""
    with contextlib.ExitStack() as stack:
        yield lambda username, password, client_id: stack.enter_context(
            Listener(broker.host, broker.port, username, password, client_id)
        )


Enter = Callable[[str, str, str], Listener]


@pytest.fixture
def observer(broker: Broker, enter: Enter) -> Listener:
    """The observer, subscribed to the log and to heartbeats."""
    listener = enter(broker.observer_username, broker.observer_password, "the-observer").connected()
    assert {"Granted QoS 1"} == {listener.subscribe("$SYS/broker/log/#"), listener.subscribe("heartbeat/#")}
    return listener


def lines(observer: Listener) -> list[str]:
    """The notices of the log so far, as far as both brokers write them."""
    return [payload for _, payload in observer.messages(LOG) if "New connection from" not in payload]


def test_every_key_reads_telemetry(broker: Broker, enter: Enter) -> None:
    """What names no username is for all keys to read, whatever their usernames are."""
    broker.grant(KEY, "live")
    key = enter(KEY, "live", "a").connected()
    assert "Granted QoS 1" == key.subscribe("telemetry/building-a/#")
    broker.publish("telemetry/building-a/temperature", "20")
    key.wait_for("message")
    assert [("telemetry/building-a/temperature", "20")] == key.messages()


def test_only_the_live_token_comes_in(broker: Broker, enter: Enter) -> None:
    """The granted token does; another one, an unknown username and no password do not."""
    broker.grant(KEY, "live")
    clients = [enter(KEY, "live", "a"), enter(KEY, "wrong", "b"), enter(OTHER, "live", "c"), enter(KEY, "", "d")]
    for client in clients:
        client.wait_for("connect")
    expected = ["Success", "Not authorized", "Not authorized", "Not authorized"]
    assert expected == [client.events[0][1] for client in clients]


def test_a_new_token_throws_the_old_session_out_at_once(broker: Broker, enter: Enter) -> None:
    """After a grant, the session of the old token ends, the old token is refused and the new one let in."""
    broker.grant(KEY, "old")
    session = enter(KEY, "old", "cons").connected()
    broker.grant(KEY, "new")
    session.wait_for("disconnect")
    again, fresh = enter(KEY, "old", "cons2"), enter(KEY, "new", "cons3")
    again.wait_for("connect")
    fresh.wait_for("connect")
    assert (again.events[0][1], fresh.events[0][1]) == ("Not authorized", "Success")


def test_revoking_throws_out_and_a_grant_lets_in_again(broker: Broker, enter: Enter) -> None:
    """A revoked username stays out until its next token; revoking somebody unknown is success."""
    broker.revoke(OTHER)
    broker.grant(KEY, "first")
    session = enter(KEY, "first", "cons").connected()
    broker.revoke(KEY)
    session.wait_for("disconnect")
    refused = enter(KEY, "first", "cons")
    refused.wait_for("connect")
    broker.grant(KEY, "second")
    enter(KEY, "second", "cons").connected()
    assert refused.events[0][1] == "Not authorized"


def test_a_key_reads_its_own_events_only(broker: Broker, enter: Enter) -> None:
    """Its own filter is granted, another key's, everything and the log are refused; only its events arrive."""
    broker.grant(KEY, "t")
    client = enter(KEY, "t", "cons").connected()
    refused = {client.subscribe(topic) for topic in (FILTER.replace(KEY, OTHER), "#", "$SYS/#", "heartbeat/#")}
    granted = client.subscribe(FILTER)
    broker.publish(f"haltian-iot/events/31efcae6/{OTHER}/x", "not yours")
    broker.publish(f"haltian-iot/events/31efcae6/{KEY}/x", "yours")
    client.wait_for("message")
    expected = ("Granted QoS 1", {"Unspecified error"}, [(f"haltian-iot/events/31efcae6/{KEY}/x", "yours")])
    assert expected == (granted, refused, client.messages())


def test_a_key_may_send_heartbeats_and_nothing_else(broker: Broker, enter: Enter, observer: Listener) -> None:
    """The observer hears the heartbeat; a forged event reaches nobody."""
    broker.grant(KEY, "t")
    client = enter(KEY, "t", "cons").connected()
    client.subscribe(FILTER)
    client.publish(FILTER.replace("#", "forged"), "forged")
    client.publish("heartbeat/cons", "beat")
    observer.wait(lambda: bool(observer.messages("heartbeat")), "heartbeat")
    broker.publish(FILTER.replace("#", "x"), "real")
    client.wait_for("message")
    assert (
        observer.messages("heartbeat"),
        [payload for _, payload in client.messages()],
    ) == ([("heartbeat/cons", "beat")], ["real"])


def test_the_log_tells_connect_kick_and_goodbye(broker: Broker, enter: Enter, observer: Listener) -> None:
    """In Mosquitto's words: connect, kick by a new token, connect, a refusal, a polite goodbye."""
    broker.grant(KEY, "old")
    enter(KEY, "old", "cons").connected()
    observer.wait(lambda: len(lines(observer)) >= 1, "connect line")
    broker.grant(KEY, "new")
    observer.wait(lambda: len(lines(observer)) >= 2, "kick line")
    enter(KEY, "old", "cons").wait_for("connect")
    observer.wait(lambda: len(lines(observer)) >= 3, "refusal line")
    fresh = enter(KEY, "new", "cons").connected()
    observer.wait(lambda: len(lines(observer)) >= 4, "second connect line")
    fresh.close()
    observer.wait(lambda: len(lines(observer)) >= 5, "goodbye line")
    seen = lines(observer)
    said = [line.partition(": ")[2] for line in seen]
    assert [said[1], said[4]] == [
        "Client cons been disconnected by administrative action.",
        "Client cons disconnected.",
    ]
    assert [bool(CONNECTED.fullmatch(seen[0])), bool(CONNECTED.fullmatch(seen[3]))] == [True, True]
    assert "disconnected, not authorised." in said[2]


def test_a_wrong_password_does_not_disturb_the_client_of_that_id(broker: Broker, enter: Enter) -> None:
    """Somebody refused under the same client id takes neither the session nor its subscription."""
    broker.grant(KEY, "t")
    client = enter(KEY, "t", "cons").connected()
    client.subscribe(FILTER)
    enter(KEY, "wrong", "cons").wait_for("disconnect")
    broker.publish(FILTER.replace("#", "x"), "still here")
    client.wait_for("message")
    assert [payload for _, payload in client.messages()] == ["still here"]


def test_the_same_client_id_takes_the_connection_over(broker: Broker, enter: Enter) -> None:
    """The old connection ends, and the new one works."""
    broker.grant(KEY, "t")
    old = enter(KEY, "t", "cons").connected()
    new = enter(KEY, "t", "cons").connected()
    old.wait_for("disconnect")
    new.subscribe(FILTER)
    broker.publish(FILTER.replace("#", "x"), "hello")
    new.wait_for("message")
    assert old.messages() == []


def test_no_log_line_is_lost_while_clients_come_and_go(broker: Broker, enter: Enter, observer: Listener) -> None:
    """Subscriptions that are made while a line goes out do not swallow it."""
    broker.grant(KEY, "t")

    def visit(number: int) -> None:
        client = enter(KEY, "t", f"visitor-{number}").connected()
        client.subscribe(FILTER.replace("#", str(number)))
        client.close()

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(30)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    observer.wait(
        lambda: len([line for line in lines(observer) if line.endswith(" disconnected.")]) == 30, "30 goodbyes"
    )
    assert len([line for line in lines(observer) if "New client connected" in line]) == 30


def test_stop_and_start_keep_port_and_tokens(broker: Broker, enter: Enter) -> None:
    """A broker that was away comes back under the same address and knows its keys."""
    broker.grant(KEY, "t")
    port = broker.port
    session = enter(KEY, "t", "cons").connected()
    broker.stop()
    session.wait_for("disconnect")
    with pytest.raises(OSError):
        enter(KEY, "t", "cons")
    broker.start()
    enter(KEY, "t", "cons").connected()
    assert port == broker.port


def test_publishing_without_a_broker_is_an_error(broker: Broker) -> None:
    """Not a silence."""
    broker.stop()
    with pytest.raises(RuntimeError):
        broker.publish("a", "b")
