"""The Mosquitto provider on Debian's Mosquitto with dynamic security, and on a broker that misbehaves by script."""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from contract.control_double import Command, ControlDouble, Reply, agree, told
from integration.broker_fixture import Broker, until
from rotator.clock import SystemClock
from rotator.errors import Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Identity, Issued, ProbeTarget, RequestDone, Secret, UpstreamKey, Verdict
from rotator.mqtt import Link, session
from rotator.providers import Mosquitto
from rotator.providers.dynamic_security import ANSWERS, ControlLink, control
from rotator.reasons import Reason
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.processes import free_port
from rotator.verify import MqttProber

ADMIN_PASSWORD = "admin-password"
MARKER = "rotator-0123456789ab-1"
Build = Callable[..., Mosquitto]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Mosquitto that these tests share: each makes clients of its own."""
    started = Broker(tmp_path_factory.mktemp("broker"))
    yield started
    started.stop()


@pytest.fixture
def user(broker: Broker) -> str:
    """A client that may read `data/#`, with the password `old-secret`."""
    name = f"user-{secrets.token_hex(4)}"
    broker.client(name, "old-secret")
    return name


@pytest.fixture
def double() -> Iterator[ControlDouble]:
    """A broker that agrees to everything until a test writes a script."""
    with ControlDouble() as served:
        yield served


@pytest.fixture
def done() -> list[RequestDone]:
    """What `on_request` was told."""
    return []


@pytest.fixture
def build(done: list[RequestDone]) -> Build:
    """Makes a provider for a port of this machine."""

    def make(port: int, **settings: Any) -> Mosquitto:
        usual: dict[str, Any] = {
            "host": "127.0.0.1",
            "username": "admin",
            "password": lambda: ADMIN_PASSWORD,
            "timeout": timedelta(seconds=10),
            "clock": SystemClock(),
            "on_request": done.append,
        }
        return Mosquitto("plant", port=port, **{**usual, **settings})

    return make


def who(username: str) -> Identity:
    """A client that is free in its client id."""
    return Identity(id=username, username=username)


def target(port: int) -> ProbeTarget:
    """The admin, at a port of this machine."""
    return ProbeTarget(host="127.0.0.1", port=port, username="admin", password=Secret(ADMIN_PASSWORD))


def verdict(broker: Broker, username: str, password: str) -> Verdict:
    """What the broker says to a password, and to `data/#`."""
    return MqttProber().probe(broker.target(username, password)).verdict


def is_gone(link: Link) -> bool:
    """Whether the broker has ended a connection."""
    try:
        link.turn(0.1)
    except Transient:
        return True
    return False


def codes(done: list[RequestDone]) -> list[tuple[str, str]]:
    """Operation and code of what was told; the rest is checked here."""
    assert all(each.peer == "plant" and each.skew is None and each.seconds > 0 for each in done)
    return [(each.operation, each.code) for each in done]


# --- on a real Mosquitto ---------------------------------------------------------------------------------------------


def test_a_new_secret(broker: Broker, build: Build, user: str, done: list[RequestDone]) -> None:
    """The new password works, with the client's roles; the old one is dead; no time is claimed."""
    provider = build(broker.port)
    secret = provider.choose()
    issued = provider.set_secret(who(user), secret)
    assert Issued(identity=who(user), secret=secret) == issued
    assert Verdict.ACCEPTED == verdict(broker, user, secret.reveal())
    assert Verdict.REFUSED == verdict(broker, user, "old-secret")
    assert [("issue", "ok")] == codes(done)


def test_it_may_be_repeated(broker: Broker, build: Build, user: str) -> None:
    """The same secret again is success, and another one after it as well (a rollback sets the old one)."""
    provider = build(broker.port)
    for password in ("one", "one", "two", "old-secret"):
        provider.set_secret(who(user), Secret(password))
        assert Verdict.ACCEPTED == verdict(broker, user, password)


def test_sessions_are_ended(broker: Broker, build: Build, user: str) -> None:
    """Mosquitto ends what runs on the old password: the gap begins with the answer."""
    with closing(Link(broker.target(user, "old-secret"), client_id=f"consumer-{user}")) as link:
        session(link, "data/#", time.monotonic() + 5)
        build(broker.port).set_secret(who(user), Secret("new"))
        until(lambda: is_gone(link), "the session is ended")


