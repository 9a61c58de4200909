"""What a rotation is: its record in the journal, the settings that it goes by, and what its steps report.

Frozen facts only; `lifecycle` decides what follows from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rotator.model import (
    Check,
    ExpirySource,
    Identity,
    Result,
    Step,
    Strategy,
    Ticket,
    Verdict,
    aware,
)
from rotator.policy import Window
from rotator.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerPlan:
    """How a consumer wants to be restarted. `follows`: it takes up a new secret by itself, and is never restarted."""

    name: str
    canary: bool = False
    max_unavailable: int | None = None
    windows: tuple[Window, ...] = ()
    follows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The settings that the machine decides by; all durations.

    `grace` None: a day, or a tenth of the new secret's life where that is shorter. `expires`, `kills_old`,
    `needs_current` and `deactivates` are the platform's (`model.Abilities`).
    """

    max_attempts: int = 10
    propagation: timedelta = timedelta(seconds=60)
    deliver_delay: timedelta = timedelta(0)
    settle: timedelta = timedelta(seconds=3)
    expires: bool = True
    kills_old: bool = True
    needs_current: bool = False
    plans: tuple[ConsumerPlan, ...] = ()
    grace: timedelta | None = None
    deactivates: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerProgress:
    """How far one consumer is in this rotation."""

    name: str
    restarted_at: datetime | None = None
    ticket: Ticket | None = None
    seen_at: datetime | None = None
    confirmed_at: datetime | None = None
    vouched: bool = False  # a person has seen it (`rotator confirm`)
    touched: bool = False  # its restart was begun: it may run on the new secret
    in_turn: bool = False  # and is repeated until it is proven, before anybody else's turn
    idle: bool = False  # nothing of it runs (no replicas), so that it proves nothing and is not waited for


@dataclass(frozen=True, kw_only=True)  # no slots: see `frozen`
class Rotation:
    """One attempt to replace a key's secret, as the journal keeps it; the secret itself lies sealed beside it.

    `identity` is who the key was when the rotation began, `new_identity` (replace) who it is to become.
    `base_version` and `base_print` are Vault's version before the issue call, and the keyed fingerprint of our fields
    in it: the way back. `expected` is what our fields must hold when they are written next.
    `calling_since` is set while an issue call is out, or ended without an answer.
    """

    id: str
    key: str
    provider: str
    identity: Identity
    strategy: Strategy = Strategy.IN_PLACE
    trigger: Reason
    forced: bool = False
    no_grace: bool = False  # the old secret is compromised, or somebody waits for the next rotation
    started_at: datetime
    step: Step = Step.PREFLIGHT
    attempts: int = 0
    not_before: datetime | None = None
    step_since: datetime | None = None
    restores: int | None = None  # chosen: the version of Vault whose secret is set again instead of a new one
    issues: int = 0  # issue calls begun
    unsettled: bool = False  # chosen: a call is out, or ended without an answer, and may have had its effect
    answers: int = 0  # secrets that came back
    issued_before: datetime | None = None
    expired_before: datetime | None = None  # when the old secret dies by itself
    base_version: int | None = None
    our_version: int | None = None  # that our last promote made, before this rotation
    base_print: str | None = None
    base_alone: bool = False  # and it held no fields but ours, so that it may be written over without a look
    expected: str | None = None
    calling_since: datetime | None = None
    looked: int = 0
    described: str = ""  # what the platform says of a key that is deleted and made again, as JSON
    answered_at: datetime | None = None
    new_identity: Identity | None = None
    new_issued_at: datetime | None = None
    new_expires_at: datetime | None = None
    expiry_source: ExpirySource | None = None
    plausible: bool = True
    sealed: bool = False
    verdict: Verdict | None = None
    vault_version: int | None = None
    promoted_at: datetime | None = None
    died_at: datetime | None = None
    consumers: tuple[ConsumerProgress, ...] = ()
    orphans: tuple[str, ...] = ()  # ids of keys that this rotation made and nobody uses
    deactivated_at: datetime | None = None
    reconfirmed_at: datetime | None = None
    deleted_at: datetime | None = None
    rolling_back: Reason | None = None
    turned: str = ""  # what was said when it turned around
    reverted: bool = False  # Vault holds the previous data again, as a new version
    no_way_back: bool = False
    restart_only: bool = False  # nothing is issued: consumers that missed a version are brought to it
    finished_at: datetime | None = None
    result: Result | None = None
    reason: Reason | None = None
    detail: str = ""
    quarantine: Reason | None = None

    def __post_init__(self) -> None:
        for name in ("started_at", "not_before", "answered_at", "promoted_at", "finished_at"):
            aware(getattr(self, name), name)

    @property
    def marker(self) -> str:
        """What the issue call that is out, or the last one, leaves at the provider."""
        return f"{self.marker_stem}-{self.issues}"

    @property
    def marker_stem(self) -> str:
        """What all markers of this rotation begin with."""
        return f"rotator-{self.id[:12]}"

    @property
    def target(self) -> Identity:
        """Who the key is to be at the end, as things stand: the new identity, or on the way back the old one."""
        return self.identity if self.rolling_back or self.new_identity is None else self.new_identity


