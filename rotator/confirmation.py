"""From `confirm:` in the configuration to an open watch: which account reads the evidence, and where."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import httpx
import structlog

from rotator.consumers.asking import AskingWatch
from rotator.consumers.command import Program, ask_program
from rotator.consumers.confirm import BrokerLog, BrokerLogs, HeartbeatWatch
from rotator.consumers.connections import ConnectionsWatch
from rotator.consumers.http_evidence import ask_http
from rotator.consumers.mqtt import AckWatch
from rotator.errors import Permanent, RotatorError
from rotator.model import Identity, Order, ProbeTarget, Secret
from rotator.ports import Clock, Connected, Watch
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
    """How a consumer's watch is opened; `early` and `identified` as `managed.ConsumerLink` has them.

    What proves the version itself is opened just before the restart, with its order; all others need none.
    """

    open: Callable[[Identity, Secret | None, Order | None], Watch]
    early: bool
    identified: bool
    periodic: bool = False
    versioned: bool = False


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

        def open_watch(identity: Identity, secret: Secret | None, order: Order | None = None) -> Watch:
            target = self._target(account, verify, identity, secret)
            lines = self._logs.log(target) if early else BrokerLog(target, clock=self._clock)
            if not early:
                lines.start()
            watch = lines.watch(username=identity.username, client_id=client_id, ignore_prefixes=OWN_CLIENTS)
            return watch if early else _OwnLog(lines, watch)

        return WatchMaker(open=open_watch, early=early, identified=client_id is not None)

    def connections(self, name: str, broker: Connected, *, client_id: str | None) -> WatchMaker:
        """The broker's list of connections (RabbitMQ). Opened no earlier than it must be: it has no memory."""

        def open_watch(identity: Identity, secret: Secret | None, order: Order | None = None) -> Watch:
            return ConnectionsWatch(name, broker, username=identity.username, client_id=client_id, clock=self._clock)

        return WatchMaker(open=open_watch, early=False, identified=client_id is not None)

    def heartbeat(self, account: Account, verify: Access | None, *, topic: str) -> WatchMaker:
        """A topic on which the consumer speaks."""

        def open_watch(identity: Identity, secret: Secret | None, order: Order | None = None) -> Watch:
            target = self._target(account, verify, identity, secret)
            watch = HeartbeatWatch(target, topic=topic, clock=self._clock)
            watch.start()
            return watch

        return WatchMaker(open=open_watch, early=account.username is not None, identified=True, periodic=True)

    def acks(
        self, name: str, account: Account, *, ack: str, expect: Sequence[str] | int, names_key: bool
    ) -> WatchMaker:
        """The acks of an MQTT consumer; see `AckWatch`."""

        def open_watch(identity: Identity, secret: Secret | None, order: Order | None = None) -> Watch:
            watch = AckWatch(
                name,
                self.target(account),
                ack=ack,
                expect=expect,
                order=_given(name, order),
                names_key=names_key,
                clock=self._clock,
            )
            watch.start()
            return watch

        return WatchMaker(open=open_watch, early=False, versioned=True, identified=True)

    def http(
        self, name: str, client: httpx.Client, *, url: str, field: str, headers: Mapping[str, object]
    ) -> WatchMaker:
        """A URL that answers the version. `headers`: text, or a reference to a secret."""

        def filled() -> dict[str, str]:
            return {key: value if isinstance(value, str) else self._read_ref(value) for key, value in headers.items()}

        def open_watch(identity: Identity, secret: Secret | None, order: Order | None = None) -> Watch:
            wanted = _given(name, order)
            ask = ask_http(name, client=client, url=url, field=field, headers=filled, order=wanted)
            return AskingWatch(name, ask=ask, clock=self._clock, stop=threading.Event())

        return WatchMaker(open=open_watch, early=False, versioned=True, identified=True, periodic=True)

    def command(
        self,
        name: str,
        *,
        argv: Sequence[str],
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: timedelta,
    ) -> WatchMaker:
        """A program whose exit 0 says that the consumer runs on the order's version."""

        def open_watch(identity: Identity, secret: Secret | None, order: Order | None = None) -> Watch:
            wanted, stop = _given(name, order), threading.Event()
            program = Program(name, argv=argv, cwd=cwd, env=env, timeout=timeout, stop=stop)
            return AskingWatch(name, ask=ask_program(program, wanted), clock=self._clock, stop=stop)

        return WatchMaker(open=open_watch, early=False, versioned=True, identified=True, periodic=True)

    def target(self, account: Account) -> ProbeTarget:
        """The broker of an account that needs nothing of a key's. Raises: as the reference to its password."""
        return self._target(account, None, None, None)

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


def _given(name: str, order: Order | None) -> Order:
    if order is None:
        raise Permanent(f"{name}: which version is to be proven is known at its restart", reason=Reason.EVIDENCE_LOST)
    return order
