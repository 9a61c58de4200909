"""The watcher on fakes and a real journal: looking without touching, and telling each change once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from fakes import FakeClock, FakeStore, Stage
from rotator.errors import Permanent, RotatorError, Transient
from rotator.keys import decide, state
from rotator.model import Credential, KeyState, StoredSecret, Verdict
from rotator.policy import Policy
from rotator.reasons import Reason
from rotator.watcher import ASK_AGAIN_AT_MOST, Health, Watcher

HOUR = timedelta(hours=1)
WATCH, DRIFT = timedelta(minutes=5), timedelta(minutes=30)


class SteppedClock(FakeClock):
    """Its wall clock may be set back; its monotonic one never goes back."""

    def __init__(self) -> None:
        super().__init__()
        self._stepped = timedelta(0)

    def set_back(self, span: timedelta) -> None:
        self._stepped += span
        self.pass_time(-span)

    def monotonic(self) -> float:
        return super().monotonic() + self._stepped.total_seconds()


class CountingStore(FakeStore):
    """Counts its answers."""

    asked = 0

    def _answer(self) -> None:
        self.asked += 1
        super()._answer()


class Lookout(Stage):
    """A stage with a watcher."""

    def __init__(self, directory: Path) -> None:
        self.looks = 0
        super().__init__(directory)
        stepped = SteppedClock()
        stepped.pass_time(self.clock.now() - stepped.now())
        self.steps = stepped
        self.clock = self.platform.clock = self.consumer.clock = stepped
        self.store = self.counting = CountingStore(versions=self.store.versions)
        self.shut_down()
        self.boot()

    def boot(self) -> None:
        super().boot()
        self.watcher = Watcher(self.engine, {"acme": self.platform}, watch=WATCH, drift_interval=DRIFT)
        list_keys = type(self.platform).list_keys

        def counted():  # type: ignore[no-untyped-def]
            self.looks += 1
            return list_keys(self.platform)

        self.platform.list_keys = counted  # type: ignore[method-assign]

    def look(self, rounds: int = 1, step: timedelta = timedelta(seconds=1)) -> None:
        """Run the watcher's jobs, as the daemon does every second."""
        for _ in range(rounds):
            self.watcher.keep_vault_login()
            self.watcher.look_at_providers()
            self.watcher.look_at_vault()
            self.watcher.probe_secrets()
            self.clock.pass_time(step)

    def told(self, name: str) -> list[Reason | None]:
        return [event.reason for event in self.events if event.name == name]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Lookout]:
    stage = Lookout(tmp_path)
    stage.introduce()
    yield stage
    stage.shut_down()


@pytest.fixture
def fresh(stage: Lookout) -> Lookout:
    """A key that nobody has looked at yet, as `app` introduces it."""
    stage.introduce(
        listed_at=None, issued_at=None, expires_at=None, adopted=None, rotate_at=None, wake_at=None, draw=None
    )
    return stage


def test_the_first_look_makes_a_key_ready(fresh: Lookout) -> None:
    """Expiry, due date, what Vault holds; and the engine is woken for it."""
    fresh.look()
    record = fresh.record
    assert (fresh.platform.issued_at, fresh.platform.issued_at + fresh.platform.lifetime) == (
        record.issued_at,
        record.expires_at,
    )
    assert record.expires_at is not None
    assert record.expires_at - timedelta(days=14) == record.rotate_at
    assert (True, 1) == (record.adopted, record.vault_version)
    assert record.wake_at is not None
    assert record.wake_at <= fresh.clock.now()
    assert 0 == fresh.platform.issued


def test_a_provider_is_looked_at_once_an_interval(fresh: Lookout) -> None:
    """However often the job comes by."""
    fresh.look(rounds=601)
    assert 3 == fresh.looks


@pytest.mark.parametrize("problem", [Reason.KEY_REVOKED, Reason.ROLE_MISSING])
def test_a_problem_is_told_once_and_its_end_too(stage: Lookout, problem: Reason) -> None:
    """Once per change, not at every tick."""
    stage.platform.problem = problem
    stage.look(30, step=timedelta(minutes=1))
    assert [problem] == stage.told("problem")
    assert problem == stage.record.problem
    stage.platform.problem = None
    stage.look(30, step=timedelta(minutes=1))
    assert [problem, None] == stage.told("problem")


