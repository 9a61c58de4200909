"""A broker inside this process (amqtt, MQTT 3.1.1), which lets in exactly the tokens that a platform has granted.

amqtt 0.12 takes some liberties that would make a rotation look better or worse than at a real broker. They are mended
in `_Broker` by overriding the methods concerned: it deletes a client's session before it has looked at the password,
leaves the old connection of a client id open, and loses messages when somebody subscribes while it asks a plugin
whether a message may be delivered.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

from amqtt.broker import Broker
from amqtt.contexts import Action, BrokerConfig, ListenerConfig, ListenerType
from amqtt.mqtt.disconnect import DisconnectPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.session import Session

from rotator.sandbox.token_sink import EVENTS_PREFIX, HEARTBEAT_PREFIX, TELEMETRY_PREFIX

LOG_TOPIC = "$SYS/broker/log/N"


@dataclass(kw_only=True, slots=True)
class _Login:
    """One connection that was let in."""

    client_id: str
    username: str
    token: str = field(repr=False)
    protocol: BrokerProtocolHandler = field(repr=False)
    ended_by_us: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event, repr=False)


def allowed(username: str, topic: str, action: str) -> bool:
    """Whether a key may do this: its own events and telemetry to read, heartbeats to write (see `TokenSink`)."""
    levels = topic.split("/")
    if action == Action.PUBLISH:
        return levels[0] == HEARTBEAT_PREFIX
    own_events = "/".join(levels[:2]) == EVENTS_PREFIX and levels[3:4] == [username]
    return own_events or levels[0] == TELEMETRY_PREFIX


class _Broker(Broker):  # type: ignore[misc]  # amqtt's annotations are not exported
    def __init__(self, config: BrokerConfig, tokens: dict[str, str], observer: tuple[str, str]) -> None:
        super().__init__(config)
        self._tokens, self._observer = tokens, observer
        self._logins: dict[str, _Login] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._closing = False

    @property
    def port(self) -> int:
        return int(self._servers["default"].instance.sockets[0].getsockname()[1])

    async def tell(self, line: str) -> None:
        """One line of the log, as Mosquitto with `log_dest topic` publishes it."""
        await self.internal_message_broadcast(LOG_TOPIC, f"{int(time.time())}: {line}".encode())

    async def end_logins(self, username: str) -> None:
        """Disconnect whoever came in as `username` with something else than what is valid now."""
        for login in list(self._logins.values()):
            if login.username == username and login.token != self._tokens.get(username):
                # "been" is what Mosquitto 2.0 writes
                await self.tell(f"Client {login.client_id} been disconnected by administrative action.")
                await self._end(login)

    async def shutdown(self) -> None:
        self._closing = True
        await super().shutdown()
        for writer in self._writers:
            writer.transport.abort()

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        self._writers.add(writer)
        try:
            await super().stream_connected(reader, writer, listener_name)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()  # amqtt leaves some of them open

    async def _end(self, login: _Login) -> None:
        login.ended_by_us = True
        await login.protocol.handle_disconnect(None)

    async def _authenticate(self, session: Session, _: ListenerConfig) -> bool:
        name, password = session.username or "", session.password or ""
        if name == self._observer[0]:
            return secrets.compare_digest(password.encode(), self._observer[1].encode())
        token = self._tokens.get(name)
        return token is not None and secrets.compare_digest(password.encode(), token.encode())

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        # No `await` in here: amqtt walks its subscriptions while it asks, and fails when they change meanwhile.
        login = self._logins.get(session.client_id)
        username = login.username if login else session.username
        if username == self._observer[0]:
            return topic.split("/")[0] in ("$SYS", HEARTBEAT_PREFIX)
        return allowed(username or "", topic, action)

    async def _delete_session(self, client_id: str) -> None:
        """Not yet: the password comes first (see `_handle_client_session`)."""

    async def _cleanup_session(self, client_id: str) -> None:
        if client_id not in self._logins or self._closing:
            await super()._cleanup_session(client_id)

    async def _handle_client_session(
        self,
        reader: Any,
        writer: Any,
        client_session: Session,
        handler: BrokerProtocolHandler,
        server: Any,
        listener_name: str,
    ) -> None:
        client_id, username = client_session.client_id or "", client_session.username or ""
        if not await self._authenticate(client_session, self.listeners_config[listener_name]):
            handler.attach(client_session, reader, writer)
            await self.tell("Client <unknown> disconnected, not authorised.")
            await handler.mqtt_connack_authorize(False)
            await writer.close()
            return
        await self._take_over(client_id)
        if client_session.clean_session:
            await super()._delete_session(client_id)
        login = _Login(client_id=client_id, username=username, token=client_session.password or "", protocol=handler)
        self._logins[client_id] = login
        address, port = client_session.remote_address, client_session.remote_port
        flags = f"p2, c{int(bool(client_session.clean_session))}, k{client_session.keep_alive}, u'{username}'"
        await self.tell(f"New client connected from {address}:{port} as {client_id} ({flags}).")
        try:
            await super()._handle_client_session(reader, writer, client_session, handler, server, listener_name)
        finally:
            login.over.set()
            if self._logins.get(client_id) is login:
                del self._logins[client_id]

    async def _take_over(self, client_id: str) -> None:
        old = self._logins.get(client_id)
        if old is not None:
            await self.tell(f"Client {client_id} already connected, closing old connection.")
            await self._end(old)
            await asyncio.wait_for(old.over.wait(), 5)

    async def _client_message_loop(self, client_session: Session, handler: BrokerProtocolHandler) -> None:
        login = self._logins.get(client_session.client_id)
        if login is not None and login.ended_by_us:  # its token died between CONNECT and here
            await handler.handle_disconnect(None)
        await super()._client_message_loop(client_session, handler)

    async def _handle_disconnect(
        self, client_session: Session, handler: BrokerProtocolHandler, disconnect_waiter: asyncio.Future[Any]
    ) -> None:
        login = self._logins.get(client_session.client_id)
        if login is None or not login.ended_by_us:
            how = (
                "disconnected" if isinstance(disconnect_waiter.result(), DisconnectPacket) else "closed its connection"
            )
            await self.tell(f"Client {client_session.client_id} {how}.")
        await super()._handle_disconnect(client_session, handler, disconnect_waiter)


class AmqttBroker:
    """The broker on 127.0.0.1, in a thread of its own; a `TokenSink`.

    The port is chosen at the first start and kept, and so are the granted tokens.

    Attributes:
        observer_username, observer_password: an account that may read `$SYS/#` and `heartbeat/#`.
    """

    def __init__(self) -> None:
        self.host, self.port = "127.0.0.1", 0
        self.observer_username, self.observer_password = "observer", secrets.token_urlsafe(18)
        self._tokens: dict[str, str] = {}
        self._broker: _Broker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Serve; returns when the port is open. May be repeated."""
        if self._loop is None:
            # amqtt warns of every odd client, and the sandbox provokes them
            logging.getLogger("amqtt").setLevel(logging.CRITICAL)
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox-amqtt", daemon=True)
            self._thread.start()
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def stop(self) -> None:
        """Close every connection and the port. May be repeated."""
        loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._close(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()

    def grant(self, username: str, token: str) -> None:
        """See `TokenSink`."""
        self._tokens[username] = token
        self._end_logins(username)

    def revoke(self, username: str) -> None:
        """See `TokenSink`."""
        self._tokens.pop(username, None)
        self._end_logins(username)

    def publish(self, topic: str, payload: str) -> None:
        """Deliver a message to whoever subscribes to its topic."""
        if self._broker is None or self._loop is None:
            raise RuntimeError("the broker is not running")
        sent = self._broker.internal_message_broadcast(topic, payload.encode())
        asyncio.run_coroutine_threadsafe(sent, self._loop).result(5)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _end_logins(self, username: str) -> None:
        if self._broker is not None and self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._broker.end_logins(username), self._loop).result(5)

    async def _open(self) -> None:
        listener = ListenerConfig(type=ListenerType.TCP, bind=f"{self.host}:{self.port}")
        config = BrokerConfig(listeners={"default": listener}, plugins={})
        self._broker = _Broker(config, self._tokens, (self.observer_username, self.observer_password))
        await self._broker.start()
        self.port = self._broker.port

    async def _close(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            await broker.shutdown()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for _ in range(3):  # closed transports say goodbye to the loop in one of its next rounds
            await asyncio.sleep(0)