@pytest.mark.parametrize("password", ['ü€😀 "quoted" \\ {x} \'\n\t\x01', "x" * 5000])
def test_any_text_arrives_whole(broker: Broker, build: Build, user: str, password: str) -> None:
    """Whatever an earlier secret held, the broker gets just that."""
    build(broker.port).set_secret(who(user), Secret(password))
    assert Verdict.ACCEPTED == verdict(broker, user, password)


def test_an_unknown_client_is_not_made(broker: Broker, build: Build, done: list[RequestDone]) -> None:
    """KEY_UNKNOWN, and the list is as before."""
    provider = build(broker.port)
    before = provider.list_keys()
    with pytest.raises(Permanent) as failed:
        provider.set_secret(who("typo"), Secret("hush"))
    assert (Reason.KEY_UNKNOWN, "plant: getClient: Client not found") == (failed.value.reason, failed.value.message)
    assert before == provider.list_keys()
    assert [("list_keys", "ok"), ("issue", "key_unknown"), ("list_keys", "ok")] == codes(done)


def test_the_list(broker: Broker, build: Build) -> None:
    """Usernames, names, bound client ids and what is disabled; no times, since the plugin has none."""
    plain, bound, disabled = (f"{kind}-{secrets.token_hex(4)}" for kind in ("plain", "bound", "disabled"))
    for name in (plain, bound, disabled):
        broker.client(name, "old-secret")
    broker.control("setClientId", bound, "device-7")
    broker.control("disableClient", disabled)
    listed = {key.id: key for key in build(broker.port).list_keys()}
    assert UpstreamKey(id=plain, identity=who(plain)) == listed[plain]
    assert Identity(id=bound, username=bound, client_id="device-7") == listed[bound].identity
    assert [None, None, Reason.KEY_INACTIVE] == [listed[name].problem for name in (plain, bound, disabled)]
    assert "Dynsec admin user" == listed["admin"].name


def test_a_disabled_client_stays_disabled(broker: Broker, build: Build, user: str) -> None:
    """A new secret lets nobody in whom somebody has shut out."""
    broker.control("disableClient", user)
    build(broker.port).set_secret(who(user), Secret("new"))
    assert Verdict.REFUSED == verdict(broker, user, "new")
    broker.control("enableClient", user)
    assert Verdict.ACCEPTED == verdict(broker, user, "new")


def test_a_long_list(tmp_path: Path, build: Build) -> None:
    """More clients than one page holds are listed once each."""
    names = [f"meter-{number:04}" for number in range(1_100)]
    with MosquittoBroker(tmp_path) as running:
        for start in range(0, len(names), 100):
            running.command([{"command": "createClient", "username": name} for name in names[start : start + 100]])
        provider = build(running.port, username=running.admin_username, password=lambda: running.admin_password)
        listed = [key.id for key in provider.list_keys()]
    assert sorted([*names, "observer", "sandbox-admin"]) == sorted(listed)


def test_over_tls(broker: Broker, build: Build, user: str, done: list[RequestDone]) -> None:
    """With the right authority it works; with the system's, nobody is asked anything."""
    build(broker.tls_port, tls=True, ca_file=broker.ca_file).set_secret(who(user), Secret("new"))
    with pytest.raises(Transient) as failed:
        build(broker.tls_port, tls=True).set_secret(who(user), Secret("newer"))
    assert failed.value.reason is Reason.PROVIDER_UNREACHABLE
    assert "CERTIFICATE_VERIFY_FAILED" in failed.value.message
    assert Verdict.ACCEPTED == verdict(broker, user, "new")
    assert [("issue", "ok"), ("issue", "provider_unreachable")] == codes(done)


def test_a_refused_login(broker: Broker, build: Build, user: str, done: list[RequestDone]) -> None:
    """A wrong admin password is PROVIDER_AUTH, in the broker's words; the password is read again at the next login."""
    passwords = iter(["not-the-password", ADMIN_PASSWORD])
    provider = build(broker.port, password=lambda: next(passwords))
    with pytest.raises(Permanent) as failed:
        provider.list_keys()
    assert failed.value.reason is Reason.PROVIDER_AUTH
    assert "plant: login: Not authorized (code 135)" == failed.value.message
    assert user in {key.id for key in provider.list_keys()}
    assert [("list_keys", "provider_auth"), ("list_keys", "ok")] == codes(done)


