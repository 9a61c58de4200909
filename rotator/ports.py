"""What the engine needs from the world, as Protocols. Adapters implement them; `app` wires them together.

No verb returns a bare bool. All verbs may be repeated. Errors are only those of `rotator.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from rotator.model import (
    Abilities,
    Credential,
    Identity,
    Issued,
    Order,
    ProbeResult,
    ProbeTarget,
    Quota,
    RequestDone,
    RotationEvent,
    Secret,
    Sighting,
    StoredSecret,
    Strategy,
    Ticket,
    UpstreamKey,
)

OnRequest = Callable[[RequestDone], None]
Reveal = Callable[[], str]  # reads a secret reference when it is needed
Judge = Callable[[StoredSecret], None]  # raises Conflict where this version must not be written over


class Clock(Protocol):
    """The only source of time."""

    def now(self) -> datetime:
        """The wall clock, aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds of a clock that never steps."""
        ...


class Provider(Protocol):
    """A platform that issues keys. How it does so is `strategy`; the verbs for it are in the Protocols below."""

    @property
    def name(self) -> str:
        """The name in the configuration."""
        ...

    @property
    def strategy(self) -> Strategy:
        """How this platform's keys get a new secret."""
        ...

    @property
    def abilities(self) -> Abilities:
        """What this platform can do; `abilities.strategy` is `strategy`."""
        ...

    @property
    def issue_deadline(self) -> timedelta:
        """The total time that one issue call may take, login included."""
        ...

    def identity(self, id: str) -> Identity:
        """What an id is at the broker (Haltian: the username is the id), without asking anybody.

        Where the platform's list says more (`UpstreamKey.identity`), that is used instead.
        """
        ...

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All keys that this login sees.

        Raises: Transient, Permanent.
        """
        ...

    def close(self) -> None:
        """Log out and give back connections; never raises."""
        ...


@runtime_checkable
class InPlace(Provider, Protocol):
    """A platform that makes a new secret for the same identity and kills the old one at once."""

    def issue(self, identity: Identity, current: Secret | None = None) -> Issued:
        """Have a new secret issued, in place. Never repeated inside: one call is one request that changes something.

        Args:
            current: the secret that Vault holds, given where `abilities.needs_current`.

        Raises:
            Transient, Permanent: nothing was issued.
            UnknownOutcome: the request may have taken effect.
            BadAnswer: an answer came that holds no usable secret.
        """
        ...


@runtime_checkable
class Replacing(Provider, Protocol):
    """A platform where a second key is made beside the old one."""

    @property
    def deactivates(self) -> bool:
        """Whether a key can be made useless without being deleted, and be brought back."""
        ...

    def create(self, identity: Identity, marker: str) -> Issued:
        """Make a key with all rights and restrictions of `identity`, marked so that a list shows whose it is.

        Never repeated inside. `marker` matches `model.MARKER` and is new for each call; a key that has an older marker
        in its name keeps the rest of that name.

        Raises:
            Transient, Permanent: nothing was made.
            UnknownOutcome: a key may have been made.
            BadAnswer: an answer came that holds no usable secret; a key may have been made.
        """
        ...

    def deactivate(self, identity: Identity) -> None:
        """Make a key useless. Inactive already, or gone, is success. Called only where `deactivates`.

        Raises: Transient, Permanent.
        """
        ...

    def reactivate(self, identity: Identity) -> None:
        """Take a deactivation back. Active already is success.

        Raises: Transient, Permanent.
        """
        ...

    def delete(self, id: str) -> None:
        """Delete a key. Absent is success.

        Raises: Transient, Permanent.
        """
        ...


@runtime_checkable
class Choosing(Provider, Protocol):
    """A broker or platform where the caller chooses the secret."""

    def choose(self) -> Secret:
        """A new random secret that fulfils the platform's rules; nobody hears of it yet."""
        ...

    def set_secret(self, identity: Identity, secret: Secret) -> Issued:
        """Make `secret` the secret of `identity`; safe to repeat with the same one.

        What else belongs to the credential (tags, roles, limits) stays as it is. A credential that does not exist is
        not created: Permanent KEY_UNKNOWN.

        Raises:
            Transient, Permanent: the old secret is still the one.
            UnknownOutcome: the request may have taken effect.
        """
        ...


