"""Convolutions of one, two and three dimensions."""

from __future__ import annotations

import numpy as np

from compiler.mil import windows
from compiler.mil.registry import Node, converts
from compiler.mil.values import Value, emit, shape_of
from compiler.mil.windows import Windows


@converts("Conv")
def _conv(node: Node) -> Value:
    where = windows.of(node, list(node.shape(1)[2:]))
    return emit(
        "conv",
        x=node.value(),
        weight=node.weight(1, axis=0),
        bias=node.value(2) if node.has(2) else None,
        strides=where.strides,
        dilations=where.dilations,
        pad_type="custom",
        pad=where.pad,
        groups=node.integer("group", 1),
    )


@converts("ConvTranspose")
def _conv_transpose(node: Node) -> Value:
    """ONNX may ask for more at the end than the kernels reach: that part is only bias."""
    where, beyond = _spread(node)
    bias = node.value(2) if node.has(2) else None
    late = any(beyond) and bias is not None
    # Its channels lie along axis 1; with groups a scale per channel would mix them, so then it is per input.
    weight = node.weight(1, axis=1 if node.integer("group", 1) == 1 else 0)
    found = emit(
        "conv_transpose",
        x=node.value(),
        weight=weight,
        bias=None if late else bias,
        strides=where.strides,
        dilations=where.dilations,
        pad_type="custom",
        pad=where.pad,
        groups=node.integer("group", 1),
    )
    if not any(beyond):
        return found
    found = emit("pad", x=found, pad=[0] * 4 + [y for x in beyond for y in (0, x)], mode="constant")
    if bias is None:
        return found
    across = (1, -1, *[1] * len(beyond))
    wide = (
        bias.reshape(across)
        if isinstance(bias, np.ndarray)
        else emit("reshape", x=bias, shape=[x if x > 0 else shape_of(bias)[0] for x in across])
    )
    return emit("add", x=found, y=wide)


def _spread(node: Node) -> tuple[Windows, list[int]]:
    """Return the windows, and how many cells beyond the last kernel the output has."""
    where = windows.of(node, list(node.shape(1)[2:]))
    rank = len(where.kernel)
    extra = node.integers("output_padding", [0] * rank)
    full = [
        (size - 1) * stride + span
        for size, stride, span in zip(node.shape()[2:], where.strides, where.spans(), strict=True)
    ]
    begins, ends = list(where.begins), list(where.ends)
    auto = node.text("auto_pad", "NOTSET")
    wanted = node.integers("output_shape")
    if not wanted and auto.startswith("SAME"):
        wanted = [size * stride for size, stride in zip(node.shape()[2:], where.strides, strict=True)]
    if wanted:
        total = [x + more - want for x, more, want in zip(full, extra, wanted, strict=True)]
        small, large = [x // 2 for x in total], [x - x // 2 for x in total]
        begins, ends = (small, large) if auto == "SAME_UPPER" else (large, small)
    ends = [end - more for end, more in zip(ends, extra, strict=True)]
    if min(begins) < 0:
        raise node.refusal("an output no larger at its beginning than the kernels reach", str(begins))
    beyond = [max(-x, 0) for x in ends]
    return where._replace(begins=begins, ends=[max(x, 0) for x in ends]), beyond
