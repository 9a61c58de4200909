"""Drift: what became of our version has a name, and `on_drift: restore` puts back what works, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fakes import START, FakeStore, Stage
from rotator import drift
from rotator.engine import Engine
from rotator.errors import Permanent
from rotator.keys import ISSUE_IN_WINDOW, ConsumerFacts, KeyRecord, versions_behind
from rotator.model import ProbeResult, ProbeTarget, RotationEvent, StoredSecret, Verdict
from rotator.policy import Policy, Window
from rotator.reasons import Reason
from rotator.rotation import Limits
from rotator.taking_up import introduce
from rotator.watcher import Watcher

INTERVAL = timedelta(minutes=30)
OURS = {"username": "id-1", "password": "secret-0"}
# Sunday nights; the stage's time is a Saturday morning.
SUNDAYS = Policy(before_expiry=timedelta(days=14), windows=(Window(cron="0 22 * * 0", duration=timedelta(hours=2)),))


class Guard(Stage):
    """A stage whose watcher restores, and whose key is not due for weeks."""

    def __init__(self, directory: Path, **options: object) -> None:
        super().__init__(directory, **options)  # type: ignore[arg-type]
        self.when: dict[str, Callable[[], None]] = {}  # an event's name → what happens as soon as it is told
        self.platform.issued_at = START - timedelta(days=1)
        self.introduce(rotate_at=None)
        self.watch_out()
        self.look()

    def boot(self) -> None:
        super().boot()
        self.engine._observers = (*self.engine._observers, self._then)

    def _then(self, event: RotationEvent) -> None:
        self.when.pop(event.name, lambda: None)()

    def watch_out(self, *, restore: bool = True) -> None:
        """A watcher of this configuration, whose first look is to come."""
        self.watcher = Watcher(
            self.engine, {"acme": self.platform}, watch=INTERVAL, drift_interval=INTERVAL, restore=restore
        )

    def look(self, rounds: int = 1) -> None:
        """What the daemon does in so many intervals; the engine has not come by yet."""
        for _ in range(rounds):
            self.clock.pass_time(INTERVAL)
            self.watcher.keep_vault_login()
            self.watcher.look_at_provider("acme")
            self.watcher.look_at_vault()

    def probe(self) -> None:
        self.watcher.probe_secrets()

    def somebody_writes(self, **fields: str) -> None:
        self.store.versions.append({**self.store.versions[-1], **fields})

    def told(self, name: str) -> list[Reason | None]:
        return [event.reason for event in self.events if event.name == name]

    def left_alone(self, reason: Reason) -> None:
        """Drift is told, and nothing is done."""
        writes, gone = len(self.store.versions), dict(self.store.gone)
        self.look(2)
        assert reason is self.record.drift
        assert (writes, gone, []) == (len(self.store.versions), self.store.gone, self.store.undeleted)
        assert ([], [], "") == (self.told("restored"), self.told("requested"), self.record.requested)


def change(guard: Guard, name: str = "building-a", **facts: object) -> None:
    """Somebody changes a key's record."""

    def changed(old: KeyRecord | None) -> KeyRecord:
        assert old is not None
        return replace(old, **facts)  # type: ignore[arg-type]

    guard.journal.save(key=name, change=changed)


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Guard]:
    guard = Guard(tmp_path)
    assert (True, 1, None) == (guard.record.adopted, guard.record.vault_version, guard.record.drift)
    yield guard
    guard.shut_down()


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        (StoredSecret(version=4, data=None), Reason.VAULT_DELETED),
        (StoredSecret(version=4, data=None, destroyed=True), Reason.VAULT_DESTROYED),
        (StoredSecret(version=0, data=None), Reason.VAULT_DESTROYED),
        (StoredSecret(version=3, data={}), Reason.VAULT_DRIFT),
        (StoredSecret(version=4, data={}), Reason.VAULT_OVERWRITTEN),
        (StoredSecret(version=5, data={}), Reason.VAULT_OVERWRITTEN),
    ],
)
def test_what_happened_has_a_name(stored: StoredSecret, name: Reason) -> None:
    """Deleted, destroyed (the whole path as well), behind us, or written over."""
    assert name is drift.named(KeyRecord(name="a", provider="acme", id="1", vault_version=4), stored)


# --- put back --------------------------------------------------------------------------------------------------------


