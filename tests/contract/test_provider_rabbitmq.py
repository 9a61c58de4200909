"""The RabbitMQ provider on Debian's RabbitMQ, and on a scripted endpoint for answers that the real one rarely gives."""

from __future__ import annotations

import base64
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from contract.graphql_double import Scripted
from contract.rest_double import RestCall, RestDouble
from integration.broker_fixture import until
from provider_site import built
from rotator.clock import SystemClock
from rotator.errors import Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Identity, ProbeTarget, RequestDone, Secret, Strategy, Verdict
from rotator.mqtt import Link, session
from rotator.ports import Choosing, Deactivating, Deleting, Evicting, Provisioning
from rotator.providers import make_client
from rotator.providers.http import Peer
from rotator.providers.rabbitmq import PERMISSIONS, Rabbitmq, RabbitmqSettings
from rotator.reasons import Reason
from rotator.sandbox.rabbitmq import RabbitmqBroker
from rotator.verify import MqttProber

MARKER = "rotator-0123456789ab-1"
ADMIN_PASSWORD = "admin-password"
Build = Callable[..., Rabbitmq]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitmqBroker]:
    """A RabbitMQ that these tests share: each makes users of its own."""
    with RabbitmqBroker(tmp_path_factory.mktemp("rabbitmq")) as running:
        yield running


@pytest.fixture
def user(broker: RabbitmqBroker) -> str:
    """A user with two tags, a limit and all permissions, and the password `old-secret`."""
    name = f"meter-{secrets.token_hex(4)}"
    broker.add_user(name, "old-secret", tags="monitoring,site-7")
    broker.call("PUT", f"user-limits/{name}/max-connections", {"value": 7})
    broker.call("PUT", f"topic-permissions/%2F/{name}", {"exchange": "amq.topic", "write": "^data", "read": "^data"})
    return name


@pytest.fixture
def double() -> Iterator[RestDouble]:
    """A scripted endpoint with one user, which agrees to every change."""
    with RestDouble() as served:
        served.script = {"GET": [shown()], "PUT": [Scripted(body=b"", status=204)]}
        yield served


@pytest.fixture
def done() -> list[RequestDone]:
    """What `on_request` was told."""
    return []


@pytest.fixture
def build(done: list[RequestDone]) -> Iterator[Build]:
    """Makes providers and closes them."""
    made: list[Rabbitmq] = []

    def make(where: RabbitmqBroker | RestDouble, **more: Any) -> Rabbitmq:
        if isinstance(where, RabbitmqBroker):
            more = {"username": where.admin_username, "password": lambda: where.admin_password, **more}
        more = {"username": "admin", "password": lambda: ADMIN_PASSWORD, **more}
        peer = Peer("rabbit", client=make_client(), clock=SystemClock(), on_request=done.append)
        made.append(Rabbitmq(peer, url=where.url, issue_deadline=timedelta(seconds=10), **more))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


def shown(name: str = "meter", tags: object = ("monitoring",)) -> Scripted:
    """A user as the API shows it."""
    return Scripted(body={"name": name, "tags": list(tags) if isinstance(tags, tuple) else tags})


def refused(status: int, error: str, reason: str) -> Scripted:
    """A refusal as the API writes it."""
    return Scripted(body={"error": error, "reason": reason}, status=status)


def who(username: str) -> Identity:
    """A user that is free in its client id."""
    return Identity(id=username, username=username)


def target(broker: RabbitmqBroker, username: str, password: str) -> ProbeTarget:
    """A login at the MQTT port."""
    return ProbeTarget(
        host=broker.host, port=broker.port, username=username, password=Secret(password), subscribe="data/#"
    )


def verdict(broker: RabbitmqBroker, username: str, password: str) -> Verdict:
    """What the broker says to a password, and to `data/#`."""
    return MqttProber().probe(target(broker, username, password)).verdict


