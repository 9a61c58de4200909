"""Confirmation: evidence, collected from before a restart on, that a consumer runs on the new secret.

`BrokerLog` reads Mosquitto's own log, which a broker with `log_dest topic` publishes under `$SYS/broker/log/`
(Mosquitto 2.0's `getClient` shows no connections); `BrokerWatch` is one username's view of it. `HeartbeatWatch` listens
to a topic that the consumer speaks on. All times are those of the arrival here.

The lines, read in Mosquitto 2.0.11 and, with the address in brackets, 2.1:

    1795256982: New client connected from 127.0.0.1:38918 as cons (p2, c1, k60, u'u1').
    1795256983: Client cons been disconnected by administrative action.
    1795256984: Client cons [127.0.0.1:38918] disconnected: connection closed by client.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Final

from rotator.model import ProbeTarget, Sighting
from rotator.mqtt import CONNECT_TIMEOUT, Subscription
from rotator.ports import Clock

LOG_FILTER: Final = "$SYS/broker/log/#"
KEPT: Final = 1000  # sightings and losses that one watch keeps, each
KNOWN: Final = 20_000  # client ids whose username is remembered
SHOWN: Final = 100  # characters of a heartbeat in a sighting's detail

# A client id may hold spaces, parentheses and quotes, so `id` takes all it can, up to the last possible end of the
# line: what a client chooses can't pass for the rest. Only a username could, and the broker's administrator chooses it.
# The time before the words is digits and punctuation, in whatever format the broker has, so no client id fits there.
_STAMP: Final = r"(?:[0-9][0-9T:.,+/ Z-]*: )?"
_CONNECTED: Final = re.compile(
    _STAMP + r"New client connected from \S* as (?P<id>.*) \(p\d+, c\d+, k\d+(?:, u'(?P<user>.*)')?\)\.", re.DOTALL
)
_ENDED: Final = re.compile(
    _STAMP + r"Client (?P<id>.*) (?P<how>been disconnected by administrative action"
    r"|(?<! been )disconnected by administrative action|closed its connection"
    r"|disconnected|disconnected, not authorised|disconnected: .*|disconnected due to [a-zA-Z ,]+"
    r"|has exceeded timeout, disconnecting|already connected, closing old connection)\.",
    re.DOTALL,
)
_ADDRESS: Final = re.compile(r" \[[^\[\] ]*\]\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """What one line of the broker's log says of a client.

    `username` is None for a client without one, and for every end of a connection: those lines name none. `ended` is
    empty for a connect, else the broker's words.
    """

    client_id: str
    username: str | None = None
    ended: str = ""


def parse(line: str) -> LogLine | None:
    """A line of Mosquitto's log, or None where it is not about a client's coming or going."""
    line = line.strip()
    if found := _CONNECTED.fullmatch(line):
        return LogLine(client_id=found["id"], username=found["user"])
    if found := _ENDED.fullmatch(line):
        return LogLine(client_id=found["id"], ended=found["how"])
    return None


class Sightings:
    """What one watch has seen, and the condition that tells of more. Thread safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sightings: deque[Sighting] = deque(maxlen=KEPT)
        self._losses: deque[Sighting] = deque(maxlen=KEPT)
        self._news = self._told = 0

    def add(self, sighting: Sighting, *, lost: bool = False) -> None:
        with self._changed:
            (self._losses if lost else self._sightings).append(sighting)
        self.tell()

    def tell(self) -> None:
        with self._changed:
            self._news += 1
            self._changed.notify_all()

    def sightings(self) -> Sequence[Sighting]:
        with self._changed:
            return tuple(self._sightings)

    def losses(self) -> Sequence[Sighting]:
        with self._changed:
            return tuple(self._losses)

    def wait(self, timeout: float) -> None:
        """Return at once when something came since the last `wait`, so that nothing falls between look and wait."""
        with self._changed:
            self._changed.wait_for(lambda: self._news != self._told, timeout)
            self._told = self._news


