"""Where blobs are cut: at places that their content chooses, so an insertion moves no cut far behind it.

A rolling hash of the last 32 bytes decides: Gear, as in FastCDC (Xia et al., USENIX ATC 2016): each byte
adds a number of its own to the doubled hash. A sum over a window doubles in length with each step, so five
steps over whole arrays make all hashes at once. The same bytes are always cut the same way: the numbers, the
window and the bounds may never change, or devices would fetch again what they have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

#: No chunk is smaller, but for a blob's last.
CHUNK_MIN: Final = 128 * 1024
#: No chunk is larger: few enough bytes for a broker's queue, many enough for its throughput.
CHUNK_MAX: Final = 256 * 1024
#: A cut may be after a byte whose hash is below this: one in 32,768, so 98 of 100 chunks find one in time.
_CUT_BELOW: Final = np.uint32(2**32 // (32 * 1024))
#: The window is 2 to this many bytes long.
_DOUBLINGS: Final = 5
_BLOCK: Final = 1024 * 1024

_GEAR: Final = np.array(
    [int.from_bytes(hashlib.sha256(bytes([byte])).digest()[:4], "big") for byte in range(256)], np.uint32
)


def cut(blob: bytes) -> list[bytes]:
    """Return the blob's chunks in order; an empty blob is one empty chunk."""
    view = memoryview(blob)
    return list(cut_pieces(view[i : i + _BLOCK] for i in range(0, len(blob), _BLOCK)))


def cut_pieces(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Yield the chunks of a blob that comes in pieces, holding about one piece in memory.

    How the blob is divided into pieces changes nothing.
    """
    held, empty = bytearray(), True
    for piece in pieces:
        held += piece
        if len(held) >= _BLOCK:
            start = 0
            for end in _cuts(held):
                yield bytes(held[start:end])
                start, empty = end, False
            del held[:start]
    start = 0
    for end in (*_cuts(held), len(held)):
        if end > start or empty:
            yield bytes(held[start:end])
            start, empty = end, False


def _cuts(data: bytearray) -> list[int]:
    """Return the ends of the chunks that no byte behind `data` can change."""
    places = _places(data)
    ends: list[int] = []
    start = 0
    while len(data) - start >= CHUNK_MAX:
        first = int(np.searchsorted(places, start + CHUNK_MIN))
        found = int(places[first]) if first < len(places) else len(data)
        start = min(found, start + CHUNK_MAX)
        ends.append(start)
    return ends


def _places(data: bytearray) -> npt.NDArray[np.intp]:
    """Return where a cut may be: the places right after a byte whose hash is small."""
    sums = _GEAR[np.frombuffer(data, np.uint8)]
    for doubling in range(_DOUBLINGS):
        length = 1 << doubling
        sums[length:] += sums[:-length] << np.uint32(length)
    # The first places look back at fewer bytes than the window; no chunk ends there, they are too short.
    return np.flatnonzero(sums < _CUT_BELOW) + 1
