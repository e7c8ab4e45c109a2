"""The chunk index: which content-addressed chunks make up each blob of a bundle.

A device learns the index's digest from signed metadata, so every chunk is verified on arrival, and the
whole blob once more by its own digest. In the index's bytes a chunk takes 36: its SHA-256 and its size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from fleet.bundle.cutting import CHUNK_MAX
from fleet.errors import BundleError, KedgeError
from fleet.ids import Digest, plain

#: No index is larger; it travels as one message. Enough for models of 7 GB at the least.
INDEX_LIMIT: Final = 2 * 1024 * 1024
_ENTRY: Final = struct.Struct("<32sI")


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """One chunk: 64 hex digits of its SHA-256, and its bytes."""

    sha256: str
    size: int

    @property
    def digest(self) -> Digest:
        """The chunk's content address."""
        return Digest.from_hex(self.sha256)


class ChunkIndex(msgspec.Struct, frozen=True, kw_only=True):
    """Which chunks make up each blob that a device needs of a bundle, in order."""

    blobs: dict[str, tuple[Chunk, ...]]


class _Packed(msgspec.Struct, frozen=True, kw_only=True):
    """The index as it travels: each blob's entries back to back."""

    blobs: dict[str, bytes]


def chunks_of(pieces: Iterable[bytes]) -> tuple[Chunk, ...]:
    """Return what the index says of a blob, given its chunks in order."""
    return tuple(Chunk(Digest.of(piece).hex, len(piece)) for piece in pieces)


def encode(index: ChunkIndex) -> bytes:
    """Return the index's bytes: the same index always gives the same bytes.

    Raises:
        BundleError: more than `INDEX_LIMIT`.
    """
    packed = {blob: b"".join(map(_entry, parts)) for blob, parts in index.blobs.items()}
    data = msgspec.msgpack.encode(_Packed(blobs=packed), order="deterministic", enc_hook=plain)
    if len(data) > INDEX_LIMIT:
        raise BundleError(f"chunk index: expected at most {INDEX_LIMIT} bytes, got {len(data)}")
    return data


def decode(data: bytes) -> ChunkIndex:
    """Read an index.

    Raises:
        BundleError: malformed or too long.
    """
    if len(data) > INDEX_LIMIT:
        raise BundleError(f"chunk index: expected at most {INDEX_LIMIT} bytes, got {len(data)}")
    try:
        packed = msgspec.msgpack.decode(data, type=_Packed)
        index = ChunkIndex(
            blobs={
                str(Digest(blob)): tuple(Chunk(sha.hex(), size) for sha, size in _ENTRY.iter_unpack(raw))
                for blob, raw in packed.blobs.items()
            }
        )
    except (ValueError, struct.error, KedgeError, RecursionError) as error:
        raise BundleError(f"chunk index: {error}") from error
    if any(part.size > CHUNK_MAX for parts in index.blobs.values() for part in parts):
        raise BundleError(f"chunk index: expected chunks of 0 to {CHUNK_MAX} bytes")
    return index


def _entry(chunk: Chunk) -> bytes:
    return _ENTRY.pack(bytes.fromhex(chunk.sha256), chunk.size)
