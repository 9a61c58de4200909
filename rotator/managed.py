"""What the engine knows of a key from the configuration, wired to the adapters that serve it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from rotator.model import Identity, ProbeResult, ProbeTarget, Secret
from rotator.policy import Policy
from rotator.ports import Checking, Consumer, Prober, Provider, Watch
from rotator.rotation import Limits
from rotator.templates import render


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerLink:
    """One consumer of a key, and how it is proven to run on a new secret.

    `open_watch` is None where the configuration names no proof: restarted is all that can be said then. `early`: the
    watch needs no secret of the key's own, so that it is open before the old secret dies and sees its death.
    `identified`: the watch knows this consumer by its client id; else two consumers need two different clients.
    `periodic`: the evidence comes all the time (a heartbeat), so only what comes after the restart has ended counts.
    """

    consumer: Consumer
    timeout: timedelta
    settle: timedelta
    open_watch: Callable[[Identity, Secret | None], Watch] | None = None
    early: bool = True
    identified: bool = False
    periodic: bool = False


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

    def rendered(self, identity: Identity, secret: Secret, *, expires_at: datetime | None) -> dict[str, str]:
        """The fields of the Vault secret, templates filled in."""
        values = template_values(self, identity, secret, expires_at=expires_at)
        return {field: render(template, values) for field, template in self.fields.items()}

    def secret_of(self, data: Mapping[str, object] | None) -> Secret | None:
        """The secret inside Vault's data: the value of the field whose template is just `{secret}`."""
        for field, template in self.fields.items():
            if template == "{secret}" and data is not None and isinstance(value := data.get(field), str) and value:
                return Secret(value)
        return None

    def id_of(self, data: Mapping[str, object] | None) -> str | None:
        """The id inside Vault's data, where a field holds just that."""
        for field, template in self.fields.items():
            if template == "{id}" and data is not None and isinstance(value := data.get(field), str) and value:
                return value
        return None

    def ours(self, data: Mapping[str, object] | None) -> dict[str, object]:
        """Those of Vault's fields that this key writes."""
        return {field: data[field] for field in self.fields if field in data} if data is not None else {}


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