@pytest.mark.parametrize(
    ("acls", "said"),
    [
        ((), "reading answers: "),  # the plugin's own defaults refuse the subscription
        (("subscribePattern",), "$CONTROL/dynamic-security/v1: Not authorized (code 135)"),
        (("subscribePattern", "publishClientSend"), "nobody answered: this login may not publish"),
    ],
)
def test_a_login_with_too_few_rights(broker: Broker, build: Build, user: str, acls: tuple[str, ...], said: str) -> None:
    """Told as PROVIDER_AUTH, and before the change: else a login that can't read would change and never know."""
    login = f"login-{secrets.token_hex(4)}"
    broker.client(login, "right", role=None)
    broker.control("createRole", login)
    for acl in acls:
        broker.control("addRoleACL", login, acl, "$CONTROL/#", "allow")
    broker.control("addRoleACL", login, "publishClientReceive", "$CONTROL/#", "deny")
    broker.control("addClientRole", login, login, "1")
    provider = build(broker.port, username=login, password=lambda: "right", timeout=timedelta(seconds=2.5))
    with pytest.raises(Permanent) as failed:
        provider.set_secret(who(user), Secret("new"))
    assert failed.value.reason is Reason.PROVIDER_AUTH
    assert said in failed.value.message
    assert Verdict.ACCEPTED == verdict(broker, user, "old-secret")


def test_a_broker_without_the_plugin(tmp_path: Path, build: Build) -> None:
    """It takes commands and answers none: the message names the plugin."""
    bare = Broker(tmp_path)
    try:
        bare.stop()
        config = tmp_path / "mosquitto.conf"
        text = re.sub(r"(?m)^plugin.*\n", "", config.read_text()).replace("anonymous false", "anonymous true")
        config.write_text(text)
        bare.start()
        with pytest.raises(Permanent) as failed:
            build(bare.port, timeout=timedelta(seconds=2.5)).list_keys()
    finally:
        bare.stop()
    assert failed.value.reason is Reason.PROVIDER_AUTH
    assert "no dynamic security plugin" in failed.value.message


def test_a_broker_that_is_away_and_comes_back(tmp_path: Path, build: Build, done: list[RequestDone]) -> None:
    """Transient while it is away; nothing has to be mended afterwards, and the password is kept by the broker."""
    own = Broker(tmp_path)
    try:
        own.client("meter", "old-secret")
        provider = build(own.port)
        provider.set_secret(who("meter"), Secret("one"))
        own.stop()
        with pytest.raises(Transient) as failed:
            provider.set_secret(who("meter"), Secret("two"))
        assert failed.value.reason is Reason.PROVIDER_UNREACHABLE
        own.start()
        assert Verdict.ACCEPTED == verdict(own, "meter", "one")
        provider.set_secret(who("meter"), Secret("two"))
        assert Verdict.ACCEPTED == verdict(own, "meter", "two")
    finally:
        own.stop()
    assert [("issue", "ok"), ("issue", "provider_unreachable"), ("issue", "ok")] == codes(done)


def test_many_threads(broker: Broker, build: Build, done: list[RequestDone]) -> None:
    """Eight at a time: each client gets its own secret, though all answers go to all of them."""
    users = [f"many-{secrets.token_hex(4)}" for _ in range(16)]
    for name in users:
        broker.client(name, "old-secret")
    provider = build(broker.port)

    def rotate(name: str) -> Secret:
        provider.list_keys()
        return provider.set_secret(who(name), provider.choose()).secret

    with ThreadPoolExecutor(8) as pool:
        set_to = dict(zip(users, pool.map(rotate, users), strict=True))
    assert [Verdict.ACCEPTED] * 16 == [verdict(broker, name, secret.reveal()) for name, secret in set_to.items()]
    assert {("issue", "ok"), ("list_keys", "ok")} == set(codes(done))
    assert 32 == len(done)


def test_nothing_stays_behind(broker: Broker, build: Build, user: str) -> None:
    """No thread, no file, no connection: neither after success nor after a failure."""
    provider = build(broker.port)
    provider.list_keys()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    provider.set_secret(who(user), Secret("new"))
    for away in (who("typo"), who("admin")):
        with pytest.raises(Permanent):
            provider.set_secret(away, Secret("new"))
    with pytest.raises(Permanent):
        build(broker.port, password=lambda: "wrong").list_keys()
    provider.close()
    assert (threads, files) == (threading.active_count(), len(os.listdir("/proc/self/fd")))


# --- whole life, on a real Mosquitto ---------------------------------------------------------------------------------


