"""What goes wrong in a simulated year: each fault is a fact that can be left out, so that a history can be shrunk."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from rotator.errors import BadAnswer, JournalFailed, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.reasons import Reason
from simulation.fleet import BETWEEN
from simulation.world import AFTER, BEFORE

DAY, HOUR, MINUTE = 86_400.0, 3_600.0, 60.0
# A year is cut into chapters: faults first, then none, so that everything must have healed at the end.
CHAPTER_DAYS, FAULTY_SHARE = 73.0, 0.6


class Effect(StrEnum):
    """What a fault does when it strikes."""

    KILL = "kill"  # the process dies; a new one starts after `seconds`
    NO_ANSWER = "no_answer"  # the call ends in a timeout
    BAD_ANSWER = "bad_answer"  # an answer without a secret
    REFUSAL = "refusal"
    RATE_LIMIT = "rate_limit"  # with `seconds` to wait
    AWAY = "away"  # from here on for `seconds`, the peer can't be reached
    BROKEN_SECRET = "broken_secret"  # the broker never lets the new secret in
    SLOW_BROKER = "slow_broker"  # for `seconds`, new secrets are let in only after `detail` seconds
    DEAF = "deaf"  # the consumer can't connect for `seconds`
    CRASH = "crash"  # the consumer dies after its restart
    THEIR_FIELD = "their_field"  # somebody writes another field of the path
    OUR_FIELDS = "our_fields"  # somebody writes our fields
    OUR_VERSION = "our_version"  # somebody deletes the current version, or destroys it, as `detail` says
    CLOCK = "clock"  # the host's clock jumps by `detail` seconds, and back after `seconds`
    JOURNAL = "journal"  # it can't be written for `seconds`; `detail` "spool": nor can the spool
    ELSEWHERE = "elsewhere"  # somebody issues a new secret at the platform
    ASK = "ask"  # a person asks for `detail`


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Armed from `day` on, it strikes `hits` times where `point` and `when` say; without a point, at its time.

    `key` is the name of the key that it strikes; empty: the first that comes. `peer`: who goes away, where that is not
    whoever was asked.
    """

    day: float
    effect: Effect
    point: str = ""
    when: str = ""
    key: str = ""
    peer: str = ""
    hits: int = 1
    seconds: float = 0.0
    detail: str = ""

    def __str__(self) -> str:
        where = f" at {self.point} ({self.when})" if self.point else ""
        parts = [
            f"day {self.day:.3f}: {self.effect.value}{where}",
            f"of {self.key}" if self.key else "",
            f"({self.peer})" if self.peer else "",
            f"{self.hits} times" if self.hits > 1 else "",
            f"for {timedelta(seconds=round(self.seconds))}" if self.seconds else "",
            self.detail,
        ]
        return " ".join(part for part in parts if part)


_EFFECTS = ("provider.issue", "provider.deactivate", "provider.delete", "vault.put", "consumer.restart", "journal.save")
_POINTS = (
    *((point, when) for point in _EFFECTS for when in (BEFORE, AFTER)),
    ("provider.list", AFTER),
    ("provider.reactivate", AFTER),
    ("vault.preflight", BEFORE),
    ("vault.read", BEFORE),
    ("vault.put", BETWEEN),
    ("broker.probe", BEFORE),
    ("consumer.check", BEFORE),
    ("consumer.preflight", BEFORE),
)


def faulty(days: float, day: float) -> bool:
    """Whether faults may begin on this day."""
    chapter = _chapter(days)
    return day % chapter < chapter * FAULTY_SHARE


def _chapter(days: float) -> float:
    return days / max(1, round(days / CHAPTER_DAYS))


def chapter_ends(days: float) -> list[tuple[float, float]]:
    """(the day from which on nothing fails any more, the day on which everything must be well), for each chapter."""
    chapter = _chapter(days)
    count = round(days / chapter)
    return [((n + FAULTY_SHARE) * chapter, (n + 1) * chapter) for n in range(count)]


def draw(seed: int, numbers: Sequence[int], days: float, count: int) -> tuple[Fault, ...]:
    """`count` faults, by the time at which they are armed."""
    dice = random.Random(f"{seed}/faults")
    makers, weights = zip(*_MAKERS, strict=True)
    chapter, chapters = _chapter(days), round(days / _chapter(days))
    made = []
    for _ in range(count):
        day = (dice.randrange(chapters) + dice.random() * FAULTY_SHARE) * chapter
        maker: Callable[[random.Random, float, Sequence[int]], Fault] = dice.choices(makers, weights)[0]
        made.append(maker(dice, day, numbers))
    return tuple(sorted(made, key=lambda fault: fault.day))


