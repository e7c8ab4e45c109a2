"""What a site gateway puts on its site's broker: chunk by chunk while a bundle comes in, or from the disk.

Neighbours need not wait until the gateway has all of a bundle. A chunk that a download of this device has
verified, for itself or for them, is put on the broker at once, after the manifest and the index; what could
not be passed on so is read from the disk when the bundle is whole. Last of all comes a *mark*, a chunk of a
few bytes made from the index's digest. A broker's saved state is one picture of one moment, so a broker that
still retains the mark retains everything that was acknowledged before it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, Protocol

from device_agent.adapters.site_ledger import SiteLedger
from device_agent.errors import UnreachableError
from device_agent.ports import BlobStore, OnMessage, Wanted
from device_agent.update.site_plan import Parcel, fitting
from fleet.bundle import chunks
from fleet.errors import BundleError, KedgeError
from fleet.ids import Digest
from fleet.wire import topics

_LOG: Final = logging.getLogger(__name__)
#: Seconds to wait for a retained mark before the broker counts as having lost its parcel.
_PATIENCE: Final = 2.0
#: Seconds to wait for the broker's acknowledgement of one chunk.
_PUBLISHED: Final = 30.0
#: The same while a download goes on, which is not to wait for a broker that hangs.
_PASSED_ON: Final = 5.0


class SiteLink(Protocol):
    """A connection to the site's broker, of a client that may publish chunks."""

    connected: bool

    def put(self, topic: str, payload: bytes, seconds: float) -> None:
        """Have the broker retain a message, and return when it has acknowledged that.

        Raises:
            UnreachableError: it has not, in so many seconds.
        """

    def subscribe(self, topics: Sequence[str], on_message: OnMessage) -> None:
        """Subscribe to exact topics, or with `+`; return without waiting."""

    def unsubscribe(self, topics: Sequence[str]) -> None:
        """Stop the subscriptions."""

    def start(self) -> None:
        """Connect, and stay connected."""

    def stop(self) -> None:
        """Disconnect."""

    def certificate_renewed(self) -> None:
        """Show the certificate that is on disk now from the next connection on.

        Raises:
            StateError: it is unusable.
        """


