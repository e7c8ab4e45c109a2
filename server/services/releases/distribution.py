"""Puts bundles and trust metadata on the broker's retained topics, each chunk once per life of the broker.

A broker that was killed may have lost any part of what it retained. How the server finds out, after each
connect: the chunk index of a bundle is published last, after every chunk was acknowledged; a broker's saved
state is one picture of one moment, so a broker that still retains the index retains the chunks. One topic
per bundle is asked for instead of thousands. Where that reasoning should fail (somebody cleared a topic by
hand, a clustered broker dropped one), a device reports the chunk as missing and `mend` publishes it again.

What is retained stays within a budget: the most wanted first, the rest is served over HTTP alone. The
catalogue, a retained message, tells devices which is which. What an earlier life of the server has put on the
broker stands in a ledger, so that it is cleared when nobody wants it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol

import msgspec

from fleet.bundle import catalogue, chunks, packing
from fleet.bundle.chunks import Chunk, ChunkIndex
from fleet.bundle.cutting import cut_pieces
from fleet.bundle.manifest import Bundle, Manifest
from fleet.errors import BundleError, WireError
from fleet.ids import Digest
from fleet.trust.assignment import AssignedBundle
from fleet.wire import topics
from server.ports.blobs import BlobStore
from server.ports.messaging import Connection, Incoming
from server.services.releases.retention import fit

#: Topics asked for, and reported chunks mended, at a time: fewer than any broker's queue holds.
_WINDOW: Final = 16
#: Reported chunks that are remembered at a time.
_REPORTS: Final = 1024


class Parcel(msgspec.Struct, frozen=True):
    """What devices may have to download: all that a chunk index lists.

    Attributes:
        name: tells it apart from all others: a bundle's path, or a delta's.
        index: digest of the chunk index, which lies among the blobs.
    """

    name: str
    index: Digest


class Ledger(Protocol):
    """Remembers, over restarts, what was put on the broker."""

    def indexes(self) -> list[Digest]:
        """Return the indexes of the parcels whose chunks may be retained."""

    def add(self, index: Digest) -> None:
        """Remember a parcel, before its first chunk is published."""

    def remove(self, index: Digest) -> None:
        """Forget a parcel, after its last chunk was cleared."""


class MemoryLedger:
    """A ledger that forgets with the process: for a broker that does so too."""

    def __init__(self) -> None:
        """Begin empty."""
        self._indexes: Final[dict[Digest, None]] = {}

    def indexes(self) -> list[Digest]:
        """Return the indexes of the parcels whose chunks may be retained."""
        return list(self._indexes)

    def add(self, index: Digest) -> None:
        """Remember a parcel."""
        self._indexes[index] = None

    def remove(self, index: Digest) -> None:
        """Forget a parcel."""
        self._indexes.pop(index, None)


def parcel_of(bundle: AssignedBundle) -> Parcel:
    """Return a bundle as something to be downloaded."""
    return Parcel(bundle.path, Digest(bundle.index))


def write_index(blobs: BlobStore, digests: Iterable[Digest]) -> tuple[Digest, int]:
    """Cut blobs into chunks, keep their index among the blobs, and return its digest and size.

    No blob is held in memory.

    Raises:
        BundleError: too large for one index.
    """
    listed = {str(digest): chunks.chunks_of(cut_pieces(blobs.stream(digest))) for digest in sorted(digests)}
    raw = chunks.encode(ChunkIndex(blobs=listed))
    blobs.write(Digest.of(raw), [raw], chunks.INDEX_LIMIT)
    return Digest.of(raw), len(raw)


def prepare(bundle: Bundle, blobs: BlobStore, *, version: str, release_counter: int) -> AssignedBundle:
    """Cut a bundle into chunks, keep its chunk index among the blobs, and return what is to be signed.

    Args:
        bundle: verified, its blobs in `blobs`.
        blobs: the server's store.
        version: the release's version.
        release_counter: higher than that of any earlier release of the model.

    Raises:
        BundleError: the bundle is altered, or too large for one index.
    """
    index, index_size = write_index(blobs, _needed(bundle.digest, bundle.manifest))
    return AssignedBundle(
        model=bundle.description.model,
        version=version,
        target=bundle.description.target,
        digest=str(bundle.digest),
        manifest_size=len(blobs.read(bundle.digest)),
        index=str(index),
        index_size=index_size,
        release_counter=release_counter,
    )


class Distribution:
    """What is on the broker, and what has to be. Every method may be called from any thread."""

    def __init__(
        self,
        connection: Connection,
        blobs: BlobStore,
        patience: float = 2.0,
        budget: int | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """Use this connection.

        Args:
            connection: may publish and subscribe everywhere.
            blobs: the server's store.
            patience: seconds to wait for a retained index before it counts as lost.
            budget: bytes that the broker may retain for bundles; None for all that is wanted.
            ledger: what an earlier life of the server has put on the broker.
        """
        self._connection: Final = connection
        self._blobs: Final = blobs
        self._patience: Final = patience
        self._budget: Final = budget
        self._ledger: Final[Ledger] = ledger or MemoryLedger()
        self._lock: Final = threading.RLock()
        self._reports: Final = threading.Lock()
        self._wanted: Final[dict[str, Parcel]] = {}
        self._kept: Final[dict[Digest, Parcel]] = {}
        self._published: Final[set[str]] = set()
        self._listed: Final[dict[Digest, ChunkIndex]] = {}
        self._told: bytes | None = None
        self._metadata: Final[dict[str, bytes]] = {}
        self._reported: Final[dict[str, None]] = {}

    def add(self, bundles: Iterable[AssignedBundle]) -> int:
        """Have these bundles on the broker too, where they fit; return how many chunks were published.

        Raises:
            BrokerError: the broker is gone; another call goes on where this one ended.
        """
        with self._lock:
            return self.arrange([*self._wanted.values(), *map(parcel_of, bundles)])

    def remove(self, bundles: Iterable[AssignedBundle]) -> int:
        """Clear the chunks that nothing else needs; return how many that was.

        Raises:
            BrokerError: the broker is gone; another call goes on where this one ended.
        """
        with self._lock:
            before = len(self._published)
            leaving = {bundle.path for bundle in bundles}
            self.arrange([parcel for name, parcel in self._wanted.items() if name not in leaving])
            return before - len(self._published)

    def arrange(self, wanted: Iterable[Parcel]) -> int:
        """Have just these parcels on the broker, the most wanted first, as many as the budget allows.

        Returns:
            How many chunks were published.

        Raises:
            BrokerError: the broker is gone; another call goes on where this one ended.
            BundleError: a blob was altered on the server's disk.
        """
        with self._lock:
            self._wanted.clear()
            self._wanted.update((parcel.name, parcel) for parcel in wanted)
            by_index = {parcel.index: parcel for parcel in self._wanted.values()}
            sizes = {index: self._sizes(index) for index in by_index}
            self._kept.clear()
            self._kept.update((index, by_index[index]) for index in fit(sizes, self._budget))
            self._clear()
            return self._publish_all()

    @property
    def kept(self) -> list[Parcel]:
        """What the broker retains, or is to retain, the most wanted first."""
        with self._lock:
            return list(self._kept.values())

    def reconcile(self) -> int:
        """After a connect: publish what the broker has lost; return how many chunks that was.

        Metadata is published again in full by the next `publish_metadata`: it is small.

        Raises:
            BrokerError: the broker is gone again.
        """
        with self._lock:
            self._metadata.clear()
            self._published.clear()
            self._told = None
            self._clear()
            return self._publish_all()

    def report(self, detail: str) -> None:
        """Remember a chunk that a device has reported as missing or spoilt; `mend` sees to it.

        Args:
            detail: what the device said; it begins with the chunk's digest.
        """
        try:
            digest = Digest(detail.partition(": ")[0])
        except WireError:
            return  # a device may say anything; what names no chunk is not about one
        # A lock of its own: publishing may hold the other for long, and ingest must not wait.
        with self._reports:
            if len(self._reported) < _REPORTS:
                self._reported[digest.hex] = None

    def mend(self) -> int:
        """Publish again some of the chunks that devices have reported; return how many.

        A few at a time, so that a device that reports without end costs the broker next to nothing.

        Raises:
            BrokerError: the broker is gone; another call goes on where this one ended.
        """
        with self._reports:
            some = list(self._reported)[:_WINDOW]
        count = 0
        for hex_ in some:
            count += self.republish(Digest.from_hex(hex_))
            with self._reports:
                self._reported.pop(hex_, None)
        return count

    def republish(self, digest: Digest) -> bool:
        """Publish a chunk again, whatever the broker holds; return whether it is to be retained.

        Raises:
            BrokerError: the broker is gone.
        """
        with self._lock:
            for index in self._kept:
                for found, data in self._chunks(index, lambda hex_: hex_ == digest.hex):
                    self._connection.publish(topics.chunk(found), packing.pack(data), retain=True)
                    return True
            return False

    def publish_metadata(self, files: Mapping[str, bytes]) -> int:
        """Publish what has changed of the trust metadata, in the order given; clear what is gone.

        Args:
            files: `SigningService.files()`: the timestamp stands last, so no device sees it too early.

        Raises:
            BrokerError: the broker is gone; another call goes on where this one ended.
        """
        with self._lock:
            changed = [name for name, data in files.items() if self._metadata.get(name) != data]
            for name in changed:
                self._connection.publish(topics.trust(name), files[name], retain=True)
                self._metadata[name] = files[name]
            for name in [name for name in self._metadata if name not in files]:
                self._connection.publish(topics.trust(name), b"", retain=True)
                del self._metadata[name]
            return len(changed)

    def _publish_all(self) -> int:
        self._find_retained()
        count = sum(self._publish(index) for index in self._kept)
        self._tell(self._kept)
        return count

    def _find_retained(self) -> None:
        """Find out what the broker still has of what this process or an earlier one put there."""
        noted = set(self._ledger.indexes())
        unsure = [x for x in self._kept if x in noted and x.hex not in self._published]
        for start in range(0, len(unsure), _WINDOW):
            for index in self._retained(unsure[start : start + _WINDOW]):
                self._published.update(self._sizes(index))

    def _publish(self, index: Digest) -> int:
        if index.hex in self._published:
            return 0
        self._ledger.add(index)
        count = 0
        for digest, data in self._chunks(index, lambda hex_: hex_ not in self._published):
            if data:  # an empty message would clear the topic; a device needs none for an empty file
                self._connection.publish(topics.chunk(digest), packing.pack(data), retain=True)
                count += 1
            self._published.add(digest.hex)
        return count

    def _clear(self) -> None:
        """Take from the broker what is not to be kept; devices are told before a topic is empty."""
        leaving = [index for index in self._ledger.indexes() if index not in self._kept]
        if not leaving:
            return
        self._tell(index for index in self._kept if index.hex in self._published)
        needed = {hex_ for index in self._kept for hex_ in self._sizes(index)}
        for index in leaving:
            # The index first: where it is retained, all of its chunks must be.
            for hex_ in reversed(self._sizes(index)):
                if hex_ not in needed:
                    self._connection.publish(topics.chunk(Digest.from_hex(hex_)), b"", retain=True)
                    self._published.discard(hex_)
            self._ledger.remove(index)
            self._listed.pop(index, None)

    def _tell(self, indexes: Iterable[Digest]) -> None:
        """Publish which parcels are retained whole."""
        data = catalogue.encode(indexes)
        if data != self._told:
            self._connection.publish(topics.catalogue(), data, retain=True)
            self._told = data

    def _chunks(self, index: Digest, wanted: Callable[[str], bool]) -> Iterator[tuple[Digest, bytes]]:
        """Yield the wanted ones of a parcel's chunks, the index last; each when it is its turn."""
        for blob, parts in self._index(index).blobs.items():
            start = 0
            for part in parts:
                if wanted(part.sha256):
                    yield part.digest, self._read(Digest(blob), start, part)
                start += part.size
        if wanted(index.hex):
            yield index, self._blobs.read(index)

    def _read(self, blob: Digest, start: int, part: Chunk) -> bytes:
        data = self._blobs.read_range(blob, start, part.size)
        if Digest.of(data) != part.digest:
            raise BundleError(f"blob {blob}: the stored bytes from {start} on are not those of {part.digest}")
        return data

    def _index(self, index: Digest) -> ChunkIndex:
        known = self._listed.get(index)
        if known is None:
            known = self._listed[index] = chunks.decode(self._blobs.read(index))
        return known

    def _sizes(self, index: Digest) -> dict[str, int]:
        """Return the topics that a parcel takes, by hex digest, with the bytes on each."""
        sizes = {part.sha256: part.size for parts in self._index(index).blobs.values() for part in parts}
        return {**sizes, index.hex: self._blobs.size(index)}

    def _retained(self, indexes: list[Digest]) -> set[Digest]:
        """Return which of these indexes the broker retains."""
        by_topic = {topics.chunk(index): index for index in indexes}
        found: set[Digest] = set()
        changed = threading.Condition()

        def receive(message: Incoming) -> None:
            with changed:
                if message.payload and message.topic in by_topic:
                    found.add(by_topic[message.topic])
                    changed.notify_all()

        for topic in by_topic:
            self._connection.subscribe(topic, receive)
        try:
            with changed:
                changed.wait_for(lambda: len(found) == len(by_topic), self._patience)
                return set(found)
        finally:
            for topic in by_topic:
                self._connection.unsubscribe(topic)


def _needed(digest: Digest, parts: Manifest) -> list[Digest]:
    """Return the blobs that a device needs: the manifest, and the files of its roles."""
    return list(dict.fromkeys([digest, *(Digest(layer.digest) for layer in parts.for_device())]))
