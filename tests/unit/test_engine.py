"""The engine on fakes and a real journal: what becomes of the world at each fault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fakes import Stage
from rotator.errors import BadAnswer, JournalFailed, Permanent, Transient, UnknownOutcome
from rotator.journal.sqlite import Blob
from rotator.keys import state
from rotator.model import KeyState, Result, Step, StoredSecret, Verdict
from rotator.reasons import Reason


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    stage.introduce()
    yield stage
    stage.shut_down()


def failed(stage: Stage) -> list[Reason | None]:
    return [event.reason for event in stage.events if event.name == "step" and event.result == "failed"]


def test_a_due_key_is_rotated_to_its_end(stage: Stage) -> None:
    """Vault holds the live secret, foreign fields are kept, the consumer runs on it, nothing stays sealed."""
    stage.work()
    assert stage.store.versions[-1] == {"username": "id-1", "password": "secret-1", "theirs": "kept"}
    assert stage.platform.live == stage.consumer.runs_on == "secret-1"
    assert Result.SUCCEEDED == stage.journal.recent_rotations()[0].result
    assert [] == stage.journal.waiting_secrets()
    assert [False] == [watch.open for watch in stage.watches]
    assert 2 == stage.record.consumers["ingest"].confirmed_version


def test_a_key_that_is_not_due_is_left_alone(stage: Stage) -> None:
    """Nothing is issued before `rotate_at`, and the record says when to look again."""
    due = stage.clock.now() + timedelta(days=1)
    stage.introduce(rotate_at=due)
    stage.work(5)
    assert 0 == stage.platform.issued
    assert due == stage.record.wake_at


def test_vault_down_at_promote_keeps_the_secret_sealed(stage: Stage) -> None:
    """The secret waits in the journal, not in clear, and is in Vault as soon as Vault is back."""
    issue = stage.platform.issue
    down = Transient("sealed", reason=Reason.VAULT_SEALED)

    def issue_and_lose_vault(identity):  # type: ignore[no-untyped-def]
        stage.store.down = down
        return issue(identity)

    stage.platform.issue = issue_and_lose_vault  # type: ignore[method-assign]
    stage.work(10)
    assert ["building-a"] == [key for key, _ in stage.journal.waiting_secrets()]
    assert "secret-0" == stage.current
    database = (stage.directory / "rotator.db").read_bytes() + (stage.directory / "rotator.db-wal").read_bytes()
    assert b"secret-1" not in database
    stage.store.down = None
    stage.work(4)
    assert "secret-1" == stage.current == stage.consumer.runs_on
    assert 1 == stage.platform.issued


def test_a_restarted_daemon_opens_the_seal_and_goes_on(stage: Stage) -> None:
    """What the process knew is gone; the journal and the seal key are enough."""
    issue = stage.platform.issue

    def issue_and_lose_vault(identity):  # type: ignore[no-untyped-def]
        stage.store.down = Transient("gone", reason=Reason.VAULT_UNREACHABLE)
        return issue(identity)

    stage.platform.issue = issue_and_lose_vault  # type: ignore[method-assign]
    stage.work(3)
    stage.shut_down()
    stage.boot()
    stage.store.down = None
    stage.work(4)
    assert ("secret-1", 1) == (stage.current, stage.platform.issued)
    assert "secret-1" == stage.consumer.runs_on


def test_an_answer_that_never_came_is_found_and_replaced(stage: Stage) -> None:
    """The provider's `issuedAt` moved, so the call happened: one more call, and only one (rule 9)."""
    stage.platform.lost_answers = [UnknownOutcome("read timeout")]
    stage.work(20)
    assert (2, "secret-2") == (stage.platform.issued, stage.current)
    assert [Reason.OUTCOME_UNKNOWN] == failed(stage)


def test_a_call_that_never_arrived_is_made_again_after_a_second_look(stage: Stage) -> None:
    """No sign at the provider: look again after a while, then issue; never a blind second try."""
    stage.platform.failures = [UnknownOutcome("connection cut")]
    stage.work(5)
    assert 0 == stage.platform.issued
    stage.work(20)
    assert (1, "secret-1") == (stage.platform.issued, stage.current)


def test_a_process_that_died_inside_the_issue_call_looks_first(stage: Stage) -> None:
    """The intent is journaled before the call, so the next start knows that it may have happened."""

    class Killed(BaseException):
        pass

    issue = stage.platform.issue

    def issue_and_die(identity):  # type: ignore[no-untyped-def]
        issue(identity)
        raise Killed

    stage.platform.issue = issue_and_die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        stage.work()
    stage.platform.issue = issue  # type: ignore[method-assign]
    stage.shut_down()
    stage.boot()
    stage.work(5)
    assert (2, "secret-2") == (stage.platform.issued, stage.current)
    assert Step.LOOK in {event.step for event in stage.events}


