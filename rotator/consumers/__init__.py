"""What reads a secret and must be restarted: one file a kind, and this table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from rotator.consumers.command import CommandConsumer
from rotator.consumers.systemd import SystemdConsumer
from rotator.ports import Consumer

# The `kind` of the configuration → what makes it; a new kind is a new file and one line here.
KINDS: Final[Mapping[str, Callable[..., Consumer]]] = {
    "systemd": SystemdConsumer,
    "command": CommandConsumer,
}
