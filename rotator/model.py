"""Frozen facts that all parts speak in. No I/O, no clock, no library beyond the standard one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from rotator.reasons import Reason


class Secret:
    """A value that must never be seen: it prints as stars, and only `reveal()` gives it out (rule 6)."""

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value = value

    def reveal(self) -> str:
        """The value itself. Call it only where the value leaves for the broker, Vault or the provider."""
        return self.__value

    def __repr__(self) -> str:
        return "Secret('**********')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reveal() == self.__value

    def __hash__(self) -> int:
        return hash(self.__value)

    def __bool__(self) -> bool:
        return bool(self.__value)

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")


def aware(moment: datetime | None, name: str) -> None:
    """Refuse a naive datetime (rule 10)."""
    if moment is not None and moment.tzinfo is None:
        raise ValueError(f"{name} must carry a time zone")


def utc(moment: datetime) -> datetime:
    """The same instant in UTC."""
    aware(moment, "moment")
    return moment.astimezone(UTC)


class Strategy(StrEnum):
    """How a key gets its new secret (design, "Words" and "The way a rotation goes")."""

    IN_PLACE = "in_place"  # same identity, the provider makes the secret, the old one is dead at once
    REPLACE = "replace"  # a new identity beside the old one, which is retired at the end
    CHOSEN = "chosen"  # same identity, the secret is ours to choose, so it is sealed before the call


class Step(StrEnum):
    """The steps of a rotation; `lifecycle` has their order for each strategy."""

    PREFLIGHT = "preflight"
    CHOOSE = "choose"  # chosen by the caller: make the secret and seal it, before anybody hears of it
    ISSUE = "issue"
    LOOK = "look"  # the issue call's answer never came: look at the provider before anything else
    PROBE = "probe"
    PROMOTE = "promote"
    DELIVER = "deliver"
    RESTART = "restart"
    CONFIRM = "confirm"
    SETTLE = "settle"
    DEACTIVATE = "deactivate"  # replace: the old secret is made useless, which can be taken back
    RECONFIRM = "reconfirm"  # replace: the consumers still run, now that the old secret is useless
    DELETE = "delete"  # replace: after the grace period, the old key is gone for good
    REACTIVATE = "reactivate"  # a failed second confirmation
    WAY_BACK = "way_back"  # does the old secret still work? (chosen: set it again first)
    REVERT = "revert"  # the previous data as a new version in Vault
    CLEAN = "clean"  # delete keys that this rotation made and nobody uses
    FINISH = "finish"  # did somebody issue after us? (rule 4)


class Result(StrEnum):
    """How a rotation ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


class KeyState(StrEnum):
    """The one state in which a key is shown; the metric `rotator_key_state` has a series for each."""

    OK = "ok"
    DUE = "due"
    ROTATING = "rotating"
    OVERDUE = "overdue"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"
    PAUSED = "paused"
    WAITING = "waiting"
    BLOCKED = "blocked"
    UNKNOWN = "unknown"