def belongings(broker: RabbitmqBroker, username: str) -> tuple[object, ...]:
    """All that a new password must not touch."""
    kept = {name: value for name, value in broker.user(username).items() if name != "password_hash"}
    return kept, broker.permissions(username), broker.call("GET", f"users/{username}/topic-permissions")


def is_gone(link: Link) -> bool:
    """Whether the broker has ended a connection."""
    try:
        link.turn(0.1)
    except Transient:
        return True
    return False


def codes(done: list[RequestDone]) -> list[tuple[str, str]]:
    """Operation and code of each request."""
    return [(each.operation, each.code) for each in done]


# --- on a real RabbitMQ -----------------------------------------------------------------------------------------------


def test_the_registry_builds_a_provider_whose_caller_chooses(broker: RabbitmqBroker) -> None:
    """`kind: rabbitmq` with its section of the configuration; what it can do, it says."""
    section = {"url": broker.url + "/", "username": broker.admin_username, "password": {"env": "ADMIN"}}
    provider = built("rabbitmq", "rabbit", section, secrets={"ADMIN": broker.admin_password})
    assert isinstance(provider, Choosing)
    assert isinstance(provider, Deleting)
    assert isinstance(provider, Evicting)
    assert isinstance(provider, Provisioning)
    assert not isinstance(provider, Deactivating)
    abilities = provider.abilities
    assert (Strategy.CHOSEN, True, False) == (abilities.strategy, abilities.kills_old, abilities.expires)
    assert (False, True, True) == (abilities.pauses, abilities.creates, abilities.deletes)
    assert (True, False) == (abilities.evicts, abilities.checks)
    assert ("rabbit", timedelta(seconds=30)) == (provider.name, provider.issue_deadline)
    assert broker.admin_username in {key.id for key in provider.list_keys()}
    provider.close()
    with pytest.raises(Transient):
        provider.list_keys()


def test_a_new_secret(broker: RabbitmqBroker, build: Build, user: str, done: list[RequestDone]) -> None:
    """It lets the user in, the old one does not; tags, limits and permissions are what they were."""
    provider, before = build(broker), belongings(broker, user)
    secret = provider.choose()
    issued = provider.set_secret(who(user), secret)
    assert (who(user), secret, None, None) == (issued.identity, issued.secret, issued.issued_at, issued.expires_at)
    assert Verdict.ACCEPTED == verdict(broker, user, secret.reveal())
    assert Verdict.REFUSED == verdict(broker, user, "old-secret")
    assert before == belongings(broker, user)
    assert {"tags", "limits"} <= before[0].keys()  # type: ignore[attr-defined]
    assert [("get_user", "200"), ("issue", "204")] == codes(done)


def test_it_may_be_repeated(broker: RabbitmqBroker, build: Build, user: str) -> None:
    """The same secret again is success, and the old one after it as well (a rollback)."""
    provider = build(broker)
    for password in ("one", "one", 'ü€😀 "quoted" \\ {x}', "old-secret"):
        provider.set_secret(who(user), Secret(password))
        assert Verdict.ACCEPTED == verdict(broker, user, password)


@pytest.mark.parametrize("name", ["with space/and%2Fslash", "ünïcode?#&=+", "a.b:c"])
def test_names_of_any_kind(broker: RabbitmqBroker, build: Build, name: str) -> None:
    """Whatever a username holds, it stays one part of the path."""
    broker.add_user(name, "old-secret")
    provider = build(broker)
    provider.set_secret(who(name), Secret("new"))
    assert name in {key.id for key in provider.list_keys()}
    assert 0 == provider.evict(who(name), SystemClock().now())
    provider.delete(name)
    assert name not in {key.id for key in provider.list_keys()}


def test_an_unknown_user_is_not_made(broker: RabbitmqBroker, build: Build) -> None:
    """KEY_UNKNOWN, and the list is as before: RabbitMQ itself would make a user of a typo."""
    provider = build(broker)
    before = provider.list_keys()
    with pytest.raises(Permanent) as caught:
        provider.set_secret(who("typo"), Secret("hush"))
    assert (Reason.KEY_UNKNOWN, "rabbit: issue: there is no user 'typo'") == (caught.value.reason, caught.value.message)
    assert before == provider.list_keys()


