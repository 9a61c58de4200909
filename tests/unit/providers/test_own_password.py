"""Which passwords the daemon tries at a broker whose own login it rotates, and in which order."""

from __future__ import annotations

import base64

import pytest

from rotator.errors import Permanent, Transient
from rotator.model import Secret
from rotator.providers.own_password import REMEMBERED, Basic, OwnPassword
from rotator.reasons import Reason


def away() -> str:
    """A reference whose Vault is away."""
    raise Transient("vault: away", reason=Reason.VAULT_UNREACHABLE)


def header(password: str) -> dict[str, str]:
    """What Basic authentication sends."""
    return {"Authorization": "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()}


def logs_in(basic: Basic, right: str, tries: int = 2) -> bool:
    """Whether one call gets in, as `Rest` asks: once, and once more where `refused` says so."""
    for left in reversed(range(tries)):
        shown = basic.headers(0.0)
        if shown == header(right):
            return True
        if not left or not basic.refused(shown):
            return False
    return False


def test_the_reference_comes_first() -> None:
    """Then what was set last, each once."""
    held = ["first"]
    own = OwnPassword("admin", lambda: held[0], in_vault=True)
    assert ("first",) == own.candidates()
    for value in ("second", "third", "second"):
        own.expect(Secret(value))
    assert ("first", "second", "third") == own.candidates()
    held[0] = "second"
    assert ("second", "third") == own.candidates()


def test_only_the_last_few_are_remembered() -> None:
    """A secret is not kept for longer than it can be of use."""
    own = OwnPassword("admin", lambda: "reference")
    for number in range(REMEMBERED + 3):
        own.expect(Secret(f"set-{number}"))
    assert REMEMBERED + 1 == len(own.candidates())
    assert "set-0" not in own.candidates()


def test_a_reference_that_cannot_be_read() -> None:
    """What was set still lets in; with nothing else to try, the reference's own error comes through."""
    own = OwnPassword("admin", away)
    with pytest.raises(Transient) as caught:
        own.candidates()
    assert Reason.VAULT_UNREACHABLE is caught.value.reason
    own.expect(Secret("set"))
    assert ("set",) == own.candidates()


def test_a_wrong_password_is_tried_once_a_call() -> None:
    """Nothing else is known, so nothing else is tried; a replaced reference counts at once."""
    held = ["wrong"]
    basic = Basic("rabbit", OwnPassword("admin", lambda: held[0]))
    assert not logs_in(basic, "right")
    assert header("wrong") == basic.headers(0.0)
    held[0] = "right"
    assert logs_in(basic, "right")


@pytest.mark.parametrize("turns", [["new", "new"], ["old", "new", "old", "new"], ["new", "old", "old", "new"]])
def test_whichever_of_two_is_right_gets_in(turns: list[str]) -> None:
    """Before the change, after it, after a way back: within one call each time."""
    own = OwnPassword("admin", lambda: "old")
    basic = Basic("rabbit", own)
    own.expect(Secret("new"))
    assert [True] * len(turns) == [logs_in(basic, right) for right in turns]


def test_a_third_one_is_found_by_the_next_call() -> None:
    """A call tries two, since more could be refused for other reasons than the password."""
    own = OwnPassword("admin", lambda: "reference")
    basic = Basic("rabbit", own)
    for value in ("older", "newer"):
        own.expect(Secret(value))
    assert [False, True, True] == [logs_in(basic, "older") for _ in range(3)]


def test_what_no_message_may_repeat() -> None:
    """The passwords and their encoded form; a `repr` holds neither."""
    basic = Basic("rabbit", OwnPassword("admin", lambda: "hush-hush"))
    encoded = header("hush-hush")["Authorization"].removeprefix("Basic ")
    assert ["hush-hush", encoded] == list(basic.secrets())
    assert "hush" not in repr(basic)


def test_a_login_that_is_no_text() -> None:
    """PROVIDER_AUTH, without a character of it."""
    basic = Basic("rabbit", OwnPassword("admin", lambda: "half\ud800"))
    with pytest.raises(Permanent) as caught:
        basic.headers(0.0)
    assert (Reason.PROVIDER_AUTH, "rabbit: the login can't be sent as text") == (
        caught.value.reason,
        caught.value.message,
    )
