"""The consumers' sections of the configuration as frozen models: restart, delivery and proof."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, field_validator, model_validator

from rotator.config_base import Part, drop_default, seconds, usual_port
from rotator.config_models import Window
from rotator.config_types import (
    Count,
    Duration,
    Port,
    PositiveDuration,
    Text,
    Unit,
    Url,
    choice,
    nearest,
    tag_of,
    wrong,
)
from rotator.secret_refs import SecretRef
from rotator.templates import faults

# What a template of a consumer may hold: which key, and which version of Vault's; never the secret.
ORDER_NAMES = ("key", "version")
ACTIONS = ("restart", "reload", "reload-or-restart", "kill")


def _order_template(value: object) -> object:
    if isinstance(value, str) and (found := faults(value, ORDER_NAMES)):
        raise wrong("; ".join(found), "a template here may hold {key} and {version}; write {{ for a brace")
    return value


def _argument(value: object) -> object:
    # no template with rules of its own: an argument may be a program in a language that has braces
    if isinstance(value, str) and "{secret}" in value:
        raise wrong("{secret} can't be used here", "an argument may hold {key} and {version}")
    return value


def _key_template(value: object) -> object:
    if isinstance(value, str) and (found := faults(value, ("key",))):
        raise wrong("; ".join(found), "a template here may hold {key}; write {{ for a brace")
    return value


def _topic_name(value: object) -> object:
    if isinstance(value, str) and any(sign in value for sign in "+#\0"):
        raise wrong("must be a topic to publish to, without `+` and `#`", "such as fleet/control")
    return value


def _topic_filter(value: object) -> object:
    if not isinstance(value, str):
        return value
    levels = value.split("/")
    lone = all(level in ("+", "#") or not any(sign in level for sign in "+#\0") for level in levels)
    if not lone or "#" in levels[:-1]:
        raise wrong("is not an MQTT filter", "`+` is a whole level, `#` the last one, such as fleet/ack/+")
    return value


def _signal(value: object) -> object:
    if isinstance(value, str) and value not in signal.Signals.__members__:
        near = difflib.get_close_matches(value.upper(), signal.Signals.__members__, n=1)
        raise wrong("is not a signal", f"did you mean `{near[0]}`?" if near else "such as SIGHUP")
    return value


def _action(value: object) -> object:
    if isinstance(value, str) and value not in ACTIONS:
        raise wrong(f"must be one of {', '.join(ACTIONS)}", nearest(value, ACTIONS) or "one of these")
    return value


def _labels(value: object) -> object:
    if isinstance(value, Mapping):
        raise wrong("must be text, as kubectl takes it", 'such as "app=dash"')
    return value


Action = Annotated[Literal["restart", "reload", "reload-or-restart", "kill"], BeforeValidator(_action)]
Selector = Annotated[Text, BeforeValidator(_labels)]
OrderTemplate = Annotated[Text, BeforeValidator(_order_template)]
KeyUrl = Annotated[Url, BeforeValidator(_key_template)]
TopicName = Annotated[Text, BeforeValidator(_topic_name)]
TopicFilter = Annotated[Text, BeforeValidator(_topic_filter)]
Signal = Annotated[str, BeforeValidator(_signal)]
KubernetesName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Argument = Annotated[Text, BeforeValidator(_argument)]
Argv = Annotated[tuple[Argument, ...], Field(min_length=1)]


# --- delivery


class Delay(Part):
    """Wait this long between Vault's new version and the restart."""

    delay: Duration


class FileDeliver(Part):
    """Wait until this file, which somebody else writes, holds the new secret."""

    file: Text
    timeout: PositiveDuration = seconds(600)


class ExternalSecretName(Part):
    """Where the object of External Secrets stands."""

    namespace: KubernetesName
    name: KubernetesName


class ExternalSecretDeliver(Part):
    """Have External Secrets fetch the new version, and wait until it did."""

    external_secret: ExternalSecretName
    timeout: PositiveDuration = seconds(600)


_FORMS = ("delay", "file", "external_secret")
_DELIVER_HINT = "such as {delay: 6m}, {file: PATH} or {external_secret: {namespace: iot, name: mqtt}}"


def _deliver(value: object) -> object:
    if isinstance(value, Delay | FileDeliver | ExternalSecretDeliver) or value == "direct":
        return value
    if isinstance(value, Mapping):
        if len(found := [name for name in _FORMS if name in value]) == 1:
            return value
        near = [hint for name in value if not found and (hint := nearest(str(name), _FORMS))]
        raise wrong("needs exactly one of delay, file and external_secret", near[0] if near else _DELIVER_HINT)
    raise wrong("must be direct or one of {delay: …}, {file: …}, {external_secret: …}", _DELIVER_HINT)


