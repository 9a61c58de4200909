"""The platforms that issue keys: `kind` in the configuration → what builds its provider.

A new platform is one new file and one line here. Each builder takes the provider's name, `client`, `clock` and
`on_request`, and the fields of its own settings as keywords.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from rotator.ports import Provider
from rotator.providers.haltian import Haltian
from rotator.providers.http import make_client
from rotator.providers.losant import Losant
from rotator.providers.mosquitto import Mosquitto

__all__ = ["PROVIDERS", "Haltian", "Losant", "Mosquitto", "make_client"]

PROVIDERS: Final[Mapping[str, Callable[..., Provider]]] = {
    "haltian": Haltian,
    "losant": Losant,
    "mosquitto": Mosquitto,
}
