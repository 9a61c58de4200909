"""The platforms of `rotator demo --platform NAME`: how each is started, its section, and the keys made there by hand.

A simulator tells the broker inside this process whom to let in; Mosquitto and RabbitMQ are brokers themselves. Keys of
platforms that name no expiry are rotated by age, the one after the other.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from rotator.sandbox import mosquitto, rabbitmq
from rotator.sandbox.amqtt_broker import AmqttBroker
from rotator.sandbox.demo_config import DemoKey, put_secret
from rotator.sandbox.demo_generic import HALTIAN_BY_GRAPHQL, ISHARERADIO_BY_HTTP
from rotator.sandbox.haltian import HaltianPlatform
from rotator.sandbox.iotistica import IotisticaPlatform
from rotator.sandbox.ishareradio import IShareRadioPlatform
from rotator.sandbox.losant import LosantPlatform, new_id
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.rabbitmq import RabbitmqBroker
from rotator.sandbox.token_sink import TELEMETRY_PREFIX, Follower, events_topic
from rotator.sandbox.wayscloud import WaysCloudPlatform

Json = Mapping[str, Any]
Publish = Callable[[str, str], None]

EMAIL, ORGANIZATION = "operator@acme.example", "acme"
LIFETIME: Final = 60.0  # seconds: what the times below are meant for
SHARE: Final = 0.33  # of a key's life, as the configuration says: due when so much is left
GRACE: Final = timedelta(seconds=4)  # of a key that was replaced
# How many seconds after the daemon's start each key comes due: keys that expire, and keys that are rotated by age
EXPIRING: Final[Mapping[str, float]] = {"building-a": 12.0, "building-b": 30.0}
AGEING: Final[Mapping[str, float]] = {"building-a": 10.0, "building-b": 30.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoBroker:
    """A broker for consumers to connect to.

    Args:
        name: in the names of its consumers, where there are several brokers.
        host, port: of its MQTT listener.
        publish: delivers an event: topic, payload.
        observer: a login that may read what `confirm` needs.
        observer_password: the reference to its password, as a configuration has it.
        logs: whether it tells of connects on `$SYS/broker/log/N`; if not, the provider lists its connections.
        settle: how long a consumer must stay up, in seconds.
    """

    name: str
    host: str
    port: int
    publish: Publish = field(repr=False)
    observer: str
    observer_password: Json
    logs: bool = True
    settle: int = 1

    def consumer(self, name: str) -> Json:
        """What a consumer's section says of how it is proven here that it is back."""
        return {"settle": f"{self.settle}s", "confirm": self._confirm(name)}

    def _confirm(self, consumer: str) -> Json:
        login = {"host": self.host, "port": self.port, "username": self.observer, "password": self.observer_password}
        return {"broker": {**(login if self.logs else {}), "client_id": f"{consumer}-*"}}


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoPlatform:
    """A platform that runs.

    Args:
        name: as `--platform` has it.
        section: of the configuration, `kind` included.
        keys: that somebody made by hand.
        broker: where their consumers connect.
        facts: for `sandbox.json`; no secret.
    """

    name: str
    section: Json
    keys: Sequence[DemoKey]
    broker: DemoBroker
    facts: Json


class Ground:
    """What the platforms of a demo are started on.

    Args:
        directory: the demo's; secrets go to `secrets/`.
        stack: takes down, the other way round, what is entered.
        lifetime: of a key, in seconds.
    """

    def __init__(self, directory: Path, stack: ExitStack, lifetime: float) -> None:
        self.directory, self.stack, self.lifetime = directory, stack, lifetime
        self._amqtt: tuple[AmqttBroker, DemoBroker] | None = None

    def secret(self, name: str, value: str) -> Json:
        """A reference to a new file that holds this."""
        return {"file": str(put_secret(self.directory / "secrets", name, value))}

    def amqtt(self) -> tuple[AmqttBroker, DemoBroker]:
        """The broker inside this process, which all simulators share; it runs from the first call on."""
        if self._amqtt is None:
            broker = self.stack.enter_context(AmqttBroker())
            shown = DemoBroker(
                name="amqtt",
                host=broker.host,
                port=broker.port,
                publish=broker.publish,
                observer=broker.observer_username,
                observer_password=self.secret("observer.password", broker.observer_password),
            )
            self._amqtt = broker, shown
        return self._amqtt

    def ageing(self, name: str, after: float, *, id: str, username: str, password: str, **more: Any) -> DemoKey:
        """A key that is due when its secret is so many seconds old, were its life as usual."""
        max_age = timedelta(seconds=after * self.lifetime / LIFETIME)
        topic = f"{TELEMETRY_PREFIX}/{name}"
        return DemoKey(name=name, id=id, username=username, password=password, topic=topic, max_age=max_age, **more)

    def folder(self, name: str) -> Path:
        """A new folder for a server's files."""
        made = self.directory / name
        made.mkdir(mode=0o700)
        return made