def test_a_client_is_provisioned(broker: Broker, build: Build) -> None:
    """With its roles, a text name that shows the marker, and the one client id it may have."""
    name, provider = f"made-{secrets.token_hex(4)}", build(broker.port)
    issued = provider.provision(name, {"roles": "reader", "text": "the lifts", "client_id": "lift-7"}, MARKER)
    assert who(name) == issued.identity
    accepted = broker.target(name, issued.secret.reveal())
    assert Verdict.ACCEPTED == MqttProber().probe(replace(accepted, client_id="lift-7")).verdict
    assert Verdict.REFUSED == MqttProber().probe(accepted).verdict
    listed = {key.id: key for key in provider.list_keys()}[name]
    assert (f"the lifts {MARKER}", MARKER) == (listed.name, listed.marker)


def test_provisioning_again_finds_the_client(broker: Broker, build: Build, user: str) -> None:
    """It keeps its roles, gets the ones that it lacks, and a new secret, since nobody has the old one."""
    provider = build(broker.port)
    broker.control("createRole", f"role-{user}")
    broker.control("addRoleACL", f"role-{user}", "subscribePattern", "more/#", "allow")
    for _ in range(2):
        issued = provider.provision(user, {"roles": f"reader, role-{user}"}, MARKER)
        for subscribe in ("data/#", "more/#"):
            target = broker.target(user, issued.secret.reveal(), subscribe)
            assert Verdict.ACCEPTED == MqttProber().probe(target).verdict
    assert Verdict.REFUSED == verdict(broker, user, "old-secret")


@pytest.mark.parametrize(
    ("options", "said"), [({"colour": "red"}, "no such option: colour"), ({"roles": "reader,nope"}, "Role not found")]
)
def test_what_cannot_be_provisioned(broker: Broker, build: Build, options: dict[str, str], said: str) -> None:
    """PROVIDER_REFUSED, and no client is made."""
    name, provider = f"made-{secrets.token_hex(4)}", build(broker.port)
    with pytest.raises(Permanent) as failed:
        provider.provision(name, options, MARKER)
    assert failed.value.reason is Reason.PROVIDER_REFUSED
    assert said in failed.value.message
    assert name not in {key.id for key in provider.list_keys()}


def test_a_disabled_client_is_not_provisioned(broker: Broker, build: Build, user: str) -> None:
    """Somebody has shut it out: KEY_INACTIVE, and its password stays."""
    broker.control("disableClient", user)
    with pytest.raises(Permanent) as failed:
        build(broker.port).provision(user, {}, MARKER)
    assert failed.value.reason is Reason.KEY_INACTIVE
    broker.control("enableClient", user)
    assert Verdict.ACCEPTED == verdict(broker, user, "old-secret")


def test_a_client_is_paused_brought_back_and_deleted(
    broker: Broker, build: Build, user: str, done: list[RequestDone]
) -> None:
    """Each verb may be repeated; gone is success for all but the one that brings a client back."""
    provider = build(broker.port)
    with closing(Link(broker.target(user, "old-secret"), client_id=f"consumer-{user}")) as link:
        session(link, "data/#", time.monotonic() + 5)
        for _ in range(2):
            provider.deactivate(who(user))
            assert Verdict.REFUSED == verdict(broker, user, "old-secret")
        until(lambda: is_gone(link), "the session is ended")
    for _ in range(2):
        provider.reactivate(who(user))
        assert Verdict.ACCEPTED == verdict(broker, user, "old-secret")
    for _ in range(2):
        provider.delete(user)
        assert user not in {key.id for key in provider.list_keys()}
    provider.deactivate(who(user))
    with pytest.raises(Permanent) as failed:
        provider.reactivate(who(user))
    assert failed.value.reason is Reason.KEY_UNKNOWN
    assert ("reactivate", "key_unknown") == codes(done)[-1]


# --- its own admin ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own(broker: Broker) -> str:
    """An admin with the password `first`."""
    name = f"own-{secrets.token_hex(4)}"
    broker.client(name, "first", role="admin")
    return name


def test_its_own_admin_is_rotated(broker: Broker, build: Build, own: str, done: list[RequestDone]) -> None:
    """Mosquitto ends the session instead of answering; the new password is proof; Vault follows, and a way back."""
    vault = {"password": "first"}
    provider = build(broker.port, username=own, password=lambda: vault["password"], password_in_vault=True)
    issued = provider.set_secret(who(own), Secret("second"))
    assert Secret("second") == issued.secret
    assert Verdict.REFUSED == MqttProber().probe(broker.target(own, "first", None)).verdict
    assert Verdict.ACCEPTED == MqttProber().probe(broker.target(own, "second", None)).verdict
    assert own in {key.id for key in provider.list_keys()}  # while the reference still names the old one
    vault["password"] = "second"
    provider.set_secret(who(own), Secret("third"))
    provider.set_secret(who(own), Secret("second"))
    assert own in {key.id for key in provider.list_keys()}
    assert [("issue", "ok"), ("list_keys", "ok"), ("issue", "ok"), ("issue", "ok"), ("list_keys", "ok")] == codes(done)


