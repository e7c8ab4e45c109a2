"""Puts bundles and trust metadata on the broker's retained topics, each chunk once per life of the broker.

A broker that was killed may have lost any part of what it retained. How the server finds out, after each
connect: the chunk index of a bundle is published last, after every chunk was acknowledged; a broker's saved
state is one picture of one moment, so a broker that still retains the index retains the chunks. One topic
per bundle is asked for instead of thousands. Where that reasoning should fail (somebody cleared a topic by
hand, a clustered broker dropped one), a device reports the chunk as missing and `mend` publishes it again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from fleet.bundle import chunks
from fleet.bundle.chunks import ChunkIndex
from fleet.bundle.manifest import Bundle, Manifest
from fleet.errors import BundleError, WireError
from fleet.ids import Digest
from fleet.trust.assignment import AssignedBundle
from fleet.wire import topics
from server.ports.blobs import BlobStore
from server.ports.messaging import Connection, Incoming

#: Topics asked for, and reported chunks mended, at a time: fewer than any broker's queue holds.
_WINDOW: Final = 16
#: Reported chunks that are remembered at a time.
_REPORTS: Final = 1024


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
    raw = blobs.read(bundle.digest)
    listed: dict[str, tuple[chunks.Chunk, ...]] = {}
    for digest in _needed(bundle.digest, bundle.manifest):
        listed |= chunks.index_of({digest: blobs.read(digest)}).blobs
    index = chunks.encode(ChunkIndex(blobs=dict(sorted(listed.items()))))
    if len(index) > chunks.INDEX_LIMIT:
        raise BundleError(f"chunk index: expected at most {chunks.INDEX_LIMIT} bytes, got {len(index)}")
    blobs.write(Digest.of(index), [index], chunks.INDEX_LIMIT)
    return AssignedBundle(
        model=bundle.description.model,
        version=version,
        target=bundle.description.target,
        digest=str(bundle.digest),
        manifest_size=len(raw),
        index=str(Digest.of(index)),
        index_size=len(index),
        release_counter=release_counter,
    )


class Distribution:
    """What is on the broker, and what has to be. Every method may be called from any thread."""

    def __init__(self, connection: Connection, blobs: BlobStore, patience: float = 2.0) -> None:
        """Use this connection.

        Args:
            connection: may publish and subscribe everywhere.
            blobs: the server's store.
            patience: seconds to wait for a retained index before it counts as lost.
        """
        self._connection: Final = connection
        self._blobs: Final = blobs
        self._patience: Final = patience
        self._lock: Final = threading.RLock()
        self._reports: Final = threading.Lock()
        self._active: Final[dict[str, AssignedBundle]] = {}
        self._published: Final[set[str]] = set()
        self._metadata: Final[dict[str, bytes]] = {}
        self._reported: Final[dict[str, None]] = {}

    def add(self, bundles: Iterable[AssignedBundle]) -> int:
        """Have these bundles on the broker; return how many chunks had to be published.

        Raises:
            BrokerError: the broker is gone; another call goes on where this one ended.
        """
        with self._lock:
            self._active.update((bundle.path, bundle) for bundle in bundles)
            return sum(self._publish(bundle) for bundle in list(self._active.values()))

    def remove(self, bundles: Iterable[AssignedBundle]) -> int:
        """Clear the chunks that no bundle needs any more; return how many that was.

        Raises:
            BrokerError: the broker is gone; another call goes on where this one ended.
        """
        with self._lock:
            leaving = list(bundles)
            gone = {hex_: None for bundle in leaving for hex_ in self._topics_of(bundle)}
            for bundle in leaving:
                self._active.pop(bundle.path, None)
            kept = {hex_ for bundle in self._active.values() for hex_ in self._topics_of(bundle)}
            cleared = [hex_ for hex_ in gone if hex_ not in kept]
            for hex_ in cleared:
                self._connection.publish(topics.chunk(Digest.from_hex(hex_)), b"", retain=True)
                self._published.discard(hex_)
            return len(cleared)

    def reconcile(self) -> int:
        """After a connect: publish what the broker has lost; return how many chunks that was.

        Metadata is published again in full by the next `publish_metadata`: it is small.

        Raises:
            BrokerError: the broker is gone again.
        """
        with self._lock:
            self._metadata.clear()
            self._published.clear()
            active = list(self._active.values())
            for start in range(0, len(active), _WINDOW):
                present = self._retained([bundle.index for bundle in active[start : start + _WINDOW]])
                for bundle in active[start : start + _WINDOW]:
                    if bundle.index in present:
                        self._published.update(self._topics_of(bundle))
            return sum(self._publish(bundle) for bundle in active)

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
        """Publish a chunk again, whatever the broker holds; return whether an active bundle has it.

        Raises:
            BrokerError: the broker is gone.
        """
        with self._lock:
            for bundle in self._active.values():
                for found, data in self._chunks(bundle, published=frozenset()):
                    if found == digest:
                        self._connection.publish(topics.chunk(digest), data, retain=True)
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

    def _publish(self, bundle: AssignedBundle) -> int:
        if Digest(bundle.index).hex in self._published:
            return 0
        count = 0
        for digest, data in self._chunks(bundle, self._published):
            if digest.hex not in self._published:
                self._connection.publish(topics.chunk(digest), data, retain=True)
                self._published.add(digest.hex)
                count += 1
        return count

    def _chunks(self, bundle: AssignedBundle, published: AbstractSet[str]) -> Iterator[tuple[Digest, bytes]]:
        """Yield a bundle's chunks, index last, passing over blobs that are published whole."""
        raw = self._blobs.read(Digest(bundle.index))
        for blob, parts in chunks.decode(raw).blobs.items():
            if all(part.sha256 in published for part in parts):
                continue
            data, start = self._blobs.read(Digest(blob)), 0
            for part in parts:
                yield part.digest, data[start : start + part.size]
                start += part.size
        yield Digest(bundle.index), raw

    def _topics_of(self, bundle: AssignedBundle) -> list[str]:
        index = chunks.decode(self._blobs.read(Digest(bundle.index)))
        return [part.sha256 for parts in index.blobs.values() for part in parts] + [Digest(bundle.index).hex]

    def _retained(self, indexes: list[str]) -> set[str]:
        """Return which of these indexes the broker retains."""
        by_topic = {topics.chunk(Digest(index)): index for index in indexes}
        found: set[str] = set()
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
