"""`rotator.control` over a real engine and journal: what a person asks for, and what comes of it."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from rotator.errors import Permanent, Transient
from rotator.keys import resting, versions_behind
from rotator.model import KeyState, Result, Step, Strategy
from rotator.policy import Policy
from rotator.reasons import Reason
from rotator.recovery import Recovery
from unit.control_stage import ControlStage

SOON = timedelta(minutes=30)


@pytest.fixture
def replace_stage(tmp_path: Path) -> Iterator[ControlStage]:
    """One key that is replaced."""
    stage = ControlStage(tmp_path, Strategy.REPLACE)
    yield stage
    stage.journal.close()


@pytest.fixture
def chosen_stage(tmp_path: Path) -> Iterator[ControlStage]:
    """One key whose secret is ours to choose."""
    stage = ControlStage(tmp_path, Strategy.CHOSEN)
    yield stage
    stage.journal.close()


@pytest.fixture
def in_place_stage(tmp_path: Path) -> Iterator[ControlStage]:
    """One key that is issued in place."""
    stage = ControlStage(tmp_path, Strategy.IN_PLACE)
    yield stage
    stage.journal.close()


# --- rotate --------------------------------------------------------------------------------------------------------


def test_a_replaced_key_rests_until_its_grace_is_over(replace_stage: ControlStage) -> None:
    """The consumers run on the new key, the old one is inactive, the key is shown as ok; then the old one is gone."""
    stage = replace_stage
    stage.control.rotate("key-0", now=True)
    stage.work()
    rotation, view = stage.rotation(), stage.control.key("key-0")
    assert rotation is not None
    assert resting(rotation)
    assert KeyState.OK.value == view["state"]
    assert view["rotation"]["retires_at"] is not None
    assert not stage.platform.keys["id-0"].active
    new = stage.record().id
    assert new == stage.consumers["key-0"].runs_on[0] != "id-0"
    stage.work(until=timedelta(hours=2))
    assert [new] == [key.id for key in stage.platform.family("id-0")]
    assert Result.SUCCEEDED is stage.last().result


def test_compromised_gives_the_old_key_no_grace(replace_stage: ControlStage) -> None:
    """`rotate --compromised`: the old key is deleted as soon as the consumers are proven on the new one."""
    replace_stage.control.rotate("key-0", now=True, compromised=True)
    replace_stage.work(until=timedelta(minutes=5))
    assert Result.SUCCEEDED is replace_stage.last().result
    assert Reason.COMPROMISED is replace_stage.last().trigger
    assert "id-0" not in replace_stage.platform.keys


def test_a_request_during_the_grace_ends_it_and_rotates_once_more(replace_stage: ControlStage) -> None:
    """Who asks while only the old key's end is awaited gets a rotation of the new one."""
    stage = replace_stage
    stage.control.rotate("key-0", now=True)
    stage.work()
    first = stage.record().id
    stage.control.rotate("key-0", now=True)
    stage.work()
    assert stage.record().id not in {first, "id-0"}
    assert "id-0" not in stage.platform.keys
    assert 2 == stage.platform.calls


# --- rollback ------------------------------------------------------------------------------------------------------


def test_rollback_during_the_grace(replace_stage: ControlStage) -> None:
    """The old key is active again, Vault and consumers are back on it, the new key is gone, the key is quarantined."""
    stage = replace_stage
    old = stage.vault.current("mqtt/key-0")
    stage.control.rotate("key-0", now=True)
    stage.work()
    stage.control.rollback("key-0")
    stage.work()
    assert (Result.ROLLED_BACK, Reason.ROLLBACK_REQUESTED) == (stage.last().result, stage.last().reason)
    assert old == stage.vault.current("mqtt/key-0")
    assert 3 == len(stage.vault.paths["mqtt/key-0"])
    assert ("id-0", old["password"]) == stage.consumers["key-0"].runs_on
    assert ["id-0"] == [key.id for key in stage.platform.family("id-0") if key.active]
    assert 1 == len(stage.platform.family("id-0"))
    assert ("id-0", Reason.ROLLBACK_REQUESTED) == (stage.record().id, stage.record().quarantine)


def test_rollback_of_a_chosen_secret_after_its_end(chosen_stage: ControlStage) -> None:
    """The previous version's secret is set again, and consumers run on it."""
    stage = chosen_stage
    old = stage.vault.current("mqtt/key-0")
    stage.control.rotate("key-0", now=True)
    stage.work()
    assert Result.SUCCEEDED is stage.last().result
    stage.control.rollback("key-0")
    stage.work()
    assert old == stage.vault.current("mqtt/key-0")
    assert stage.platform.accepts("id-0", old["password"])
    assert ("id-0", old["password"]) == stage.consumers["key-0"].runs_on
    assert Reason.ROLLBACK_REQUESTED is stage.last().trigger
    assert (Result.SUCCEEDED, Reason.ROLLBACK_REQUESTED) == (stage.last().result, stage.record().quarantine)
    stage.control.resume("key-0")
    assert stage.record().quarantine is None


