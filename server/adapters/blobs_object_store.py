"""Content-addressed files in an object store: S3 and what speaks like it, through obstore."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from fleet.errors import MissingExtraError
from fleet.ids import Digest
from server.adapters.blob_bytes import CheckedPieces, checked, missing
from server.errors import NotFoundError, SettingsError, StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

SCHEMES: Final = ("s3", "file", "memory")
_PIECE: Final = 1024 * 1024
#: How long an address that devices are given can be used.
_ADDRESS_LIFE: Final = timedelta(minutes=15)
#: A store that does not answer is asked again for so long; somebody waits for an answer meanwhile.
_PATIENCE: Final = timedelta(seconds=20)
_RETRIES: Final = 3
#: Of the store's words, which may go into every detail.
_WORDS: Final = 300


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
        self._error: Final = BaseError
        self._signs: Final = scheme == "s3"
        try:
            retry: RetryConfig = {"max_retries": _RETRIES, "retry_timeout": _PATIENCE}
            self._store: Final[ObjectStore] = from_url(url, retry_config=retry)
        except (BaseError, ValueError, OSError) as error:
            raise SettingsError(f"blobs {url}: {error}") from error

    @staticmethod
    def _path(digest: Digest) -> str:
        return f"sha256/{digest.hex}"

    @contextlib.contextmanager
    def _asking(self, digest: Digest) -> Iterator[None]:
        """Say in our words what the store says.

        Raises:
            NotFoundError: the file is not there.
            StoreError: the store does not answer, or refuses.
        """
        try:
            yield
        except FileNotFoundError:
            raise missing(digest) from None
        except self._error as error:
            words = " ".join(str(error).partition("Debug source")[0].split())
            raise StoreError(f"object store: {words[:_WORDS]}") from error

    def has(self, digest: Digest) -> bool:
        """Return whether the file is there."""
        try:
            self.size(digest)
        except NotFoundError:
            return False
        return True

    def size(self, digest: Digest) -> int:
        """Return the file's size in bytes.

        Raises:
            NotFoundError: it is not there.
        """
        with self._asking(digest):
            return int(self._api.head(self._store, self._path(digest))["size"])

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
        with self._asking(digest):
            found = self._api.get(self._store, self._path(digest))
            for piece in found.stream(min_chunk_size=_PIECE):
                yield bytes(piece)

    def read_range(self, digest: Digest, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or fewer where the file ends; they are not checked.

        Raises:
            NotFoundError: it is not there.
        """
        with self._asking(digest):
            return bytes(self._api.get_range(self._store, self._path(digest), start=start, length=size))

    def address(self, digest: Digest) -> str:
        """Return a URL under which the file can be read for some minutes without this server, or ""."""
        if not self._signs:
            return ""
        return str(self._api.sign(self._store, "GET", self._path(digest), _ADDRESS_LIFE))

    def delete(self, digest: Digest) -> None:
        """Forget the file, if it is there."""
        with contextlib.suppress(NotFoundError), self._asking(digest):
            self._api.delete(self._store, self._path(digest))

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
        with self._asking(digest):
            self._api.put(self._store, self._path(digest), iter(promised))
        return promised.size
