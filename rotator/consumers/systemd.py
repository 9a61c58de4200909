"""Consumers that are systemd units, restarted over D-Bus (org.freedesktop.systemd1, the manual page of that name).

The job's own result is waited for, so a unit that fails to start fails the restart. A `Type=simple` unit counts as
started as soon as its process exists; whether it stayed up is what `check` looks at. A signal (`kill`) has no job: that
the same process is still there is all that can be said.
"""

from __future__ import annotations

import os
import signal as signals
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from jeepney import DBusAddress, DBusErrorResponse, MatchRule, Properties, message_bus, new_method_call
from jeepney.bus import get_bus
from jeepney.io.blocking import DBusConnection, prep_socket
from jeepney.wrappers import unwrap_msg

from rotator.errors import Permanent, RotatorError, Stopping, Transient
from rotator.model import Order, Ticket
from rotator.ports import Clock
from rotator.reasons import Reason

BUS: Final = "org.freedesktop.systemd1"
ROOT: Final = "/org/freedesktop/systemd1"
MANAGER: Final = DBusAddress(ROOT, bus_name=BUS, interface=f"{BUS}.Manager")
METHODS: Final = {"restart": "RestartUnit", "reload": "ReloadUnit", "reload-or-restart": "ReloadOrRestartUnit"}
LOOK: Final = 5.0  # seconds for one question, and for the connection
_SHOWN: Final = 200  # characters of a library's error in a message

_FORBIDDEN: Final = (
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.AuthFailed",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
)
_MISSING: Final = (f"{BUS}.NoSuchUnit", f"{BUS}.UnitMasked", "org.freedesktop.DBus.Error.InvalidArgs")
# What jeepney raises where an address, a greeting or an answer is not what D-Bus says, and what reading such an answer
# here raises. All of these are Python's own classes: jeepney has few.
_UNREADABLE: Final = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, struct.error)
_NEVER: Final = (f"{BUS}.JobTypeNotApplicable", f"{BUS}.OnlyByDependency", f"{BUS}.BadUnitSetting", f"{BUS}.LoadFailed")

log = structlog.get_logger(__name__)

# How long one wait lasts before the stop flag is looked at again, in seconds.
GLANCE = 0.25


