"""Puts blobs together from chunks, in place: each chunk is written once, where it belongs.

A chunk is found wherever the device has it already: in the half of a blob that an earlier download left, as a
blob of its own, or inside the blobs of other bundles. Everything that is found is verified like what comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Final, NamedTuple, TypeAlias

from device_agent.ports import BlobStore, PartialBlob, Wanted
from fleet.bundle import chunks
from fleet.bundle.chunks import Chunk
from fleet.errors import BundleError
from fleet.ids import Digest

#: Told of a verified chunk, on the thread that downloads.
OnChunk: TypeAlias = Callable[[Digest, bytes], None]

#: After so many bytes they are made to survive a power cut: no more than these are fetched again after one.
_SYNC_EVERY: Final = 16 * 1024 * 1024


class _Place(NamedTuple):
    blob: Digest
    offset: int


class Assembly:
    """The blobs of one download, each in a partial file; leaving the context keeps what came."""

    def __init__(
        self, store: BlobStore, blobs: Mapping[Digest, tuple[Chunk, ...]], verified: OnChunk
    ) -> None:
        """Find out what is wanted; nothing is opened yet.

        Args:
            store: takes the blobs.
            blobs: each blob's chunks in their order.
            verified: told of each chunk that was written, wherever it was found.
        """
        self._store: Final = store
        self._verified: Final = verified
        self._blobs: Final = blobs
        self._partial: Final[dict[Digest, PartialBlob]] = {}
        self._places: Final[dict[Digest, list[_Place]]] = {}
        self._sizes: Final[dict[Digest, int]] = {}
        self._unsynced = 0
        for blob, parts in blobs.items():
            offset = 0
            for part in parts:
                self._places.setdefault(part.digest, []).append(_Place(blob, offset))
                self._sizes[part.digest] = part.size
                offset += part.size

    def __enter__(self) -> Assembly:
        """Open the partial blobs."""
        for blob, parts in self._blobs.items():
            self._partial[blob] = self._store.begin(blob, sum(part.size for part in parts))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        for partial in self._partial.values():
            partial.close()

    def open(self) -> list[Wanted]:
        """Return the chunks that are not there yet, in the order of the blobs."""
        return [Wanted(digest, self._sizes[digest], *places[0]) for digest, places in self._places.items()]

    def write(self, digest: Digest, data: bytes) -> None:
        """Write a verified chunk to every place where it belongs."""
        for blob, offset in self._places.pop(digest):
            self._partial[blob].write(offset, data)
        self._verified(digest, data)
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_EVERY:
            self._unsynced = 0
            for partial in self._partial.values():
                partial.sync()

    def finish(self) -> None:
        """Check and store every blob.

        Raises:
            BundleError: the chunks do not make up a blob.
            StorageError: the disk does not take it.
        """
        for partial in self._partial.values():
            partial.finish()

    def reuse(self, held: Iterable[Digest], check_stop: Callable[[], None]) -> None:
        """Take over what the device has.

        Args:
            held: chunk indexes of what is on the device.
            check_stop: called now and then; what it raises ends the search.
        """
        for digest in list(self._places):
            check_stop()
            if not self._left_before(digest) and self._store.has(digest):
                self._copy(digest, _Place(digest, 0))
        for index in held:
            if self._places and self._store.has(index):
                self._copy_from(index, check_stop)

    def _left_before(self, digest: Digest) -> bool:
        """Keep what an earlier download wrote; return whether that is so for this chunk."""
        for blob, offset in self._places[digest]:
            partial = self._partial[blob]
            if not partial.resumed:
                continue
            data = partial.read(offset, self._sizes[digest])
            if _is(digest, data):
                self._places[digest].remove(_Place(blob, offset))
                self.write(digest, data)
                return True
        return False

    def _copy_from(self, index: Digest, check_stop: Callable[[], None]) -> None:
        try:
            listed = chunks.decode(self._store.get(index)).blobs
        except BundleError:
            return  # damaged on the disk: then everything comes from elsewhere
        for blob, parts in listed.items():
            if not self._store.has(Digest(blob)):
                continue
            offset = 0
            for part in parts:
                check_stop()
                if part.digest in self._places:
                    self._copy(part.digest, _Place(Digest(blob), offset))
                offset += part.size

    def _copy(self, digest: Digest, source: _Place) -> None:
        data = self._store.read(source.blob, source.offset, self._sizes[digest])
        if _is(digest, data):
            self.write(digest, data)


def _is(digest: Digest, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == digest.hex