def test_its_own_admin_is_rotated_again_after_a_restart(broker: Broker, build: Build, own: str) -> None:
    """The process died after the change: the sealed secret, which comes again, is what lets it in."""
    provider = build(broker.port, username=own, password=lambda: "stale", password_in_vault=True)
    with pytest.raises(Permanent):
        provider.list_keys()
    provider.set_secret(who(own), Secret("first"))
    assert own in {key.id for key in provider.list_keys()}


class Picky(ControlDouble):
    """A broker with one admin, that lets in whoever has the password of this moment and nobody else."""

    live = ADMIN_PASSWORD

    def _answer(self, connection: Any, kind: int, body: bytes) -> None:
        if kind >> 4 == 1:
            self.connack = 0 if body.endswith(self.live.encode()) else 0x87
        super()._answer(connection, kind, body)


@pytest.fixture
def picky() -> Iterator[Picky]:
    """Such a broker."""
    with Picky() as served:
        yield served


def test_a_change_that_did_not_happen_is_sent_again(picky: Picky, build: Build) -> None:
    """Cut off before the effect: the old password still lets in, so the command goes out once more."""
    replies = [Reply(cut=True)]
    picky.script = at("setClientPassword", lambda command: replies.pop() if replies else agree(command))
    build(picky.port, password_in_vault=True).set_secret(who("admin"), Secret("new"))
    assert ["getClient", "setClientPassword"] * 2 == picky.names()
    assert [("admin", ADMIN_PASSWORD)] * 2 == picky.logins


def test_a_change_that_happened_is_not_sent_again(picky: Picky, build: Build) -> None:
    """Cut off after the effect: the old password is refused, the new one lets in, and that is all there is to know."""

    def change(command: Command) -> Reply:
        picky.live = command["password"]
        return Reply(cut=True)

    picky.script = at("setClientPassword", change)
    build(picky.port, password_in_vault=True).set_secret(who("admin"), Secret("new"))
    assert ["getClient", "setClientPassword"] == picky.names()
    assert [ADMIN_PASSWORD, ADMIN_PASSWORD, "new"] == [password for _, password in picky.logins]


@pytest.mark.parametrize("after", ["", "somebody else's"])
def test_a_change_of_which_nothing_can_be_known(picky: Picky, build: Build, after: str) -> None:
    """Cut off time and again, or locked out by a third password: an unknown outcome, after three logins at most."""

    def change(_: Command) -> Reply:
        picky.live = after or picky.live
        return Reply(cut=True)

    picky.script = at("setClientPassword", change)
    with pytest.raises(UnknownOutcome):
        build(picky.port, password_in_vault=True).set_secret(who("admin"), Secret("new"))
    assert 3 == len(picky.logins)


# --- faults, by script -----------------------------------------------------------------------------------------------


def at(name: str, reply: Callable[[Command], Reply]) -> Callable[[Command], Reply]:
    """A script that agrees to everything but one command."""
    return lambda command: reply(command) if command["command"] == name else agree(command)


def failed_set(double: ControlDouble, build: Build, seconds: float = 0.9) -> RotatorError:
    """What came of setting a secret that fails."""
    began = time.monotonic()
    with pytest.raises(RotatorError) as failed:
        build(double.port, timeout=timedelta(seconds=seconds)).set_secret(who("meter"), Secret("hush-hush"))
    assert time.monotonic() - began < seconds + 2
    assert "hush" not in f"{failed.value!r} {failed.value} {failed.value.__cause__!r}"
    assert ADMIN_PASSWORD not in f"{failed.value!r} {failed.value} {failed.value.__cause__!r}"
    return failed.value