def test_a_key_that_vanished_is_named(stage: Lookout) -> None:
    """The provider lists it no more; what Vault holds stays."""
    stage.platform.listed = False
    stage.look(20, step=timedelta(minutes=1))
    assert ([Reason.KEY_UNKNOWN], Reason.KEY_UNKNOWN) == (stage.told("problem"), stage.record.problem)
    assert "secret-0" == stage.current


def test_a_refused_login_holds_the_provider_and_says_so(stage: Lookout) -> None:
    """Not hammered: further looks wait for the hold; the other jobs go on."""
    refusals: list[RotatorError] = [Permanent("bad password", reason=Reason.PROVIDER_AUTH) for _ in range(100)]
    stage.platform.list_failures = refusals
    stage.look(120)
    assert 1 <= 100 - len(refusals) <= 6
    assert Reason.PROVIDER_AUTH == stage.watcher.health()["acme"].reason
    assert stage.watcher.health()["vault"].reason is None


def test_a_provider_that_was_away_is_back_within_seconds(stage: Lookout) -> None:
    """Issue 2: work goes on as soon as it is back."""
    stage.platform.list_failures = [Transient("away", reason=Reason.PROVIDER_UNREACHABLE) for _ in range(8)]
    stage.look()
    assert Reason.PROVIDER_UNREACHABLE == stage.watcher.health()["acme"].reason
    stage.platform.list_failures = []
    stage.look(int(ASK_AGAIN_AT_MOST.total_seconds()) + 1)
    assert stage.watcher.health()["acme"].reason is None


def test_before_the_first_look_nothing_is_well(stage: Lookout) -> None:
    """/readyz must not say yes before anybody was asked."""
    assert {"acme": Reason.NOT_DUE, "vault": Reason.NOT_DUE} == {
        name: health.reason for name, health in stage.watcher.health().items()
    }
    stage.look()
    assert {None} == {health.reason for health in stage.watcher.health().values()}


def test_vault_away_is_named_and_found_again(stage: Lookout) -> None:
    """And nothing is said about drift meanwhile."""
    stage.store.down = Transient("sealed", reason=Reason.VAULT_SEALED)
    stage.look(60)
    health = stage.watcher.health()["vault"]
    assert (Reason.VAULT_SEALED, True) == (health.reason, health.failures >= 10)
    stage.store.down = None
    stage.look(6)
    assert (None, 0) == (stage.watcher.health()["vault"].reason, stage.watcher.health()["vault"].failures)
    assert ([], None) == (stage.told("drift"), stage.record.drift)


class UnreadableStore(CountingStore):
    """Well, but for one path that may not be read."""

    refusal: RotatorError | None = None

    def read(self, path: str, version: int | None = None) -> StoredSecret:
        found = super().read(path, version)
        if self.refusal is not None:
            raise self.refusal
        return found


def unreadable(stage: Lookout, refusal: RotatorError) -> UnreadableStore:
    """Give the stage such a store, and a watcher that knows it."""
    store = UnreadableStore(versions=stage.store.versions)
    store.refusal = refusal
    stage.engine.world = replace(stage.engine.world, store=store)
    stage.watcher = Watcher(stage.engine, {"acme": stage.platform}, watch=WATCH, drift_interval=DRIFT)
    return store


@pytest.mark.parametrize("reason", [Reason.VAULT_DENIED, Reason.VAULT_PATH_INVALID])
def test_a_path_that_may_not_be_read(fresh: Lookout, reason: Reason) -> None:
    """Looked at once a minute; the key says why nothing is known of it, until it was read."""
    store = unreadable(fresh, Permanent("vault: read secret/mqtt/a: no", reason=reason))
    fresh.look(181)
    assert 4 == store.reads
    assert fresh.watcher.health()["vault"].reason is None
    shown = state(fresh.record, None, fresh.clock.now())
    assert (KeyState.UNKNOWN, reason, "vault: read secret/mqtt/a: no") == (
        shown,
        fresh.record.last_reason,
        fresh.record.last_detail,
    )
    store.refusal = None
    fresh.look(60)
    assert (True, None, "") == (fresh.record.adopted, fresh.record.last_reason, fresh.record.last_detail)


def test_a_failure_that_is_known_is_not_written_over(fresh: Lookout) -> None:
    """What a rotation failed for stays, whatever the reads say."""
    store = unreadable(fresh, Permanent("no", reason=Reason.VAULT_DENIED))
    fresh.introduce(adopted=None, last_reason=Reason.PROVIDER_REFUSED, last_detail="quota", failures=1)
    fresh.look(2)
    assert Reason.PROVIDER_REFUSED is fresh.record.last_reason
    store.refusal = None
    fresh.look(62)
    assert (True, Reason.PROVIDER_REFUSED, "quota") == (
        fresh.record.adopted,
        fresh.record.last_reason,
        fresh.record.last_detail,
    )


