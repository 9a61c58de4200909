"""Proof by RabbitMQ's list of connections: the watch over a real RabbitMQ, and over scripted answers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime

import pytest

from contract.graphql_double import Scripted
from contract.rest_double import RestDouble
from integration.broker_fixture import until
from rotator.clock import SystemClock
from rotator.consumers.connections import ConnectionsWatch
from rotator.errors import Permanent, Transient
from rotator.model import ProbeTarget, Secret, Sighting
from rotator.mqtt import Link, session
from rotator.ports import Connected
from rotator.providers import make_client
from rotator.providers.http import Peer
from rotator.providers.rabbitmq import Rabbitmq
from rotator.reasons import Reason
from rotator.sandbox.rabbitmq import RabbitmqBroker

Connect = Callable[[str, str], Link]
PASSWORD = "made-up-password"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitmqBroker]:
    """A RabbitMQ whose statistics are as fast as the demo's."""
    with RabbitmqBroker(tmp_path_factory.mktemp("rabbitmq"), statistics=0.5) as running:
        yield running


@pytest.fixture
def user(broker: RabbitmqBroker) -> str:
    """A username of this test."""
    name = f"meter-{secrets.token_hex(4)}"
    broker.add_user(name, PASSWORD)
    return name


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes everything."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def connect(broker: RabbitmqBroker, stack: ExitStack) -> Connect:
    """Connects as a username with a client id."""

    def make(username: str, client_id: str) -> Link:
        target = ProbeTarget(
            host=broker.host, port=broker.port, username=username, password=Secret(PASSWORD), subscribe="data/#"
        )
        link = stack.enter_context(closing(Link(target, client_id=client_id)))
        session(link, "data/#", time.monotonic() + 5)
        return link

    return make


def provider(stack: ExitStack, url: str, username: str, password: Callable[[], str]) -> Rabbitmq:
    """The management API."""
    peer = Peer("rabbit", client=make_client(), clock=SystemClock(), on_request=lambda _done: None)
    return stack.enter_context(closing(Rabbitmq(peer, url=url, username=username, password=password)))


def opened(stack: ExitStack, listing: Connected, username: str, client_id: str | None = None) -> ConnectionsWatch:
    """A watch that asks ten times as often as the daemon's."""
    watch = ConnectionsWatch("subject", listing, username=username, client_id=client_id, clock=SystemClock(), pause=0.1)
    return stack.enter_context(closing(watch))


def first(watch: ConnectionsWatch, look: Callable[[], Sequence[Sighting]]) -> Sighting:
    """Wait for the first sighting, or loss."""
    until(lambda: watch.sightings() is not None and bool(look()), "it is seen", 20)
    return look()[0]


@pytest.fixture
def rabbit(broker: RabbitmqBroker, stack: ExitStack) -> Rabbitmq:
    """The provider of the real one."""
    return provider(stack, broker.url, broker.admin_username, lambda: broker.admin_password)


def test_only_a_new_connection_is_proof(
    rabbit: Rabbitmq, user: str, connect: Connect, stack: ExitStack, broker: RabbitmqBroker
) -> None:
    """What was there before, and other usernames, prove nothing; the new one does at once, and its end is seen."""
    other = f"{user}-b"
    broker.add_user(other, PASSWORD)
    connect(user, "before")
    watch = opened(stack, rabbit, user)
    connect(other, "somebody-else")
    until(lambda: not watch.sightings() and not watch.healthy() and rabbit.connections(other), "both are listed")
    assert () == tuple(watch.sightings())
    began = datetime.now(UTC)
    link = connect(user, "after")
    seen = first(watch, watch.sightings)
    assert began <= seen.at <= datetime.now(UTC)
    assert () == tuple(watch.losses())
    link.close()
    lost = first(watch, watch.losses)
    assert (seen.client_id, True) == (lost.client_id, lost.at > seen.at)
    connect(user, "again")
    until(lambda: len(watch.sightings()) == 2, "it comes back")
    assert watch.sightings()[1].at > lost.at
    assert watch.sightings()[1].client_id != seen.client_id


def test_a_client_id_tells_whose_connection_it_is(
    rabbit: Rabbitmq, user: str, connect: Connect, stack: ExitStack
) -> None:
    """As soon as the broker knows it: a connection of the same username with another one proves nothing."""
    watch = opened(stack, rabbit, user, "ingest-*")
    connect(user, "dashboards-1")
    connect(user, "ingest-7")
    assert "ingest-7" == first(watch, watch.sightings).client_id
    connect(user, "ingest-8")
    until(lambda: len(watch.sightings()) == 2, "the other one is seen as well")
    assert ["ingest-7", "ingest-8"] == [each.client_id for each in watch.sightings()]


def test_without_the_list_nobody_can_be_seen(
    broker: RabbitmqBroker, user: str, connect: Connect, stack: ExitStack
) -> None:
    """A login that is refused makes the watch blind until it works again; then whoever is there by now is seen."""
    password = [broker.admin_password]
    watch = opened(stack, provider(stack, broker.url, broker.admin_username, lambda: password[0]), user)
    password[0] = "wrong"
    until(lambda: watch.sightings() is not None and bool(watch.healthy()), "it is blind", 20)
    connect(user, "after")
    password[0] = broker.admin_password
    first(watch, watch.sightings)
    assert "" == watch.healthy()


def test_a_watch_that_can_not_begin(broker: RabbitmqBroker, user: str, stack: ExitStack) -> None:
    """Nobody is restarted unseen: to open one raises what the API says."""
    listing = provider(stack, broker.url, broker.admin_username, lambda: "wrong")
    with pytest.raises(Permanent) as caught:
        opened(stack, listing, user)
    assert Reason.PROVIDER_AUTH is caught.value.reason


NAMED = {"name": "a -> b", "protocol": "MQTT 3.1.1", "variable_map": {"client_id": "ingest-1"}}
GONE = {"error": "Object Not Found", "reason": "Not Found"}


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [
        (NAMED, 200, "ingest-1"),
        ({"name": "a -> b", "protocol": "AMQP 0-9-1"}, 200, ""),
        ({**NAMED, "variable_map": []}, 200, ""),
        ({**NAMED, "variable_map": {"client_id": 7}}, 200, ""),
        ({"name": "a -> b"}, 200, None),
        (GONE, 404, None),
    ],
)
def test_what_the_api_says_of_a_connection(
    stack: ExitStack, answer: dict[str, object], status: int, expected: str | None
) -> None:
    """A client id, none at all, or not known yet."""
    double = stack.enter_context(RestDouble())
    double.script = {"GET": [Scripted(body=answer, status=status)]}
    assert expected == provider(stack, double.url, "admin", lambda: "x").client_id("a -> b")


@pytest.mark.parametrize(
    ("scripted", "error"),
    [
        (Scripted(body={"error": "not_authorised", "reason": "Login failed"}, status=401), Permanent),
        (Scripted(body=b"", status=503), Transient),
        (Scripted(body={"name": "no list"}), Transient),
    ],
)
def test_answers_that_are_none(stack: ExitStack, scripted: Scripted, error: type[Exception]) -> None:
    """Each has its kind of error."""
    double = stack.enter_context(RestDouble())
    double.script = {"GET": [scripted]}
    with pytest.raises(error):
        provider(stack, double.url, "admin", lambda: "x").connections("meter")