def _deliver_kind(value: object) -> str:
    if isinstance(value, Mapping):
        return next((f"<{name}>" for name in _FORMS if name in value), "<direct>")
    return next((f"<{name}>" for name in _FORMS if hasattr(value, name)), "<direct>")


Deliver = Annotated[
    Annotated[Literal["direct"], Tag("<direct>")]
    | Annotated[Delay, Tag("<delay>")]
    | Annotated[FileDeliver, Tag("<file>")]
    | Annotated[ExternalSecretDeliver, Tag("<external_secret>")],
    Discriminator(_deliver_kind),
    BeforeValidator(_deliver),
]


# --- proof


class Connection(Part):
    """How to reach a broker for evidence. What is None is as in the key's `verify`."""

    host: Text | None = None
    port: Port | None = None
    tls: bool | None = None
    ca_file: Text | None = None
    username: Text | None = None
    password: SecretRef | None = None
    client_id: Text | None = None  # a shell pattern (fnmatch) of the consumer's own client ids; None: any


class BrokerEvidence(Connection):
    """The broker shows the consumer connecting: Mosquitto in its log (`$SYS/broker/log/#`), RabbitMQ in its list.

    The list is asked of `provider`, or of the key's own where that is a RabbitMQ and no `host` is given.
    """

    provider: Text | None = None

    @model_validator(mode="after")
    def _one_way(self) -> BrokerEvidence:
        reach = [name for name in ("host", "port", "tls", "ca_file", "username", "password") if getattr(self, name)]
        if self.provider is not None and reach:
            text = f"`provider` says whose list of connections is asked: `{reach[0]}` has no place beside it"
            raise wrong(text, "take one of them out")
        return self


class HeartbeatEvidence(Connection):
    """The consumer speaks on a topic of its own."""

    topic: Text


def _header_kind(value: object) -> str:
    return "<text>" if isinstance(value, str) else "<reference>"


HeaderValue = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[SecretRef, Tag("<reference>")], Discriminator(_header_kind)
]


class HttpEvidence(Part):
    """The consumer tells over HTTP which version it runs on: a JSON field (dotted), or a body that is just that."""

    url: KeyUrl
    field: Text = "version"
    headers: dict[Text, HeaderValue] = Field(default_factory=dict)


def _topic(value: object) -> object:
    return {"topic": value} if isinstance(value, str) else value


