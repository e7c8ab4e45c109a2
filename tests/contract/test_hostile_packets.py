"""Packets that no honest broker sends, byte by byte, to the device's end of the connection."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_agent.adapters.mqtt import Credentials, MqttLink
from device_agent.errors import UnreachableError
from device_agent.happenings import Arrivals, Arrived, Happening
from fleet.wire.enrolment import BrokerAccess
from processes import wait_until

_CONNACK = b"\x20\x02\x00\x00"


class RawBroker:
    """Takes connections, acknowledges CONNECT, sends what it is told to, and reads the rest away."""

    def __init__(self, packets: bytes) -> None:
        self.connections = 0
        self.hung_up = 0
        self._packets = packets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        connection.settimeout(5.0)
        with contextlib.suppress(OSError):
            connection.recv(4096)
            self.connections += 1
            connection.sendall(_CONNACK + self._packets)
            while connection.recv(65536):
                pass
        self.hung_up += 1

    def close(self) -> None:
        self._listener.close()


@contextlib.contextmanager
def connected(packets: bytes) -> Iterator[RawBroker]:
    """Give a broker that sends these packets, and a device that keeps coming back to it."""
    broker, none = RawBroker(packets), Path("none")
    link = MqttLink(
        "d1",
        BrokerAccess(url=broker.url),
        credentials=Credentials(none, none, none),
        will=None,
        on_change=lambda _up: None,
    )
    link.start()
    try:
        yield broker
    finally:
        link.stop()
        broker.close()


def _back(broker: RawBroker) -> Callable[[], bool]:
    return lambda: broker.hung_up >= 1 and broker.connections >= 2


def publish(qos: int, number: int, payload: bytes = b"x" * 1000) -> bytes:
    """Return a PUBLISH on the topic "t"."""
    body = struct.pack("!H", 1) + b"t" + struct.pack("!H", number) + payload
    return bytes([0x30 | qos << 1, len(body) % 128 | 0x80, len(body) // 128]) + body


def test_messages_that_are_never_finished_are_not_kept() -> None:
    """A broker sends at QoS 2 and never says that it is done: of these a client keeps 65,535, of any size.

    The device has asked for QoS 1 at most, so it hangs up on the first, and comes back.
    """
    with connected(b"".join(publish(2, number) for number in range(1, 100))) as broker:
        wait_until(_back(broker), "it hung up, and came back", 10.0)


def test_what_was_not_acknowledged_is_not_kept_beside_what_is_sent_again() -> None:
    """A line is cut again and again in the middle of a hard request, which is sent anew from the outbox.

    The library under it keeps what is not acknowledged, too, and would send each of its copies first: memory
    and traffic would grow with each cut, until the agent is killed for it.
    """
    sizes: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def broker() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    sizes.append(_received(connection))

    threading.Thread(target=broker, daemon=True).start()
    none = Path("none")
    link = MqttLink(
        "d1",
        BrokerAccess(url=f"mqtt://127.0.0.1:{listener.getsockname()[1]}"),
        credentials=Credentials(none, none, none),
        will=None,
        on_change=lambda up: link.publish("t", bytes(100_000)) if up else None,
    )
    link.start()
    try:
        wait_until(lambda: len(sizes) >= 3, "the line was cut three times", 20.0)
    finally:
        link.stop()
        listener.close()
    assert all(100_000 < size < 200_000 for size in sizes[:3]), sizes


def _received(connection: socket.socket) -> int:
    """Let a device in, acknowledge nothing, and return the bytes that came in half a second."""
    connection.settimeout(0.5)
    size = 0
    with contextlib.suppress(OSError):
        connection.recv(4096)
        connection.sendall(_CONNACK)
        while data := connection.recv(65536):
            size += len(data)
    return size


def test_who_waits_for_an_acknowledgement_learns_at_once_that_the_line_is_cut() -> None:
    """A gateway puts a chunk on its site's broker, which goes: it does not hold everything up for long."""
    up, listener, none = threading.Event(), socket.create_server(("127.0.0.1", 0)), Path("none")
    with contextlib.closing(listener):
        link = MqttLink(
            "d1",
            BrokerAccess(url=f"mqtt://127.0.0.1:{listener.getsockname()[1]}"),
            credentials=Credentials(none, none, none),
            will=None,
            on_change=lambda is_up: up.set() if is_up else None,
        )
        link.start()
        connection, _ = listener.accept()

        def cut() -> None:
            connection.recv(65536)  # the chunk
            listener.close()
            connection.close()

        try:
            connection.recv(4096)
            connection.sendall(_CONNACK)
            assert up.wait(5.0)
            threading.Thread(target=cut, daemon=True).start()
            began = time.monotonic()
            with pytest.raises(UnreachableError):
                link.put("t", b"x", 60.0)
            assert time.monotonic() - began < 30.0
        finally:
            link.stop()


_NONE = {
    "both QoS bits": b"\x36\x05\x00\x01t\x00\x01",
    "no whole topic": b"\x30\x01\x00",
    "an empty SUBACK": b"\x90\x00",
    "half a PUBACK": b"\x40\x01\x00",
    "a reserved type": b"\xf0\x00",
    "a length of five bytes": b"\x30\xff\xff\xff\xff\x7f",
}


def test_a_packet_that_is_none_ends_the_connection_and_not_the_agent() -> None:
    """A broker sends what the protocol does not know: the thread that all messages come through goes on."""
    with contextlib.ExitStack() as stack:
        brokers = {name: stack.enter_context(connected(packet)) for name, packet in _NONE.items()}
        for name, broker in brokers.items():
            wait_until(_back(broker), f"it hung up, and came back: {name}", 10.0)


def test_what_nobody_has_looked_at_yet_is_bounded() -> None:
    """Replies come faster than they are taken: so many bytes wait, the rest is dropped meanwhile."""
    taken: list[Happening] = []
    arrivals = Arrivals(taken.append, most=100)
    for _ in range(10):
        arrivals.put("reply", b"x" * 40)
    assert len(taken) == 2
    assert arrivals.dropped == 8
    first = taken[0]
    assert isinstance(first, Arrived)
    arrivals.taken(first)
    arrivals.put("reply", b"x" * 40)
    assert len(taken) == 3
