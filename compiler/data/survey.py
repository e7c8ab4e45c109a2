"""What one pass over an input's samples finds, in memory that does not grow with their size."""

from __future__ import annotations

import hashlib
import math
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from compiler.errors import DatasetError
from compiler.tensors import Array

Prints = npt.NDArray[np.uint64]
#: A picture's dimensions beside the one that counts samples.
_PICTURE: Final = 3
#: Multiplier that mixes the fingerprints of several inputs (Steele and Vigna, "Computationally easy,
#: spectrally good multipliers", 2022).
_MIX: Final = np.uint64(0xD1342543DE82EF95)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one input's samples.

    Attributes:
        low, high: the smallest and the largest value.
        deviation: the standard deviation of all values.
        dead: channels of a picture that are zero in every sample; none where all are.
        prints: a fingerprint of each sample.
    """

    low: float
    high: float
    deviation: float
    dead: tuple[int, ...]
    prints: Prints

    @property
    def constant(self) -> bool:
        """Whether there is but one value."""
        return self.low == self.high

    @property
    def span(self) -> float:
        """Between the smallest and the largest value."""
        return self.high - self.low


class Survey:
    """Gathers the facts, block by block."""

    def __init__(self, what: str, sample: tuple[int, ...]) -> None:
        """Take the name for errors, and the shape of one sample."""
        self._what: Final = what
        self._channels: Final = _channels(sample)
        self._low, self._high = math.inf, -math.inf
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._alive: npt.NDArray[np.bool_] | None = None
        self._prints: list[Prints] = []

    def add(self, block: Array) -> None:
        """Look at some samples, `[n, …]`.

        Raises:
            DatasetError: one is no finite number.
        """
        digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in block)
        self._prints.append(np.frombuffer(digests, "<u8").astype(np.uint64))
        if not block.size or not np.issubdtype(block.dtype, np.number):
            return
        values: npt.NDArray[np.float64] = block.astype(np.float64)
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DatasetError(f"{self._what}: expected finite numbers; got NaN or infinity")
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._merge(values)
        if self._channels is not None:
            others = tuple(x for x in range(block.ndim) if x != self._channels)
            alive = (block != 0).any(axis=others)
            self._alive = alive if self._alive is None else self._alive | alive

    def _merge(self, values: npt.NDArray[np.float64]) -> None:
        """Add to mean and sum of squares (Chan, Golub and LeVeque, "Updating formulae", 1979)."""
        mean, total = float(values.mean()), self._count + values.size
        apart = mean - self._mean
        self._squares += float(((values - mean) ** 2).sum())
        self._squares += apart**2 * self._count * values.size / total
        self._mean += apart * values.size / total
        self._count = total

    def facts(self) -> Facts:
        """Return what was found."""
        alive = self._alive if self._alive is not None and self._alive.any() else np.ones(0, np.bool_)
        return Facts(
            low=self._low,
            high=self._high,
            deviation=math.sqrt(self._squares / self._count) if self._count else 0.0,
            dead=tuple(np.flatnonzero(~alive).tolist()),
            prints=np.concatenate(self._prints),
        )


def _channels(sample: tuple[int, ...]) -> int | None:
    """Return the axis of a block that counts a picture's channels: the shorter of the outer two."""
    if len(sample) != _PICTURE:
        return None
    return 1 if sample[0] <= sample[-1] else len(sample)


def mixed(prints: list[Prints]) -> Prints:
    """Return one fingerprint per sample from those of its inputs."""
    found = np.zeros_like(prints[0])
    for one in prints:
        found = found * _MIX + one
    return found