def test_what_is_sent(double: ControlDouble, build: Build) -> None:
    """QoS 1 both ways; the client is asked for before it is changed; each command has a mark of its own."""
    build(double.port).set_secret(who("meter"), Secret("new"))
    assert [("admin", ADMIN_PASSWORD)] == double.logins
    assert [("SUBSCRIBE", 1), ("PUBLISH", 1), ("PUBLISH", 1)] == double.packets
    marks = [command.pop("correlationData") for command in double.commands]
    assert 2 == len(set(marks))
    assert [
        {"command": "getClient", "username": "meter"},
        {"command": "setClientPassword", "username": "meter", "password": "new"},
    ] == double.commands


@pytest.mark.parametrize(
    "reply",
    [Reply(), Reply(taken=False), Reply(cut=True), Reply(taken=False, cut=True), Reply(said=(b"not json",))],
)
def test_no_answer_to_the_change(double: ControlDouble, build: Build, done: list[RequestDone], reply: Reply) -> None:
    """Once the password went out, silence of any kind is an unknown outcome; it was sent once."""
    double.script = at("setClientPassword", lambda _: reply)
    assert isinstance(failed_set(double, build), UnknownOutcome)
    assert ["getClient", "setClientPassword"] == double.names()
    assert [("issue", "outcome_unknown")] == codes(done)


@pytest.mark.parametrize("reply", [Reply(taken=False), Reply(cut=True), Reply(taken=False, cut=True), Reply()])
def test_no_answer_before_the_change(double: ControlDouble, build: Build, reply: Reply) -> None:
    """Silence at the look before it is Transient, and the password never left.

    The last case: a PUBACK less than a second ago accuses nobody.
    """
    double.script = lambda _: reply
    error = failed_set(double, build)
    assert (Transient, Reason.PROVIDER_UNREACHABLE) == (type(error), error.reason)
    assert ["getClient"] == double.names()


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("answer_first", [False, True])
def test_an_answer_counts_however_it_comes(
    double: ControlDouble, build: Build, cut: bool, taken: bool, answer_first: bool
) -> None:
    """Before the PUBACK, without one, or with the connection's end right behind it."""
    double.script = at(
        "setClientPassword",
        lambda command: Reply(said=(told(command),), taken=taken, answer_first=answer_first, cut=cut),
    )
    assert "new" == build(double.port).set_secret(who("meter"), Secret("new")).secret.reveal()


def test_what_others_are_told(double: ControlDouble, build: Build) -> None:
    """Other admins' answers, also to the same command, and whatever else lies on that topic, are passed over."""

    def reply(command: Command) -> Reply:
        foreign = {**command, "correlationData": "someone-else"}
        noise: tuple[object, ...] = (
            told(foreign, error="Client not found"),
            told({"command": command["command"]}),
            *(b"", b"\xff\xfe", b"[", b"[" * 100_000, b'"text"', b"[1, 2]", b'{"responses": 7}'),
            {"responses": [None, "x", {"command": command["command"], "error": "Unknown command"}]},
        )
        both = [*told(foreign)["responses"], *told(command)["responses"]]
        return Reply(said=(*noise, {"responses": both}))

    double.script = reply
    assert "new" == build(double.port).set_secret(who("meter"), Secret("new")).secret.reveal()


def test_a_late_puback_is_not_the_next_ones(double: ControlDouble) -> None:
    """The first command's PUBACK says nothing about whether the second one was taken."""
    double.script = lambda command: Reply(said=(told(command),), answer_first=True)
    with control("plant", target(double.port), time.monotonic() + 5) as link:
        link.ask({"command": "getClient"}, deadline=time.monotonic() + 5, changes=False)
        double.script = lambda _: Reply(taken=False)
        with pytest.raises(Transient):
            link.ask({"command": "getClient"}, deadline=time.monotonic() + 1.3, changes=False)


def test_a_broker_that_takes_a_command_and_leaves(double: ControlDouble, build: Build) -> None:
    """However long it was silent before: a broker that stops accuses no login."""
    leave = threading.Event()
    double.script = lambda _: Reply(hold=leave, cut=True)
    threading.Timer(1.2, leave.set).start()
    error = failed_set(double, build, seconds=5)
    assert (Transient, Reason.PROVIDER_UNREACHABLE) == (type(error), error.reason)


def test_what_is_not_sent_had_no_effect(double: ControlDouble) -> None:
    """After the deadline, or on a connection that is gone, a change is refused as Transient and never leaves."""
    double.script = at("getClient", lambda _: Reply(cut=True))
    change = {"command": "setClientPassword", "username": "meter", "password": "new"}
    with control("plant", target(double.port), time.monotonic() + 5) as link:
        with pytest.raises(Transient):
            link.ask(change, deadline=time.monotonic(), changes=True)
        with pytest.raises(Transient):
            link.ask({"command": "getClient"}, deadline=time.monotonic() + 5, changes=False)
        with pytest.raises(Transient):
            link.ask(change, deadline=time.monotonic() + 5, changes=True)
    assert ["getClient"] == double.names()


