"""Promoting: nobody is overwritten without the broker's word, and what is written over unread is only ours (rule 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from fakes import START, FakeStore, Stage
from rotator.errors import Conflict, Transient
from rotator.keys import state
from rotator.model import Identity, KeyState, ProbeResult, ProbeTarget, Result, Secret, Verdict
from rotator.promoting import only_over, write
from rotator.reasons import Reason
from rotator.rotation import Rotation
from rotator.steps import Secrets

OLD, NEW = Identity(id="id-1", username="id-1"), Identity(id="id-2", username="id-2")
BASE = {"username": "id-1", "password": "old"}
FRESH = {"username": "id-2", "password": "new"}


@dataclass
class Gate:
    """A broker that lets in whom the test names, and remembers who came."""

    accepts: set[tuple[str, str]] = field(default_factory=set)
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def probe(self, target: ProbeTarget) -> ProbeResult:
        login = (target.username, target.password.reveal())
        self.asked.append(login)
        usual = Verdict.ACCEPTED if login in self.accepts else Verdict.REFUSED
        return ProbeResult(verdict=self.verdicts.get(login, usual))


class Desk:
    """One write of a rotation that replaced id-1 by id-2, over a store and a broker."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.gate = stage, Gate(accepts={("id-2", "new")})
        self.store = FakeStore(versions=[dict(BASE)])
        self.key = stage.key
        self.world = replace(stage.engine.world, store=self.store, prober=self.gate)
        self.rotation = Rotation(
            id="r" * 32,
            key="building-a",
            provider="acme",
            identity=OLD,
            new_identity=NEW,
            trigger=Reason.NEAR_EXPIRY,
            started_at=START,
            base_version=1,
            base_print=self.print_of(BASE),
            expected=self.print_of(BASE),
            base_alone=True,
        )

    def print_of(self, fields: Mapping[str, object]) -> str:
        return self.world.fingerprints.of(fields)

    def put(self, **fields: str) -> None:
        """Somebody else changes fields."""
        self.store.versions.append({**self.store.versions[-1], **fields})

    def write(self) -> int:
        version, prints = write(self.world, self.key, self.rotation, FRESH, Secret("new"))
        assert self.print_of(FRESH) == prints
        return version


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    stage.introduce()
    yield stage
    stage.shut_down()


@pytest.fixture
def desk(stage: Stage) -> Desk:
    return Desk(stage)


# --- what is known is written over without a look --------------------------------------------------------------------


def test_what_preflight_saw_is_written_over_unread(desk: Desk) -> None:
    """Nothing but our fields, and the same version still: one request, and nobody is asked."""
    assert (2, FRESH) == (desk.write(), desk.store.versions[-1])
    assert (0, []) == (desk.store.reads, desk.gate.asked)


def test_somebody_came_before_the_write_over_the_known_version(desk: Desk) -> None:
    """A field of theirs written since preflight is merged, not lost."""
    desk.put(note="theirs")
    assert 3 == desk.write()
    assert {**FRESH, "note": "theirs"} == desk.store.versions[-1]


def test_a_path_with_a_foreign_field_is_never_written_over_unread(desk: Desk) -> None:
    """What preflight saw was not ours alone."""
    desk.store.versions[0]["note"] = "theirs"
    desk.rotation = replace(desk.rotation, base_alone=False)
    assert 2 == desk.write()
    assert {**FRESH, "note": "theirs"} == desk.store.versions[-1]


def test_an_answer_that_was_lost_is_not_written_twice(desk: Desk) -> None:
    """The write took effect and its answer never came: found by reading."""
    assert [2, 2] == [desk.write(), desk.write()]
    assert 2 == len(desk.store.versions)


def test_a_way_back_reads_before_it_writes(desk: Desk) -> None:
    """The base is not what Vault holds by then: ours from before must not go over it unread."""
    desk.write()
    desk.put(note="theirs")
    back = replace(desk.rotation, expected=desk.print_of(FRESH), rolling_back=Reason.ROLLBACK_REQUESTED)
    write(desk.world, desk.key, back, BASE, Secret("old"))
    assert {**BASE, "note": "theirs"} == desk.store.versions[-1]


# --- conflicts -------------------------------------------------------------------------------------------------------


def test_the_broker_settles_it(desk: Desk) -> None:
    """Theirs is refused and ours accepted: ours is written, their other fields stay."""
    desk.put(password="by hand", note="theirs")
    assert 3 == desk.write()
    assert {**FRESH, "note": "theirs"} == desk.store.versions[-1]


