"""The table of faults: every strategy, every step that it goes through, every fault. `crash_stage` plays a row.

A combination that can't be stands in the table all the same, as the reason why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Step, Strategy
from rotator.reasons import Reason
from simulation.crash_journal import FULL, LOCKED
from simulation.crash_stage import BEGIN, DAMAGE, EFFECT, INTENT, ORIGINAL, RECORD, TAKEN_BACK, Place, Stage
from simulation.fault_routes import ROUTES, Route, raising
from simulation.world import AFTER, BEFORE, Killed

DAY = timedelta(days=1)
ASKED_DELAY = timedelta(seconds=40)
OURS = {"username": "somebody", "password": "elses-password"}  # which works
SPOILED = {"password": "a slip of the hand"}
OTHERS = {"theirs": "changed", "more": "of theirs"}

# --- what steps do to the world --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Effect:
    """A step's own act on the world. `changes`: it leaves something behind."""

    point: str
    changes: bool = True


EFFECTS = {
    Step.PREFLIGHT: Effect("provider.list", changes=False),
    Step.ISSUE: Effect("provider.issue"),
    Step.LOOK: Effect("provider.list", changes=False),
    Step.PROBE: Effect("broker.probe", changes=False),
    Step.PROMOTE: Effect("vault.put"),
    Step.RESTART: Effect("consumer.restart"),
    Step.SETTLE: Effect("consumer.check", changes=False),
    Step.DEACTIVATE: Effect("provider.deactivate"),
    Step.RECONFIRM: Effect("consumer.check", changes=False),
    Step.DELETE: Effect("provider.delete"),
    Step.REACTIVATE: Effect("provider.reactivate"),
    Step.WAY_BACK: Effect("vault.read", changes=False),
    Step.REVERT: Effect("vault.put"),
    Step.CLEAN: Effect("provider.delete"),
    Step.FINISH: Effect("provider.list", changes=False),
}
DELIVERED = Effect("delivery.arrived", changes=False)  # where the consumers do not read Vault themselves
NEGATIVE_PROOF = ("vault.read", "broker.probe")  # finish: does the broker refuse the old secret now?
WAY_BACK_CHOSEN = Effect("provider.issue")  # the old secret is set again
TOUCHES_NOTHING = {
    Step.CHOOSE: "a secret is made up: nothing outside the process is touched",
    Step.DELIVER: "the consumers read Vault themselves: nothing is touched",
    Step.CONFIRM: "watches are looked at: nothing is touched",
}
INTENT_STEPS = {Step.ISSUE, Step.RESTART}