@pytest.mark.parametrize("reason", [Reason.EMPTY_SECRET, Reason.NO_SECRET])
def test_an_answer_without_a_secret_changes_nothing_in_vault(stage: Stage, reason: Reason) -> None:
    """Refused by name; Vault stays; the journal holds what came, sealed."""
    stage.platform.failures = [BadAnswer("no secret", reason=reason, body=b'{"token": ""}')]
    stage.work()
    assert "secret-0" == stage.current
    assert [reason] == failed(stage)
    rotation = stage.journal.recent_rotations()[0]
    row = stage.journal.sealed(rotation.id)
    assert row is not None
    opened = stage.seal.open(row.data_key, row.sealed, bound_to=f"building-a/{rotation.id}")
    assert b'{"token": ""}' == opened
    assert [] == stage.journal.waiting_secrets()


def test_a_refused_login_backs_off_and_is_not_hammered(stage: Stage) -> None:
    """`provider_auth` holds the whole provider for longer and longer; the key is shown as failing."""
    refusals = 100
    stage.platform.list_failures = [Permanent("bad password", reason=Reason.PROVIDER_AUTH) for _ in range(refusals)]
    stage.work(120)
    tries = refusals - len(stage.platform.list_failures)
    assert 1 <= tries <= 6
    assert KeyState.OVERDUE == state(stage.record, stage.journal.open_rotation("building-a"), stage.clock.now())
    assert Reason.PROVIDER_AUTH == stage.record.last_reason


@pytest.mark.parametrize("problem", [Reason.KEY_REVOKED, Reason.ROLE_MISSING])
def test_a_key_that_can_not_serve_is_not_refreshed(stage: Stage, problem: Reason) -> None:
    """Preflight names the problem before the call that can't be undone (rule 8)."""
    stage.platform.problem = problem
    stage.work(3)
    assert (0, problem) == (stage.platform.issued, stage.record.last_reason)


def test_a_past_expiry_is_promoted_only_after_the_broker_accepted(stage: Stage) -> None:
    """Probe before promote, and the oddity is told."""
    stage.platform.expires_at = lambda issued: issued - timedelta(days=1)
    stage.broker.verdicts = [Verdict.UNREACHABLE]
    stage.work()
    assert "secret-0" == stage.current
    stage.work(5)
    assert "secret-1" == stage.current
    assert Reason.EXPIRY_IMPLAUSIBLE in {event.reason for event in stage.events}
    assert Reason.EXPIRY_IMPLAUSIBLE == stage.journal.recent_rotations()[0].reason
    stage.work(50, step=timedelta(hours=1))
    assert 1 == stage.platform.issued


def test_a_past_expiry_that_the_broker_refuses_is_never_promoted(stage: Stage) -> None:
    """Refused for as long as it may take to spread, once more issued, then quarantine; Vault stays."""
    stage.platform.expires_at = lambda issued: None
    stage.broker.verdicts = [Verdict.REFUSED] * 1000
    stage.work(60)
    assert ("secret-0", 2) == (stage.current, stage.platform.issued)
    rotation = stage.journal.open_rotation("building-a")
    assert KeyState.QUARANTINED == state(stage.record, rotation, stage.clock.now())


def test_a_refused_secret_holds_the_restarts_back(stage: Stage) -> None:
    """In place the old sessions may survive: no restart onto a refused secret (rule 2)."""
    stage.broker.verdicts = [Verdict.REFUSED] * 3
    stage.work(3)
    assert 0 == stage.consumer.restarts
    stage.work(10)
    assert (1, 1) == (stage.consumer.restarts, stage.platform.issued)


def test_an_unreachable_broker_refuses_nothing(stage: Stage) -> None:
    """The restarts go on without its word."""
    stage.broker.verdicts = [Verdict.UNREACHABLE] * 1000
    stage.work(20)
    assert ("secret-1", 1) == (stage.consumer.runs_on, stage.platform.issued)


def test_a_consumer_that_does_not_come_back_is_restarted_again(stage: Stage) -> None:
    """Restarted is not confirmed."""
    stage.consumer.mute = 1
    stage.work(60)
    assert (2, "secret-1") == (stage.consumer.restarts, stage.consumer.runs_on)
    assert [Reason.CONSUMER_NOT_CONFIRMED] == failed(stage)
    assert Result.SUCCEEDED == stage.journal.recent_rotations()[0].result


def test_a_consumer_that_never_comes_back_ends_the_rotation_failed(stage: Stage) -> None:
    """With the new secret current, and without a second issue call."""
    stage.consumer.mute = 1000
    stage.work(2000)
    rotation = stage.journal.recent_rotations()[0]
    assert (Result.FAILED, Reason.CONSUMER_NOT_CONFIRMED) == (rotation.result, rotation.reason)
    assert ("secret-1", 1) == (stage.current, stage.platform.issued)
    assert stage.record.gap_started_at is not None