def test_old_sessions_stay_until_they_are_evicted(broker: RabbitmqBroker, build: Build, user: str) -> None:
    """A new password closes nothing; `evict` closes what began before it, and leaves the others alone."""
    provider, clock = build(broker), SystemClock()
    with (
        closing(Link(target(broker, user, "old-secret"), client_id=f"old-{user}")) as old,
        closing(Link(target(broker, user, "new"), client_id=f"new-{user}")) as new,
    ):
        session(old, "data/#", time.monotonic() + 5)
        provider.set_secret(who(user), Secret("new"))
        issued = clock.now()
        assert not is_gone(old)
        session(new, "data/#", time.monotonic() + 5)
        with pytest.raises(Transient) as caught:
            provider.evict(who(user), issued)  # the broker does not know yet how old they are
        assert (Reason.OLD_SESSIONS, timedelta(seconds=5)) == (caught.value.reason, caught.value.retry_after)
        ended: list[int] = []
        until(lambda: told(provider, user, issued, ended), "the broker knows the times of both", seconds=20)
        assert 1 == sum(ended)
        until(lambda: is_gone(old), "the old session is ended")
        assert not is_gone(new)
        assert 0 == provider.evict(who(user), issued)


def told(provider: Rabbitmq, user: str, before: Any, ended: list[int]) -> bool:
    """Whether sessions could be told apart by now; notes how many were ended."""
    try:
        ended.append(provider.evict(who(user), before))
    except Transient:
        return False
    return True


def test_nobody_elses_sessions_are_evicted(broker: RabbitmqBroker, build: Build, user: str) -> None:
    """Not even where a name would lead to the list of all."""
    provider, later = build(broker), SystemClock().now() + timedelta(hours=1)
    with closing(Link(target(broker, user, "old-secret"), client_id=f"own-{user}")) as link:
        session(link, "data/#", time.monotonic() + 5)
        until(lambda: broker.call("GET", "connections"), "the broker knows when it began", seconds=20)
        assert 0 == provider.evict(who("nobody"), later)
        with pytest.raises(Permanent) as caught:
            provider.evict(who(".."), later)
        assert Reason.KEY_UNKNOWN is caught.value.reason
        assert not is_gone(link)
        until(lambda: provider.evict(who(user), later) == 1, "its own name ends it")


def test_a_user_is_provisioned(broker: RabbitmqBroker, build: Build, done: list[RequestDone]) -> None:
    """With tags, and with what an MQTT client needs: it may subscribe and publish, and receives what it published."""
    name = f"made-{secrets.token_hex(4)}"
    issued = build(broker).provision(name, {"tags": "site-7,monitoring"}, MARKER)
    assert who(name) == issued.identity
    heard: list[bytes] = []
    with closing(
        Link(
            target(broker, name, issued.secret.reveal()),
            client_id=name,
            on_message=lambda topic, payload, retained: heard.append(payload),
        )
    ) as link:
        session(link, "data/#", time.monotonic() + 5)
        publish(broker, name, issued.secret.reveal(), "data/7", b"hello")
        deadline = time.monotonic() + 5
        while not heard and time.monotonic() < deadline:
            link.turn(0.1)
    assert [b"hello"] == heard
    assert ["site-7", "monitoring"] == broker.user(name)["tags"]
    assert [{"user": name, "vhost": "/", **PERMISSIONS}] == broker.permissions(name)
    assert ["get_vhost", "get_user", "create", "get_permissions", "set_permissions"] == [
        each[0] for each in codes(done)
    ]


def publish(broker: RabbitmqBroker, username: str, password: str, topic: str, payload: bytes) -> None:
    """One message with QoS 1, which the broker has taken when this returns."""
    client = paho.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
    client.username_pw_set(username, password)
    client.connect(broker.host, broker.port)
    client.loop_start()
    try:
        client.publish(topic, payload, qos=1).wait_for_publish(5)
    finally:
        client.disconnect()
        client.loop_stop()


