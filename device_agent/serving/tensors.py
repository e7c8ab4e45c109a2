"""Tensors of the Open Inference Protocol, and whether they fit a model.

Datatype names and their sizes are those of the Open Inference Protocol 2.0, "Tensor Data Types".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from device_agent.errors import InputError
from device_agent.ports import Array
from fleet.bundle.description import TensorSpec
from fleet.wire.tensors import DTYPES, NAMES

#: What kinds of numbers may be given for a kind of tensor (numpy's letters).
_GIVEN: Final = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}


def dtype_of(name: str, datatype: str) -> np.dtype[np.generic]:
    """Return numpy's type for a datatype.

    Raises:
        InputError: there is none.
    """
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise InputError(f"{name}: expected a datatype of {', '.join(DTYPES)}, got {datatype[:20]!r}")
    return dtype


def datatype_of(array: Array) -> str:
    """Return the datatype of an array.

    Raises:
        InputError: the protocol has none for it.
    """
    datatype = NAMES.get(array.dtype)
    if datatype is None:
        raise InputError(f"expected an array of {', '.join(DTYPES)}, got {array.dtype}")
    return datatype


def from_bytes(name: str, datatype: str, shape: Iterable[int], data: bytes) -> Array:
    """Return the tensor in little-endian bytes, without copying them.

    Raises:
        InputError: datatype, shape and number of bytes do not fit together.
    """
    dtype, dims = dtype_of(name, datatype), _dims(name, shape)
    expected = _volume(dims) * dtype.itemsize
    if len(data) != expected:
        raise InputError(f"{name}: expected {expected} bytes for {datatype} {list(dims)}, got {len(data)}")
    return _shaped(name, np.frombuffer(data, dtype), dims)


def from_values(name: str, datatype: str, shape: Iterable[int], values: object) -> Array:
    """Return the tensor in a flat or nested sequence of numbers.

    Raises:
        InputError: a value is no number of that datatype, or their number does not fit the shape.
    """
    dtype, dims = dtype_of(name, datatype), _dims(name, shape)
    try:
        given = np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{name}: expected values of {datatype}: {error}") from error
    if given.size and given.dtype.kind not in _GIVEN[dtype.kind]:
        raise InputError(f"{name}: expected values of {datatype}, got {given.dtype}")
    if dtype.kind in "iu" and given.size:
        limits = np.iinfo(dtype.name)
        if given.min() < limits.min or given.max() > limits.max:
            raise InputError(f"{name}: expected values of {datatype}, got {given.min()} to {given.max()}")
    array = given.astype(dtype)
    if array.size != _volume(dims):
        raise InputError(f"{name}: expected {_volume(dims)} values for {list(dims)}, got {array.size}")
    return _shaped(name, array, dims)


def _shaped(name: str, array: Array, dims: tuple[int, ...]) -> Array:
    try:
        return array.reshape(dims)
    except (ValueError, OverflowError) as error:  # too many dimensions, or next to a 0 too long a one
        raise InputError(f"{name}: expected another shape than {str(dims)[:80]}: {error}") from error


def _dims(name: str, shape: Iterable[int]) -> tuple[int, ...]:
    dims = tuple(shape)
    if any(type(x) is not int or x < 0 for x in dims):
        raise InputError(f"{name}: expected a shape of whole numbers of at least 0, got {list(dims)[:8]}")
    return dims


def _volume(dims: Iterable[int]) -> int:
    volume = 1
    for size in dims:
        volume *= size
    return volume


def check(specs: Iterable[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Check that a request's inputs are those that the model takes.

    Raises:
        InputError: one is missing, unknown, or of another type or shape; says expected and got.
    """
    wanted = {spec.name: spec for spec in specs}
    if wanted.keys() != inputs.keys():
        raise InputError(f"inputs: expected {', '.join(wanted)}, got {', '.join(inputs) or 'none'}")
    batch: int | None = None
    for name, spec in wanted.items():
        array = inputs[name]
        if array.dtype != dtype_of(name, spec.datatype):
            raise InputError(f"{name}: expected {spec.datatype}, got {datatype_of(array)}")
        if not _fits(spec.shape, array.shape):
            raise InputError(f"{name}: expected shape {list(spec.shape)} (-1: any), got {list(array.shape)}")
        if spec.batched:
            if batch not in (None, array.shape[0]):
                raise InputError(f"{name}: expected a batch of {batch} like the others, got {array.shape[0]}")
            batch = array.shape[0]
    if batch == 0:
        raise InputError("inputs: expected at least one sample, got 0")


def _fits(wanted: tuple[int, ...], got: tuple[int, ...]) -> bool:
    return len(wanted) == len(got) and all(w in (-1, g) for w, g in zip(wanted, got, strict=True))
