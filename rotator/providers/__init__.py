"""The platforms that issue keys: `kind` in the configuration → its section there, and what makes its provider of it.

A new platform is one new file and one line here; somebody else's comes through the entry point group
`rotator.providers` (see `kinds.Kind`), and can't take the name of one of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Final

from rotator.providers.graphql_generic import GraphqlSettings
from rotator.providers.graphql_generic import configured as configured_graphql
from rotator.providers.haltian import Haltian, HaltianSettings
from rotator.providers.http import make_client, make_tls
from rotator.providers.http_generic import HttpSettings
from rotator.providers.http_generic import configured as configured_http
from rotator.providers.iotistica import IotisticaSettings
from rotator.providers.iotistica import configured as iotistica
from rotator.providers.ishareradio import IShareRadio, IShareRadioSettings
from rotator.providers.kinds import Kind, Site
from rotator.providers.losant import Losant, LosantSettings
from rotator.providers.mosquitto import Mosquitto, MosquittoSettings
from rotator.providers.rabbitmq import Rabbitmq, RabbitmqSettings
from rotator.providers.wayscloud import WaysCloud, WaysCloudSettings

__all__ = ["PROVIDERS", "Haltian", "Kind", "Losant", "Mosquitto", "Site", "kinds", "make_client", "make_tls"]

GROUP: Final = "rotator.providers"

PROVIDERS: Final[Mapping[str, Kind]] = {
    "graphql": Kind(GraphqlSettings, configured_graphql),
    "haltian": Kind(HaltianSettings, Haltian.configured),
    "iotistica": Kind(IotisticaSettings, iotistica),
    "ishareradio": Kind(IShareRadioSettings, IShareRadio.configured),
    "http": Kind(HttpSettings, configured_http),
    "losant": Kind(LosantSettings, Losant.configured),
    "mosquitto": Kind(MosquittoSettings, Mosquitto.configured),
    "rabbitmq": Kind(RabbitmqSettings, Rabbitmq.configured, lists_connections=True),
    "wayscloud": Kind(WaysCloudSettings, WaysCloud.configured),
}


@cache
def kinds() -> Mapping[str, Kind]:
    """All kinds there are, ours first.

    Raises: TypeError for an entry point whose object is no `Kind`; what its import raises.
    """
    found = dict(PROVIDERS)
    for entry in entry_points(group=GROUP):
        if entry.name in found:
            continue
        kind = entry.load()
        if not isinstance(kind, Kind):
            raise TypeError(f"the entry point {entry.name} of {GROUP} ({entry.value}) is no rotator.providers.Kind")
        found[entry.name] = kind
    return found
