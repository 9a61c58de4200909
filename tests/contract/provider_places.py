"""The platforms of the suite over every provider: simulators, and Debian's real brokers.

A simulator's secrets are tried at a broker double that lets in whom the simulator's `live()` lets in.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final

from contract.generic_examples import HALTIAN_PASSWORD, HALTIAN_USER, aimed
from contract.provider_broker import LiveBroker
from contract.provider_place import Place, Servers, at, fresh
from contract.provider_wire import Wire
from integration.broker_fixture import Broker, until
from rotator.errors import Transient
from rotator.model import Identity, ProbeTarget, Secret
from rotator.mqtt import Link
from rotator.mqtt import session as open_session
from rotator.ports import Clock
from rotator.sandbox.emqx import EmqxBroker
from rotator.sandbox.haltian import HaltianPlatform
from rotator.sandbox.iotistica import Generation, IotisticaPlatform
from rotator.sandbox.ishareradio import IShareRadioPlatform
from rotator.sandbox.losant import LosantPlatform
from rotator.sandbox.thingsboard import ThingsBoard
from rotator.sandbox.wayscloud import WaysCloudPlatform

PASSWORD: Final = {"env": "PASSWORD"}
DEVICE: Final = "575ecf887ae143cd83dc4aa2"
Live = Callable[[], Mapping[str, str]]


class Tokens:
    """Whom Haltian's platform lets in; a `TokenSink`."""

    def __init__(self) -> None:
        self.live: dict[str, str] = {}

    def grant(self, username: str, token: str) -> None:
        """See `TokenSink`."""
        self.live[username] = token

    def revoke(self, username: str) -> None:
        """See `TokenSink`."""
        self.live.pop(username, None)


# --- Haltian


@contextmanager
def haltian(clock: Clock, servers: Servers, *, generic: bool = False) -> Iterator[Place]:
    """An organization and its manager; `generic`: managed from configuration alone."""
    tokens = Tokens()
    with LiveBroker(lambda: tokens.live) as broker, HaltianPlatform(sink=tokens, now=clock.now) as platform:
        organization = platform.create_organization("acme")
        platform.create_user(HALTIAN_USER, HALTIAN_PASSWORD, organization)
        section = {
            "kind": "haltian",
            "url": platform.url,
            "organization": "acme",
            "email": HALTIAN_USER,
            "password": PASSWORD,
        }
        known = {"PASSWORD": HALTIAN_PASSWORD}
        if generic:
            section, secret = aimed(platform)
            known = {"SECRET": secret}

        def add() -> tuple[str, Secret]:
            id, token = platform.add_key(fresh("building"), organization)
            return id, Secret(token)

        yield Place(
            section=section,
            secrets=known,
            add=add,
            count=lambda: len(platform.state.keys(organization.id)),
            target=at(broker.port),
            platform=platform,
            operation="refreshApiKeyToken",
        )


# --- iShareRadio


@contextmanager
def ishareradio(
    clock: Clock, servers: Servers, *, resource: str = "publishers", generic: bool = False
) -> Iterator[Place]:
    """A portal; `generic`: managed from configuration alone."""
    with IShareRadioPlatform(now=clock.now) as platform, LiveBroker(platform.live) as broker:
        section: Mapping[str, Any] = {
            "kind": "ishareradio",
            "url": platform.url,
            "token": {"env": "SECRET"},
            "resource": resource,
        }
        if generic:
            section, _ = aimed(platform)

        def add() -> tuple[str, Secret]:
            if resource == "publishers":
                id, password = platform.add_key(fresh("site"))
            else:
                id, _, password = platform.add_subscriber(fresh("site"))
            return id, Secret(password)

        rows = platform.state.publishers if resource == "publishers" else platform.state.subscribers
        yield Place(
            section=section,
            secrets={"SECRET": platform.token},
            add=add,
            count=lambda: len(rows()),
            target=at(broker.port),
            platform=platform,
            operation="rotate" if resource == "publishers" else "create_subscriber",
        )


# --- Iotistica


