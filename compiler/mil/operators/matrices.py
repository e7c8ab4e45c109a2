"""Products of matrices."""

from __future__ import annotations

import numpy as np

from compiler.mil.registry import Node, converts
from compiler.mil.values import Value, emit, is_stored, scalar, shape_of


@converts("MatMul")
def _matmul(node: Node) -> Value:
    """With a constant matrix on the right it is Core ML's `linear`, which the Neural Engine prefers."""
    x, y = node.value(0), node.value(1)
    if isinstance(y, np.ndarray) and y.ndim == 2 and 2 <= node.rank() <= 3:  # noqa: PLR2004 - ranks of `linear`
        return emit("linear", x=x, weight=node.weight(1, axis=0, transposed=True))
    left, right = node.rank(0) == 1, node.rank(1) == 1
    x = emit("expand_dims", x=x, axes=[0]) if left else x
    y = emit("expand_dims", x=y, axes=[1]) if right else node.weight(1, axis=-1)
    product = emit("matmul", x=x, y=y)
    drop = ([-2] if left else []) + ([-1] if right else [])
    if not drop:
        return product
    if len(shape_of(product)) == len(drop):
        raise node.refusal("a product with at least one dimension", "a scalar")
    return emit("squeeze", x=product, axes=drop)


@converts("Gemm")
def _gemm(node: Node) -> Value:
    a, alpha = node.value(0), node.number("alpha", 1.0)
    if node.integer("transA", 0):
        a = emit("transpose", x=a, perm=[1, 0])
    flipped = not node.integer("transB", 0)
    beta, bias = node.number("beta", 1.0), node.value(2) if node.has(2) else None
    stored = is_stored(node.value(1)) and (isinstance(node.value(1), np.ndarray) or not flipped)
    if stored and alpha == 1.0 and (bias is None or isinstance(bias, np.ndarray)):
        weight = node.weight(1, axis=0, transposed=flipped)
        units = shape_of(weight)[0]
        if bias is None:
            return emit("linear", x=a, weight=weight)
        if bias.size in {1, units} and (bias.ndim < 2 or bias.shape[0] == 1):  # noqa: PLR2004 - a row
            row = np.broadcast_to(bias.reshape(-1), (units,)).astype(np.float32)
            return emit("linear", x=a, weight=weight, bias=(row * np.float32(beta)))
    y = node.value(1) if flipped else emit("transpose", x=node.value(1), perm=[1, 0])
    product = emit("matmul", x=a, y=y)
    if alpha != 1.0:
        product = emit("mul", x=product, y=scalar(alpha, product))
    if bias is None:
        return product
    return emit("add", x=product, y=emit("mul", x=bias, y=scalar(beta, bias)) if beta != 1.0 else bias)
