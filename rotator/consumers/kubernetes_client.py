"""What the Kubernetes consumers ask of an API server, by lightkube, and what its refusals mean.

lightkube: MIT, since 2020; a tenth of the official client's size, and a fifth of its time to import. Even so only
`kubernetes_cluster` imports this file, when the first question is asked.

Every call may be repeated: a patch is the same however often it is made. So nothing here is an unknown outcome.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final, TypeVar

import httpx2
import msgspec
from lightkube import Client, operators
from lightkube.config import models as config_models
from lightkube.core.decoders import decode_list
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource
from lightkube.models.authorization_v1 import ResourceAttributes, SelfSubjectAccessReviewSpec
from lightkube.models.meta_v1 import LabelSelector, Status
from lightkube.resources.apps_v1 import DaemonSet, Deployment, StatefulSet
from lightkube.resources.authorization_v1 import SelfSubjectAccessReview
from lightkube.resources.core_v1 import Pod
from lightkube.types import PatchType

from rotator.consumers import kubernetes_login as login
from rotator.consumers.kubernetes_access import Access
from rotator.consumers.kubernetes_wire import Bounded
from rotator.errors import Permanent, RotatorError, Transient
from rotator.reasons import Reason

Workload = Deployment | StatefulSet | DaemonSet
T = TypeVar("T")

WORKLOADS: Final[Mapping[str, type[Workload]]] = {
    "deployment": Deployment,
    "statefulset": StatefulSet,
    "daemonset": DaemonSet,
}
# The versions of External Secrets that serve ExternalSecret, the newest first.
EXTERNAL_SECRETS: Final = tuple(
    create_namespaced_resource("external-secrets.io", version, "ExternalSecret", "externalsecrets")
    for version in ("v1", "v1beta1")
)
PAGE: Final = 200  # objects in one answer to a list
_SHOWN: Final = 300  # characters of the API server's own words in a message
_OPERATORS: Final = {"In": operators.in_, "NotIn": operators.not_in}
# What lightkube raises where an answer is not what Kubernetes sends.
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, LookupError, TypeError, AttributeError)


def _prepare() -> None:
    """Have msgspec build its tables for all that is read here, while the lock of this file's import keeps others out.

    It builds them when a type is first decoded, and two threads that do so at once crash the process (msgspec 0.22):
    the daemon would die when two consumers are restarted at the same moment, which is what *in place* does.
    """
    listed = (*WORKLOADS.values(), Pod)
    configured = (config_models.Cluster, config_models.Context, config_models.User)
    for kind in (*listed, SelfSubjectAccessReview, Status, *configured):
        with contextlib.suppress(msgspec.ValidationError):  # a field is missing; the tables are there by then
            msgspec.json.decode(b"{}", type=kind)
    for kind in listed:
        decode_list(b'{"items": []}', kind)


_prepare()


class Api:
    """One API server. Thread safe; opened at the first question.

    Args:
        answer: seconds for the connection, and for each part of an answer (`kubernetes_wire`).
    """

    def __init__(self, kubeconfig: str | None, context: str | None, answer: float, service_account: str) -> None:
        self._where = (kubeconfig, context, service_account)
        self._answer = answer
        self._session: _Session | None = None
        self._lock = threading.Lock()

    def workload(self, label: str, kind: str, namespace: str, name: str) -> Workload:
        """A workload as it is now. Raises: Transient, Permanent."""
        return self._asked(label, lambda client: client.get(WORKLOADS[kind], name, namespace=namespace))

    def workloads(self, label: str, namespace: str, selector: str) -> list[tuple[str, Workload]]:
        """All workloads of the three kinds with these labels, each with its kind. Raises: Transient, Permanent."""
        found: list[tuple[str, Workload]] = []
        for kind, resource in WORKLOADS.items():
            found += [(kind, each) for each in self._listed(label, resource, namespace, selector)]
        return found

    def annotate_template(
        self, label: str, kind: str, namespace: str, name: str, annotations: Mapping[str, str]
    ) -> Workload:
        """Lay annotations over those of the pod template, as `kubectl rollout restart` does; returns the workload.

        Raises: Transient, Permanent.
        """
        change = {"spec": {"template": {"metadata": {"annotations": dict(annotations)}}}}

        def patch(client: Client) -> Workload:
            return client.patch(WORKLOADS[kind], name, change, namespace=namespace, patch_type=PatchType.STRATEGIC)

        return self._asked(label, patch)

    def pods(self, label: str, namespace: str, selector: LabelSelector) -> list[Pod]:
        """The pods that a workload's selector names. Raises: Transient, Permanent."""
        return self._listed(label, Pod, namespace, written(selector))

    def allowed(self, label: str, access: Access, namespace: str) -> bool:
        """Whether this login has that right. Raises: Transient, Permanent."""
        attributes = ResourceAttributes(
            namespace=namespace,
            verb=access.verb,
            group=access.group or None,
            resource=access.resource,
            name=access.name or None,
        )
        review = SelfSubjectAccessReview(spec=SelfSubjectAccessReviewSpec(resourceAttributes=attributes))
        answer = self._asked(label, lambda client: client.create(review))
        return answer.status is not None and answer.status.allowed

    def external_secret(self, label: str, namespace: str, name: str) -> Mapping[str, Any]:
        """An ExternalSecret as it is now, in the newest version that is served. Raises: Transient, Permanent."""
        return self._of_external_secrets(label, lambda client, kind: client.get(kind, name, namespace=namespace))

    def annotate_external_secret(
        self, label: str, namespace: str, name: str, annotations: Mapping[str, str]
    ) -> Mapping[str, Any]:
        """Lay annotations over an ExternalSecret's own; returns it. Raises: Transient, Permanent."""
        change = {"metadata": {"annotations": dict(annotations)}}

        def patch(client: Client, kind: type[GenericNamespacedResource]) -> Mapping[str, Any]:
            return client.patch(kind, name, change, namespace=namespace, patch_type=PatchType.MERGE)

        return self._of_external_secrets(label, patch)

    def close(self) -> None:
        """Give back connections, as soon as nothing is on its way any more; never raises."""
        with self._lock:
            session, self._session = self._session, None
            if session is not None:
                session.retire()

    def _of_external_secrets(
        self, label: str, call: Callable[[Client, type[GenericNamespacedResource]], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """One call, with the next older version of the API where the newer one is not served."""
        missing: Permanent | None = None
        for kind in EXTERNAL_SECRETS:
            try:
                return self._asked(label, lambda client, kind=kind: call(client, kind))  # type: ignore[misc]  # mypy knows no default in a lambda
            except Permanent as exc:
                if exc.reason is not Reason.CONSUMER_MISSING:
                    raise
                if missing is None or len(exc.message) > len(missing.message):  # a version that is not served says less
                    missing = exc
        assert missing is not None  # there are versions to try
        raise missing

    def _listed(self, label: str, resource: type[T], namespace: str, selector: str) -> list[T]:
        """All of them, page by page. An operator without words leaves the selector as it is written."""
        labels: Any = {selector: operators.exists()} if selector else None

        def ask(client: Client) -> list[T]:
            return [*client.list(resource, namespace=namespace, chunk_size=PAGE, labels=labels)]  # type: ignore[type-var]  # one of the resources above

        return self._asked(label, ask)

    def _asked(self, label: str, call: Callable[[Client], T]) -> T:
        """One question; a login that is refused is read anew once, since tokens and certificates are renewed."""
        try:
            return self._once(label, call, anew=False)
        except _LoginRefused:
            return self._once(label, call, anew=True)

    def _once(self, label: str, call: Callable[[Client], T], *, anew: bool) -> T:
        with self._lock:
            if anew and self._session is not None:
                self._session.retire()
                self._session = None
            session = self._session = self._session or _Session(self._open(label))
            session.users += 1
        try:
            return _translated(label, lambda: call(session.client))
        finally:
            with self._lock:
                session.users -= 1
                session.close_if_done()

    def _open(self, label: str) -> Client:
        kubeconfig, context, service_account = self._where
        try:
            config = login.read(kubeconfig, context, service_account)
            # a namespace is named in every question; this one only keeps the library from looking for its own
            timeout = httpx2.Timeout(self._answer)
            return Client(config, namespace="default", timeout=timeout, transport=Bounded(config, self._answer))
        except login.PluginFailed as exc:
            raise Transient(f"{label}: {exc}", reason=Reason.CONSUMER_RESTART_FAILED) from exc
        except login.UNREADABLE as exc:
            text = f"{label}: no way to its cluster by {kubeconfig or 'the default kubeconfig'}: {login.told(exc)}"
            raise Permanent(text, reason=Reason.CONSUMER_RESTART_FAILED) from None  # its text may quote the file


class _Session:
    """One client, closed when it is no longer wanted and nobody uses it. Who calls holds the lock."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.users = 0
        self._wanted = True

    def retire(self) -> None:
        self._wanted = False
        self.close_if_done()

    def close_if_done(self) -> None:
        if not self._wanted and self.users == 0:
            self.client.close()


class _LoginRefused(Permanent):
    """401: the token or the certificate is not, or no longer, accepted."""


def written(selector: LabelSelector) -> str:
    """A label selector as `kubectl --selector` takes it."""
    words = [f"{name}={value}" for name, value in (selector.matchLabels or {}).items()]
    for each in selector.matchExpressions or ():
        if each.operator in _OPERATORS:
            words.append(_OPERATORS[each.operator](each.values or ()).encode(each.key))
        else:
            words.append(f"!{each.key}" if each.operator == "DoesNotExist" else each.key)
    return ",".join(words)


def _translated(label: str, call: Callable[[], T]) -> T:
    """The one place where lightkube's errors become ours."""
    try:
        return call()
    except httpx2.HTTPStatusError as exc:
        raise _refused(label, exc) from exc
    except httpx2.TimeoutException as exc:
        raise _failed(label, f"the API server did not answer in time ({type(exc).__name__})") from exc
    except httpx2.LocalProtocolError:  # its text may hold the token, where that can't be a header
        raise _failed(label, "the request can't be sent") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as exc:
        raise _failed(label, f"no answer from the API server ({type(exc).__name__}: {_line(str(exc))})") from exc
    except ConfigError as exc:  # the token's file is gone
        raise _failed(label, login.told(exc)) from exc
    except _UNREADABLE as exc:
        if (status := _status_below(exc)) is not None:  # an error's body that lightkube can't read
            raise _refused(label, status) from exc
        raise _failed(label, f"the API server's answer can't be read ({type(exc).__name__})") from exc


def _refused(label: str, exc: httpx2.HTTPStatusError) -> RotatorError:
    """An answer that is no success, by its status."""
    status = exc.response.status_code
    words = _line(exc.status.message or exc.status.reason or "") if isinstance(exc, ApiError) else ""
    text = f"{label}: the API server answers {status}{': ' if words else ''}{words}"
    match status:
        case 401:
            return _LoginRefused(f"{text}; it does not accept this login", reason=Reason.CONSUMER_FORBIDDEN)
        case 403:
            return Permanent(text, reason=Reason.CONSUMER_FORBIDDEN)
        case 404:
            return Permanent(text, reason=Reason.CONSUMER_MISSING)
        case 408 | 409 | 425 | 429:
            return _failed("", text, retry_after=_retry_after(exc.response))
        case _ if status >= 500:
            return _failed("", text, retry_after=_retry_after(exc.response))
        case _:
            return Permanent(text, reason=Reason.CONSUMER_RESTART_FAILED)


def _retry_after(response: httpx2.Response) -> timedelta | None:
    """Seconds, as Kubernetes sends them; a date is not looked at."""
    given = response.headers.get("Retry-After", "")
    return timedelta(seconds=int(given)) if given.isascii() and given.isdigit() and len(given) < 6 else None


def _status_below(exc: BaseException) -> httpx2.HTTPStatusError | None:
    below = exc.__context__
    while below is not None and not isinstance(below, httpx2.HTTPStatusError):
        below = below.__context__
    return below


def _failed(label: str, text: str, retry_after: timedelta | None = None) -> Transient:
    whole = f"{label}: {text}" if label else text
    return Transient(whole, reason=Reason.CONSUMER_RESTART_FAILED, retry_after=retry_after)


def _line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:_SHOWN]
