"""One *replace* key, twelve consumers of all kinds, and a canary that fails: the way back, the way forward, a daemon
that is killed in between. What happened is counted at the consumers' own side, and then asked of everything that tells.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from acceptance.canary_scene import (
    CANARY,
    EDGES,
    EVERYBODY,
    GRACE,
    KEY,
    MAX_UNAVAILABLE,
    RESTARTED,
    TELEMETRY,
    WATCHER,
    Scene,
    answered,
    by_consumer,
    open_scene,
)
from acceptance.daemon_process import RotatorProcess, running, until
from acceptance.world_outside import BAD_CREDENTIAL, Scrape, Version, answer_to, scrape
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.vault import VaultServer

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

REASON = "consumer_not_confirmed"
RESULTS = ("rolled_back", "succeeded", "failed")
# CONNACK of MQTT 3.1.1: 4 is a bad user name or password, 5 is not authorized
REFUSED = re.compile(r"^(\d+): Sending CONNACK to \S+ \(0, [45]\)", re.MULTILINE)


@pytest.fixture(scope="module")
def vault() -> Iterator[VaultServer]:
    """A Vault for all tests of this file."""
    with VaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def broker() -> Iterator[MosquittoBroker]:
    """A broker for all tests of this file."""
    with MosquittoBroker() as server:
        yield server


@pytest.fixture
def scene(tmp_path: Path, vault: VaultServer, broker: MosquittoBroker) -> Iterator[Scene]:
    """A platform, consumers and a configuration of the test's own."""
    with open_scene(tmp_path, vault, broker) as made:
        yield made


def test_a_canary_that_fails_rolls_back_and_the_others_never_hear_of_it(scene: Scene) -> None:
    """The old version is current again, nobody else was restarted; mended, all go on in batches."""
    with running(scene.daemon().start()) as process:
        scene.break_canary()
        code, ended = answered(process, "rotate", KEY, "--now")
        assert (1, "rolled_back", REASON) == (code, ended["result"], ended["reason"])
        rolled_back(scene)
        told_the_same_way(process)
        scene.mend_canary()
        assert 0 == process.command("resume", KEY).returncode
        before, began = scene.held(), time.time()
        assert 0 == process.command("rotate", KEY, "--now").returncode
        assert "succeeded" == process.ended(KEY, 60)["result"]
        went_forward(scene, before, began)
        forward_is_told(process)
        scene.break_canary()
        began = time.time()
        process.ask_to_rotate(KEY)
        until(lambda: process.rotation(KEY)["result"] == "rolled_back", "it is rolled back", 60)
        assert {CANARY} == {name for name, count in scene.told(began).items() if count}
        behind_nobody(process, scene.held())


def rolled_back(scene: Scene) -> None:
    """At Vault, at the platform, at the broker, and at each consumer's own side."""
    now, between, first = scene.held(), scene.held(2), scene.held(1)
    assert (3, first.username, first.password) == (now.number, now.username, now.password)
    assert between.username != first.username
    assert dict.fromkeys(scene.told(), 0) | {CANARY: 2} == scene.told()  # once forward, once back
    run_on(scene, dict.fromkeys(scene.told(), 1) | {CANARY: 3, WATCHER: 3})
    assert [] == scene.lost()
    (left,) = scene.platform.keys()
    assert (scene.first_id, "active") == (left["id"], left["status"])
    operations = Counter(seen.operation for seen in scene.platform.seen)
    assert (1, 0, 1) == (operations["create"], operations["patch"], operations["delete"])
    assert answer_at_broker(scene, between) in BAD_CREDENTIAL
    assert "Success" == answer_at_broker(scene, now)