class _Health:
    """Whether one watch's subscription has held since the watch began. Thread safe."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription, self._lock = subscription, threading.Lock()
        problem, self._breaks = subscription.state()
        self._missed = "not connected when the watch began: may have missed something" if problem else ""

    def ask(self) -> str:
        """Why something may have been missed: while the connection is away, and once more after it came back."""
        with self._lock:
            problem, breaks = self._subscription.state()
            if breaks != self._breaks:
                self._breaks = breaks
                self._missed = "the connection was lost in between: may have missed something"
            if problem:
                return problem
            missed, self._missed = self._missed, ""
            return missed


class BrokerLog:
    """One broker's log, shared by all watches on it, connected from `start` to `close`.

    It learns from the connects that it sees which client id belongs to which username, because the lines about lost
    connections name none: start it before the consumers, and keep it. It goes on trying while it is refused or the
    broker is down.

    Args:
        target: how to connect: host, port, TLS, and the observer's own account, which must be allowed to read
            `$SYS/broker/log/#`. Its `subscribe` and `client_id` are not used.
        clock: stamps the lines as they arrive.
    """

    def __init__(self, target: ProbeTarget, *, clock: Clock) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._known: OrderedDict[str, str | None] = OrderedDict()
        self._watches: list[BrokerWatch] = []
        self._subscription = Subscription(target, LOG_FILTER, on_message=self._arrived, on_change=self._changed)

    def start(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect, and wait until the log is heard, the first try failed, or `timeout` seconds are over."""
        self._subscription.start(timeout)

    def watch(
        self,
        *,
        username: str,
        client_id: str | None = None,
        ignore_prefixes: Sequence[str] = (),
        timeout: float = CONNECT_TIMEOUT,
    ) -> BrokerWatch:
        """Begin to watch one username; waits as `start` does where the log isn't heard yet.

        Args:
            username: the watched one, as the broker logs it.
            client_id: a pattern (`fnmatch`, case matters) of the consumer's client ids; None: any.
            ignore_prefixes: client ids that begin so are our own and prove nothing.
        """
        self._subscription.settle(timeout)
        watch = BrokerWatch(self, username=username, client_id=client_id, ignore_prefixes=ignore_prefixes)
        with self._lock:
            self._watches.append(watch)
        return watch

    def subscription(self) -> Subscription:
        """The connection, for the watches' health."""
        return self._subscription

    def problem(self) -> str:
        """Why the log is not heard now; empty while it is."""
        return self._subscription.state()[0]

    def forget(self, watch: BrokerWatch) -> None:
        """Stop telling this watch."""
        with self._lock:
            self._watches = [other for other in self._watches if other is not watch]

    def close(self) -> None:
        """Leave the broker, and end the thread; watches that are still open say so in `healthy`."""
        self._subscription.close()

    def _arrived(self, _topic: str, payload: bytes, _retained: bool) -> None:
        at = self._clock.now()  # first of all: gaps are measured by it
        line = parse(payload.decode("utf-8", "replace"))
        if line is None:
            return
        with self._lock:
            line, known = self._resolve(line)
            watches = list(self._watches)
        for watch in watches:
            watch.offer(at, line, known=known)

    def _resolve(self, line: LogLine) -> tuple[LogLine, bool]:
        """The line with its username, and whether that is known."""
        if not line.ended:
            self._known[line.client_id] = line.username
            self._known.move_to_end(line.client_id)
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
            return line, True
        # 2.1 puts the address behind the client id, and 2.0 lets a client id end as such an address does.
        bare = _ADDRESS.sub("", line.client_id)
        client_id = line.client_id if line.client_id in self._known else bare
        known = client_id in self._known
        return LogLine(client_id=client_id, username=self._known.pop(client_id, None), ended=line.ended), known

    def _changed(self) -> None:
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.tell()