def test_an_unreadable_key_that_was_known_goes_on(stage: Lookout) -> None:
    """Its drift can't be seen, and nothing else is said of it."""
    unreadable(stage, Permanent("no", reason=Reason.VAULT_DENIED))
    stage.look(90)
    assert (0, None) == (len(stage.told("waiting")), stage.watcher.health()["vault"].reason)
    assert (True, None, None) == (stage.record.adopted, stage.record.last_reason, stage.record.drift)


@pytest.mark.parametrize("take", ["password", "username", "all"])
def test_drift_in_our_fields_is_told_once(stage: Lookout, take: str) -> None:
    """Somebody changed or dropped what we wrote; and when it is mended, that is told as well."""
    stage.look()
    ours = dict(stage.store.versions[-1])
    stage.store.versions.append({} if take == "all" else {**ours, take: "by hand"})
    stage.look(90, step=timedelta(minutes=1))
    assert [Reason.VAULT_OVERWRITTEN] == stage.told("drift")
    assert [Reason.VAULT_OVERWRITTEN] == [record.drift for record in stage.journal.all_keys()]
    stage.store.versions.append(ours)
    stage.look(60, step=timedelta(minutes=1))
    assert ([Reason.VAULT_OVERWRITTEN, None], None) == (stage.told("drift"), stage.record.drift)


def test_a_foreign_field_is_no_drift(stage: Lookout) -> None:
    """What we did not write is not ours to watch."""
    stage.look()
    stage.store.versions.append({**stage.store.versions[-1], "theirs": "changed"})
    stage.look(90, step=timedelta(minutes=1))
    assert [] == stage.told("drift")


def test_vault_without_a_secret_waits_for_adoption(fresh: Lookout) -> None:
    """Reported once; not rotated though nothing is due."""
    fresh.store.versions.clear()
    fresh.platform.issued_at = fresh.clock.now() - timedelta(days=1)
    fresh.look(90, step=timedelta(minutes=1))
    assert (False, [Reason.WAITING_FOR_ADOPTION]) == (fresh.record.adopted, fresh.told("waiting"))
    fresh.work()
    assert 0 == fresh.platform.issued


def test_a_secret_brought_by_hand_is_adopted_at_the_next_look(fresh: Lookout) -> None:
    """Somebody wrote it into Vault meanwhile."""
    fresh.store.versions.clear()
    fresh.look(2)
    fresh.store.versions.append({"username": "id-1", "password": "secret-0"})
    fresh.look(40, step=timedelta(minutes=1))
    assert (True, 1) == (fresh.record.adopted, fresh.record.vault_version)


def test_a_probe_is_told_when_its_verdict_changes(stage: Lookout) -> None:
    """Accepted at first: nothing to say. Refused later: said once. Back: said once."""
    stage.look(4, step=timedelta(minutes=16))
    assert ([], Verdict.ACCEPTED) == (stage.told("probe"), stage.record.verdict)
    stage.platform.live = "another"
    stage.look(4, step=timedelta(minutes=16))
    assert ([Reason.SECRET_REFUSED], Verdict.REFUSED) == (stage.told("probe"), stage.record.verdict)
    stage.platform.live = "secret-0"
    stage.look(4, step=timedelta(minutes=16))
    assert [Reason.SECRET_REFUSED, None] == stage.told("probe")


def test_nothing_is_ever_issued_or_written_by_looking(stage: Lookout) -> None:
    """A whole day of it, over a due key."""
    stage.look(300, step=timedelta(minutes=5))
    assert (0, 1, 0) == (stage.platform.issued, len(stage.store.versions), stage.consumer.restarts)


def test_the_dice_are_thrown_once_however_often_it_looks(stage: Lookout) -> None:
    """The due date does not wander (rule 10)."""
    stage.policy = Policy(before_expiry=timedelta(days=14), jitter=timedelta(days=3))
    stage.shut_down()
    stage.boot()
    stage.look()
    first = stage.record
    stage.look(50, step=timedelta(minutes=10))
    assert (first.draw, first.rotate_at) == (stage.record.draw, stage.record.rotate_at)
    assert first.rotate_at is not None


