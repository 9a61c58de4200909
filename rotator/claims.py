"""What rotations of one process must not do at the same time: restart one consumer, hammer one provider."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from rotator.lifecycle import backoff
from rotator.managed import ManagedKey
from rotator.model import ZERO, RequestDone, Step
from rotator.ports import Clock
from rotator.reasons import Reason
from rotator.rotation import Failed

# What a provider asks of all its keys, not only of the one that met it.
_PROVIDER_WIDE = frozenset(
    {
        Reason.PROVIDER_AUTH,
        Reason.PROVIDER_RATE_LIMITED,
        Reason.PROVIDER_UNREACHABLE,
        Reason.PROVIDER_UNAVAILABLE,
    }
)
# A clock this far off its peer's can't be trusted with expiry dates.
MOST_SKEW = timedelta(minutes=5)
# In a fleet of this size or less, all keys may come due at once.
SMALL_FLEET = 20
# A platform that is away is asked again soon, but not by every key and every worker at once.
_AWAY = timedelta(seconds=5)


class ConsumerClaims:
    """Keys that share a consumer rotate one after the other: each restart would undo the other's proof.

    Taken before the issue call, while the consumers still run on the old secret, and again before a restart; given back
    at the end, and by a rotation that fails, so that a stuck key never blocks its neighbour from being renewed in time.
    """

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}
        self._settling: dict[str, tuple[str, datetime, datetime]] = {}  # whose restart settles, from when to when
        self._waiting: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def take(self, key: ManagedKey, now: datetime) -> bool:
        """Claim all consumers of a key, and its pair, or none."""
        names = _shared(key)
        with self._lock:
            taken = [name for name in names if self._is_anothers(name, key.name, now)]
            if taken:
                for name in taken:
                    self._waiting.setdefault(name, set()).add(key.name)
                return False
            self._holders.update(dict.fromkeys(names, key.name))
            return True

    def give_back(self, key: ManagedKey, now: datetime, settled: datetime) -> set[str]:
        """Let the others go on, from `settled` on; returns the names of the keys that were waiting."""
        with self._lock:
            freed = [name for name, holder in self._holders.items() if holder == key.name]
            for name in freed:
                del self._holders[name]
                self._settling[name] = (key.name, now, settled)
            return set().union(*(self._waiting.pop(name, set()) for name in freed))

    def _is_anothers(self, name: str, key: str, now: datetime) -> bool:
        if self._holders.get(name, key) != key:
            return True
        other, since, until = self._settling.get(name, (key, now, now))
        return other != key and since <= now < until  # a clock that stepped back keeps nobody waiting


def _shared(key: ManagedKey) -> list[str]:
    """What a key shares with others. A pair can't be named like a consumer: names hold no blank."""
    pair = [f"pair {key.pair}"] if key.pair else []
    return [link.consumer.name for link in key.consumers] + pair


class ProviderHolds:
    """A provider that refused a login or asked for patience is left alone by all its keys."""

    def __init__(self, clock: Clock, draw: Callable[[], float]) -> None:
        self._clock, self._draw = clock, draw
        self._holds: dict[str, tuple[datetime, Reason, int]] = {}
        self._lock = threading.Lock()

    def until(self, provider: str) -> tuple[datetime, Reason] | None:
        """Until when a provider is left alone, and why; None when it is not."""
        with self._lock:
            hold = self._holds.get(provider)
        if hold is None or hold[0] <= self._clock.now():
            return None
        return hold[0], hold[1]

    def failed(self, provider: str, failed: Failed) -> None:
        """Remember a refusal that concerns the whole provider; each one in a row holds it for longer."""
        if failed.reason not in _PROVIDER_WIDE:
            return
        if self.until(provider) is not None:
            return  # the same refusal, met by a key that was already on its way
        with self._lock:
            count = self._holds[provider][2] + 1 if provider in self._holds else 0
            delay = failed.delay or backoff(Step.PREFLIGHT, failed.reason, count, self._draw())
            if failed.reason in {Reason.PROVIDER_UNREACHABLE, Reason.PROVIDER_UNAVAILABLE}:
                delay = min(delay, _AWAY)
            self._holds[provider] = (self._clock.now() + delay, failed.reason, count)

    def answered(self, provider: str) -> None:
        """A provider that answers is no longer held."""
        with self._lock:
            self._holds.pop(provider, None)


class ClockSkew:
    """How far the peers' clocks are from ours, by their `Date` headers (rule 11)."""

    def __init__(self) -> None:
        self._skews: dict[str, timedelta] = {}

    def seen(self, done: RequestDone) -> None:
        """Take note of one answer."""
        if done.skew is not None:
            self._skews[done.peer] = done.skew

    def off(self, *peers: str) -> str | None:
        """The first of these peers whose clock is too far from ours to trust an expiry; None when all are well."""
        return next((peer for peer in peers if abs(self._skews.get(peer, ZERO)) >= MOST_SKEW), None)


class Stampede:
    """Holds issuing while more of a fleet came due against the plan than can be right (rule 11).

    A key is *unexpected* when a look at its provider or a changed configuration made it due that had been due later:
    dates that come as planned, after a pause of the daemon too, hold nobody.
    """

    def __init__(self, fleet: int, share: float) -> None:
        self._fleet, self._share = fleet, share
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def joined(self) -> None:
        """The fleet has one more key."""
        with self._lock:
            self._fleet += 1

    def expected(self, name: str) -> None:
        """This key was rotated, is due as planned again, or a person took note of it."""
        with self._lock:
            self._names.discard(name)

    def unexpected(self, names: Iterable[str]) -> None:
        """These keys came due against the plan."""
        with self._lock:
            self._names.update(names)

    def holds(self, name: str) -> bool:
        """Whether this key waits for a person, since too many are unexpected at once."""
        with self._lock:
            many = self._fleet > SMALL_FLEET and len(self._names) > self._share * self._fleet
            return many and name in self._names