# --- what the engine is told to do -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run this step now."""

    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Come back at `until`."""

    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Nothing is left to do."""


# --- what the engine reports -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A step did not succeed. `unknown`: it may have had its effect all the same."""

    reason: Reason
    detail: str = ""
    delay: timedelta = timedelta(0)  # until the next try; the engine draws it from `backoff`
    unknown: bool = False
    checks: Sequence[Check] = ()  # of preflight


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightDone:
    """All that can't be undone was checked; what the provider and Vault hold before the call."""

    issued_before: datetime | None
    expected: str | None
    expired_before: datetime | None = None
    base_version: int | None = None
    base_alone: bool = False
    checks: Sequence[Check] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChooseDone:
    """A secret was made and sealed; nobody has heard of it yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueDone:
    """The answer came, and its secret is sealed."""

    answered_at: datetime
    issued_at: datetime | None
    expires_at: datetime | None
    expiry_source: ExpirySource | None
    identity: Identity | None = None  # replace: who the new key is


@dataclass(frozen=True, slots=True, kw_only=True)
class LookDone:
    """What the provider shows after a call whose answer never came.

    `orphans` are keys that the call made. `again_in`: how long until a second look can tell more.
    """

    happened: bool
    orphans: Sequence[str] = ()
    again_in: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeDone:
    """What the broker said; None: the key names no broker to ask."""

    verdict: Verdict | None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteDone:
    """Vault's current version holds the secret. `expected`: keyed fingerprint of what our fields hold now."""

    version: int
    expected: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverDone:
    """The consumers' own way to the secret has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverLater:
    """It does not have it yet; `detail` says whose."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartDone:
    """Tickets of the consumers that were restarted, and the failure of the others, if any.

    `seen`: who was restarted by an earlier try and seen on the new secret since; it counts where the rotation ends so.
    """

    tickets: Sequence[Ticket]
    failed: Failed | None = None
    seen: Sequence[tuple[str, datetime]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmDone:
    """When each consumer was first seen on the new secret; `unseen` ones are restarted again."""

    seen: Sequence[tuple[str, datetime]]
    unseen: Sequence[str] = ()
    died_at: datetime | None = None
    gaps: Sequence[tuple[str, float]] = ()  # seconds from the old secret's death to the first evidence
    failed: Failed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleDone:
    """The consumers that stayed up, and those that did not."""

    confirmed: Sequence[str]
    crashed: Sequence[str] = ()
    failed: Failed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeactivateDone:
    """The old secret is useless."""

    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconfirmDone:
    """Every consumer still runs; `blind` ones could not be watched and are restarted, so that they prove it."""

    blind: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReactivateDone:
    """The old secret works again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WayBackDone:
    """What the broker says of the old secret; None: there is no broker to ask.

    `held`: Vault still holds the previous data, so that it can be put back.
    """

    verdict: Verdict | None
    held: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertDone:
    """Vault holds the previous data again. `version` None: nothing had been promoted."""

    version: int | None
    expected: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteDone:
    """The old key is gone."""

    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanDone:
    """The orphans are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishDone:
    """The last look. `orphans`: keys of this rotation that appeared late."""

    issued_elsewhere: bool = False
    orphans: Sequence[str] = ()
    old_alive: bool = False  # the broker still lets the old secret in


Outcome = (
    Failed
    | PreflightDone
    | ChooseDone
    | IssueDone
    | LookDone
    | ProbeDone
    | PromoteDone
    | DeliverDone
    | DeliverLater
    | RestartDone
    | ConfirmDone
    | SettleDone
    | DeactivateDone
    | ReconfirmDone
    | ReactivateDone
    | WayBackDone
    | RevertDone
    | DeleteDone
    | CleanDone
    | FinishDone
)
