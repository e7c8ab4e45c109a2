"""Two versions of small model files, as fine-tuning makes them, for tests of deltas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from fleet.delta import decode, encode, layout

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "device.onnx"
Array: TypeAlias = npt.NDArray[Any]


def reader(data: bytes) -> decode.Read:
    """Return how bytes in memory are read by ranges."""
    return lambda offset, size: data[offset : offset + size]


def apply(delta: bytes, old: bytes, size: int) -> bytes:
    """Return what a delta makes."""
    return b"".join(decode.apply(reader(delta), reader(old), size))


def delta(old: bytes, new: bytes, old_xml: bytes = b"", new_xml: bytes = b"") -> bytes:
    """Return the delta between two files of any kind."""
    return encode.encode(old, new, layout.tensors(old, old_xml), layout.tensors(new, new_xml))


def changed(data: bytes, change: Callable[[str, Array], Array]) -> bytes:
    """Return an ONNX file with its initializers changed; each keeps its type and shape."""
    model = onnx.load_model_from_string(data)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        made = np.ascontiguousarray(change(tensor.name, values).astype(values.dtype))
        tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))
    return bytes(model.SerializeToString())


def tuned(seed: int, rate: float) -> Callable[[str, Array], Array]:
    """Return a change of all weights by some noise, relative to each tensor's spread."""
    rng = np.random.default_rng(seed)

    def change(_name: str, values: Array) -> Array:
        if values.dtype.kind == "f":
            return np.asarray(values + rate * values.std() * rng.standard_normal(values.shape))
        if values.dtype == np.int8:
            return np.asarray(
                (values + np.rint(40 * rate * rng.standard_normal(values.shape))).clip(-128, 127)
            )
        return values

    return change


def quantized(data: bytes) -> bytes:
    """Return an ONNX file whose larger initializers are int8, each with scales by its first axis."""
    model = onnx.load_model_from_string(data)
    more = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        scale = np.abs(values).reshape(len(values), -1).max(1).astype(np.float32) / 127 + 1e-9
        rounded = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
        more.append(numpy_helper.from_array(scale, f"{tensor.name}_scale"))
    model.graph.initializer.extend(more)
    return bytes(model.SerializeToString())
