"""Arrays of samples that stay on disk: a row is read when it is asked for, so any number of them fits.

Reading, not mapping: a mapped file would count against the address space that a worker may take.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from typing import IO, Final

import numpy as np
import numpy.typing as npt

from compiler.errors import DatasetError
from compiler.tensors import Array

Rows = npt.NDArray[np.int64]


class Descriptor:
    """An open file for as long as samples lie in it, even after whoever opened it has closed it."""

    def __init__(self, file: IO[bytes]) -> None:
        """Keep the file open."""
        self.number: Final = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.number)


class Samples:
    """An array `[N, …]` whose rows lie in a file or, for a small one, in memory."""

    def __init__(
        self,
        source: Descriptor | Array,
        dtype: np.dtype[np.generic],
        shape: tuple[int, ...],
        offset: int = 0,
    ) -> None:
        """Name where the rows are.

        Args:
            source: the file that holds the array's bytes in C order, or the array itself.
            dtype: of the elements.
            shape: of the whole array.
            offset: where in the file the array begins.
        """
        self.dtype: Final = dtype
        self._source: Final = source
        self._offset: Final = offset
        self._row: Final = shape[1:]
        self._rows: Rows | range = range(shape[0])

    @classmethod
    def of(cls, array: Array) -> Samples:
        """Return samples that are in memory."""
        return cls(array, array.dtype, array.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole array's shape."""
        return (len(self._rows), *self._row)

    @property
    def row_bytes(self) -> int:
        """How many bytes one sample takes."""
        return math.prod(self._row) * self.dtype.itemsize

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._rows)

    def __getitem__(self, index: int | slice | Rows) -> Array:
        """Read one sample, or several."""
        if isinstance(index, int):
            row: Array = self._read(int(self._rows[index]), 1)[0]
            return row
        rows: Rows = np.asarray(self._rows)[index]
        return self._gather(rows)

    def __array__(self, dtype: npt.DTypeLike = None, *, copy: bool | None = None) -> Array:
        """Read all samples: only for few."""
        del copy  # what is read is a copy already
        found: Array = self[:].astype(dtype or self.dtype, copy=False)
        return found

    def take(self, rows: Rows) -> Samples:
        """Return these samples, still unread."""
        found = object.__new__(Samples)
        found.__dict__.update(self.__dict__)
        found._rows = np.asarray(self._rows)[rows]
        return found

    def _gather(self, rows: Rows) -> Array:
        if isinstance(self._source, np.ndarray):
            chosen: Array = self._source[rows]
            return chosen
        found = np.empty((len(rows), *self._row), self.dtype)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        bounds = [0, *breaks.tolist(), len(rows)] if len(rows) else []
        for start, stop in itertools.pairwise(bounds):
            found[start:stop] = self._read(int(rows[start]), stop - start)
        return found

    def _read(self, first: int, count: int) -> Array:
        if isinstance(self._source, np.ndarray):
            return self._source[first : first + count]
        found = np.empty((count, *self._row), self.dtype)
        rest, at = found.reshape(-1).view(np.uint8).data, self._offset + first * self.row_bytes
        while rest and (read := os.preadv(self._source.number, [rest], at)):
            rest, at = rest[read:], at + read
        if rest:
            raise DatasetError(f"the data file was cut while it was read: expected {len(rest)} more bytes")
        return found
