"""`interface.json`, beside a model file whose tensors are not those of the source model: how to reach them.

An application feeds every target's bundle the same tensors: those of the source model. A TensorFlow Lite file
for an integer accelerator takes them with the channels last, and quantized. This file says which axis is
which; scale and zero point stand in the model file itself. Whoever runs the model file turns the one into
the other on the CPU: with `inward` before it, and with `outward` behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from fleet.errors import BundleError, WireError
from fleet.wire.tensors import DTYPES, NAMES, dtype_of

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
        shape: of the tensor in the file.
        scale: 0 where the numbers are not quantized.
    """

    dtype: str
    shape: tuple[int, ...]
    scale: float = 0.0
    zero_point: int = 0


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor, how it is stored, and its place in the interpreter."""

    port: Port
    stored: Stored
    index: int


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
    except (msgspec.DecodeError, ValueError, RecursionError, WireError) as error:
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


def bind(ports: Sequence[Port], details: Sequence[Mapping[str, Any]]) -> list[Bound]:
    """Bring ports and an interpreter's tensors together.

    Args:
        ports: in the model file's order.
        details: of the tensors, as TensorFlow Lite's interpreter tells them.

    Raises:
        BundleError: they do not belong together.
    """
    if len(ports) != len(details):
        raise BundleError(f"{PATH}: expected {len(details)} tensors, got {len(ports)}")
    found = []
    for port, detail in zip(ports, details, strict=True):
        want = [port.shape[x] for x in port.axes] if port.axes else list(port.shape)
        got = [int(x) for x in detail["shape"]]
        if want != got and (want, got) != ([], [1]):  # a scalar may lie in the file as a list of one
            raise BundleError(f"{PATH}: {port.name!r}: expected shape {got}, got {want}")
        scale, zero_point = detail["quantization"]
        kind = np.dtype(detail["dtype"]).name
        stored = Stored(dtype=kind, shape=tuple(got), scale=float(scale), zero_point=int(zero_point))
        found.append(Bound(port=port, stored=stored, index=int(detail["index"])))
    return found


def of_file(details: Sequence[Mapping[str, Any]]) -> tuple[Port, ...]:
    """Return the ports of a file that has no interface beside it: its tensors as they are.

    Raises:
        BundleError: one has a type that no application can feed.
    """
    found = []
    for detail in details:
        kind = np.dtype(detail["dtype"])
        if kind not in NAMES:
            raise BundleError(
                f"tensor {detail['name']!r}: expected a type of {', '.join(DTYPES)}, got {kind}"
            )
        shape = tuple(int(x) for x in detail["shape"])
        found.append(Port(name=str(detail["name"]), datatype=NAMES[kind], shape=shape))
    return tuple(found)


def inward(port: Port, values: Array, stored: Stored) -> Array:
    """Return an application's tensor as the model file takes it.

    Raises:
        BundleError: it has another type or shape than the source model's input, or holds NaN.
    """
    want = dtype_of(port.datatype)
    if values.dtype != want or values.shape != port.shape:
        raise BundleError(
            f"input {port.name!r}: expected {port.datatype} {list(port.shape)}, "
            f"got {values.dtype} {list(values.shape)}"
        )
    turned = values.transpose(port.axes) if port.axes else values
    return np.asarray(_quantized(turned, stored), order="C").reshape(stored.shape)


def _quantized(values: Array, stored: Stored) -> Array:
    kind = np.dtype(stored.dtype)
    if not stored.scale or not np.issubdtype(values.dtype, np.floating):
        return values.astype(kind, copy=False)
    limits = np.iinfo(kind)
    # In place: a device's camera pictures are the largest arrays that it handles.
    with np.errstate(over="ignore"):  # what overflows is clipped
        numbers = values / np.float32(stored.scale)
    if np.isnan(numbers).any():
        raise BundleError("expected numbers, got NaN")
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
    return np.asarray(values.reshape(port.shape), dtype=want, order="C")