def test_rollback_in_place_is_refused(in_place_stage: ControlStage) -> None:
    """The old secret died with the answer, and the words say so."""
    stage = in_place_stage
    with pytest.raises(Permanent, match="no rotation") as without:
        stage.control.rollback("key-0")
    assert Reason.ROLLBACK_IMPOSSIBLE is without.value.reason
    stage.on("consumer.restart", "app-0", Transient("no", reason=Reason.CONSUMER_TIMEOUT))
    stage.control.rotate("key-0", now=True)
    stage.engine.work("key-0")
    with pytest.raises(Permanent, match="issued in place") as during:
        stage.control.rollback("key-0")
    assert Reason.ROLLBACK_IMPOSSIBLE is during.value.reason


def test_rollback_after_the_old_key_is_gone_is_refused(replace_stage: ControlStage) -> None:
    """Nothing is pretended: the old key is deleted."""
    replace_stage.control.rotate("key-0", now=True, compromised=True)
    replace_stage.work()
    with pytest.raises(Permanent) as refused:
        replace_stage.control.rollback("key-0")
    assert Reason.ROLLBACK_IMPOSSIBLE is refused.value.reason


def test_a_consumer_that_never_comes_back_rolls_the_rotation_back(replace_stage: ControlStage) -> None:
    """No person needed: the restarts of the new secret fail, those of the old one work."""
    stage = replace_stage
    old = stage.vault.current("mqtt/key-0")

    def hook(point: str, _when: str, _whose: str) -> None:
        if point == "consumer.restart" and stage.vault.current("mqtt/key-0") != old:
            raise Transient("it does not start with this secret", reason=Reason.CONSUMER_RESTART_FAILED)

    stage.world.hook = hook
    stage.control.rotate("key-0", now=True)
    stage.work(until=timedelta(hours=3))
    assert (Result.ROLLED_BACK, Reason.CONSUMER_RESTART_FAILED) == (stage.last().result, stage.last().reason)
    assert old == stage.vault.current("mqtt/key-0")
    assert stage.consumers["key-0"].connected
    assert 1 == len(stage.platform.family("id-0"))


# --- confirm -------------------------------------------------------------------------------------------------------


def test_a_person_confirms_a_consumer_that_shows_no_proof(in_place_stage: ControlStage) -> None:
    """The rotation goes on to its end with the person's word for it."""
    stage = in_place_stage
    stage.on("consumer.restart", "app-0", Transient("no", reason=Reason.CONSUMER_TIMEOUT))
    stage.control.rotate("key-0", now=True)
    stage.engine.work("key-0")
    stuck = stage.rotation()
    assert stuck is not None
    assert Step.RESTART is stuck.step
    assert {"key": "key-0", "consumer": "app-0", "confirmed": True} == stage.control.confirm("key-0", "app-0")
    stage.work()
    assert Result.SUCCEEDED is stage.last().result
    assert stage.record().vault_version == stage.record().consumers["app-0"].confirmed_version


def test_a_person_confirms_after_a_rotation_that_failed(in_place_stage: ControlStage) -> None:
    """With the last consumer the case is closed: no gap, no failures."""
    stage = in_place_stage
    stage.on("consumer.restart", "app-0", Transient("no", reason=Reason.CONSUMER_TIMEOUT))
    stage.control.rotate("key-0", now=True)
    stage.work(until=timedelta(hours=3))
    assert Result.FAILED is stage.last().result
    assert stage.record().gap_started_at is not None
    stage.control.confirm("key-0", "app-0")
    assert (None, 0) == (stage.record().gap_started_at, stage.record().failures)
    assert KeyState.OK.value == stage.control.key("key-0")["state"]


def test_only_a_word_about_the_consumer_brings_it_to_the_version(in_place_stage: ControlStage) -> None:
    """`resume` is about the key, and leaves RotatorConsumerBehind; `confirm` ends it (docs/metrics.md)."""
    stage = in_place_stage
    stage.on("consumer.restart", "app-0", Transient("no", reason=Reason.CONSUMER_TIMEOUT))
    stage.control.rotate("key-0", now=True)
    stage.work(until=timedelta(hours=3))
    stage.control.resume("key-0")
    assert 0 < versions_behind(stage.record(), "app-0")
    stage.control.confirm("key-0", "app-0")
    assert 0 == versions_behind(stage.record(), "app-0")


def test_nobody_is_confirmed_before_the_promote(in_place_stage: ControlStage) -> None:
    """A consumer can't run on what Vault does not hold; a stranger can't be confirmed at all."""
    stage = in_place_stage
    stage.on("vault.put", "", Transient("sealed", reason=Reason.VAULT_SEALED))
    stage.control.rotate("key-0", now=True)
    stage.engine.work("key-0")
    with pytest.raises(Permanent) as early:
        stage.control.confirm("key-0", "app-0")
    assert Reason.CONSUMER_NOT_CONFIRMED is early.value.reason
    with pytest.raises(Permanent, match="its consumers are app-0") as stranger:
        stage.control.confirm("key-0", "app-9")
    assert Reason.BAD_REQUEST is stranger.value.reason  # and not one whose advice is about units and programs