class BrokerLogs:
    """One `BrokerLog` for each host, port and observer, however many keys share them."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._logs: dict[tuple[str, int, str], BrokerLog] = {}

    def log(self, target: ProbeTarget) -> BrokerLog:
        """The log at this target, started without waiting where it is new."""
        with self._lock:
            found = self._logs.get((target.host, target.port, target.username))
            if found is None:
                found = self._logs[target.host, target.port, target.username] = BrokerLog(target, clock=self._clock)
                found.start(timeout=0)
            return found

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            logs, self._logs = list(self._logs.values()), {}
        for log in logs:
            log.close()


class BrokerWatch:
    """One username's connects and losses in a `BrokerLog` (ports.Watch). Open it by `BrokerLog.watch`.

    `sightings` are connects that the broker granted. `losses` are all ends of their connections, in the broker's words:
    kicks, and leaving by oneself. A client that connected before the log was heard can be told only by its client id,
    so its loss is seen only where a `client_id` pattern is set.
    """

    def __init__(
        self, log: BrokerLog, *, username: str, client_id: str | None = None, ignore_prefixes: Sequence[str] = ()
    ) -> None:
        self._log, self._username, self._pattern = log, username, client_id
        self._ignored = tuple(ignore_prefixes)
        self._evidence = Sightings()
        self._health = _Health(log.subscription())

    def offer(self, at: datetime, line: LogLine, *, known: bool) -> None:
        """Take what concerns this watch. `known`: the line's username is certain."""
        if line.client_id.startswith(self._ignored):
            return
        if self._pattern is not None and not fnmatchcase(line.client_id, self._pattern):
            return
        if (line.username == self._username) if known else (self._pattern is not None):
            sighting = Sighting(at=at, client_id=line.client_id, detail=line.ended or "connected")
            self._evidence.add(sighting, lost=bool(line.ended))

    def tell(self) -> None:
        """The log was lost, or is heard again."""
        self._evidence.tell()

    def sightings(self) -> Sequence[Sighting]:
        """All connects so far, oldest first."""
        return self._evidence.sightings()

    def losses(self) -> Sequence[Sighting]:
        """All ends of connections so far, oldest first."""
        return self._evidence.losses()

    def wait(self, timeout: float) -> None:
        """Return when something came since the last `wait`, or after `timeout` seconds."""
        self._evidence.wait(timeout)

    def healthy(self) -> str:
        """Empty while everything is seen; a break is told until the connection is back, and then once more."""
        return self._health.ask()

    def close(self) -> None:
        """Stop watching; the log stays."""
        self._log.forget(self)


class HeartbeatWatch:
    """What a consumer publishes on a topic of its own, as evidence that it runs (ports.Watch).

    A heartbeat says that the consumer is connected, not with which secret: it is proof *in place*, where the old one is
    dead, and after the restart. Retained messages were there before and are no sightings.

    Args:
        target: how to connect, with an account that may read `topic`.
        topic: an MQTT filter.
        clock: stamps the messages as they arrive.
    """

    def __init__(self, target: ProbeTarget, *, topic: str, clock: Clock) -> None:
        self._clock = clock
        self._evidence = Sightings()
        self._subscription = Subscription(target, topic, on_message=self._arrived, on_change=self._evidence.tell)
        self._health: _Health | None = None

    def start(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect, and wait until the topic is heard, the first try failed, or `timeout` seconds are over."""
        self._subscription.start(timeout)
        self._health = _Health(self._subscription)

    def sightings(self) -> Sequence[Sighting]:
        """All heartbeats so far, oldest first, the first characters of each in `detail`."""
        return self._evidence.sightings()

    def losses(self) -> Sequence[Sighting]:
        """Nothing: a heartbeat that stops is not a moment."""
        return ()

    def wait(self, timeout: float) -> None:
        """Return when something came since the last `wait`, or after `timeout` seconds."""
        self._evidence.wait(timeout)

    def healthy(self) -> str:
        """Empty while everything is seen; a break is told until the connection is back, and then once more."""
        return self._health.ask() if self._health else "not started"

    def close(self) -> None:
        """Leave the broker, and end the thread."""
        self._subscription.close()

    def _arrived(self, topic: str, payload: bytes, retained: bool) -> None:
        at = self._clock.now()
        if not retained:
            shown = "".join(char if char.isprintable() else "?" for char in payload.decode("utf-8", "replace"))
            self._evidence.add(Sighting(at=at, detail=f"{topic}: {shown[:SHOWN]}"))
