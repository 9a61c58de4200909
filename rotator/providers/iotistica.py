"""Iotistica Cloud: API keys, MQTT users, device keys and provisioning keys over REST (Iotistica's "Authentication").

Each provider manages one kind of them, its `resource`:

| resource | strategy | the key's id | the secret |
| --- | --- | --- | --- |
| `api-keys` | replace | the key's row | the key, which is also the MQTT username |
| `mqtt-users` | chosen by the caller | the MQTT username | the MQTT password |
| `device-keys` | in place, needs the current key | the agent's uuid | the key, told over MQTT |
| `provisioning-keys` | replace | the key's row | the key; it is no MQTT login |
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rotator.config_base import HttpPart, Part, RateLimit, drop_default, usual_port
from rotator.config_types import Port, PositiveDuration, Text, Url, wrong
from rotator.ports import Provider
from rotator.providers.iotistica_api import Generation, IotisticaApi
from rotator.providers.iotistica_device import DeviceKeys, RotationBroker
from rotator.providers.iotistica_keys import ApiKeys
from rotator.providers.iotistica_provisioning import ProvisioningKeys
from rotator.providers.iotistica_users import MqttUsers
from rotator.providers.kinds import Site, issue_deadline
from rotator.secret_refs import SecretRef

__all__ = ["ApiKeys", "DeviceKeys", "IotisticaSettings", "MqttUsers", "ProvisioningKeys", "configured"]

MINUTE = timedelta(minutes=1)


class RotationBrokerPart(Part):
    """The broker on which a device's new key is told. Without a username, the device's current key is one."""

    host: Text
    tls: bool = False
    port: Port = Field(default=None, validate_default=True, json_schema_extra=drop_default)
    ca_file: Text | None = None
    username: Text | None = None
    password: SecretRef | None = None
    client_id: Text | None = None

    _usual_port = field_validator("port", mode="before")(usual_port)


class IotisticaSettings(HttpPart):
    """One kind of keys of an Iotistica cloud, by an admin's login.

    `email` is what the document's login takes, `username` the server source's; one of them will do. `agents` names the
    agent (a uuid) of an API key, by the key's name or id. `fleet` is asked for by some clouds. `licence` is the cloud's
    LICENSE_KEY, whose end is watched.
    """

    kind: Literal["iotistica"]
    url: Url
    email: Text | None = None
    username: Text | None = None
    password: SecretRef
    resource: Literal["api-keys", "mqtt-users", "device-keys", "provisioning-keys"]
    generation: Literal["auto", "document", "source"] = "auto"
    agents: Mapping[Text, Text] = {}
    lifetime: PositiveDuration | None = None
    fleet: Text | None = None
    licence: SecretRef | None = None
    mqtt: RotationBrokerPart | None = None
    rate_limit: RateLimit | None = RateLimit(requests=300, per=MINUTE, burst=30)
    login_rate_limit: RateLimit | None = RateLimit(requests=10, per=MINUTE, burst=5)

    @model_validator(mode="after")
    def _whole(self) -> IotisticaSettings:
        if self.email is None and self.username is None:
            raise wrong("neither `email` nor `username` is set", "the admin's login needs one of them", at="email")
        if self.resource == "device-keys" and self.mqtt is None:
            raise wrong("`device-keys` needs `mqtt`", "new keys are told over MQTT alone", at="mqtt")
        return self


def configured(site: Site, settings: IotisticaSettings) -> Provider:
    """One from its section of the configuration."""
    name = settings.email or settings.username or ""
    api = IotisticaApi(
        site.peer(settings),
        site.peer(settings.model_copy(update={"rate_limit": settings.login_rate_limit})),
        url=settings.url,
        email=settings.email or name,
        username=settings.username or name,
        password=site.reveal(settings.password),
        generation=None if settings.generation == "auto" else Generation(settings.generation),
    )
    deadline = issue_deadline(settings)
    licence = site.reveal(settings.licence) if settings.licence is not None else None
    fleet, lifetime = settings.fleet, settings.lifetime
    match settings.resource:
        case "api-keys":
            return ApiKeys(api, issue_deadline=deadline, licence=licence, agents=settings.agents, lifetime=lifetime)
        case "mqtt-users":
            return MqttUsers(api, issue_deadline=deadline, licence=licence)
        case "device-keys":
            assert settings.mqtt is not None  # the settings' own rule
            broker = _broker(site, settings.mqtt)
            return DeviceKeys(api, issue_deadline=deadline, licence=licence, broker=broker, fleet=fleet)
        case "provisioning-keys":
            return ProvisioningKeys(api, issue_deadline=deadline, licence=licence, fleet=fleet, lifetime=lifetime)


def _broker(site: Site, settings: RotationBrokerPart) -> RotationBroker:
    return RotationBroker(
        host=settings.host,
        port=settings.port,
        tls=settings.tls,
        ca_file=settings.ca_file,
        username=settings.username,
        password=site.reveal(settings.password) if settings.password is not None else None,
        client_id=settings.client_id,
    )
