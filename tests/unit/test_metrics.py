"""Metrics: the contract's names, counters that start at 0, and states that are read anew at each scrape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fakes import START, Stage
from rotator.errors import Transient
from rotator.journal.sqlite import Blob
from rotator.keys import ConsumerFacts
from rotator.metrics import Metrics, StateCollector
from rotator.model import Credential, KeyState, Quota, RequestDone, Result, RotationEvent, Step
from rotator.platform_facts import PlatformFacts
from rotator.reasons import Reason

# Name → labels, as users' dashboards know them (design, "Metrics").
CONTRACT = {
    "rotator_journal_last_write_successful": set(),
    "rotator_key_expiration_timestamp_seconds": {"key", "provider"},
    "rotator_key_issued_timestamp_seconds": {"key", "provider"},
    "rotator_key_rotate_at_timestamp_seconds": {"key", "provider"},
    "rotator_key_last_success_timestamp_seconds": {"key", "provider"},
    "rotator_key_consecutive_failures": {"key", "provider"},
    "rotator_key_state": {"key", "state"},
    "rotator_key_gap_started_timestamp_seconds": {"key"},
    "rotator_keys": {"provider", "state"},
    "rotator_key_consumer_info": {"key", "consumer"},
    "rotator_config_last_reload_successful": set(),
    "rotator_clock_skew_seconds": {"peer"},
    "rotator_rotations_total": {"provider", "result"},
    "rotator_rotation_steps_total": {"provider", "step", "result", "reason"},
    "rotator_rotation_step_duration_seconds": {"provider", "step"},
    "rotator_credential_gap_seconds": {"provider"},
    "rotator_consumer_restarts_total": {"consumer", "kind", "result"},
    "rotator_consumer_version_lag": {"key", "consumer"},
    "rotator_provider_requests_total": {"provider", "operation", "code"},
    "rotator_vault_requests_total": {"operation", "code"},
    "rotator_vault_token_expiration_timestamp_seconds": set(),
    "rotator_provider_credential_expiration_timestamp_seconds": {"provider", "credential"},
    "rotator_provider_quota_used": {"provider", "quota"},
    "rotator_provider_quota_limit": {"provider", "quota"},
    "rotator_sealed_secrets": set(),
    "rotator_sealed_secret_oldest_timestamp_seconds": set(),
    "rotator_drift_detected": {"key"},
    "rotator_scheduler_last_tick_timestamp_seconds": set(),
    "rotator_scheduler_lag_seconds": set(),
    "rotator_build_info": {"version"},
}


class Talkative:
    """A platform that tells of a token, of a licence without an end, and of a quota, if it answers."""

    name = "acme"
    away = False

    def credentials(self) -> Sequence[Credential]:
        if self.away:
            raise Transient("no answer", reason=Reason.PROVIDER_UNREACHABLE)
        return [
            Credential(name="token", expires_at=START + timedelta(days=9)),
            Credential(name="licence", expires_at=None),
        ]

    def quotas(self) -> Sequence[Quota]:
        return [Quota(name="devices", used=99, limit=100)]


class Scraped(Stage):
    """A stage whose engine is watched by metrics."""

    def __init__(self, directory: Path) -> None:
        self.token_ends: datetime | None = START + timedelta(hours=1)
        super().__init__(directory)

    def boot(self) -> None:
        super().boot()
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, self.engine.keys)
        self.engine._observers = (self.events.append, self.metrics)
        self.configured = dict(self.engine.keys)
        self.facts = PlatformFacts()
        collector = StateCollector(
            self.journal, self.configured, self.clock, lambda: self.token_ends, lambda: self.facts
        )
        self.registry.register(collector)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def series(self) -> dict[str, list[dict[str, str]]]:
        """Sample name → the labels of each series, as a scrape shows them."""
        found: dict[str, list[dict[str, str]]] = {}
        for family in text_string_to_metric_families(generate_latest(self.registry).decode()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
        return found


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scraped]:
    stage = Scraped(tmp_path)
    stage.introduce()
    yield stage
    stage.shut_down()


def event(name: str, **facts: object) -> RotationEvent:
    return RotationEvent(at=START, key="building-a", provider="acme", name=name, **facts)  # type: ignore[arg-type]


def test_the_names_and_labels_are_the_contracts(stage: Scraped) -> None:
    """After a rotation with a secret that waits: every name is there, with these labels and no others."""
    stage.metrics.request(RequestDone(peer="acme", operation="refresh", code="200", seconds=0.1, skew=timedelta(1)))
    stage.metrics.request(RequestDone(peer="vault", operation="read", code="200", seconds=0.1))
    stage.work()
    stage.introduce(gap_started_at=START, last_success_at=START)
    rotation = stage.journal.recent_rotations()[0]
    stage.journal.save(
        rotation=type(rotation)(
            id="r9",
            key="building-b",
            provider="acme",
            identity=rotation.identity,
            trigger=rotation.trigger,
            started_at=START,
            sealed=True,
        ),
        data_key=b"key",
        blob=Blob(at=START, sealed=b"sealed"),
    )
    stage.facts.ask(Talkative())  # type: ignore[arg-type]
    ours: dict[str, set[str]] = {}
    for sample, labels in stage.series().items():
        name = sample.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        if sample.startswith("rotator_") and not sample.endswith("_created"):
            ours.setdefault(name, set()).update(*({label for label in each if label != "le"} for each in labels))
    assert CONTRACT == ours


def test_what_platforms_say_of_themselves(stage: Scraped) -> None:
    """Their tokens' ends and their quotas; the last answer stands while they are away."""
    platform = Talkative()
    for platform.away in (False, True):
        stage.facts.ask(platform)  # type: ignore[arg-type]
        ends = "rotator_provider_credential_expiration_timestamp_seconds"
        assert (START + timedelta(days=9)).timestamp() == stage.value(ends, provider="acme", credential="token")
        assert stage.value(ends, provider="acme", credential="licence") is None
        assert 99 == stage.value("rotator_provider_quota_used", provider="acme", quota="devices")
        assert 100 == stage.value("rotator_provider_quota_limit", provider="acme", quota="devices")