def test_provisioning_again_finds_what_is_there(broker: RabbitmqBroker, build: Build, user: str) -> None:
    """Tags, limits and permissions stay; the secret, which nobody has, is a new one; what is asked for is changed."""
    provider, before = build(broker), belongings(broker, user)
    first = provider.provision(user, {}, MARKER)
    assert before == belongings(broker, user)
    assert Verdict.ACCEPTED == verdict(broker, user, first.secret.reveal())
    second = provider.provision(user, {"read": "^only-this$", "tags": "other"}, MARKER)
    assert first.secret != second.secret
    assert ["other"] == broker.user(user)["tags"]
    assert [("^only-this$", ".*")] == [(each["read"], each["write"]) for each in broker.permissions(user)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("maybe", {"colour": "red"}),
        ("maybe", {"vhost": "no such vhost"}),
        ("", {}),
        ("..", {}),
        ("sandbox-admin", {}),
    ],
)
def test_what_cannot_be_provisioned(
    broker: RabbitmqBroker, build: Build, name: str, options: Mapping[str, str]
) -> None:
    """PROVIDER_REFUSED, and nothing is made."""
    provider = build(broker)
    before = provider.list_keys()
    with pytest.raises(Permanent) as caught:
        provider.provision(name, options, MARKER)
    assert Reason.PROVIDER_REFUSED is caught.value.reason
    assert before == provider.list_keys()


def test_a_user_is_deleted(broker: RabbitmqBroker, build: Build, user: str) -> None:
    """Twice is success; the daemon's own login stays."""
    provider = build(broker)
    for _ in range(2):
        provider.delete(user)
    assert Verdict.REFUSED == verdict(broker, user, "old-secret")
    with pytest.raises(Permanent) as caught:
        provider.delete(broker.admin_username)
    assert Reason.PROVIDER_REFUSED is caught.value.reason
    assert broker.admin_username in {key.id for key in provider.list_keys()}


def test_how_the_broker_refuses(broker: RabbitmqBroker, user: str) -> None:
    """MQTT 3.1.1: code 4 (134) for a bad login, 5 (135) for a virtual host that it may not enter; both are refusals."""
    broker.add_user(f"outside-{user}", "right", permissions=None)
    logins = [(user, "wrong"), ("no-such-user", "x"), (f"outside-{user}", "right")]
    probed = [MqttProber().probe(target(broker, *login)) for login in logins]
    assert [Verdict.REFUSED] * 3 == [each.verdict for each in probed]
    assert ["134", "134", "135"] == [each.detail[-4:-1] for each in probed]


@pytest.mark.parametrize(
    ("tags", "password", "words"),
    [
        ("administrator", "wrong", "Login failed"),
        ("monitoring", "right", "Not administrator"),
        ("", "right", "Not man"),
    ],
)
def test_a_login_that_may_not(broker: RabbitmqBroker, build: Build, tags: str, password: str, words: str) -> None:
    """PROVIDER_AUTH in the API's words."""
    login = f"login-{secrets.token_hex(4)}"
    broker.add_user(login, "right", tags=tags)
    with pytest.raises(Permanent) as caught:
        build(broker, username=login, password=lambda: password).list_keys()
    assert Reason.PROVIDER_AUTH is caught.value.reason
    assert words in caught.value.message


def test_many_threads(broker: RabbitmqBroker, build: Build) -> None:
    """Eight at a time: each user gets its own secret."""
    users = [f"many-{secrets.token_hex(4)}" for _ in range(16)]
    for name in users:
        broker.add_user(name, "old-secret")
    provider = build(broker)
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(lambda name: provider.set_secret(who(name), provider.choose()).secret.reveal(), users)
        set_to = dict(zip(users, made, strict=True))
    assert [Verdict.ACCEPTED] * 16 == [verdict(broker, name, secret) for name, secret in set_to.items()]