NO_TRACE = "a look leaves nothing behind: as before the effect"
NO_INTENT = "this step commits nothing before its effect"
NO_ANSWER = "no secret is answered at this step"
NO_ROOM = "no room is set aside at this step"
NO_RATE = "brokers and consumers limit no rate"
NO_TAIL = "the commit that erases the blob empties the log: it has no tail"
NOT_THE_PROOF = "no old secret is tried at this point"
ONCE_IS_ENOUGH = "strikes the step, not this point of it: put in by the row of the step"
IMPOSSIBLE = {
    *TOUCHES_NOTHING.values(),
    *(NOT_THE_PROOF, ONCE_IS_ENOUGH, NO_TRACE, NO_INTENT, NO_ANSWER, NO_ROOM, NO_RATE, NO_TAIL),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One step of one route. `then`: what it touches after its effect, where a row is about that alone."""

    route: Route
    index: int
    then: str = ""

    @property
    def step(self) -> Step:
        """The step."""
        return self.route.steps[self.index]

    @property
    def chosen(self) -> bool:
        """Whether the secret is ours, so that an issue call may be repeated and its answer can't be lost."""
        return self.route.variant.strategy is Strategy.CHOSEN

    @property
    def effect(self) -> Effect | None:
        """What the step does."""
        if self.then:
            return Effect(self.then, changes=False)
        if self.step is Step.DELIVER and self.route.variant.late is not None:
            return DELIVERED
        return WAY_BACK_CHOSEN if self.chosen and self.step is Step.WAY_BACK else EFFECTS.get(self.step)

    @property
    def answers(self) -> bool:
        """Whether a secret is answered that nobody knew before."""
        return self.step is Step.ISSUE and not self.chosen

    def record(self, when: str = BEFORE) -> Place:
        """The commit of the step's outcome."""
        return Place(self.index, RECORD, when, self.step)

    def __str__(self) -> str:
        then = f", {self.then}" if self.then else ""
        return f"{self.route.variant.name}, {self.route.name}, {self.index} {self.step.value}{then}"


def rows() -> Iterator[Row]:
    """All steps of all routes, from where each leaves the usual way to where it is back on it."""
    for route in ROUTES:
        for index in route.rows:
            yield Row(route, index)
            if route.steps[index] is Step.FINISH:
                yield from (Row(route, index, then) for then in NEGATIVE_PROOF)


# --- the faults ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """A fault put in: where, what, how often.

    `answers_lost`: how many answers die of it; `looked_for`: which a look at the provider finds. `written`: the fields
    of our path that somebody else changes. `also`: one more place where it strikes. `unproven`: the proof of the step
    before, which waits to be written with the intent, is lost with it.
    """

    place: Place
    action: Callable[[Stage, int], None]
    times: int = 1
    answers_lost: int = 0
    looked_for: bool = True
    written: dict[str, str] | None = None
    also: Place | None = None
    unproven: bool = False


Planned = Plan | str  # or why it can't be


def _at_effect(row: Row, when: str) -> Place | str:
    if row.effect is None:
        return TOUCHES_NOTHING[row.step]
    if when == AFTER and not row.effect.changes:
        return NO_TRACE
    return Place(row.index, EFFECT, when, row.effect.point)


def _killed_at_effect(row: Row, when: str) -> Planned:
    place = _at_effect(row, when)
    if isinstance(place, str):
        return place
    return Plan(place, raising(Killed()), answers_lost=int(row.answers and when == AFTER))


def _killed_at_intent(row: Row, when: str) -> Planned:
    if row.step not in INTENT_STEPS:
        return NO_INTENT
    return Plan(Place(row.index, INTENT, when), raising(Killed()), unproven=when == BEFORE)


def _killed_at_record(row: Row, when: str) -> Planned:
    lost = int(row.answers and when == BEFORE)
    return Plan(row.record(when), raising(Killed()), answers_lost=lost)


def _timeout(row: Row, when: str) -> Planned:
    place = _at_effect(row, when)
    if isinstance(place, str):
        return place
    return Plan(place, raising(_unanswered(place.point)), answers_lost=int(row.answers and when == AFTER))


def _unanswered(point: str) -> Exception:
    """What an adapter raises for a request whose answer does not come; all but the issue call may be repeated."""
    if point == "provider.issue":
        return UnknownOutcome("no answer")
    if point == "broker.probe":
        return ConnectionError("no answer")
    reasons = {
        "provider": Reason.PROVIDER_UNREACHABLE,
        "vault": Reason.VAULT_UNREACHABLE,
        "consumer": Reason.CONSUMER_TIMEOUT,
        "delivery": Reason.CONSUMER_RESTART_FAILED,
    }
    return Transient("no answer", reason=reasons[point.partition(".")[0]])


def _refusal(row: Row) -> Planned:
    place = _at_effect(row, BEFORE)
    if isinstance(place, str):
        return place
    if place.point == "broker.probe":
        return Plan(place, raising(PermissionError("refused")))
    reasons = {
        "provider": Reason.PROVIDER_REFUSED,
        "vault": Reason.VAULT_DENIED,
        "consumer": Reason.CONSUMER_CRASHED if place.point == "consumer.check" else Reason.CONSUMER_RESTART_FAILED,
        "delivery": Reason.CONSUMER_FORBIDDEN,
    }
    return Plan(place, raising(Permanent("refused", reason=reasons[place.point.partition(".")[0]])))


def _rate_limit(row: Row) -> Planned:
    place = _at_effect(row, BEFORE)
    if isinstance(place, str):
        return place
    reasons = {"provider": Reason.PROVIDER_RATE_LIMITED, "vault": Reason.VAULT_RATE_LIMITED}
    reason = reasons.get(place.point.partition(".")[0])
    if reason is None:
        return NO_RATE
    return Plan(place, raising(Transient("slower", reason=reason, retry_after=ASKED_DELAY)))


def _no_usable_secret(row: Row) -> Planned:
    if not row.answers:
        return NO_ANSWER
    error = BadAnswer("no secret", reason=Reason.NO_SECRET, body=b"{}")
    place = Place(row.index, EFFECT, AFTER, "provider.issue")
    return Plan(place, raising(error), answers_lost=1, looked_for=False)  # an answer came: nothing is unknown


def _vault_fails(row: Row, error: RotatorError) -> Planned:
    return Plan(Place(row.index, BEGIN), lambda stage, _left: stage.vault_fails(error))


def _somebody_writes(row: Row, fields: dict[str, str]) -> Planned:
    """Between our read and our write where there are such, else before the step."""
    writes = row.effect is not None and row.effect.point == "vault.put"
    place = Place(row.index, EFFECT, BEFORE, "vault.put") if writes else Place(row.index, BEGIN)
    return Plan(place, lambda stage, _left: stage.somebody_writes(fields, works=fields is OURS), written=fields)


def _no_room(row: Row) -> Planned:
    if row.step not in {Step.PREFLIGHT, Step.CHOOSE, Step.ISSUE}:
        return NO_ROOM

    def act(stage: Stage, _left: int) -> None:
        stage.spool.has_room = False

    return Plan(Place(row.index, BEGIN), act)


def _journal(row: Row, kind: str, trouble: str) -> Planned:
    if kind == INTENT and row.step not in INTENT_STEPS:
        return NO_INTENT

    def act(stage: Stage, _left: int) -> None:
        stage.journal.trouble = trouble

    return Plan(row.record() if kind == RECORD else Place(row.index, kind), act, times=2)


def _neither_journal_nor_spool(row: Row) -> Planned:
    if not row.answers:
        return NO_ANSWER

    def act(stage: Stage, _left: int) -> None:
        stage.spool_refuses = True
        stage.journal.trouble = FULL

    return Plan(row.record(), act, times=2)


def _killed_with_the_answer_spooled(row: Row, *, again: bool) -> Planned:
    """At the first try the journal is full, at the second one the process dies; `again`: and while taking it back."""
    if not row.answers:
        return NO_ANSWER

    def act(stage: Stage, left: int) -> None:
        if left:
            stage.journal.trouble = FULL
        else:
            raise Killed

    also = Place(row.index, TAKEN_BACK, AFTER) if again else None
    return Plan(row.record(), act, times=2, also=also)


def _log_damaged(row: Row, place: Place | str) -> Planned:
    if isinstance(place, str):
        return place
    if place.kind == RECORD and row.index == len(row.route.steps) - 1:
        return NO_TAIL
    lost = int(row.answers and place.kind == EFFECT)
    # the intent went with the log: nobody knows that there was a call
    unproven = place.kind == EFFECT
    return Plan(place, raising(Killed(*DAMAGE)), answers_lost=lost, looked_for=not lost, unproven=unproven)


def _clock_steps(row: Row, span: timedelta, kind: str) -> Planned:
    place = Place(row.index, BEGIN) if kind == BEGIN else _at_effect(row, AFTER)
    if isinstance(place, str):
        return place
    return Plan(replace(place, when=BEFORE), lambda stage, _left: stage.clock_steps(span))


def _old_secret_let_in(row: Row) -> Planned:
    """The broker is slow to hear that the old one is useless: it is asked again."""
    if row.then != "broker.probe":
        return NOT_THE_PROOF

    def act(stage: Stage, _left: int) -> None:
        stage.broker.strangers ^= {(ORIGINAL, stage.old_secret)}

    place = Place(row.index, EFFECT, BEFORE, row.then)
    return Plan(place, act, also=replace(place, index=row.index + 1))


def planned(name: str, row: Row) -> Planned:
    """What this fault is at this row."""
    return ONCE_IS_ENOUGH if row.then and name not in AT_A_POINT else FAULTS[name](row)


FAULTS: dict[str, Callable[[Row], Planned]] = {
    "killed before the intent": partial(_killed_at_intent, when=BEFORE),
    "killed after the intent": partial(_killed_at_intent, when=AFTER),
    "killed before the effect": partial(_killed_at_effect, when=BEFORE),
    "killed after the effect": partial(_killed_at_effect, when=AFTER),
    "killed before the journal write": partial(_killed_at_record, when=BEFORE),
    "killed after the journal write": partial(_killed_at_record, when=AFTER),
    "timeout, not done": partial(_timeout, when=BEFORE),
    "timeout, done": partial(_timeout, when=AFTER),
    "refusal": _refusal,
    "rate limit": _rate_limit,
    "old secret let in": _old_secret_let_in,
    "no usable secret": _no_usable_secret,
    "Vault sealed": partial(_vault_fails, error=Transient("sealed", reason=Reason.VAULT_SEALED)),
    "token revoked": partial(_vault_fails, error=Permanent("permission denied", reason=Reason.VAULT_AUTH)),
    "other fields written": partial(_somebody_writes, fields=OTHERS),
    "our fields written": partial(_somebody_writes, fields=OURS),
    "our fields spoiled": partial(_somebody_writes, fields=SPOILED),
    "no room on the disk": _no_room,
    "journal full at the intent": partial(_journal, kind=INTENT, trouble=FULL),
    "journal locked at the intent": partial(_journal, kind=INTENT, trouble=LOCKED),
    "journal full": partial(_journal, kind=RECORD, trouble=FULL),
    "journal locked": partial(_journal, kind=RECORD, trouble=LOCKED),
    "journal full, spool refuses": _neither_journal_nor_spool,
    "journal full, killed with the answer spooled": partial(_killed_with_the_answer_spooled, again=False),
    "journal full, killed while taking it back": partial(_killed_with_the_answer_spooled, again=True),
    "log damaged after the journal write": lambda row: _log_damaged(row, row.record(AFTER)),
    "log damaged after the effect": lambda row: _log_damaged(row, _at_effect(row, AFTER)),
    "clock a day forward": partial(_clock_steps, span=DAY, kind=BEGIN),
    "clock a day back": partial(_clock_steps, span=-DAY, kind=BEGIN),
    "clock a day forward at the effect": partial(_clock_steps, span=DAY, kind=EFFECT),
    "clock a day back at the effect": partial(_clock_steps, span=-DAY, kind=EFFECT),
}
# Those whose place is one point of a step.
AT_A_POINT = {"killed before the effect", "timeout, not done", "refusal", "rate limit", "old secret let in"}