def test_our_own_issue_accuses_nobody(stage: Lookout) -> None:
    """A look right after a rotation, and long after it."""
    stage.work(3)
    assert 1 == stage.platform.issued
    stage.look(100, step=timedelta(minutes=5))
    assert ([], None) == (stage.told("drift"), stage.record.drift)
    decision = decide(stage.record, stage.policy, stage.clock.now(), observe=False, adopt_rotates=False)
    assert stage.record.rotate_at == getattr(decision, "until", None)


def test_an_issue_by_somebody_else_is_told_once(stage: Lookout) -> None:
    """The provider's `issuedAt` moved without us."""
    stage.work(3)
    stage.clock.pass_time(HOUR)
    stage.platform.issued_at = stage.clock.now()
    stage.look(30, step=timedelta(minutes=5))
    assert [Reason.ISSUED_ELSEWHERE] == stage.told("drift")


def test_a_clock_set_back_does_not_stop_the_looking(stage: Lookout) -> None:
    """A host whose clock was a day ahead is corrected: the provider and Vault are asked on as before."""
    stage.look(2)
    stage.steps.set_back(timedelta(days=1))
    stage.looks = stage.counting.asked = 0
    stage.look(20, step=timedelta(minutes=1))
    assert 3 <= stage.looks, "the provider's list"
    assert 20 <= stage.counting.asked, "Vault's login"


def test_a_new_pause_is_not_lost_to_a_look(stage: Lookout) -> None:
    """What a person wrote between reading and writing stays."""
    list_keys = stage.platform.list_keys

    def list_while_somebody_pauses():  # type: ignore[no-untyped-def]
        found = list_keys()
        stage.introduce(paused=True)
        return found

    stage.platform.list_keys = list_while_somebody_pauses  # type: ignore[method-assign]
    stage.look()
    assert stage.record.paused is True


def test_a_key_without_a_record_is_left_alone(stage: Lookout) -> None:
    """Dropped from the configuration while a look was on its way."""
    stage.journal.forget_keys(["building-a"])
    stage.look(3)
    assert [] == stage.journal.all_keys()


def test_health_is_a_fact() -> None:
    """Well means: no reason, no failures."""
    assert (None, 0, "") == (Health().reason, Health().failures, Health().detail)


def test_what_the_login_at_vault_hangs_on_is_watched(stage: Lookout) -> None:
    """A secret id's end reaches the metrics; the login is kept alive though somebody used the next one's wrapping."""
    ends = stage.clock.now() + timedelta(hours=20)
    renewed: list[int] = []

    class Wrapped:
        """The store, whose secret ids come wrapped."""

        def __getattr__(self, name: str) -> object:
            return getattr(stage.store, name)

        def ready(self) -> None:
            if renewed:
                raise Permanent("used already", reason=Reason.VAULT_WRAPPING_TOKEN_USED)

        def renew(self) -> datetime:
            renewed.append(1)
            return ends

        def credentials(self) -> list[Credential]:
            return [Credential(name="secret_id", expires_at=ends)]

    stage.engine.world = replace(stage.engine.world, store=Wrapped())  # type: ignore[arg-type]
    watcher = Watcher(stage.engine, {"acme": stage.platform}, watch=WATCH, drift_interval=DRIFT)
    watcher.keep_vault_login()
    assert {"vault": (Credential(name="secret_id", expires_at=ends),)} == dict(watcher.facts.credentials)
    assert watcher.health()["vault"].reason is None
    stage.clock.pass_time(timedelta(seconds=11))
    watcher.keep_vault_login()
    assert Reason.VAULT_WRAPPING_TOKEN_USED is watcher.health()["vault"].reason
    assert (2, ends) == (len(renewed), watcher.token_ends_at)


def test_the_looks_at_vault_are_spread_over_the_interval(stage: Lookout) -> None:
    """The second look comes after a share of the interval that the dice choose, and each one after that in its time."""
    times = []
    read = stage.store.read

    def noted(path: str, version: int | None = None) -> StoredSecret:
        times.append(stage.clock.monotonic())
        return read(path, version)

    stage.store.read = noted  # type: ignore[method-assign]
    stage.with_verify = False
    for _ in range(200):
        stage.watcher.keep_vault_login()
        stage.watcher.look_at_vault()
        stage.clock.pass_time(timedelta(minutes=1))
    gaps = [(after - before) / DRIFT.total_seconds() for before, after in pairwise(times)]
    assert 0 < gaps[0] < 0.95
    assert all(1 <= gap < 1.1 for gap in gaps[1:])
    assert len(gaps) > 4
