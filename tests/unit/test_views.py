"""How keys and rotations are shown: plain values, the reason that counts, and never a secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fakes import START, Stage
from rotator.errors import Transient
from rotator.keys import ConsumerFacts
from rotator.model import Verdict
from rotator.reasons import ADVICE, Reason
from rotator.views import event_view, iso, key_view, rotation_view


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    stage.introduce()
    yield stage
    stage.shut_down()


def shown(stage: Stage, **facts: object) -> dict[str, Any]:
    """The view of the stage's key, its record changed by `facts`."""
    record = replace(stage.record, **facts)  # type: ignore[arg-type]
    rotation = stage.journal.open_rotation("building-a")
    return key_view(record, rotation, stage.journal.last_events().get("building-a"), stage.key, stage.clock.now())


def test_a_rotated_key_is_plain_json_without_secrets(stage: Stage) -> None:
    """Everything that leaves by the API, the status page and `--json`."""
    stage.work()
    views = [
        shown(stage),
        *(rotation_view(rotation) for rotation in stage.journal.recent_rotations()),
        *(event_view(event) for event in stage.journal.history()),
    ]
    text = json.dumps(views)
    assert (False, False) == ("secret-0" in text, "secret-1" in text)
    assert stage.record.fingerprint is not None
    assert stage.record.fingerprint not in text


def test_a_key_says_where_it_stands(stage: Stage) -> None:
    """Before anything happened: due, with its dates."""
    view = shown(stage)
    assert {
        "name": "building-a",
        "provider": "acme",
        "state": "due",
        "reason": None,
        "advice": None,
        "detail": "",
        "needs_a_person": None,
        "expires_at": (stage.platform.issued_at + timedelta(days=90)).isoformat(),
        "rotate_at": START.isoformat(),
        "rotation": None,
        "vault": {"path": "mqtt/building-a", "version": None},
    }.items() <= view.items()


def test_consumers_are_shown_before_their_first_restart(stage: Stage) -> None:
    """Those of the configuration, with what the journal knows of them."""
    blank = {
        "name": "ingest",
        "kind": "command",
        "version": None,
        "restarted_at": None,
        "confirmed_at": None,
        "confirmed_version": None,
        "lag": 0,
    }
    assert [blank] == shown(stage)["consumers"]
    stage.work()
    (consumer,) = shown(stage)["consumers"]
    assert (2, 2, 0) == (consumer["version"], consumer["confirmed_version"], consumer["lag"])


def test_without_a_configuration_the_journal_names_the_consumers(stage: Stage) -> None:
    """`status` while no daemon runs."""
    record = replace(stage.record, consumers={"ingest": ConsumerFacts(version=3)}, vault_version=4)
    view = key_view(record, None, None, None, stage.clock.now())
    assert [("ingest", None, 1)] == [(c["name"], c["kind"], c["lag"]) for c in view["consumers"]]
    assert {"path": None, "version": 4} == view["vault"]


def test_a_failing_rotation_shows_its_reason_and_its_words(stage: Stage) -> None:
    """And when it is tried again."""
    stage.store.down = Transient("Vault says it is sealed", reason=Reason.VAULT_SEALED)
    stage.work()
    view = shown(stage)
    assert ("overdue", "vault_sealed", "Vault says it is sealed", ADVICE[Reason.VAULT_SEALED], "vault_sealed") == (
        view["state"],
        view["reason"],
        view["detail"],
        view["advice"],
        view["needs_a_person"],
    )
    rotation = stage.journal.open_rotation("building-a")
    assert rotation is not None
    assert iso(rotation.not_before) == view["next_try_at"]
    assert {"id": rotation.id, "step": "preflight", "attempts": 1}.items() <= view["rotation"].items()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"adopted": False, "rotate_at": None}, Reason.WAITING_FOR_ADOPTION),
        ({"problem": Reason.KEY_REVOKED, "last_reason": Reason.VAULT_SEALED}, Reason.KEY_REVOKED),
        ({"quarantine": Reason.SECRET_REFUSED, "last_reason": Reason.VAULT_SEALED}, Reason.SECRET_REFUSED),
        ({"drift": Reason.VAULT_DRIFT}, Reason.VAULT_DRIFT),
        ({"last_reason": Reason.PROVIDER_AUTH, "failures": 1}, Reason.PROVIDER_AUTH),
        ({"paused": True, "rotate_at": None}, Reason.PAUSED),
        ({"implausible": True, "rotate_at": None}, Reason.EXPIRY_IMPLAUSIBLE),
    ],
)
def test_the_reason_is_the_one_that_counts(stage: Stage, facts: dict[str, object], expected: Reason) -> None:
    """With the advice that belongs to it."""
    view = shown(stage, **facts)
    assert (expected.value, ADVICE[expected]) == (view["reason"], view["advice"])


def test_the_words_belong_to_the_reason(stage: Stage) -> None:
    """A key that was revoked is not explained by what Vault said last week."""
    view = shown(stage, problem=Reason.KEY_REVOKED, last_reason=Reason.VAULT_SEALED, last_detail="Vault is sealed")
    assert ("key_revoked", "") == (view["reason"], view["detail"])


def test_moments_carry_their_zone(stage: Stage) -> None:
    """ISO 8601, or nothing."""
    assert ("2026-11-21T03:00:00+00:00", None) == (iso(START), iso(None))


def test_a_verdict_and_a_request_are_shown(stage: Stage) -> None:
    """As words; an empty request is no request."""
    view = shown(stage, verdict=Verdict.UNREACHABLE, requested="now")
    assert ("unreachable", "now") == (view["broker_verdict"], view["requested"])
    assert shown(stage)["requested"] is None
