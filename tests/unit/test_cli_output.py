"""What the commands print for people: whole words where there is little room, and the next step."""

from __future__ import annotations

import errno
import io
import json
from typing import Any

import pytest
from rich.console import Console

from rotator import cli_output
from rotator.model import KeyState
from rotator.reasons import ADVICE, Reason


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What goes to a pipe, or to a terminal of 80 columns."""
    file = io.StringIO()
    for name in ("out", "err"):
        monkeypatch.setattr(cli_output, name, Console(file=file, width=80))
    return file


def view(name: str, reason: Reason | None) -> dict[str, Any]:
    """A key as the daemon shows it, as far as the table reads it."""
    return {
        "name": name,
        "state": KeyState.OVERDUE.value,
        "rotation": {"step": "preflight"},
        "expires_at": "2030-01-01T12:00:00+00:00",
        "rotate_at": "2030-01-01T12:00:00+00:00",
        "vault": {"version": 12},
        "consumers": [{"name": "ingest", "confirmed_at": None, "lag": 1}],
        "reason": reason.value if reason else None,
        "advice": ADVICE[reason] if reason else None,
    }


@pytest.mark.parametrize("reason", [Reason.VAULT_SEALED, max(Reason, key=len)])
def test_no_reason_is_cut(printed: io.StringIO, reason: Reason) -> None:
    """The whole word in the table, at 80 columns; its advice below, one line a key."""
    cli_output.show_keys([view("building-a", reason), view("building-b", None)], as_json=False)
    lines = printed.getvalue().splitlines()
    assert 1 == len([line for line in lines if line.startswith("│") and f" {reason.value} " in line])
    assert [f"building-a: {reason.value}: {ADVICE[reason]}"] == [line for line in lines if "building-a:" in line]
    assert lines[-1].startswith("building-a: ")


def test_a_peer_that_fails_has_a_line(printed: io.StringIO) -> None:
    """Though every key is well; not those that answer, nor one that nobody has looked at yet."""
    advice = ADVICE[Reason.VAULT_SEALED]
    checks = {
        "acme": {"ok": True},
        "vault": {"ok": False, "reason": "vault_sealed", "detail": "Vault says 503 [x]", "advice": advice},
        "other": {"ok": False, "reason": "not_due", "detail": "not looked at yet", "advice": "Nothing."},
    }
    cli_output.show_status([view("building-a", None)], checks, as_json=False)
    lines = printed.getvalue().splitlines()
    assert f"vault: vault_sealed (Vault says 503 [x]): {advice}" == lines[-1]
    assert [] == [line for line in lines if line.startswith(("acme", "other"))]


def test_status_as_json_has_the_checks(capsys: pytest.CaptureFixture[str]) -> None:
    """As /readyz has them, beside the keys."""
    cli_output.show_status([view("building-a", None)], {"acme": {"ok": True}}, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert (["building-a"], {"acme": {"ok": True}}) == ([key["name"] for key in answer["keys"]], answer["checks"])


def test_a_rotation_that_has_not_ended(printed: io.StringIO) -> None:
    """Not begun yet, or where it is, why, and what to do."""
    cli_output.say_rotation("building-a", {})
    ended = {"step": "promote", "reason": "vault_sealed", "detail": "Vault says 503", "result": None}
    cli_output.say_rotation("building-a", ended)
    assert [
        "building-a: asked for, and not begun yet",
        "building-a: not at its end yet, at promote (vault_sealed: Vault says 503)",
        ADVICE[Reason.VAULT_SEALED],
    ] == printed.getvalue().splitlines()


@pytest.mark.parametrize("number", [errno.EEXIST, errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_what_the_system_refuses_has_a_next_step(printed: io.StringIO, number: int) -> None:
    """Its words, the path, and a sentence about what to do."""
    cli_output.say_os_error(OSError(number, "the system's words", "/a/path/[x]"))
    words, advice = printed.getvalue().splitlines()
    assert ("the system's words: /a/path/[x]", True) == (words, advice.endswith("."))


def test_a_refusal_that_has_no_number(printed: io.StringIO) -> None:
    """Nothing is made up."""
    cli_output.say_os_error(OSError("who knows"))
    assert ["who knows"] == printed.getvalue().splitlines()
