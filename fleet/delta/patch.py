"""A patch: the deltas that make a new bundle's files from those of an old one, in one blob.

::

    "KPT1"  u32 length of the list  list of the files (MessagePack)  their deltas, one after the other

A patch is one blob of a chunk index of its own, whose digest stands in the signed assignment.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from fleet.delta.decode import Read
from fleet.errors import DeltaError, WireError
from fleet.ids import Digest

_MAGIC: Final = b"KPT1"
_START: Final = struct.Struct("<4sI")
#: Bytes of the list.
_LIST_LIMIT: Final = 256 * 1024
#: Bytes of a file or of its delta: no file system takes what so many of them add up to.
_LARGEST: Final = 1 << 40


class Change(NamedTuple):
    """One file that is made: its digest and size, the file that it is made from, and the delta."""

    blob: Digest
    size: int
    base: Digest
    delta: bytes


class PatchedFile(msgspec.Struct, frozen=True, array_like=True):
    """One file that a patch makes.

    Attributes:
        blob: digest of the file; size: its bytes.
        base: digest of the file that it is made from.
        start: where its delta begins in the patch; length: the delta's bytes.
    """

    blob: str
    size: int
    base: str
    start: int
    length: int


class _Listed(msgspec.Struct, frozen=True, array_like=True):
    """A file as the patch lists it; its delta begins where the one before ends."""

    blob: str
    size: int
    base: str
    length: int


def encode(changes: Iterable[Change]) -> bytes:
    """Return a patch of these changes."""
    found = list(changes)
    listed = [_Listed(x.blob.hex, x.size, x.base.hex, len(x.delta)) for x in found]
    head = msgspec.msgpack.encode(listed)
    return b"".join([_START.pack(_MAGIC, len(head)), head, *(x.delta for x in found)])


def files(read: Read) -> list[PatchedFile]:
    """Return what a patch makes.

    Args:
        read: reads the patch by ranges.

    Raises:
        DeltaError: malformed.
    """
    start = read(0, _START.size)
    if len(start) != _START.size:
        raise DeltaError(f"patch: expected {_START.size} bytes or more, got {len(start)}")
    magic, length = _START.unpack(start)
    if magic != _MAGIC or length > _LIST_LIMIT:
        raise DeltaError("patch: expected a patch")
    try:
        listed = msgspec.msgpack.decode(read(_START.size, length), type=list[_Listed])
        blobs = [(Digest.from_hex(x.blob), Digest.from_hex(x.base)) for x in listed]
    except (ValueError, WireError, RecursionError) as error:
        raise DeltaError(f"patch: {error}") from error
    if any(not 0 <= number <= _LARGEST for x in listed for number in (x.size, x.length)):
        raise DeltaError("patch: a size is out of range")
    found, at = [], _START.size + length
    for x, (blob, base) in zip(listed, blobs, strict=True):
        found.append(PatchedFile(str(blob), x.size, str(base), at, x.length))
        at += x.length
    return found


def part(read: Read, file: PatchedFile) -> Read:
    """Return how to read one file's delta."""

    def within(offset: int, size: int) -> bytes:
        return read(file.start + offset, max(0, min(size, file.length - offset)))

    return within
