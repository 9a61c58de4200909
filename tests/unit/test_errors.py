"""The tree of errors: complete, named, with a next step, and without secrets."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import traceback
from datetime import timedelta

import pytest

from rotator import errors
from rotator.errors import (
    BadAnswer,
    ConfigError,
    Conflict,
    Fault,
    JournalFailed,
    JournalLocked,
    Permanent,
    RotatorError,
    Stopping,
    Transient,
    UnknownOutcome,
)
from rotator.model import Identity, Issued, ProbeTarget, Secret, StoredSecret
from rotator.reasons import ADVICE, NEEDS_A_PERSON, Reason

LEAVES: list[RotatorError] = [
    Transient("m", reason=Reason.VAULT_SEALED),
    Permanent("m", reason=Reason.KEY_REVOKED),
    Conflict("m", reason=Reason.VAULT_CONFLICT),
    UnknownOutcome("m"),
    BadAnswer("m", reason=Reason.NO_SECRET, body=b"hunter2"),
    Stopping(),
    ConfigError([Fault("a:1", "m")]),
    JournalLocked("m"),
    JournalFailed("m", reason=Reason.JOURNAL_UNREADABLE),
]


def test_the_drawn_tree_is_the_real_one() -> None:
    """The docstring at the top of the file names each class and no other."""
    drawn = set(re.findall(r"[├└]── (\w+)", inspect.getdoc(errors) or ""))
    real = {
        name
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, RotatorError) and thing is not RotatorError
    }
    assert real == drawn
    assert {type(error).__name__ for error in LEAVES} == real


def test_every_error_has_one_parent() -> None:
    """Nobody catches one kind by way of another: `Transient` is not `Permanent`."""
    assert {(RotatorError,)} == {type(error).__bases__ for error in LEAVES}


@pytest.mark.parametrize("error", LEAVES, ids=lambda error: type(error).__name__)
def test_an_error_says_what_to_do(error: RotatorError) -> None:
    """A reason, and the advice that belongs to it."""
    assert ADVICE[error.reason] == error.advice
    assert error.message == str(error)


def test_every_reason_has_advice_in_a_sentence() -> None:
    """Rule 7: a name, and the next step beside it."""
    assert set(Reason) == set(ADVICE)
    assert [] == [reason for reason, advice in ADVICE.items() if not re.fullmatch(r"[A-Z`(].*[.)]", advice)]
    assert set(Reason) > NEEDS_A_PERSON


def test_reasons_are_words_that_a_label_can_carry() -> None:
    """Lower case and underscores, each once."""
    assert [] == [reason for reason in Reason if not re.fullmatch(r"[a-z]+(_[a-z]+)*", reason.value)]


def test_a_delay_that_the_other_side_asked_for_is_kept() -> None:
    """`Retry-After`."""
    assert timedelta(seconds=7) == Transient("m", reason=Reason.BACKOFF, retry_after=timedelta(seconds=7)).retry_after
    assert Transient("m", reason=Reason.BACKOFF).retry_after is None


def test_the_body_of_a_bad_answer_is_never_shown() -> None:
    """Not by repr, str, format, or a traceback."""
    error = BadAnswer("no token in the answer", reason=Reason.EMPTY_SECRET, body=b'{"password": "hunter2"}')
    try:
        raise error
    except BadAnswer:
        told = traceback.format_exc()
    shown = [repr(error), str(error), f"{error}", f"{error!r}", repr(error.args), told]
    assert [] == [text for text in shown if "hunter2" in text]
    assert "BadAnswer('no token in the answer', reason='empty_secret')" == repr(error)


@pytest.mark.parametrize(
    "fact",
    [
        Secret("hunter2"),
        [Secret("hunter2")],
        Issued(identity=Identity(id="a", username="a"), secret=Secret("hunter2")),
        StoredSecret(version=1, data={"password": "hunter2"}),
        ProbeTarget(host="h", port=1, password=Secret("hunter2")),
        (Secret("hunter2"), {"a": Secret("hunter2")}),
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_facts_that_carry_a_secret_do_not_print_it(fact: object) -> None:
    """What an error's message may have been made of."""
    assert "hunter2" not in f"{fact!r} {fact!s} {fact}"


def test_a_secret_is_a_value_and_never_leaves_by_pickle() -> None:
    """Comparable, hashable, false when empty; a process pool or a cache can't write it down."""
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert 1 == len({Secret("a"), Secret("a")})
    assert (True, False) == (bool(Secret("a")), bool(Secret("")))
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            take(Secret("a"))


def test_all_faults_of_a_configuration_stand_in_one_error() -> None:
    """One a line, each with its place and what may have been meant."""
    error = ConfigError([Fault("r.yaml:3", "unknown key `jiter`", "did you mean `jitter`?"), Fault("r.yaml:9", "no")])
    assert ["r.yaml:3: unknown key `jiter` (did you mean `jitter`?)", "r.yaml:9: no"] == error.message.splitlines()
    assert 2 == len(error.faults)
