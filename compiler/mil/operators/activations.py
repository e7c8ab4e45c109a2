"""Activations."""

from __future__ import annotations

from typing import Final

import numpy as np

from compiler.mil.registry import Converter, Node, converts
from compiler.mil.values import Value, emit, is_float, kind_of, scalar, shape_of

#: ONNX operators that Core ML has under another name, without attributes.
_SAME: Final = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
    "Erf": "erf",
}
_SELU_ALPHA: Final = 1.6732632423543772
_SELU_GAMMA: Final = 1.0507009873554805


def _same(operation: str) -> Converter:
    return lambda node: emit(operation, x=node.value())


for _operator, _operation in _SAME.items():
    converts(_operator)(_same(_operation))


@converts("LeakyRelu")
def _leaky_relu(node: Node) -> Value:
    return emit("leaky_relu", x=node.value(), alpha=np.float32(node.number("alpha", 0.01)))


@converts("ThresholdedRelu")
def _thresholded_relu(node: Node) -> Value:
    return emit("thresholded_relu", x=node.value(), alpha=np.float32(node.number("alpha", 1.0)))


@converts("Elu")
def _elu(node: Node) -> Value:
    return emit("elu", x=node.value(), alpha=np.float32(node.number("alpha", 1.0)))


@converts("Selu")
def _selu(node: Node) -> Value:
    x = node.value()
    bent = emit("elu", x=x, alpha=np.float32(node.number("alpha", _SELU_ALPHA)))
    return emit("mul", x=bent, y=scalar(node.number("gamma", _SELU_GAMMA), x))


@converts("Celu")
def _celu(node: Node) -> Value:
    x, alpha = node.value(), node.number("alpha", 1.0)
    bent = emit("elu", x=emit("mul", x=x, y=scalar(1 / alpha, x)), alpha=np.float32(1.0))
    return emit("mul", x=bent, y=scalar(alpha, x))


@converts("HardSigmoid")
def _hard_sigmoid(node: Node) -> Value:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return emit("sigmoid_hard", x=node.value(), alpha=np.float32(alpha), beta=np.float32(beta))


@converts("HardSwish")
def _hard_swish(node: Node) -> Value:
    x = node.value()
    return emit("mul", x=x, y=emit("sigmoid_hard", x=x, alpha=np.float32(1 / 6), beta=np.float32(0.5)))


@converts("Mish")
def _mish(node: Node) -> Value:
    x = node.value()
    return emit("mul", x=x, y=emit("tanh", x=emit("softplus", x=x)))


@converts("Gelu")
def _gelu(node: Node) -> Value:
    tanh = node.text("approximate", "none") == "tanh"
    return emit("gelu", x=node.value(), mode="TANH_APPROXIMATION" if tanh else "EXACT")


@converts("PRelu")
def _prelu(node: Node) -> Value:
    """A slope per channel is Core ML's own; any other is composed."""
    x, slope = node.value(), node.value(1)
    shape, slopes = shape_of(x), shape_of(slope)
    channels = shape[1] if len(shape) > 1 else 0
    per_channel = len(slopes) == len(shape) - 1 and slopes == (channels, *[1] * (len(shape) - 2))
    if isinstance(slope, np.ndarray) and len(shape) in {3, 4, 5} and per_channel:
        return emit("prelu", x=x, alpha=slope.reshape(-1))
    below = emit("minimum", x=x, y=scalar(0.0, x))
    return emit("add", x=emit("relu", x=x), y=emit("mul", x=below, y=slope))


@converts("Clip")
def _clip(node: Node) -> Value:
    x = node.value()
    limits = np.finfo(np.float32) if is_float(x) else np.iinfo(np.int32)
    low = node.constant(1).reshape(()) if node.has(1) else np.array(limits.min)
    high = node.constant(2).reshape(()) if node.has(2) else np.array(limits.max)
    if not is_float(x):
        above = emit("maximum", x=x, y=low.astype(kind_of(x)))
        return emit("minimum", x=above, y=high.astype(kind_of(x)))
    if not node.has(2):
        return x if not node.has(1) else emit("maximum", x=x, y=low.astype(kind_of(x)))
    if not node.has(1):
        return emit("minimum", x=x, y=high.astype(kind_of(x)))
    return emit("clip", x=x, alpha=low.astype(np.float32), beta=high.astype(np.float32))


@converts("Softmax")
def _softmax(node: Node) -> Value:
    return emit("softmax", x=node.value(), axis=node.axis(node.integer("axis", -1)))


@converts("LogSoftmax")
def _log_softmax(node: Node) -> Value:
    x, axis = node.value(), node.axis(node.integer("axis", -1))
    return emit("sub", x=x, y=emit("reduce_log_sum_exp", x=x, axes=[axis], keep_dims=True))