# --- its own login ----------------------------------------------------------------------------------------------------


def test_its_own_login_is_rotated_where_vault_holds_it(broker: RabbitmqBroker, build: Build) -> None:
    """The reference goes stale, and comes to hold the new one with the promote: both times the provider gets in."""
    own = f"own-{secrets.token_hex(4)}"
    broker.add_user(own, "first", tags="administrator")
    vault = {"password": "first"}
    provider = build(broker, username=own, password=lambda: vault["password"], password_in_vault=True)
    provider.set_secret(who(own), Secret("second"))
    assert own in {key.id for key in provider.list_keys()}
    vault["password"] = "second"
    assert own in {key.id for key in provider.list_keys()}
    provider.set_secret(who(own), Secret("third"))
    provider.set_secret(who(own), Secret("second"))  # the way back
    assert own in {key.id for key in provider.list_keys()}
    assert Verdict.ACCEPTED == verdict(broker, own, "second")


def test_its_own_login_is_rotated_again_after_a_restart(broker: RabbitmqBroker, build: Build) -> None:
    """The process died after the change: the sealed secret, which comes again, is what lets it in."""
    own = f"own-{secrets.token_hex(4)}"
    broker.add_user(own, "second", tags="administrator")  # as the change left it, while Vault has the first one
    provider = build(broker, username=own, password=lambda: "first", password_in_vault=True)
    with pytest.raises(Permanent):
        provider.list_keys()
    provider.set_secret(who(own), Secret("second"))
    assert own in {key.id for key in provider.list_keys()}


def test_its_own_login_is_not_rotated_from_a_file(
    broker: RabbitmqBroker, build: Build, done: list[RequestDone]
) -> None:
    """The file would name a dead password: refused before anything is sent."""
    with pytest.raises(Permanent) as caught:
        build(broker).set_secret(who(broker.admin_username), Secret("hush"))
    assert Reason.PROVIDER_REFUSED is caught.value.reason
    assert "{vault: PATH#FIELD}" in caught.value.message
    assert [] == done


def test_an_answer_lost_while_its_own_login_is_changed(double: RestDouble, build: Build) -> None:
    """The next call gets in with whichever of the two the broker has."""
    live = {"password": ADMIN_PASSWORD}

    def change(call: RestCall) -> Scripted:
        assert isinstance(call.body, dict)
        live["password"] = call.body["password"]
        return Scripted(body=b"<html>", status=502)

    def look(call: RestCall) -> Scripted:
        right = call.authorization == "Basic " + base64.b64encode(f"admin:{live['password']}".encode()).decode()
        return shown("admin", ("administrator",)) if right else refused(401, "not_authorized", "Login failed")

    double.script = {"GET": [look], "PUT": [change]}
    provider = build(double, password_in_vault=True)
    with pytest.raises(UnknownOutcome):
        provider.set_secret(who("admin"), Secret("new"))
    double.script["PUT"] = [Scripted(body=b"", status=204)]
    provider.set_secret(who("admin"), Secret("new"))
    assert ["GET", "PUT", "GET", "GET", "PUT"] == double.methods()
    live["password"] = ADMIN_PASSWORD  # as if the change had never happened
    provider.set_secret(who("admin"), Secret("new"))


# --- by script --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [[], ["monitoring", "site-7"], "", "monitoring,site-7"])
def test_tags_go_back_as_they_came(double: RestDouble, build: Build, tags: object) -> None:
    """A list in 3.10, comma text before it: the API overwrites what a change does not name."""
    double.script["GET"] = [shown(tags=tags)]
    build(double).set_secret(who("meter"), Secret("new"))
    assert [
        ("GET", "/api/users/meter?columns=name%2Ctags", None),
        ("PUT", "/api/users/meter", {"password": "new", "tags": tags}),
    ] == [(call.method, call.path, call.body) for call in double.calls]


