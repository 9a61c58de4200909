"""The demo's picture: what it makes of `/api/keys`, and that it copes with whatever is missing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from rotator.sandbox import picture

NOW = datetime(2026, 3, 24, 12, 0, 30, tzinfo=UTC)


def key(**other: Any) -> dict[str, Any]:
    """A key as the daemon's contract shows it."""
    return {
        "name": "building-a",
        "state": "ok",
        "reason": None,
        "issued_at": "2026-03-24T12:00:00+00:00",
        "expires_at": "2026-03-24T12:01:00+00:00",
        "vault": {"path": "mqtt/building-a", "version": 3},
        "consumers": [{"name": "dashboards", "version": 3, "restarted_at": None, "confirmed_at": None, "lag": 0}],
        "rotation": None,
        "last_event": None,
        **other,
    }


def drawn(keys: list[dict[str, Any]]) -> str:
    """The picture as text, wide enough for nothing to wrap."""
    console = Console(width=200, record=True, file=None, quiet=False, color_system=None)
    with console.capture() as capture:
        console.print(picture.live(keys, NOW, ["a note"]))
    return capture.get()


def test_remaining_is_a_share_of_the_life() -> None:
    """Half a minute of a minute is half the life."""
    assert (timedelta(seconds=30), 0.5) == picture.remaining(key(), NOW)


@pytest.mark.parametrize("expires", [None, "soon", "2026-03-24T11:00:00+00:00", "2026-03-24T12:01:00", 17])
def test_remaining_is_unknown_without_a_sound_expiry(expires: object) -> None:
    """None, words, a time before the start, a time without zone and a number are all no expiry."""
    assert picture.remaining(key(expires_at=expires), NOW) is None


def test_remaining_of_an_expired_key_is_nothing() -> None:
    """It never goes below zero."""
    assert (timedelta(0), 0.0) == picture.remaining(key(), NOW + timedelta(hours=1))


def test_a_key_that_does_not_expire_shows_its_next_rotation() -> None:
    """Half a minute of a minute until it is due is half a bar, and says what it counts down to."""
    text = drawn([key(expires_at=None, rotate_at="2026-03-24T12:01:00+00:00")])
    assert "█" * 12 + "░" * 12 + " 30s to rotation" in text
    assert "to rotation" not in drawn([key(rotate_at="2026-03-24T12:00:40+00:00")])


def test_picture_shows_life_phase_version_consumers_and_event() -> None:
    """Each column of the issue's list is there."""
    text = drawn(
        [
            key(
                state="rotating",
                rotation={"step": "restart"},
                last_event={"at": "2026-03-24T12:00:25Z", "name": "step_ok", "step": "promote", "result": "ok"},
            )
        ]
    )
    assert [
        part
        for part in (
            "building-a",
            "█" * 12 + "░" * 12 + " 30s",
            "rotating: restart",
            "version 3",
            "· dashboards v3",
            "step_ok promote ok",
            "5s ago",
            "a note",
        )
        if part not in text
    ] == []


@pytest.mark.parametrize("field", sorted(key()))
def test_picture_copes_with_a_missing_field(field: str) -> None:
    """Any field may be missing or null."""
    without = {name: value for name, value in key().items() if name != field}
    assert "rotator demo" in drawn([without, {**key(), field: None}])


@pytest.mark.parametrize("answer", [None, [], "no", {}, {"keys": None}, {"keys": ["a", 1]}])
def test_an_odd_answer_has_no_keys(answer: object) -> None:
    """Whatever else answers on that port does not end the demo."""
    assert picture.keys_of(answer) == []


def test_changes_name_what_is_different() -> None:
    """State with step, Vault version, restart and confirmation each get their line, and nothing else does."""
    after = key(
        state="rotating",
        rotation={"step": "confirm"},
        vault={"version": 4},
        consumers=[{"name": "dashboards", "version": 4, "restarted_at": "x", "confirmed_at": "y", "lag": 0}],
    )
    expected = [
        "building-a  rotating: confirm",
        "building-a  Vault holds version 4",
        "building-a  dashboards restarted on version 4",
        "building-a  dashboards confirmed on version 4",
    ]
    assert expected == list(picture.changes([key()], [after]))


def test_nothing_changed_prints_nothing() -> None:
    """The same answer twice is silence."""
    assert list(picture.changes([key()], [key()])) == []


def test_a_failed_step_is_told_with_its_detail() -> None:
    """An event with a reason is printed, in the daemon's words."""
    event = {"at": "x", "name": "step_failed", "step": "promote", "reason": "vault_sealed", "detail": "Vault is sealed"}
    assert list(picture.changes([key()], [key(last_event=event)])) == [
        "building-a  step_failed  promote  vault_sealed  Vault is sealed"
    ]