@pytest.mark.parametrize(
    ("who", "verdict"),
    [
        ("theirs", Verdict.ACCEPTED),
        ("theirs", Verdict.UNREACHABLE),
        ("theirs", Verdict.SUBSCRIPTION_REFUSED),
        ("ours", Verdict.REFUSED),
        ("ours", Verdict.UNREACHABLE),
        ("ours", Verdict.SUBSCRIPTION_REFUSED),
    ],
)
def test_anything_less_than_a_clear_word_is_a_conflict(desk: Desk, who: str, verdict: Verdict) -> None:
    """A broker that can't be asked has refused nothing (rule 2), and a filter is no login."""
    desk.put(username="id-2", password="by hand")
    desk.gate.verdicts[("id-2", "by hand" if who == "theirs" else "new")] = verdict
    with pytest.raises(Conflict) as caught:
        desk.write()
    assert (Reason.VAULT_CONFLICT, 2) == (caught.value.reason, len(desk.store.versions))


def test_theirs_is_tried_as_whom_they_named(desk: Desk) -> None:
    """They put another key into Vault, which works: as our key it would be refused, and is not ours to write over."""
    desk.put(username="id-9", password="of another key")
    desk.gate.accepts.add(("id-9", "of another key"))
    with pytest.raises(Conflict):
        desk.write()
    assert "of another key" == desk.store.versions[-1]["password"]


def test_a_new_secret_of_the_old_key_is_tried_as_the_old_key(desk: Desk) -> None:
    """Replace, a field for the secret alone: somebody renewed the old key by hand, and Vault says so no more."""
    desk.key = replace(desk.key, fields={"password": "{secret}"})
    prints = desk.print_of({"password": "old"})
    desk.rotation = replace(desk.rotation, expected=prints, base_print=prints)
    desk.put(password="renewed by hand")
    desk.gate.accepts.add(("id-1", "renewed by hand"))
    with pytest.raises(Conflict):
        write(desk.world, desk.key, desk.rotation, {"password": "new"}, Secret("new"))


def test_without_a_probe_nobody_can_settle_it(desk: Desk) -> None:
    """A key that can't be proven stops at a conflict, whatever stands there."""
    desk.key = replace(desk.key, probe=None)
    desk.put(password="by hand")
    with pytest.raises(Conflict):
        desk.write()
    assert [] == desk.gate.asked


def test_take_over_writes_without_asking(desk: Desk) -> None:
    """`on_conflict: take_over`: over ours whatever they are; their other fields stay all the same."""
    desk.world = replace(desk.world, on_conflict_take_over=True)
    desk.put(password="by hand", note="theirs")
    desk.gate.accepts.add(("id-1", "by hand"))
    desk.write()
    assert ({**FRESH, "note": "theirs"}, []) == (desk.store.versions[-1], desk.gate.asked)


def test_who_writes_while_the_broker_is_asked_is_judged_again(desk: Desk) -> None:
    """The word that was given is of another version: `cas` misses, and the new one works."""
    desk.put(username="id-2", password="a slip")
    desk.gate.accepts.add(("id-2", "the right one"))
    desk.store.between.append(lambda: desk.put(password="never mind"))  # what preflight saw is written over first
    desk.store.between.append(lambda: desk.put(password="the right one"))
    with pytest.raises(Conflict):
        desk.write()
    assert "the right one" == desk.store.versions[-1]["password"]


def test_a_deletion_since_preflight_is_settled_by_the_broker(desk: Desk) -> None:
    """Nothing of theirs is there to try: ours must be accepted all the same."""
    desk.put(note="theirs")
    desk.store.gone[2] = False
    desk.gate.accepts.clear()
    with pytest.raises(Conflict):
        desk.write()
    desk.gate.accepts.add(("id-2", "new"))
    assert (3, FRESH) == (desk.write(), desk.store.versions[-1])


def test_a_new_base_asks_nobody(desk: Desk) -> None:
    """A person insisted, or a lost answer killed what was there: no `expected`, so nothing to compare with."""
    desk.rotation = replace(desk.rotation, expected=None)
    desk.put(password="by hand")
    assert (3, []) == (desk.write(), desk.gate.asked)


def test_only_over_names_what_changed() -> None:
    """Adopting and provisioning: the names, never the values."""
    judge = only_over("mqtt/a", {"username": "id-1"}, {"username": "x", "password": "y"})
    store = FakeStore(versions=[{"username": "id-1"}, {"username": "id-1", "password": "theirs"}])
    judge(store.read("mqtt/a", 1))
    with pytest.raises(Conflict, match="changed password") as caught:
        judge(store.read("mqtt/a", 2))
    assert "theirs" not in caught.value.message


# --- one path, several keys ------------------------------------------------------------------------------------------


def test_a_neighbours_new_fields_are_neither_a_conflict_nor_lost(desk: Desk) -> None:
    """It promoted while ours was issued: our fields are as they were, its version stays below ours."""
    desk.put(b_user="b", b_password="b-new")
    assert 3 == desk.write()
    assert {**FRESH, "b_user": "b", "b_password": "b-new"} == desk.store.versions[-1]
    assert [] == desk.gate.asked


