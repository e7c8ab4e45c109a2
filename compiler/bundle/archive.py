"""Arrays as bytes: `.npz` files that are the same for the same arrays."""

from __future__ import annotations

import io
import zipfile
from typing import Final

import numpy as np

from compiler.tensors import Arrays

#: The earliest time that a zip archive can hold; `numpy.savez` would write the same.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def encode(arrays: Arrays) -> bytes:
    """Return an uncompressed `.npz`: sorted names, no clock, no platform in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            info.create_system = 3
            part = io.BytesIO()
            np.save(part, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(info, part.getvalue())
    return buffer.getvalue()


def decode(data: bytes) -> Arrays:
    """Return the arrays of an `.npz`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
