"""A small world in memory for the fault table and the simulated years, with one clock.

Everything that the engine does to it passes `World.at`, once before the effect and once after it; a test puts its
faults there: an error of ours, or `Killed`. The world itself never loses anything: what is true in it is the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from rotator.errors import Permanent
from rotator.lifecycle import DAY
from rotator.managed import ConsumerLink, ManagedKey
from rotator.model import (
    Abilities,
    Identity,
    Issued,
    Order,
    ProbeResult,
    ProbeTarget,
    RequestDone,
    Secret,
    Sighting,
    StoredSecret,
    Strategy,
    Ticket,
    UpstreamKey,
    Verdict,
    marker_in,
)
from rotator.policy import Policy
from rotator.ports import Delivery, Judge
from rotator.reasons import Reason
from rotator.rotation import Limits

START = datetime(2026, 1, 1, tzinfo=UTC)
BEFORE, AFTER = "before", "after"

Hook = Callable[[str, str, str], None]  # point, before or after the effect, whose


class Killed(BaseException):
    """The process died here. No `except Exception` may survive it."""


class SimClock:
    """True time, and the wall clock of the daemon's host, which may be wrong."""

    def __init__(self) -> None:
        self.true = START
        self.error = timedelta(0)

    def now(self) -> datetime:
        """The host's wall clock; each reading takes a tenth of a millisecond, so that moments differ."""
        self.true += timedelta(microseconds=100)
        return self.true + self.error

    def monotonic(self) -> float:
        """The clock that never steps."""
        return (self.true - START).total_seconds()

    def pass_time(self, span: timedelta) -> None:
        """Let true time pass."""
        self.true += span

    def step(self, span: timedelta) -> None:
        """The wall clock jumps; true time does not."""
        self.error += span


@dataclass(frozen=True, slots=True)
class PlatformKey:
    """A key at the platform. `family` is the first id of the chain that it was cloned from."""

    id: str
    family: str
    secret: str = field(repr=False)
    issued_at: datetime
    expires_at: datetime | None
    active: bool = True
    marker: str = ""


class World:
    """One clock, one hook for faults."""

    def __init__(self) -> None:
        self.clock = SimClock()
        self.hook: Hook = lambda point, when, whose: None

    def at(self, point: str, when: str, whose: str = "") -> None:
        """Something happens here."""
        self.hook(point, when, whose)


@lru_cache(4096)
def _shown(id: str, issued_at: datetime | None, expires_at: datetime | None, active: bool, marker: str) -> UpstreamKey:
    """One entry of a list; most are the same at every look."""
    return UpstreamKey(
        id=id,
        issued_at=issued_at,
        expires_at=expires_at,
        problem=None if active else Reason.KEY_INACTIVE,
        marker=marker_in(marker),
    )