class Shelf:
    """The site's broker's retained chunks. `pass_on` may be called from any thread, the rest from one."""

    def __init__(
        self,
        link: SiteLink,
        store: BlobStore,
        ledger: SiteLedger,
        budget: int,
        patience: float = _PATIENCE,
    ) -> None:
        """Put what is in this store on this broker.

        Args:
            link: the connection.
            store: holds what was downloaded.
            ledger: what earlier lives have put there.
            budget: bytes that the broker may retain.
            patience: seconds to wait for a retained mark.
        """
        self._patience: Final = patience
        self._link: Final = link
        self._store: Final = store
        self._ledger: Final = ledger
        self._budget: Final = budget
        self._lock: Final = threading.RLock()
        self._expected: dict[Digest, Parcel] = {}
        self._open: Final[dict[Digest, frozenset[Digest]]] = {}
        self._there: Final[dict[Digest, int]] = {}
        self._life = 0
        self._stopped = False
        self.published_bytes = 0

    def stop(self) -> None:
        """Put nothing more."""
        self._stopped = True

    def reconnected(self) -> None:
        """Note that the broker may have lost what it retained; called on the link's thread."""
        self._life += 1

    def expect(self, parcels: Iterable[Parcel]) -> None:
        """Pass on the chunks of these when they come; those that are whole need not be named."""
        expected = {Digest(parcel.index): parcel for parcel in parcels}
        with self._lock:
            self._expected = expected
            for index in self._open.keys() - expected.keys():
                self._open.pop(index, None)

    def pass_on(self, digest: Digest, data: bytes) -> None:
        """Put a chunk on the broker if a neighbour is to have it; what cannot be put now is put later.

        Args:
            digest: the chunk's, or an index's.
            data: its bytes, verified.
        """
        expected = self._expected.get(digest)
        if expected is None and not any(digest in awaited for awaited in list(self._open.values())):
            return
        # Who clears or completes another parcel waits long for a broker that hangs; the download does not.
        if not self._lock.acquire(timeout=_PASSED_ON):
            self._open.clear()
            return
        try:
            if expected is not None:
                self.begin(expected)
            else:
                self._put_once(digest, data, _PASSED_ON)
        except KedgeError as error:
            _LOG.info("site: not passed on, but published when all of it is here: %s", error)
            self._open.clear()
        finally:
            self._lock.release()

    def begin(self, parcel: Parcel) -> bool:
        """Put a parcel's index on the broker, and from now on its chunks as they come.

        Args:
            parcel: its index is in the store.

        Returns:
            Whether the budget has room for all of it; if not, nothing is put.

        Raises:
            UnreachableError: the broker is gone.
            StorageError: the disk does not take it.
        """
        if not self.has_room(parcel):
            return False
        with self._lock:
            sizes = self.sizes(parcel)
            if self._ledger.parcels().get(parcel.index) != sizes:
                self._ledger.add(parcel.index, sizes)
            self._open[Digest(parcel.index)] = frozenset(sizes)
            first = [] if parcel.bundle is None else [Digest(parcel.bundle.digest)]
            for digest in (*first, Digest(parcel.index)):
                if self._store.has(digest):
                    self._put_once(digest, self._store.get(digest), _PASSED_ON)
        return True

    def complete(self, parcel: Parcel) -> None:
        """Put all that is not there yet of a parcel that is whole in the store, and at last its mark.

        Raises:
            UnreachableError: the broker is gone, or was for a moment.
            BundleError: it was altered on the disk.
            StorageError: the disk does not give it.
        """
        life = self._life
        for piece in self._pieces(parcel):
            if self._there.get(piece.digest) != self._life:
                self._put_once(piece.digest, self._read(piece), _PUBLISHED)
        if self._life != life:
            raise UnreachableError("site: the broker was gone for a moment, and may have lost what it had")
        mark = _mark(parcel.index)
        self._put_once(Digest.of(mark), mark, _PUBLISHED)

    def mend(self, digest: Digest, whole: Iterable[Parcel]) -> None:
        """Put a chunk again that a neighbour has missed or got spoilt.

        Args:
            digest: the chunk's.
            whole: what is served; of what is still coming, the chunk is put again when all of it is here.

        Raises:
            UnreachableError: the broker is gone.
            BundleError: it was altered on the disk.
        """
        with self._lock:
            self._there.pop(digest, None)
        pieces = (piece for parcel in whole for piece in self._pieces(parcel))
        for piece in (piece for piece in pieces if piece.digest == digest):
            self._put_once(digest, self._read(piece), _PUBLISHED)
            return

    def clear(self, wanted: Collection[str]) -> list[str]:
        """Clear the chunks of all parcels but these; return the indexes of those that are gone.

        Raises:
            UnreachableError: the broker is gone; another call goes on where this one ended.
            StorageError: the disk does not take it.
        """
        with self._lock:
            ledger = self._ledger.parcels()
            leaving = [index for index in ledger if index not in wanted]
            kept = {digest for index in ledger if index in wanted for digest in ledger[index]}
            for index in leaving:
                # The mark first: where it is retained, everything must be.
                for digest in reversed(ledger[index]):
                    if digest not in kept:
                        self._there.pop(digest, None)
                        self._link.put(topics.chunk(digest), b"", _PUBLISHED)
                self._ledger.remove(index)
            return leaving

    def is_here(self, parcel: Parcel) -> bool:
        """Return whether all of a parcel is in the store."""
        if not self._store.has(Digest(parcel.index)):
            return False
        return all(self._store.has(Digest(blob)) for blob in self._listed(parcel.index).blobs)

    def has_room(self, parcel: Parcel) -> bool:
        """Return whether the budget has room for a parcel whose index is in the store."""
        wanted = {index: dict(sizes) for index, sizes in self._ledger.parcels().items()}
        return parcel.index in fitting({**wanted, parcel.index: self.sizes(parcel)}, self._budget)

    def known(self, parcel: Parcel) -> bool:
        """Return whether some of a parcel may be on the broker."""
        return parcel.index in self._ledger.parcels()

    def retained(self, parcel: Parcel) -> bool:
        """Return whether the broker has all of a parcel."""
        came, mark = threading.Event(), _mark(parcel.index)
        topic = topics.chunk(Digest.of(mark))
        self._link.subscribe([topic], lambda _topic, payload: came.set() if payload == mark else None)
        try:
            return came.wait(self._patience)
        finally:
            self._link.unsubscribe([topic])

    def sizes(self, parcel: Parcel) -> dict[Digest, int]:
        """Return what a parcel whose index is in the store takes on the broker: chunks, index and mark."""
        listed = self._listed(parcel.index).blobs.values()
        sizes = {piece.digest: piece.size for pieces in listed for piece in pieces}
        mark = _mark(parcel.index)
        return {**sizes, Digest(parcel.index): parcel.index_size, Digest.of(mark): len(mark)}

    def _pieces(self, parcel: Parcel) -> Iterator[Wanted]:
        """Yield the parcel's chunks and where they lie, the index last."""
        for blob, pieces in self._listed(parcel.index).blobs.items():
            offset = 0
            for piece in pieces:
                yield Wanted(piece.digest, piece.size, Digest(blob), offset)
                offset += piece.size
        index = Digest(parcel.index)
        yield Wanted(index, parcel.index_size, index, 0)

    def _listed(self, index: str) -> chunks.ChunkIndex:
        return chunks.decode(self._store.get(Digest(index)))

    def _read(self, piece: Wanted) -> bytes:
        return self._store.read(piece.blob, piece.offset, piece.size)

    def _put_once(self, digest: Digest, data: bytes, seconds: float) -> None:
        if Digest.of(data) != digest:
            raise BundleError(f"site: {digest} was altered on the disk")
        with self._lock:
            life = self._life
            if self._there.get(digest) == life or not data:
                return
            if self._stopped:
                raise UnreachableError("site: stopped")
            self._link.put(topics.chunk(digest), data, seconds)
            self._there[digest] = life
            self.published_bytes += len(data)


def _mark(index: str) -> bytes:
    return f"kedge site: all of {index} is here".encode()