def test_evidence_lost_with_the_process_restarts_once_more(stage: Stage) -> None:
    """A watch dies with its process: the consumer is restarted again under a new one."""
    stage.consumer.mute = 1
    stage.stop.set()
    stage.stop.clear()
    watch_wait = stage.consumer.clock.pass_time

    def interrupt(span: timedelta) -> None:
        watch_wait(span)
        stage.stop.set()

    stage.clock.pass_time = interrupt  # type: ignore[method-assign]
    stage.engine.work("building-a")
    stage.clock.pass_time = watch_wait  # type: ignore[method-assign]
    rotation = stage.journal.open_rotation("building-a")
    assert rotation is not None
    assert Step.CONFIRM == rotation.step
    stage.shut_down()
    stage.boot()
    stage.work(10)
    assert "secret-1" == stage.consumer.runs_on
    assert [Reason.EVIDENCE_LOST] == failed(stage)


def test_somebody_elses_write_to_our_fields_stops_the_promote(stage: Stage) -> None:
    """What somebody wrote, and what the broker lets in, is not overwritten; the secret stays sealed (rule 3)."""
    issue = stage.platform.issue
    stage.broker.verdicts += [Verdict.ACCEPTED] * 10

    def issue_while_somebody_writes(identity):  # type: ignore[no-untyped-def]
        stage.store.versions.append({"username": "id-1", "password": "by-hand"})
        return issue(identity)

    stage.platform.issue = issue_while_somebody_writes  # type: ignore[method-assign]
    stage.work(5)
    assert "by-hand" == stage.current
    rotation = stage.journal.open_rotation("building-a")
    assert KeyState.QUARANTINED == state(stage.record, rotation, stage.clock.now())
    assert ["building-a"] == [key for key, _ in stage.journal.waiting_secrets()]
    assert Reason.VAULT_CONFLICT is stage.record.drift


def test_the_broker_settles_a_conflict(stage: Stage) -> None:
    """What somebody wrote is refused and ours is accepted: ours is written."""
    issue = stage.platform.issue

    def issue_while_somebody_writes(identity):  # type: ignore[no-untyped-def]
        stage.store.versions.append({"username": "id-1", "password": "by-hand", "note": "theirs"})
        return issue(identity)

    stage.platform.issue = issue_while_somebody_writes  # type: ignore[method-assign]
    stage.work(5)
    assert ("secret-1", "theirs", None) == (stage.current, stage.store.versions[-1]["note"], stage.record.drift)


def test_a_path_of_our_own_is_written_without_another_read(stage: Stage) -> None:
    """Preflight saw nothing but our fields there: the promote is one request."""
    del stage.store.versions[0]["theirs"]
    stage.work()
    alone = stage.store.reads
    stage.introduce(requested="now")
    stage.store.versions[-1]["theirs"] = "new"
    stage.work(2)
    assert (2, 3) == (alone, stage.store.reads - alone)  # one of each is the negative proof's, of the old version
    assert {"username": "id-1", "password": "secret-2", "theirs": "new"} == stage.store.versions[-1]


def test_a_field_that_comes_between_preflight_and_promote_is_kept(stage: Stage) -> None:
    """What preflight saw was ours alone; by the time of the write it no longer is."""
    del stage.store.versions[0]["theirs"]
    stage.store.between.append(lambda: stage.store.versions.append({**stage.store.versions[-1], "theirs": "new"}))
    stage.work()
    assert {"username": "id-1", "password": "secret-1", "theirs": "new"} == stage.store.versions[-1]


def test_what_the_secret_is_stands_beside_it(stage: Stage) -> None:
    """For people, in `custom_metadata`, with no word of the secret; after the consumers are proven."""
    stage.work()
    rotation = stage.journal.recent_rotations()[0]
    assert rotation.new_expires_at is not None
    assert rotation.promoted_at is not None
    assert [
        {
            "key": "building-a",
            "provider": "acme",
            "id": "id-1",
            "expires_at": rotation.new_expires_at.isoformat(),
            "rotated_at": rotation.promoted_at.isoformat(),
            "rotation": rotation.id,
        }
    ] == stage.store.annotated


def test_neighbours_facts_carry_their_keys_name(stage: Stage) -> None:
    """Several keys in one secret: none says anything about another."""
    stage.engine.keys["building-a"] = replace(stage.key, neighbours=1)
    stage.work()
    assert {"building-a"} == {name.partition(".")[0] for name in stage.store.annotated[0]}
    assert 6 == len(stage.store.annotated[0])


