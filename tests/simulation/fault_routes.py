"""The ways through a rotation's steps on which faults are put in: the usual one of each strategy, and those off it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from rotator.errors import UnknownOutcome
from rotator.model import Result, Step, Strategy
from rotator.rotation import ConsumerPlan
from simulation.crash_stage import EFFECT, Place, Stage, Variant
from simulation.world import AFTER, BEFORE

IN_PLACE = Variant("in place", Strategy.IN_PLACE)
UNDATED = Variant("in place undated", Strategy.IN_PLACE, dated=False)
REPLACE = Variant("replace", Strategy.REPLACE)
DELETES = Variant("replace without deactivation", Strategy.REPLACE, deactivates=False)
CHOSEN = Variant("chosen", Strategy.CHOSEN, dated=False)
DATELESS = Variant("in place without the date it should have", Strategy.IN_PLACE, dated=False, expires=True)
ALONE = Variant("in place alone", Strategy.IN_PLACE, alone=True)
REPLACE_ALONE = Variant("replace alone", Strategy.REPLACE, alone=True)
IN_TURN = Variant(
    "replace in turn",
    Strategy.REPLACE,
    plans=(
        ConsumerPlan(name="ingest", max_unavailable=1),
        ConsumerPlan(name="archive", max_unavailable=1),
        ConsumerPlan(name="canary", canary=True),
    ),
)
LATE = Variant("in place, delivered late", Strategy.IN_PLACE, late=timedelta(seconds=0.8))
LATE_REPLACE = Variant("replace, delivered late", Strategy.REPLACE, late=timedelta(seconds=0.8))
VARIANTS = (IN_PLACE, UNDATED, DATELESS, REPLACE, DELETES, CHOSEN, ALONE, REPLACE_ALONE, IN_TURN, LATE, LATE_REPLACE)


@dataclass(frozen=True, slots=True)
class Route:
    """One way through the steps.

    `way`: the names of the steps; faults are put in between the brackets, the rest is as usual. PROOF stands for the
    steps that prove the consumers. `issued`: secrets that the platform hands out where no other fault strikes.
    """

    variant: Variant
    name: str
    way: str
    issued: int = 1
    result: Result = Result.SUCCEEDED
    prepare: Callable[[Stage], object] = lambda stage: None
    turns: tuple[str, ...] = ()  # the restarts up to the proof, where their order is laid down

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of them."""
        return _steps(self.way)

    @property
    def rows(self) -> range:
        """The numbers of those between the brackets."""
        before, rest = self.way.split("[")
        first = len(_steps(before))
        return range(first, first + len(_steps(rest.split("]")[0])))

    def __str__(self) -> str:
        return f"{self.variant.name}, {self.name}"


def _steps(way: str) -> tuple[Step, ...]:
    words = way.replace("PROOF", "deliver restart confirm settle").replace("[", "").replace("]", "")
    return tuple(Step(word) for word in words.split())


def raising(error: BaseException) -> Callable[[Stage, int], None]:
    """What raises this, wherever it strikes."""

    def act(_stage: Stage, _left: int) -> None:
        raise error

    return act


def _call_unanswered(when: str) -> Callable[[Stage], object]:
    """The first issue call ends without an answer, before or after its effect."""
    place = Place(1, EFFECT, when, "provider.issue")
    return lambda stage: stage.set_trap(place, raising(UnknownOutcome("no answer")))


def _first_refused(stage: Stage) -> None:
    """The broker refuses the first new secret, and goes on refusing it."""
    stage.broker_refuses_first = True


def _asked_back(step: Step) -> Callable[[Stage], None]:
    """A person asks for the way back when this step is about to be run."""

    def prepare(stage: Stage) -> None:
        stage.rollback_at = step

    return prepare


_LOST, _NEVER = _call_unanswered(AFTER), _call_unanswered(BEFORE)
_ANEW = "preflight issue probe promote PROOF"
_BATCH = "restart confirm settle"
_BACK = Result.ROLLED_BACK

