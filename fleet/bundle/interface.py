"""`interface.json`, beside a model file whose tensors are not those of the source model: how to reach them.

An application feeds every target's bundle the same tensors: those of the source model. A TensorFlow Lite file
for an integer accelerator takes them with the channels last, and quantized. This file says which axis is
which; scale and zero point stand in the model file itself. Whoever runs the model file turns the one into
the other on the CPU: with `inward` before it, and with `outward` behind it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from fleet.errors import BundleError
from fleet.wire.tensors import dtype_of

PATH: Final = "interface.json"
SCHEMA: Final = 1

Array = npt.NDArray[Any]


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor, as the application sees it, and how it lies in the model file.

    Attributes:
        name: in the source model.
        datatype: in the source model, as the Open Inference Protocol names it.
        shape: in the source model, with one sample.
        axes: the source's axis at each place of the file's tensor; () where they are the same.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """What an application feeds and gets.

    Attributes:
        inputs, outputs: in the model file's order.
        accelerated: the same model compiled for the accelerator, a file beside this one; "" where there is
            none.
    """

    schema: int = SCHEMA
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    accelerated: str = ""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """How a tensor's numbers are kept in the model file: value = scale * (stored - zero_point).

    Attributes:
        dtype: numpy's name of the type.
        scale: 0 where the numbers are not quantized.
    """

    dtype: str
    scale: float = 0.0
    zero_point: int = 0


def encode(interface: Interface) -> bytes:
    """Return the file's bytes."""
    return msgspec.json.format(msgspec.json.encode(interface, order="deterministic"), indent=1) + b"\n"


def decode(data: bytes) -> Interface:
    """Read the file.

    Raises:
        BundleError: malformed, or of a newer schema.
    """
    try:
        found = msgspec.json.decode(data, type=Interface)
        for port in (*found.inputs, *found.outputs):
            _check(port)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BundleError(f"{PATH}: {error}") from error
    if found.schema != SCHEMA:
        raise BundleError(f"{PATH}: expected schema {SCHEMA}, got {found.schema}")
    if found.accelerated.startswith(".") or "/" in found.accelerated or "\\" in found.accelerated:
        raise BundleError(f"{PATH}: expected a file beside it, got {found.accelerated!r}")
    return found


def _check(port: Port) -> None:
    dtype_of(port.datatype)
    if port.axes and sorted(port.axes) != list(range(len(port.shape))):
        raise BundleError(f"{PATH}: {port.name!r}: expected an order of its axes, got {list(port.axes)}")


def inward(port: Port, values: Array, stored: Stored) -> Array:
    """Return an application's tensor as the model file takes it.

    Raises:
        BundleError: it has another type or shape than the source model's input.
    """
    want = dtype_of(port.datatype)
    if values.dtype != want or values.shape != port.shape:
        raise BundleError(
            f"input {port.name!r}: expected {port.datatype} {list(port.shape)}, "
            f"got {values.dtype} {list(values.shape)}"
        )
    turned = values.transpose(port.axes) if port.axes else values
    return np.ascontiguousarray(_quantized(turned, stored))


def _quantized(values: Array, stored: Stored) -> Array:
    kind = np.dtype(stored.dtype)
    if not stored.scale or not np.issubdtype(values.dtype, np.floating):
        return values.astype(kind, copy=False)
    limits = np.iinfo(kind)
    # In place: a device's camera pictures are the largest arrays that it handles.
    numbers = values / np.float32(stored.scale)
    np.rint(numbers, out=numbers)
    numbers += stored.zero_point
    np.clip(numbers, limits.min, limits.max, out=numbers)
    return numbers.astype(kind)


def outward(port: Port, values: Array, stored: Stored) -> Array:
    """Return a tensor of the model file as the application gets it."""
    want = dtype_of(port.datatype)
    if stored.scale and np.issubdtype(want, np.floating):
        values = (values.astype(np.float32) - np.float32(stored.zero_point)) * np.float32(stored.scale)
    if port.axes:
        values = values.transpose(np.argsort(port.axes))
    return np.ascontiguousarray(values.reshape(port.shape), dtype=want)