def told_the_same_way(process: RotatorProcess) -> None:
    """`status`, `history`, the metrics and the log have the same reason and the same counts."""
    code, shown = answered(process, "status", KEY)
    assert (3, "quarantined", REASON) == (code, shown["state"], shown["reason"])
    assert (f"{CANARY}: not seen on the new secret", 1) == (shown["detail"], shown["consecutive_failures"])
    assert (3, None, False) == (shown["vault"]["version"], shown["rotation"], shown["sealed"])
    assert dict.fromkeys(EVERYBODY, 0) == by_consumer(shown["consumers"], "lag")
    untouched = dict.fromkeys(EVERYBODY) | {CANARY: 3, WATCHER: 3}
    assert untouched == by_consumer(shown["consumers"], "confirmed_version")
    (only,) = answered(process, "history", KEY)[1]["rotations"]
    assert ("rolled_back", REASON, REASON, 3) == tuple(
        only[name] for name in ("result", "reason", "rolling_back", "vault_version")
    )
    assert {CANARY, WATCHER} == {each["name"] for each in only["consumers"] if each["restarted_at"]}
    assert dict.fromkeys(EVERYBODY, 0) | {CANARY: 2} == restarts_counted(process)
    assert dict.fromkeys(EVERYBODY, 0) | {CANARY: 2} == restarts_logged(process)
    assert {"rolled_back": 1, "succeeded": 0, "failed": 0} == rotations_counted(process)
    found = scraped(process)
    assert ["quarantined"] == found.state_of(KEY)
    assert [0.0] * len(EVERYBODY) == found.values("rotator_consumer_version_lag", key=KEY)
    (line,) = process.log("rotation_ended")
    assert (only["id"], "rolled_back", REASON) == (line["rotation"], line["result"], line["reason"])
    for event, failed in (("log", process.log("step")), ("status", steps_of(shown))):
        assert [("confirm", REASON)] == [(each["step"], each["reason"]) for each in failed if bad(each)], event
    assert 1 == found.total("rotator_rotation_steps_total", result="failed")
    assert 1 == found.total("rotator_rotation_steps_total", result="failed", step="confirm", reason=REASON)
    not_drifted(process)


def went_forward(scene: Scene, before: Version, began: float) -> None:
    """The canary first, then three at a time, each once; and the old key is gone, after its grace."""
    assert dict.fromkeys(scene.told(), 1) | {WATCHER: 0} == scene.told(began)
    run_on(scene, dict.fromkeys(scene.told(), 4))
    assert [] == scene.lost()
    back = min(at for at in scene.diary(CANARY).times("on") if at >= began)
    assert all(back < scene.first_told(name, began) for name in RESTARTED)
    assert MAX_UNAVAILABLE == scene.away_at_once(began)
    (left,) = scene.platform.keys()
    assert (scene.held().username, "active") == (left["key"], left["status"])
    ends = {seen.operation: seen.at for seen in scene.platform.seen if seen.key_id == scene.first_id}
    assert (ends["delete"] - ends["patch"]).total_seconds() >= GRACE
    (refused,) = [at for at in refusals(scene) if at >= int(began)]  # the negative proof, and nobody else
    assert int(ends["delete"].timestamp()) <= refused <= time.time()
    assert answer_at_broker(scene, before) in BAD_CREDENTIAL


def forward_is_told(process: RotatorProcess) -> None:
    """The same in what the daemon says."""
    shown = process.key(KEY)
    assert ("ok", None, 4) == (shown["state"], shown["reason"], shown["vault"]["version"])
    assert dict.fromkeys(EVERYBODY, 4) == by_consumer(shown["consumers"], "confirmed_version")
    newest, oldest = process.api("/api/rotations")["rotations"]
    assert ("succeeded", None, "rolled_back") == (newest["result"], newest["reason"], oldest["result"])
    counts = dict.fromkeys(EVERYBODY, 1) | {CANARY: 3, WATCHER: 0}
    assert counts == restarts_counted(process) == restarts_logged(process)
    assert {"rolled_back": 1, "succeeded": 1, "failed": 0} == rotations_counted(process)
    assert ["ok"] == scraped(process).state_of(KEY)


def behind_nobody(process: RotatorProcess, held: Version) -> None:
    """After a way back, who was left alone runs on what is current now: it holds the same data."""
    shown = process.key(KEY)
    assert ("quarantined", 6, 6) == (shown["state"], shown["vault"]["version"], held.number)
    assert dict.fromkeys(EVERYBODY, 6) == by_consumer(shown["consumers"], "confirmed_version")
    assert [0.0] * len(EVERYBODY) == scraped(process).values("rotator_consumer_version_lag", key=KEY)


