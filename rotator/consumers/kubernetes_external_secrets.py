"""Delivery by External Secrets: have an ExternalSecret fetched now, and wait until it was.

The request is the annotation `force-sync`, External Secrets' own way (its FAQ). That it was fulfilled is read from its
status alone; the Secret that it writes is never read. `syncedResourceVersion` names the metadata that the last fetch
worked from, so a change of it after our annotation means a fetch that began after the annotation: no clock is compared.
Where a version writes none, `refreshTime` must have changed and lie after Vault's write.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rotator.consumers.kubernetes_access import Access, Rights
from rotator.consumers.kubernetes_cluster import Cluster
from rotator.consumers.shown import shown
from rotator.errors import Permanent, Transient
from rotator.model import Order, Secret
from rotator.ports import Clock
from rotator.reasons import Reason
from rotator.timestamps import parse_timestamp

FORCE_SYNC: Final = "force-sync"
_REMEMBERED: Final = 1000  # orders
_NEVER: Final = re.compile(r"(0+(\.0*)?(ns|us|µs|ms|s|m|h)?)+")  # a Go duration of nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What was asked for, and what the last fetch before that had been."""

    value: str
    version: str
    refreshed: str


class ExternalSecret:
    """One ExternalSecret (ports.Delivery).

    Args:
        namespace: where it is.
        name: its own name, not that of the Secret which it writes.
        cluster: where and as whom to ask.
        clock: what the annotation's value is made of, beside the order.
    """

    def __init__(self, namespace: str, name: str, cluster: Cluster, clock: Clock) -> None:
        self._namespace, self._name, self._cluster, self._clock = namespace, name, cluster, clock
        self._label = f"ExternalSecret {namespace}/{name}"
        needed = [
            Access(verb=verb, group="external-secrets.io", resource="externalsecrets", name=name)
            for verb in ("get", "patch")
        ]
        self._rights = Rights(self._label, f"rotator-{name}", namespace, cluster, needed)
        self._asked: OrderedDict[Order, _Asked] = OrderedDict()
        self._lock = threading.Lock()

    def preflight(self) -> None:
        """Look whether it is there, may be annotated, and would be fetched then. Changes nothing.

        Raises:
            Permanent: CONSUMER_FORBIDDEN, with the Role that is missing; CONSUMER_MISSING; CONSUMER_RESTART_FAILED for
                one that is never fetched again.
            Transient: CONSUMER_RESTART_FAILED where the API server does not answer.
        """
        self._rights.check()
        if why := _obstacle(self._cluster.api.external_secret(self._label, self._namespace, self._name)):
            raise Permanent(f"{self._label}: {why}", reason=Reason.CONSUMER_RESTART_FAILED)

    def ask(self, order: Order) -> None:
        """Have it fetched now. For the same order again, the same annotation: nothing is fetched twice.

        Raises: Transient, Permanent.
        """
        with self._lock:
            asked = self._asked.get(order)
        # The time makes it a change for a process that remembers no earlier request, so that there is a fetch to see.
        value = asked.value if asked is not None else f"{order.key}@{order.version} {self._clock.now().isoformat()}"
        found = self._cluster.api.annotate_external_secret(
            self._label, self._namespace, self._name, {FORCE_SYNC: value}
        )
        with self._lock:
            if order not in self._asked:
                version, refreshed = _last_fetch(found)
                self._asked[order] = _Asked(value=value, version=version, refreshed=refreshed)
            while len(self._asked) > _REMEMBERED:
                self._asked.popitem(last=False)

    def arrived(self, order: Order, secret: Secret, since: datetime) -> bool:
        """Whether it was fetched, with success, after `ask`, which was after `since`. The secret is not looked at.

        Raises:
            Permanent: CONSUMER_MISSING, CONSUMER_FORBIDDEN.
            Transient: CONSUMER_RESTART_FAILED where External Secrets could not fetch it, with its own words, or where
                the API server does not answer.
        """
        with self._lock:
            asked = self._asked.get(order)
        if asked is None:  # of a process before this one
            self.ask(order)
            return False
        found = self._cluster.api.external_secret(self._label, self._namespace, self._name)
        for condition in _under(found, "status", "conditions") or ():
            if _under(condition, "type") == "Ready" and _under(condition, "status") != "True":
                reason, message = (
                    str(_under(condition, "reason") or "not Ready"),
                    str(_under(condition, "message") or ""),
                )
                text = f"{self._label}: External Secrets says {shown(reason)}: {shown(message)}"
                raise Transient(text, reason=Reason.CONSUMER_RESTART_FAILED)
        version, refreshed = _last_fetch(found)
        if version:
            return version != asked.version
        moment = parse_timestamp(refreshed)
        return refreshed != asked.refreshed and moment is not None and moment >= since


def _last_fetch(found: Mapping[str, Any]) -> tuple[str, str]:
    """The metadata's version that the last fetch worked from, and when it ended; empty where it says nothing."""
    version, refreshed = _under(found, "status", "syncedResourceVersion"), _under(found, "status", "refreshTime")
    return str(version or ""), str(refreshed or "")


def _obstacle(found: Mapping[str, Any]) -> str:
    """Why an annotation would not have it fetched, with what to do about it; empty where it would."""
    policy = _under(found, "spec", "refreshPolicy") or "Periodic"
    if policy == "CreatedOnce":
        return "its refreshPolicy is CreatedOnce, so it is never fetched again: make it OnChange or Periodic"
    interval = _under(found, "spec", "refreshInterval")
    if policy == "Periodic" and interval is not None and _NEVER.fullmatch(str(interval)):
        # read in External Secrets 0.11 and later: no refresh at all, whatever is annotated
        return f"its refreshInterval is {interval}, so it is never fetched again: make it 1h"
    return ""


def _under(found: object, *names: str) -> Any:
    """What stands below these names in an answer; None where something on the way is no mapping."""
    for name in names:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found
