"""The fleet of a simulated year: keys of every strategy on six platforms, their Vault, broker and consumers.

Everything is derived from the seed and the key's own number, so that a smaller fleet has the same keys.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from rotator.durations import Share
from rotator.managed import ManagedKey
from rotator.model import (
    Identity,
    Issued,
    Order,
    ProbeResult,
    ProbeTarget,
    Secret,
    Sighting,
    Strategy,
    Ticket,
    Verdict,
)
from rotator.policy import Policy, Window
from rotator.ports import Judge
from rotator.rotation import ConsumerPlan, Limits
from simulation.delivery import Copy, Versions
from simulation.world import AFTER, BEFORE, Consumer, Platform, PlatformKey, Vault, World, managed

BETWEEN = "between"  # Vault: after the read of a write, before the write itself
LIFE = timedelta(days=90)
AGE = timedelta(days=60)  # what 33 % of 90 days leaves
JITTER = timedelta(hours=1)
GRACE = timedelta(days=1)
NIGHTLY = Window(cron="0 2 * * *", duration=timedelta(hours=3))
LATE_SHARE = 0.08  # of the keys whose consumers do not read Vault themselves, but a copy that is minutes late
NOTE = "note"  # a field of every other path that is somebody else's

# name, strategy, whether the platform names dates, whether a key can be deactivated
_PLATFORMS = (
    ("dated", Strategy.IN_PLACE, True, True),
    ("undated", Strategy.IN_PLACE, False, True),
    ("clone", Strategy.REPLACE, True, True),
    ("blunt", Strategy.REPLACE, True, False),
    ("chooser", Strategy.CHOSEN, True, True),
    ("ageless", Strategy.CHOSEN, False, True),
)


class SimPlatform(Platform):
    """A platform whose points carry its name and the key: `dated:key-7`."""

    def __init__(self, world: World, name: str, strategy: Strategy, dated: bool, deactivates: bool) -> None:
        lifetime = LIFE if dated else None
        super().__init__(world, strategy, name=name, lifetime=lifetime, dated=dated, deactivates=deactivates)
        self.broken: set[str] = set()  # secrets that the broker never lets in
        self.slow = timedelta(0)  # how long the broker takes to hear of a new secret
        self.away = False  # the broker lets nobody in
        self.setting = ""  # the chosen secret of the call that is out

    def _at(self, point: str, when: str, whose: str = "") -> None:
        super()._at(point, when, f"{self.name}:{whose}")

    def accepts(self, username: str, secret: str) -> bool:
        """Whether the broker lets this in now."""
        if self.away or secret in self.broken or not super().accepts(username, secret):
            return False
        return self.world.clock.true >= self.keys[username].issued_at + self.slow

    def is_live(self, username: str, secret: str) -> bool:
        """Whether the platform holds this secret as valid, whatever its broker says of it now."""
        return secret not in self.broken and super().accepts(username, secret)

    def reactivate(self, identity: Identity) -> None:
        super().reactivate(identity)
        self.on_change()

    def set_secret(self, identity: Identity, secret: Secret) -> Issued:
        self.setting = secret.reveal()
        return super().set_secret(identity, secret)

    def _fresh(self) -> str:
        return f"{self.name}-{super()._fresh()}"


class SimVault(Vault):
    """KV v2 whose writes are a read and a `cas` write, so that somebody may come in between."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.on_write: Callable[[str], None] = lambda path: None

    def put(self, path: str, fields: Mapping[str, str], *, judge: Judge | None = None, known: int | None = None) -> int:
        self.world.at("vault.put", BEFORE, path)
        if known is not None:
            self.world.at("vault.put", BETWEEN, path)
        if known is None or not self._cas(path, dict(fields), known):  # unread: whatever else was there is gone
            self._merge(path, fields, judge)
        version = len(self.paths[path])
        self.world.at("vault.put", AFTER, path)
        return version

    def _merge(self, path: str, fields: Mapping[str, str], judge: Judge | None) -> None:
        while True:
            stored = self.held(path)
            current = stored.data or {}
            if all(current.get(name) == value for name, value in fields.items()):
                return
            if judge is not None:
                judge(stored)
            self.world.at("vault.put", BETWEEN, path)
            if self._cas(path, {**current, **fields}, stored.version):
                return

    def _cas(self, path: str, data: dict[str, str], version: int) -> bool:
        versions = self.paths.setdefault(path, [])
        if len(versions) != version:
            return False
        versions.append(data)
        self.on_write(path)
        return True


