"""The cases of the suite over every provider: how each platform is started, and what is peculiar to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from contract import provider_places as places
from contract.provider_place import Place, Servers
from rotator.errors import RotatorError, Transient, UnknownOutcome
from rotator.ports import Clock
from rotator.reasons import Reason
from rotator.sandbox.emqx import EmqxBroker
from rotator.sandbox.faults import Cut, Faults
from rotator.sandbox.iotistica import Generation
from rotator.sandbox.thingsboard import ThingsBoard

Start = Callable[[Clock, Servers], AbstractContextManager[Place]]
# What an issue call says: the error's class and name; None: it succeeds.
Said = tuple[type[RotatorError], Reason] | None

LIMITED: Final[Said] = (Transient, Reason.PROVIDER_RATE_LIMITED)
UNKNOWN: Final[Said] = (UnknownOutcome, Reason.OUTCOME_UNKNOWN)
# How long a platform that asks for patience asks for it.
PATIENCE: Final = timedelta(seconds=30)
# Seconds of latency, and the timeout of one request, of which an issue call may take three.
LATENCY, TIMEOUT = 3.0, "400ms"
CUT_BEFORE, CUT_AFTER = "cut before the effect", "cut after the effect"
PAGE, SLOW = "a page instead of JSON", "slow"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of the transport: the simulator's switches at a moment, and what a provider usually makes of it."""

    name: str
    switches: Callable[[datetime], Faults]
    said: Said
    asks: bool = False  # for patience


def _date(now: datetime) -> Faults:
    at = now + PATIENCE
    return Faults(status=429, retry_after=at.strftime("%a, %d %b %Y %H:%M:%S GMT"))


FAULTS: Final = (
    Fault(name="429 in seconds", switches=lambda _: Faults(status=429, retry_after="30"), said=LIMITED, asks=True),
    Fault(name="429 by date", switches=_date, said=LIMITED, asks=True),
    Fault(
        name="429 in words",
        switches=lambda _: Faults(status=429, retry_after="try again in 30 seconds"),
        said=LIMITED,
        asks=True,
    ),
    Fault(name="503", switches=lambda _: Faults(status=503), said=UNKNOWN),
    Fault(name="503 after the effect", switches=lambda _: Faults(status=503, status_after_effect=True), said=UNKNOWN),
    Fault(name=CUT_BEFORE, switches=lambda _: Faults(cut=Cut.BEFORE_EFFECT), said=UNKNOWN),
    Fault(name=CUT_AFTER, switches=lambda _: Faults(cut=Cut.AFTER_EFFECT), said=UNKNOWN),
    Fault(name="truncated JSON", switches=lambda _: Faults(truncate=True), said=UNKNOWN),
    Fault(name=PAGE, switches=lambda _: Faults(content_type="text/html"), said=UNKNOWN),
    Fault(name=SLOW, switches=lambda _: Faults(latency_after=LATENCY), said=UNKNOWN),
)
ON_THE_WIRE: Final = (CUT_BEFORE, CUT_AFTER, SLOW)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One provider on one platform.

    Args:
        name: for people.
        start: starts the platform.
        faults: names of those that can strike it; a real broker has only those of the wire to it.
        said: by a fault's name: what is peculiar to this provider.
        hurried: faults under which it waits for something until its deadline.
        loses: whether a secret whose answer was lost with the process is lost for good, and the key with it: the
            platform gives a new one only to who shows the current one.
        recreates: whether a new secret means to delete the key and to make it again.
        keeps_sessions: whether a changed password ends no session.
    """

    name: str
    start: Start
    faults: Collection[str] = tuple(fault.name for fault in FAULTS)
    said: Mapping[str, Said] = field(default_factory=dict)
    hurried: tuple[str, ...] = ()
    loses: bool = False
    recreates: bool = False
    keeps_sessions: bool = False


def _iotistica(resource: str, **more: Any) -> list[Case]:
    return [
        Case(
            name=f"iotistica-{resource}-{generation}",
            start=partial(places.iotistica, resource=resource, generation=generation),
            **more,
        )
        for generation in Generation
        # by the document provisioning keys are made and neither listed nor deleted: see the test of its own
        if (resource, generation) != ("provisioning-keys", Generation.DOCUMENT)
    ]


CASES: Final = (
    Case(name="haltian", start=places.haltian),
    Case(name="ishareradio", start=places.ishareradio),
    Case(name="ishareradio-subscribers", start=partial(places.ishareradio, resource="subscribers")),
    *_iotistica("api-keys"),
    *_iotistica("mqtt-users"),
    *_iotistica(
        "device-keys",
        # the new key is told over MQTT, whatever becomes of the HTTP call
        said=dict.fromkeys(("503 after the effect", CUT_AFTER, "truncated JSON", PAGE, SLOW)),
        hurried=("503", CUT_BEFORE),
        loses=True,
    ),
    *_iotistica("provisioning-keys"),
    Case(name="wayscloud-old", start=partial(places.wayscloud, new=False)),
    Case(name="wayscloud-new", start=partial(places.wayscloud, new=True)),
    Case(name="wayscloud-outage", start=partial(places.wayscloud, new=True, allow_outage=True), recreates=True),
    Case(name="losant", start=places.losant),
    Case(name="http-ishareradio", start=partial(places.ishareradio, generic=True)),
    Case(name="http-losant", start=partial(places.losant, generic=True)),
    Case(name="http-emqx", start=partial(places.generic, platform=EmqxBroker), keeps_sessions=True),
    Case(name="http-thingsboard", start=partial(places.generic, platform=ThingsBoard)),
    Case(name="graphql-haltian", start=partial(places.haltian, generic=True)),
    Case(name="mosquitto", start=places.mosquitto, faults=ON_THE_WIRE),
    Case(name="rabbitmq", start=places.rabbitmq, faults=ON_THE_WIRE, keeps_sessions=True),
)