@pytest.mark.parametrize(("changes", "kind"), [(True, UnknownOutcome), (False, Transient)])
def test_sending_fails(
    double: ControlDouble, monkeypatch: pytest.MonkeyPatch, changes: bool, kind: type[RotatorError]
) -> None:
    """Part of a command that could not be sent whole may be a whole one to the broker."""

    def publish(*_: object, **__: object) -> None:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(paho.Client, "publish", publish)
    with (
        control("plant", target(double.port), time.monotonic() + 5) as link,
        pytest.raises(RotatorError) as failed,
    ):
        link.ask({"command": "anything"}, deadline=time.monotonic() + 5, changes=changes)
    assert kind is type(failed.value)


def test_no_time_is_left_for_the_change(double: ControlDouble, build: Build) -> None:
    """When the look has used up the time, the password is not sent: after the deadline nothing may change."""
    late = threading.Event()
    double.script = at("getClient", lambda command: Reply(said=(told(command),), after=late))
    threading.Timer(1.1, late.set).start()
    error = failed_set(double, build, seconds=1.0)
    assert (Transient, Reason.PROVIDER_UNREACHABLE) == (type(error), error.reason)
    until(late.is_set, "the look is answered")
    assert ["getClient"] == double.names()


def test_a_fault_inside_the_plugin(double: ControlDouble, build: Build) -> None:
    """`Internal error` leaves open what became of the password."""
    double.script = at("setClientPassword", lambda command: Reply(said=(told(command, error="Internal error"),)))
    assert isinstance(failed_set(double, build), UnknownOutcome)


@pytest.mark.parametrize("error", ["you sent hush-hush", {"said": "hush-hush"}, "x" * 1000, "two\nlines", 7, ""])
def test_errors_of_any_kind(double: ControlDouble, build: Build, error: object) -> None:
    """Whatever a broker's error holds, it is a refusal, on one short line that never shows the password."""
    double.script = at("setClientPassword", lambda command: Reply(said=(told(command, error=error),)))
    failed = failed_set(double, build)
    assert (Permanent, Reason.PROVIDER_REFUSED) == (type(failed), failed.reason)
    assert len(failed.message) < 300
    assert 1 == len(failed.message.splitlines())


@pytest.mark.parametrize("code", [0x80, 0x88, 0x89, 0x97])
def test_a_broker_that_lets_nobody_in(double: ControlDouble, build: Build, code: int) -> None:
    """Only 0x86 and 0x87 speak about the login; anything else is worth another try."""
    double.connack = code
    error = failed_set(double, build)
    assert (Transient, Reason.PROVIDER_UNREACHABLE) == (type(error), error.reason)
    assert [] == double.commands


def test_nobody_listens(build: Build, done: list[RequestDone]) -> None:
    """No broker at all, and a host that is none."""
    for port, host in ((free_port(), "127.0.0.1"), (1, "no such host")):
        with pytest.raises(Transient) as failed:
            build(port, host=host).list_keys()
        assert failed.value.reason is Reason.PROVIDER_UNREACHABLE
        assert failed.value.message.startswith("plant: ")
    assert [("list_keys", "provider_unreachable")] * 2 == codes(done)


def test_an_admin_password_that_is_not_there(double: ControlDouble, build: Build, done: list[RequestDone]) -> None:
    """The reference's own error comes through, nobody is asked, and it is counted."""

    def missing() -> str:
        raise Permanent("file secrets/admin: not found", reason=Reason.SECRET_REFERENCE)

    with pytest.raises(Permanent) as failed:
        build(double.port, password=missing).set_secret(who("meter"), Secret("new"))
    assert failed.value.reason is Reason.SECRET_REFERENCE
    assert [] == double.logins
    assert [("issue", "secret_reference")] == codes(done)


