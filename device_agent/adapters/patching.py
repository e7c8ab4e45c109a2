"""Makes a bundle's files from those of another bundle and a patch, straight into the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from device_agent.errors import StorageError, UnreachableError
from device_agent.ports import BlobStore, PartialBlob
from fleet.delta import patch
from fleet.delta.decode import Read, apply
from fleet.delta.patch import PatchedFile
from fleet.ids import Digest

#: Written bytes are made to survive a power cut from time to time, so that the last sync is short.
_SYNC_EVERY: Final = 16 * 1024 * 1024


class Patcher:
    """Applies patches that lie in the store. Whatever fails leaves nothing half made."""

    def __init__(self, store: BlobStore, free_bytes: Callable[[], int]) -> None:
        """Use this store.

        Args:
            store: holds the old files and the patch, and takes the new files.
            free_bytes: what the disk has left.
        """
        self._store: Final = store
        self._free_bytes: Final = free_bytes

    def apply(self, digest: Digest, stop: Callable[[], bool]) -> int:
        """Make every file that a patch can make; return how many bytes that is.

        Files that are there already, and those whose old file is not, are passed over.

        Args:
            digest: of the patch, which is in the store.
            stop: asked now and then; true ends it, and another call begins again.

        Raises:
            DeltaError: the patch is malformed, or made for other files.
            BundleError: what came out is not the file that was promised.
            StorageError: the disk does not give or take it, or has no room.
            UnreachableError: `stop` said so.
        """
        read = self._reader(digest)
        todo = [file for file in patch.files(read) if self._possible(file)]
        needed, free = sum(file.size for file in todo), self._free_bytes()
        if free < needed:
            raise StorageError(f"patch: expected {needed} free bytes, got {free}")
        for file in todo:
            self._make(file, read, stop)
        return needed

    def _possible(self, file: PatchedFile) -> bool:
        return not self._store.has(Digest(file.blob)) and self._store.has(Digest(file.base))

    def _make(self, file: PatchedFile, read: Read, stop: Callable[[], bool]) -> None:
        partial = self._store.begin(Digest(file.blob), file.size)
        try:
            self._write(partial, file, read, stop)
            partial.finish()
        finally:
            partial.close()

    def _write(self, partial: PartialBlob, file: PatchedFile, read: Read, stop: Callable[[], bool]) -> None:
        offset = synced = 0
        for piece in apply(patch.part(read, file), self._reader(Digest(file.base)), file.size):
            if stop():
                raise UnreachableError("patch: stopped")
            partial.write(offset, piece)
            offset += len(piece)
            if offset - synced >= _SYNC_EVERY:
                partial.sync()
                synced = offset

    def _reader(self, digest: Digest) -> Read:
        return lambda offset, size: self._store.read(digest, offset, size)
