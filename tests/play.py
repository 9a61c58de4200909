"""Rotations played through the pure machine: a world that a rotation is about, small enough to be looked through.

`Play.effect` does a step to that world as the engine would, and reports what it truly did; a test puts a fault in its
place, or lets the effect happen and loses the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from rotator.batches import turn_of
from rotator.frozen import replace
from rotator.lifecycle import advance, begin_call, next_step, restart_begins
from rotator.model import Identity, Step, Strategy, Ticket, Verdict
from rotator.reasons import Reason
from rotator.rotation import (
    ChooseDone,
    CleanDone,
    ConfirmDone,
    ConsumerProgress,
    DeactivateDone,
    DeleteDone,
    DeliverDone,
    Ended,
    Failed,
    FinishDone,
    IssueDone,
    Limits,
    LookDone,
    Outcome,
    PreflightDone,
    ProbeDone,
    PromoteDone,
    ReactivateDone,
    ReconfirmDone,
    RestartDone,
    RevertDone,
    Rotation,
    Run,
    SettleDone,
    Wait,
    WayBackDone,
)

NOW = datetime(2026, 3, 24, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
OLD = "old"
BORN = NOW - 80 * DAY  # the old secret
LIMITS = Limits(max_attempts=3, propagation=10 * SECOND, settle=3 * SECOND)


def begun(strategy: Strategy = Strategy.IN_PLACE, *consumers: str, no_grace: bool = False) -> Rotation:
    """A rotation that has done nothing yet."""
    return Rotation(
        id="0123456789abcdef",
        key="building-a",
        provider="acme",
        identity=Identity(id=OLD, username=OLD),
        strategy=strategy,
        trigger=Reason.NEAR_EXPIRY,
        no_grace=no_grace,
        started_at=NOW,
        step_since=NOW,
        consumers=tuple(ConsumerProgress(name=name) for name in consumers),
    )


@dataclass(kw_only=True)
class World:
    """What is true outside of the record. A secret is known by its name; `OLD` is the one from before."""

    live: str = OLD  # in place, chosen: the one secret that the provider lets in
    keys: dict[str, bool] = field(default_factory=lambda: {OLD: True})  # replace: key → whether it is active
    made: int = 0
    late: list[str] = field(default_factory=list)  # keys of lost calls that the provider has not made yet
    answered: str = ""  # the secret of the last answer that came back
    vault: str = OLD
    version: int = 1
    held: bool = True  # Vault still has the version before the issue call
    running: dict[str, str] = field(default_factory=dict)  # consumer → the secret that it was restarted onto
    old_ends: datetime | None = None
    life: timedelta | None = 90 * DAY  # of a new secret
    broker: bool = True
    proven: frozenset[str] = frozenset()  # consumers whose connects can be seen
    idle: frozenset[str] = frozenset()  # consumers of which nothing runs

    def copy(self) -> World:
        other = object.__new__(World)  # `copy.copy` takes ten times as long
        other.__dict__.update(self.__dict__)
        other.keys, other.late, other.running = dict(self.keys), list(self.late), dict(self.running)
        return other

    def account(self) -> tuple[object, ...]:
        """All of it but the numbers of versions."""
        keys, running = tuple(self.keys.items()), tuple(self.running.items())
        told = (self.live, self.made, self.answered, self.vault, self.held)
        return (*told, keys, tuple(self.late), running, self.old_ends, self.life, self.broker, self.proven)

    def works(self, secret: str, strategy: Strategy, now: datetime) -> bool:
        """Whether the broker lets this secret in."""
        if secret == OLD and self.old_ends is not None and now >= self.old_ends:
            return False
        return self.keys.get(secret, False) if strategy is Strategy.REPLACE else secret == self.live

    def dying(self, now: datetime) -> bool:
        """Whether the old secret is in the last twentieth of its life."""
        return self.old_ends is not None and now >= self.old_ends - (self.old_ends - BORN) * 0.05

    def verdict(self, secret: str, strategy: Strategy, now: datetime) -> Verdict | None:
        if not self.broker:
            return None
        return Verdict.ACCEPTED if self.works(secret, strategy, now) else Verdict.REFUSED

    def name_next(self, strategy: Strategy) -> str:
        """The secret that the next call makes."""
        self.made += 1
        return "chosen" if strategy is Strategy.CHOSEN else f"new-{self.made}"


@dataclass(kw_only=True)
class Play:
    """One rotation in its world."""

    rotation: Rotation
    world: World
    limits: Limits = LIMITS
    now: datetime = NOW
    steps: list[Step] = field(default_factory=list)

    def copy(self) -> Play:
        other = object.__new__(Play)
        other.__dict__.update(self.__dict__)
        other.world, other.steps = self.world.copy(), []
        return other

    @property
    def strategy(self) -> Strategy:
        return self.rotation.strategy

    def due(self) -> Step | None:
        """The step that runs next, after all waits; None at the end."""
        now = self.now
        for _ in range(5):
            match next_step(self.rotation, now, self.limits):
                case Ended():
                    return None
                case Wait(until=until):
                    assert until > now, "a wait that is over"
                    now = until
                case Run(step=step):
                    return step
        raise AssertionError("waits without end")

    def turn(self, report: Callable[[Step], Outcome | None] | None = None) -> Outcome | None:
        """Wait, then run one step. `report` is given the step and says what came of it (None: the process died)."""
        step = self.due()
        assert step is not None, "nothing left to do"
        while isinstance(wait := next_step(self.rotation, self.now, self.limits), Wait):
            self.now = wait.until
        self.steps.append(step)
        if step is Step.ISSUE:
            self.rotation = begin_call(self.rotation, self.now)
        if step is Step.RESTART:
            self.rotation = restart_begins(self.rotation, self.now, self.limits)
        self.now += SECOND
        outcome = (report or self.effect)(step)
        if outcome is not None:
            if step is not self.rotation.step:  # after a crash inside the issue call, ISSUE for LOOK
                self.rotation = replace(self.rotation, step=step)
            self.rotation = advance(self.rotation, outcome, self.now, self.limits)
        return outcome

    def told(self, *outcomes: Outcome) -> Play:
        """Run as many steps, and report these outcomes of them."""
        for outcome in outcomes:
            self.turn(lambda _, outcome=outcome: outcome)  # type: ignore[misc]
        return self

    def until(self, step: Step | None) -> Play:
        """Let all go well until this step is next, or to the end."""
        for _ in range(80):
            due = self.due()
            if due is None or due is step:
                assert due is step, f"ended before {step}: {self.steps}"
                return self
            self.turn()
        raise AssertionError(f"no end: {self.steps[-20:]}, {self.rotation}")

    # --- what the steps truly do ---------------------------------------------------------------------------------

    def effect(self, step: Step) -> Outcome:
        """Do a step to the world."""
        effect: Callable[[], Outcome] = getattr(self, f"_{step.value}")
        return effect()

    def _preflight(self) -> Outcome:
        return PreflightDone(issued_before=BORN, expected="print", expired_before=self.world.old_ends, base_version=1)

    def _choose(self) -> Outcome:
        return ChooseDone()

    def call(self) -> str:
        """The issue call's effect at the provider."""
        name = self.world.name_next(self.strategy)
        if self.strategy is Strategy.REPLACE:
            self.world.keys[name] = True
        else:
            self.world.live = name
        return name

    def _issue(self) -> Outcome:
        return self.answer(self.world.life)

    def answer(self, life: timedelta | None) -> IssueDone:
        """The call happens and is answered with this lifetime."""
        name = self.world.answered = self.call()
        identity = Identity(id=name, username=name) if self.strategy is Strategy.REPLACE else self.rotation.identity
        expires = self.now + life if life is not None else None
        return IssueDone(
            answered_at=self.now, issued_at=self.now, expires_at=expires, expiry_source=None, identity=identity
        )

    def lost(self) -> list[str]:
        """Keys that this rotation made and whose secrets nobody has."""
        used = {OLD, self.rotation.new_identity.id if self.rotation.new_identity else ""}
        return [name for name in self.world.keys if name not in used]

    def _look(self) -> Outcome:
        if self.strategy is Strategy.REPLACE:
            return LookDone(happened=bool(self.lost()), orphans=self.lost())
        return LookDone(happened=self.world.live not in {OLD, self.world.answered})

    def _probe(self) -> Outcome:
        return ProbeDone(verdict=self.world.verdict(self.world.answered, self.strategy, self.now))

    def _promote(self) -> Outcome:
        if self.world.vault != self.world.answered:
            self.world.vault, self.world.version = self.world.answered, self.world.version + 1
        return PromoteDone(version=self.world.version, expected=f"print of {self.world.vault}")

    def _deliver(self) -> Outcome:
        return DeliverDone()

    def _restart(self) -> Outcome:
        return self.restart(turn_of(self.rotation, self.limits.plans))

    def restart(self, names: list[str], failed: Failed | None = None) -> RestartDone:
        """These consumers come up with what Vault holds."""
        self.world.running.update(dict.fromkeys(names, self.world.vault))
        return RestartDone(
            tickets=[self._ticket(name) for name in names],
            failed=failed,
        )

    def _ticket(self, name: str) -> Ticket:
        marks = {"replicas": 0} if name in self.world.idle else {}
        return Ticket(consumer=name, restarted_at=self.now, marks=marks)

    def asked(self) -> list[str]:
        """Whose proof is waited for: they are restarted, can be seen, and were not seen yet."""
        waiting = (c for c in self.rotation.consumers if c.restarted_at is not None and not c.idle)
        return [c.name for c in waiting if c.name in self.world.proven and c.seen_at is None]

    def up(self, name: str) -> bool:
        """Whether a consumer runs on a secret that works."""
        return self.world.works(self.world.running.get(name, OLD), self.strategy, self.now)

    def _confirm(self) -> Outcome:
        pending = self.asked()
        seen = [(name, self.now) for name in pending if self.up(name)]
        unseen = [name for name in pending if not self.up(name)]
        failed = Failed(reason=Reason.CONSUMER_NOT_CONFIRMED, delay=SECOND) if unseen else None
        return ConfirmDone(seen=seen, unseen=unseen, failed=failed)

    def _settle(self) -> Outcome:
        return SettleDone(confirmed=[c.name for c in self.rotation.consumers if c.restarted_at is not None])

    def _deactivate(self) -> Outcome:
        self.world.keys[OLD] = False
        return DeactivateDone(at=self.now)

    def _reconfirm(self) -> Outcome:
        if all(self.up(name) for name in self.world.proven):
            return ReconfirmDone()
        return Failed(reason=Reason.CONSUMER_NOT_CONFIRMED, delay=SECOND)

    def _delete(self) -> Outcome:
        self.world.keys.pop(OLD, None)
        return DeleteDone(at=self.now)

    def _reactivate(self) -> Outcome:
        if OLD not in self.world.keys:
            return Failed(reason=Reason.KEY_UNKNOWN, delay=SECOND)
        self.world.keys[OLD] = True
        return ReactivateDone()

    def _way_back(self) -> Outcome:
        if not self.world.held:
            return WayBackDone(verdict=None, held=False)
        if self.strategy is Strategy.CHOSEN:
            self.world.live = OLD
        return WayBackDone(verdict=self.world.verdict(OLD, self.strategy, self.now), held=True)

    def _revert(self) -> Outcome:
        if self.world.vault == OLD:
            return RevertDone(version=None)
        self.world.vault, self.world.version = OLD, self.world.version + 1
        return RevertDone(version=self.world.version, expected="print")

    def _clean(self) -> Outcome:
        for name in self.rotation.orphans:
            self.world.keys.pop(name, None)
        return CleanDone()

    def _finish(self) -> Outcome:
        return FinishDone(orphans=self.lost() if self.strategy is Strategy.REPLACE else ())


def at(
    step: Step | None,
    strategy: Strategy = Strategy.IN_PLACE,
    *,
    consumers: Sequence[str] = ("ingest", "dashboards"),
    limits: Limits = LIMITS,
    world: World | None = None,
    no_grace: bool = False,
) -> Play:
    """A rotation that has come to `step` (None: to its end) without any trouble; all its consumers can be seen."""
    world = world or World()
    world.proven = frozenset(consumers)
    rotation = begun(strategy, *consumers, no_grace=no_grace)
    return Play(rotation=rotation, world=world, limits=limits).until(step)