# --- what only some providers can do, told by `abilities` and by these


@runtime_checkable
class Deactivating(Protocol):
    """A key can be made useless and be brought back."""

    def deactivate(self, identity: Identity) -> None:
        """Make a key useless. Inactive already, or gone, is success.

        Raises: Transient, Permanent.
        """
        ...

    def reactivate(self, identity: Identity) -> None:
        """Take a deactivation back. Active already is success.

        Raises: Transient, Permanent.
        """
        ...


@runtime_checkable
class Deleting(Protocol):
    """A key can be deleted."""

    def delete(self, id: str) -> None:
        """Delete a key. Absent is success.

        Raises: Transient, Permanent.
        """
        ...


@runtime_checkable
class Provisioning(Protocol):
    """A key that was not there can be made, with all that belongs to it."""

    @property
    def options(self) -> Mapping[str, str]:
        """What `provision` may be told: name → what it is, for a person."""
        ...

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        """Make the key `name` and all that belongs to it (roles, links, permissions).

        Each part is found again and not repeated where the call runs twice. A key that exists already, and whose secret
        nobody has, is given a new one where the platform can.

        Args:
            options: of those that `options` names.
            marker: matches `model.MARKER`; kept at the key where the platform has a place for it.

        Raises:
            Permanent: PROVIDER_REFUSED for a name or an option that can't be, or for a key that exists already and
                whose secret can't be had; PROVIDER_QUOTA.
            Transient, UnknownOutcome, BadAnswer: as with the call that issues.
        """
        ...


@runtime_checkable
class Recreating(Protocol):
    """A key gets a new secret by being deleted and made again, so what it is must outlive the process."""

    def describe(self, identity: Identity) -> Mapping[str, Any]:
        """What the key is, to be journaled before the call: JSON, without any secret.

        Raises: Transient, Permanent.
        """
        ...

    def remember(self, identity: Identity, described: Mapping[str, Any]) -> None:
        """What `describe` said, before each call that issues: it is used where the key is no longer there.

        Raises: Permanent.
        """
        ...


@runtime_checkable
class Watched(Protocol):
    """A provider, or the store, has tokens, licences or logins of its own that end."""

    def credentials(self) -> Sequence[Credential]:
        """All of them.

        Raises: Transient, Permanent.
        """
        ...


@runtime_checkable
class Metered(Protocol):
    """The platform has quotas, and tells how much of them is used."""

    def quotas(self) -> Sequence[Quota]:
        """All of them.

        Raises: Transient, Permanent.
        """
        ...


@runtime_checkable
class Evicting(Protocol):
    """The broker keeps old sessions after a change of password, and can be told to end them."""

    def evict(self, identity: Identity, before: datetime) -> int:
        """End the sessions of this username that began before `before`; returns how many. May be repeated.

        Raises: Transient, Permanent.
        """
        ...


@runtime_checkable
class Connected(Protocol):
    """The broker lists who is connected, so that a consumer's coming can be seen."""

    def connections(self, username: str) -> Sequence[str]:
        """Names of this username's open connections; no two connections share one at the same time.

        Raises: Transient, Permanent.
        """
        ...

    def client_id(self, connection: str) -> str | None:
        """The client id of an open connection, "" where it has none; None while the broker can't tell, or it is gone.

        Raises: Transient, Permanent.
        """
        ...


@runtime_checkable
class Checking(Protocol):
    """The platform can check a secret without a connection at the broker, which would disturb a device."""

    def check(self, identity: Identity, secret: Secret) -> ProbeResult:
        """Whether the platform accepts it. Never raises for what a platform or a network does."""
        ...


