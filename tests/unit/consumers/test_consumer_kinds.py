"""The kinds of consumer by the configuration: what is made of each section, and what proves it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from rotator.clock import SystemClock
from rotator.config_consumers import ConsumerSettings
from rotator.config_models import KeySettings
from rotator.confirmation import Confirmations, WatchMaker
from rotator.consumers import KINDS
from rotator.consumers.file_delivery import FileDelivery
from rotator.consumers.none import NoneConsumer
from rotator.consumers.versions import as_version
from rotator.consuming import Clusters, make_consumers, make_delivery, make_watch
from rotator.errors import Permanent
from rotator.model import Identity, Order
from rotator.providers import make_client

SECTIONS: dict[str, dict[str, Any]] = {
    "systemd": {"unit": "a.service", "action": "kill", "signal": "SIGHUP"},
    "kubernetes": {"namespace": "iot", "deployment": "dash"},
    "mqtt": {"host": "127.0.0.1", "topic": "fleet/control", "ack": "fleet/ack/+", "expect": ["a"]},
    "command": {"argv": ["true"]},
    "webhook": {"url": "http://127.0.0.1:1/", "secret": {"env": "HOOK"}},
    "none": {"confirm": {"heartbeat": {"topic": "up", "host": "127.0.0.1"}}},
}
KEY = KeySettings.model_validate(
    {"provider": "p", "id": "a", "vault": {"path": "a", "fields": {"password": "{secret}"}}}
)


def section(kind: str, **more: Any) -> ConsumerSettings:
    """A section of the configuration."""
    adapter: TypeAdapter[ConsumerSettings] = TypeAdapter(ConsumerSettings)
    return adapter.validate_python({"kind": kind, **SECTIONS[kind], **more})


def confirmations() -> Confirmations:
    """What makes watches."""
    return Confirmations(clock=SystemClock(), read_ref=str)


class Listing:
    """A provider whose broker lists who is connected."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.asked: list[str] = []

    def connections(self, username: str) -> list[str]:
        self.asked.append(username)
        return self.names

    def client_id(self, connection: str) -> str | None:
        return connection


def watch_of(
    wanted: ConsumerSettings, *, names_key: bool = False, providers: Mapping[str, Any] | None = None
) -> WatchMaker | None:
    """What proves this consumer."""
    with make_client() as client:
        return make_watch(
            "subject",
            wanted,
            KEY,
            names_key=names_key,
            client=client,
            confirmations=confirmations(),
            providers=providers or {},
        )


def test_every_kind_can_be_made() -> None:
    """Each kind of the configuration has an adapter that knows its name and kind, and none connects yet."""
    assert set(SECTIONS) == set(KINDS)
    wanted = {kind: section(kind) for kind in KINDS}
    with make_client() as client:
        made = make_consumers(
            wanted,
            clock=SystemClock(),
            stop=threading.Event(),
            client=client,
            clusters=Clusters(),
            confirmations=confirmations(),
            read_ref=str,
        )
    assert {kind: (kind, kind) for kind in KINDS} == {name: (each.kind, each.name) for name, each in made.items()}


def test_none_restarts_nothing() -> None:
    """There is nothing that could fail; from the restart on its proof is waited for."""
    subject = NoneConsumer("subject", clock=SystemClock())
    subject.preflight()
    before = SystemClock().now()
    ticket = subject.restart(Order(key="a", version=7))
    assert before <= ticket.restarted_at <= SystemClock().now()
    subject.check(ticket)


@pytest.mark.parametrize(
    ("kind", "more", "early", "periodic"),
    [
        ("mqtt", {}, False, False),
        ("webhook", {"confirm": "http://127.0.0.1:1/version"}, False, True),
        ("systemd", {"confirm": {"http": {"url": "http://127.0.0.1:1/{key}", "field": "a.b"}}}, False, True),
        ("command", {"confirm": ["true", "{version}"]}, False, True),
        ("kubernetes", {"confirm": {"argv": ["true"]}}, False, True),
        ("none", {}, False, True),
        ("none", {"confirm": {"broker": {"host": "127.0.0.1", "username": "observer"}}}, True, False),
        ("mqtt", {"ack": None, "expect": None, "confirm": {"broker": {"host": "h"}}}, False, False),
    ],
)
def test_what_proves_a_consumer(kind: str, more: dict[str, Any], early: bool, periodic: bool) -> None:
    """Each form of `confirm` has its watch; what proves the version is opened with the order alone."""
    maker = watch_of(section(kind, **more))
    assert maker is not None
    assert (early, periodic) == (maker.early, maker.periodic)