def test_a_deleted_version_is_undeleted(guard: Guard) -> None:
    """With all that others keep in it; no new version, and nothing is rotated."""
    guard.store.gone[1] = False
    guard.look()
    assert ({}, 1, [1]) == (guard.store.gone, len(guard.store.versions), guard.store.undeleted)
    assert ([Reason.VAULT_DELETED], None, 1) == (guard.told("restored"), guard.record.drift, guard.record.vault_version)
    guard.look(3)
    assert [Reason.VAULT_DELETED] == guard.told("drift") == guard.told("restored")


def test_an_overwritten_version_is_copied(guard: Guard) -> None:
    """Ours over what is there now, whose other fields stay; it is no drift afterwards, nor copied again."""
    guard.somebody_writes(password="a slip", theirs="newer", more="of theirs")
    guard.look()
    assert {**OURS, "theirs": "newer", "more": "of theirs"} == guard.store.versions[-1]
    assert (None, 1) == (guard.record.drift, guard.record.vault_version)
    guard.look(5)
    assert (3, 1) == (len(guard.store.versions), len(guard.told("restored")))
    guard.work(5)
    assert 0 == guard.platform.issued


def test_a_destroyed_version_is_copied_from_one_that_held_the_same(guard: Guard) -> None:
    """Somebody changed a field of theirs, so an older version holds our fields as well."""
    guard.somebody_writes(theirs="newer")
    guard.look()
    guard.store.gone[2] = True
    guard.look()
    assert (OURS, 3) == (guard.store.versions[-1], len(guard.store.versions))
    assert [Reason.VAULT_DESTROYED] == guard.told("restored")


def test_ours_is_found_however_deep_it_lies(guard: Guard) -> None:
    """Somebody wrote more versions since than are looked through."""
    for number in range(drift.LOOK_BACK + 3):
        guard.somebody_writes(password=f"slip {number}")
    guard.look()
    assert (OURS["password"], [Reason.VAULT_OVERWRITTEN]) == (guard.current, guard.told("restored"))


def test_a_vault_from_a_backup_has_ours_no_more(guard: Guard) -> None:
    """Version 2 is behind our 5, and none of its secrets lives: a new one is asked for."""
    change(guard, vault_version=5, fingerprint="of version 5")
    guard.platform.live = "of version 5"
    guard.look()
    assert (Reason.VAULT_DRIFT, ISSUE_IN_WINDOW) == (guard.record.drift, guard.record.requested)
    assert 1 == len(guard.store.versions)


def test_a_copy_leaves_consumers_as_far_behind_as_they_were(guard: Guard) -> None:
    """Who ran on our version has nothing newer to read; who was behind stays behind."""
    facts = {
        "ingest": ConsumerFacts(version=1, confirmed_version=1),
        "late": ConsumerFacts(version=1, confirmed_version=0),
        "older": ConsumerFacts(version=0),
    }
    change(guard, consumers=facts)
    guard.somebody_writes(password="a slip")
    guard.look()
    assert ("secret-0", 1) == (guard.current, guard.record.vault_version)
    assert [0, 1, 1] == [versions_behind(guard.record, name) for name in facts]


def test_a_vault_that_was_set_back_counts_lower() -> None:
    """Ours was version 7 and is a copy in version 4: who ran on ours runs on that."""
    facts = {
        "ingest": ConsumerFacts(version=7, confirmed_version=7),
        "late": ConsumerFacts(version=7, confirmed_version=3),
        "older": ConsumerFacts(version=2),
    }
    record = KeyRecord(name="a", provider="acme", id="1", vault_version=7, drift=Reason.VAULT_DRIFT, consumers=facts)
    after = drift.restored(record, 4)
    assert (4, None) == (after.vault_version, after.drift)
    assert [0, 1, 2] == [versions_behind(after, name) for name in facts]


# --- not put back ----------------------------------------------------------------------------------------------------


def test_alert_only_tells(guard: Guard) -> None:
    """`on_drift: alert`."""
    guard.watch_out(restore=False)
    guard.store.gone[1] = False
    guard.left_alone(Reason.VAULT_DELETED)


def test_what_works_is_not_written_over_by_what_does_not(guard: Guard) -> None:
    """Somebody rotated by hand, and wrote it down in Vault."""
    guard.platform.live = "by hand"
    guard.somebody_writes(password="by hand")
    guard.left_alone(Reason.VAULT_OVERWRITTEN)


def test_theirs_is_tried_as_whom_they_named(guard: Guard) -> None:
    """They put another key into Vault, which works, and ours is gone: no new secret for a key that was moved away."""

    def probe(target: ProbeTarget) -> ProbeResult:
        return ProbeResult(verdict=Verdict.ACCEPTED if target.username == "id-9" else Verdict.REFUSED)

    guard.broker.probe = probe  # type: ignore[method-assign]
    guard.somebody_writes(username="id-9", password="of another key")
    guard.left_alone(Reason.VAULT_OVERWRITTEN)


