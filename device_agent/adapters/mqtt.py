"""The link to the broker: paho-mqtt, speaking MQTT 3.1.1."""

from __future__ import annotations

import logging
import random
import ssl
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from cryptography import x509
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from device_agent.errors import StateError, UnreachableError
from device_agent.ports import OnMessage
from fleet.wire import codec
from fleet.wire.enrolment import BrokerAccess

_LOG: Final = logging.getLogger(__name__)
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_KEEPALIVE: Final = 30
#: The largest message, and what stands around it.
_PACKET_LIMIT: Final = codec.LIMIT + 64 * 1024
#: The bit of a PUBLISH's first byte that no QoS below 2 sets (3.1.1, section 3.3.1.2).
_QOS_2: Final = 0x04
#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME.
_NO_CHECK_TIME: Final = 0x200000
#: Seconds between attempts to connect: random bounds, so that a fleet does not come back at once.
_FIRST_PAUSE: Final = (0.2, 1.0)
_LONGEST_PAUSE: Final = (4.0, 10.0)


class Credentials(NamedTuple):
    """The files that `mqtts` shows and checks."""

    key: Path
    certificate: Path
    ca: Path


class Message(NamedTuple):
    """A retained message: the last will."""

    topic: str
    payload: bytes


class _Client(paho.Client):
    """Hangs up on packets that no honest broker sends: MQTT allows 256 MiB (3.1.1, section 2.2.3)."""

    def _sock_recv(self, bufsize: int) -> bytes:
        """Receive; paho asks for all that is left of a packet, before it has taken any memory for it."""
        if bufsize > _PACKET_LIMIT:
            _LOG.warning("the broker sends a packet of %d bytes; hanging up", bufsize)
            raise ConnectionError(f"packet: expected at most {_PACKET_LIMIT} bytes, got {bufsize}")
        return super()._sock_recv(bufsize)

    def show(self, context: ssl.SSLContext) -> None:
        """Use another context from the next connection on; paho takes one only once."""
        self._ssl_context = context

    def close(self) -> None:
        """Close every socket: paho leaves its own, and one just being made, to garbage collection."""
        self._reset_sockets()

    def forget_outgoing(self) -> None:
        """Forget what the broker has not acknowledged, of which paho would keep everything for ever."""
        with self._out_message_mutex:
            forgotten = list(self._out_messages.values())
            self._out_messages.clear()
        for message in forgotten:  # who waits for one need not wait any longer
            message.info.rc = MQTTErrorCode.MQTT_ERR_CONN_LOST
            message.info._set_as_published()  # noqa: SLF001 - as paho does itself for what it gives up

    def _handle_publish(self) -> MQTTErrorCode:
        """Take a message in; not at QoS 2: nobody asks for it, and paho would keep 65,535 unfinished ones."""
        if self._in_packet["command"] & _QOS_2:
            _LOG.warning("the broker sends at a QoS that nobody has asked for; hanging up")
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        return super()._handle_publish()


