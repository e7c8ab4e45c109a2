"""What is coded of a tensor: how its elements differ from what the old ones let one expect.

An element is predicted from its old value, times a ratio of its row or column: after a fine-tune, a channel's
scale has moved a little, and all its quantized weights with it. What is left is about as large as the
gradient was there, which in any layer is the product of something of the row and something of the column. So
each row and each column has a level (half an octave a step) that is sent beside, and the sum of the two says
from which frequency table an element's difference is coded. Floats are compared as integers in the order of
the floats, so a difference counts units in the last place, and the old exponent is taken from the level.

All of it is integer arithmetic, or single operations of IEEE 754, so every machine computes the same.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fleet.delta import low_rank
from fleet.delta.low_rank import NONE, Factors
from fleet.delta.rans import Bytes
from fleet.delta.tensor import Kind
from fleet.errors import DeltaError

Ints: TypeAlias = npt.NDArray[np.int64]
Levels: TypeAlias = npt.NDArray[np.int8]

#: Levels of magnitude that choose a frequency table.
LEVELS: Final = 64
#: Steps of a row's or column's ratio in one.
RATIO_STEPS: Final = 8192
#: Magnitudes below are symbols of their own; above, a symbol is an octave and its quarter.
_PLAIN: Final = 8
_STORED: Final[dict[Kind, np.dtype[np.signedinteger[Any]]]] = {
    Kind.BYTE: np.dtype("i1"),
    Kind.INT32: np.dtype("<i4"),
    Kind.HALF: np.dtype("<i2"),
    Kind.BRAIN: np.dtype("<i2"),
    Kind.FLOAT: np.dtype("<i4"),
}
#: Where the exponent begins in a float's bits.
_EXPONENT: Final = {Kind.HALF: 10, Kind.BRAIN: 7, Kind.FLOAT: 23}


class Side(NamedTuple):
    """What is sent beside a tensor's differences.

    Attributes:
        base: the level of an element whose row and column are at 0.
        rows, columns: levels of rows and columns; empty when all are at 0.
        ratios: of new to old in steps beyond one, by row or by column; empty when all are one.
        ratio: of new to old for the whole tensor.
        factors: a change that is added to what is expected.
    """

    base: int
    rows: Levels
    columns: Levels
    ratios: npt.NDArray[np.int16]
    ratio: float
    ratios_by_row: bool
    factors: Factors = NONE


class Place(NamedTuple):
    """Which elements of a tensor, laid out as a matrix, are meant: so many from `start`."""

    start: int
    size: int
    columns: int

    def split(self) -> tuple[Ints, Ints]:
        """Return the row and the column of each."""
        at = np.arange(self.start, self.start + self.size)
        rows = at // self.columns
        return rows, at - rows * self.columns


def _folded(values: npt.NDArray[np.signedinteger[Any]], kind: Kind) -> npt.NDArray[np.signedinteger[Any]]:
    if kind not in _EXPONENT:
        return values
    most = np.iinfo(values.dtype).max
    return np.asarray(values ^ (values >> (8 * kind.size - 1) & most), values.dtype)


def ordered(data: bytes, kind: Kind) -> Ints:
    """Return elements as integers in their own order."""
    return _folded(np.frombuffer(data, _STORED[kind]), kind).astype(np.int64)


def stored(values: Ints, kind: Kind) -> bytes:
    """Return the bytes of elements that `ordered` gave, modulo the width of an element."""
    return _folded(values.astype(_STORED[kind]), kind).tobytes()


def wrapped(differences: Ints, kind: Kind) -> Ints:
    """Return differences modulo the width of an element, as the integers next to zero."""
    return differences.astype(_STORED[kind]).astype(np.int64)


def predict(old: Ints, kind: Kind, side: Side, place: Place) -> Ints:
    """Return what the new elements are expected to be."""
    if not len(side.ratios) and side.ratio == 1 and not len(side.factors.weights):
        return old
    factor: npt.NDArray[np.float64] | float = side.ratio
    if len(side.ratios):
        index = place.split()[0 if side.ratios_by_row else 1]
        factor = side.ratio * (1 + side.ratios.astype(float) / RATIO_STEPS)[index]
    with np.errstate(all="ignore"):
        if kind == Kind.FLOAT:
            scaled = (np.frombuffer(stored(old, kind), "<f4").astype(float) * factor).astype("<f4")
            return np.where(np.isfinite(scaled), ordered(scaled.tobytes(), kind), old)
        bounds = np.iinfo(_STORED[kind])
        scaled = old * factor
        if len(side.factors.weights):
            scaled = scaled + low_rank.change(side.factors, place.start, place.size)
        scaled = np.rint(scaled)
        return np.where(np.isfinite(scaled), scaled.clip(bounds.min, bounds.max), old).astype(np.int64)


def levels(expected: Ints, kind: Kind, side: Side, place: Place) -> Bytes:
    """Return each element's level."""
    found = np.full(place.size, side.base, np.int64)
    if len(side.rows) or len(side.columns):
        rows, columns = place.split()
        found += side.rows[rows].astype(np.int64) if len(side.rows) else 0
        found += side.columns[columns].astype(np.int64) if len(side.columns) else 0
    if kind in _EXPONENT:
        found -= 2 * exponents(expected, kind)
    return found.clip(0, LEVELS - 1).astype(np.uint8)