@pytest.mark.parametrize("verdict", [Verdict.UNREACHABLE, Verdict.SUBSCRIPTION_REFUSED])
def test_without_the_brokers_word_nothing_is_copied(guard: Guard, verdict: Verdict) -> None:
    """It can't be asked, or has something else against it: neither put back nor given up (rule 2)."""
    broker = guard.broker.probe

    def probe(target: ProbeTarget) -> ProbeResult:
        return ProbeResult(verdict=verdict) if target.password.reveal() == OURS["password"] else broker(target)

    guard.broker.probe = probe  # type: ignore[method-assign]
    guard.somebody_writes(password="a slip")
    guard.left_alone(Reason.VAULT_OVERWRITTEN)


def test_a_deletion_is_taken_back_though_the_broker_is_away(guard: Guard) -> None:
    """It refused nothing, and nothing stands there that could be lost."""
    guard.store.gone[1] = False
    guard.broker.verdicts = [Verdict.UNREACHABLE] * 10
    guard.look()
    assert ({}, None) == (guard.store.gone, guard.record.drift)


def test_what_the_last_probe_refused_is_not_undeleted(guard: Guard) -> None:
    """Somebody revoked the key and took its secret out of Vault: a new one is asked for (rule 2)."""
    guard.platform.live = "another"
    guard.probe()
    assert Verdict.REFUSED is guard.record.verdict
    guard.store.gone[1] = False
    guard.look()
    assert ([], {1: False}, ISSUE_IN_WINDOW) == (guard.store.undeleted, guard.store.gone, guard.record.requested)


def test_a_key_that_can_not_be_proven(guard: Guard) -> None:
    """What is missing is put back; over something else nothing is written."""
    guard.with_verify = False
    guard.shut_down()
    guard.boot()
    guard.watch_out()
    guard.store.gone[1] = False
    guard.look()
    assert ({}, None) == (guard.store.gone, guard.record.drift)
    guard.store.versions.append({"theirs": "kept"})
    guard.look()
    assert ({**OURS, "theirs": "kept"}, None) == (guard.store.versions[-1], guard.record.drift)
    guard.store.undeleted.clear()
    guard.events.clear()
    guard.somebody_writes(password="who knows")
    guard.left_alone(Reason.VAULT_OVERWRITTEN)


@pytest.mark.parametrize(
    ("paused", "quarantine"), [(True, None), (False, Reason.ROLLBACK_FAILED)], ids=["paused", "quarantined"]
)
@pytest.mark.parametrize("wrong", ["deleted", "overwritten", "destroyed"])
def test_while_a_person_is_at_it_nothing_is_put_back(
    guard: Guard, paused: bool, quarantine: Reason | None, wrong: str
) -> None:
    """Who decides between two keys by hand is not written over; nor is a request left for later."""
    change(guard, paused=paused, quarantine=quarantine)
    if wrong == "overwritten":
        guard.somebody_writes(password="a slip")
    else:
        guard.store.gone[1] = wrong == "destroyed"
    guard.left_alone(Reason[f"VAULT_{wrong.upper()}"])


def test_observing_changes_nothing_at_all(guard: Guard) -> None:
    """`mode: observe`, with `on_drift: restore`: deletion, destruction and overwriting are told."""
    guard.engine._observe_only = True
    guard.store.gone[1] = False
    guard.left_alone(Reason.VAULT_DELETED)
    guard.store.gone[1] = True
    guard.left_alone(Reason.VAULT_DESTROYED)
    guard.store.gone.clear()
    guard.somebody_writes(password="a slip")
    guard.left_alone(Reason.VAULT_OVERWRITTEN)
    guard.work(3)
    assert (0, 0, 2) == (guard.platform.issued, guard.consumer.restarts, len(guard.store.versions))


def test_somebody_elses_secret_at_the_platform_is_no_business_of_vault(guard: Guard) -> None:
    """`issued_elsewhere` stays the name, and what is in Vault is left as it is."""
    change(guard, drift=Reason.ISSUED_ELSEWHERE)
    guard.store.gone[1] = False
    guard.left_alone(Reason.ISSUED_ELSEWHERE)


# --- rotated instead -------------------------------------------------------------------------------------------------