class Platform:
    """A provider with all verbs; `strategy` says which of them the engine may call.

    Args:
        dated: whether lists and answers name `issuedAt` (Haltian does, iShareRadio does not).
        lifetime: of a secret; None for one that never ends.
        deactivates: whether a key can be made useless without being deleted.
    """

    def __init__(
        self,
        world: World,
        strategy: Strategy,
        *,
        name: str = "acme",
        lifetime: timedelta | None = timedelta(days=90),
        dated: bool = True,
        deactivates: bool = True,
        expires: bool | None = None,
    ) -> None:
        self.world, self.name, self.strategy = world, name, strategy
        self.lifetime, self.dated, self.deactivates = lifetime, dated, deactivates
        self.abilities = Abilities(
            strategy=strategy,
            kills_old=strategy is not Strategy.REPLACE,
            expires=dated if expires is None else expires,
            pauses=deactivates,
            deletes=True,
        )
        self.issue_deadline = timedelta(seconds=30)
        self.keys: dict[str, PlatformKey] = {}
        self.calls = 0  # issue calls that had their effect
        self.made = 0
        self.on_request: Callable[[RequestDone], None] = lambda done: None
        self.on_change: Callable[[], None] = lambda: None

    # --- what a test looks at

    def add(self, id: str, *, age: timedelta = timedelta(0)) -> PlatformKey:
        """A key that a person made."""
        born = self.world.clock.true - age
        key = PlatformKey(id=id, family=id, secret=self._fresh(), issued_at=born, expires_at=self._ends(born))
        self.keys[id] = key
        return key

    def accepts(self, username: str, secret: str) -> bool:
        """Whether the broker lets this in now."""
        key = self.keys.get(username)
        if key is None or not key.active or key.secret != secret:
            return False
        return key.expires_at is None or self.world.clock.true < key.expires_at

    def family(self, id: str) -> list[PlatformKey]:
        """All keys that descend from this one, and itself."""
        return [key for key in self.keys.values() if key.family == id]

    # --- ports.Provider and its strategies

    def identity(self, id: str) -> Identity:
        return Identity(id=id, username=id)

    def list_keys(self) -> Sequence[UpstreamKey]:
        self._at("provider.list", BEFORE)
        listed = [
            _shown(
                key.id,
                key.issued_at if self.dated else None,
                key.expires_at if self.dated else None,
                key.active,
                key.marker,
            )
            for key in self.keys.values()
        ]
        self._at("provider.list", AFTER)
        return listed

    def issue(self, identity: Identity) -> Issued:
        assert self.strategy is Strategy.IN_PLACE
        self._at("provider.issue", BEFORE, identity.id)
        return self._renewed(identity, self._fresh())

    def choose(self) -> Secret:
        assert self.strategy is Strategy.CHOSEN
        return Secret(self._fresh())

    def set_secret(self, identity: Identity, secret: Secret) -> Issued:
        assert self.strategy is Strategy.CHOSEN
        self._at("provider.issue", BEFORE, identity.id)
        return self._renewed(identity, secret.reveal())

    def create(self, identity: Identity, marker: str) -> Issued:
        assert self.strategy is Strategy.REPLACE
        self._at("provider.issue", BEFORE, identity.id)
        original = self._known(identity.id)
        now = self.world.clock.true
        id = f"{original.family}.{self.made}"
        self.keys[id] = PlatformKey(
            id=id,
            family=original.family,
            secret=self._fresh(),
            issued_at=now,
            expires_at=self._ends(now),
            marker=marker,
        )
        self.calls += 1
        self._at("provider.issue", AFTER, identity.id)
        return self._answer(self.keys[id])

    def deactivate(self, identity: Identity) -> None:
        self._at("provider.deactivate", BEFORE, identity.id)
        if identity.id in self.keys:
            self.keys[identity.id] = replace(self.keys[identity.id], active=False)
            self.on_change()
        self._at("provider.deactivate", AFTER, identity.id)

    def reactivate(self, identity: Identity) -> None:
        self._at("provider.reactivate", BEFORE, identity.id)
        self.keys[identity.id] = replace(self._known(identity.id), active=True)
        self._at("provider.reactivate", AFTER, identity.id)

    def delete(self, id: str) -> None:
        self._at("provider.delete", BEFORE, id)
        self.keys.pop(id, None)
        self.on_change()
        self._at("provider.delete", AFTER, id)

    def close(self) -> None:
        """Nothing to give back."""

    # --- inside

    def _at(self, point: str, when: str, whose: str = "") -> None:
        self.world.at(point, when, whose)
        if when == AFTER:
            skew = -self.world.clock.error
            self.on_request(RequestDone(peer=self.name, operation=point, code="200", seconds=0.0, skew=skew))

    def _renewed(self, identity: Identity, secret: str) -> Issued:
        now = self.world.clock.true
        known = self._known(identity.id)
        self.keys[identity.id] = replace(known, secret=secret, issued_at=now, expires_at=self._ends(now))
        self.calls += 1
        self.on_change()
        self._at("provider.issue", AFTER, identity.id)
        return self._answer(self.keys[identity.id])

    def _answer(self, key: PlatformKey) -> Issued:
        return Issued(
            identity=Identity(id=key.id, username=key.id),
            secret=Secret(key.secret),
            issued_at=key.issued_at if self.dated else None,
            expires_at=key.expires_at if self.dated else None,
        )

    def _known(self, id: str) -> PlatformKey:
        if id not in self.keys:
            raise Permanent(f"{self.name}: no such key", reason=Reason.KEY_UNKNOWN)
        return self.keys[id]

    def _fresh(self) -> str:
        self.made += 1
        return f"secret-{self.made}"

    def _ends(self, born: datetime) -> datetime | None:
        return born + self.lifetime if self.lifetime is not None else None


