"""Prometheus metrics, as the contract names them.

Counters and histograms are fed by events; everything that is a state is read from the journal at each scrape, so that
a series disappears with its key and a restart shows the truth at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rotator import __version__
from rotator.errors import JournalFailed
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import state, versions_behind
from rotator.managed import ManagedKey
from rotator.model import KeyState, RequestDone, Result, RotationEvent, Step
from rotator.platform_facts import PlatformFacts
from rotator.ports import Clock

_STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_GAP_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 900, 3600)


class Metrics:
    """An observer of rotation events and of requests (ports.Observer, ports.OnRequest)."""

    def __init__(self, registry: CollectorRegistry, keys: Mapping[str, ManagedKey]) -> None:
        self.registry = registry
        self._rotations = Counter(
            "rotator_rotations", "Rotations that ended, by result.", ["provider", "result"], registry=registry
        )
        self._steps = Counter(
            "rotator_rotation_steps",
            "Steps that were run, by result and reason.",
            ["provider", "step", "result", "reason"],
            registry=registry,
        )
        self._step_seconds = Histogram(
            "rotator_rotation_step_duration_seconds",
            "How long steps took.",
            ["provider", "step"],
            buckets=_STEP_BUCKETS,
            registry=registry,
        )
        self._gap = Histogram(
            "rotator_credential_gap_seconds",
            "From the old secret's death to the first evidence, at the broker, of the consumer on the new one.",
            ["provider"],
            buckets=_GAP_BUCKETS,
            registry=registry,
        )
        self._restarts = Counter(
            "rotator_consumer_restarts",
            "Restarts of consumers, by result.",
            ["consumer", "kind", "result"],
            registry=registry,
        )
        self._provider_requests = Counter(
            "rotator_provider_requests",
            "Requests to providers, by answer.",
            ["provider", "operation", "code"],
            registry=registry,
        )
        self._vault_requests = Counter(
            "rotator_vault_requests", "Requests to Vault, by answer.", ["operation", "code"], registry=registry
        )
        self._skew = Gauge(
            "rotator_clock_skew_seconds", "A peer's clock minus ours, by its Date header.", ["peer"], registry=registry
        )
        self.tick = Gauge(
            "rotator_scheduler_last_tick_timestamp_seconds", "When the scheduler last woke up.", registry=registry
        )
        self.lag = Gauge("rotator_scheduler_lag_seconds", "How late the last due key was taken up.", registry=registry)
        self.reloaded = Gauge(
            "rotator_config_last_reload_successful",
            "Always 1: the configuration is read at the start alone.",
            registry=registry,
        )
        Gauge("rotator_build_info", "The version that runs.", ["version"], registry=registry).labels(__version__).set(1)
        self._start_at_zero(keys)

    def _start_at_zero(self, keys: Mapping[str, ManagedKey]) -> None:
        """A counter that is born with its first failure hides it from increase()."""
        for key in keys.values():
            provider = key.provider.name
            for result in Result:
                self._rotations.labels(provider, result.value)
            for step in Step:
                self._steps.labels(provider, step.value, "ok", "")
                self._step_seconds.labels(provider, step.value)
            self._gap.labels(provider)
            for link in key.consumers:
                for outcome in ("ok", "failed"):
                    self._restarts.labels(link.consumer.name, link.consumer.kind, outcome)

    def __call__(self, event: RotationEvent) -> None:
        match event.name:
            case "step" if event.step is not None:
                reason = event.reason.value if event.reason else ""
                self._steps.labels(event.provider, event.step.value, event.result, reason).inc()
                if event.seconds is not None:
                    self._step_seconds.labels(event.provider, event.step.value).observe(event.seconds)
            case "held" if event.step is not None:
                reason = event.reason.value if event.reason else ""
                self._steps.labels(event.provider, event.step.value, "held", reason).inc()
            case "rotation_ended":
                self._rotations.labels(event.provider, event.result).inc()
            case "gap" if event.seconds is not None:
                self._gap.labels(event.provider).observe(event.seconds)
            case "restart":
                kind, consumer = str(event.extra.get("kind", "")), str(event.extra.get("consumer", ""))
                self._restarts.labels(consumer, kind, event.result).inc()
            case _:
                pass

    def request(self, done: RequestDone) -> None:
        """Count one request of an adapter."""
        if done.peer == "vault":
            self._vault_requests.labels(done.operation, done.code).inc()
        else:
            self._provider_requests.labels(done.peer, done.operation, done.code).inc()
        if done.skew is not None:
            self._skew.labels(done.peer).set(done.skew.total_seconds())


class StateCollector(Collector):
    """The state of all keys, read from the journal at each scrape."""

    def __init__(
        self,
        journal: SqliteJournal,
        keys: Mapping[str, ManagedKey],
        clock: Clock,
        token_ends_at: Callable[[], datetime | None],
        facts: Callable[[], PlatformFacts] = PlatformFacts,
    ) -> None:
        self._journal, self._keys, self._clock, self._token_ends_at = journal, keys, clock, token_ends_at
        self._facts = facts

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # nothing is read from the journal while the collector is registered

    def collect(self) -> Iterator[GaugeMetricFamily]:
        written = _gauge("rotator_journal_last_write_successful", "0 after a write to the journal that failed.", [])
        written.add_metric([], 1 if self._journal.unwritable is None else 0)
        yield written
        try:
            records = [record for record in self._journal.all_keys() if record.name in self._keys]
            open_rotations = self._journal.open_rotations()
            waiting = self._journal.waiting_secrets()
        except JournalFailed:
            return  # the absence of these series is alerted on; an exception would lose the counters as well
        labels = ["key", "provider"]
        moments = {
            "expiration": _gauge("rotator_key_expiration_timestamp_seconds", "When the secret dies.", labels),
            "issued": _gauge("rotator_key_issued_timestamp_seconds", "When the secret was issued.", labels),
            "rotate_at": _gauge("rotator_key_rotate_at_timestamp_seconds", "From when the key is due.", labels),
            "success": _gauge("rotator_key_last_success_timestamp_seconds", "When a rotation last succeeded.", labels),
        }
        failures = _gauge("rotator_key_consecutive_failures", "Failed steps since the last success.", labels)
        states = _gauge("rotator_key_state", "1 for the state the key is in.", ["key", "state"])
        gaps = _gauge("rotator_key_gap_started_timestamp_seconds", "Present while a gap is open.", ["key"])
        drift = _gauge("rotator_drift_detected", "1 while Vault or the provider holds something else.", ["key"])
        info = _gauge("rotator_key_consumer_info", "Which consumers depend on a key.", ["key", "consumer"])
        lag = _gauge("rotator_consumer_version_lag", "Versions that a consumer is behind.", ["key", "consumer"])
        totals = _gauge("rotator_keys", "Keys by state.", ["provider", "state"])
        count = {(key.provider.name, s.value): 0 for key in self._keys.values() for s in KeyState}
        now = self._clock.now()
        for record in records:
            name = [record.name, record.provider]
            shown = state(record, open_rotations.get(record.name), now)
            count[record.provider, shown.value] = count.get((record.provider, shown.value), 0) + 1
            # An expiry that can't be right would page as "expired"; it has an alert of its own.
            _add(moments["expiration"], name, None if record.implausible else record.expires_at)
            _add(moments["issued"], name, record.issued_at)
            _add(moments["rotate_at"], name, record.rotate_at)
            _add(moments["success"], name, record.last_success_at)
            _add(gaps, [record.name], record.gap_started_at)
            failures.add_metric(name, record.failures)
            drift.add_metric([record.name], 1 if record.drift else 0)
            for possible in KeyState:
                states.add_metric([record.name, possible.value], 1 if possible is shown else 0)
            for link in self._keys[record.name].consumers:
                info.add_metric([record.name, link.consumer.name], 1)
                behind = versions_behind(record, link.consumer.name, seen=link.open_watch is not None)
                lag.add_metric([record.name, link.consumer.name], behind)
        for (provider, possible_state), number in count.items():
            totals.add_metric([provider, possible_state], number)
        yield from (*moments.values(), failures, states, gaps, drift, info, lag, totals)
        sealed = _gauge("rotator_sealed_secrets", "Secrets that wait sealed in the journal for Vault.", [])
        sealed.add_metric([], len(waiting))
        yield sealed
        oldest = _gauge("rotator_sealed_secret_oldest_timestamp_seconds", "Since when the oldest of them waits.", [])
        if waiting:
            oldest.add_metric([], waiting[0][1].timestamp())
        yield oldest
        token = _gauge("rotator_vault_token_expiration_timestamp_seconds", "When the Vault token ends.", [])
        if (ends := self._token_ends_at()) is not None:
            token.add_metric([], ends.timestamp())
        yield token
        yield from self._of_platforms()

    def _of_platforms(self) -> Iterator[GaugeMetricFamily]:
        """Of the providers that have any; a credential that never ends has no series."""
        facts = self._facts()
        labels = ["provider", "credential"]
        name = "rotator_provider_credential_expiration_timestamp_seconds"
        ends = _gauge(name, "When the daemon's own credential at a provider ends.", labels)
        for provider, credentials in facts.credentials.items():
            for credential in credentials:
                _add(ends, [provider, credential.name], credential.expires_at)
        used = _gauge("rotator_provider_quota_used", "How much of a platform's quota is used.", ["provider", "quota"])
        limit = _gauge("rotator_provider_quota_limit", "How much a platform's quota allows.", ["provider", "quota"])
        for provider, quotas in facts.quotas.items():
            for quota in quotas:
                used.add_metric([provider, quota.name], quota.used)
                limit.add_metric([provider, quota.name], quota.limit)
        yield from (ends, used, limit)


def _gauge(name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _add(family: GaugeMetricFamily, labels: list[str], moment: datetime | None) -> None:
    if moment is not None:
        family.add_metric(labels, moment.timestamp())