def test_counters_start_at_zero(stage: Scraped) -> None:
    """Else `increase()` misses the first failure."""
    for result in Result:
        assert 0 == stage.value("rotator_rotations_total", provider="acme", result=result.value)
    for step in Step:
        labels = {"provider": "acme", "step": step.value}
        assert 0 == stage.value("rotator_rotation_steps_total", **labels, result="ok", reason="")
        assert 0 == stage.value("rotator_rotation_step_duration_seconds_count", **labels)
    for outcome in ("ok", "failed"):
        assert 0 == stage.value("rotator_consumer_restarts_total", consumer="ingest", kind="command", result=outcome)
    assert 0 == stage.value("rotator_credential_gap_seconds_count", provider="acme")
    assert 0 == stage.value("rotator_sealed_secrets")


def test_a_rotation_is_counted_step_by_step(stage: Scraped) -> None:
    """One of each, one restart, one gap, one success."""
    stage.work()
    for step in (Step.PREFLIGHT, Step.ISSUE, Step.PROMOTE, Step.PROBE, Step.RESTART, Step.CONFIRM, Step.SETTLE):
        labels = {"provider": "acme", "step": step.value}
        assert 1 == stage.value("rotator_rotation_steps_total", **labels, result="ok", reason="")
        assert 1 == stage.value("rotator_rotation_step_duration_seconds_count", **labels)
    assert 1 == stage.value("rotator_rotations_total", provider="acme", result="succeeded")
    assert 0 == stage.value("rotator_rotations_total", provider="acme", result="failed")
    assert 1 == stage.value("rotator_consumer_restarts_total", consumer="ingest", kind="command", result="ok")
    assert 1 == stage.value("rotator_credential_gap_seconds_count", provider="acme")