def test_a_rollback_leaves_the_neighbours_newer_fields(desk: Desk) -> None:
    """The old secret comes from the base version, and with it nothing that the neighbour has replaced since."""
    desk.store.versions[0].update(b_user="b", b_password="b-old")
    desk.rotation = replace(desk.rotation, base_alone=False)
    desk.write()
    desk.put(b_password="b-new")
    held = Secrets(desk.world).previous(desk.key, desk.rotation)
    assert held is not None
    assert ("old", BASE) == (held[0].reveal(), held[1])
    back = replace(desk.rotation, expected=desk.print_of(FRESH), rolling_back=Reason.ROLLBACK_REQUESTED)
    write(desk.world, desk.key, back, held[1], held[0])
    assert {**BASE, "b_user": "b", "b_password": "b-new"} == desk.store.versions[-1]


def test_a_way_back_that_is_no_longer_ours_is_none(desk: Desk) -> None:
    """The base version was destroyed, or holds something else under its number."""
    assert Secrets(desk.world).previous(desk.key, desk.rotation) is not None
    desk.store.versions[0]["password"] = "another"
    assert Secrets(desk.world).previous(desk.key, desk.rotation) is None
    desk.store.versions[0]["password"] = "old"
    desk.store.gone[1] = True
    assert Secrets(desk.world).previous(desk.key, desk.rotation) is None


# --- in the engine ---------------------------------------------------------------------------------------------------


def somebody_writes_at_the_issue_call(stage: Stage, **fields: str) -> None:
    """Between preflight and promote."""
    issue = stage.platform.issue

    def issue_while_somebody_writes(identity: Identity):  # type: ignore[no-untyped-def]
        stage.store.versions.append({**stage.store.versions[-1], **fields})
        return issue(identity)

    stage.platform.issue = issue_while_somebody_writes  # type: ignore[method-assign]


def test_a_broker_that_hears_late_settles_the_conflict_by_itself(stage: Stage) -> None:
    """In place, the platform's propagation time: ours is refused for a while, then accepted; no person is needed."""
    somebody_writes_at_the_issue_call(stage, password="a slip")
    stage.broker.verdicts += [Verdict.REFUSED] * 4  # theirs and ours, twice
    stage.work()
    rotation = stage.journal.open_rotation("building-a")
    assert rotation is not None
    assert (Reason.VAULT_CONFLICT, Reason.VAULT_CONFLICT) == (rotation.quarantine, stage.record.drift)
    assert KeyState.QUARANTINED is state(stage.record, rotation, stage.clock.now())
    assert "a slip" == stage.current
    stage.work(30)
    assert ("secret-1", "secret-1", 1) == (stage.current, stage.consumer.runs_on, stage.platform.issued)
    assert (Result.SUCCEEDED, None) == (stage.journal.recent_rotations()[0].result, stage.record.drift)


def test_a_persons_word_ends_a_conflict(stage: Stage) -> None:
    """What somebody wrote works, so only `rotate --now` goes on; nothing is issued for it a second time."""
    somebody_writes_at_the_issue_call(stage, password="by hand")
    stage.broker.verdicts += [Verdict.ACCEPTED] * 50
    stage.work(20, step=timedelta(minutes=5))
    assert "by hand" == stage.current
    stage.introduce(requested="now")
    stage.broker.verdicts.clear()
    stage.work(5)
    assert ("secret-1", 1, None) == (stage.current, stage.platform.issued, stage.record.drift)


def test_a_path_that_never_rests_is_no_drift(stage: Stage) -> None:
    """Others write other fields all the time: nobody touched ours, so nobody is accused and no person is called."""
    put = stage.store.put
    tries: list[int] = []

    def put_over_a_busy_path(path: str, fields: Mapping[str, str], **how):  # type: ignore[no-untyped-def]
        tries.append(1)
        if len(tries) < 4:
            raise Transient("it changed under 5 writes in a row", reason=Reason.VAULT_CONFLICT)
        return put(path, fields, **how)

    stage.store.put = put_over_a_busy_path  # type: ignore[method-assign]
    stage.work()
    rotation = stage.journal.open_rotation("building-a")
    assert rotation is not None
    assert (None, None, Reason.VAULT_UNAVAILABLE) == (stage.record.drift, rotation.quarantine, rotation.reason)
    stage.work(10)
    assert ("secret-1", "secret-1") == (stage.current, stage.consumer.runs_on)


def test_the_key_of_the_fingerprints_is_new_in_the_middle_of_a_rotation(desk: Desk) -> None:
    """Nothing compares equal any more; the broker says that the old secret is dead, and ours goes in."""
    desk.rotation = replace(desk.rotation, base_print="print of a lost key", expected="print of a lost key")
    desk.put(note="theirs")
    assert 3 == desk.write()
    desk.store.versions = [dict(BASE), {**BASE, "note": "theirs"}]
    desk.gate.accepts.add(("id-1", "old"))
    with pytest.raises(Conflict):
        desk.write()
