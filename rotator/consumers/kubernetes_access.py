"""Which rights a Kubernetes consumer needs, asked beforehand, and the Role that is missing where it has them not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rotator.errors import Permanent
from rotator.reasons import Reason

if TYPE_CHECKING:
    from rotator.consumers.kubernetes_cluster import Cluster

KEPT: Final = 15.0  # seconds for which an answer is good: several keys are often looked at at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One right: a verb on a resource, by name where `name` is not empty."""

    verb: str
    group: str
    resource: str
    name: str = ""

    def __str__(self) -> str:
        whole = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {whole}{'/' if self.name else ''}{self.name}"


class Rights:
    """The rights of one consumer in one namespace; that they are there is remembered for a short while. Thread safe."""

    def __init__(self, label: str, role: str, namespace: str, cluster: Cluster, needed: Sequence[Access]) -> None:
        self._label, self._role, self._namespace = label, role, namespace
        self._cluster, self._needed = cluster, tuple(needed)
        self._good_until = 0.0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Ask for each of them (SelfSubjectAccessReview). Changes nothing.

        Raises:
            Permanent: CONSUMER_FORBIDDEN, with the Role that gives all that is needed.
            Transient: the API server does not answer.
        """
        with self._lock:
            if time.monotonic() < self._good_until:
                return
        api = self._cluster.api
        missing = [each for each in self._needed if not api.allowed(self._label, each, self._namespace)]
        if missing:
            text = f"{self._label}: it may not {', '.join(map(str, missing))}; bind this to the daemon's user: {self}"
            raise Permanent(text, reason=Reason.CONSUMER_FORBIDDEN)
        with self._lock:
            self._good_until = time.monotonic() + KEPT

    def __str__(self) -> str:
        """The Role as YAML on one line, which `kubectl apply -f -` takes."""
        rules: dict[tuple[str, str, str], list[str]] = {}
        for each in self._needed:
            rules.setdefault((each.group, each.resource, each.name), []).append(each.verb)
        return json.dumps(  # JSON is YAML
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": {"name": self._role, "namespace": self._namespace},
                "rules": [
                    {"apiGroups": [group], "resources": [resource]}
                    | ({"resourceNames": [name]} if name else {})
                    | {"verbs": verbs}
                    for (group, resource, name), verbs in rules.items()
                ],
            }
        )
