"""Many devices in one process that download and verify: chunks over MQTT, or one file over HTTP.

A script: its argument is a JSON object; it prints "ready", waits for a line on stdin, downloads, and prints a
JSON object with the seconds that passed and the bytes that were verified. The MQTT side runs the agent's own
`ChunkPlan`; both sides are lean protocols on asyncio, so that the servers are measured and not the clients.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from typing import Final

from device_agent.update.chunk_plan import ChunkPlan
from fleet.bundle.chunks import Chunk
from fleet.ids import Digest
from fleet.wire import topics

_BUFFER: Final = 512 * 1024


def _remaining(number: int) -> bytes:
    """Return MQTT's "remaining length" (MQTT 3.1.1, 2.2.3)."""
    out = bytearray()
    while True:
        number, low = number >> 7, number & 127
        out.append(low | (128 if number else 0))
        if not number:
            return bytes(out)


def _string(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


class _Client(asyncio.BufferedProtocol):
    """Keeps a buffer of its own; `parse` takes whole messages off its front."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[int] = loop.create_future()
        self.verified = 0
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        used = self.parse(self._view[: self._filled])
        rest = self._filled - used
        if used and rest:
            self._buffer[:rest] = self._buffer[used : self._filled]
        self._filled = rest

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))

    def parse(self, data: memoryview) -> int:
        """Take what is whole; return how many bytes that was."""
        raise NotImplementedError


class MqttDevice(_Client):
    """Downloads chunks from retained topics (MQTT 3.1.1, QoS 1)."""

    def __init__(self, name: str, chunks: list[Chunk]) -> None:
        super().__init__()
        self._name = name
        self._plan = ChunkPlan(chunks)
        self._finished: list[Digest] = []
        self._packet = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        body = _string("MQTT") + bytes([4, 2]) + (600).to_bytes(2, "big") + _string(self._name)
        self._send(0x10, body)

    def start(self) -> None:
        """Ask for the first chunks."""
        asked = self._plan.ask(time.monotonic())
        if not asked:
            return
        if self._finished:
            self._send(0xA2, self._next() + b"".join(_string(topics.chunk(d)) for d in self._finished))
            self._finished.clear()
        self._send(0x82, self._next() + b"".join(_string(topics.chunk(d)) + b"\x01" for d in asked))

    def parse(self, data: memoryview) -> int:
        used = 0
        while len(data) - used >= 2:
            length, at, shift = 0, used + 1, 0
            while at < len(data):
                length |= (data[at] & 127) << shift
                at, shift = at + 1, shift + 7
                if data[at - 1] < 128:
                    break
            else:
                break
            if data[at - 1] >= 128 or at + length > len(data):
                break
            self._take(data[used] >> 4, data[at : at + length])
            used = at + length
        return used

    def _take(self, kind: int, body: memoryview) -> None:
        if kind == 2:
            self.ready.set_result(None)
        elif kind == 3:
            end = 2 + int.from_bytes(body[:2], "big")
            self._send(0x40, bytes(body[end : end + 2]))
            digest = Digest.from_hex(bytes(body[end - 64 : end]).decode())
            # The plan hashes the bytes where they lie.
            if self._plan.take(digest, body[end + 2 :], time.monotonic()):  # type: ignore[arg-type]  # a view is enough to hash
                self.verified += len(body) - end - 2
                self._finished.append(digest)
            if self._plan.done:
                self.done.set_result(self.verified)
            else:
                self.start()

    def _next(self) -> bytes:
        self._packet = self._packet % 65535 + 1
        return self._packet.to_bytes(2, "big")

    def _send(self, header: int, body: bytes) -> None:
        self.transport.write(bytes([header]) + _remaining(len(body)) + body)


class HttpDevice(_Client):
    """Downloads one file in one answer, hashing as it comes."""

    def __init__(self, path: str, size: int, sha256: str) -> None:
        super().__init__()
        self._path, self._size, self._sha256 = path, size, sha256
        self._hash = hashlib.sha256()
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.ready.set_result(None)

    def start(self) -> None:
        """Ask for the file."""
        self.transport.write(f"GET {self._path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    def parse(self, data: memoryview) -> int:
        start = 0
        if not self._in_body:
            head = bytes(data).find(b"\r\n\r\n")
            if head < 0:
                return 0
            assert bytes(data[:12]) == b"HTTP/1.1 200", bytes(data[:head])
            self._in_body, start = True, head + 4
        self._hash.update(data[start:])
        self.verified += len(data) - start
        if self.verified == self._size:
            assert self._hash.hexdigest() == self._sha256, "the file arrived altered"
            self.done.set_result(self.verified)
        return len(data)


async def _run(plan: dict[str, object]) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    made: list[MqttDevice | HttpDevice] = []
    for number in range(int(str(plan["devices"]))):
        if plan["mode"] == "mqtt":
            parts = plan["chunks"]
            assert isinstance(parts, list)
            device: MqttDevice | HttpDevice = MqttDevice(f"d{number}", [Chunk(h, s) for h, s in parts])
        else:
            device = HttpDevice(str(plan["path"]), int(str(plan["size"])), str(plan["sha256"]))
        await loop.create_connection(lambda client=device: client, "127.0.0.1", int(str(plan["port"])))  # type: ignore[misc]  # the default binds the loop's variable
        made.append(device)
    await asyncio.gather(*(device.ready for device in made))
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    began = time.perf_counter()
    for device in made:
        device.start()
    verified = await asyncio.wait_for(asyncio.gather(*(device.done for device in made)), 120)
    return {"seconds": time.perf_counter() - began, "bytes": sum(verified)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(json.loads(sys.argv[1])))), flush=True)
