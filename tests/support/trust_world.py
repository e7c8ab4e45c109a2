"""A small fleet for tests: a signing server, a broker in memory, devices, and bundles of random bytes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from device_agent.adapters.chunk_mqtt import MqttSource
from device_agent.adapters.download import Downloader, Priced
from device_agent.adapters.trust_client import TrustClient
from device_agent.adapters.trust_fetch import MqttFetcher
from device_agent.ports import Link, MetadataFetcher
from device_agent.update.chunk_plan import Patience
from fleet.bundle import chunks, manifest
from fleet.errors import BundleError
from fleet.ids import DeviceId, Digest
from fleet.trust.assignment import AssignedBundle, Assignment
from fleet.wire import topics
from packed_bundles import pack
from server.errors import NotFoundError, TooLargeError
from server.ports.messaging import Connection
from server.services.releases.distribution import Distribution, prepare
from server.services.trust.signing import SigningService

START = 1_800_000_000.0
DAY = 86_400.0
TARGET = "laptop-x86"


class ManualClock:
    """A clock that stands still until it is moved; implements `server.ports.clock.Clock`."""

    def __init__(self, now: float = START) -> None:
        self.seconds = now

    def now(self) -> float:
        """Return seconds since the Unix epoch."""
        return self.seconds

    def wall(self) -> datetime:
        """Return the same as an aware time."""
        return datetime.fromtimestamp(self.seconds, timezone.utc)


class MemoryBlobs:
    """Implements `server.ports.blobs.BlobStore`."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def has(self, digest: Digest) -> bool:
        """Return whether the file is there."""
        return digest in self.blobs

    def size(self, digest: Digest) -> int:
        """Return the file's size."""
        return len(self.read(digest))

    def read(self, digest: Digest) -> bytes:
        """Return the file's bytes."""
        if digest not in self.blobs:
            raise NotFoundError(f"{digest} is not there")
        return self.blobs[digest]

    def stream(self, digest: Digest) -> Iterator[bytes]:
        """Yield the file."""
        yield self.read(digest)

    def read_range(self, digest: Digest, start: int, size: int) -> bytes:
        """Return a piece of the file."""
        return self.read(digest)[start : start + size]

    def address(self, digest: Digest) -> str:
        """Return ""."""
        del digest
        return ""

    def delete(self, digest: Digest) -> None:
        """Forget the file."""
        self.blobs.pop(digest, None)

    def write(self, digest: Digest, pieces: Iterable[bytes], limit: int) -> int:
        """Store a file, refusing other bytes than the digest's, and more than allowed."""
        data = b""
        for piece in pieces:
            data += piece
            if len(data) > limit:
                raise TooLargeError(f"blob: expected at most {limit} bytes")
        if Digest.of(data) != digest:
            raise BundleError(f"blob: expected {digest}, got {Digest.of(data)}")
        self.blobs[str(digest)] = data
        return len(data)


class MemoryPartial:
    """Implements `device_agent.ports.PartialBlob`."""

    def __init__(self, store: MemoryStore, digest: Digest, size: int) -> None:
        self._store = store
        self._digest = digest
        self.resumed = len(store.coming.get(digest, b"")) == size
        if digest not in store.coming or not self.resumed:
            store.coming[str(digest)] = bytearray(size)

    def write(self, offset: int, data: bytes) -> None:
        """Write a piece."""
        self._store.coming[self._digest][offset : offset + len(data)] = data
        self._store.wrote()

    def read(self, offset: int, size: int) -> bytes:
        """Return what lies there."""
        return bytes(self._store.coming[self._digest][offset : offset + size])

    def sync(self) -> None:
        """Do nothing: memory knows no power cut."""

    def finish(self) -> None:
        """Check the whole, and store it."""
        data = bytes(self._store.coming.pop(self._digest))
        if Digest.of(data) != self._digest:
            raise BundleError(f"expected {self._digest}")
        self._store.blobs[str(self._digest)] = data

    def close(self) -> None:
        """Leave it."""


