"""Tensors on the wire as numpy arrays, and back; little-endian, as the Open Inference Protocol has it."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fleet.errors import WireError
from fleet.wire.messages import Tensor

#: Datatype to numpy's; BF16 and BYTES have none there.
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def dtype_of(datatype: str) -> np.dtype[Any]:
    """Return numpy's type of a datatype.

    Raises:
        WireError: it has none.
    """
    try:
        return DTYPES[datatype]
    except KeyError:
        raise WireError(f"datatype: expected one of {', '.join(DTYPES)}, got {datatype!r}") from None


def to_array(tensor: Tensor) -> npt.NDArray[Any]:
    """Return the tensor's values, read-only, in its shape.

    Raises:
        WireError: the datatype has no numpy type, or bytes and shape contradict each other.
    """
    dtype = dtype_of(tensor.datatype)
    if any(x < 0 for x in tensor.shape) or math.prod(tensor.shape) * dtype.itemsize != len(tensor.data):
        raise WireError(
            f"tensor {tensor.name!r}: expected the bytes of {tensor.datatype} {list(tensor.shape)}, "
            f"got {len(tensor.data)}"
        )
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)


def from_array(name: str, values: npt.NDArray[Any]) -> Tensor:
    """Return the values as a tensor.

    Raises:
        WireError: their type has no datatype.
    """
    dtype = values.dtype.newbyteorder("<")
    datatype = NAMES.get(dtype)
    if datatype is None:
        raise WireError(f"tensor {name!r}: expected a type of {', '.join(DTYPES)}, got {values.dtype}")
    data = np.ascontiguousarray(values, dtype).tobytes()
    return Tensor(name=name, datatype=datatype, shape=tuple(values.shape), data=data)