def exponents(values: Ints, kind: Kind) -> Ints:
    """Return the biased exponents of floats that `ordered` gave."""
    return np.where(values < 0, -1 - values, values) >> _EXPONENT[kind]


class Split(NamedTuple):
    """Differences as symbols, and the bits that a symbol leaves open."""

    symbols: Bytes
    rest: Ints


def split(differences: Ints, kind: Kind) -> Split:
    """Return what is coded of differences."""
    if kind == Kind.BYTE:
        return Split(differences.astype(np.uint8), np.zeros(0, np.int64))
    size = np.abs(differences)
    octave = np.maximum(np.frexp(size.astype(float))[1].astype(np.int64), 3)
    symbols = np.where(size < _PLAIN, size, _PLAIN + (octave - 4) * 4 + (size >> (octave - 3) & 3))
    low = np.where(size < _PLAIN, 0, size & ((1 << (octave - 3)) - 1))
    return Split(symbols.astype(np.uint8), low << 1 | (differences < 0))


def widths(symbols: Bytes, kind: Kind) -> Bytes:
    """Return how many bits each symbol leaves open.

    Raises:
        DeltaError: a symbol is none.
    """
    found = _WIDTHS[symbols]
    if kind == Kind.BYTE or not len(found):
        return np.zeros(0, np.uint8)
    if int(found.max()) > 8 * kind.size:
        raise DeltaError("delta: a symbol is wider than an element")
    return found


def joined(symbols: Bytes, rest: Ints, kind: Kind) -> Ints:
    """Return the differences."""
    if kind == Kind.BYTE:
        return symbols.view(np.int8).astype(np.int64)
    wide, low = symbols.astype(np.int64), rest >> 1
    octave = (wide - _PLAIN) // 4
    size = np.where(wide < _PLAIN, wide, ((4 + (wide & 3)) << (octave + 1)) | low)
    return np.where(rest & 1, -size, size)


def _widths() -> Bytes:
    symbols = np.arange(256)
    return np.where(symbols == 0, 0, np.where(symbols < _PLAIN, 1, (symbols - _PLAIN) // 4 + 2)).astype(
        np.uint8
    )


_WIDTHS: Final = _widths()


def pack(rest: Ints, width: Bytes) -> bytes:
    """Return open bits, plane by plane: the same bit of all elements that have it."""
    planes = range(int(width.max(initial=0)))
    return b"".join(np.packbits((rest[width > k] >> k & 1).astype(np.uint8)).tobytes() for k in planes)


def packed_size(width: Bytes) -> int:
    """Return the length of what `pack` returns for these widths."""
    counts = np.bincount(width, minlength=1)[::-1].cumsum()[::-1]
    return int(((counts[1:] + 7) // 8).sum())


def unpack(data: bytes, width: Bytes) -> Ints:
    """Return the open bits; `data` is `packed_size` bytes long."""
    rest, at = np.zeros(len(width), np.int64), 0
    planes = np.frombuffer(data, np.uint8)
    for k in range(int(width.max(initial=0))):
        mask = width > k
        count = int(np.count_nonzero(mask))
        size = (count + 7) // 8
        rest[mask] |= np.unpackbits(planes[at : at + size], count=count).astype(np.int64) << k
        at += size
    return rest