def test_what_can_not_be_put_back_is_rotated(guard: Guard) -> None:
    """Destroyed: a new secret, in Vault and at the consumer, and no drift is left."""
    guard.store.gone[1] = True
    guard.look()
    assert ([Reason.VAULT_DESTROYED], ISSUE_IN_WINDOW) == (guard.told("requested"), guard.record.requested)
    guard.work(3)
    assert (1, "secret-1", "secret-1") == (guard.platform.issued, guard.current, guard.consumer.runs_on)
    guard.look(3)
    assert (None, "", 1) == (guard.record.drift, guard.record.requested, guard.platform.issued)


def test_the_rotation_waits_for_its_window_and_is_told_once(tmp_path: Path) -> None:
    """However often Vault is looked at until then."""
    guard = Guard(tmp_path, policy=SUNDAYS)
    guard.store.gone[1] = True
    for _ in range(20):
        guard.look()
        guard.work()
    assert (0, [Reason.VAULT_DESTROYED]) == (guard.platform.issued, guard.told("requested"))
    for _ in range(80):
        guard.look()
        guard.work()
    assert (1, "secret-1") == (guard.platform.issued, guard.current)
    guard.shut_down()


def test_a_platform_that_wants_to_see_the_current_secret_is_not_asked(tmp_path: Path) -> None:
    """Vault holds none that it would take: an issue call could only fail, so a person is told of the drift alone."""
    guard = Guard(tmp_path, limits=Limits(needs_current=True, settle=timedelta(0)))
    guard.store.gone[1] = True
    guard.left_alone(Reason.VAULT_DESTROYED)
    guard.shut_down()


def test_a_vault_that_lost_everything_has_no_fleet_issued_anew(guard: Guard) -> None:
    """More than the share of a fleet of over 20: held, and an alert, until a person speaks (rule 11)."""
    keys = {f"key-{n}": replace(guard.key, name=f"key-{n}") for n in range(25)}
    introduce(guard.journal, keys, guard.clock)
    engine = Engine(
        keys, guard.engine.world, observers=[guard.events.append], spool=guard.engine.spool, max_due_share=0.2
    )
    guard.watcher = Watcher(engine, {"acme": guard.platform}, watch=INTERVAL, drift_interval=INTERVAL, restore=True)
    guard.look()
    guard.store.gone[1] = True
    guard.look(2)  # the provider's list, which makes nothing due, does not let them go
    for name in keys:
        engine.work(name)
    assert (25, 0) == (len(guard.told("requested")), guard.platform.issued)
    assert {Reason.STAMPEDE} == {record.held_back for record in guard.journal.all_keys()}
    change(guard, "key-3", requested="now")
    engine.work("key-3")
    assert 1 == guard.platform.issued


# --- races -----------------------------------------------------------------------------------------------------------


def test_a_persons_fix_wins(guard: Guard) -> None:
    """It comes between our look and our write: `cas` misses, and theirs stays; the next look decides anew."""
    guard.somebody_writes(password="a slip")
    guard.store.between.append(lambda: guard.somebody_writes(password="mended", theirs="by a person"))
    guard.platform.live = "secret-0"
    guard.look()
    assert ("mended", []) == (guard.current, guard.told("restored"))


def test_a_write_over_the_deleted_version_wins(guard: Guard) -> None:
    """Undeleting is no write: what somebody wrote meanwhile is current, and nothing is said to be restored."""
    undelete = guard.store.undelete

    def undelete_late(path: str, version: int) -> None:
        guard.somebody_writes(password="mended")
        undelete(path, version)

    guard.store.undelete = undelete_late  # type: ignore[method-assign]
    guard.store.gone[1] = False
    guard.look()
    assert ("mended", []) == (guard.current, guard.told("restored"))
    assert Reason.VAULT_DELETED is guard.record.drift


def test_a_rotation_between_the_look_and_the_repair(guard: Guard) -> None:
    """What was seen is of before it: nothing is put back, and nothing is said of it."""
    guard.somebody_writes(password="a slip")

    def rotate() -> None:
        change(guard, requested="now")
        guard.work(2)

    guard.when["drift"] = rotate
    guard.look()
    assert ("secret-1", []) == (guard.current, guard.told("restored") + guard.told("requested"))
    assert ("secret-1", 1, None) == (guard.consumer.runs_on, guard.platform.issued, guard.record.drift)


def test_a_pause_between_the_look_and_the_repair(guard: Guard) -> None:
    """A person who pauses a key is heard at once."""
    guard.when["drift"] = lambda: change(guard, paused=True)
    guard.somebody_writes(password="a slip")
    guard.look()
    assert ("a slip", True) == (guard.current, guard.record.paused)