def test_the_list_is_asked_for_without_hashes(double: RestDouble, build: Build) -> None:
    """Everybody's password hash stands in the whole list."""
    double.script["GET"] = [Scripted(body=[{"name": "a", "tags": []}])]
    assert ["a"] == [key.id for key in build(double).list_keys()]
    assert ["/api/users?columns=name%2Ctags"] == [call.path for call in double.calls]


def test_a_user_that_was_deleted_meanwhile_does_not_come_back(double: RestDouble, build: Build) -> None:
    """201 says that the change made a user: it is deleted again."""
    double.script["PUT"] = [Scripted(body=b"", status=201)]
    double.script["DELETE"] = [Scripted(body=b"", status=204)]
    with pytest.raises(Permanent) as caught:
        build(double).set_secret(who("meter"), Secret("new"))
    assert Reason.KEY_UNKNOWN is caught.value.reason
    assert ["GET", "PUT", "DELETE"] == double.methods()


CUT_SHORT = {"Content-Length": "99", "Connection": "close"}
ANSWERS: list[tuple[Scripted, type[RotatorError], Reason]] = [
    (refused(400, "bad_request", "password is too short"), Permanent, Reason.PROVIDER_REFUSED),
    (refused(401, "not_authorised", "Not administrator user"), Permanent, Reason.PROVIDER_AUTH),
    (refused(404, "Object Not Found", "Not Found"), Permanent, Reason.PROVIDER_REFUSED),
    (Scripted(status=429, body=b"slow down", headers={"Retry-After": "7"}), Transient, Reason.PROVIDER_RATE_LIMITED),
    (Scripted(status=500, body={"error": "internal"}), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
    (Scripted(status=503, body=b"<html>"), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
    (Scripted(status=200, body=b"<html>Please log in"), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
    (Scripted(status=400, body=b"{", headers=CUT_SHORT), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
]


@pytest.mark.parametrize(("answer", "kind", "reason"), ANSWERS)
def test_what_an_answer_to_the_change_means(
    double: RestDouble, build: Build, answer: Scripted, kind: type[RotatorError], reason: Reason
) -> None:
    """Only what the broker refuses at the door had no effect."""
    double.script["PUT"] = [answer]
    with pytest.raises(RotatorError) as caught:
        build(double).set_secret(who("meter"), Secret("hush-hush"))
    assert (kind, reason) == (type(caught.value), caught.value.reason)
    assert "hush" not in repr(caught.value)
    assert 1 == double.methods().count("PUT")


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"{", b"\xff", {}, {"name": "meter"}, {"name": "meter", "tags": 7}, {"name": "x", "tags": []}, []],
)
def test_a_look_that_is_none_changes_nothing(double: RestDouble, build: Build, body: object) -> None:
    """PROVIDER_ANSWER_UNREADABLE before the change: without its tags, a user would lose them."""
    double.script["GET"] = [Scripted(body=body)]
    with pytest.raises(Transient) as caught:
        build(double).set_secret(who("meter"), Secret("new"))
    assert Reason.PROVIDER_ANSWER_UNREADABLE is caught.value.reason
    assert ["GET"] == double.methods()


def test_a_gateways_404_accuses_no_user(double: RestDouble, build: Build) -> None:
    """Only the broker's own words mean that there is no such user."""
    double.script["GET"] = [Scripted(status=404, body=b"<html>no such site")]
    with pytest.raises(Permanent) as caught:
        build(double).set_secret(who("meter"), Secret("new"))
    assert Reason.PROVIDER_REFUSED is caught.value.reason


@pytest.mark.parametrize("body", [b"<html>", {}, [7], [{"tags": []}], [{"name": 7}], "users", None])
def test_answers_that_are_no_list(double: RestDouble, build: Build, body: object) -> None:
    """PROVIDER_ANSWER_UNREADABLE, never a shorter list."""
    double.script["GET"] = [Scripted(body=body)]
    with pytest.raises(Transient) as caught:
        build(double).list_keys()
    assert Reason.PROVIDER_ANSWER_UNREADABLE is caught.value.reason


@pytest.mark.parametrize("odd", [None, True, "soon", 1e300, float("nan"), -(10**20), [], {}])
def test_sessions_without_a_time(double: RestDouble, build: Build, odd: object) -> None:
    """Nothing is closed of whose age nothing is known; with statistics switched off it never is."""
    connection = {"name": "1 -> 2", "user": "meter", "connected_at": odd}
    double.script["GET"] = [
        *(Scripted(body=[connection]) for _ in range(2)),
        Scripted(body={"disable_stats": True}),
    ]
    with pytest.raises(Permanent) as caught:
        build(double).evict(who("meter"), SystemClock().now())
    assert Reason.PROVIDER_UNABLE is caught.value.reason
    assert ["GET"] * 3 == double.methods()


def test_a_session_that_is_gone_by_then(double: RestDouble, build: Build) -> None:
    """It is not counted, and no failure."""
    connection = {"name": "1 -> 2", "user": "meter", "connected_at": 1}
    double.script = {"GET": [Scripted(body=[connection])], "DELETE": [refused(404, "Object Not Found", "Not Found")]}
    assert 0 == build(double).evict(who("meter"), SystemClock().now())
    assert "/api/connections/1%20-%3E%202" == double.calls[-1].path


def test_young_sessions_need_no_time(double: RestDouble, build: Build) -> None:
    """What the broker's statistics don't know yet began after a moment that is long past."""
    double.script["GET"] = [
        Scripted(body=[{"name": "1 -> 2", "user": "meter"}]),
        Scripted(body=[]),
        Scripted(body={"disable_stats": False}),
    ]
    assert 0 == build(double).evict(who("meter"), SystemClock().now() - timedelta(minutes=2))


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("http://rabbit.example", "http://rabbit.example:15672"),
        ("https://rabbit.example/prefix", "https://rabbit.example:15671/prefix"),
        ("https://rabbit.example:443", "https://rabbit.example:443"),
        ("http://[::1]", "http://[::1]:15672"),
    ],
)
def test_a_url_without_a_port_means_the_plugins_own(url: str, whole: str) -> None:
    """15672, and 15671 with TLS, as the management plugin listens unless it is told otherwise."""
    section: dict[str, Any] = {"kind": "rabbitmq", "url": url, "username": "a", "password": {"env": "A"}}
    assert whole == RabbitmqSettings(**section).url