class MqttLink:
    """One connection, mended by itself; callbacks run on its thread."""

    def __init__(
        self,
        client_id: str,
        access: BrokerAccess,
        *,
        credentials: Credentials,
        will: Message | None,
        on_change: Callable[[bool], None],
    ) -> None:
        """Prepare the connection.

        Args:
            client_id: the device's id.
            access: where the broker is, and what it asks for.
            credentials: used with `mqtts`.
            will: published, retained, by the broker when the connection is lost; None for nothing.
            on_change: told of every connect (after the subscriptions are sent) and loss.

        Raises:
            StateError: the broker's address or the credentials are unusable.
        """
        self._on_change: Final = on_change
        self._lock: Final = threading.Lock()
        self._handlers: Final[dict[str, OnMessage]] = {}
        self.connected = False
        self._client: Final = _Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv311, clean_session=True
        )
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._client.max_inflight_messages_set(64)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._lost
        self._client.on_message = self._received
        if access.username:
            self._client.username_pw_set(access.username, access.password)
        self._credentials: Final = credentials
        self._tls: ssl.SSLContext | None = None
        self._host, self._port = self._address(access.url)
        self._shuffle()

    def certificate_renewed(self) -> None:
        """From the next connection on, show the certificate and believe the authorities that are on disk now.

        Raises:
            StateError: they are unusable.
        """
        if self._tls is not None:
            # A context can only learn to believe more: an authority that was dropped needs a new one.
            self._tls = self._context()
            self._client.show(self._tls)

    def start(self) -> None:
        """Connect, and stay connected, on a thread of its own."""
        self._client.connect_async(self._host, self._port, keepalive=_KEEPALIVE)
        self._client.loop_start()

    def stop(self, last: Message | None = None) -> None:
        """Publish a last retained message where that is possible, and disconnect."""
        if last is not None and self.connected:
            info = self._client.publish(last.topic, last.payload, qos=1, retain=True)
            try:
                info.wait_for_publish(2.0)
            except (RuntimeError, ValueError):
                _LOG.info("disconnected before the last message was out; the will stands for it")
        self._client.disconnect()
        self._client.loop_stop()
        self._client.close()

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        """Send a message, or queue it when there is no connection."""
        self._client.publish(topic, payload, qos=qos, retain=retain)

    def put(self, topic: str, payload: bytes, seconds: float) -> None:
        """Have the broker retain a message, and return when it has acknowledged that.

        Raises:
            UnreachableError: it has not, in so many seconds.
        """
        if not self.connected:
            raise UnreachableError(f"{self._host}:{self._port}: not connected")
        info = self._client.publish(topic, payload, qos=1, retain=True)
        try:
            info.wait_for_publish(seconds)
        except (RuntimeError, ValueError) as error:
            raise UnreachableError(f"{self._host}:{self._port}: {error}") from error
        if not info.is_published():
            raise UnreachableError(f"{self._host}:{self._port}: {topic} is not acknowledged")

    def subscribe(self, topics: Sequence[str], on_message: OnMessage) -> None:
        """Subscribe at QoS 1 to exact topics, or with `+`; return without waiting."""
        with self._lock:
            self._handlers.update(dict.fromkeys(topics, on_message))
        if topics and self.connected:
            self._client.subscribe([(topic, 1) for topic in topics])

    def unsubscribe(self, topics: Sequence[str]) -> None:
        """Stop the subscriptions."""
        with self._lock:
            for topic in topics:
                self._handlers.pop(topic, None)
        if topics and self.connected:
            self._client.unsubscribe(list(topics))

    # --- paho's callbacks, on its thread ------------------------------------------------------------

    def _connected(self, client: paho.Client, _user: object, _flags: object, reason: Any, _p: object) -> None:  # noqa: ANN401 - paho's reason code or an int
        if reason.is_failure:
            _LOG.warning("the broker refuses the connection: %s", reason)
            return
        with self._lock:
            topics = list(self._handlers)
            self.connected = True
        if topics:
            client.subscribe([(topic, 1) for topic in topics])
        _LOG.info("connected to %s:%d", self._host, self._port)
        self._on_change(True)

    def _lost(self, _client: paho.Client, _user: object, _flags: object, reason: object, _p: object) -> None:
        if self.connected:
            self.connected = False
            # Whoever has published something does so again after a connect: on a line that is often cut, or
            # with a broker that acknowledges nothing, both together would grow without end.
            self._client.forget_outgoing()
            self._shuffle()
            _LOG.info("disconnected: %s", reason)
            self._on_change(False)

    def _received(self, _client: paho.Client, _user: object, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError as error:  # no honest broker's
            _LOG.warning("a message on a topic that is no text: %s", error)
            return
        with self._lock:
            handler = self._handlers.get(topic) or self._wildcard(topic)
        if handler is None:
            return
        try:
            handler(topic, bytes(message.payload))
        except Exception:  # noqa: BLE001 - one bad message must not end the thread that all others come through
            _LOG.exception("a message on %s could not be handled", topic)

    # ------------------------------------------------------------------------------------------------

    def _wildcard(self, topic: str) -> OnMessage | None:
        return next(
            (x for y, x in self._handlers.items() if "+" in y and paho.topic_matches_sub(y, topic)), None
        )

    def _shuffle(self) -> None:
        shortest, longest = random.uniform(*_FIRST_PAUSE), random.uniform(*_LONGEST_PAUSE)  # noqa: S311 - spreads load
        self._client.reconnect_delay_set(min_delay=shortest, max_delay=longest)  # type: ignore[arg-type]  # seconds, whole ones only by annotation

    def _address(self, url: str) -> tuple[str, int]:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise StateError(f"broker: expected mqtt://host:port or mqtts://host:port, got {url!r}")
        if parts.scheme == "mqtts":
            self._tls = self._context()
            self._client.tls_set_context(self._tls)
        return parts.hostname, parts.port or _PORTS[parts.scheme]

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._trust(context)
        self._show_certificate(context)
        return context

    def _trust(self, context: ssl.SSLContext) -> None:
        try:
            context.load_verify_locations(self._credentials.ca)
        except (OSError, ssl.SSLError) as error:
            raise StateError(f"broker: the fleet's authority is unusable: {error}") from error

    def _show_certificate(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._credentials.certificate, self._credentials.key)
            own = x509.load_pem_x509_certificate(self._credentials.certificate.read_bytes())
        except (OSError, ValueError, ssl.SSLError) as error:
            raise StateError(f"broker: the device's certificate is unusable: {error}") from error
        if datetime.now(timezone.utc) < own.not_valid_before_utc:
            # This clock is wrong, for the certificate was made in the past; by it, the broker's has not begun
            # either. The fleet's authority and the broker's name are checked all the same.
            context.verify_flags |= _NO_CHECK_TIME
            _LOG.warning("this clock stands before the device's own certificate: times are not checked")
        else:
            context.verify_flags &= ~_NO_CHECK_TIME