@contextmanager
def iotistica(clock: Clock, servers: Servers, *, resource: str, generation: Generation) -> Iterator[Place]:
    """A cloud of one generation, and the broker on which it tells devices their new keys."""
    live: Live = dict
    with LiveBroker(lambda: live()) as broker:
        speak = broker.publish
        with IotisticaPlatform(generation=generation, now=clock.now, publish=speak, limits=False) as platform:
            live = lambda: {**platform.live(), "listener": "listens"}  # noqa: E731 - known only now
            agent, _ = platform.add_agent(fresh("gateway"))
            section: dict[str, Any] = {
                "kind": "iotistica",
                "url": platform.url,
                "resource": resource,
                "email": platform.email,
                "username": platform.username,
                "password": PASSWORD,
            }
            keys = _IotisticaKeys(platform, agent.uuid, broker.port)
            known = {"PASSWORD": platform.password, "LISTENER": "listens"}
            usual: dict[str, Any] = {"section": section, "secrets": known, "platform": platform}
            match resource:
                case "api-keys":
                    section["agents"] = keys.agents
                    made = Place(
                        **usual,
                        add=keys.add_api_key,
                        count=lambda: sum(each.is_active for each in platform.state.api_keys.values()),
                        target=keys.by_username,
                        operation="create_api_key",
                        options={"agent": agent.uuid},
                    )
                case "mqtt-users":
                    made = Place(
                        **usual,
                        add=keys.add_user,
                        count=lambda: len(platform.state.mqtt_users),
                        target=at(broker.port),
                        operation="update_mqtt_user",
                    )
                case "device-keys":
                    listener = {"username": "listener", "password": {"env": "LISTENER"}}
                    section["mqtt"] = {"host": "127.0.0.1", "port": broker.port, **listener}
                    made = Place(
                        **usual,
                        add=keys.add_agent,
                        count=lambda: len(platform.state.agents),
                        target=keys.by_username,
                        operation="rotate_key",
                    )
                case _:
                    made = Place(
                        **usual,
                        add=keys.add_provisioning_key,
                        count=lambda: len(keys.provisioning_keys()),
                        target=None,
                        admits=lambda secret: secret.reveal() in keys.provisioning_keys(),
                        operation="create_provisioning_key",
                    )
            yield made


class _IotisticaKeys:
    """Keys that somebody makes by hand, and how they are tried."""

    def __init__(self, platform: IotisticaPlatform, agent: str, port: int) -> None:
        self._platform, self._agent, self._port = platform, agent, port
        self.agents: dict[str, str] = {}  # of API keys, by their names

    def add_api_key(self) -> tuple[str, Secret]:
        made = self._platform.add_key(fresh("gateway-key"), agent=self._agent)
        self.agents[made.name] = self._agent
        return str(made.id), Secret(made.key)

    def add_user(self) -> tuple[str, Secret]:
        made = self._platform.add_mqtt_user(fresh("meter"), "old-secret", is_superuser=True)
        return made.username, Secret("old-secret")

    def add_agent(self) -> tuple[str, Secret]:
        made, key = self._platform.add_agent(fresh("gateway"))
        return made.uuid, Secret(key)

    def add_provisioning_key(self) -> tuple[str, Secret]:
        made = self._platform.state.create_provisioning_key(days=30, max_devices=1, description="line-1")
        return made.id, Secret(made.key)

    def provisioning_keys(self) -> Collection[str]:
        """Those that can still be used."""
        return [each.key for each in self._platform.state.provisioning_keys.values() if each.is_active]

    def by_username(self, identity: Identity, secret: Secret) -> ProbeTarget:
        """The key is the username; the password came with the agent, and stays."""
        password = Secret(self._platform.state.mqtt_password)
        return ProbeTarget(host="127.0.0.1", port=self._port, username=secret.reveal(), password=password)


# --- WAYSCloud, Losant


@contextmanager
def wayscloud(clock: Clock, servers: Servers, *, new: bool, **settings: Any) -> Iterator[Place]:
    """An account of one generation."""
    with WaysCloudPlatform(now=clock.now) as platform, LiveBroker(platform.live) as broker:

        def add() -> tuple[str, Secret]:
            own: dict[str, Any] = {"metadata": {"floor": "2"}}
            id, password = platform.add_new_key(fresh("device"), **own) if new else platform.add_key(**own)
            return id, Secret(password)

        yield Place(
            section={"kind": "wayscloud", "url": platform.url, "token": {"env": "TOKEN"}, **settings},
            secrets={"TOKEN": platform.new_token if new else platform.token},
            add=add,
            count=lambda: len(platform.keys()),
            target=at(broker.port),
            platform=platform,
            operation="create",
        )