class SystemdConsumer:
    """Restarts a unit of the system's manager or of this user's.

    Args:
        name: the name in the configuration.
        unit: the unit's full name, with its suffix.
        scope: `system` or `user`.
        action: `restart`, `reload`, `reload-or-restart`, or `kill`: send `signal` to the main process.
        signal: the signal's name, such as SIGHUP; with `kill` alone.
        timeout: how long the job may take; a job that takes longer goes on at systemd.
        clock: the source of times.
    """

    def __init__(
        self,
        name: str,
        *,
        unit: str,
        scope: str = "system",
        action: str = "restart",
        signal: str | None = None,
        timeout: timedelta,
        clock: Clock,
        stop: threading.Event | None = None,
    ) -> None:
        if action not in (*METHODS, "kill") or scope not in ("system", "user"):
            raise ValueError(f"no such scope or action: {scope}, {action}")
        if (action == "kill") != (signal in signals.Signals.__members__):
            raise ValueError(f"the action {action} does not go with the signal {signal}")
        self._name, self._unit, self._scope, self._action = name, unit, scope, action
        self._signal = signals.Signals[signal] if signal is not None else None
        self._timeout, self._clock, self._stop = timeout, clock, stop or threading.Event()

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def kind(self) -> str:
        """`systemd`."""
        return "systemd"

    def preflight(self) -> None:
        """Look whether the unit can be restarted at all. Starts and stops nothing.

        Whether this user may do so only the call itself tells: systemd offers no question for it.

        Raises:
            Permanent: CONSUMER_MISSING (not found, masked); CONSUMER_RESTART_FAILED (can't be loaded, can't do this).
            Transient: CONSUMER_RESTART_FAILED where systemd does not answer.
        """
        with self._connected() as connection:
            self._fit(_Unit(connection, self._unit))

    def restart(self, order: Order) -> Ticket:
        """Restart (or reload, or signal) the unit, wait for the job's result, and see that the unit is active then.

        A Type=oneshot may have ended by then, with success.

        After a restart its main process must be a new one, after a reload or a signal the old one.
        `Ticket.restarted_at` is when the new main process was started, by systemd's record; where there is none, when
        the call was made. The marks are `invocation_id`, and a service's `main_pid` and `n_restarts`.

        Raises:
            Permanent: as `preflight`, and CONSUMER_FORBIDDEN.
            Transient: CONSUMER_RESTART_FAILED, CONSUMER_TIMEOUT; CONSUMER_CRASHED where the unit is down right after.
        """
        called = self._clock.now()
        with self._connected() as connection:
            unit = _Unit(connection, self._unit)
            before = _marks(self._fit(unit))
            if self._signal is not None:
                if not before.get("main_pid"):
                    raise self._failed("it has no main process to send a signal to")
                _ask(connection, new_method_call(MANAGER, "KillUnit", "ssi", (self._unit, "main", self._signal.value)))
            else:
                if self._action != "reload":
                    # our own tries must not use up the unit's StartLimitBurst: systemd would stop it and not start it
                    with suppress(DBusErrorResponse):  # a polkit rule may allow the restart alone
                        _ask(connection, new_method_call(MANAGER, "ResetFailedUnit", "s", (self._unit,)))
                self._run_job(connection)
            state = unit.state()
            if not _well(state):
                raise self._crashed(
                    f"it is {state['ActiveState']} ({state['SubState']}) right after the {self._action}"
                )
            self._compare(before, _marks(state))
            started = datetime.fromtimestamp(state.get("ExecMainStartTimestamp", 0) / 1_000_000, UTC)
            return Ticket(consumer=self._name, restarted_at=max(called, started), marks=_marks(state))

    def check(self, ticket: Ticket) -> None:
        """See that what `ticket` restarted is still the same, and active.

        Raises:
            Transient: CONSUMER_CRASHED; CONSUMER_RESTART_FAILED where systemd does not answer.
        """
        with self._connected() as connection:
            state = _Unit(connection, self._unit).state()
        if not _well(state):
            raise self._crashed(
                f"it is {state['ActiveState']} ({state['SubState']}, {state.get('Result', 'no result')})"
            )
        if state.get("Type") == "oneshot" and state["ActiveState"] != "active":
            return  # it has ended as it should, and a timer may have begun it anew
        now = _marks(state)
        if now.get("n_restarts") != ticket.marks.get("n_restarts"):
            raise self._crashed(f"systemd has restarted it since (NRestarts is {now.get('n_restarts')})")
        if now != dict(ticket.marks):
            runs = "another process runs now than the one that was restarted"
            raise self._crashed("its main process has ended" if now.get("main_pid") == 0 else runs)

    @contextmanager
    def _connected(self) -> Iterator[DBusConnection]:
        """A D-Bus connection, and the one place where its errors become ours."""
        try:
            opened = _open(_address(self._scope))
        except DBusErrorResponse as exc:
            raise self._named(exc) from exc
        except (OSError, *_UNREADABLE) as exc:
            raise self._failed(f"no D-Bus of the {self._scope} manager: {_told(exc)}") from exc
        with opened as connection:
            try:
                yield connection
            except DBusErrorResponse as exc:
                raise self._named(exc) from exc
            except TimeoutError as exc:
                raise self._failed("systemd did not answer on D-Bus in time") from exc
            except OSError as exc:
                raise self._failed(f"the connection to D-Bus was lost: {_told(exc)}") from exc
            except _UNREADABLE as exc:
                raise self._failed(f"systemd's answer can't be read: {_told(exc)}") from exc

    def _compare(self, before: Mapping[str, str | int], after: Mapping[str, str | int]) -> None:
        """Raise when the main process is not the one that it must be now; units without one can't tell."""
        if not before.get("main_pid") or self._action == "reload-or-restart":
            return
        if self._action == "restart" and before == after:
            raise self._failed("the restart is done, and the process is still the old one")
        if self._action in ("reload", "kill") and before != after:
            raise self._crashed(f"another process runs after the {self._action}, so it did not survive that")

    def _fit(self, unit: _Unit) -> dict[str, Any]:
        """The unit's state; raises when it is not there or can't do what is asked."""
        state = unit.state()
        match state["LoadState"]:
            case "not-found":
                raise self._permanent("there is no such unit", Reason.CONSUMER_MISSING)
            case "masked":
                raise self._permanent("it is masked", Reason.CONSUMER_MISSING)
            case "loaded" | "merged":
                pass
            case other:
                text = f"its unit file can't be loaded ({other}): {' '.join(state['LoadError'])}".rstrip(": ")
                raise self._permanent(text, Reason.CONSUMER_RESTART_FAILED)
        able = {"restart": state["CanStart"], "reload": state["CanReload"]}.get(self._action, True)
        if not able:
            raise self._permanent(f"it does not allow a {self._action}", Reason.CONSUMER_RESTART_FAILED)
        return state

    def _run_job(self, connection: DBusConnection) -> None:
        """Have systemd do it, and wait for the job's result."""
        deadline = time.monotonic() + self._timeout.total_seconds()
        removed = MatchRule(type="signal", interface=MANAGER.interface, member="JobRemoved", path=ROOT)
        ended: deque[Any] = deque()  # every job's end: ours may come before the answer that names it
        with connection.filter(removed, queue=ended):
            _ask(connection, message_bus.AddMatch(removed))
            _ask(connection, new_method_call(MANAGER, "Subscribe"))
            (job,) = _ask(connection, new_method_call(MANAGER, METHODS[self._action], "ss", (self._unit, "replace")))
            result = ""
            while not result:
                remaining = max(0.0, deadline - time.monotonic())
                try:
                    message = connection.recv_until_filtered(ended, timeout=min(GLANCE, remaining))
                except TimeoutError as exc:
                    if self._stop.is_set():
                        raise Stopping from exc  # the job goes on in systemd; the next start restarts once more
                    if remaining > 0:
                        continue
                    text = f"{self._label()}: the {self._action} is not done after {self._timeout.total_seconds():g} s"
                    raise Transient(text, reason=Reason.CONSUMER_TIMEOUT) from exc
                if message.body[1] == job:
                    result = message.body[3]
        log.debug("systemd_job", consumer=self._name, unit=self._unit, action=self._action, result=result)
        if result != "done":
            reason = Reason.CONSUMER_TIMEOUT if result == "timeout" else Reason.CONSUMER_RESTART_FAILED
            raise Transient(f"{self._label()}: the {self._action} job ended with `{result}`", reason=reason)

    def _named(self, error: DBusErrorResponse) -> RotatorError:
        """A D-Bus error by its name."""
        text = f"{error.data[0] if error.data else ''} ({error.name})".strip()
        if error.name in _FORBIDDEN:
            return self._permanent(text, Reason.CONSUMER_FORBIDDEN)
        if error.name in _MISSING:
            return self._permanent(text, Reason.CONSUMER_MISSING)
        if error.name in _NEVER:
            return self._permanent(text, Reason.CONSUMER_RESTART_FAILED)
        return self._failed(text)

    def _label(self) -> str:
        return f"{self._name} ({self._unit})"

    def _permanent(self, text: str, reason: Reason) -> Permanent:
        return Permanent(f"{self._label()}: {text}", reason=reason)

    def _failed(self, text: str) -> Transient:
        return Transient(f"{self._label()}: {text}", reason=Reason.CONSUMER_RESTART_FAILED)

    def _crashed(self, text: str) -> Transient:
        return Transient(f"{self._label()}: {text}", reason=Reason.CONSUMER_CRASHED)


