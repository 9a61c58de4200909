"""From `keys:` in the configuration to keys as the engine knows them, wired to what serves them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

import httpx

from rotator.config_consumers import ConsumerSettings
from rotator.config_models import KeySettings, Verify
from rotator.config_windows import as_window
from rotator.confirmation import Confirmations
from rotator.consuming import Clusters, make_delivery, make_watch
from rotator.managed import ConsumerLink, ManagedKey, template_values
from rotator.model import Identity, ProbeTarget, Secret
from rotator.policy import Policy
from rotator.ports import Clock, Consumer, Provider
from rotator.rotation import ConsumerPlan, Limits
from rotator.settings import Settings
from rotator.templates import render

ReadRef = Callable[[Any], str]
_PROPAGATION = timedelta(seconds=60)  # of a platform, where no `verify` says otherwise


@dataclass(frozen=True, kw_only=True)  # no slots: what is counted once is kept in `__dict__`
class KeyMaker:
    """Makes keys, and has what they are wired to.

    `client` is for proof over HTTP, `read_ref` reads a secret reference when it is needed.
    """

    settings: Settings
    providers: Mapping[str, Provider]
    consumers: Mapping[str, Consumer]
    confirmations: Confirmations
    clusters: Clusters
    client: httpx.Client
    clock: Clock
    read_ref: ReadRef

    def make(self, name: str, key: KeySettings, listed_as: str = "") -> ManagedKey:
        """One key; `listed_as` is what the platform calls it, where `discover` found it."""
        verify, provider = key.verify, self.providers[key.provider]
        managed = ManagedKey(
            name=name,
            provider=provider,
            id=key.id,
            policy=_policy(key),
            limits=self._limits(key, provider),
            path=key.vault.path,
            neighbours=self._at_path[key.vault.path] - (name in self.settings.keys),
            pair=getattr(key, "pair", None) or "",
            fields=key.vault.fields,
            probe_interval=verify.interval if verify is not None else timedelta(minutes=15),
            consumers=tuple(self._link(consumer, key) for consumer in key.consumers),
            adopt_rotates=key.adopt == "rotate",
            listed_as=listed_as,
        )
        return managed if verify is None else replace(managed, probe=self._probe(managed, verify))

    @cached_property
    def _at_path(self) -> Counter[str]:
        return Counter(key.vault.path for key in self.settings.keys.values())

    @cached_property
    def _shared(self) -> frozenset[str]:
        return self.settings.shared_consumers()

    def _limits(self, key: KeySettings, provider: Provider) -> Limits:
        wanted = [self.settings.consumers[consumer] for consumer in key.consumers]
        propagation = key.verify.propagation if key.verify is not None else _PROPAGATION
        return Limits(
            max_attempts=key.max_attempts,
            propagation=max(propagation, provider.abilities.propagation),
            deliver_delay=max((each.delay for each in wanted), default=timedelta(0)),
            settle=max((each.settle for each in wanted), default=timedelta(0)),
            grace=key.grace,
            deactivates=getattr(provider, "deactivates", True),
            expires=provider.abilities.expires,
            kills_old=provider.abilities.kills_old,
            needs_current=provider.abilities.needs_current,
            plans=tuple(_plan(name, each) for name, each in zip(key.consumers, wanted, strict=True)),
        )

    def _link(self, consumer: str, key: KeySettings) -> ConsumerLink:
        wanted = self.settings.consumers[consumer]
        link = ConsumerLink(
            consumer=self.consumers[consumer],
            timeout=wanted.timeout,
            settle=wanted.settle,
            delivery=make_delivery(consumer, wanted, clock=self.clock, clusters=self.clusters),
            deliver_timeout=wanted.deliver_timeout,
        )
        watch = make_watch(
            consumer,
            wanted,
            key,
            names_key=consumer in self._shared,
            client=self.client,
            confirmations=self.confirmations,
            providers=self.providers,
        )
        if watch is None:
            return link
        return replace(
            link,
            open_watch=watch.open,
            early=watch.early,
            identified=watch.identified,
            periodic=watch.periodic,
            versioned=watch.versioned,
        )

    def _probe(self, key: ManagedKey, verify: Verify) -> Callable[[Identity, Secret], ProbeTarget]:
        def password(values: Mapping[str, str]) -> str:
            wanted = verify.password
            return render(wanted, values) if isinstance(wanted, str) else self.read_ref(wanted)

        def target(identity: Identity, secret: Secret) -> ProbeTarget:
            values = template_values(key, identity, secret, expires_at=None)
            return ProbeTarget(
                host=verify.host,
                port=verify.port,
                tls=verify.tls,
                ca_file=verify.ca_file,
                username=render(verify.username, values),
                password=Secret(password(values)),
                client_id=render(verify.client_id, values) if verify.client_id is not None else None,
                subscribe=render(verify.subscribe, values) if verify.subscribe is not None else None,
                timeout=verify.timeout,
            )

        return target


def _policy(key: KeySettings) -> Policy:
    return Policy(
        before_expiry=key.rotate.before_expiry,
        max_age=key.rotate.max_age,
        jitter=key.rotate.jitter,
        windows=[as_window(window) for window in key.rotate.windows],
        blackouts=[as_window(window) for window in key.blackouts],
        min_interval=key.min_interval,
    )


def _plan(name: str, wanted: ConsumerSettings) -> ConsumerPlan:
    return ConsumerPlan(
        name=name,
        canary=wanted.canary,
        max_unavailable=wanted.max_unavailable,
        windows=tuple(as_window(window) for window in wanted.windows),
        follows=wanted.kind == "none",
    )
