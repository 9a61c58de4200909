"""What happened to a rotation, told without its record, and what must never be false (design, rules 1, 2, 4, 5 and 9).

Nothing is proven by the record that is on trial: the witness keeps an account of its own, and knows the world.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from play import DAY, OLD, Play
from rotator.batches import turn_of
from rotator.lifecycle import LOOK_AGAIN
from rotator.model import Result, Step, Strategy, Verdict
from rotator.rotation import (
    ConfirmDone,
    DeactivateDone,
    Failed,
    FinishDone,
    IssueDone,
    LookDone,
    Outcome,
    ProbeDone,
    PromoteDone,
    ReconfirmDone,
    RestartDone,
    RevertDone,
    Rotation,
    SettleDone,
)

NO = (Verdict.REFUSED, Verdict.SUBSCRIPTION_REFUSED)


@dataclass
class Witness:
    """Is asked before a step runs, and told what came of it."""

    play: Play
    call: str = ""  # the last issue call: "out" (nobody knows), "over" (refused, or looked for), "answered"
    life: timedelta | None = None  # of the new secret, as the answer says
    refused: bool = False  # the broker's last word about the new secret
    accepted: bool = False
    begun: set[str] = field(default_factory=set)  # whose restart onto the new secret was begun, ever
    restarted: set[str] = field(default_factory=set)  # since the last write to Vault
    proved: set[str] = field(default_factory=set)  # seen since then, and did not crash
    again: set[str] = field(default_factory=set)  # still to be proven a second time
    waits_since: datetime | None = None  # the grace period
    unwatched: bool = False  # the second confirmation is under way by restarts
    late: set[str] = field(default_factory=set)  # keys of lost calls that came after the last look
    looks: list[datetime] = field(default_factory=list)  # that showed no sign of the last call

    def copy(self, play: Play) -> Witness:
        """The same account, of a play that goes on differently."""
        other = object.__new__(Witness)
        other.__dict__.update(self.__dict__)
        other.play, other.restarted, other.proved = play, set(self.restarted), set(self.proved)
        other.begun = set(self.begun)
        other.again, other.late, other.looks = set(self.again), set(self.late), list(self.looks)
        return other

    def account(self) -> tuple[object, ...]:
        """All of it but the times."""
        sets = (self.begun, self.restarted, self.proved, self.again, self.late)
        waits = self.waits_since is not None
        return (self.call, self.refused, self.accepted, self.unwatched, waits, len(self.looks), *map(frozenset, sets))

    def before(self, step: Step) -> None:
        """May this step run?"""
        play, rotation, world = self.play, self.play.rotation, self.play.world
        back = rotation.rolling_back is not None
        if step is self.waiting and not self.unwatched:
            assert self.grace_over(), "the grace period is not over (rule 5)"
        if step is Step.RESTART:
            self.restart_begins(turn_of(rotation, play.limits.plans), back=back)
        match step:
            case Step.ISSUE if play.strategy is not Strategy.CHOSEN:
                assert self.call != "out", "a second call while the first one is not settled (rule 9)"
                assert self.call != "answered" or self.refused, "a later step's failure never issues again"
            case Step.PROMOTE:
                assert rotation.sealed, "nothing to promote"
                assert not self.refused, "a refused secret into Vault (rule 2)"
                if play.strategy is Strategy.REPLACE:
                    assert self.accepted or world.dying(play.now) or not world.broker, "not proven (rule 2)"
            case Step.DELIVER | Step.RESTART:
                assert back or not self.refused, "restarted onto a secret that the broker refuses (rule 2)"
            case Step.DEACTIVATE | Step.DELETE:
                assert world.proven <= self.proved, "retired before everybody was confirmed (rule 5)"
                assert step is Step.DEACTIVATE or not self.again, "not confirmed a second time (rule 5)"
                assert world.vault != OLD, "Vault holds the key that is retired"
            case Step.REVERT:
                assert play.strategy is not Strategy.REPLACE or OLD in world.keys, "back to a key that is gone"
            case Step.CLEAN:
                made = rotation.new_identity.id if rotation.new_identity is not None else None
                assert OLD not in rotation.orphans, "the key itself is no orphan"
                assert back or made not in rotation.orphans, "the new key is no orphan"
                assert world.vault not in rotation.orphans, "Vault holds the key that is deleted"
                assert not set(world.running.values()) & set(rotation.orphans), (
                    "somebody runs on the key that is deleted"
                )
            case _:
                pass

    def restart_begins(self, turn: list[str], *, back: bool) -> None:
        """May these be restarted at once?"""
        play, plans = self.play, {plan.name: plan for plan in self.play.limits.plans}
        if not back:
            self.begun |= set(turn)
        if play.strategy is not Strategy.REPLACE:
            return
        assert set(turn) <= self.begun, "the way back restarts somebody who never left the old key"
        if not back and not play.world.dying(play.now):
            most = min((plans[n].max_unavailable or len(turn) for n in turn if n in plans), default=len(turn))
            assert len(turn) <= most, "more are away than one of them allows"
            canaries = {plan.name for plan in plans.values() if plan.canary}
            assert canaries <= self.proved | set(turn) or not play.world.proven >= canaries or self.waits_since, (
                "somebody else's turn before the canary is proven"
            )

    @property
    def waiting(self) -> Step:
        """The step that waits for the grace period."""
        if not self.play.limits.deactivates:
            return Step.RECONFIRM
        return Step.DELETE if self.play.rotation.consumers else Step.DEACTIVATE

    def grace_over(self) -> bool:
        play, ends = self.play, self.play.world.old_ends
        if self.waits_since is None or play.rotation.no_grace or (ends is not None and play.now >= ends):
            return True
        usual = DAY if self.life is None else min(DAY, self.life / 10)
        grace = usual if play.limits.grace is None else play.limits.grace
        return play.now >= self.waits_since + grace

    def after(self, step: Step | None, old: Rotation, outcome: Outcome | None) -> None:
        """Learn what came of a step (None: of something else), and look at the record."""
        new, play = self.play.rotation, self.play
        self.learn(outcome)
        if step is Step.ISSUE and not isinstance(outcome, IssueDone):
            self.call, self.looks = "over" if isinstance(outcome, Failed) and not outcome.unknown else "out", []
        if new.step is self.waiting and self.waits_since is None:
            self.waits_since = play.now
            self.again = set() if play.limits.deactivates else set(play.world.proven)
        if isinstance(outcome, Failed) and outcome.delay and new.step is step and new.finished_at is None:
            assert new.not_before is not None, "the same step again at once"
            assert new.not_before > play.now, "the same step again at once"
        if old.sealed and not new.sealed:
            over = new.result is Result.ROLLED_BACK
            assert over or isinstance(outcome, PromoteDone | RevertDone), "an answer was forgotten (rule 1)"
        if new.finished_at is not None and old.finished_at is None:
            self.at_the_end(new)

    def learn(self, outcome: Outcome | None) -> None:
        """Take down what was reported."""
        match outcome:
            case IssueDone(answered_at=answered, expires_at=expires):
                self.call, self.refused, self.accepted = "answered", False, False
                self.life = expires - answered if expires is not None else None
            case LookDone(happened=happened):
                self.late.clear()
                self.looks = [] if happened else [*self.looks, self.play.now]
                looking = self.play.rotation.step is Step.LOOK and self.play.rotation.finished_at is None
                self.call = "out" if looking else "over"
                if self.call == "over" and not happened:
                    assert self.looks[-1] - self.looks[0] >= LOOK_AGAIN, "looked at twice, with a pause (rule 4)"
            case ProbeDone(verdict=verdict):
                self.accepted = verdict is Verdict.ACCEPTED
                self.refused = verdict in NO or (self.refused and verdict is Verdict.UNREACHABLE)
            case PromoteDone() | RevertDone():
                self.restarted, self.proved = set(), set()
            case RestartDone(tickets=tickets):
                self.restarted |= {ticket.consumer for ticket in tickets}
                self.proved -= {ticket.consumer for ticket in tickets}
            case ConfirmDone(seen=seen, unseen=unseen):
                now_seen = {name for name, _ in seen} & self.restarted
                self.proved |= now_seen
                self.again -= now_seen
                self.restarted -= set(unseen)
            case SettleDone(crashed=gone) | ReconfirmDone(blind=gone):
                self.proved -= set(gone)
                self.restarted -= set(gone)
                if isinstance(outcome, ReconfirmDone):
                    self.again, self.unwatched = set(gone), self.unwatched or bool(gone)
            case DeactivateDone():
                self.again = set(self.play.world.proven)
            case FinishDone(orphans=orphans):
                self.late -= set(orphans)
            case _:
                pass

    def at_the_end(self, ended: Rotation) -> None:
        """Does the result say what is true?"""
        world, replaced = self.play.world, self.play.strategy is Strategy.REPLACE
        lost = world.keys.keys() - {OLD, world.vault} - self.late if replaced else set()
        assert ended.result is not None
        if ended.result is Result.FAILED:
            assert ended.reason is not None, "failed, and nobody knows why"
            doubt = ended.sealed or ended.rolling_back is not None or self.call == "out" or self.refused
            assert ended.quarantine is not None or not doubt, "a secret in doubt and no quarantine"
            assert not replaced or not ended.answers or world.answered in world.keys, "a failed rollback retired a key"
            return
        assert not lost, "an orphan was forgotten"
        if ended.result is Result.SUCCEEDED:
            assert world.vault == world.answered
            assert world.works(world.vault, self.play.strategy, self.play.now), "Vault holds a dead secret"
            assert world.proven <= self.proved, "succeeded, and somebody is not proven"
            assert not replaced or OLD not in world.keys, "the old key was forgotten"
        if ended.result is Result.ROLLED_BACK:
            assert ended.quarantine is not None, "no automatic second try"
            assert world.vault == OLD
            assert world.keys.get(OLD) if replaced else world.live == OLD, "Vault holds a dead secret"
            # with replace, who was never restarted never left the old key
            left = {c.name for c in ended.consumers if c.touched or not replaced}
            assert world.proven & left <= self.proved or not ended.reverted, "rolled back, and somebody is not proven"
