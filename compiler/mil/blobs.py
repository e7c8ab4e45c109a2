"""Reading the weights of a package: MIL blob storage, version 2.

Format after coremltools' `MILBlob/Blob/StorageFormat.hpp`: a header of 64 bytes, then for each blob 64 bytes
that tell its type, size and offset. Every number in it is checked, as the file may be anybody's.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from compiler.errors import ModelRefusedError
from compiler.tensors import Array

_HEADER: Final = struct.Struct("<II")
_VERSION: Final = 2
_SENTINEL: Final = 0xDEADBEEF
_ENTRY: Final = struct.Struct("<IIQQ")
_ALIGNMENT: Final = 64


class Blobs:
    """The blob file of one package."""

    def __init__(self, data: bytes) -> None:
        """Take its bytes.

        Raises:
            ModelRefusedError: it is another file.
        """
        self._data: Final = data
        if data:
            version = _HEADER.unpack_from(data)[1] if len(data) >= _HEADER.size else 0
            if version != _VERSION:
                raise ModelRefusedError(f"weights: expected blob storage version {_VERSION}; got {version}")

    def read(self, offset: int, kind: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
        """Return the blob whose entry is at an offset.

        Raises:
            ModelRefusedError: there is none, or of another size.
        """
        end = offset + _ALIGNMENT
        if offset < 0 or offset % _ALIGNMENT or end > len(self._data):
            raise ModelRefusedError(
                f"weights: expected an entry within {len(self._data)} bytes; got {offset}"
            )
        sentinel, _, size, start = _ENTRY.unpack_from(self._data, offset)
        wanted = kind.itemsize * int(np.prod(shape, dtype=np.int64))
        if sentinel != _SENTINEL or size != wanted or start + size > len(self._data):
            raise ModelRefusedError(f"weights: expected {wanted} bytes for the entry at {offset}; got {size}")
        return np.frombuffer(self._data, kind, count=size // kind.itemsize, offset=start).reshape(shape)
