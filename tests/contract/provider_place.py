"""What the suite over every provider knows of a platform that is made ready for one key, and the real brokers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from integration.broker_fixture import Broker
from rotator.model import Identity, ProbeTarget, Secret
from rotator.sandbox.faults import Faults
from rotator.sandbox.rabbitmq import RabbitmqBroker

Target = Callable[[Identity, Secret], ProbeTarget]
Session = Callable[[Identity, Secret], AbstractContextManager[Callable[[], bool]]]


class Faulty(Protocol):
    """What can be told to misbehave."""

    faults: Faults


@dataclass(frozen=True, kw_only=True)
class Place:
    """A running platform.

    Args:
        section: of the configuration, `kind` included.
        secrets: what `{env: NAME}` in it stands for.
        add: makes a key by hand; its id and secret.
        count: how many keys the platform has that are not revoked, whoever made them.
        target: how a secret is tried at the broker; None where it is no MQTT login.
        platform: the simulator, or the wire to a real broker.
        operation: of the platform: the request that issues.
        admits: whether a secret is good, where it is no MQTT login.
        options: what `provision` must be told.
        session: holds one, where the broker keeps sessions after a change of password; says whether it is still there.
    """

    section: Mapping[str, Any]
    secrets: Mapping[str, str] = field(repr=False)
    add: Callable[[], tuple[str, Secret]]
    count: Callable[[], int]
    target: Target | None
    platform: Faulty
    operation: str
    admits: Callable[[Secret], bool] = lambda secret: False
    options: Mapping[str, str] = field(default_factory=dict)
    session: Session | None = None

    def strike(self, fault: Faults) -> None:
        """Have the next request that issues hit by a fault."""
        self.platform.faults = replace(fault, operations=frozenset({self.operation}), times=1)

    @property
    def struck(self) -> bool:
        """Whether that request came."""
        return self.platform.faults.times == 0

    def calm(self) -> None:
        """No faults any more."""
        self.strike(Faults())


class Servers:
    """The real brokers, started when they are first asked for and shared by all tests."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mosquitto: Broker | None = None
        self._rabbitmq: RabbitmqBroker | None = None

    @property
    def mosquitto(self) -> Broker:
        """Mosquitto with dynamic security."""
        if self._mosquitto is None:
            folder = self._directory / "mosquitto"
            folder.mkdir()
            self._mosquitto = Broker(folder)
        return self._mosquitto

    @property
    def rabbitmq(self) -> RabbitmqBroker:
        """RabbitMQ with its MQTT and management plugins."""
        if self._rabbitmq is None:
            folder = self._directory / "rabbitmq"
            folder.mkdir()
            self._rabbitmq = RabbitmqBroker(folder, statistics=0.5).start()
        return self._rabbitmq

    def close(self) -> None:
        """End what was started."""
        if self._mosquitto is not None:
            self._mosquitto.stop()
        if self._rabbitmq is not None:
            self._rabbitmq.close()


def at(port: int) -> Target:
    """By username and secret at a port of this machine."""

    def target(identity: Identity, secret: Secret) -> ProbeTarget:
        return ProbeTarget(
            host="127.0.0.1",
            port=port,
            username=identity.username,
            password=secret,
            client_id=identity.client_id,
        )

    return target


def fresh(word: str) -> str:
    """A name that nobody has."""
    return f"{word}-{secrets.token_hex(4)}"