def test_a_failure_carries_its_reason(stage: Scraped) -> None:
    """Rule 7: counted under its name; the key shows how many in a row."""
    stage.store.down = Transient("sealed", reason=Reason.VAULT_SEALED)
    stage.work(1)
    labels = {"provider": "acme", "step": "preflight", "result": "failed", "reason": "vault_sealed"}
    assert 1 == stage.value("rotator_rotation_steps_total", **labels)
    assert 1 == stage.value("rotator_key_consecutive_failures", key="building-a", provider="acme")
    assert 1 == stage.value("rotator_key_state", key="building-a", state="overdue")


def test_a_key_is_in_exactly_one_state(stage: Scraped) -> None:
    """A series for each state, one of them 1; the totals agree."""
    for record in ({"paused": True, "rotate_at": None}, {"problem": Reason.KEY_REVOKED}, {"adopted": None}):
        stage.introduce(**record)
        shown = [state for state in KeyState if stage.value("rotator_key_state", key="building-a", state=state.value)]
        assert 1 == len(shown)
        totals = {state: stage.value("rotator_keys", provider="acme", state=state.value) for state in KeyState}
        assert {state: 1.0 if state is shown[0] else 0.0 for state in KeyState} == totals


def test_moments_are_timestamps(stage: Scraped) -> None:
    """Seconds since 1970, to compare with time()."""
    stage.introduce(last_success_at=START, gap_started_at=START + timedelta(seconds=1))
    labels = {"key": "building-a", "provider": "acme"}
    issued = stage.platform.issued_at
    assert issued.timestamp() == stage.value("rotator_key_issued_timestamp_seconds", **labels)
    assert (issued + timedelta(days=90)).timestamp() == stage.value(
        "rotator_key_expiration_timestamp_seconds", **labels
    )
    assert START.timestamp() == stage.value("rotator_key_rotate_at_timestamp_seconds", **labels)
    assert START.timestamp() == stage.value("rotator_key_last_success_timestamp_seconds", **labels)
    assert START.timestamp() + 1 == stage.value("rotator_key_gap_started_timestamp_seconds", key="building-a")
    assert (START + timedelta(hours=1)).timestamp() == stage.value("rotator_vault_token_expiration_timestamp_seconds")


def test_what_is_unknown_has_no_series(stage: Scraped) -> None:
    """No zero that an alert would take for 1970; an implausible expiry does not page as expired."""
    stage.introduce(issued_at=None, rotate_at=None, implausible=True, listed_at=None)
    stage.token_ends = None
    found = stage.series()
    for name in (
        "rotator_key_expiration_timestamp_seconds",
        "rotator_key_issued_timestamp_seconds",
        "rotator_key_rotate_at_timestamp_seconds",
        "rotator_key_last_success_timestamp_seconds",
        "rotator_key_gap_started_timestamp_seconds",
        "rotator_vault_token_expiration_timestamp_seconds",
        "rotator_sealed_secret_oldest_timestamp_seconds",
    ):
        assert [] == found.get(name, []), name


@pytest.mark.parametrize("gone_from", ["journal", "configuration"])
def test_a_series_disappears_with_its_key(stage: Scraped, gone_from: str) -> None:
    """No alert goes on for a key that nobody has any more."""
    assert [labels for each in stage.series().values() for labels in each if labels.get("key") == "building-a"]
    if gone_from == "journal":
        stage.journal.forget_keys(["building-a"])
    else:
        stage.configured.clear()
    assert [] == [labels for each in stage.series().values() for labels in each if "key" in labels]


def test_how_far_consumers_are_behind(stage: Scraped) -> None:
    """Versions, by key and consumer."""
    stage.introduce(vault_version=7, consumers={"ingest": ConsumerFacts(version=7, confirmed_version=5)})
    labels = {"key": "building-a", "consumer": "ingest"}
    assert 2 == stage.value("rotator_consumer_version_lag", **labels)
    assert 1 == stage.value("rotator_key_consumer_info", **labels)
    key = stage.configured["building-a"]
    unseen = tuple(replace(link, open_watch=None) for link in key.consumers)
    stage.configured["building-a"] = replace(key, consumers=unseen)
    assert 0 == stage.value("rotator_consumer_version_lag", **labels), "no proof of it is waited for any more"


