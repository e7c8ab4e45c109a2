"""Many devices in one process that download, verify and store, over MQTT, HTTP or bare TCP.

A script: it reads a JSON object from stdin, prints "ready", waits for a line on stdin, downloads, and prints
a JSON object with the seconds that passed and the bytes that were verified. Every device writes a file of its
own, syncs it to disk, and deletes it. The sides that take chunks run the agent's own `ChunkPlan`; all sides
are lean protocols on asyncio, so that the servers are measured and not the clients.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

from device_agent.update.chunk_plan import ChunkPlan
from fleet.bundle import packing
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
    """Keeps a buffer and a file of its own; `parse` takes whole messages off the buffer's front."""

    transport: asyncio.Transport

    def __init__(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        self._stored = path
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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
            self._view[:rest] = self._view[used : self._filled]
        self._filled = rest

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))

    def parse(self, data: memoryview) -> int:
        """Take what is whole; return how many bytes that was."""
        raise NotImplementedError

    def whole(self) -> None:
        """Make the file durable, beside the loop, and be done."""
        loop = asyncio.get_running_loop()
        syncing = loop.run_in_executor(None, self._sync)
        syncing.add_done_callback(lambda _: self.done.set_result(self.verified))

    def _sync(self) -> None:
        os.fsync(self.file)
        os.close(self.file)
        self._stored.unlink()  # a device's disk is its own; these share one


class _ChunkDevice(_Client):
    """Downloads chunks by the agent's own plan, each verified and written on arrival."""

    def __init__(self, path: Path, chunks: list[Chunk]) -> None:
        super().__init__(path)
        self.plan = ChunkPlan(chunks)
        self.offsets: dict[Digest, int] = {}
        offset = 0
        for chunk in chunks:
            self.offsets[chunk.digest] = offset
            offset += chunk.size

    def start(self) -> None:
        """Ask for what the plan says."""
        raise NotImplementedError

    def took(self, digest: Digest, data: memoryview) -> bool:
        """Verify and write a chunk, and go on; return whether it was one."""
        # The plan hashes the bytes where they lie.
        good = self.plan.take(digest, data, time.monotonic())  # type: ignore[arg-type]  # a view is enough to hash
        if good:
            os.pwrite(self.file, data, self.offsets[digest])
            self.verified += len(data)
        if self.plan.done:
            self.whole()
        return bool(good)


class MqttDevice(_ChunkDevice):
    """Downloads chunks from retained topics (MQTT 3.1.1, QoS 1)."""

    def __init__(self, path: Path, name: str, chunks: list[Chunk]) -> None:
        super().__init__(path, chunks)
        self._name = name
        self._finished: list[Digest] = []
        self._packet = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        body = _string("MQTT") + bytes([4, 2]) + (600).to_bytes(2, "big") + _string(self._name)
        self._send(0x10, body)

    def start(self) -> None:
        """Ask for the next chunks."""
        asked = self.plan.ask(time.monotonic())
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
            if self.took(digest, self._unpacked(digest, body[end + 2 :])):
                self._finished.append(digest)
            self.start()

    def _unpacked(self, digest: Digest, sent: memoryview) -> memoryview:
        size = self.plan.size_of(digest)
        return sent if len(sent) >= size else memoryview(packing.unpack(bytes(sent), size))

    def _next(self) -> bytes:
        self._packet = self._packet % 65535 + 1
        return self._packet.to_bytes(2, "big")

    def _send(self, header: int, body: bytes) -> None:
        self.transport.write(bytes([header]) + _remaining(len(body)) + body)


class RangeDevice(_ChunkDevice):
    """Downloads a file over HTTP/1.1 in ranges, as many of them under way as the plan says."""

    def __init__(self, file: Path, path: str, chunks: list[Chunk]) -> None:
        super().__init__(file, chunks)
        self._path = path
        self._sizes = {chunk.digest: chunk.size for chunk in chunks}
        self._coming: deque[Digest] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.ready.set_result(None)

    def start(self) -> None:
        """Ask for the next ranges."""
        asked = self.plan.ask(time.monotonic())
        requests = []
        for digest in asked:
            start = self.offsets[digest]
            span = f"bytes={start}-{start + self._sizes[digest] - 1}"
            requests.append(f"GET {self._path} HTTP/1.1\r\nHost: x\r\nRange: {span}\r\n\r\n")
        if requests:
            self._coming.extend(asked)
            self.transport.write("".join(requests).encode())

    def parse(self, data: memoryview) -> int:
        used = 0
        while self._coming:
            head = bytes(data[used : used + 1024]).find(b"\r\n\r\n")
            digest = self._coming[0]
            begin = used + head + 4
            if head < 0 or len(data) - begin < self._sizes[digest]:
                break
            assert bytes(data[used : used + 12]) == b"HTTP/1.1 206", bytes(data[used:begin])
            self._coming.popleft()
            used = begin + self._sizes[digest]
            assert self.took(digest, data[begin:used]), "the range arrived altered"
            self.start()
        return used


class BareDevice(_Client):
    """Downloads one file over a bare connection, hashing as it comes."""

    def __init__(self, file: Path, size: int, sha256: str) -> None:
        super().__init__(file)
        self._size, self._sha256 = size, sha256
        self._hash = hashlib.sha256()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.ready.set_result(None)

    def start(self) -> None:
        """Ask for the file."""
        self.transport.write(b"?")

    def parse(self, data: memoryview) -> int:
        self._hash.update(data)
        os.pwrite(self.file, data, self.verified)
        self.verified += len(data)
        if self.verified == self._size:
            assert self._hash.hexdigest() == self._sha256, "the file arrived altered"
            self.whole()
        return len(data)


def _device(plan: dict[str, Any], number: int) -> MqttDevice | RangeDevice | BareDevice:
    file = Path(plan["folder"]) / f"device-{number}"
    if plan["mode"] == "tcp":
        return BareDevice(file, plan["size"], plan["sha256"])
    chunks = [Chunk(sha256, size) for sha256, size in plan["chunks"]]
    if plan["mode"] == "http":
        return RangeDevice(file, plan["path"], chunks)
    return MqttDevice(file, f"d{number}", chunks)


async def _run(plan: dict[str, Any]) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    made = [_device(plan, number) for number in range(plan["devices"])]
    for device in made:
        await loop.create_connection(lambda client=device: client, "127.0.0.1", plan["port"])  # type: ignore[misc]  # the default binds the loop's variable
    await asyncio.gather(*(device.ready for device in made))
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    began = time.perf_counter()
    for device in made:
        device.start()
    verified = await asyncio.wait_for(asyncio.gather(*(device.done for device in made)), 300)
    return {"seconds": time.perf_counter() - began, "bytes": sum(verified)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(json.loads(sys.stdin.readline())))), flush=True)
