"""What to send beside a tensor's differences so that all of it together is short."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fleet.delta import form, low_rank, rans, residual
from fleet.delta.rans import Bytes, Counts
from fleet.delta.residual import LEVELS, RATIO_STEPS, Ints, Place, Side
from fleet.delta.tensor import Kind

Floats = npt.NDArray[np.float64]

_NONE: Final = Side(
    base=0,
    rows=np.zeros(0, np.int8),
    columns=np.zeros(0, np.int8),
    ratios=np.zeros(0, np.int16),
    ratio=1.0,
    ratios_by_row=True,
)
#: Bits that a symbol costs in a frequency table, about.
_TABLE_BITS: Final = 14
#: The level of a byte whose mean change is 1: means go from nearly never to all.
_UNIT: Final = 36
#: Bits that one level, ratio, or number of an outer product takes, about.
_LEVEL_BITS, _RATIO_BITS, _FACTOR_BITS = 2.5, 5.0, 4.0
#: How many outer products are tried, one after the other.
_RANKS: Final = (2, 4, 8, 16, 24, 32, 48, 64)


class Choice(NamedTuple):
    """A tensor's differences, what is sent beside them, and about how many bits that takes."""

    side: Side
    width: int
    expected: Ints
    differences: Ints
    bits: float


def matrix_width(shape: tuple[int, ...], count: int) -> int:
    """Return the columns of the matrix as which a tensor is seen: its first axis against the rest."""
    if len(shape) > 1 and shape[0] == 1:
        return max(1, shape[-1])
    return max(1, count // shape[0]) if len(shape) > 1 else count


def levels(expected: Ints, kind: Kind, side: Side, width: int) -> Bytes:
    """Return the levels of a whole tensor."""
    return residual.levels(expected, kind, side, Place(0, len(expected), width))


def choose(old: Ints, new: Ints, kind: Kind, shape: tuple[int, ...]) -> Choice:
    """Return the shortest of some ways to code a tensor."""
    width = matrix_width(shape, len(old))
    best = min(
        (_tried(old, new, kind, width, side) for side in _candidates(old, new, kind, width)),
        key=lambda choice: choice.bits,
    )
    for side in _with_factors(best, kind):
        found = _tried(old, new, kind, width, side, flat=False)
        if found.bits > best.bits:
            break
        best = found
    return best


def _tried(old: Ints, new: Ints, kind: Kind, width: int, side: Side, *, flat: bool = True) -> Choice:
    """Return the shorter of two ways: levels of rows and columns, or, if asked for, all elements alike."""
    expected = residual.predict(old, kind, side, Place(0, len(old), width))
    differences = residual.wrapped(new - expected, kind)
    plain = side._replace(base=_base(differences, expected, kind), rows=_NONE.rows, columns=_NONE.columns)
    found = _priced(_levelled(plain, expected, differences, kind, width), expected, differences, kind, width)
    if not flat:
        return found
    other = _priced(plain, expected, differences, kind, width)
    return found if found.bits < other.bits else other


def _with_factors(plain: Choice, kind: Kind) -> Iterator[Side]:
    """Yield ways to predict with more and more outer products."""
    rows, width = len(plain.expected) // plain.width, plain.width
    most = min(low_rank.MOST, rows // 4, width // 4, low_rank.MOST_NUMBERS // (rows + width))
    changes = plain.differences
    if kind != Kind.BYTE or most < 1 or width > low_rank.MOST_COLUMNS or not changes.any():
        return
    factors = low_rank.factor(changes.reshape(rows, width).astype(float), most)
    for rank in _RANKS:
        if rank <= most:
            yield plain.side._replace(factors=low_rank.first(factors, rank))


def _candidates(old: Ints, new: Ints, kind: Kind, width: int) -> list[Side]:
    """Return ways to predict: the old values as they are, or times a ratio."""
    found = [_NONE]
    if kind in {Kind.HALF, Kind.BRAIN}:
        return found
    a, b = _values(old, kind), _values(new, kind)
    matrix = kind == Kind.BYTE and len(old) > width > 1  # whose rows or columns have ratios of their own
    if not matrix and (ratio := _ratio(a, b)) is not None:
        found.append(_NONE._replace(ratio=ratio))
    if matrix:
        rows = len(old) // width
        for by_row in (True, False):
            grid_a, grid_b = a.reshape(rows, width), b.reshape(rows, width)
            axis = 1 if by_row else 0
            power = (grid_a * grid_a).sum(axis)
            slope = np.divide((grid_a * grid_b).sum(axis), power, out=np.ones_like(power), where=power > 0)
            steps = np.rint((slope - 1) * RATIO_STEPS).clip(-RATIO_STEPS, 32767).astype(np.int16)
            if len(steps) <= form.SIDES and steps.any():
                found.append(_NONE._replace(ratios=steps, ratios_by_row=by_row))
    return found


def _values(values: Ints, kind: Kind) -> Floats:
    if kind == Kind.FLOAT:
        with np.errstate(invalid="ignore"):  # NaNs that signal
            return np.frombuffer(residual.stored(values, kind), "<f4").astype(float)
    return values.astype(float)


def _ratio(a: Floats, b: Floats) -> float | None:
    """Return the ratio of new to old that most elements share, None when there is none."""
    with np.errstate(all="ignore"):
        weight = np.abs(a)
        usable = np.isfinite(a) & np.isfinite(b) & (weight > 0)
        if not usable.any():
            return None
        # The larger elements tell it more exactly, where elements are rounded.
        large = usable & (weight >= np.quantile(weight[usable], 0.75))
        found = float(np.median(b[large] / a[large]))
    return found if np.isfinite(found) and found not in {0.0, 1.0} else None


def _levelled(plain: Side, expected: Ints, differences: Ints, kind: Kind, width: int) -> Side:
    """Return the same with levels of rows and columns, beside the base that they all share."""
    size = _size(differences, expected, kind).reshape(-1, width)
    if min(size.shape) == 1 or max(size.shape) > form.SIDES:
        return plain
    mean = size.mean() or 1.0
    return plain._replace(rows=_steps(size.mean(1) / mean), columns=_steps(size.mean(0) / mean))


def _steps(relative: Floats) -> residual.Levels:
    found: residual.Levels = np.rint(2 * np.log2(np.maximum(relative, 2.0**-16))).astype(np.int8)
    return found


def _size(differences: Ints, expected: Ints, kind: Kind) -> Floats:
    """Return how large differences are, in a unit that does not depend on the element."""
    size = np.abs(differences).astype(float)
    if kind in {Kind.FLOAT, Kind.HALF, Kind.BRAIN}:
        return np.ldexp(size, (residual.exponents(expected, kind) - 64).astype(np.int32))
    return size


def _base(differences: Ints, expected: Ints, kind: Kind) -> int:
    mean = float(_size(differences, expected, kind).mean())
    level = 2 * np.log2(max(mean, 2.0**-1000))
    if kind in {Kind.FLOAT, Kind.HALF, Kind.BRAIN}:
        level += 128  # `_size` has taken 64 from the exponents, and each counts twice
    elif kind == Kind.BYTE:
        level += _UNIT
    return int(np.rint(level))


def _priced(side: Side, expected: Ints, differences: Ints, kind: Kind, width: int) -> Choice:
    found = residual.split(differences, kind)
    level = levels(expected, kind, side, width).astype(np.int64)
    counts = np.bincount(level * rans.SYMBOLS + found.symbols, minlength=LEVELS * rans.SYMBOLS)
    grid = counts.reshape(LEVELS, rans.SYMBOLS)
    bits = sum(rans.cost(row) for row in grid if row.any())
    bits += float(residual.widths(found.symbols, kind).astype(np.int64).sum())
    bits += _FACTOR_BITS * (side.factors.left.size + side.factors.right.size)
    bits += _LEVEL_BITS * (len(side.rows) + len(side.columns)) + _RATIO_BITS * len(side.ratios)
    bits += 3 * float(np.count_nonzero(grid))
    return Choice(side, width, expected, differences, bits)


def merge(counts: Counts) -> tuple[Bytes, list[Counts]]:
    """Return which frequency table each level uses, and what each table counts.

    Neighbouring levels share a table where that costs less than another table would.
    """
    groups = [([level], row) for level, row in enumerate(counts) if row.any()]
    while len(groups) > 1:
        gains = [_gain(a[1], b[1]) for a, b in itertools.pairwise(groups)]
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        (left, some), (right, others) = groups[best : best + 2]
        groups[best : best + 2] = [(left + right, some + others)]
    chosen = np.zeros(LEVELS, np.uint8)
    for index, (members, _) in enumerate(groups):
        chosen[members] = index
    return chosen, [row for _, row in groups]


def _gain(a: Counts, b: Counts) -> float:
    saved = _TABLE_BITS * float(np.count_nonzero(a) + np.count_nonzero(b) - np.count_nonzero(a + b)) + 16
    return saved - (rans.cost(a + b) - rans.cost(a) - rans.cost(b))
