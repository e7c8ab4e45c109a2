"""The broker inside the server: amqtt on a thread and loop of its own, with Kedge's rules of who may do what.

It speaks MQTT 3.1.1 and keeps nothing on disk: the server publishes again what was retained. Every connection
is authenticated; a device acts under its own id and on its own topics only, which also holds for its will.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from amqtt.adapters import ReaderAdapter, StreamReaderAdapter, StreamWriterAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, BrokerConfig, ListenerConfig
from amqtt.errors import AMQTTError
from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.constants import QOS_2
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.publish import PublishPacket
from amqtt.session import Session

from fleet.errors import WireError
from fleet.ids import DeviceId
from fleet.wire import topics
from fleet.wire.codec import LIMIT
from server.errors import BrokerError, SettingsError

LOG: Final = logging.getLogger("kedge.broker")
#: Answers whether this user name and password are a device's.
Authenticate = Callable[[str, str], bool]
_BAD_CREDENTIALS: Final = 5
#: The largest message, and what stands around it.
_PACKET_LIMIT: Final = LIMIT + 64 * 1024
#: Messages of QoS 2 that one connection may have begun and not finished; Kedge's programs begin none.
UNFINISHED: Final = 4
#: MQTT 3.1.1, 3.1.4: a server should close a connection that sends no CONNECT within a reasonable time.
PATIENCE_SECONDS: Final = 15.0


class _Reader(StreamReaderAdapter):
    """Takes no memory for packets that no device sends: MQTT allows 256 MiB (3.1.1, section 2.2.3)."""

    async def read(self, n: int = -1) -> bytes:
        if n > _PACKET_LIMIT:
            raise AMQTTError(f"packet: expected at most {_PACKET_LIMIT} bytes, got {n}")
        return await super().read(n)


class _Handler(BrokerProtocolHandler):
    """Hangs up on who begins messages and finishes none: amqtt keeps each until then (3.1.1, 4.3.3)."""

    async def handle_publish(self, publish_packet: PublishPacket) -> None:
        begun = self.session.inflight_in if self.session is not None else {}
        again = publish_packet.packet_id in begun
        if publish_packet.qos == QOS_2 and not again and len(begun) >= UNFINISHED:
            LOG.warning("hung up on %s: %d messages begun and not finished", self._name(), len(begun))
            await self.handle_connection_closed()
            return
        await super().handle_publish(publish_packet)

    def _name(self) -> str:
        return repr(self.session.username) if self.session is not None else "somebody"


class _Broker(Broker):
    """amqtt with our rules inside, instead of plugins.

    amqtt hands rules to plugins through a task each, which lets other tasks change the table of subscriptions
    while it is being walked; and it takes over an existing session before it knows who is asking. Deciding
    here, without waiting, before anything is touched, avoids both.
    """

    def __init__(
        self, config: BrokerConfig, server: tuple[str, str], authenticate: Authenticate, patience: float
    ) -> None:
        super().__init__(config)
        self._patience: Final = patience
        self._server_login: Final = server
        self._check_device: Final = authenticate

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        try:
            await self._client_connected(listener_name, _Reader(reader), StreamWriterAdapter(writer))
        finally:
            writer.close()  # amqtt leaves it open when the other side is gone already

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        try:
            handler, session = await asyncio.wait_for(
                _Handler.init_from_connect(reader, writer, self.plugins_manager), self._patience
            )
        except asyncio.TimeoutError:
            await writer.close()
            raise AMQTTError("no CONNECT in time") from None
        if not await asyncio.to_thread(self._admits, session):
            LOG.warning("refused %s:%d as %r", remote_address, remote_port, session.username)
            await _refuse(writer)
            raise AMQTTError("refused")
        # Sessions outlive no connection: devices and server subscribe again and reconcile on every connect.
        old, old_handler = self._sessions.get(str(session.client_id), (None, None))
        if old is not None and old_handler is not None and old.transitions.is_connected():
            old.will_flag = False  # the device is not gone: it is here
            await old_handler.handle_connection_closed()
        await self._delete_session(str(session.client_id))
        session.clean_session = True
        session.parent = 0
        return handler, session

    def _admits(self, session: Session) -> bool:
        name, password = session.username or "", session.password or ""
        if (name, password) == self._server_login:
            return True
        # The client id decides which session is taken over, so it must be the device's own.
        if not name or session.client_id != name or not self._check_device(name, password):
            return False
        return not session.will_flag or _may(name, str(session.will_topic), publish=True)

    async def kick(self, name: str) -> None:
        """End the connection of a user, if it has one."""
        session, handler = self._sessions.get(name, (None, None))
        if session is not None and handler is not None and session.transitions.is_connected():
            LOG.warning("threw out %s", name)
            await handler.handle_connection_closed()

    async def _authenticate(self, session: Session, _: ListenerConfig) -> bool:
        del session  # admitted before it was given a session
        return True

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        if session.username == self._server_login[0] or action is Action.RECEIVE:
            return True
        return _may(session.username or "", topic, publish=action is Action.PUBLISH)


def _may(name: str, topic: str, *, publish: bool) -> bool:
    try:
        device = DeviceId(name)
    except WireError:
        return False
    return topics.may_publish(device, topic) if publish else topics.may_subscribe(device, topic)


async def _refuse(writer: WriterAdapter) -> None:
    await ConnackPacket.build(0, _BAD_CREDENTIALS).to_stream(writer)
    await writer.close()


class EmbeddedBroker:
    """Runs the broker on a thread of its own."""

    def __init__(
        self,
        host: str,
        port: int,
        server: tuple[str, str],
        authenticate: Authenticate,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Prepare it.

        Args:
            host: where it listens.
            port: a free one, chosen by the caller.
            server: the server's own user name and password; no device id has its form.
            authenticate: checks a device's; called on a thread.
            patience: seconds in which a connection must have said who it is.
        """
        self._patience: Final = patience
        self._config: Final = BrokerConfig(
            listeners={"default": ListenerConfig(bind=f"{host}:{port}")}, plugins={}
        )
        self._server: Final = server
        self._authenticate: Final = authenticate
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._started: Final = threading.Event()
        self._stopping: asyncio.Event | None = None
        self._broker: _Broker | None = None

    def start(self) -> None:
        """Start it and return when it listens.

        Raises:
            SettingsError: it cannot listen there.
        """
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise SettingsError(f"embedded broker: {self._error}") from self._error

    def stop(self) -> None:
        """Stop it and return when its thread has ended."""
        if self._loop is not None and self._stopping is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            self._thread.join(15)

    def kick(self, name: str) -> None:
        """End the connection of a user, if it has one; return when it has ended.

        Raises:
            BrokerError: the broker does not run, or does not answer.
        """
        loop, broker = self._loop, self._broker
        if loop is None or broker is None or not loop.is_running():
            raise BrokerError("embedded broker: not running")
        try:
            asyncio.run_coroutine_threadsafe(broker.kick(name), loop).result(PATIENCE_SECONDS)
        except concurrent.futures.TimeoutError as error:
            raise BrokerError(f"embedded broker: {name} is not thrown out yet") from error

    def check(self) -> str:
        """Return "" when it runs, or what is wrong."""
        return "" if self._thread is not None and self._thread.is_alive() else "not running"

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._error = error
            LOG.error("embedded broker stopped", exc_info=error)  # noqa: TRY400 - same record, explicit error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(_log_loop_error)
        broker = _Broker(self._config, self._server, self._authenticate, self._patience)
        await broker.start()
        self._broker = broker
        self._started.set()
        await self._stopping.wait()
        await broker.shutdown()
        # Connections that are ending just now close their sockets themselves, if they are let.
        ending = asyncio.all_tasks() - {asyncio.current_task()}
        if ending:
            await asyncio.wait(ending, timeout=2)


def _log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    LOG.warning("broker: %s", context.get("exception") or context.get("message"))
