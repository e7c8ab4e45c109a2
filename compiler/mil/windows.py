"""What convolutions and pools share: where their windows lie."""

from __future__ import annotations

from typing import NamedTuple

from compiler.mil.registry import Node


class Windows(NamedTuple):
    """Kernel, strides, dilations and padding of each spatial dimension."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begins: list[int]
    ends: list[int]

    @property
    def pad(self) -> list[int]:
        """Padding in Core ML's order: begin and end of each dimension."""
        return [x for pair in zip(self.begins, self.ends, strict=True) for x in pair]

    def spans(self) -> list[int]:
        """Return how far each kernel reaches."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]


def of(node: Node, kernel: list[int]) -> Windows:
    """Return where the windows of a node lie; padding that is left to ONNX is written out.

    Raises:
        ModelRefusedError: an `auto_pad` that ONNX does not have.
    """
    rank = len(kernel)
    strides = node.integers("strides", [1] * rank)
    dilations = node.integers("dilations", [1] * rank)
    pads = node.integers("pads", [0] * 2 * rank)
    found = Windows(kernel, strides, dilations, pads[:rank], pads[rank:])
    auto = node.text("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return found
    if auto == "VALID":
        return found._replace(begins=[0] * rank, ends=[0] * rank)
    if auto not in {"SAME_UPPER", "SAME_LOWER"}:
        raise node.refusal("auto_pad of NOTSET, VALID, SAME_UPPER, SAME_LOWER", auto)
    sizes = node.shape()[2:]
    total = [
        max((-(-size // stride) - 1) * stride + span - size, 0)
        for size, stride, span in zip(sizes, strides, found.spans(), strict=True)
    ]
    less, more = [x // 2 for x in total], [x - x // 2 for x in total]
    begins, ends = (less, more) if auto == "SAME_UPPER" else (more, less)
    return found._replace(begins=begins, ends=ends)
