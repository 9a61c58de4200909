"""From `confirm:` in the configuration to an open watch: which account reads the evidence, and where."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from rotator.consumers.confirm import BrokerLog, BrokerLogs, HeartbeatWatch
from rotator.errors import Permanent, RotatorError
from rotator.model import Identity, ProbeTarget, Secret
from rotator.ports import Clock, Watch
from rotator.reasons import Reason
from rotator.verify import PROBE_CLIENT_PREFIX

# Client ids of this daemon's own: they prove nothing about a consumer.
OWN_CLIENTS = (PROBE_CLIENT_PREFIX, "rotator-")
log = structlog.get_logger(__name__)


class Access(Protocol):
    """How to reach a broker, as `confirm:` and `verify:` say it; what is None is taken from the key's `verify`."""

    @property
    def host(self) -> str | None: ...
    @property
    def port(self) -> int | None: ...
    @property
    def tls(self) -> bool | None: ...
    @property
    def ca_file(self) -> str | None: ...


class Account(Access, Protocol):
    """An access with the observer's own account, if it has one."""

    @property
    def username(self) -> str | None: ...
    @property
    def password(self) -> object | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchMaker:
    """How a consumer's watch is opened; `early` and `identified` as `managed.ConsumerLink` has them."""

    open: Callable[[Identity, Secret | None], Watch]
    early: bool
    identified: bool
    periodic: bool = False


class _OwnLog:
    """A watch on a broker log that was opened for it alone, with the key's own new secret."""

    def __init__(self, log: BrokerLog, watch: Watch) -> None:
        self._log, self._watch = log, watch
        self.sightings, self.losses = watch.sightings, watch.losses
        self.wait, self.healthy = watch.wait, watch.healthy

    def close(self) -> None:
        self._watch.close()
        self._log.close()


class Confirmations:
    """Makes watches, and owns the broker logs that they share."""

    def __init__(self, *, clock: Clock, read_ref: Callable[[object], str]) -> None:
        self._clock, self._read_ref = clock, read_ref
        self._logs = BrokerLogs(clock=clock)
        self._early: list[tuple[Account, Access | None]] = []

    def broker(self, account: Account, verify: Access | None, *, client_id: str | None) -> WatchMaker:
        """The broker's own log of connects (Mosquitto, `log_dest topic`)."""
        early = account.username is not None
        if early:
            self._early.append((account, verify))

        def open_watch(identity: Identity, secret: Secret | None) -> Watch:
            target = self._target(account, verify, identity, secret)
            lines = self._logs.log(target) if early else BrokerLog(target, clock=self._clock)
            if not early:
                lines.start()
            watch = lines.watch(username=identity.username, client_id=client_id, ignore_prefixes=OWN_CLIENTS)
            return watch if early else _OwnLog(lines, watch)

        return WatchMaker(open=open_watch, early=early, identified=client_id is not None)

    def heartbeat(self, account: Account, verify: Access | None, *, topic: str) -> WatchMaker:
        """A topic on which the consumer speaks."""

        def open_watch(identity: Identity, secret: Secret | None) -> Watch:
            target = self._target(account, verify, identity, secret)
            watch = HeartbeatWatch(target, topic=topic, clock=self._clock)
            watch.start()
            return watch

        return WatchMaker(open=open_watch, early=account.username is not None, identified=True, periodic=True)

    def listen_early(self) -> None:
        """Hear the brokers' logs from the start on: they tell which client id is whose only when it connects.

        In a thread of its own: an observer's password may lie in a Vault that is down, and nothing waits for that.
        """
        threading.Thread(target=self._listen_to_all, name="observers", daemon=True).start()

    def close(self) -> None:
        """Leave all brokers."""
        self._logs.close()

    def _listen_to_all(self) -> None:
        for account, verify in self._early:
            try:
                self._logs.log(self._target(account, verify, None, None))
            except RotatorError as exc:  # the next rotation tries again
                log.warning("observer_later", reason=exc.reason.value, error=exc.message)

    def _target(
        self, account: Account, verify: Access | None, identity: Identity | None, secret: Secret | None
    ) -> ProbeTarget:
        host = account.host or (verify.host if verify is not None else None)
        tls = account.tls if account.tls is not None else bool(verify is not None and verify.tls)
        port = account.port or (verify.port if verify is not None and account.host is None else None)
        if host is None:
            raise Permanent("confirm names no broker, and the key has no `verify`", reason=Reason.BROKER_UNREACHABLE)
        if account.username is not None:
            username = account.username
            password = Secret(self._read_ref(account.password)) if account.password is not None else Secret("")
        elif identity is not None:
            username, password = identity.username, secret if secret is not None else Secret("")
        else:
            username, password = "", Secret("")
        return ProbeTarget(
            host=host,
            port=port or (8883 if tls else 1883),
            tls=tls,
            ca_file=account.ca_file or (verify.ca_file if verify is not None else None),
            username=username,
            password=password,
        )