def _span(dice: random.Random, least: float, most: float) -> float:
    """Seconds; as often near the least as near the most of them, by their order of magnitude."""
    return float(round(least * (most / least) ** dice.random(), 1))


def _key(dice: random.Random, numbers: Sequence[int]) -> str:
    return f"key-{dice.choice(numbers)}"


def _kill(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    point, when = dice.choice(_POINTS)
    down = _span(dice, 1, 6 * HOUR)
    return Fault(day=day, effect=Effect.KILL, point=point, when=when, seconds=down, hits=dice.choice((1, 1, 1, 2)))


def _no_answer(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    when, hits = dice.choice((BEFORE, AFTER, AFTER)), dice.choice((1, 1, 1, 2, 4, 11))
    return Fault(day=day, effect=Effect.NO_ANSWER, point="provider.issue", when=when, hits=hits)


def _bad_answer(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    return Fault(day=day, effect=Effect.BAD_ANSWER, point="provider.issue", when=AFTER, hits=dice.choice((1, 1, 2)))


def _refusal(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    points = [point for point, when in _POINTS if when == BEFORE and point not in {"journal.save", "broker.probe"}]
    hits = dice.choice((1, 1, 2, 3, 12))
    return Fault(day=day, effect=Effect.REFUSAL, point=dice.choice(points), when=BEFORE, hits=hits)


def _rate_limit(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    point = dice.choice(("provider.issue", "provider.list", "provider.delete", "vault.put"))
    pause, hits = _span(dice, 1, 10 * MINUTE), dice.choice((1, 2, 4))
    return Fault(day=day, effect=Effect.RATE_LIMIT, point=point, when=BEFORE, hits=hits, seconds=pause)


def _away(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    point, when = dice.choice([(point, when) for point, when in _POINTS if point != "journal.save" and when != BETWEEN])
    # A sealed secret is offered to Vault every second: days of that would only cost time.
    longest = HOUR if point == "vault.put" else 3 * DAY
    detail = dice.choice(("unreachable", "unavailable", "refused"))
    return Fault(
        day=day, effect=Effect.AWAY, point=point, when=when, seconds=_span(dice, MINUTE, longest), detail=detail
    )


def _vault_away_after_issue(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    return Fault(
        day=day,
        effect=Effect.AWAY,
        point="provider.issue",
        when=AFTER,
        peer="vault",
        seconds=_span(dice, MINUTE, HOUR),
        detail=dice.choice(("unreachable", "unavailable", "refused")),
    )


def _broken(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    hits = dice.choice((1, 1, 2, 3))
    return Fault(day=day, effect=Effect.BROKEN_SECRET, point="provider.issue", when=AFTER, hits=hits)


def _slow(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    late = f"{_span(dice, 1, 60)}"
    return Fault(
        day=day,
        effect=Effect.SLOW_BROKER,
        point="provider.issue",
        when=BEFORE,
        seconds=_span(dice, HOUR, 3 * DAY),
        detail=late,
    )


def _deaf(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    return Fault(day=day, effect=Effect.DEAF, point="consumer.restart", when=BEFORE, seconds=_span(dice, 1, 2 * DAY))


def _crash(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    return Fault(day=day, effect=Effect.CRASH, point="consumer.check", when=BEFORE, hits=dice.choice((1, 1, 2, 12)))


def _their_field(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    when = dice.choice((BEFORE, BETWEEN, BETWEEN, AFTER))
    return Fault(day=day, effect=Effect.THEIR_FIELD, point="vault.put", when=when)


def _our_fields(dice: random.Random, day: float, numbers: Sequence[int]) -> Fault:
    point, when = dice.choice((("vault.put", BEFORE), ("vault.put", BETWEEN), ("provider.issue", AFTER), ("", "")))
    key = "" if point else _key(dice, numbers)
    return Fault(day=day, effect=Effect.OUR_FIELDS, point=point, when=when, key=key)


def _our_version(dice: random.Random, day: float, numbers: Sequence[int]) -> Fault:
    point, when = dice.choice((("vault.put", AFTER), ("provider.issue", AFTER), ("", ""), ("", "")))
    key, detail = "" if point else _key(dice, numbers), dice.choice(("deleted", "deleted", "destroyed"))
    return Fault(day=day, effect=Effect.OUR_VERSION, point=point, when=when, key=key, detail=detail)


def _clock(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    step = _span(dice, 10, 2 * DAY) * dice.choice((-1, 1))
    return Fault(day=day, effect=Effect.CLOCK, seconds=_span(dice, MINUTE, 12 * HOUR), detail=f"{step}")


def _journal(dice: random.Random, day: float, _numbers: Sequence[int]) -> Fault:
    point, when = dice.choice((("journal.save", BEFORE), ("provider.issue", AFTER), ("vault.put", AFTER)))
    detail = dice.choice(("", "", "spool"))
    return Fault(
        day=day, effect=Effect.JOURNAL, point=point, when=when, seconds=_span(dice, 1, 10 * MINUTE), detail=detail
    )


def _elsewhere(dice: random.Random, day: float, numbers: Sequence[int]) -> Fault:
    return Fault(day=day, effect=Effect.ELSEWHERE, key=_key(dice, numbers))


def _ask(dice: random.Random, day: float, numbers: Sequence[int]) -> Fault:
    asked = dice.choice(("rotate", "rotate now", "compromised", "rollback", "rollback", "pause"))
    if asked != "rollback":
        return Fault(day=day, effect=Effect.ASK, key=_key(dice, numbers), detail=asked)
    point = dice.choice(("vault.put", "provider.issue", "provider.deactivate", "consumer.restart"))
    return Fault(day=day, effect=Effect.ASK, point=point, when=AFTER, detail=asked)


_MAKERS = (
    (_kill, 10),
    (_no_answer, 10),
    (_bad_answer, 3),
    (_refusal, 8),
    (_rate_limit, 4),
    (_away, 12),
    (_vault_away_after_issue, 2),
    (_broken, 6),
    (_slow, 3),
    (_deaf, 6),
    (_crash, 5),
    (_their_field, 8),
    (_our_fields, 6),
    (_our_version, 4),
    (_clock, 5),
    (_journal, 5),
    (_elsewhere, 3),
    (_ask, 8),
)


# --- what the engine meets -------------------------------------------------------------------------------------------

_PROVIDER = {
    "unreachable": Transient("connect timeout", reason=Reason.PROVIDER_UNREACHABLE),
    "unavailable": Transient("503", reason=Reason.PROVIDER_UNAVAILABLE),
    "refused": Permanent("login refused", reason=Reason.PROVIDER_AUTH),
}
_VAULT = {
    "unreachable": Transient("connect timeout", reason=Reason.VAULT_UNREACHABLE),
    "unavailable": Transient("Vault is sealed", reason=Reason.VAULT_SEALED),
    "refused": Permanent("permission denied", reason=Reason.VAULT_AUTH),
}
_CONSUMER = {
    "unreachable": Transient("D-Bus is away", reason=Reason.CONSUMER_TIMEOUT),
    "unavailable": Transient("the job failed", reason=Reason.CONSUMER_RESTART_FAILED),
    "refused": Permanent("not allowed", reason=Reason.CONSUMER_FORBIDDEN),
}


def away(point: str, when: str, detail: str) -> Exception:
    """The error of a peer that can't be reached, or refuses everybody."""
    match point.partition(".")[0]:
        case "provider":
            if point == "provider.issue" and when == AFTER:
                return UnknownOutcome("the connection was cut")
            return _again(_PROVIDER[detail])
        case "vault":
            return _again(_VAULT[detail])
        case "broker":
            return ConnectionError("connect timeout")
        case "journal":
            return JournalFailed("disk is full", reason=Reason.JOURNAL_UNWRITABLE)
        case _:
            return _again(_CONSUMER[detail])


def refusal(point: str) -> RotatorError:
    """The error of a peer that refuses just this."""
    match point.partition(".")[0]:
        case "provider":
            return Permanent("refused", reason=Reason.PROVIDER_REFUSED)
        case "vault":
            return Permanent("denied", reason=Reason.VAULT_DENIED)
        case _:
            return Permanent("no such unit", reason=Reason.CONSUMER_MISSING)


def rate_limit(point: str, seconds: float) -> RotatorError:
    """429 with `Retry-After`."""
    reason = Reason.VAULT_RATE_LIMITED if point.startswith("vault") else Reason.PROVIDER_RATE_LIMITED
    return Transient("429", reason=reason, retry_after=timedelta(seconds=seconds))


def no_answer() -> RotatorError:
    """The read timed out."""
    return UnknownOutcome("read timeout")


def bad_answer() -> RotatorError:
    """200 without a secret."""
    return BadAnswer("no secret in the answer", reason=Reason.NO_SECRET, body=b"{}")


def crash() -> RotatorError:
    """The consumer did not stay up."""
    return Transient("exit status 1", reason=Reason.CONSUMER_CRASHED)


def _again(error: RotatorError) -> RotatorError:
    """A new one of the same kind: an exception that is raised again and again collects tracebacks."""
    return type(error)(error.message, reason=error.reason)