@contextmanager
def losant(clock: Clock, servers: Servers, *, generic: bool = False) -> Iterator[Place]:
    """An application; `generic`: managed from configuration alone."""
    with LosantPlatform(now=clock.now) as platform, LiveBroker(platform.live) as broker:
        section: Mapping[str, Any] = {
            "kind": "losant",
            "url": platform.url,
            "application": platform.application,
            "token": {"env": "SECRET"},
        }
        if generic:
            section, _ = aimed(platform)

        def add() -> tuple[str, Secret]:
            made, secret = platform.add_key(name="lifts", description="the lifts", deviceIds=[DEVICE])
            return made.id, Secret(secret)

        yield Place(
            section=section,
            secrets={"SECRET": platform.token},
            add=add,
            count=lambda: len(platform.keys()),
            target=at(broker.port),
            platform=platform,
            operation="create",
            options={} if generic else {"deviceIds": DEVICE},
        )


# --- brokers managed from configuration alone


@contextmanager
def generic(clock: Clock, servers: Servers, *, platform: type[EmqxBroker | ThingsBoard]) -> Iterator[Place]:
    """EMQX or ThingsBoard, by the section of config/examples."""
    with platform(now=clock.now) as running, LiveBroker(running.live) as broker:
        section, secret = aimed(running)

        def add() -> tuple[str, Secret]:
            id, password = running.add_key(fresh("lift"))
            return id, Secret(password)

        @contextmanager
        def session(identity: Identity, _secret: Secret) -> Iterator[Callable[[], bool]]:
            assert isinstance(running, EmqxBroker)
            emqx, client_id = running, fresh("old")
            emqx.connect(identity.username, client_id)
            yield lambda: client_id in emqx.sessions()

        yield Place(
            section=section,
            secrets={"SECRET": secret},
            add=add,
            count=lambda: len(running.live()),
            target=at(broker.port),
            platform=running,
            operation="set",
            session=session if isinstance(running, EmqxBroker) else None,
        )


# --- the real ones


@contextmanager
def mosquitto(clock: Clock, servers: Servers) -> Iterator[Place]:
    """Debian's Mosquitto with dynamic security."""
    broker = servers.mosquitto

    def add() -> tuple[str, Secret]:
        name = fresh("meter")
        broker.client(name, "old-secret")
        return name, Secret("old-secret")

    login = {"username": "admin", "password": PASSWORD}
    with Wire(broker.port) as wire:
        yield Place(
            section={"kind": "mosquitto", "host": "127.0.0.1", "port": wire.port, **login},
            secrets={"PASSWORD": "admin-password"},
            add=add,
            count=lambda: _clients_of(broker),
            target=at(broker.port),
            platform=wire,
            operation="setClientPassword",
            options={"roles": "reader"},
        )


def _clients_of(broker: Broker) -> int:
    connection = ("-h", "127.0.0.1", "-p", str(broker.port), "-u", "admin", "-P", "admin-password")
    command = ("mosquitto_ctrl", *connection, "dynsec", "listClients")
    return len(subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split())


@contextmanager
def rabbitmq(clock: Clock, servers: Servers) -> Iterator[Place]:
    """Debian's RabbitMQ."""
    broker = servers.rabbitmq

    def add() -> tuple[str, Secret]:
        name = fresh("meter")
        broker.add_user(name, "old-secret", tags="monitoring")
        return name, Secret("old-secret")

    @contextmanager
    def session(identity: Identity, secret: Secret) -> Iterator[Callable[[], bool]]:
        def is_known() -> bool:
            listed = broker.call("GET", "connections?columns=user,connected_at")
            return any(each["user"] == identity.username and "connected_at" in each for each in listed)

        def there() -> bool:
            try:
                link.turn(0.1)
            except Transient:
                return False
            return True

        with closing(Link(at(broker.port)(identity, secret), client_id=fresh("old"))) as link:
            open_session(link, None, time.monotonic() + 5)
            until(is_known, "the broker knows how old the session is", 20)
            yield there

    with Wire(broker.management_port) as wire:
        yield Place(
            section={
                "kind": "rabbitmq",
                "url": f"http://127.0.0.1:{wire.port}",
                "username": broker.admin_username,
                "password": PASSWORD,
            },
            secrets={"PASSWORD": broker.admin_password},
            add=add,
            count=lambda: len(broker.call("GET", "users")),
            target=at(broker.port),
            platform=wire,
            operation="PUT /api/users/",
            session=session,
        )