@pytest.mark.parametrize(("id", "secret"), [("meter", ""), ("meter", "half\ud800"), ("", "x"), ("..", "x"), (".", "x")])
def test_what_would_do_harm_is_not_sent(double: RestDouble, build: Build, id: str, secret: str) -> None:
    """An empty password lets nobody in, and a name of dots is another address."""
    with pytest.raises(Permanent) as caught:
        build(double).set_secret(who(id), Secret(secret))
    assert Reason.PROVIDER_REFUSED is caught.value.reason
    assert [] == double.calls


def test_no_secret_in_any_log(double: RestDouble, build: Build, caplog: pytest.LogCaptureFixture) -> None:
    """Neither password is logged at any level, nor repeated by an error that holds it."""
    caplog.set_level(logging.DEBUG)
    provider = build(double)
    issued = provider.set_secret(who("meter"), Secret("hush-hush-new"))
    sent = base64.b64encode(f"admin:{ADMIN_PASSWORD}".encode()).decode()
    double.script["PUT"] = [refused(400, "hush-hush-new", f"{ADMIN_PASSWORD} {sent}")]
    with pytest.raises(Permanent) as caught:
        provider.set_secret(who("meter"), Secret("hush-hush-new"))
    text = f"{caplog.text} {caught.value!r} {issued!r} {provider!r} {threading.enumerate()!r}"
    assert [] == [each for each in ("hush", ADMIN_PASSWORD, sent) if each in text]
