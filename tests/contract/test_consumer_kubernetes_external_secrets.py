"""Delivery by External Secrets, against a double of the API server and of its controller."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.consumer_kube_double import ADMIN, Fault, KubeDouble, kubeconfig
from contract.consumer_kube_stage import KubeStage
from rotator.clock import SystemClock
from rotator.config_consumers import KubernetesConsumer
from rotator.consumers.kubernetes_external_secrets import ExternalSecret
from rotator.consuming import Clusters, make_delivery
from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import Order, Secret
from rotator.reasons import Reason

ORDER = Order(key="building-a", version=7, id="01")
NEW = Secret("new")
LOOKS = 5  # more than the double's controller needs


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[KubeStage]:
    """A namespace in a double."""
    with KubeDouble() as double:
        config = kubeconfig(tmp_path / "kubeconfig", double.url, {"token": ADMIN})
        with closing(KubeStage(config, tmp_path, double)) as found:
            yield found


def made(stage: KubeStage, config: str | None = None, **spec: Any) -> ExternalSecret:
    """An ExternalSecret `mqtt` that was fetched before, and the delivery by it."""
    assert stage.double is not None
    where = ("externalsecrets", stage.namespace, "mqtt")
    with stage.double.lock:
        if where not in stage.double.state.objects:
            stage.double.state.create(where, {"metadata": {}, "spec": {"refreshInterval": "1h"} | spec})
            for _ in range(LOOKS):
                stage.double.state.look(where)
    return ExternalSecret(stage.namespace, "mqtt", stage.cluster(config), SystemClock())


def annotation(stage: KubeStage) -> str:
    """What `force-sync` says."""
    assert stage.double is not None
    found = stage.double.state.objects["externalsecrets", stage.namespace, "mqtt"]
    return str(found["metadata"].get("annotations", {}).get("force-sync", ""))


def arrives(delivery: ExternalSecret, since: datetime, order: Order = ORDER) -> list[bool]:
    """What one look after the other says."""
    return [delivery.arrived(order, NEW, since) for _ in range(LOOKS)]


@pytest.mark.parametrize("served", [["v1", "v1beta1"], ["v1"], ["v1beta1"]], ids=["both", "v1", "v1beta1"])
def test_it_is_fetched_after_it_was_asked_for(stage: KubeStage, served: list[str]) -> None:
    """Whichever version of the API the cluster serves; not before the controller has done it."""
    assert stage.double is not None
    delivery = made(stage)
    stage.double.external_secrets = served
    since = datetime.now(UTC)
    delivery.preflight()
    delivery.ask(ORDER)
    assert annotation(stage).startswith("building-a@7 ")
    seen = arrives(delivery, since)
    assert seen[0] is False
    assert seen == sorted(seen)
    assert seen[-1] is True


def test_consumers_of_one_external_secret_ask_for_it_once(stage: KubeStage, tmp_path: Path) -> None:
    """Each look of the one must not undo what the other asked for: External Secrets would fetch for ever."""
    made(stage)
    deliver = {"external_secret": {"namespace": stage.namespace, "name": "mqtt"}}
    where = {"kind": "kubernetes", "namespace": stage.namespace, "kubeconfig": str(tmp_path / "kubeconfig")}
    with closing(Clusters()) as clusters:
        deliveries = []
        for name in ("dash", "ingest"):
            wanted = KubernetesConsumer.model_validate({**where, "deployment": name, "deliver": deliver})
            deliveries.append(make_delivery(name, wanted, clock=SystemClock(), clusters=clusters))
        values = []
        for _ in range(2):
            for delivery in deliveries:
                assert delivery is not None
                delivery.ask(ORDER)
                values.append(annotation(stage))
    assert 1 == len(set(values))


@pytest.mark.parametrize("old", [False, True], ids=["by version", "by time"])
def test_a_fetch_before_the_request_is_none(stage: KubeStage, old: bool) -> None:
    """Its refresh time may lie after Vault's write, where the cluster's clock is ahead: only a later fetch counts."""
    assert stage.double is not None
    delivery = made(stage, old=old)
    where = ("externalsecrets", stage.namespace, "mqtt")
    stage.double.state.objects[where]["status"]["refreshTime"] = "2100-01-01T00:00:00Z"
    stage.double.state.frozen.add(where)
    delivery.ask(ORDER)
    assert [False] * LOOKS == arrives(delivery, datetime.now(UTC))
    stage.double.state.frozen.clear()
    assert arrives(delivery, datetime.now(UTC) - timedelta(seconds=2))[-1] is True


def test_clocks_that_differ_do_not_matter(stage: KubeStage) -> None:
    """The cluster's clock may be an hour behind ours."""
    delivery = made(stage)
    delivery.ask(ORDER)
    assert arrives(delivery, datetime.now(UTC) + timedelta(hours=1))[-1] is True


def test_an_old_version_is_told_by_its_refresh_time(stage: KubeStage) -> None:
    """Without `syncedResourceVersion`: another refresh time than at the request, and after Vault's write."""
    assert stage.double is not None
    delivery = made(stage, old=True)
    where = ("externalsecrets", stage.namespace, "mqtt")
    stage.double.state.objects[where]["status"]["refreshTime"] = "2026-01-01T00:00:00Z"
    delivery.ask(ORDER)
    assert arrives(delivery, datetime.now(UTC) - timedelta(seconds=2))[-1] is True
    assert arrives(delivery, datetime.now(UTC) + timedelta(hours=1))[-1] is False