@dataclass
class Source:
    """One of a consumer's secrets: where it reads it, and what it runs on."""

    path: str
    platform: SimPlatform
    copy: Copy | None = None  # its own way to the secret, where it does not read Vault itself
    runs_on: tuple[str, str] = ("", "")
    connected: bool = False


@dataclass
class Reader(Consumer):
    """A consumer of one key or of several; it keeps trying with what it has, and comes in as soon as it is let in."""

    sources: list[Source] = field(default_factory=list)
    down: bool = False  # the process is gone, or cut off from the network
    on_restart: Callable[[Reader, str], None] = lambda reader, key: None

    def restart(self, order: Order) -> Ticket:
        self.world.at("consumer.restart", BEFORE, self.name)
        at = self.world.clock.now()
        self.restarts += 1
        self.read_anew()
        self.on_restart(self, order.key)
        self.world.at("consumer.restart", AFTER, self.name)
        return Ticket(consumer=self.name, restarted_at=at)

    def read_anew(self) -> None:
        """What a start of the process does."""
        for source in self.sources:
            data = source.copy.held() if source.copy is not None else self.vault.current(source.path)
            source.runs_on, source.connected = (data["username"], data["password"]), False
        self.try_again()

    def try_again(self) -> None:
        """Lose the sessions that are not let in any more, and come in where it is."""
        for source in self.sources:
            accepted = not self.down and source.platform.accepts(*source.runs_on)
            if source.connected != accepted:
                source.connected = accepted
                seen = Sighting(at=self.world.clock.now(), client_id=self.name)
                (self.connects if accepted else self.losses).append((source.runs_on[0], seen))

    def runs(self, path: str) -> Source:
        """What it runs on of this path."""
        return next(source for source in self.sources if source.path == path)


