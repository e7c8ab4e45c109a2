"""Where the weight tensors lie in a model file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fleet.delta import onnx_layout, openvino_layout, tflite_layout
from fleet.delta.tensor import Malformed, Tensor

#: Smaller ones are left to the generic part: naming them costs more than they would save.
SMALLEST: Final = 16


def tensors(data: bytes, companion: bytes = b"") -> tuple[Tensor, ...]:
    """Return the tensors of a model file, in order and without overlap; none when it is no format we know.

    Args:
        data: the file, of any kind; it is not trusted.
        companion: for the weights of an OpenVINO model, the `.xml` that describes them.
    """
    readers: tuple[Callable[[], list[Tensor]], ...] = (
        lambda: openvino_layout.tensors(companion, len(data)),
        lambda: tflite_layout.tensors(data),
        lambda: onnx_layout.tensors(data),
    )
    return next((found for reader in readers if (found := _separate(_read(reader), len(data)))), ())


def _read(reader: Callable[[], list[Tensor]]) -> list[Tensor]:
    try:
        return reader()
    except Malformed:
        return []


def _separate(found: list[Tensor], size: int) -> tuple[Tensor, ...]:
    """Return what can be believed: tensors inside the file, each byte in one of them at most."""
    kept, end = [], 0
    for tensor in sorted(found, key=lambda tensor: tensor.start):
        count = 1
        for length in tensor.shape:
            count *= length
        fits = count * tensor.kind.size == tensor.size and tensor.start + tensor.size <= size
        if fits and count >= SMALLEST and tensor.start >= end:
            kept.append(tensor)
            end = tensor.start + tensor.size
    return tuple(kept)
