"""The server's connection to the broker, over paho: it comes back by itself, and waits until it is heard."""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from server.errors import BrokerError
from server.ports.messaging import Incoming

LOG: Final = logging.getLogger("kedge.mqtt")
ACK_SECONDS: Final = 15.0
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, kw_only=True)
class BrokerLogin:
    """How the server proves itself to the broker.

    Attributes:
        username, password: for the embedded broker; "" where a certificate is shown.
        ca, certificate, key: PEM files for `mqtts://`.
    """

    username: str = ""
    password: str = ""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class MqttConnection:
    """Implements `server.ports.messaging.Connection`."""

    def __init__(self, url: str, client_id: str, login: BrokerLogin) -> None:
        """Prepare the connection; nothing is sent yet."""
        parts = urlsplit(url)
        self._host: Final = parts.hostname or ""
        self._port: Final = parts.port or _PORTS[parts.scheme]
        self._receivers: Final[dict[str, Callable[[Incoming], None]]] = {}
        self._on_connected: Final[list[Callable[[], None]]] = []
        self._up: Final = threading.Event()
        self._told_unreachable = False
        self._client: Final = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
        )
        self._set_up(parts.scheme == "mqtts", login)

    def _set_up(self, tls: bool, login: BrokerLogin) -> None:
        client = self._client
        if tls:
            context = ssl.create_default_context(cafile=None if login.ca is None else str(login.ca))
            if login.certificate is not None:
                context.load_cert_chain(login.certificate, login.key)
            client.tls_set_context(context)
        if login.username:
            client.username_pw_set(login.username, login.password)
        client.reconnect_delay_set(1, 30)
        client.max_inflight_messages_set(64)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_connect_fail = self._unreachable

    @property
    def connected(self) -> bool:
        """Whether it is connected now."""
        return self._up.is_set()

    def socket(self) -> socket.socket | None:
        """Return the connection's socket, for whoever measures; None while there is none."""
        found = self._client.socket()
        return found if isinstance(found, socket.socket) else None

    def start(self) -> None:
        """Begin to connect, and keep trying."""
        self._client.connect_async(self._host, self._port, keepalive=30)
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect for good."""
        self._client.disconnect()
        self._client.loop_stop()
        self._up.clear()
        # The client closes its sockets when it is freed, which a cycle through its callbacks would put off.
        self._client.on_connect = self._client.on_disconnect = self._client.on_connect_fail = None
        for topic_filter in list(self._receivers):
            self._client.message_callback_remove(topic_filter)

    def wait_connected(self, seconds: float) -> bool:
        """Wait until it is connected; return whether it is."""
        return self._up.wait(seconds)

    def subscribe(self, topic_filter: str, receive: Callable[[Incoming], None]) -> None:
        """Have `receive` called, from the connection's own thread, for each message; at QoS 1."""
        self._receivers[topic_filter] = receive

        def deliver(_client: Client, _data: Any, message: MQTTMessage) -> None:  # noqa: ANN401 - paho's signature
            receive(Incoming(message.topic, bytes(message.payload)))

        self._client.message_callback_add(topic_filter, deliver)
        if self.connected:
            self._client.subscribe(topic_filter, qos=1)

    def unsubscribe(self, topic_filter: str) -> None:
        """Stop a subscription; a message already under way is dropped."""
        self._receivers.pop(topic_filter, None)
        self._client.message_callback_remove(topic_filter)
        if self.connected:
            self._client.unsubscribe(topic_filter)

    def on_connected(self, call: Callable[[], None]) -> None:
        """Have `call` called after each connect, from the connection's own thread; it must not block."""
        self._on_connected.append(call)

    def publish(self, topic: str, payload: bytes, retain: bool = True, qos: int = 1) -> None:
        """Publish, and return when the broker has acknowledged it (at QoS 0: when it is sent).

        Raises:
            BrokerError: the broker is not connected, or did not acknowledge in time.
        """
        if not self.connected:
            raise BrokerError(f"broker {self._host}:{self._port}: not connected")
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        try:
            info.wait_for_publish(ACK_SECONDS)
        except (RuntimeError, ValueError) as error:
            raise BrokerError(f"broker {self._host}:{self._port}: {error}") from error
        if not info.is_published():
            raise BrokerError(f"broker {self._host}:{self._port}: no acknowledgement in {ACK_SECONDS:g} s")

    def _connected(
        self, client: Client, _data: object, _flags: ConnectFlags, reason: ReasonCode, _p: Properties | None
    ) -> None:
        if reason.is_failure:
            LOG.warning("broker %s:%d refused the connection: %s", self._host, self._port, reason)
            return
        if self._receivers:
            client.subscribe([(topic_filter, 1) for topic_filter in list(self._receivers)])
        self._up.set()
        self._told_unreachable = False
        LOG.info("connected to broker %s:%d", self._host, self._port)
        for call in self._on_connected:
            call()

    def _unreachable(self, _client: Client, _data: object) -> None:
        if not self._told_unreachable:  # once per outage: it goes on trying every few seconds
            self._told_unreachable = True
            LOG.warning("broker %s:%d: %s; trying again", self._host, self._port, sys.exc_info()[1])

    def _disconnected(
        self,
        _client: Client,
        _data: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _p: Properties | None,
    ) -> None:
        self._up.clear()
        if reason.is_failure:
            LOG.warning("lost broker %s:%d: %s", self._host, self._port, reason)
