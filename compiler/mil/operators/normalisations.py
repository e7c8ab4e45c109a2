"""Normalisations."""

from __future__ import annotations

import math

import numpy as np

from compiler.mil.registry import Node, converts
from compiler.mil.values import Value, emit, scalar

#: Core ML normalises batches of these ranks itself.
_BATCH_RANKS = frozenset({3, 4, 5})


@converts("BatchNormalization")
def _batch(node: Node) -> Value:
    """Inference only; outside the ranks that Core ML takes it is a product and a sum."""
    if node.integer("training_mode", 0):
        raise node.refusal("inference", "training_mode 1")
    epsilon = node.number("epsilon", 1e-5)
    scale, bias, mean, variance = (node.constant(x).astype(np.float32) for x in (1, 2, 3, 4))
    if node.rank() in _BATCH_RANKS:
        return emit(
            "batch_norm",
            x=node.value(),
            mean=mean,
            variance=variance,
            gamma=scale,
            beta=bias,
            epsilon=np.float32(epsilon),
        )
    factor = (scale / np.sqrt(variance + np.float32(epsilon))).astype(np.float32)
    scaled = emit("mul", x=node.value(), y=factor)
    return emit("add", x=scaled, y=(bias - mean * factor).astype(np.float32))


@converts("InstanceNormalization")
def _instance(node: Node) -> Value:
    epsilon = np.float32(node.number("epsilon", 1e-5))
    if node.rank() in {3, 4}:
        return emit(
            "instance_norm", x=node.value(), gamma=node.constant(1), beta=node.constant(2), epsilon=epsilon
        )
    found = emit("layer_norm", x=node.value(), axes=list(range(2, node.rank())), epsilon=epsilon)
    return _channels(node, found)


@converts("LayerNormalization")
def _layer(node: Node) -> Value:
    if len([x for x in node.outputs if x]) > 1:
        raise node.refusal("the normalised tensor alone", "mean or deviation too")
    first = node.axis(node.integer("axis", -1))
    axes, within = list(range(first, node.rank())), node.shape()[first:]
    epsilon = np.float32(node.number("epsilon", 1e-5))
    scale = np.broadcast_to(node.constant(1), within).astype(np.float32)
    bias = np.broadcast_to(node.constant(2), within).astype(np.float32) if node.has(2) else None
    return emit("layer_norm", x=node.value(), axes=axes, gamma=scale, beta=bias, epsilon=epsilon)


@converts("GroupNormalization")
def _group(node: Node) -> Value:
    """Each group of channels is one row to normalise; scale and bias are per channel from opset 21 on."""
    shape, groups = node.shape(), node.integer("num_groups", 1)
    rows = emit("reshape", x=node.value(), shape=[shape[0], groups, math.prod(shape[1:]) // groups])
    found = emit("layer_norm", x=rows, axes=[2], epsilon=np.float32(node.number("epsilon", 1e-5)))
    return _channels(node, emit("reshape", x=found, shape=list(shape)))


def _channels(node: Node, found: Value) -> Value:
    """Scale and shift channels; a scale per group is repeated over its channels."""
    channels, across = node.shape()[1], (1, -1, *[1] * (node.rank() - 2))
    scale, bias = (np.repeat(x, channels // x.size) for x in (node.constant(1), node.constant(2)))
    return emit("add", x=emit("mul", x=found, y=scale.reshape(across)), y=bias.reshape(across))


@converts("RMSNormalization")
def _root_mean_square(node: Node) -> Value:
    x, first = node.value(), node.axis(node.integer("axis", -1))
    squares = emit(
        "reduce_mean", x=emit("mul", x=x, y=x), axes=list(range(first, node.rank())), keep_dims=True
    )
    safe = emit("add", x=squares, y=scalar(node.number("epsilon", 1e-5), x))
    return emit("mul", x=emit("real_div", x=x, y=emit("sqrt", x=safe)), y=node.value(1))


@converts("LpNormalization")
def _lp(node: Node) -> Value:
    operation = "reduce_l1_norm" if node.integer("p", 2) == 1 else "reduce_l2_norm"
    size = emit(operation, x=node.value(), axes=[node.axis(node.integer("axis", -1))], keep_dims=True)
    return emit("real_div", x=node.value(), y=size)


@converts("LRN")
def _local_response(node: Node) -> Value:
    return emit(
        "local_response_norm",
        x=node.value(),
        size=node.integer("size", 1),
        alpha=np.float32(node.number("alpha", 1e-4)),
        beta=np.float32(node.number("beta", 0.75)),
        k=np.float32(node.number("bias", 1.0)),
    )


@converts("MeanVarianceNormalization")
def _mean_variance(node: Node) -> Value:
    """Epsilon as in ONNX's own definition, which adds it to the deviation."""
    x, axes = node.value(), node.integers("axes", [0, 2, 3])
    centred = emit("sub", x=x, y=emit("reduce_mean", x=x, axes=axes, keep_dims=True))
    variance = emit("reduce_mean", x=emit("mul", x=centred, y=centred), axes=axes, keep_dims=True)
    deviation = emit("add", x=emit("sqrt", x=variance), y=scalar(1e-9, x))
    return emit("real_div", x=centred, y=deviation)
