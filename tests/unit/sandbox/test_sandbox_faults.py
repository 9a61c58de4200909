"""The fault switches by themselves."""

from __future__ import annotations

import pytest

from rotator.sandbox.faults import WITHOUT_EFFECT, Answer, Cut, Faults, TransportFault


@pytest.mark.parametrize("answer", list(Answer))
def test_an_answer_says_whether_the_refresh_happened(answer: Answer) -> None:
    """A kind of answer has its usual effect, and `effect` overrules it both ways."""
    got = (
        Faults(answer=answer).takes_effect(),
        Faults(answer=answer, effect=True).takes_effect(),
        Faults(answer=answer, effect=False).takes_effect(),
    )
    assert (answer not in WITHOUT_EFFECT, True, False) == got


@pytest.mark.parametrize(
    ("faults", "prevents"),
    [
        (Faults(), False),
        (Faults(cut=Cut.BEFORE_EFFECT), True),
        (Faults(cut=Cut.AFTER_EFFECT), False),
        (Faults(status=503), True),
        (Faults(status=503, status_after_effect=True), False),
        (Faults(truncate=True, latency_before=1), False),
    ],
)
def test_which_faults_prevent_the_effect(faults: Faults, prevents: bool) -> None:
    """Only a cut before the effect and a plain status do."""
    assert prevents == TransportFault.of(faults).prevents_effect