@pytest.mark.parametrize("kind", ["webhook", "command", "mqtt"])
def test_the_version_is_needed(kind: str) -> None:
    """Without an order there is no version to look for."""
    more = {"mqtt": {}}.get(kind, {"confirm": "http://127.0.0.1:1/"})
    maker = watch_of(section(kind, **more))
    assert maker is not None
    with pytest.raises(Permanent, match="known at its restart"):
        maker.open(Identity(id="a", username="a"), None, None)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("systemd", {}),
        ("webhook", {}),
        ("mqtt", {"ack": None, "expect": None}),
        ("mqtt", {"accept": "restarted"}),
        ("none", {"accept": "restarted"}),
    ],
)
def test_what_nothing_proves(kind: str, more: dict[str, Any]) -> None:
    """Without a proof, or where none is wanted, nothing is looked for."""
    assert watch_of(section(kind, **more)) is None


@pytest.mark.parametrize(
    ("broker", "asked"),
    [({}, "p"), ({"provider": "q"}, "q"), ({"client_id": "a*"}, "p"), ({"host": "broker.example"}, None)],
)
def test_whose_list_of_connections_is_asked(broker: dict[str, Any], asked: str | None) -> None:
    """That of the provider that is named, else the key's own, unless the broker's host is given."""
    providers = {"p": Listing("old"), "q": Listing("old")}
    maker = watch_of(section("command", confirm={"broker": broker}), providers=providers)
    assert maker is not None
    assert ("client_id" in broker) == maker.identified
    if asked is None:
        return
    with closing(maker.open(Identity(id="a", username="meter"), None, None)):
        assert {"p": [], "q": [], asked: ["meter"]} == {name: each.asked for name, each in providers.items()}


def test_a_confirming_command_runs_where_the_restarting_one_does(tmp_path: Path) -> None:
    """With its folder and its variables."""
    script = "test $PWD = $WANTED && test $ROTATOR_KEY = a && test $ROTATOR_VERSION = 7 && touch proven"
    wanted = section("command", cwd=str(tmp_path), env={"WANTED": str(tmp_path)}, confirm=["sh", "-c", script])
    maker = watch_of(wanted)
    assert maker is not None
    with closing(maker.open(Identity(id="a", username="a"), None, Order(key="a", version=7))) as watch:
        deadline = SystemClock().monotonic() + 10
        while not watch.sightings():
            assert SystemClock().monotonic() < deadline
            watch.wait(0.1)
    assert (tmp_path / "proven").exists()


def test_deliveries(tmp_path: Path) -> None:
    """A file is waited for, an ExternalSecret is asked for; direct and a delay need nobody."""
    clock = SystemClock()
    file = section("command", deliver={"file": str(tmp_path / "a")})
    made = make_delivery("subject", file, clock=clock, clusters=Clusters())
    assert isinstance(made, FileDelivery)
    for kind in ("command", "kubernetes"):
        deliver = {"external_secret": {"namespace": "iot", "name": "mqtt"}}
        assert make_delivery("subject", section(kind, deliver=deliver), clock=clock, clusters=Clusters()) is not None
    for direct in ("direct", {"delay": "6m"}):
        assert make_delivery("subject", section("command", deliver=direct), clock=clock, clusters=Clusters()) is None
    assert timedelta(minutes=6) == section("command", deliver={"delay": "6m"}).delay


@pytest.mark.parametrize(
    ("value", "version"),
    [
        (7, 7),
        ("7", 7),
        (0, 0),
        (7.0, None),
        (True, None),
        ("7.0", None),
        ("\u0667", None),
        ("", None),
        ("9" * 30, None),
    ],
)
def test_versions(value: object, version: int | None) -> None:
    """A whole number is one, in digits of its own or in a text; nothing else is."""
    assert version == as_version(value)
