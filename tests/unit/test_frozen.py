"""`frozen.replace` does what `dataclasses.replace` does."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from rotator.frozen import replace
from rotator.keys import KeyRecord
from rotator.model import Identity, Ticket
from rotator.reasons import Reason
from rotator.rotation import Rotation

NOW = datetime(2026, 3, 24, 12, 0, tzinfo=UTC)
ROTATION = Rotation(
    id="0123",
    key="building-a",
    provider="acme",
    identity=Identity(id="a", username="a"),
    trigger=Reason.MAX_AGE,
    started_at=NOW,
)


def test_a_copy_has_the_changes_and_the_original_has_not() -> None:
    """As the standard library's; equal and hashable facts stay so."""
    changed = replace(ROTATION, attempts=3, not_before=NOW)
    assert dataclasses.replace(ROTATION, attempts=3, not_before=NOW) == changed
    assert (0, None) == (ROTATION.attempts, ROTATION.not_before)
    assert hash(changed) != hash(ROTATION)
    assert ROTATION == replace(changed, attempts=0, not_before=None)


def test_a_copy_is_frozen() -> None:
    """Neither it nor the original can be changed in place."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        replace(ROTATION, attempts=3).attempts = 4  # type: ignore[misc]


def test_what_is_checked_at_birth_is_checked_again() -> None:
    """A naive moment is refused (rule 10)."""
    with pytest.raises(ValueError, match="time zone"):
        replace(ROTATION, not_before=NOW.replace(tzinfo=None))


def test_a_field_that_is_not_there_is_refused() -> None:
    """A slip of the pen must not pass for a change."""
    with pytest.raises(TypeError, match="atempts"):
        replace(KeyRecord(name="a", provider="b", id="c"), atempts=1)  # type: ignore[call-arg]


def test_facts_with_slots_are_copied_as_well() -> None:
    """By the standard library's own way."""
    ticket = replace(Ticket(consumer="ingest", restarted_at=NOW), consumer="other")
    assert Ticket(consumer="other", restarted_at=NOW) == ticket