def not_drifted(process: RotatorProcess) -> None:
    """The watcher has looked at Vault since, twice, and found what the daemon left there."""
    looks = "rotator_vault_requests_total"
    seen = process.metric(looks, operation="read")
    until(lambda: process.metric(looks, operation="read") >= seen + 2, "Vault is looked at twice", 30)
    assert 0 == process.metric("rotator_drift_detected", key=KEY)
    assert [] == process.log("drift")


@pytest.mark.long
def test_killed_between_batches_it_skips_nobody(scene: Scene) -> None:
    """Who was proven before the kill is restarted once more, since nobody watched it meanwhile: in batches as well."""
    first = EDGES  # the batch after the canary
    process, began = scene.daemon(), time.time()
    for config in process.config["consumers"].values():
        config["settle"] = "1500ms"  # between two batches, so that there is time for the kill
    process.write_config()
    with running(process.start()):
        process.ask_to_rotate(KEY)
        proven(process, [CANARY])
        process.kill()
        assert {CANARY: 1} == +Counter(scene.told(began))
        process.start()
        proven(process, first)
        process.kill()
        assert dict.fromkeys((CANARY, *first), 1) == +Counter(scene.told(began))
        process.start()
        ended = process.ended(KEY, 60)
        assert ("succeeded", None) == (ended["result"], ended["reason"])
        twice = dict.fromkeys((CANARY, *first), 2)
        assert dict.fromkeys(scene.told(), 1) | {WATCHER: 0} | twice == scene.told(began)
        run_on(scene, dict.fromkeys(scene.told(), 2))
        assert [] == scene.lost()
        assert MAX_UNAVAILABLE == scene.away_at_once(began)
        canary_again = max(at for at in scene.diary(CANARY).times("on"))
        assert all(canary_again < max(scene.diary(name).times("told")) for name in first)
        (left,) = scene.platform.keys()
        assert scene.held().username == left["key"]
        assert dict.fromkeys(EVERYBODY, 0) == by_consumer(process.key(KEY)["consumers"], "lag")


def proven(process: RotatorProcess, names: Sequence[str]) -> None:
    """Wait until these are seen on the new secret, and nobody after them was begun."""

    def look() -> bool:
        rotation = process.rotation(KEY)
        seen = by_consumer(rotation.get("consumers", []), "seen_at")
        return rotation.get("step") == "settle" and all(seen[name] for name in names)

    until(look, f"{', '.join(names)} are proven; now {process.rotation(KEY)}", 30)


def run_on(scene: Scene, versions: Mapping[str, int]) -> None:
    """Each is on its version; who follows Vault by itself may be a moment behind."""
    until(lambda: versions == scene.runs_on(), f"they run on {versions}; now {scene.runs_on()}", 5)


def answer_at_broker(scene: Scene, login: Version) -> str:
    """The broker's word to somebody with this secret."""
    return answer_to(scene.broker.host, scene.broker.port, (login.username, login.password), f"{TELEMETRY}/#")


def refusals(scene: Scene) -> list[int]:
    """When the broker refused a login, in its log's whole seconds; it does not say whose."""
    return [int(at) for at in REFUSED.findall(scene.broker.log_file.read_text())]


def rotations_counted(process: RotatorProcess) -> dict[str, float]:
    """`rotator_rotations_total` by result."""
    return {name: process.metric("rotator_rotations_total", result=name) for name in RESULTS}


def restarts_counted(process: RotatorProcess) -> dict[str, float]:
    """`rotator_consumer_restarts_total` by consumer; a restart that failed would count as well."""
    return {name: process.metric("rotator_consumer_restarts_total", consumer=name) for name in EVERYBODY}


def restarts_logged(process: RotatorProcess) -> dict[str, int]:
    """The lines of the log by consumer."""
    counted = Counter(line["consumer"] for line in process.log("restart"))
    return {name: counted[name] for name in EVERYBODY}


def steps_of(shown: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The steps in the history of `status KEY --json`, the oldest first."""
    return [event for event in reversed(shown["history"]) if event["name"] == "step"]


def bad(step: Mapping[str, Any]) -> bool:
    """Whether a step is told as one that failed."""
    return bool(step["result"] == "failed")


def scraped(process: RotatorProcess) -> Scrape:
    """`/metrics` now."""
    found = scrape(process.url + "/metrics")
    assert found is not None
    return found
