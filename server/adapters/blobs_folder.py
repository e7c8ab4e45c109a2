"""Content-addressed files in a folder: complete or absent, whatever is killed when."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from fleet.ids import Digest
from server.adapters.blob_bytes import CheckedPieces, checked, missing
from server.durable import sync_folder

_PIECE: Final = 1024 * 1024
_UPLOADING: Final = "uploading-"


class FolderBlobStore:
    """Implements `server.ports.blobs.BlobStore`: `<folder>/<two digits>/<digits>`."""

    def __init__(self, folder: Path) -> None:
        """Use the folder, and remove what uploads left behind when the server was killed."""
        self._folder: Final = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_UPLOADING}*"):
            left.unlink()

    def _path(self, digest: Digest) -> Path:
        return self._folder / digest.hex[:2] / digest.hex

    def has(self, digest: Digest) -> bool:
        """Return whether the file is there."""
        return self._path(digest).is_file()

    def size(self, digest: Digest) -> int:
        """Return the file's size in bytes.

        Raises:
            NotFoundError: it is not there.
        """
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            raise missing(digest) from None

    def read(self, digest: Digest) -> bytes:
        """Return the file's bytes, checked against the digest.

        Raises:
            NotFoundError: it is not there.
            BundleError: the stored bytes were altered.
        """
        return checked(digest, self.stream(digest))

    def stream(self, digest: Digest) -> Iterator[bytes]:
        """Yield the file in pieces.

        Raises:
            NotFoundError: it is not there.
        """
        try:
            file = self._path(digest).open("rb")
        except FileNotFoundError:
            raise missing(digest) from None
        with file:
            while piece := file.read(_PIECE):
                yield piece

    def read_range(self, digest: Digest, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or fewer where the file ends; they are not checked.

        Raises:
            NotFoundError: it is not there.
        """
        try:
            with self._path(digest).open("rb") as file:
                return os.pread(file.fileno(), size, start)
        except FileNotFoundError:
            raise missing(digest) from None

    def address(self, digest: Digest) -> str:
        """Return "": only this server reads the folder."""
        del digest
        return ""

    def delete(self, digest: Digest) -> None:
        """Forget the file, if it is there."""
        self._path(digest).unlink(missing_ok=True)

    def write(self, digest: Digest, pieces: Iterable[bytes], limit: int) -> int:
        """Store a file durably and return its size; a file that is there already stays as it is.

        Raises:
            BundleError: the bytes are not the digest's.
            TooLargeError: more than `limit` bytes came.
        """
        if self.has(digest):
            return self.size(digest)
        promised = CheckedPieces(digest, pieces, limit)
        handle, name = tempfile.mkstemp(prefix=_UPLOADING, dir=self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(promised)
                file.flush()
                os.fsync(file.fileno())
            path = self._path(digest)
            path.parent.mkdir(exist_ok=True)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        sync_folder(self._folder)
        return promised.size
