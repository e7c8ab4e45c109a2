"""The embedded broker, strangers that only hold connections open, and devices that send without end."""

from __future__ import annotations

import socket

from processes import free_port
from server.adapters.embedded_broker import UNFINISHED, EmbeddedBroker


def test_a_connection_that_never_says_who_it_is_is_closed() -> None:
    """Somebody opens connections and says nothing, or half a CONNECT, to use up the server's sockets."""
    port = free_port()
    broker = EmbeddedBroker("127.0.0.1", port, ("server", "secret"), lambda *_: False, patience=0.3)
    broker.start()
    try:
        for said in (b"", b"\x10\x20\x00\x04MQ"):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as stranger:
                stranger.sendall(said)
                assert stranger.recv(1) == b""
    finally:
        broker.stop()


def test_a_packet_that_no_device_sends_is_not_waited_for() -> None:
    """A stolen device announces a message of 256 MB: the broker hangs up before it takes memory for it."""
    port = free_port()
    broker = EmbeddedBroker("127.0.0.1", port, ("server", "secret"), lambda name, _: name == "d1")
    broker.start()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as device:
            device.sendall(bytes.fromhex("101500044d51545404c2003c") + b"\0\2d1\0\2d1\0\1x")
            assert device.recv(4) == b"\x20\x02\x00\x00"
            device.sendall(b"\x30\xff\xff\xff\x7f" + b"\x00\x1bkedge/v1/device/d1/request!" + bytes(1000))
            device.settimeout(5.0)
            assert device.recv(1) == b""
    finally:
        broker.stop()


def test_who_begins_messages_and_finishes_none_is_hung_up_on() -> None:
    """A stolen device publishes with QoS 2 and never releases: the broker would keep every message."""
    port = free_port()
    broker = EmbeddedBroker("127.0.0.1", port, ("server", "secret"), lambda name, _: name == "d1")
    broker.start()
    begun = []
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as device:
            device.sendall(bytes.fromhex("101500044d51545404c2003c") + b"\0\2d1\0\2d1\0\1x")
            assert device.recv(4) == b"\x20\x02\x00\x00"
            topic = b"kedge/v1/device/d1/request"
            for number in range(1, UNFINISHED + 2):
                body = len(topic).to_bytes(2, "big") + topic + number.to_bytes(2, "big") + b"x"
                device.sendall(b"\x34" + bytes([len(body)]) + body)
                begun.append(device.recv(4))
            assert begun[:-1] == [b"\x50\x02\x00" + bytes([n]) for n in range(1, UNFINISHED + 1)]
            assert begun[-1] == b""
    finally:
        broker.stop()