def test_drift_is_one_while_it_lasts(stage: Scraped) -> None:
    """And 0, not absent, when it is over."""
    stage.introduce(drift=Reason.VAULT_DRIFT)
    assert 1 == stage.value("rotator_drift_detected", key="building-a")
    stage.introduce(drift=None)
    assert 0 == stage.value("rotator_drift_detected", key="building-a")


def test_a_secret_that_waits_is_counted_with_its_age(stage: Scraped) -> None:
    """Vault is down at promote; when it is back, the series is 0 again."""
    issue = stage.platform.issue

    def issue_and_lose_vault(identity):  # type: ignore[no-untyped-def]
        stage.store.down = Transient("gone", reason=Reason.VAULT_UNREACHABLE)
        return issue(identity)

    stage.platform.issue = issue_and_lose_vault  # type: ignore[method-assign]
    stage.work(3)
    assert 1 == stage.value("rotator_sealed_secrets")
    oldest = stage.value("rotator_sealed_secret_oldest_timestamp_seconds")
    assert oldest is not None
    assert abs(oldest - stage.journal.waiting_secrets()[0][1].timestamp()) < 0.001
    stage.store.down = None
    stage.work(4)
    assert (0, None) == (
        stage.value("rotator_sealed_secrets"),
        stage.value("rotator_sealed_secret_oldest_timestamp_seconds"),
    )


def test_a_restart_shows_the_truth_at_once(stage: Scraped) -> None:
    """States come from the journal, not from the process's memory."""
    stage.introduce(last_success_at=START, failures=3)
    stage.shut_down()
    stage.boot()
    labels = {"key": "building-a", "provider": "acme"}
    assert START.timestamp() == stage.value("rotator_key_last_success_timestamp_seconds", **labels)
    assert 3 == stage.value("rotator_key_consecutive_failures", **labels)


def test_a_journal_that_can_not_be_read_leaves_the_counters(stage: Scraped) -> None:
    """Their absence is alerted on; an exception would lose everything."""
    stage.metrics(event("rotation_ended", result="failed"))
    stage.journal.path.write_bytes(b"broken" * 2000)
    stage.journal.path.with_name("rotator.db-wal").write_bytes(b"")
    assert stage.journal._engine is not None
    stage.journal._engine.dispose()
    found = stage.series()
    assert "rotator_key_state" not in found
    assert 1 == stage.value("rotator_rotations_total", provider="acme", result="failed")


def test_requests_are_counted_by_answer(stage: Scraped) -> None:
    """Providers by name, Vault apart; the skew of the last one."""
    for code in ("200", "200", "503"):
        stage.metrics.request(RequestDone(peer="acme", operation="list", code=code, seconds=0.1))
    stage.metrics.request(
        RequestDone(peer="vault", operation="write", code="403", seconds=0.1, skew=timedelta(seconds=-2))
    )
    counted = {
        code: stage.value("rotator_provider_requests_total", provider="acme", operation="list", code=code)
        for code in ("200", "503", "403")
    }
    assert {"200": 2, "503": 1, "403": None} == counted
    assert 1 == stage.value("rotator_vault_requests_total", operation="write", code="403")
    assert -2 == stage.value("rotator_clock_skew_seconds", peer="vault")


def test_no_label_ever_holds_a_secret(stage: Scraped) -> None:
    """A whole rotation, and then the whole page."""
    stage.work()
    page = generate_latest(stage.registry).decode()
    assert (False, False) == ("secret-0" in page, "secret-1" in page)


def test_an_event_that_nobody_counts_is_no_fault(stage: Scraped) -> None:
    """Other observers have a use for it."""
    before = generate_latest(stage.registry)
    for odd in (event("paused"), event("gap"), event("step")):
        stage.metrics(odd)
    assert [line for line in before.splitlines() if b"_total" in line] == [
        line for line in generate_latest(stage.registry).splitlines() if b"_total" in line
    ]
