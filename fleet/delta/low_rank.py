"""The part of a tensor's change that few directions explain.

A gradient step changes a layer by an outer product for each example, so what many steps change is far from
noise: a sum of few outer products predicts a good part of it (E. Hu et al., "LoRA: Low-Rank Adaptation of
Large Language Models", arXiv:2106.09685, builds on the same). Rows and columns are small integers, so their
products and sums, in units of 2^-16, are exact in floats of 64 bits, in whatever order a library adds.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

#: The unit of the weights.
_UNIT: Final = 2.0**16
#: Most outer products, most columns, and most numbers in all: what a decoder's memory bears.
MOST: Final = 64
MOST_COLUMNS: Final = 1 << 16
MOST_NUMBERS: Final = 1 << 20
#: Root mean square of the integers that a direction is rounded to: finer costs more than it saves.
_ROUNDED: Final = 3.5


class Factors(NamedTuple):
    """A sum of outer products.

    Attributes:
        weights: one of each product, in units of 2^-16.
        left: `[rows, products]`; right: `[products, columns]`.
    """

    weights: npt.NDArray[np.int32]
    left: npt.NDArray[np.int8]
    right: npt.NDArray[np.int8]

    def encode(self) -> bytes:
        """Return the factors' bytes."""
        return self.weights.astype("<i4").tobytes() + self.left.T.tobytes() + self.right.tobytes()


NONE: Final = Factors(np.zeros(0, np.int32), np.zeros((0, 0), np.int8), np.zeros((0, 0), np.int8))


def encoded_size(rank: int, rows: int, columns: int) -> int:
    """Return the length of what `encode` returns."""
    return rank * (4 + rows + columns)


def decode(data: bytes, rank: int, rows: int, columns: int) -> Factors:
    """Read factors; `data` is `encoded_size` bytes long."""
    numbers = np.frombuffer(data, np.int8, offset=4 * rank)
    return Factors(
        np.frombuffer(data, "<i4", rank),
        numbers[: rank * rows].reshape(rank, rows).T,
        numbers[rank * rows :].reshape(rank, columns),
    )


def change(factors: Factors, start: int, count: int) -> Floats:
    """Return the sum's elements in row-major order, so many from a start."""
    columns = factors.right.shape[1]
    first, last = start // columns, (start + count - 1) // columns
    left = factors.left[first : last + 1] * factors.weights.astype(float)
    found: Floats = (left @ factors.right.astype(float)).reshape(-1)
    begin = start - first * columns
    return found[begin : begin + count] / _UNIT


def factor(changes: Floats, most: int) -> Factors:
    """Return the sum of at most so many outer products that explains the most of a matrix.

    Rows and columns count relative to how much they change, as their differences are coded.
    """
    rows = np.sqrt((changes**2).mean(1)) + 1e-3
    columns = np.sqrt((changes**2).mean(0)) + 1e-3
    even = changes / rows[:, None] / columns * columns.mean()
    left, sizes, right = _singular(even, min(most, *even.shape))
    return _rounded(left * rows[:, None] / columns.mean(), sizes, right * columns)


def first(factors: Factors, count: int) -> Factors:
    """Return the first of the outer products, which explain the most."""
    return Factors(factors.weights[:count], factors.left[:, :count], factors.right[:count])


def _singular(matrix: Floats, most: int) -> tuple[Floats, Floats, Floats]:
    """Return the largest singular vectors and values (N. Halko et al., arXiv:0909.4061, algorithm 4.4)."""
    width = min(most + 8, *matrix.shape)
    # Any start that is no worse than a random one will do; this one is the same every time.
    start = np.cos(np.outer(np.arange(1, matrix.shape[1] + 1) ** 2, np.arange(1, width + 1)) * 0.7548776662)
    basis = np.linalg.qr(matrix @ start)[0]
    for _ in range(2):
        basis = np.linalg.qr(matrix @ (matrix.T @ basis))[0]
    left, sizes, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left)[:, :most], sizes[:most], right[:most]


def _rounded(left: Floats, sizes: Floats, right: Floats) -> Factors:
    scale_left = np.sqrt((left**2).mean(0)) / _ROUNDED + 1e-30
    scale_right = np.sqrt((right**2).mean(1)) / _ROUNDED + 1e-30
    weights = np.rint(scale_left * scale_right * sizes * _UNIT).clip(0, 2**31 - 1)
    return Factors(
        weights.astype(np.int32),
        np.rint(left / scale_left).clip(-127, 127).astype(np.int8),
        np.rint(right / scale_right[:, None]).clip(-127, 127).astype(np.int8),
    )
