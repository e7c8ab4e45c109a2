"""Downloads a bundle's chunks from the broker's retained topics, resumably, and puts its blobs together."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from device_agent.errors import UnreachableError
from device_agent.ports import BlobStore, Link
from device_agent.update.chunk_plan import ChunkPlan, Patience
from fleet.bundle import chunks, manifest
from fleet.bundle.chunks import Chunk, ChunkIndex
from fleet.bundle.manifest import Manifest
from fleet.errors import BundleError, WireError
from fleet.ids import Digest
from fleet.trust.assignment import AssignedBundle
from fleet.wire import topics

#: Called with a short reason ("bad_digest", "missing") and a line for a person.
OnRefusal: TypeAlias = Callable[[str, str], None]

_TICK: Final = 0.25
#: So often overdue, a chunk is reported: the server then publishes it again.
_REPORT_AFTER: Final = 2


class Downloaded(NamedTuple):
    """What a download took.

    Attributes:
        received: bytes that came now.
        reused: bytes that were there already, from a download that was cut off or from another version.
    """

    received: int
    reused: int
    seconds: float


class Downloader:
    """Brings bundles into the store. One download at a time."""

    def __init__(
        self,
        link: Link,
        store: BlobStore,
        refused: OnRefusal,
        patience: Patience | None = None,
        give_up: float = 60.0,
    ) -> None:
        """Use this connection and store.

        Args:
            link: the connection to the broker.
            store: takes chunks as they come, and blobs when they are whole.
            refused: told of chunks that are tampered with or missing.
            patience: how long to wait for a chunk before asking again.
            give_up: seconds without a single chunk after which `fetch` ends; nothing that came is lost.
        """
        self._link: Final = link
        self._store: Final = store
        self._refused: Final = refused
        self._patience: Final = patience
        self._give_up: Final = give_up
        self._received = 0

    def fetch(self, bundle: AssignedBundle, stop: Callable[[], bool] = lambda: False) -> Downloaded:
        """Bring everything that the device needs of a bundle into the store, and verify all of it.

        Args:
            bundle: what a verified assignment names.
            stop: asked now and then; true ends the download, to be resumed by another call.

        Raises:
            BundleError: wrong bytes came too often, or the bundle contradicts itself.
            UnreachableError: nothing came for long, or `stop` said so; calling again resumes.
            StorageError: the disk does not take it.
        """
        began, self._received = time.monotonic(), 0
        parts = self._manifest(bundle, stop)
        index = self._index(bundle, stop)
        blobs = _blobs(parts, index)
        missing = {d: parts for d, parts in blobs.items() if not self._store.has(d)}
        self._chunks((c for parts in missing.values() for c in parts), stop)
        for digest, pieces in missing.items():
            if not self._store.has(digest):
                self._store.assemble(digest, [piece.digest for piece in pieces])
        for piece in {c.digest for parts in missing.values() for c in parts} - blobs.keys():
            self._store.delete(piece)
        size = sum(c.size for c in {c.digest: c for parts in blobs.values() for c in parts}.values())
        return Downloaded(self._received, max(0, size - self._received), time.monotonic() - began)

    def _manifest(self, bundle: AssignedBundle, stop: Callable[[], bool]) -> Manifest:
        return manifest.decode(
            self._single(bundle.digest, bundle.manifest_size, manifest.MANIFEST_LIMIT, stop)
        )

    def _index(self, bundle: AssignedBundle, stop: Callable[[], bool]) -> ChunkIndex:
        return chunks.decode(self._single(bundle.index, bundle.index_size, chunks.INDEX_LIMIT, stop))

    def _single(self, digest: str, size: int, limit: int, stop: Callable[[], bool]) -> bytes:
        if size > limit:
            raise BundleError(f"{digest}: expected at most {limit} bytes, got {size}")
        self._chunks([Chunk(Digest(digest).hex, size)], stop)
        return self._store.get(Digest(digest))

    def _chunks(self, wanted: Iterable[Chunk], stop: Callable[[], bool]) -> None:
        plan = ChunkPlan((c for c in wanted if not self._store.has(c.digest)), patience=self._patience)
        arrivals: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        last = time.monotonic()
        finished: list[Digest] = []
        try:
            while not plan.done:
                self._ask(plan, finished, arrivals)
                if self._take(plan, finished, arrivals):
                    last = time.monotonic()
                self._retry(plan)
                if stop():
                    raise UnreachableError("download: stopped")
                if time.monotonic() - last > self._give_up:
                    raise UnreachableError(f"download: nothing came for {self._give_up:g} s")
        finally:
            self._unsubscribe([*finished, *plan.asked])

    def _ask(
        self, plan: ChunkPlan, finished: list[Digest], arrivals: queue.SimpleQueue[tuple[str, bytes]]
    ) -> None:
        asked = plan.ask(time.monotonic())
        if asked:
            self._unsubscribe(finished)
            finished.clear()
            self._link.subscribe(
                [topics.chunk(digest) for digest in asked], lambda topic, data: arrivals.put((topic, data))
            )

    def _take(
        self, plan: ChunkPlan, finished: list[Digest], arrivals: queue.SimpleQueue[tuple[str, bytes]]
    ) -> bool:
        now = time.monotonic()
        try:
            topic, data = arrivals.get(timeout=min(_TICK, max(0.001, plan.next_time(now) - now)))
        except queue.Empty:
            return False
        digest = _digest_of(topic)
        if digest is None or not data:
            return False
        try:
            good = plan.take(digest, data, now)
        except BundleError:
            self._refused("bad_digest", f"{digest}: wrong bytes on its topic, and too often")
            raise
        if good is None:
            return False
        finished.append(digest)
        if not good:
            self._refused("bad_digest", f"{digest}: wrong bytes on its topic; asked for again")
            self._unsubscribe([digest])
            return False
        self._store.put(digest, data)
        self._received += len(data)
        return True

    def _retry(self, plan: ChunkPlan) -> None:
        late = plan.overdue(time.monotonic())
        self._unsubscribe(late)
        for digest in late:
            if plan.times_overdue(digest) == _REPORT_AFTER:
                self._refused("missing", f"{digest}: nothing on its topic")

    def _unsubscribe(self, digests: Sequence[Digest]) -> None:
        if digests:
            self._link.unsubscribe([topics.chunk(digest) for digest in dict.fromkeys(digests)])


def _blobs(parts: Manifest, index: ChunkIndex) -> dict[Digest, tuple[Chunk, ...]]:
    """Return the chunks of each blob that the device needs; the signed index must fit the signed manifest."""
    wanted: dict[Digest, tuple[Chunk, ...]] = {}
    for layer in parts.for_device():
        pieces = index.blobs.get(layer.digest)
        if pieces is None or sum(piece.size for piece in pieces) != layer.size:
            raise BundleError(f"chunk index: {layer.path} is not there with its {layer.size} bytes")
        wanted[Digest(layer.digest)] = pieces
    return wanted


def _digest_of(topic: str) -> Digest | None:
    try:
        return Digest.from_hex(topic.rpartition("/")[2])
    except WireError:
        return None