Due = Mapping[str, float]  # a key's name → seconds
Start = Callable[[Ground, Due], DemoPlatform]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One value of `--platform`.

    Args:
        start: starts the platform with these keys.
        due: its keys, where it is alone.
        find: finds the programs of a real server, or raises FileNotFoundError naming the missing Debian package.
        shared: whether `all` has it.
    """

    start: Start
    due: Due = field(default_factory=lambda: AGEING)
    find: Callable[[], object] | None = None
    shared: bool = True


# --- simulators


def _haltian(ground: Ground, due: Due, *, graphql: bool = False) -> DemoPlatform:
    sink, broker = ground.amqtt()
    lifetime = timedelta(seconds=ground.lifetime)
    platform = ground.stack.enter_context(HaltianPlatform(sink=sink, lifetime=lifetime))
    acme = platform.create_organization(ORGANIZATION)
    password = secrets.token_urlsafe(18)
    reference = ground.secret("haltian.password", password)
    platform.create_user(EMAIL, password, acme)
    integration = platform.create_integration(acme, "rotator demo")
    keys = []
    for name, after in due.items():
        age = max(lifetime * (1 - SHARE) - timedelta(seconds=after), timedelta(0))
        id, token = platform.add_key(name, acme, issued_ago=age, integration_id=integration)
        topic = events_topic(integration, "{username}")
        keys.append(DemoKey(name=name, id=id, username=id, password=token, topic=topic))
    section: dict[str, Any] = {"kind": "haltian", "organization": ORGANIZATION, "email": EMAIL, "password": reference}
    if graphql:
        section = yaml.safe_load(HALTIAN_BY_GRAPHQL)
        section["auth"]["login"] |= {"username": EMAIL, "password": reference}
    section |= {"url": platform.url, "lifetime": f"{ground.lifetime:.0f}s"}
    facts = {"url": platform.url, "organization": ORGANIZATION, "email": EMAIL, "password_file": reference["file"]}
    return DemoPlatform(
        name="graphql" if graphql else "haltian", section=section, keys=keys, broker=broker, facts=facts
    )


def _ishareradio(ground: Ground, due: Due, *, http: bool = False) -> DemoPlatform:
    sink, broker = ground.amqtt()
    platform = ground.stack.enter_context(IShareRadioPlatform(on_change=Follower(sink)))
    keys = []
    for name, after in due.items():
        id, password = platform.add_key(name)
        keys.append(ground.ageing(name, after, id=id, username=id, password=password))
    token = ground.secret("ishareradio.token", platform.token)
    section: dict[str, Any] = {"kind": "ishareradio", "url": platform.url, "token": token}
    if http:
        section = yaml.safe_load(ISHARERADIO_BY_HTTP)
        section |= {"url": f"{platform.url}/api/v1/subscriber", "auth": {"token": token}}
    facts = {"url": platform.url, "account": platform.account, "token_file": token["file"]}
    return DemoPlatform(name="http" if http else "ishareradio", section=section, keys=keys, broker=broker, facts=facts)


def _iotistica(ground: Ground, due: Due) -> DemoPlatform:
    """Its MQTT users: with its API keys the username is the secret, and the broker's log tells usernames."""
    sink, broker = ground.amqtt()
    platform = ground.stack.enter_context(IotisticaPlatform(on_change=Follower(sink), publish=sink.publish))
    keys = []
    for name, after in due.items():
        user = platform.add_mqtt_user(f"agent_{name}", secrets.token_urlsafe(18))
        platform.state.add_access(user.id, f"{TELEMETRY_PREFIX}/{name}/#", 1)
        keys.append(ground.ageing(name, after, id=user.username, username=user.username, password=user.password))
    password = ground.secret("iotistica.password", platform.password)
    section = {
        "kind": "iotistica",
        "url": platform.url,
        "email": platform.email,
        "username": platform.username,
        "password": password,
        "resource": "mqtt-users",
    }
    facts = {"url": platform.url, "email": platform.email, "password_file": password["file"]}
    return DemoPlatform(name="iotistica", section=section, keys=keys, broker=broker, facts=facts)


def _wayscloud(ground: Ground, due: Due) -> DemoPlatform:
    sink, broker = ground.amqtt()
    platform = ground.stack.enter_context(WaysCloudPlatform(on_change=Follower(sink)))
    keys = []
    for name, after in due.items():
        id, password = platform.add_key(name)
        keys.append(ground.ageing(name, after, id=id, username=id, password=password, grace=GRACE))
    token = ground.secret("wayscloud.token", platform.token)
    section = {"kind": "wayscloud", "url": platform.url, "token": token}
    facts = {"url": platform.url, "token_file": token["file"]}
    return DemoPlatform(name="wayscloud", section=section, keys=keys, broker=broker, facts=facts)


def _losant(ground: Ground, due: Due) -> DemoPlatform:
    sink, broker = ground.amqtt()
    platform = ground.stack.enter_context(LosantPlatform(on_change=Follower(sink)))
    keys = []
    for name, after in due.items():
        topics = [f"{TELEMETRY_PREFIX}/{name}/#"]
        key, secret = platform.add_key(name=name, deviceIds=[new_id()], filterType="whitelist", subTopics=topics)
        keys.append(ground.ageing(name, after, id=key.id, username=key.key, password=secret, grace=GRACE))
    token = ground.secret("losant.token", platform.token)
    section = {"kind": "losant", "url": platform.url, "application": platform.application, "token": token}
    facts = {"url": platform.url, "application": platform.application, "token_file": token["file"]}
    return DemoPlatform(name="losant", section=section, keys=keys, broker=broker, facts=facts)


