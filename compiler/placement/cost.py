"""Multiply-accumulates of one node for one sample, from the shapes of its tensors. Pure.

One row per operator, of ONNX (with ONNX Runtime's fused and integer ones), TFLite and OpenVINO: the formulas
are the same, only the order of the operands differs. Everything without a row costs none: element-wise work
is small beside these, and counting conventions leave it out (Sze et al., "Efficient Processing of Deep Neural
Networks: A Tutorial and Survey", Proceedings of the IEEE 105, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec

from compiler.placement.facts import NodeFact, TensorFact

Formula = Callable[[NodeFact], int | None]

#: Attributes that say that the first operand of a product lies transposed.
_TRANSPOSED: Final = ("transA", "transpose_a", "transpose_x", "adj_x")


def macs(node: NodeFact) -> int | None:
    """Return the multiply-accumulates: 0 for what only moves or maps values, None without a shape."""
    formula = FORMULAS.get(node.operator)
    return formula(node) if formula else 0


def counted(node: NodeFact) -> NodeFact:
    """Return the node with its cost."""
    weights = sum(x.size for x in node.inputs if x.constant)
    return msgspec.structs.replace(node, macs=macs(node), weight_bytes=weights)


def convolution(*, weight: int = 1, channels: tuple[int, ...] = (0,)) -> Formula:
    """Return the cost of a convolution: each output element takes one product per weight of its channel.

    Args:
        weight: position of the kernel among the inputs.
        channels: axes of the kernel that count output channels.
    """

    def cost(node: NodeFact) -> int | None:
        kernel, out = _shape(node.inputs, weight), _elements(node.outputs, 0)
        if kernel is None or out is None:
            return None
        return out * math.prod(kernel) // max(1, math.prod(kernel[i] for i in channels))

    return cost


def transposed(*, data: int = 0, weight: int = 1, channels: tuple[int, ...] = (0,)) -> Formula:
    """Return the cost of a transposed convolution: each input element meets every weight of its channel.

    Args:
        data: position of the data among the inputs.
        weight: position of the kernel among them.
        channels: axes of the kernel that count input channels.
    """

    def cost(node: NodeFact) -> int | None:
        kernel, there = _shape(node.inputs, weight), _elements(node.inputs, data)
        if kernel is None or there is None:
            return None
        return there * math.prod(kernel) // max(1, math.prod(kernel[i] for i in channels))

    return cost


def product(node: NodeFact) -> int | None:
    """Return the cost of a matrix product: each output element sums over the shared dimension."""
    left, out = _shape(node.inputs, 0), _elements(node.outputs, 0)
    if not left or out is None:
        return None
    swapped = any(node.attributes.get(x) for x in _TRANSPOSED) and len(left) > 1
    return out * left[-2 if swapped else -1]


def dense(node: NodeFact) -> int | None:
    """Return the cost of a fully connected layer with weights `[outputs, inputs]`."""
    weights, out = _shape(node.inputs, 1), _elements(node.outputs, 0)
    return None if not weights or out is None else out * weights[-1]


def recurrent(*weights: int) -> Formula:
    """Return the cost of a recurrent layer over `[steps, samples, …]`: each step meets every weight."""

    def cost(node: NodeFact) -> int | None:
        data = _shape(node.inputs, 0)
        sizes = [_elements(node.inputs, x) for x in weights if x < len(node.inputs) and node.inputs[x].name]
        if data is None or len(data) < 2 or not sizes:  # noqa: PLR2004 - steps and samples
            return None
        known = [x for x in sizes if x is not None]
        return data[0] * data[1] * sum(known) if len(known) == len(sizes) else None

    return cost


def einsum(node: NodeFact) -> int | None:
    """Return the cost of a sum of products over named dimensions: the product of all their sizes."""
    terms = str(node.attributes.get("equation", "")).replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, node.inputs, strict=False):
        if tensor.elements is None or tensor.shape is None or "." in term or len(term) != len(tensor.shape):
            return None
        sizes.update(zip(term, tensor.shape, strict=True))
    return math.prod(sizes.values()) if sizes else None


def attention(node: NodeFact) -> int | None:
    """Return the cost of scaled dot-product attention: queries meet keys, and weights meet values."""
    queries, keys, out = _elements(node.inputs, 0), _shape(node.inputs, 1), _elements(node.outputs, 0)
    if queries is None or out is None or not keys or len(keys) < 2 or node.inputs[1].constant:  # noqa: PLR2004
        return None
    return (queries + out) * keys[-2]


def _shape(tensors: tuple[TensorFact, ...], index: int) -> tuple[int, ...] | None:
    return tensors[index].shape if _elements(tensors, index) is not None else None


def _elements(tensors: tuple[TensorFact, ...], index: int) -> int | None:
    return tensors[index].elements if -len(tensors) <= index < len(tensors) else None


FORMULAS: Final[dict[str, Formula]] = {
    # ONNX, and what ONNX Runtime makes of it
    "Conv": convolution(),
    "ConvInteger": convolution(),
    "FusedConv": convolution(),
    "QLinearConv": convolution(weight=3),
    "ConvTranspose": transposed(),
    "DeformConv": convolution(),
    "Gemm": product,
    "FusedGemm": product,
    "QGemm": product,
    "MatMul": product,
    "FusedMatMul": product,
    "MatMulInteger": product,
    "MatMulIntegerToFloat": product,
    "DynamicQuantizeMatMul": product,
    "QLinearMatMul": product,
    "MatMulNBits": product,
    "LSTM": recurrent(1, 2),
    "GRU": recurrent(1, 2),
    "RNN": recurrent(1, 2),
    "DynamicQuantizeLSTM": recurrent(1, 2),
    "Einsum": einsum,
    "Attention": attention,
    # OpenVINO
    "Convolution": convolution(),
    "GroupConvolution": convolution(channels=(0, 1)),
    "ConvolutionBackpropData": transposed(),
    "GroupConvolutionBackpropData": transposed(channels=(0, 1)),
    "LSTMSequence": recurrent(4, 5),
    "GRUSequence": recurrent(3, 4),
    "RNNSequence": recurrent(3, 4),
    "ScaledDotProductAttention": attention,
    # TFLite
    "CONV_2D": convolution(),
    "CONV_3D": convolution(channels=(-1,)),
    "DEPTHWISE_CONV_2D": convolution(channels=(-1,)),
    "TRANSPOSE_CONV": transposed(data=2, channels=(-1,)),
    "FULLY_CONNECTED": dense,
    "BATCH_MATMUL": product,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": recurrent(*range(1, 9)),
    # Core ML's MIL
    "conv": convolution(),
    "conv_transpose": transposed(),
    "linear": dense,
    "matmul": product,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