@pytest.mark.parametrize(
    ("name", "kind", "reason", "changes"),
    [
        ("Not authorized", Permanent, Reason.PROVIDER_AUTH, True),
        ("Not authorized", Permanent, Reason.PROVIDER_AUTH, False),
        ("Quota exceeded", UnknownOutcome, Reason.OUTCOME_UNKNOWN, True),
        ("Quota exceeded", Transient, Reason.PROVIDER_UNAVAILABLE, False),
    ],
)
def test_a_puback_that_refuses(
    double: ControlDouble, name: str, kind: type[RotatorError], reason: Reason, changes: bool
) -> None:
    """A code of MQTT 5 ends the wait at once; 0x87 says that nothing was done."""

    class Refused(ControlLink):
        def _taken(self, client: Any, data: Any, message: int, code: Any, properties: Any) -> None:
            super()._taken(client, data, message, ReasonCode(PacketTypes.PUBACK, name), properties)

    double.script = lambda _: Reply()
    began = time.monotonic()
    with closing(Refused("plant", target(double.port))) as link:
        session(link, ANSWERS, began + 5)
        with pytest.raises(RotatorError) as failed:
            link.ask({"command": "anything"}, deadline=began + 5, changes=changes)
    assert (kind, reason) == (type(failed.value), failed.value.reason)
    assert f"{name} (code " in failed.value.message
    assert time.monotonic() - began < 2


# --- the list, by script ---------------------------------------------------------------------------------------------


def listing(*pages: tuple[int, list[object]]) -> Callable[[Command], Reply]:
    """Answers listClients with one (totalCount, clients) after the other, the last one for ever."""
    left = list(pages)

    def reply(command: Command) -> Reply:
        total, clients = left.pop(0) if len(left) > 1 else left[0]
        return Reply(said=(told(command, data={"totalCount": total, "clients": clients}),))

    return reply


def named(*names: str) -> list[object]:
    """Clients as the verbose list has them."""
    return [{"username": name, "roles": [], "groups": []} for name in names]


def test_clients_that_move_between_pages(double: ControlDouble, build: Build) -> None:
    """One deleted behind us would hide another: the list is read again until it is whole."""
    double.script = listing((4, named("a", "b")), (3, named("d")), (3, named("b", "c")), (3, named("d")))
    assert ["b", "c", "d"] == [key.id for key in build(double.port).list_keys()]
    assert [0, 2, 0, 2] == [command["offset"] for command in double.commands]


def test_a_list_that_never_holds_still(double: ControlDouble, build: Build, done: list[RequestDone]) -> None:
    """It is given up, as Transient: half a list would call keys unknown that are there."""
    double.script = listing((3, named("a", "b")), (3, []), (3, named("a")), (3, []), (3, named("c")), (3, []))
    with pytest.raises(Transient) as failed:
        build(double.port).list_keys()
    assert failed.value.reason is Reason.PROVIDER_UNAVAILABLE
    assert 6 == len(double.commands)
    assert [("list_keys", "provider_unavailable")] == codes(done)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data": None},
        {"data": {"clients": []}},
        {"data": {"totalCount": "1", "clients": named("a")}},
        {"data": {"totalCount": 1, "clients": {"a": {}}}},
        {"data": {"totalCount": 1, "clients": ["a"]}},
        {"data": {"totalCount": 1, "clients": [{"name": "a"}]}},
        {"data": {"totalCount": 2, "clients": named("a", "a")}},
    ],
)
def test_answers_that_are_no_list(double: ControlDouble, build: Build, fields: dict[str, object]) -> None:
    """PROVIDER_ANSWER_UNREADABLE, never a shorter list."""
    double.script = lambda command: Reply(said=(told(command, **fields),))
    with pytest.raises(Transient) as failed:
        build(double.port).list_keys()
    assert failed.value.reason is Reason.PROVIDER_ANSWER_UNREADABLE


def test_odd_fields_of_a_client(double: ControlDouble, build: Build) -> None:
    """What is not as documented is taken for absent; a client without anything but its name is a key."""
    odd: list[object] = [{"username": "a", "clientid": None, "textname": 7, "disabled": "no"}]
    double.script = listing((1, odd))
    assert [UpstreamKey(id="a", identity=who("a"))] == build(double.port).list_keys()


def test_no_secret_in_any_log(
    broker: Broker, build: Build, user: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither password is logged or printed at any level, whatever happens."""
    caplog.set_level(logging.DEBUG)
    provider = build(broker.port)
    secret = provider.choose()
    issued = provider.set_secret(who(user), secret)
    provider.list_keys()
    with pytest.raises(Permanent):
        provider.set_secret(who("typo"), secret)
    shown = caplog.text + "".join(capfd.readouterr()) + f"{issued!r} {provider!r} {vars(provider)!r}"
    assert secret.reveal() not in shown
    assert ADMIN_PASSWORD not in shown
