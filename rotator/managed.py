"""What the engine knows of a key from the configuration, wired to the adapters that serve it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import cast

from rotator.model import Identity, Order, ProbeResult, ProbeTarget, Secret, Strategy
from rotator.policy import Policy
from rotator.ports import Checking, Consumer, Delivery, Prober, Provider, Watch
from rotator.rotation import Limits
from rotator.templates import render


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerLink:
    """One consumer of a key, and how it is proven to run on a new secret.

    `open_watch` is None where the configuration names no proof: restarted is all that can be said then. `early`: the
    watch needs no secret of the key's own, so that it is open before the old secret dies and sees its death.
    `identified`: the watch knows this consumer by its client id; else two consumers need two different clients.
    `periodic`: the evidence comes all the time (a heartbeat), so only what comes after the restart has ended counts.
    `versioned`: the evidence names the version, so that its watch is opened for one. `delivery`: the consumer's own way
    to the secret, waited for before anybody is restarted; late after `deliver_timeout`.
    """

    consumer: Consumer
    timeout: timedelta
    settle: timedelta
    open_watch: Callable[[Identity, Secret | None, Order | None], Watch] | None = None
    early: bool = True
    identified: bool = False
    periodic: bool = False
    versioned: bool = False
    delivery: Delivery | None = None
    deliver_timeout: timedelta = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedKey:
    """One key as configured."""

    name: str
    provider: Provider
    id: str
    policy: Policy
    limits: Limits
    path: str
    fields: Mapping[str, str]
    pair: str = ""  # keys of one pair are never rotated within each other's settle time
    neighbours: int = 0  # other keys that keep their fields in the same secret
    probe: Callable[[Identity, Secret], ProbeTarget] | None = None
    probe_interval: timedelta = timedelta(minutes=15)
    consumers: tuple[ConsumerLink, ...] = ()
    adopt_rotates: bool = False
    listed_as: str = ""  # what the platform calls it, where `discover` found it

    @property
    def provable(self) -> bool:
        """Whether a secret can be proven: at the broker (`verify`), or else by the platform itself."""
        return self.probe is not None or self.provider.abilities.checks

    def proof(self, prober: Prober, identity: Identity, secret: Secret) -> ProbeResult:
        """What the broker, or else the platform, says to a secret; only where `provable`."""
        if self.probe is not None:
            return prober.probe(self.probe(identity, secret))
        return cast("Checking", self.provider).check(identity, secret)

    @property
    def versions_needed(self) -> int:
        """How many versions Vault must keep: with a way back, the old one under all that is written on top."""
        return 1 if self.provider.strategy is Strategy.IN_PLACE else 2 + self.neighbours

    @property
    def longest(self) -> timedelta:
        """How long a rotation may take from the issue call until its consumers are proven, at worst."""
        waits = max((link.timeout * 2 + link.settle for link in self.consumers), default=timedelta(0))
        return self.provider.issue_deadline + self.limits.propagation + self.limits.deliver_delay + waits

    def rendered(self, identity: Identity, secret: Secret, *, expires_at: datetime | None) -> dict[str, str]:
        """The fields of the Vault secret, templates filled in."""
        values = template_values(self, identity, secret, expires_at=expires_at)
        return {field: render(template, values) for field, template in self.fields.items()}

    def secret_of(self, data: Mapping[str, object] | None) -> Secret | None:
        """The secret inside Vault's data: the value of the field whose template is just `{secret}`."""
        value = self._value_of("{secret}", data)
        return Secret(value) if value is not None else None

    def id_of(self, data: Mapping[str, object] | None) -> str | None:
        """The id inside Vault's data, where a field holds just that."""
        return self._value_of("{id}", data)

    def identity_in(self, data: Mapping[str, object] | None, usual: Identity) -> Identity:
        """Whom Vault's data names: somebody may have written another key's secret. `usual` where it names nobody."""
        id, username = self.id_of(data), self._value_of("{username}", data)
        named = usual if id is None or id == usual.id else self.provider.identity(id)
        return named if username is None else replace(named, username=username)

    def ours(self, data: Mapping[str, object] | None) -> dict[str, object]:
        """Those of Vault's fields that this key writes."""
        return {field: data[field] for field in self.fields if field in data} if data is not None else {}

    def _value_of(self, wanted: str, data: Mapping[str, object] | None) -> str | None:
        """What the field holds whose template is just `wanted`; None where that is no text, or empty."""
        for field, template in self.fields.items():
            if template == wanted and data is not None and isinstance(value := data.get(field), str) and value:
                return value
        return None


class Fleet(MutableMapping[str, ManagedKey]):
    """All managed keys by name. May grow while other threads walk over it: they see it as it was when they began."""

    def __init__(self, keys: Mapping[str, ManagedKey]) -> None:
        self._keys = dict(keys)

    def __getitem__(self, name: str) -> ManagedKey:
        return self._keys[name]

    def __setitem__(self, name: str, key: ManagedKey) -> None:
        self._keys = {**self._keys, name: key}

    def __delitem__(self, name: str) -> None:
        self._keys = {known: key for known, key in self._keys.items() if known != name}

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def template_values(
    key: ManagedKey, identity: Identity, secret: Secret, *, expires_at: datetime | None
) -> dict[str, str]:
    """What the documented template names stand for."""
    return {
        "id": identity.id,
        "username": identity.username,
        "client_id": identity.client_id or "",
        "secret": secret.reveal(),
        "expires_at": expires_at.isoformat() if expires_at is not None else "",
        "key": key.name,
        "provider": key.provider.name,
    }