ROUTES = (
    Route(IN_PLACE, "usual", "[preflight issue promote probe PROOF finish]"),
    Route(IN_PLACE, "answer lost", "preflight issue [look issue] promote probe PROOF finish", issued=2, prepare=_LOST),
    Route(
        IN_PLACE, "call lost", "preflight issue [look look preflight] issue promote probe PROOF finish", prepare=_NEVER
    ),
    Route(
        IN_PLACE,
        "refused",
        "preflight issue promote probe [probe probe preflight issue promote] probe PROOF finish",
        issued=2,
        prepare=_first_refused,
    ),
    Route(UNDATED, "usual", "[preflight issue promote probe PROOF finish]"),
    Route(UNDATED, "answer lost", "preflight issue [look issue] promote probe PROOF finish", issued=2, prepare=_LOST),
    Route(
        UNDATED, "call lost", "preflight issue [look look preflight] issue promote probe PROOF finish", prepare=_NEVER
    ),
    Route(DATELESS, "usual", "[preflight issue probe promote PROOF finish]"),
    Route(DATELESS, "answer lost", "preflight issue [look issue] probe promote PROOF finish", issued=2, prepare=_LOST),
    Route(DATELESS, "call lost", f"preflight issue [look look] {_ANEW} finish", prepare=_NEVER),
    Route(REPLACE, "usual", f"[{_ANEW} deactivate reconfirm delete finish]"),
    Route(
        REPLACE,
        "answer lost",
        "preflight issue [look clean preflight issue] probe promote PROOF deactivate reconfirm delete finish",
        issued=2,
        prepare=_LOST,
    ),
    Route(
        REPLACE,
        "call lost",
        f"preflight issue [look look] {_ANEW} deactivate reconfirm delete finish",
        prepare=_NEVER,
    ),
    Route(ALONE, "usual", "[preflight issue promote probe PROOF finish]"),
    Route(REPLACE_ALONE, "usual", f"[{_ANEW} deactivate reconfirm delete finish]"),
    Route(REPLACE, "refused", "preflight issue probe [probe probe clean]", result=_BACK, prepare=_first_refused),
    Route(
        REPLACE,
        "asked back",
        "preflight issue probe promote deliver restart [way_back revert PROOF clean]",
        result=_BACK,
        prepare=_asked_back(Step.CONFIRM),
    ),
    Route(
        REPLACE,
        "asked back late",
        f"{_ANEW} deactivate reconfirm [reactivate way_back revert] PROOF clean",
        result=_BACK,
        prepare=_asked_back(Step.DELETE),
    ),
    Route(DELETES, "usual", f"[{_ANEW} reconfirm delete finish]"),
    Route(
        DELETES,
        "answer lost",
        "preflight issue [look clean preflight issue] probe promote PROOF reconfirm delete finish",
        issued=2,
        prepare=_LOST,
    ),
    Route(
        DELETES,
        "asked back late",
        f"{_ANEW} [way_back revert] PROOF clean",
        result=_BACK,
        prepare=_asked_back(Step.RECONFIRM),
    ),
    # In batches, and with a delivery that is late, only the steps are struck that differ: the others are the same as
    # above. Of three batches, two whole ones and the beginning of the last: its confirm and settle are the second's.
    Route(
        IN_TURN,
        "batch by batch",
        f"preflight issue probe promote deliver [{_BATCH} {_BATCH} restart] confirm settle"
        " deactivate reconfirm delete finish",
        turns=("canary", "ingest", "archive"),
    ),
    Route(
        IN_TURN,
        "asked back",
        "preflight issue probe promote deliver restart way_back revert deliver [restart confirm settle] clean",
        result=_BACK,
        prepare=_asked_back(Step.CONFIRM),
        turns=("canary", "canary"),
    ),
    Route(LATE, "delivered", "preflight issue promote probe [deliver deliver restart] confirm settle finish"),
    Route(
        LATE_REPLACE,
        "asked back",
        "preflight issue probe promote deliver deliver restart way_back revert [deliver deliver restart]"
        " confirm settle clean",
        result=_BACK,
        prepare=_asked_back(Step.CONFIRM),
    ),
    Route(CHOSEN, "usual", "[preflight choose issue promote probe PROOF finish]"),
    Route(
        CHOSEN,
        "refused",
        "preflight choose issue promote probe probe [probe way_back revert PROOF]",
        result=_BACK,
        prepare=_first_refused,
    ),
)