# --- what status shows ---------------------------------------------------------------------------------------------


def test_status_shows_the_checks_of_the_last_preflight(in_place_stage: ControlStage) -> None:
    """Each with its name; the one that failed with its words, and nothing was issued."""
    stage = in_place_stage
    assert stage.control.key("key-0")["preflight"] is None
    stage.on("vault.preflight", "", Permanent("the policy allows no write", reason=Reason.VAULT_DENIED))
    stage.control.rotate("key-0", now=True)
    stage.engine.work("key-0")
    shown = stage.control.key("key-0")["preflight"]
    assert not shown["ok"]
    assert [True, True, False] == [check["ok"] for check in shown["checks"]]
    assert "the policy allows no write" == shown["checks"][-1]["detail"]
    assert 0 == stage.platform.calls
    stage.world.hook = lambda point, when, whose: None
    stage.control.rotate("key-0", now=True)
    stage.work()
    assert stage.control.key("key-0")["preflight"]["ok"]
    assert 1 == stage.platform.calls


# --- recover -------------------------------------------------------------------------------------------------------


def test_recover_writes_what_waits_and_goes_no_further(in_place_stage: ControlStage) -> None:
    """Vault was away; the sealed secret is written, and the consumers are left to the daemon."""
    stage = in_place_stage
    stage.on("vault.put", "", Transient("sealed", reason=Reason.VAULT_SEALED))
    stage.control.rotate("key-0", now=True)
    stage.engine.work("key-0")
    (told,) = Recovery(engine=stage.engine).recover()
    assert (False, "vault_sealed") == (told["ok"], told["reason"])
    stage.world.hook = lambda point, when, whose: None
    (told,) = Recovery(engine=stage.engine).recover("key-0")
    assert (True, 2) == (told["ok"], told["version"])
    assert stage.platform.keys["id-0"].secret == stage.vault.current("mqtt/key-0")["password"]
    assert 0 == stage.consumers["key-0"].restarts
    assert [] == Recovery(engine=stage.engine).recover()
    stage.work()
    assert Result.SUCCEEDED is stage.last().result


# --- the stampede --------------------------------------------------------------------------------------------------


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[ControlStage]:
    """25 keys, due after 60 of their 90 days."""
    stage = ControlStage(tmp_path, Strategy.IN_PLACE, keys=25)
    yield stage
    stage.journal.close()


def issue_all(stage: ControlStage) -> int:
    for name in stage.keys:
        stage.engine.work(name)
    return stage.platform.calls


def test_a_fleet_that_comes_due_as_planned_is_rotated(fleet: ControlStage) -> None:
    """All made on the same day: that is no stampede, after an absence of the daemon neither."""
    fleet.world.clock.pass_time(timedelta(days=70))
    fleet.boot()
    assert 25 == issue_all(fleet)


def test_a_fleet_that_comes_due_against_the_plan_is_held(fleet: ControlStage) -> None:
    """Somebody wrote 89d where 30d stood: nothing is issued, each key says why, one can be forced, all resumed."""
    fleet.boot(policy=Policy(before_expiry=timedelta(days=89, hours=23, minutes=59)))
    fleet.world.clock.pass_time(timedelta(minutes=2))
    fleet.look()
    assert 0 == issue_all(fleet)
    view = fleet.control.key("key-3")
    assert ("blocked", "stampede", "stampede") == (view["state"], view["reason"], view["needs_a_person"])
    assert 25 == len([event for event in fleet.events if event.reason is Reason.STAMPEDE])
    assert 0 == issue_all(fleet)
    assert 25 == len([event for event in fleet.events if event.reason is Reason.STAMPEDE])
    fleet.control.rotate("key-3", now=True)
    assert 1 == issue_all(fleet)
    fleet.boot()  # a restart forgets nothing
    assert 1 == issue_all(fleet)
    for name in fleet.keys:
        fleet.control.resume(name)
    assert 25 == issue_all(fleet)


def test_a_few_that_come_due_against_the_plan_are_rotated(fleet: ControlStage) -> None:
    """The platform moved two expiries forward: less than a tenth of the fleet."""
    fleet.world.clock.pass_time(timedelta(days=50))
    for id in ("id-1", "id-2"):
        key = fleet.platform.keys[id]
        fleet.platform.keys[id] = type(key)(
            id=key.id,
            family=key.family,
            secret=key.secret,
            issued_at=key.issued_at,
            expires_at=fleet.world.clock.true + timedelta(days=20),
        )
    fleet.look()
    assert 2 == issue_all(fleet)


def test_a_small_fleet_is_never_held(tmp_path: Path) -> None:
    """Twenty keys may all come due at once."""
    stage = ControlStage(tmp_path, Strategy.IN_PLACE, keys=20)
    stage.boot(policy=Policy(before_expiry=timedelta(days=89, hours=23, minutes=59)))
    stage.world.clock.pass_time(timedelta(minutes=2))
    stage.look()
    assert 20 == issue_all(stage)
    stage.journal.close()
