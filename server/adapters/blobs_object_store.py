"""Content-addressed files in an object store: S3 and what speaks like it, through obstore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from fleet.errors import MissingExtraError
from fleet.ids import Digest
from server.adapters.blob_bytes import CheckedPieces, checked, missing
from server.errors import SettingsError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES: Final = ("s3", "file", "memory")
_PIECE: Final = 1024 * 1024
#: How long an address that devices are given can be used.
_ADDRESS_LIFE: Final = timedelta(minutes=15)


class ObjectBlobStore:
    """Implements `server.ports.blobs.BlobStore`; an upload shows when it is whole, or never."""

    def __init__(self, url: str) -> None:
        """Open the store.

        Args:
            url: `s3://bucket/prefix` (credentials, region and endpoint from the environment, as AWS's tools
                read them), `file:///folder`, or `memory:///`.

        Raises:
            SettingsError: it is none of these, or cannot be opened.
            MissingExtraError: obstore is not installed.
        """
        scheme = urlsplit(url).scheme
        if scheme not in SCHEMES:
            raise SettingsError(f"blobs: expected one of {', '.join(SCHEMES)}:// URLs, got {url!r}")
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ModuleNotFoundError as error:
            raise MissingExtraError("an object store for blobs", "object-store") from error
        self._api: Final[Any] = obstore
        self._signs: Final = scheme == "s3"
        try:
            self._store: Final[ObjectStore] = from_url(url)
        except (BaseError, ValueError, OSError) as error:
            raise SettingsError(f"blobs {url}: {error}") from error

    @staticmethod
    def _path(digest: Digest) -> str:
        return f"sha256/{digest.hex}"

    def has(self, digest: Digest) -> bool:
        """Return whether the file is there."""
        try:
            self._api.head(self._store, self._path(digest))
        except FileNotFoundError:
            return False
        return True

    def size(self, digest: Digest) -> int:
        """Return the file's size in bytes.

        Raises:
            NotFoundError: it is not there.
        """
        try:
            return int(self._api.head(self._store, self._path(digest))["size"])
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
            found = self._api.get(self._store, self._path(digest))
        except FileNotFoundError:
            raise missing(digest) from None
        for piece in found.stream(min_chunk_size=_PIECE):
            yield bytes(piece)

    def read_range(self, digest: Digest, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or fewer where the file ends; they are not checked.

        Raises:
            NotFoundError: it is not there.
        """
        try:
            return bytes(self._api.get_range(self._store, self._path(digest), start=start, length=size))
        except FileNotFoundError:
            raise missing(digest) from None

    def address(self, digest: Digest) -> str:
        """Return a URL under which the file can be read for some minutes without this server, or ""."""
        if not self._signs:
            return ""
        return str(self._api.sign(self._store, "GET", self._path(digest), _ADDRESS_LIFE))

    def delete(self, digest: Digest) -> None:
        """Forget the file, if it is there."""
        try:
            self._api.delete(self._store, self._path(digest))
        except FileNotFoundError:
            return

    def write(self, digest: Digest, pieces: Iterable[bytes], limit: int) -> int:
        """Store a file durably and return its size; a file that is there already stays as it is.

        Raises:
            BundleError: the bytes are not the digest's.
            TooLargeError: more than `limit` bytes came.
        """
        if self.has(digest):
            return self.size(digest)
        promised = CheckedPieces(digest, pieces, limit)
        # What the iterator raises ends the upload before it is completed, so nothing appears.
        self._api.put(self._store, self._path(digest), iter(promised))
        return promised.size
