"""What is known of each key of a simulated year, beside what the engine believes; and a rule of the design, broken."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rotator.claims import MOST_SKEW

# How far a wall clock may be off before the engine must notice (rule 11), with some room.
SLACK = MOST_SKEW + timedelta(minutes=1)


class Violation(BaseException):
    """A rule of the design is broken. No `except Exception` of the engine may swallow it."""

    def __init__(self, rule: str, key: str, detail: str) -> None:
        super().__init__(f"{rule}: {key}: {detail}")
        self.rule, self.key, self.detail = rule, key, detail


@dataclass
class Facts:
    """What is true of one key."""

    lost: int = 0  # answers that nobody holds, and that were not replaced yet
    unlooked: bool = False  # such a call was not looked for at the provider yet
    unknown: bool = False  # a call went out, whether or not it arrived, and no answer came
    refused: set[str] = field(default_factory=set)  # secrets that the broker refused when last asked
    replaced: set[str] = field(default_factory=set)  # secrets in whose place one was issued, being due
    chances: set[str] = field(default_factory=set)  # and once more shortly before their end
    asked: int = 0  # rotations that a person asked for, or let begin again
    in_hand: str | None = None  # an answer that nobody but the process holds
    sealed: bool = False  # chosen: the secret of the call that is out is sealed
    kept: set[str] = field(default_factory=set)  # secrets that journal or spool held
    waiting: set[str] = field(default_factory=set)  # those that never were in Vault
    preflight_at: datetime | None = None
    preflight_version: int = 0
    accepted_version: int = 0  # what others wrote up to here, a person has seen
    theirs: set[int] = field(default_factory=set)  # versions in which somebody else wrote our fields
    promoted_at: datetime | None = None
    deactivated: dict[str, datetime] = field(default_factory=dict)
    current_ids: set[str] = field(default_factory=set)  # ids that ever were in Vault
    hurried: bool = False  # a person asked for no grace