class Vault:
    """KV v2 in memory: versions of each path, `cas` on each write.

    `gone`: versions that somebody deleted (False) or destroyed (True), by path and number.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.paths: dict[str, list[dict[str, str]]] = {}
        self.gone: dict[tuple[str, int], bool] = {}

    def current(self, path: str) -> dict[str, str]:
        """What consumers read; of a version that is gone they have a copy."""
        return self.paths[path][-1]

    def held(self, path: str, version: int | None = None) -> StoredSecret:
        """What Vault answers to a read."""
        versions = self.paths.get(path, [])
        version = len(versions) if version is None else version
        if not 0 < version <= len(versions):
            return StoredSecret(version=0, data=None)
        gone = self.gone.get((path, version))
        data = versions[version - 1] if gone is None else None
        return StoredSecret(version=version, data=data, destroyed=gone is True)

    def ready(self) -> None:
        self.world.at("vault.ready", BEFORE)

    def preflight(self, path: str, *, lasting: timedelta = timedelta(0), versions: int = 1) -> StoredSecret:
        self.world.at("vault.preflight", BEFORE, path)
        return self.held(path)

    def read(self, path: str, version: int | None = None) -> StoredSecret:
        self.world.at("vault.read", BEFORE, path)
        return self.held(path, version)

    def put(self, path: str, fields: Mapping[str, str], *, judge: Judge | None = None, known: int | None = None) -> int:
        self.world.at("vault.put", BEFORE, path)
        versions = self.paths.setdefault(path, [])
        stored = self.held(path)
        current = stored.data or {}
        if known == len(versions):
            versions.append(dict(fields))  # unread: whatever else was there is gone
        elif any(current.get(name) != value for name, value in fields.items()):
            if judge is not None:
                judge(stored)
            versions.append({**current, **fields})
        version = len(versions)
        self.world.at("vault.put", AFTER, path)
        return version

    def undelete(self, path: str, version: int) -> None:
        self.world.at("vault.undelete", BEFORE, path)
        if self.gone.get((path, version)) is False:
            del self.gone[path, version]

    def annotate(self, path: str, facts: Mapping[str, str]) -> None:
        """Nobody reads it."""

    def renew(self) -> datetime | None:
        return None

    def close(self) -> None:
        """Nothing to give back."""


class Broker:
    """Lets in exactly what the platform says."""

    def __init__(self, world: World, platform: Platform) -> None:
        self.world, self.platform = world, platform
        self.strangers: set[tuple[str, str]] = set()  # logins of other platforms

    def probe(self, target: ProbeTarget) -> ProbeResult:
        try:
            self.world.at("broker.probe", BEFORE, target.username)
        except ConnectionError as exc:
            return ProbeResult(verdict=Verdict.UNREACHABLE, detail=str(exc))
        except PermissionError as exc:
            return ProbeResult(verdict=Verdict.REFUSED, detail=str(exc))
        login = (target.username, target.password.reveal())
        accepted = login in self.strangers or self.platform.accepts(*login)
        return ProbeResult(verdict=Verdict.ACCEPTED if accepted else Verdict.REFUSED)


@dataclass
class Consumer:
    """Reads Vault at each restart, or what `reads` gives, and connects with it; cut off, it tries again with that."""

    name: str
    world: World
    vault: Vault
    platform: Platform
    path: str
    kind: str = "command"
    runs_on: tuple[str, str] = ("", "")
    restarts: int = 0
    connects: list[tuple[str, Sighting]] = field(default_factory=list)
    losses: list[tuple[str, Sighting]] = field(default_factory=list)
    connected: bool = False
    reads: Callable[[], Mapping[str, str]] | None = None

    def preflight(self) -> None:
        self.world.at("consumer.preflight", BEFORE, self.name)

    def restart(self, order: Order) -> Ticket:
        self.world.at("consumer.restart", BEFORE, self.name)
        at = self.world.clock.now()
        self.restarts += 1
        data = self.reads() if self.reads is not None else self.vault.current(self.path)
        self.runs_on = (data["username"], data["password"])
        self.connect()
        self.world.at("consumer.restart", AFTER, self.name)
        return Ticket(consumer=self.name, restarted_at=at)

    def check(self, ticket: Ticket) -> None:
        self.world.at("consumer.check", BEFORE, self.name)

    def connect(self) -> None:
        """Come in, if the broker lets it."""
        self.connected = self.platform.accepts(*self.runs_on)
        if self.connected:
            seen = Sighting(at=self.world.clock.now(), client_id=self.name)
            self.connects.append((self.runs_on[0], seen))

    def cut_off(self) -> None:
        """The platform changed: who is no longer let in loses its session."""
        if self.connected and not self.platform.accepts(*self.runs_on):
            self.connected = False
            self.losses.append((self.runs_on[0], Sighting(at=self.world.clock.now(), client_id=self.name)))


@dataclass
class Watch:
    """Sees one consumer connect as one username, from the time it was opened."""

    consumer: Consumer
    username: str
    since: int
    lost_since: int

    def sightings(self) -> Sequence[Sighting]:
        return [seen for username, seen in self.consumer.connects[self.since :] if username == self.username]

    def losses(self) -> Sequence[Sighting]:
        return [lost for username, lost in self.consumer.losses[self.lost_since :] if username == self.username]

    def wait(self, timeout: float) -> None:
        self.consumer.world.clock.pass_time(timedelta(seconds=timeout))

    def healthy(self) -> str:
        return ""

    def close(self) -> None:
        """Nothing to give back."""


def managed(
    name: str,
    id: str,
    platform: Platform,
    consumers: Sequence[Consumer],
    *,
    limits: Limits | None = None,
    policy: Policy | None = None,
    with_verify: bool = True,
    deliveries: Mapping[str, Delivery] | None = None,
    deliver_timeout: timedelta = timedelta(minutes=20),
) -> ManagedKey:
    """A key of this world, wired as `app` wires one. `deliveries`: own ways to the secret, by the consumer's name."""

    def link(consumer: Consumer) -> ConsumerLink:
        own_way = deliveries.get(consumer.name) if deliveries is not None else None

        def open_watch(identity: Identity, _secret: Secret | None, _order: Order | None) -> Watch:
            return Watch(consumer, identity.username, len(consumer.connects), len(consumer.losses))

        return ConsumerLink(
            consumer=consumer,
            timeout=timedelta(seconds=5),
            settle=timedelta(0),
            open_watch=open_watch,
            delivery=own_way,
            deliver_timeout=deliver_timeout,
        )

    def target(identity: Identity, secret: Secret) -> ProbeTarget:
        return ProbeTarget(host="broker.example", port=1883, username=identity.username, password=secret)

    usual = Limits(
        settle=timedelta(0),
        propagation=timedelta(seconds=5),
        grace=DAY,
        deactivates=platform.deactivates,
        expires=platform.abilities.expires,
    )
    return ManagedKey(
        name=name,
        provider=platform,
        id=id,
        policy=policy or Policy(before_expiry=timedelta(days=30), max_age=timedelta(days=60)),
        limits=limits or usual,
        path=f"mqtt/{name}",
        fields={"username": "{username}", "password": "{secret}"},
        probe=target if with_verify else None,
        consumers=tuple(link(consumer) for consumer in consumers),
    )
