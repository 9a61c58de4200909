"""A Kubernetes cluster, shared by all consumers that name the same kubeconfig and context.

The library behind it is imported with the first question: a daemon without Kubernetes consumers never pays for it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rotator.consumers.kubernetes_client import Api

ANSWER: Final = 10.0  # seconds for one question, and for the connection
SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


class Cluster:
    """Where and as whom to ask.

    Args:
        kubeconfig: the file; None: the pod's own service account, else $KUBECONFIG, else ~/.kube/config.
        context: one of the file's contexts; None: its current one.
        answer: seconds for the connection, and for each part of an answer.
        service_account: the folder with the pod's `token` and `ca.crt`.
    """

    def __init__(
        self,
        kubeconfig: str | None = None,
        context: str | None = None,
        *,
        answer: float = ANSWER,
        service_account: str = SERVICE_ACCOUNT,
    ) -> None:
        self._kubeconfig, self._context = kubeconfig, context
        self._answer, self._service_account = answer, service_account
        self._api: Api | None = None
        self._lock = threading.Lock()

    @property
    def api(self) -> Api:
        """What can be asked there. Nothing is read or connected yet."""
        with self._lock:
            if self._api is None:
                from rotator.consumers.kubernetes_client import Api

                self._api = Api(self._kubeconfig, self._context, self._answer, self._service_account)
            return self._api

    def close(self) -> None:
        """Give back connections; never raises. A later question opens them again."""
        with self._lock:
            api = self._api
        if api is not None:
            api.close()