# --- real servers


def _mosquitto(ground: Ground, due: Due) -> DemoPlatform:
    server = MosquittoBroker(ground.folder("mosquitto"))
    ground.stack.enter_context(server)
    keys = []
    for name, after in due.items():
        password = secrets.token_urlsafe(18)
        server.grant(name, password)
        keys.append(ground.ageing(name, after, id=name, username=name, password=password))
    admin = ground.secret("mosquitto-admin.password", server.admin_password)
    login = {"host": server.host, "port": server.port, "username": server.admin_username}
    broker = DemoBroker(
        name="mosquitto",
        host=server.host,
        port=server.port,
        publish=server.publish,
        observer=server.observer_username,
        observer_password=ground.secret("mosquitto-observer.password", server.observer_password),
    )
    return DemoPlatform(
        name="mosquitto",
        section={"kind": "mosquitto", **login, "password": admin},
        keys=keys,
        broker=broker,
        facts={**login, "url": f"mqtt://{server.host}:{server.port}", "password_file": admin["file"]},
    )


def _rabbitmq(ground: Ground, due: Due) -> DemoPlatform:
    """RabbitMQ tells of connects nowhere over MQTT, so its management API is asked who is connected.

    It shows a new session only after a second or two, even with fast statistics, and the provider ends the old
    ones by it when consumers have settled.
    """
    server = RabbitmqBroker(ground.folder("rabbitmq"), statistics=0.5)
    ground.stack.enter_context(server)
    keys = []
    for name, after in due.items():
        password = secrets.token_urlsafe(18)
        server.add_user(name, password)
        keys.append(ground.ageing(name, after, id=name, username=name, password=password))
    observer = secrets.token_urlsafe(18)
    server.add_user("observer", observer)
    broker = DemoBroker(
        name="rabbitmq",
        host=server.host,
        port=server.port,
        publish=partial(_publish_by_rabbitmq, server),
        observer="observer",
        observer_password=ground.secret("rabbitmq-observer.password", observer),
        logs=False,
        settle=4,
    )
    admin = ground.secret("rabbitmq-admin.password", server.admin_password)
    login = {"url": server.url, "username": server.admin_username}
    return DemoPlatform(
        name="rabbitmq",
        section={"kind": "rabbitmq", **login, "password": admin},
        keys=keys,
        broker=broker,
        facts={**login, "password_file": admin["file"]},
    )


def _publish_by_rabbitmq(server: RabbitmqBroker, topic: str, payload: str) -> None:
    """MQTT's topics are routing keys of the exchange `amq.topic`, with dots for slashes."""
    message = {"properties": {}, "payload": payload, "payload_encoding": "string"}
    server.call("POST", "exchanges/%2F/amq.topic/publish", {**message, "routing_key": topic.replace("/", ".")})


def _find_mosquitto() -> None:
    mosquitto.find_program()
    mosquitto.find_plugin()


PLATFORMS: Final[Mapping[str, Choice]] = {
    "haltian": Choice(start=_haltian, due=EXPIRING),
    "ishareradio": Choice(start=_ishareradio),
    "iotistica": Choice(start=_iotistica),
    "wayscloud": Choice(start=_wayscloud),
    "losant": Choice(start=_losant),
    "mosquitto": Choice(start=_mosquitto, find=_find_mosquitto),
    "rabbitmq": Choice(start=_rabbitmq, find=rabbitmq.find_programs),
    "http": Choice(start=partial(_ishareradio, http=True), shared=False),
    "graphql": Choice(start=partial(_haltian, graphql=True), due=EXPIRING, shared=False),
}
ALL: Final = "all"
NAMES: Final = (*PLATFORMS, ALL)
# `all`: the keys share consumers, which serve one rotation at a time
FIRST_DUE, EACH_LATER = 12.0, 8.0  # seconds


def start_platforms(name: str, ground: Ground) -> tuple[list[DemoPlatform], list[str]]:
    """Start what `--platform` asks for; returns it, and what had to be left out and why.

    Raises:
        FileNotFoundError: its programs are not installed; the text names the Debian package.
        OSError, RuntimeError, TimeoutError: it did not start.
    """
    if name != ALL:
        choice = PLATFORMS[name]
        if choice.find is not None:
            choice.find()
        return [choice.start(ground, choice.due)], []
    found, left_out = [], []
    for each, choice in PLATFORMS.items():
        try:
            if choice.find is not None:
                choice.find()
        except FileNotFoundError as exc:
            left_out.append(f"{each} is left out: {exc}")
        else:
            found += [each] if choice.shared else []
    due = {each: FIRST_DUE + EACH_LATER * number for number, each in enumerate(found)}
    # the servers first: they take long to start, and a simulator's keys come due by the clock
    found.sort(key=lambda each: PLATFORMS[each].find is None)
    return [PLATFORMS[each].start(ground, {each: due[each]}) for each in found], left_out