def _http(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class Confirm(Part):
    """How it is proven that the consumer runs on the new secret: exactly one of the four."""

    broker: BrokerEvidence | None = None
    heartbeat: (
        Annotated[
            HeartbeatEvidence,
            BeforeValidator(_topic, json_schema_input_type=Text | HeartbeatEvidence),
        ]
        | None
    ) = None
    http: Annotated[HttpEvidence, BeforeValidator(_http, json_schema_input_type=KeyUrl | HttpEvidence)] | None = None
    argv: Argv | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Confirm:
        if [self.broker, self.heartbeat, self.http, self.argv].count(None) != 3:
            text = "needs exactly one of broker, heartbeat, http and argv"
            raise wrong(text, "such as {broker: {}}, {heartbeat: TOPIC} or {http: URL}")
        return self


def _confirm(value: object) -> object:
    if isinstance(value, str):
        return {"http": value}
    if isinstance(value, Mapping) and "url" in value:
        raise wrong("knows no `url`", "it stands below http, as in {http: {url: …}}")
    return {"argv": value} if isinstance(value, list) else value


Proof = Annotated[Confirm, BeforeValidator(_confirm, json_schema_input_type=KeyUrl | Argv | Confirm)]


# --- the kinds


class ConsumerBase(Part):
    """What all consumers have. `canary`, `max_unavailable` and `windows` count for *replace* only."""

    deliver: Deliver = "direct"
    timeout: PositiveDuration = seconds(60)
    settle: Duration = seconds(3)
    accept: Literal["confirmed", "restarted"] = "confirmed"
    confirm: Proof | None = None
    canary: bool = False
    max_unavailable: Count | None = None
    windows: tuple[Window, ...] = ()

    @property
    def delay(self) -> timedelta:
        """How long to wait between Vault's new version and the restart; nothing but with `deliver: {delay: …}`."""
        return self.deliver.delay if isinstance(self.deliver, Delay) else timedelta(0)

    @property
    def deliver_timeout(self) -> timedelta:
        """After how long a delivery that has not come is late."""
        deliver = self.deliver
        return deliver.timeout if isinstance(deliver, FileDeliver | ExternalSecretDeliver) else timedelta(0)


class SystemdConsumer(ConsumerBase):
    """A systemd unit, reached over D-Bus."""

    kind: Literal["systemd"]
    unit: Unit
    scope: Literal["system", "user"] = "system"
    action: Action = "restart"
    signal: Signal | None = None

    @model_validator(mode="after")
    def _signal_with_kill(self) -> SystemdConsumer:
        if (self.action == "kill") != (self.signal is not None):
            raise wrong("`action: kill` and `signal` belong together", "such as {action: kill, signal: SIGHUP}")
        return self


class CommandConsumer(ConsumerBase):
    """A command that restarts the consumer. `env` is added to a minimal environment; no secret belongs in it."""

    kind: Literal["command"]
    argv: Argv
    cwd: Text | None = None
    env: dict[Text, str] = Field(default_factory=dict)


class NoneConsumer(ConsumerBase):
    """A consumer that needs no restart, since it follows Vault by itself; it is only proven."""

    kind: Literal["none"]
    confirm: Proof


def _expect_kind(value: object) -> str:
    return "<names>" if isinstance(value, list | tuple) else "<count>"


Expect = Annotated[
    Annotated[tuple[Text, ...], Field(min_length=1), Tag("<names>")] | Annotated[Count, Tag("<count>")],
    Discriminator(_expect_kind),
]


class MqttConsumer(ConsumerBase):
    """Processes that are told over MQTT, and that acknowledge the version."""

    kind: Literal["mqtt"]
    host: Text
    tls: bool = False
    port: Port = Field(default=None, validate_default=True, json_schema_extra=drop_default)
    ca_file: Text | None = None
    username: Text | None = None
    password: SecretRef | None = None
    topic: TopicName
    retain: bool = False
    payload: OrderTemplate = '{{"key": "{key}", "version": {version}}}'
    ack: TopicFilter | None = None
    expect: Expect | None = None

    _usual_port = field_validator("port", mode="before")(usual_port)

    @field_validator("expect")
    @classmethod
    def _once_each(cls, expect: tuple[str, ...] | int | None) -> tuple[str, ...] | int | None:
        if isinstance(expect, tuple) and (twice := [name for name in expect if expect.count(name) > 1]):
            raise wrong(f"names `{twice[0]}` twice", "once is enough")
        return expect

    @model_validator(mode="after")
    def _acknowledged(self) -> MqttConsumer:
        if (self.ack is None) != (self.expect is None):
            raise wrong("`ack` and `expect` belong together", "such as {ack: fleet/ack/+, expect: [a, b]}")
        if self.ack is not None and self.confirm is not None:
            raise wrong("is confirmed by its acks: `confirm` can't be given beside `ack`", "take one of them out")
        return self


class WebhookConsumer(ConsumerBase):
    """A signed POST to whoever restarts the consumer."""

    kind: Literal["webhook"]
    url: KeyUrl
    secret: SecretRef


class KubernetesConsumer(ConsumerBase):
    """A workload of Kubernetes, restarted as `kubectl rollout restart` does."""

    kind: Literal["kubernetes"]
    namespace: KubernetesName
    deployment: KubernetesName | None = None
    statefulset: KubernetesName | None = None
    daemonset: KubernetesName | None = None
    selector: Selector | None = None
    kubeconfig: Text | None = None
    context: Text | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> KubernetesConsumer:
        if [self.deployment, self.statefulset, self.daemonset, self.selector].count(None) != 3:
            text = "needs exactly one of deployment, statefulset, daemonset and selector"
            raise wrong(text, "such as {deployment: dashboards}")
        return self

    @property
    def workload(self) -> tuple[str, str] | None:
        """What is restarted, such as ("deployment", "dashboards"); None where `selector` says it."""
        for kind in ("deployment", "statefulset", "daemonset"):
            if (name := getattr(self, kind)) is not None:
                return kind, name
        return None


ConsumerSettings = Annotated[
    Annotated[SystemdConsumer, Tag("<systemd>")]
    | Annotated[KubernetesConsumer, Tag("<kubernetes>")]
    | Annotated[MqttConsumer, Tag("<mqtt>")]
    | Annotated[CommandConsumer, Tag("<command>")]
    | Annotated[WebhookConsumer, Tag("<webhook>")]
    | Annotated[NoneConsumer, Tag("<none>")],
    Discriminator(tag_of("kind")),
    choice("kind", ["systemd", "kubernetes", "mqtt", "command", "webhook", "none"]),
]