class _Unit:
    """One unit as systemd knows it, loaded if it must be."""

    def __init__(self, connection: DBusConnection, name: str) -> None:
        self._connection = connection
        (self._path,) = _ask(connection, new_method_call(MANAGER, "LoadUnit", "s", (name,)))
        self._kind = name.rpartition(".")[2]

    def state(self) -> dict[str, Any]:
        """The properties of the unit, and of its service where it is one."""
        found = self._properties("Unit")
        return found | self._properties("Service") if self._kind == "service" else found

    def _properties(self, interface: str) -> dict[str, Any]:
        address = DBusAddress(self._path, bus_name=BUS, interface=f"{BUS}.{interface}")
        (values,) = _ask(self._connection, Properties(address).get_all())
        return {name: value for name, (_signature, value) in values.items()}


class _Connection(DBusConnection):  # type: ignore[misc]  # jeepney has no types
    """A connection on which no wait is without an end; jeepney's own greeting would be."""

    def receive(self, *, timeout: float | None = None) -> Any:
        return super().receive(timeout=LOOK if timeout is None else timeout)


def _open(address: str) -> _Connection:
    sock = prep_socket(get_bus(address), timeout=LOOK)
    try:
        return _Connection(sock)
    except BaseException:
        sock.close()
        raise


def _ask(connection: DBusConnection, message: Any) -> tuple[Any, ...]:
    body: tuple[Any, ...] = unwrap_msg(connection.send_and_get_reply(message, timeout=LOOK))
    return body


def _told(exc: Exception) -> str:
    """A library's error on one line, with its name, since few of their texts say enough without."""
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:_SHOWN]


def _well(state: Mapping[str, Any]) -> bool:
    """Whether a unit is as it should be after a restart: active, or a Type=oneshot whose run went well."""
    if state["ActiveState"] in ("active", "reloading", "refreshing"):
        return True
    # systemd may have forgotten by now when it ran: of one that is over it keeps failures alone
    once = state.get("Type") == "oneshot" and state.get("Result") == "success"
    return once and state["ActiveState"] in ("inactive", "activating")


def _marks(state: Mapping[str, Any]) -> dict[str, str | int]:
    marks: dict[str, str | int] = {"invocation_id": bytes(state["InvocationID"]).hex()}
    if "MainPID" in state:
        marks |= {"main_pid": int(state["MainPID"]), "n_restarts": int(state["NRestarts"])}
    return marks


def _address(scope: str) -> str:
    """Where the manager's bus listens; a user's bus is found without a login session as well."""
    if scope == "system":
        return "SYSTEM"
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime}/bus")
