"""Metadata without end: a device refuses a gigabyte before it takes the memory, over MQTT and over HTTP.

The device's side runs in a process of its own, whose memory is measured where it peaked.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

#: More than any honest file, and far less than what is sent.
_ALLOWED = 24 * 1024 * 1024
_GIGABYTE = 2**30
_PIECE = b"x" * 65536

#: Prints how the device's own fetcher ends, and by how much its memory grew at the most.
_DEVICE = """
import json, resource, sys
from pathlib import Path
import httpx
from device_agent.adapters.mqtt import Credentials, MqttLink
from device_agent.adapters.trust_fetch import HttpFetcher, MqttFetcher
from fleet.errors import KedgeError
from fleet.wire.enrolment import BrokerAccess
way, port = sys.argv[1], sys.argv[2]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
none = Path("none")
if way == "mqtt":
    link = MqttLink("d", BrokerAccess(url=f"mqtt://127.0.0.1:{port}"),
        credentials=Credentials(none, none, none), will=None, on_change=lambda _: None)
    link.start()
    fetcher = MqttFetcher(link, timeout=1.5)
else:
    fetcher = HttpFetcher(httpx.Client(), f"http://127.0.0.1:{port}", timeout=20.0)
before = peak()
try:
    fetcher.fetch("timestamp.json", 16384)
    said = "taken"
except KedgeError as error:
    said = type(error).__name__
print(json.dumps({"said": said, "grown": peak() - before}))
"""


def _length(number: int) -> bytes:
    """Return a remaining length (MQTT 3.1.1, section 2.2.3)."""
    encoded = bytearray()
    while True:
        number, digit = divmod(number, 128)
        encoded.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(encoded)


def _evil_broker(peer: socket.socket) -> int:
    """Accept the connection, and answer the first subscription with the largest packet that MQTT has."""
    peer.recv(4096)
    peer.sendall(bytes([0x20, 2, 0, 0]))  # CONNACK
    peer.recv(4096)
    topic = b"kedge/v1/trust/timestamp.json"
    peer.sendall(b"\x30" + _length(2**28 - 1) + len(topic).to_bytes(2, "big") + topic)
    return _pour(peer, 2**28)


def _evil_server(peer: socket.socket) -> int:
    """Answer with a gigabyte, of which it does not say the length."""
    peer.recv(4096)
    peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
    return _pour(peer, _GIGABYTE)


def _pour(peer: socket.socket, size: int) -> int:
    sent = 0
    with contextlib.suppress(OSError):
        while sent < size:
            sent += peer.send(_PIECE)
    return sent


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


@pytest.mark.parametrize(
    ("way", "attack", "ends"),
    [("mqtt", _evil_broker, "UnreachableError"), ("http", _evil_server, "TrustError")],
)
def test_a_gigabyte_of_metadata_takes_no_memory(
    listener: socket.socket, way: str, attack: Callable[[socket.socket], int], ends: str
) -> None:
    """Endless data: where half a kilobyte is due, bytes come until the device hangs up."""
    poured: list[int] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer:
                    poured.append(attack(peer))

    threading.Thread(target=serve, daemon=True).start()
    port = str(listener.getsockname()[1])
    ran = subprocess.run(
        [sys.executable, "-c", _DEVICE, way, port], capture_output=True, check=True, timeout=60
    )
    told = json.loads(ran.stdout)
    assert told["said"] == ends
    assert told["grown"] < _ALLOWED
    assert poured
    assert max(poured) < 2 * _ALLOWED