class SimBroker:
    """The brokers of all platforms: each lets in what its platform says."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def probe(self, target: ProbeTarget) -> ProbeResult:
        key = self.fleet.by_family[target.username.partition(".")[0]]
        whose = f"{key.platform.name}:{target.username}"
        try:
            self.fleet.world.at("broker.probe", BEFORE, whose)
        except ConnectionError as exc:
            return ProbeResult(verdict=Verdict.UNREACHABLE, detail=str(exc))
        accepted = key.platform.accepts(target.username, target.password.reveal())
        verdict = Verdict.ACCEPTED if accepted else Verdict.REFUSED
        self.fleet.on_probe(key, target.password.reveal(), verdict)
        return ProbeResult(verdict=verdict)


@dataclass(frozen=True)
class SimKey:
    """One key with everything around it."""

    name: str
    family: str
    platform: SimPlatform
    consumers: tuple[Reader, ...]
    managed: ManagedKey

    @property
    def path(self) -> str:
        return self.managed.path

    @property
    def strategy(self) -> Strategy:
        return self.platform.strategy


class Fleet:
    """The world of one seed."""

    def __init__(self, seed: int, numbers: Sequence[int]) -> None:
        self.world = World()
        self.vault = SimVault(self.world)
        self.platforms = {name: SimPlatform(self.world, name, *rest) for name, *rest in _PLATFORMS}  # type: ignore[arg-type]
        self.consumers: dict[str, Reader] = {}
        self.keys: dict[str, SimKey] = {}
        self.by_family: dict[str, SimKey] = {}
        self.by_path: dict[str, SimKey] = {}
        self.readers: dict[str, list[SimKey]] = {}  # a consumer's name → its keys
        for number in numbers:
            self._add(number, random.Random(f"{seed}/key-{number}"))
        self.listening = {  # a platform's name → the consumers that run on keys of it
            name: [c for c in self.consumers.values() if any(source.platform.name == name for source in c.sources)]
            for name in self.platforms
        }
        self.broker = SimBroker(self)
        self.on_probe: Callable[[SimKey, str, Verdict], None] = lambda key, secret, verdict: None
        for platform in self.platforms.values():
            platform.on_change = partial(self._changed, platform)
            platform.on_change()

    def _changed(self, platform: SimPlatform) -> None:
        """Sessions end, and consumers that were shut out come in."""
        for consumer in self.listening[platform.name]:
            consumer.try_again()

    def _add(self, number: int, dice: random.Random) -> None:
        name = f"key-{number}"
        platform = self.platforms[_PLATFORMS[number % len(_PLATFORMS)][0]]
        family = f"id{number}"
        born = platform.add(family, age=AGE * dice.random())
        path = f"mqtt/{name}"
        # of each platform, every other key has its path for itself: what preflight saw is written over without a look
        others = {NOTE: "0"} if number // len(_PLATFORMS) % 2 == 0 else {}
        versions = Versions(self.world, [{**others, "username": born.id, "password": born.secret}])
        self.vault.paths[path] = versions
        ways = random.Random(f"{dice.random()}/consumers")
        late = timedelta(minutes=ways.uniform(0.5, 10))
        copy = Copy(self.world, name, versions, late) if ways.random() < LATE_SHARE else None
        consumers = self._consumers(number, dice, path, platform, born, copy)
        deactivates, in_batches = platform.deactivates, platform.strategy is Strategy.REPLACE and len(consumers) > 1
        limits = Limits(
            settle=timedelta(0),
            propagation=timedelta(seconds=5),
            grace=GRACE,
            deactivates=deactivates,
            expires=platform.dated,
            plans=_plans(ways, [consumer.name for consumer in consumers]) if in_batches else (),
        )
        # an answer without an expiry must be proven at the broker where the platform made the secret
        verify = platform.name == "undated" or dice.random() < 0.85
        key = managed(
            name,
            family,
            platform,
            consumers,
            limits=limits,
            policy=_policy(dice, platform),
            with_verify=verify,
            deliveries={consumer.name: copy for consumer in consumers} if copy is not None else None,
        )
        self.keys[name] = self.by_family[family] = self.by_path[path] = SimKey(name, family, platform, consumers, key)
        for consumer in consumers:
            self.readers.setdefault(consumer.name, []).append(self.keys[name])

    def _consumers(
        self,
        number: int,
        dice: random.Random,
        path: str,
        platform: SimPlatform,
        born: PlatformKey,
        copy: Copy | None,
    ) -> tuple[Reader, ...]:
        """Mostly one; some keys have two or none, and some share theirs with the next key. Many of *replace* have four,
        restarted in batches."""
        kind = dice.random()
        names = [] if kind < 0.05 else [f"reader-{number}"] if kind < 0.9 else [f"reader-{number}", f"second-{number}"]
        if platform.strategy is Strategy.REPLACE and number // len(_PLATFORMS) % 3 < 2:
            names = [f"{place}-{number}" for place in ("reader", "second", "third", "fourth")]
        if number % 20 in {7, 8}:
            names = [f"shared-{number // 20}"]
        for name in names:
            reader = self.consumers.get(name)
            if reader is None:
                reader = Reader(name=name, world=self.world, vault=self.vault, platform=platform, path=path)
                self.consumers[name] = reader
            reader.sources.append(Source(path, platform, copy, (born.id, born.secret)))
        return tuple(self.consumers[name] for name in names)


def _policy(dice: random.Random, platform: SimPlatform) -> Policy:
    windows = (NIGHTLY,) if dice.random() < 0.1 else ()
    if platform.dated:
        return Policy(before_expiry=Share(0.33), jitter=JITTER, windows=windows)
    return Policy(max_age=AGE, jitter=JITTER, windows=windows)


def _plans(dice: random.Random, names: Sequence[str]) -> tuple[ConsumerPlan, ...]:
    """Most with a canary, one or two away at once, some with a window of its own for one of them."""
    canary, windowed = dice.choice((*names, "")), dice.choice((*names, *[""] * len(names)))
    most = dice.choice((1, 1, 2, None))
    return tuple(
        ConsumerPlan(
            name=name,
            canary=name == canary,
            max_unavailable=most,
            windows=(NIGHTLY,) if name == windowed else (),
        )
        for name in names
    )
