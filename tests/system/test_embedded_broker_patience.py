"""The embedded broker and strangers that only hold connections open."""

from __future__ import annotations

import socket

from processes import free_port
from server.adapters.embedded_broker import EmbeddedBroker


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
