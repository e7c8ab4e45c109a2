"""What all stores of blobs make sure of, whatever they keep them in: the bytes are those of the digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

from fleet.errors import BundleError
from fleet.ids import Digest
from server.errors import NotFoundError, TooLargeError


class CheckedPieces:
    """Passes pieces on, and raises at the end when they were others than promised."""

    def __init__(self, digest: Digest, pieces: Iterable[bytes], limit: int) -> None:
        """Pass these on, `limit` bytes at the most."""
        self._digest: Final = digest
        self._pieces: Final = pieces
        self._limit: Final = limit
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces, but empty ones.

        Raises:
            BundleError: the bytes are not the digest's.
            TooLargeError: more than the limit came.
        """
        hasher = hashlib.sha256()
        for piece in self._pieces:
            self.size += len(piece)
            if self.size > self._limit:
                raise TooLargeError(f"blob: expected at most {self._limit} bytes")
            hasher.update(piece)
            if piece:
                yield piece
        if hasher.hexdigest() != self._digest.hex:
            raise BundleError(f"blob: expected {self._digest}, got sha256:{hasher.hexdigest()}")


def checked(digest: Digest, pieces: Iterable[bytes]) -> bytes:
    """Return stored pieces as one.

    Raises:
        BundleError: they were altered.
    """
    data = b"".join(pieces)
    got = Digest.of(data)
    if got != digest:
        raise BundleError(f"blob {digest}: the stored bytes are {got}")
    return data


def missing(digest: Digest) -> NotFoundError:
    """Return the error of a blob that is not there."""
    return NotFoundError(f"blob {digest}: not stored")