def test_the_same_order_asks_once_and_another_asks_again(stage: KubeStage) -> None:
    """A repeated step fetches nothing twice; a new version does."""
    delivery = made(stage)
    delivery.ask(ORDER)
    first = annotation(stage)
    delivery.ask(ORDER)
    assert first == annotation(stage)
    assert arrives(delivery, datetime.now(UTC))[-1] is True
    other = Order(key="building-a", version=8, id="02")
    delivery.ask(other)
    assert first != annotation(stage)
    assert arrives(delivery, datetime.now(UTC), other)[0] is False
    assert arrives(delivery, datetime.now(UTC), other)[-1] is True


def test_a_new_process_asks_again(stage: KubeStage) -> None:
    """It can't know whether the fetch that it sees came after the request of the one before."""
    made(stage).ask(ORDER)
    first = annotation(stage)
    later = made(stage)
    seen = arrives(later, datetime.now(UTC))
    assert first != annotation(stage)
    assert seen[:2] == [False, False]
    assert seen[-1] is True


def test_a_fetch_that_fails_says_why(stage: KubeStage) -> None:
    """In External Secrets' own words; it may work the next time."""
    delivery = made(stage, fails="could not get secret data from provider: permission denied, token=hvs.AAAABBBBCCCC")
    delivery.ask(ORDER)
    with pytest.raises(RotatorError, match="SecretSyncedError: could not get secret data") as error:
        arrives(delivery, datetime.now(UTC))
    assert (Transient, Reason.CONSUMER_RESTART_FAILED) == (type(error.value), error.value.reason)
    assert "hvs." not in error.value.message


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"refreshPolicy": "CreatedOnce"}, "CreatedOnce"),
        ({"refreshInterval": "0"}, "refreshInterval is 0,"),
        ({"refreshInterval": "0s"}, "refreshInterval is 0s,"),
        ({"refreshInterval": "0h0m0s", "refreshPolicy": "Periodic"}, "refreshInterval is 0h0m0s,"),
    ],
)
def test_one_that_is_never_fetched_again_is_named(stage: KubeStage, spec: dict[str, str], words: str) -> None:
    """Since External Secrets 0.11 the annotation does nothing there."""
    with pytest.raises(RotatorError, match=words) as error:
        made(stage, **spec).preflight()
    assert (Permanent, Reason.CONSUMER_RESTART_FAILED) == (type(error.value), error.value.reason)


@pytest.mark.parametrize("spec", [{"refreshInterval": "0", "refreshPolicy": "OnChange"}, {"refreshInterval": "10s"}])
def test_one_that_is_fetched_on_request_is_fine(stage: KubeStage, spec: dict[str, str]) -> None:
    """OnChange looks at annotations, whatever the interval."""
    made(stage, **spec).preflight()


def test_a_missing_one_is_named(stage: KubeStage) -> None:
    """Whether the object or all of External Secrets is missing."""
    assert stage.double is not None
    delivery = ExternalSecret(stage.namespace, "nope", stage.cluster(), SystemClock())
    for served in (["v1", "v1beta1"], ["v1beta1"]):
        stage.double.external_secrets = served
        with pytest.raises(RotatorError, match=r'"nope" not found') as error:
            delivery.ask(ORDER)
        assert (Permanent, Reason.CONSUMER_MISSING) == (type(error.value), error.value.reason)
    stage.double.external_secrets = []
    with pytest.raises(RotatorError, match="404") as error:
        delivery.arrived(ORDER, NEW, datetime.now(UTC))
    assert Reason.CONSUMER_MISSING is error.value.reason


def test_the_role_that_is_missing_is_printed_and_is_enough(stage: KubeStage) -> None:
    """It names this one object and two verbs, and no Secret."""
    delivery = made(stage, stage.stranger())
    with pytest.raises(RotatorError, match=r"may not get externalsecrets\.external-secrets\.io/mqtt, patch") as error:
        delivery.preflight()
    assert Reason.CONSUMER_FORBIDDEN is error.value.reason
    printed = re.search(r"\{.*\}", error.value.message)
    assert printed is not None
    assert '"secrets"' not in printed.group()
    stage.bind(yaml.safe_load(printed.group()))
    delivery.preflight()
    delivery.ask(ORDER)
    assert arrives(delivery, datetime.now(UTC))[-1] is True


@pytest.mark.parametrize("body", [b"{", b"1", b'{"status": {"conditions": [1, {"type": "Ready"}]}}'])
def test_an_answer_that_can_not_be_read(stage: KubeStage, body: bytes) -> None:
    """Something else than External Secrets answers there."""
    assert stage.double is not None
    delivery = made(stage)
    delivery.ask(ORDER)
    stage.double.faults.append(Fault(method="GET", times=1, status=200, body=body))
    with pytest.raises(Transient) as error:
        delivery.arrived(ORDER, NEW, datetime.now(UTC))
    assert Reason.CONSUMER_RESTART_FAILED is error.value.reason


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"status": 1}', b'{"status": {"conditions": [], "refreshTime": 7}}'])
def test_an_answer_that_says_nothing(stage: KubeStage, body: bytes) -> None:
    """No fetch is told of, so the secret has not arrived."""
    assert stage.double is not None
    delivery = made(stage)
    delivery.ask(ORDER)
    stage.double.faults.append(Fault(method="GET", times=1, status=200, body=body))
    assert delivery.arrived(ORDER, NEW, datetime.now(UTC)) is False


def test_the_secret_is_never_read(stage: KubeStage) -> None:
    """No Secret is asked for, and none of ours is sent."""
    assert stage.double is not None
    delivery = made(stage)
    delivery.preflight()
    delivery.ask(ORDER)
    arrives(delivery, datetime.now(UTC))
    asked = stage.double.asked
    assert [] == [each for each in asked if "/secrets" in each.path or "new" in str(each.body)]
    assert any("externalsecrets" in each.path for each in asked)