def test_a_vault_that_takes_no_facts_changes_nothing(stage: Stage) -> None:
    """They are for people: the rotation succeeds without them."""

    def refuse(path: str, facts: Mapping[str, str]) -> None:
        raise Permanent("denied", reason=Reason.VAULT_DENIED)

    stage.store.annotate = refuse  # type: ignore[method-assign]
    stage.work()
    rotation = stage.journal.recent_rotations()[0]
    assert (Result.SUCCEEDED, None, 0) == (rotation.result, rotation.reason, stage.record.failures)


def test_preflight_asks_for_as_long_and_as_many_versions_as_a_rotation_needs(stage: Stage) -> None:
    """What can't be undone is checked first (rule 8)."""
    asked: list[dict[str, object]] = []
    preflight = stage.store.preflight

    def ask(path: str, **limits: object) -> StoredSecret:
        asked.append(limits)
        return preflight(path)

    stage.store.preflight = ask  # type: ignore[method-assign]
    stage.work()
    assert [{"lasting": timedelta(seconds=45), "versions": 1}] == asked


def test_preflight_claims_no_proof_that_nobody_asked_for(stage: Stage) -> None:
    """A consumer without `confirm` is seen nowhere."""
    link = replace(stage.key.consumers[0], open_watch=None)
    stage.engine.keys["building-a"] = replace(stage.key, consumers=(link,))
    stage.work()
    assert ["ingest can be restarted"] == [each.name for each in stage.record.checks if "ingest" in each.name]


def test_a_way_back_that_would_not_last_stops_before_the_call(stage: Stage) -> None:
    """Named, with what to do, and nothing was issued."""

    def refuse(path: str, **limits: object) -> StoredSecret:
        raise Permanent("keeps 1 version", reason=Reason.VAULT_VERSIONS)

    stage.store.preflight = refuse  # type: ignore[method-assign]
    stage.work(3)
    assert (0, Reason.VAULT_VERSIONS) == (stage.platform.issued, stage.record.last_reason)
    assert ["Vault is unsealed, and the token may write for long enough"] == [
        check.name for check in stage.record.checks if not check.ok
    ]


def test_an_issue_after_ours_is_noticed_before_done(stage: Stage) -> None:
    """A provider `issuedAt` later than our answer's: somebody issued after us (rule 4)."""
    restart = stage.consumer.restart

    def restart_while_somebody_issues(order):  # type: ignore[no-untyped-def]
        ticket = restart(order)
        stage.platform.issued_at = stage.clock.now() + timedelta(seconds=30)
        return ticket

    stage.consumer.restart = restart_while_somebody_issues  # type: ignore[method-assign]
    stage.work(3)
    rotation = stage.journal.recent_rotations()[0]
    assert (Result.FAILED, Reason.ISSUED_ELSEWHERE) == (rotation.result, rotation.reason)


def test_a_full_journal_sends_the_answer_to_the_spool(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sealed answer is on disk before anything else, and a restart takes it back (rule 1)."""
    save = stage.journal.save
    refused = []

    def save_nothing_sealed(**parts):  # type: ignore[no-untyped-def]
        if isinstance(parts.get("blob"), Blob):
            refused.append(parts)
            stage.stop.set()
            raise JournalFailed("disk full", reason=Reason.JOURNAL_UNWRITABLE)
        return save(**parts)

    monkeypatch.setattr(stage.journal, "save", save_nothing_sealed)
    stage.work()
    assert 1 == len(refused)
    spooled = list((stage.directory / "spool").glob("*.sealed"))
    assert 1 == len(spooled)
    assert b"secret-1" not in spooled[0].read_bytes()
    stage.shut_down()
    stage.boot()
    for rotation, data_key, blob in stage.engine.spool.waiting():
        stage.journal.save(rotation=rotation, data_key=data_key, blob=blob)
    stage.work(5)
    assert ("secret-1", 1) == (stage.current, stage.platform.issued)


def test_pausing_stops_a_key_that_has_not_issued(stage: Stage) -> None:
    """A pause holds a due key; a request by a person goes on all the same."""
    stage.introduce(paused=True)
    stage.work(3)
    assert 0 == stage.platform.issued
    stage.introduce(paused=True, requested="now")
    stage.work(3)
    assert 1 == stage.platform.issued


def test_a_draining_engine_begins_nothing(stage: Stage) -> None:
    """After SIGTERM no new rotation starts."""
    stage.engine.drain()
    stage.work(3)
    assert 0 == stage.platform.issued


def test_something_unforeseen_parks_the_key(stage: Stage) -> None:
    """A fault of our own is named and does not spin."""

    def broken(path: str, **limits: object) -> StoredSecret:
        raise ZeroDivisionError(path)

    stage.store.preflight = broken  # type: ignore[method-assign]
    stage.work(20)
    assert 1 == failed(stage).count(Reason.UNFORESEEN)
    assert (0, Reason.UNFORESEEN) == (stage.platform.issued, stage.record.last_reason)