def test_a_whole_rotation_while_vault_is_read(guard: Guard) -> None:
    """It began and ended between the record and the comparison: what was read is of before it."""
    read = guard.store.read

    def read_before_a_rotation(path: str, version: int | None = None) -> StoredSecret:
        guard.store.read = read  # type: ignore[method-assign]
        stored = read(path, version)
        change(guard, requested="now")
        guard.work(2)
        return stored

    guard.store.read = read_before_a_rotation  # type: ignore[method-assign]
    guard.clock.pass_time(INTERVAL)
    guard.watcher.look_at_vault()
    assert (None, 2, "secret-1") == (guard.record.drift, guard.record.vault_version, guard.current)
    assert [] == guard.told("drift") + guard.told("restored")


def test_while_a_rotation_is_under_way_nothing_is_compared(guard: Guard) -> None:
    """Its own promote is no drift: neither where it is open, nor where it began while Vault was read."""
    read = guard.store.read

    def read_while_a_rotation_begins(path: str, version: int | None = None) -> StoredSecret:
        guard.store.read = read  # type: ignore[method-assign]
        stored = read(path, version)
        guard.platform.list_failures = [Permanent("refused", reason=Reason.PROVIDER_REFUSED)]
        change(guard, requested="now")
        guard.work()  # it stays at its preflight
        return stored

    guard.somebody_writes(password="a slip")
    guard.store.read = read_while_a_rotation_begins  # type: ignore[method-assign]
    guard.clock.pass_time(INTERVAL)
    guard.watcher.look_at_vault()
    assert guard.journal.open_rotation("building-a") is not None
    guard.watcher.look_at_vault()
    assert ("a slip", [], []) == (guard.current, guard.told("drift"), guard.told("restored"))


def test_a_vault_that_refuses_to_undelete_is_named_and_nothing_is_lost(
    guard: Guard,
) -> None:
    """The policy lacks it: drift stays, the next look tries again."""

    def refuse(path: str, version: int) -> None:
        raise Permanent("add: path …", reason=Reason.VAULT_DENIED)

    undelete, guard.store.undelete = guard.store.undelete, refuse  # type: ignore[method-assign]
    guard.store.gone[1] = False
    guard.look()
    assert (Reason.VAULT_DELETED, "") == (guard.record.drift, guard.record.requested)
    guard.store.undelete = undelete  # type: ignore[method-assign]
    guard.look()
    assert guard.record.drift is None


# --- others at the same path -----------------------------------------------------------------------------------------


def test_a_neighbours_promote_is_no_drift(guard: Guard) -> None:
    """Our fields are as they were; the version that we know stays behind, and no consumer is behind for that."""
    change(guard, consumers={"ingest": ConsumerFacts(version=1, confirmed_version=1)})
    guard.somebody_writes(b_password="new")
    guard.look(3)
    assert ([], 1, 0) == (guard.told("drift"), guard.record.vault_version, versions_behind(guard.record, "ingest"))


def test_a_restore_leaves_the_neighbours_newest_fields(guard: Guard) -> None:
    """What is copied from an older version is ours alone."""
    guard.somebody_writes(b_password="old")
    guard.look()
    guard.somebody_writes(b_password="new", password="a slip")
    guard.look()
    assert {**OURS, "theirs": "kept", "b_password": "new"} == guard.store.versions[-1]


def test_a_version_that_somebody_else_wrote_is_not_undeleted(guard: Guard) -> None:
    """Theirs, deleted by them: ours is copied over it, and what they took away stays away."""
    guard.somebody_writes(password="a slip", more="of theirs")
    guard.store.gone[2] = False
    guard.look()
    assert ([], {2: False}) == (guard.store.undeleted, guard.store.gone)
    assert (OURS, [Reason.VAULT_DELETED]) == (guard.store.versions[-1], guard.told("restored"))


def test_new_prints_make_no_drift(guard: Guard) -> None:
    """The key of the fingerprints was lost with its seal: what Vault holds is taken as it is, once more."""
    change(guard, fingerprint=None)
    guard.look()
    assert (None, []) == (guard.record.drift, guard.told("drift"))
    assert guard.record.fingerprint is not None


def test_a_store_of_the_stage_is_like_vault() -> None:
    """The fake's own versions: deleted ones tell their number, absent ones do not."""
    store = FakeStore(versions=[dict(OURS)], gone={1: False})
    assert (1, None) == (store.read("a").version, store.read("a").data)
    assert (0, None) == (store.read("a", 7).version, store.read("a", 7).data)