class MemoryStore:
    """Implements `device_agent.ports.BlobStore`.

    Attributes:
        puts: how often something was written: a small blob, or a piece of a large one.
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.coming: dict[str, bytearray] = {}
        self.puts = 0

    def wrote(self) -> None:
        """Count a write."""
        self.puts += 1

    def has(self, digest: Digest) -> bool:
        """Return whether these bytes are stored."""
        return digest in self.blobs

    def intact(self, digest: Digest) -> bool:
        """Return whether these bytes are stored as they were."""
        return digest in self.blobs and Digest.of(self.blobs[digest]) == digest

    def get(self, digest: Digest) -> bytes:
        """Return the bytes."""
        if digest not in self.blobs:
            raise BundleError(f"{digest} is not stored")
        return self.blobs[digest]

    def put(self, digest: Digest, data: bytes) -> None:
        """Store the bytes."""
        assert Digest.of(data) == digest
        self.blobs[str(digest)] = data
        self.wrote()

    def read(self, digest: Digest, offset: int, size: int) -> bytes:
        """Return a piece of the bytes."""
        return self.get(digest)[offset : offset + size]

    def begin(self, digest: Digest, size: int) -> MemoryPartial:
        """Go on with a blob, or begin it."""
        return MemoryPartial(self, digest, size)

    def delete(self, digest: Digest) -> None:
        """Forget the bytes."""
        self.blobs.pop(digest, None)


def make_bundle(
    blobs: MemoryBlobs,
    *,
    size: int = 1000,
    seed: int = 0,
    model: str = "digits",
    target: str = TARGET,
    weights: bytes | None = None,
) -> manifest.Bundle:
    """Put a bundle with a model of these, or of random, bytes among the blobs."""
    if weights is None:
        weights = random.Random(seed).randbytes(size)
    return pack(weights, model=model, target=target).put_into(blobs)


class Transport(Protocol):
    """What carries messages: a broker in memory, or a real one."""

    def link(self, device: str = "") -> Link:
        """Connect a device."""

    def connection(self) -> Connection:
        """Connect a server."""


class Server:
    """The server's side: signs, and distributes over a connection."""

    def __init__(self, folder: Path, broker: Transport, clock: ManualClock) -> None:
        self.clock = clock
        self.connection = broker.connection()
        self.signing = SigningService(folder / "keys", folder / "trust", clock)
        self.signing.open()
        self.blobs = MemoryBlobs()
        self.distribution = Distribution(self.connection, self.blobs, patience=0.3)
        self.publish_metadata()

    def publish_metadata(self) -> None:
        """Publish the trust metadata."""
        self.distribution.publish_metadata(self.signing.files())

    def publish_metadata_again(self) -> None:
        """Publish it all, whatever an attacker has put in its place."""
        for name, data in self.signing.files().items():
            self.connection.publish(topics.trust(name), data, retain=True)

    def release(self, version: str, *, counter: int = 1, size: int = 1000, seed: int = 0) -> AssignedBundle:
        """Publish a bundle and its metadata."""
        bundle = prepare(
            make_bundle(self.blobs, size=size, seed=seed),
            self.blobs,
            version=version,
            release_counter=counter,
        )
        self.signing.add_bundles([bundle])
        self.distribution.add([bundle])
        self.publish_metadata()
        return bundle

    def assignment(
        self,
        device: str,
        bundles: Sequence[AssignedBundle],
        *,
        version: int = 1,
        allow_rollback: bool = False,
    ) -> bytes:
        """Return the signed assignment of a device."""
        return self.signing.sign_assignment(
            device=DeviceId(device),
            rollout="r1",
            version=version,
            bundles=bundles,
            activate_before=self.clock.seconds + DAY,
            allow_rollback=allow_rollback,
        )


class Device:
    """The device's side: verifies, and downloads."""

    def __init__(
        self, name: str, folder: Path, link: Link, clock: ManualClock, patience: float = 0.05
    ) -> None:
        self.name = name
        self.clock = clock
        self.store = MemoryStore()
        self.refusals: list[tuple[str, str]] = []
        self.held: list[Digest] = []
        self.fetcher = MqttFetcher(link, timeout=2.0, grace=0.1)
        self.folder = folder
        self.trust = TrustClient(folder, self.fetcher, name, TARGET)
        self.downloader = Downloader(
            [Priced(MqttSource(link))],
            self.store,
            lambda reason, detail: self.refusals.append((reason, detail)),
            Patience(first=patience, longest=4 * patience, between_bad=0.01),
            give_up=20 * patience,
            held=lambda: self.held,
        )

    def through(self, fetcher: MetadataFetcher) -> TrustClient:
        """Return a client of the same trusted state that takes its metadata from elsewhere."""
        return TrustClient(self.folder, fetcher, self.name, TARGET)

    def accept(self, data: bytes, counters: dict[str, int] | None = None) -> Assignment:
        """Verify an assignment."""
        return self.trust.accept(data, counters or {}, self.clock.wall())


class World:
    """One server, one broker, and as many devices as a test asks for."""

    def __init__(self, folder: Path, broker: Transport, patience: float = 0.05) -> None:
        self.folder = folder
        self.patience = patience
        self.clock = ManualClock()
        self.broker = broker
        self.attacker = broker.connection()
        self.server = Server(folder / "server", self.broker, self.clock)

    def device(self, name: str = "d1") -> Device:
        """Enrol a device: it gets the first root."""
        device = Device(name, self.folder / name, self.broker.link(name), self.clock, self.patience)
        device.trust.bootstrap(self.server.signing.first_root())
        return device

    def forge(self, name: str, data: bytes) -> None:
        """Put a metadata file on the broker, as somebody who has taken it over would."""
        self.attacker.publish(topics.trust(name), data)


def chunk_digests(blobs: MemoryBlobs, bundle: AssignedBundle) -> list[str]:
    """Return the hex digests of a bundle's chunks."""
    index = chunks.decode(blobs.read(Digest(bundle.index)))
    return [part.sha256 for parts in index.blobs.values() for part in parts]
