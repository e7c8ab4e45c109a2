"""What the services need from a store of content-addressed files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from fleet.ids import Digest


class BlobStore(Protocol):
    """Files by the digest of their bytes. What is in it is complete and is what its name says."""

    def has(self, digest: Digest) -> bool:
        """Return whether the file is there."""

    def size(self, digest: Digest) -> int:
        """Return the file's size in bytes.

        Raises:
            NotFoundError: it is not there.
        """

    def read(self, digest: Digest) -> bytes:
        """Return the file's bytes, checked against the digest.

        Raises:
            NotFoundError: it is not there.
            BundleError: the stored bytes were altered.
        """

    def stream(self, digest: Digest) -> Iterator[bytes]:
        """Yield the file in pieces.

        Raises:
            NotFoundError: it is not there.
        """

    def read_range(self, digest: Digest, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or fewer where the file ends; they are not checked.

        Raises:
            NotFoundError: it is not there.
        """

    def address(self, digest: Digest) -> str:
        """Return a URL under which the file can be read for some minutes without this server, or ""."""

    def delete(self, digest: Digest) -> None:
        """Forget the file, if it is there."""

    def write(self, digest: Digest, pieces: Iterable[bytes], limit: int) -> int:
        """Store a file durably and return its size; a file that is there already stays as it is.

        Raises:
            BundleError: the bytes are not the digest's.
            TooLargeError: more than `limit` bytes came.
        """