class ExpirySource(StrEnum):
    """Where an expiry was read."""

    ANSWER = "answer"
    JWT = "jwt"
    LIFETIME = "lifetime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a provider can do, by its platform's documents. The engine and the commands decide by it.

    Args:
        strategy: how a key gets its new secret.
        kills_old: the old secret is dead the moment the new one exists. Where it is not, it dies by retirement
            (*replace*), or some time later.
        expires: the platform names an expiry. Where it names none, a key is rotated by age.
        lists: the platform lists its keys.
        pauses: a key can be made useless and be brought back (`ports.Deactivating`).
        creates: a key that was not there can be made (`ports.Provisioning`).
        deletes: a key can be deleted (`ports.Deleting`).
        needs_current: a new secret is only given to who shows the current one.
        recreates: a new secret means to delete the key and to make it again, so a key that is not there may be one that
            was on its way.
        checks: a secret can be checked at the platform (`ports.Checking`).
        evicts: old sessions can be ended (`ports.Evicting`).
        propagation: how long the platform's own caches may refuse a new secret, and accept an old one.
    """

    strategy: Strategy
    kills_old: bool
    expires: bool
    lists: bool = True
    pauses: bool = False
    creates: bool = False
    deletes: bool = False
    needs_current: bool = False
    recreates: bool = False
    checks: bool = False
    evicts: bool = False
    propagation: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One of a provider's own tokens, licences or logins: what it is called, and when it ends (None: never)."""

    name: str
    expires_at: datetime | None

    def __post_init__(self) -> None:
        aware(self.expires_at, "expires_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """One of a platform's quotas: how much of it is used."""

    name: str
    used: float
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a key is at its provider and at the broker."""

    id: str
    username: str
    client_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamKey:
    """What the provider's list says of one key; never a secret.

    `problem` is set by the provider when the key can't serve as an MQTT credential (revoked, role missing, inactive).
    `marker` is ours (`marker_in`), found in the name, description or metadata of a key that a rotation made.
    `identity` is set where the list says more than the id about who the key is at the broker.
    """

    id: str
    name: str = ""
    issued_at: datetime | None = None
    expires_at: datetime | None = None
    expiry_source: ExpirySource | None = None
    problem: Reason | None = None
    marker: str = ""
    identity: Identity | None = None

    def __post_init__(self) -> None:
        aware(self.issued_at, "issued_at")
        aware(self.expires_at, "expires_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A secret that a provider has just issued, and what its answer said about it."""

    identity: Identity
    secret: Secret = field(repr=False)
    issued_at: datetime | None = None
    expires_at: datetime | None = None
    expiry_source: ExpirySource | None = None

    def __post_init__(self) -> None:
        aware(self.issued_at, "issued_at")
        aware(self.expires_at, "expires_at")


MARKER: Final = re.compile(r"rotator-[0-9a-f]{12}-[0-9]+")


def marker_in(text: str) -> str:
    """The marker of a rotation inside a key's name or description; empty where there is none."""
    found = MARKER.search(text)
    return found.group() if found else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that preflight looked at (rule 8)."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSecret:
    """One version of a KV v2 secret. `data` is None where the version is deleted (or `destroyed`, for good).

    `version` is what the next write's `cas` must be; 0 means that nothing was ever written. What others keep beside
    our fields may be of any JSON type.
    """

    version: int
    data: Mapping[str, Any] | None = field(repr=False)
    destroyed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTarget:
    """Everything that one MQTT probe needs, templates already filled in.

    `client_id` None means: a random one of the probe's own.
    """

    host: str
    port: int
    tls: bool = False
    ca_file: str | None = None
    transport: str = "tcp"
    username: str = ""
    password: Secret = field(repr=False, default=Secret(""))
    client_id: str | None = None
    subscribe: str | None = None
    timeout: timedelta = timedelta(seconds=10)


class Verdict(StrEnum):
    """What a probe found. UNREACHABLE refused nothing (rule 2)."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    SUBSCRIPTION_REFUSED = "subscription_refused"
    UNREACHABLE = "unreachable"


# The name under which each verdict is told; none for the good one.
VERDICT_REASONS: Final[Mapping[Verdict, Reason | None]] = {
    Verdict.ACCEPTED: None,
    Verdict.REFUSED: Reason.SECRET_REFUSED,
    Verdict.SUBSCRIPTION_REFUSED: Reason.SUBSCRIPTION_REFUSED,
    Verdict.UNREACHABLE: Reason.BROKER_UNREACHABLE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """A verdict with the broker's own words."""

    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a consumer is restarted for: this key's secret is now this version of Vault's; never the secret itself.

    `id` is the same for each repetition of the same restart, and differs between two restarts.
    """

    key: str
    version: int
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a consumer's restart left behind, so that a later look can tell whether it stayed up.

    `marks` is small, JSON-serialisable and free of secrets (a unit's main PID, its restart counter).
    """

    consumer: str
    restarted_at: datetime
    marks: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One piece of evidence: at this time the broker let this client in, or this consumer spoke."""

    at: datetime
    client_id: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDone:
    """One finished request to a provider or to Vault, for metrics and debug logs."""

    peer: str
    operation: str
    code: str
    seconds: float
    skew: timedelta | None = None  # the peer's `Date` minus our clock
    request_id: str = ""  # the peer's own name for it, to be told to its support


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationEvent:
    """Something happened to a key; logs, metrics and the journal's history all read this one object."""

    at: datetime
    key: str
    provider: str
    name: str  # step_ok, step_failed, rotation_started, rotation_ended, state_changed, problem, restart, gap, drift
    rotation: str | None = None
    step: Step | None = None
    result: str = ""
    reason: Reason | None = None
    seconds: float | None = None
    detail: str = ""
    extra: Mapping[str, str | int | float] = field(default_factory=dict)
    repeated: bool = False  # the same failure as before: counted, but not written down again


ZERO: Final = timedelta(0)
