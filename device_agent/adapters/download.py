"""Downloads a bundle's chunks from wherever they are cheapest, resumably, and puts its blobs together."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from device_agent.adapters.blob_assembly import Assembly, OnChunk
from device_agent.errors import UnreachableError
from device_agent.ports import Arrival, BlobStore, ChunkSource, Wanted
from device_agent.update.chunk_plan import ChunkPlan, Patience
from device_agent.update.sourcing import Price, Sourcing
from device_agent.update.token_bucket import TokenBucket
from fleet.bundle import chunks, manifest, packing
from fleet.bundle.chunks import Chunk, ChunkIndex
from fleet.bundle.manifest import Manifest
from fleet.errors import BundleError
from fleet.ids import Digest
from fleet.trust.assignment import AssignedBundle

#: Called with a short reason ("bad_digest", "missing") and a line for a person.
OnRefusal: TypeAlias = Callable[[str, str], None]
#: Asked now and then; true ends the download, to be resumed by another call.
Stop: TypeAlias = Callable[[], bool]
_TICK: Final = 0.25


class Downloaded(NamedTuple):
    """What a download took.

    Attributes:
        received: bytes that came now, packed as they were.
        reused: bytes that were there already, from a download that was cut off or from another version.
        by_source: bytes that came now, by source.
    """

    received: int
    reused: int
    seconds: float
    by_source: Mapping[str, int] = {}


class Priced(NamedTuple):
    """A source, and what its bytes cost: the cheaper is asked first.

    Attributes:
        hold_back: seconds without any other source before this one is asked.
    """

    source: ChunkSource
    cost: float = 0.0
    hold_back: float = 0.0


class Downloader:
    """Brings bundles into the store. One download at a time."""

    def __init__(
        self,
        sources: Sequence[Priced],
        store: BlobStore,
        refused: OnRefusal,
        patience: Patience | None = None,
        give_up: float = 60.0,
        held: Callable[[], Iterable[Digest]] = tuple,
        verified: OnChunk = lambda _digest, _data: None,
    ) -> None:
        """Use these sources and this store.

        Args:
            sources: at least one.
            store: takes the bytes as they come.
            refused: told of chunks that are tampered with or missing.
            patience: how long to wait for a chunk before asking again.
            give_up: seconds without a single chunk after which `fetch` ends; nothing that came is lost.
            held: the chunk indexes of what is on the device: what it has in common is copied.
            verified: told of each chunk when it is in the store, or in its place in a blob; it never raises.
        """
        self._sources: Final = {offered.source.name: offered for offered in sources}
        self._store: Final = store
        self._refused: Final = refused
        self._patience: Final = patience
        # Who is held back must have had its chance.
        self._give_up: Final = give_up + max(offered.hold_back for offered in sources)
        self._held: Final = held
        self._verified: Final = verified

    def fetch(self, bundle: AssignedBundle, stop: Stop = lambda: False, rate: int = 0) -> Downloaded:
        """Bring everything that the device needs of a bundle into the store, and verify all of it.

        Args:
            bundle: what a verified assignment names.
            stop: asked now and then; true ends the download.
            rate: bytes a second; 0 for all that the line gives.

        Raises:
            BundleError: wrong bytes came too often, or the bundle contradicts itself.
            UnreachableError: nothing came for long, or `stop` said so; calling again resumes.
            StorageError: the disk does not take it.
        """
        with self._job(Digest(bundle.index), stop, rate) as job:
            raw = job.single(bundle.digest, bundle.manifest_size, manifest.MANIFEST_LIMIT)
            index = chunks.decode(job.single(bundle.index, bundle.index_size, chunks.INDEX_LIMIT))
            return job.blobs(_blobs(manifest.decode(raw), index), self._held())

    def fetch_parcel(self, index: Digest, size: int, stop: Stop = lambda: False, rate: int = 0) -> Downloaded:
        """Bring every blob that a chunk index lists into the store: a delta, or whatever is no bundle.

        Args:
            index: digest of the chunk index, from signed metadata.
            size: its size in bytes.
            stop: as in `fetch`.
            rate: as in `fetch`.

        Raises:
            BundleError: wrong bytes came too often, or the index is malformed.
            UnreachableError: nothing came for long, or `stop` said so; calling again resumes.
            StorageError: the disk does not take it.
        """
        with self._job(index, stop, rate) as job:
            listed = chunks.decode(job.single(str(index), size, chunks.INDEX_LIMIT))
            return job.blobs({Digest(blob): parts for blob, parts in listed.blobs.items()}, self._held())

    @contextlib.contextmanager
    def _job(self, index: Digest, stop: Stop, rate: int) -> Iterator[_Job]:
        alone = len(self._sources) == 1
        prices = {
            name: Price(
                cost=offered.cost,
                holds=None if alone else offered.source.holds(index),
                hold_back=offered.hold_back,
            )
            for name, offered in self._sources.items()
        }
        try:
            yield _Job(
                {name: offered.source for name, offered in self._sources.items()},
                Sourcing(prices, time.monotonic()),
                self._store,
                self._refused,
                self._verified,
                _Terms(self._patience, self._give_up, TokenBucket(rate), stop),
            )
        finally:
            for offered in self._sources.values():
                offered.source.rest()


class _Terms(NamedTuple):
    """How long a download waits, how fast it may be, and what ends it."""

    patience: Patience | None
    give_up: float
    bucket: TokenBucket
    stop: Stop


class _Job:
    """One download."""

    def __init__(
        self,
        sources: Mapping[str, ChunkSource],
        sourcing: Sourcing,
        store: BlobStore,
        refused: OnRefusal,
        verified: OnChunk,
        terms: _Terms,
    ) -> None:
        self._sources: Final = sources
        self._sourcing: Final = sourcing
        self._store: Final = store
        self._refused: Final = refused
        self._verified: Final = verified
        self._terms: Final = terms
        self._began: Final = time.monotonic()
        self._arrivals: Final[queue.SimpleQueue[Arrival]] = queue.SimpleQueue()
        self._asked: Final[dict[Digest, str]] = {}
        self._finished: Final[dict[str, list[Digest]]] = {name: [] for name in sources}
        self._told: Final[set[Digest]] = set()
        self._by_source: Final[dict[str, int]] = {}
        self._brought = 0

    def single(self, digest: str, size: int, limit: int) -> bytes:
        """Return a small blob that travels as one chunk."""
        if size > limit:
            raise BundleError(f"{digest}: expected at most {limit} bytes, got {size}")
        wanted = Digest(digest)
        if not self._there(wanted):
            self._bring([Wanted(wanted, size, wanted, 0)], self._store.put)
            self._verified(wanted, self._store.get(wanted))
        return self._store.get(wanted)

    def _there(self, digest: Digest) -> bool:
        """Return whether a blob need not be brought; one that the disk has damaged is brought anew."""
        if self._store.intact(digest):
            return True
        self._store.delete(digest)
        return False

    def blobs(self, blobs: Mapping[Digest, tuple[Chunk, ...]], held: Iterable[Digest]) -> Downloaded:
        """Bring the blobs that are not there, and say what that took."""
        missing = {digest: parts for digest, parts in blobs.items() if not self._there(digest)}
        with Assembly(self._store, missing, self._verified) as assembly:
            assembly.reuse(held, self._check_stop)
            self._bring(assembly.open(), assembly.write)
            assembly.finish()
        unique = {part.sha256: part.size for parts in blobs.values() for part in parts}
        return Downloaded(
            sum(self._by_source.values()),
            max(0, sum(unique.values()) - self._brought),
            time.monotonic() - self._began,
            dict(self._by_source),
        )

    def _bring(self, wanted: Iterable[Wanted], sink: OnChunk) -> None:
        places = {chunk.digest: chunk for chunk in wanted}
        plan = ChunkPlan(
            (Chunk(chunk.digest.hex, chunk.size) for chunk in places.values()),
            patience=self._terms.patience,
            bucket=self._terms.bucket,
        )
        last = time.monotonic()
        try:
            while not plan.done:
                self._ask(plan, places)
                # Who may not ask yet has not waited in vain.
                held_up = not plan.asked and self._terms.bucket.ready_at(time.monotonic()) > time.monotonic()
                if self._take(plan, sink) or held_up:
                    last = time.monotonic()
                self._retry(plan)
                self._check_stop()
                if time.monotonic() - last > self._terms.give_up:
                    raise UnreachableError(f"download: nothing came for {self._terms.give_up:g} s")
        finally:
            for digest, name in self._asked.items():
                self._finished[name].append(digest)
            self._asked.clear()
            self._drop()

    def _check_stop(self) -> None:
        if self._terms.stop():
            raise UnreachableError("download: stopped")

    def _ask(self, plan: ChunkPlan, places: Mapping[Digest, Wanted]) -> None:
        now = time.monotonic()
        chosen: dict[Digest, str] = {}

        def may(digest: Digest) -> bool:
            name = self._sourcing.choose(digest, now)
            if name is not None:
                chosen[digest] = name
            return name is not None

        asked = plan.ask(now, may)
        if not asked:
            return
        self._drop()
        for name, source in self._sources.items():
            here = [places[digest] for digest in asked if chosen[digest] == name]
            if here:
                self._asked.update((chunk.digest, name) for chunk in here)
                source.ask(here, self._arrivals.put)

    def _take(self, plan: ChunkPlan, sink: OnChunk) -> bool:
        """Wait a moment for what arrives, and judge it; return whether it brought the download on."""
        now = time.monotonic()
        times = (time for time in (plan.next_time(now), self._sourcing.ready_at(now)) if time > now)
        try:
            arrival = self._arrivals.get(timeout=max(0.001, min((now + _TICK, *times)) - now))
        except queue.Empty:
            return False
        if self._asked.get(arrival.digest) != arrival.source:
            return False  # a repetition, or too late: it was asked for elsewhere
        if arrival.data is None:
            self._not_here(plan, arrival)
            return False
        return self._judge(plan, sink, arrival.source, arrival.digest, arrival.data)

    def _not_here(self, plan: ChunkPlan, arrival: Arrival) -> None:
        self._sourcing.missing(arrival.source, arrival.digest)
        if arrival.trouble:
            self._sourcing.troubled(arrival.source, time.monotonic())
        self._done_with(arrival.digest)
        plan.give_back(arrival.digest)

    def _judge(self, plan: ChunkPlan, sink: OnChunk, name: str, digest: Digest, data: bytes) -> bool:
        now = time.monotonic()
        self._done_with(digest)
        chunk = data
        with contextlib.suppress(BundleError):  # what makes no chunk is not the chunk either
            chunk = packing.unpack(data, plan.size_of(digest))
        try:
            good = plan.take(digest, chunk, now)
        except BundleError:
            self._refused("bad_digest", f"{digest}: wrong bytes from {name}, and too often")
            raise
        if good:
            self._sourcing.arrived(name, now)
            sink(digest, chunk)
            self._brought += len(chunk)
            self._by_source[name] = self._by_source.get(name, 0) + len(data)
            return True
        self._refused("bad_digest", f"{digest}: wrong bytes from {name}; asked for again")
        self._sourcing.missing(name, digest)
        self._drop()
        return False

    def _done_with(self, digest: Digest) -> None:
        self._finished[self._asked.pop(digest)].append(digest)

    def _retry(self, plan: ChunkPlan) -> None:
        now = time.monotonic()
        late: dict[str, list[Digest]] = {}
        for digest in plan.overdue(now):
            name = self._asked[digest]
            late.setdefault(name, []).append(digest)
            self._done_with(digest)
            if digest not in self._told and (len(self._sources) > 1 or plan.times_overdue(digest) > 1):
                # The server publishes again what the broker has lost.
                self._told.add(digest)
                self._refused("missing", f"{digest}: nothing from {name}")
        for name, digests in late.items():
            self._sourcing.lost(name, digests, now)
        if late:
            self._drop()

    def _drop(self) -> None:
        for name, digests in self._finished.items():
            if digests:
                self._sources[name].drop(digests)
                digests.clear()


def _blobs(parts: Manifest, index: ChunkIndex) -> dict[Digest, tuple[Chunk, ...]]:
    """Return the chunks of each blob that the device needs; the signed index must fit the signed manifest."""
    wanted: dict[Digest, tuple[Chunk, ...]] = {}
    for layer in parts.for_device():
        pieces = index.blobs.get(layer.digest)
        if pieces is None or sum(piece.size for piece in pieces) != layer.size:
            raise BundleError(f"chunk index: {layer.path} is not there with its {layer.size} bytes")
        wanted[Digest(layer.digest)] = pieces
    return wanted