class Store(Protocol):
    """Where fresh secrets go: one KV v2 mount."""

    def ready(self) -> None:
        """Raise a RotatorError when the store can't serve now: unreachable, sealed, login refused."""
        ...

    def preflight(self, path: str, *, lasting: timedelta = timedelta(0), versions: int = 1) -> StoredSecret:
        """Raise when this path could not be read and written now; else what it holds. Changes nothing.

        Args:
            lasting: for how long the login must be good.
            versions: how many versions must be kept, so that the way back is not pushed out by what is written.

        Raises: Transient; Permanent VAULT_AUTH, VAULT_DENIED (with the policy lines to add), VAULT_PATH_INVALID,
            VAULT_VERSIONS.
        """
        ...

    def read(self, path: str, version: int | None = None) -> StoredSecret:
        """The current version; `StoredSecret(version=0, data=None)` where nothing was ever written.

        Args:
            version: an older one instead; `data` is None where it is deleted, destroyed or pushed out.
        """
        ...

    def put(self, path: str, fields: Mapping[str, str], *, judge: Judge | None = None, known: int | None = None) -> int:
        """Make `fields` current at `path`, keep all other fields, and return the version that holds them.

        Reads, merges, writes with `cas`; on a mismatch reads again. A current version that holds `fields` already
        is returned as it is, so the call may be repeated after an unknown outcome.

        Args:
            path: the secret's path below the mount.
            fields: field name → value, written as one version.
            judge: is shown each version before it is written over, and raises Conflict where that must not be.
            known: a version with no fields but ours that may be written over; as long as it is the current one, it is
                not read before.

        Raises: Conflict (the judge's); Transient, with VAULT_CONFLICT where the path never rests; Permanent.
        """
        ...

    def undelete(self, path: str, version: int) -> None:
        """Take a version's deletion back. Raises: Transient, Permanent."""
        ...

    def annotate(self, path: str, facts: Mapping[str, str]) -> None:
        """Lay `facts` over the path's `custom_metadata`, for people; nothing happens where the server knows no such
        thing or the policy does not allow it. An empty fact takes its name away.

        Raises: Transient, Permanent.
        """
        ...

    def renew(self) -> datetime | None:
        """Keep the login alive; returns when the token ends, None for one that never does."""
        ...

    def close(self) -> None:
        """Give back connections; never raises."""
        ...


class Prober(Protocol):
    """The MQTT probe."""

    def probe(self, target: ProbeTarget) -> ProbeResult:
        """Connect, subscribe, leave. Never raises for what a broker or a network does."""
        ...


class Consumer(Protocol):
    """What reads the secret and must be restarted."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def preflight(self) -> None:
        """Raise when a restart could not work (no such unit, no such program). Changes nothing."""
        ...

    def restart(self, order: Order) -> Ticket:
        """Restart it and wait until the restart went through.

        Where nothing of it runs (no replicas), the ticket's mark `replicas` is 0: it proves nothing then.

        Raises: Transient, Permanent.
        """
        ...

    def check(self, ticket: Ticket) -> None:
        """Raise when what `ticket` restarted did not stay up. Changes nothing."""
        ...


class Delivery(Protocol):
    """A consumer's own way to the secret: External Secrets, a file that an agent writes."""

    def preflight(self) -> None:
        """Raise when it could not be waited for (no such object, no right to look). Changes nothing."""
        ...

    def ask(self, order: Order) -> None:
        """Ask for the new version to be fetched now, where that can be asked. May be repeated.

        Raises: Transient, Permanent.
        """
        ...

    def arrived(self, order: Order, secret: Secret, since: datetime) -> bool:
        """Whether the consumer, restarted now, would find `secret`; `since` is when Vault got it.

        Raises: Transient, Permanent.
        """
        ...


class Watch(Protocol):
    """Evidence that a consumer runs on a new secret, collected from before the restart on."""

    def sightings(self) -> Sequence[Sighting]:
        """All sightings so far, oldest first."""
        ...

    def losses(self) -> Sequence[Sighting]:
        """When clients of the watched username were cut off, oldest first; empty where this can't be seen."""
        ...

    def wait(self, timeout: float) -> None:
        """Return when something new was seen, or after `timeout` seconds."""
        ...

    def healthy(self) -> str:
        """Empty while the watch sees everything; else why it may have missed something."""
        ...

    def close(self) -> None: ...


class Observer(Protocol):
    """Logs, metrics, history: equals that read one event each."""

    def __call__(self, event: RotationEvent, /) -> None: ...
