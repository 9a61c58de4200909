"""The one piece that makes and connects MQTT clients (paho-mqtt 2.2).

`Link` is one connection, driven by the thread that holds it: paho starts none of its own, so a probe leaves none
behind, and waits by `selectors` instead of paho's `select`, which fails from 1024 open files on. `Subscription` keeps
one link subscribed from a thread of its own, for the watches.

MQTT 3.1.1 is spoken, and not 5, although 5 has finer codes: brokers without MQTT 5 (RabbitMQ before 3.13) refuse it,
and what has to be told apart is told apart by 3.1.1 as well. Its return codes 4 and 5 are the two that speak about the
credential; paho shows them as 134 and 135, the codes of MQTT 5 (platforms.md, "MQTT and paho").
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import paho.mqtt.client as paho
import structlog
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MQTTException
from paho.mqtt.reasoncodes import ReasonCode

from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import ProbeTarget
from rotator.reasons import Reason

CONNECT_TIMEOUT: Final = 5.0  # seconds, for each address that a name resolves to, and again for the TLS handshake
LONGEST_PACKET: Final = 10 * 1024 * 1024  # bytes
BAD_CREDENTIAL: Final = frozenset({0x86, 0x87})  # v3.1.1: 4 and 5
FAILURE: Final = 0x80  # a SUBACK code from here on is a refusal
TURN: Final = 0.5  # seconds that one turn waits at most, so that paho's keep-alive is looked after

Message = Callable[[str, bytes, bool], None]  # topic, payload, retained

log = structlog.get_logger(__name__)


def quick(sock: object) -> None:
    """Turn off Nagle's delay and, until the kernel turns it on again, the delayed acknowledgement.

    A broker that leaves Nagle on holds its next packet back until ours acknowledges the last: 43 ms for every TLS
    connection, behind the session tickets (measured.md), and as much between two log lines for a watch.
    """
    if isinstance(sock, socket.socket):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError:  # not TCP, or already closed by the broker, which the next read tells properly
            return


class _ClosingSSLSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails: paho would leave it to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


class _Client(paho.Client):
    """Remembers the socket under a web socket, which paho leaves to the garbage collector when its handshake fails, and
    reads no packet that is longer than `LONGEST_PACKET`: paho would take up to 256 MB.

    The methods are paho's own; without them only that would come back, and tests/integration/test_verify.py and
    tests/unit/test_mqtt.py tell.
    """

    opened: socket.socket | None = None

    def _create_socket_connection(self) -> socket.socket:
        self.opened = super()._create_socket_connection()
        return self.opened

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        wrapped = super()._ssl_wrap_socket(tcp_sock)
        self.opened = wrapped
        return wrapped

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > LONGEST_PACKET:  # paho asks for all of a packet, as its head says how long it is
            raise ConnectionAbortedError(f"a packet of {bufsize} bytes")
        return super()._sock_recv(bufsize)


@functools.lru_cache(maxsize=32)
def _context(ca_file: str | None, _stamp: tuple[int, int] | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.sslsocket_class = _ClosingSSLSocket
    return context


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """The TLS context for this CA file (PEM; None: the system's authorities), made once and made anew when it changes.

    Raises: OSError, which ssl.SSLError is, where the file can't be read or holds no certificate.
    """
    if ca_file is None:
        return _context(None, None)
    status = os.stat(ca_file)
    return _context(ca_file, (status.st_mtime_ns, status.st_size))


@contextlib.contextmanager
def mapped(what: str) -> Iterator[None]:
    """Make what paho, the network and TLS raise inside the block ours: Transient BROKER_UNREACHABLE."""
    try:
        yield
    except UnicodeEncodeError:  # its text would show a character of the secret
        raise unreachable(f"{what}: a value can't be sent as UTF-8") from None
    except struct.error as exc:
        raise unreachable(f"{what}: a value is longer than MQTT's 65535 bytes, or an answer is cut short") from exc
    # ValueError: a host or a port that can't be one; LookupError and MQTTException: an answer that is no MQTT
    except (OSError, ValueError, LookupError, MQTTException) as exc:
        raise unreachable(f"{what}: {one_line(exc)}") from exc


def words(code: ReasonCode) -> str:
    """A CONNACK's or SUBACK's code in the broker's words: `Not authorized (code 135)`."""
    return f"{code.getName()} (code {code.value})"


class Link:
    """One connection to a broker. Not thread safe but for `cancel`.

    Args:
        target: where and as whom. Its `subscribe` is not read here.
        client_id: the client id; never empty.
        keepalive: seconds.
        on_message: called in `turn` with topic, payload and whether it was retained.
        version_5: speak MQTT 5, where the broker is known to.
    """

    def __init__(
        self,
        target: ProbeTarget,
        *,
        client_id: str,
        keepalive: int = 30,
        on_message: Message | None = None,
        version_5: bool = False,
    ) -> None:
        self.connack: ReasonCode | None = None
        self.suback: ReasonCode | None = None
        self._cancelled = False
        self._target, self._keepalive, self._on_message = target, keepalive, on_message
        self._where = f"{target.host}:{target.port}"
        with mapped(self._where):
            self._client = _Client(
                CallbackAPIVersion.VERSION2,
                client_id=client_id,
                clean_session=None if version_5 else True,  # 5 has no such flag: its session ends with the connection
                protocol=MQTTProtocolVersion.MQTTv5 if version_5 else MQTTProtocolVersion.MQTTv311,
                transport="websockets" if target.transport == "websockets" else "tcp",
                reconnect_on_failure=False,
            )
        self._client.on_connect = self._connected
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._received
        with mapped(self._where):  # no file descriptor left
            self._wake_read, self._wake_write = socket.socketpair()

    def open(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect the socket and send CONNECT; the answer comes with `turn`, in `connack`.

        Raises: Transient (BROKER_UNREACHABLE) for whatever the network, the name or TLS do.
        """
        target = self._target
        with mapped(self._where):
            if target.tls:
                self._client.tls_set_context(tls_context(target.ca_file))
            if target.username or target.password:
                self._client.username_pw_set(target.username, target.password.reveal())
            self._client.connect_timeout = max(0.001, timeout)
            self._client.connect(target.host, target.port, keepalive=self._keepalive)
            quick(self._client.socket())  # not before: sending CONNECT turns the delayed acknowledgement on again

    def subscribe(self, topic_filter: str) -> None:
        """Send SUBSCRIBE with QoS 0; the answer comes with `turn`, in `suback`.

        Raises:
            Permanent: SUBSCRIPTION_REFUSED, where no broker could take the filter.
            Transient: BROKER_UNREACHABLE, when the connection is gone.
        """
        self.suback = None
        with mapped(self._where):
            try:
                self._client.subscribe(topic_filter)
            except OSError:  # a certificate's is a ValueError as well, and says nothing of the filter
                raise
            except ValueError as exc:
                raise Permanent(f"not an MQTT filter: {one_line(exc)}", reason=Reason.SUBSCRIPTION_REFUSED) from exc
            quick(self._client.socket())

    def turn(self, timeout: float) -> None:
        """Wait for up to `timeout` seconds for something to happen, and do what it asks for.

        Raises: Transient (BROKER_UNREACHABLE) when the connection is gone.
        """
        sock: Any = self._client.socket()  # paho names no type that covers a socket, a TLS socket and its web socket
        if sock is None or self._cancelled:
            raise unreachable("the connection is closed")
        with mapped(self._where):
            pending = sock.pending() if hasattr(sock, "pending") else 0  # decrypted bytes, which no selector sees
            happened = self._wait(sock, 0 if pending else max(0.0, timeout))
            result = MQTTErrorCode.MQTT_ERR_SUCCESS
            if pending or happened & selectors.EVENT_READ:
                result = self._client.loop_read()
            if result == MQTTErrorCode.MQTT_ERR_SUCCESS and happened & selectors.EVENT_WRITE:
                result = self._client.loop_write()
            if result == MQTTErrorCode.MQTT_ERR_SUCCESS:
                result = self._client.loop_misc()
        if result != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise unreachable(paho.error_string(result).rstrip("."))

    def _wait(self, sock: Any, timeout: float) -> int:
        """What the socket is ready for after at most `timeout` seconds: a mask of selectors.EVENT_*."""
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._client.want_write() else 0))
            selector.register(self._wake_read, selectors.EVENT_READ)
            ready = {key.fileobj: mask for key, mask in selector.select(timeout)}
        return ready.get(sock, 0)

    def cancel(self) -> None:
        """Make a `turn` in another thread, and all later ones, raise at once."""
        self._cancelled = True
        try:
            self._wake_write.send(b"x")
        except OSError:  # closed in the meantime
            return

    def close(self) -> None:
        """Say DISCONNECT where a connection stands, and give everything back. Never raises, may be repeated."""
        sock = self._client.socket()
        if sock is not None:
            with contextlib.suppress(Transient), mapped(self._where):
                self._client.disconnect()  # closes the socket once the packet is out
            if self._client.socket() is not None:
                sock.close()
        if self._client.opened is not None:
            self._client.opened.close()
        self._wake_read.close()
        self._wake_write.close()

    def _connected(self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        self.connack = code

    def _subscribed(self, _client: Any, _data: Any, _mid: int, codes: list[ReasonCode], _properties: Any) -> None:
        if codes:  # an empty SUBACK is a broken one: it grants and refuses nothing
            self.suback = codes[0]

    def _received(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # no MQTT topic, so no news of anybody's; the connection is worth more
            return
        if self._on_message is not None:
            self._on_message(topic, bytes(message.payload), message.retain)
        quick(client.socket())


def unreachable(message: str) -> Transient:
    """A broker that refused nothing, but could not be asked."""
    return Transient(message, reason=Reason.BROKER_UNREACHABLE)


def one_line(error: BaseException) -> str:
    """An error's own words on one line, or its name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def session(link: Link, topic_filter: str | None, deadline: float) -> None:
    """Open a link, read its CONNACK, subscribe, read the SUBACK.

    Args:
        deadline: of `time.monotonic()`.

    Raises:
        Permanent: SECRET_REFUSED or SUBSCRIPTION_REFUSED, by the broker's own code.
        Transient: BROKER_UNREACHABLE for everything else.
    """
    link.open(min(CONNECT_TIMEOUT, deadline - time.monotonic()))
    while link.connack is None:
        _turn_before(link, deadline, "the broker did not answer CONNECT")
    if link.connack.value in BAD_CREDENTIAL:
        raise Permanent(words(link.connack), reason=Reason.SECRET_REFUSED)
    if link.connack.is_failure:
        raise unreachable(words(link.connack))
    if topic_filter is None:
        return
    link.subscribe(topic_filter)
    while link.suback is None:
        _turn_before(link, deadline, "the broker did not answer SUBSCRIBE")
    if link.suback.value >= FAILURE:
        raise Permanent(f"{topic_filter}: {words(link.suback)}", reason=Reason.SUBSCRIPTION_REFUSED)


def _turn_before(link: Link, deadline: float, complaint: str) -> None:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise unreachable(f"{complaint} in time")
    try:
        link.turn(min(remaining, TURN))
    except Transient as exc:
        # A refusal closes the connection in the same turn that brings it: what on_connect saw decides.
        if link.connack is None or (not link.connack.is_failure and link.suback is None):
            raise unreachable(f"{complaint}: {exc.message}") from exc


class Subscription:
    """One filter, kept subscribed by a thread of its own until it is closed; it connects again whenever it must.

    Args:
        target: where and as whom.
        topic_filter: what to subscribe to.
        on_message: called in the thread, with topic, payload and whether it was retained; must not raise.
        on_change: called in the thread after the subscription was made or lost.
    """

    RETRY: Final = (0.2, 5.0)  # seconds: the first delay, and the one at which doubling ends

    def __init__(
        self,
        target: ProbeTarget,
        topic_filter: str,
        *,
        on_message: Message,
        on_change: Callable[[], None],
    ) -> None:
        self._target, self._filter = target, topic_filter
        self._on_message, self._on_change = on_message, on_change
        self._changed = threading.Condition()
        self._link: Link | None = None
        self._problem = "not connected yet"
        self._tried = self._closed = False
        self._breaks = 0
        self._client_id = f"rotator-watch-{secrets.token_hex(4)}"
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"rotator-watch {target.host}")

    def start(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Start, and wait until the first SUBACK is in, the first try failed, or `timeout` seconds are over."""
        self._thread.start()
        self.settle(timeout)

    def settle(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Wait as `start` does."""
        with self._changed:
            self._changed.wait_for(lambda: self._tried or self._closed, timeout)

    def state(self) -> tuple[str, int]:
        """Why nothing is heard now ('' while subscribed), and how often a subscription was lost so far."""
        with self._changed:
            return self._problem, self._breaks

    def close(self) -> None:
        """Leave, and end the thread, which only a connect to a silent host holds up, for 5 s. May be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._link is not None:
                self._link.cancel()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def _run(self) -> None:
        delay = self.RETRY[0]
        while not self._closed:
            try:
                self._hold()
            except RotatorError as exc:
                if self._lost(f"{exc.reason.value}: {exc.message}"):
                    delay = self.RETRY[0]
            except Exception:  # a fault of our own ends the thread; a watch that no longer hears must not seem to
                self._lost(Reason.UNFORESEEN.value)
                raise
            with self._changed:
                self._changed.wait_for(lambda: self._closed, delay)
            delay = min(2 * delay, self.RETRY[1])
        self._lost("closed")

    def _hold(self) -> None:
        """Connect, subscribe, and listen until the connection is lost or the subscription closed."""
        link = Link(self._target, client_id=self._client_id, keepalive=15, on_message=self._on_message)
        try:
            with self._changed:
                self._link = link
                if self._closed:
                    return
            session(link, self._filter, time.monotonic() + 2 * CONNECT_TIMEOUT)
            with self._changed:
                self._problem, self._tried = "", True
                self._changed.notify_all()
            self._on_change()
            while True:  # until `close` cancels the link, or the broker ends it
                link.turn(TURN)
        finally:
            with self._changed:
                self._link = None
            link.close()

    def _lost(self, problem: str) -> bool:
        """Note why nothing is heard any more; returns whether something was heard before."""
        with self._changed:
            lost, first = not self._problem, not self._tried
            self._problem, self._tried = problem, True
            self._breaks += lost
            self._changed.notify_all()
        if (lost or first) and not self._closed:
            broker = f"{self._target.host}:{self._target.port}"
            log.warning("watch_not_connected", broker=broker, filter=self._filter, problem=problem)
        self._on_change()
        return lost
