"""Counts as unsigned LEB128 varints, back to back: a small count takes one byte."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fleet.errors import WireError

#: No list of counts on the wire is longer.
LIMIT: Final = 4096
_CONTINUES: Final = 0x80
_LONGEST: Final = 10


def encode(counts: Iterable[int]) -> bytes:
    """Return the counts, none of them negative, as varints."""
    out = bytearray()
    for count in counts:
        rest = count
        while rest >= _CONTINUES:
            out.append(rest & 0x7F | _CONTINUES)
            rest >>= 7
        out.append(rest)
    return bytes(out)


def decode(data: bytes, limit: int = LIMIT) -> list[int]:
    """Return the counts in the bytes.

    Raises:
        WireError: more than `limit` counts, one that is cut off, or one of more than 64 bits.
    """
    counts: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte & _CONTINUES:
            if shift >= 7 * _LONGEST:
                raise WireError(f"varint: expected at most {_LONGEST} bytes each, got more")
            continue
        counts.append(value)
        value = shift = 0
        if len(counts) > limit:
            raise WireError(f"varints: expected at most {limit} counts, got more")
    if shift:
        raise WireError("varints: the last one is cut off")
    return counts
