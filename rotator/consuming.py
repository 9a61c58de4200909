"""From `consumers:` in the configuration to what restarts, delivers and proves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import httpx

from rotator.config_consumers import (
    BrokerEvidence,
    CommandConsumer,
    Confirm,
    ConsumerSettings,
    ExternalSecretDeliver,
    ExternalSecretName,
    FileDeliver,
    KubernetesConsumer,
    MqttConsumer,
    NoneConsumer,
    SystemdConsumer,
    WebhookConsumer,
)
from rotator.config_models import KeySettings
from rotator.confirmation import Confirmations, WatchMaker
from rotator.consumers import KINDS
from rotator.consumers.file_delivery import FileDelivery
from rotator.consumers.kubernetes_cluster import Cluster
from rotator.ports import Clock, Connected, Consumer, Delivery, Provider

ReadRef = Callable[[Any], str]


def make_consumers(
    wanted: Mapping[str, ConsumerSettings],
    *,
    clock: Clock,
    stop: threading.Event | None,
    client: httpx.Client,
    clusters: Clusters,
    confirmations: Confirmations,
    read_ref: ReadRef,
) -> dict[str, Consumer]:
    """All consumers by name; none connects or looks at anything yet.

    Args:
        client: for webhooks; one that follows no redirects.
        confirmations: knows how a broker is reached.
        read_ref: reads a secret reference when it is needed.
    """
    made = {}
    for name, each in wanted.items():
        own = _options(each, client, clusters, confirmations, read_ref)
        made[name] = KINDS[each.kind](name, timeout=each.timeout, clock=clock, stop=stop, **own)
    return made


def _options(
    wanted: ConsumerSettings,
    client: httpx.Client,
    clusters: Clusters,
    confirmations: Confirmations,
    read_ref: ReadRef,
) -> dict[str, Any]:
    """What a kind is made of, beside what all are."""
    match wanted:
        case SystemdConsumer():
            return {"unit": wanted.unit, "scope": wanted.scope, "action": wanted.action, "signal": wanted.signal}
        case CommandConsumer():
            return {"argv": wanted.argv, "cwd": wanted.cwd, "env": wanted.env}
        case MqttConsumer():
            target = partial(confirmations.target, wanted)
            message = {"topic": wanted.topic, "payload": wanted.payload, "retain": wanted.retain}
            return {"target": target, "ack": wanted.ack, **message}
        case WebhookConsumer():
            return {"url": wanted.url, "secret": partial(read_ref, wanted.secret), "client": client}
        case KubernetesConsumer():
            where = {"namespace": wanted.namespace, "workload": wanted.workload, "selector": wanted.selector}
            return {"cluster": clusters.of(wanted), **where}
        case NoneConsumer():
            return {}


def make_delivery(name: str, wanted: ConsumerSettings, *, clock: Clock, clusters: Clusters) -> Delivery | None:
    """How the secret comes to a consumer; None where it reads Vault itself, or after a delay."""
    deliver = wanted.deliver
    if isinstance(deliver, FileDeliver):
        return FileDelivery(name, path=deliver.file)
    if isinstance(deliver, ExternalSecretDeliver):
        return clusters.external_secret(wanted, deliver.external_secret, clock)
    return None


class Clusters:
    """The Kubernetes clusters that consumers name, one connection for all that name the same."""

    def __init__(self) -> None:
        self._made: dict[tuple[str | None, str | None], Cluster] = {}
        self._external_secrets: dict[tuple[Cluster, str, str], Delivery] = {}

    def of(self, wanted: ConsumerSettings) -> Cluster:
        """The one that a consumer of kind kubernetes names; for all others, that of the usual kubeconfig."""
        where = (wanted.kubeconfig, wanted.context) if isinstance(wanted, KubernetesConsumer) else (None, None)
        return self._made.setdefault(where, Cluster(*where))

    def external_secret(self, wanted: ConsumerSettings, where: ExternalSecretName, clock: Clock) -> Delivery:
        """One object of External Secrets; the same for all consumers that it serves, so that it is asked for once."""
        from rotator.consumers.kubernetes_external_secrets import ExternalSecret  # its library is large

        cluster = self.of(wanted)
        new = ExternalSecret(where.namespace, where.name, cluster, clock)
        return self._external_secrets.setdefault((cluster, where.namespace, where.name), new)

    def close(self) -> None:
        """Give back their connections; never raises."""
        for cluster in self._made.values():
            cluster.close()


def make_watch(
    name: str,
    wanted: ConsumerSettings,
    key: KeySettings,
    *,
    names_key: bool,
    client: httpx.Client,
    confirmations: Confirmations,
    providers: Mapping[str, Provider],
) -> WatchMaker | None:
    """How a consumer of a key is proven to run on a new secret; None where nothing proves it.

    Args:
        names_key: this consumer serves several keys, so that an ack must say of which it speaks.
        providers: of the configuration; one that lists its broker's connections is asked for them.
    """
    if wanted.accept == "restarted":
        return None
    if isinstance(wanted, MqttConsumer) and wanted.ack is not None and wanted.expect is not None:
        return confirmations.acks(name, wanted, ack=wanted.ack, expect=wanted.expect, names_key=names_key)
    confirm: Confirm | None = wanted.confirm
    if confirm is None:
        return None
    if confirm.http is not None:
        http = confirm.http
        return confirmations.http(name, client, url=http.url, field=http.field, headers=http.headers)
    if confirm.argv is not None:
        cwd, env = (wanted.cwd, wanted.env) if isinstance(wanted, CommandConsumer) else (None, None)
        return confirmations.command(name, argv=confirm.argv, cwd=cwd, env=env, timeout=wanted.timeout)
    if confirm.heartbeat is not None:
        return confirmations.heartbeat(confirm.heartbeat, key.verify, topic=confirm.heartbeat.topic)
    broker = confirm.broker or BrokerEvidence()
    listing = providers.get(broker.provider or key.provider) if broker.host is None else None
    if listing is not None and isinstance(listing, Connected):
        return confirmations.connections(name, listing, client_id=broker.client_id)
    return confirmations.broker(broker, key.verify, client_id=broker.client_id)
