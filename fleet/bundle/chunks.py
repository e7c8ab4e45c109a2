"""Cutting blobs into content-addressed chunks, and the index that lists them.

A device learns the index's digest from signed metadata, so every chunk is verified on arrival, and the
whole blob once more by its own digest.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fleet.errors import BundleError, KedgeError
from fleet.ids import Digest, plain

#: Bytes in a chunk: few enough for a broker's queue, many enough for its throughput.
CHUNK_SIZE: Final = 256 * 1024
#: No index is larger; it is one chunk itself.
INDEX_LIMIT: Final = 512 * 1024


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """One chunk: 64 hex digits of its SHA-256, and its bytes."""

    sha256: str
    size: int

    @property
    def digest(self) -> Digest:
        """The chunk's content address."""
        return Digest.from_hex(self.sha256)


class ChunkIndex(msgspec.Struct, frozen=True, kw_only=True):
    """Which chunks make up each blob that a device needs of a bundle, manifest included, in order."""

    blobs: dict[str, tuple[Chunk, ...]]


def cut(blob: bytes, size: int = CHUNK_SIZE) -> list[bytes]:
    """Return the blob's chunks in order; an empty blob is one empty chunk."""
    return [blob[i : i + size] for i in range(0, len(blob), size)] or [b""]


def index_of(blobs: dict[Digest, bytes], size: int = CHUNK_SIZE) -> ChunkIndex:
    """Return the index of these blobs."""
    return ChunkIndex(
        blobs={
            str(digest): tuple(Chunk(Digest.of(part).hex, len(part)) for part in cut(blob, size))
            for digest, blob in sorted(blobs.items())
        }
    )


def encode(index: ChunkIndex) -> bytes:
    """Return the index's bytes: the same index always gives the same bytes."""
    return msgspec.json.encode(index, order="deterministic", enc_hook=plain)


def decode(data: bytes) -> ChunkIndex:
    """Read an index.

    Raises:
        BundleError: malformed or too long.
    """
    if len(data) > INDEX_LIMIT:
        raise BundleError(f"chunk index: expected at most {INDEX_LIMIT} bytes, got {len(data)}")
    try:
        index = msgspec.json.decode(data, type=ChunkIndex)
        for blob, parts in index.blobs.items():
            Digest(blob)
            for part in parts:
                part.digest  # noqa: B018 - reading it checks its form
    except (ValueError, KedgeError, RecursionError) as error:
        raise BundleError(f"chunk index: {error}") from error
    if any(part.size < 0 or part.size > CHUNK_SIZE for parts in index.blobs.values() for part in parts):
        raise BundleError(f"chunk index: expected chunks of 0 to {CHUNK_SIZE} bytes")
    return index
