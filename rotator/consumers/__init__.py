"""What reads a secret and must be restarted: one file a kind, and this table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from rotator.consumers.command import CommandConsumer
from rotator.consumers.mqtt import MqttConsumer
from rotator.consumers.none import NoneConsumer
from rotator.consumers.systemd import SystemdConsumer
from rotator.consumers.webhook import WebhookConsumer
from rotator.ports import Consumer


def _kubernetes(name: str, **options: Any) -> Any:
    from rotator.consumers.kubernetes import KubernetesConsumer  # its library is large, and few need it

    return KubernetesConsumer(name, **options)


# The `kind` of the configuration → what makes it; a new kind is a new file and one line here.
KINDS: Final[Mapping[str, Callable[..., Consumer]]] = {
    "systemd": SystemdConsumer,
    "kubernetes": _kubernetes,
    "mqtt": MqttConsumer,
    "command": CommandConsumer,
    "webhook": WebhookConsumer,
    "none": NoneConsumer,
}
