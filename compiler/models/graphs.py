"""Looking around in an ONNX graph: who makes a tensor, who reads it, which ones are constant. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

QUANTIZE: Final = "QuantizeLinear"
DEQUANTIZE: Final = "DequantizeLinear"
#: Operators whose cost is in their weights, which TensorRT computes in int8.
WEIGHTED: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: They move or keep values, so that a scale goes through them (TensorRT documentation, Q/DQ propagation).
COMMUTING: Final = (
    "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
#: They are fused into the weighted operator before them.
ACTIVATIONS: Final = ("BatchNormalization", "Clip", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "Selu")


class Graph:
    """An index of one graph; it does not follow changes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Read the graph."""
        graph = model.graph
        self.nodes: Final = list(graph.node)
        self.outputs: Final = frozenset(x.name for x in graph.output)
        self.inputs: Final = frozenset(x.name for x in graph.input)
        self.constants: Final = {x.name: x for x in graph.initializer}
        self.makers: Final = {name: node for node in graph.node for name in node.output if name}
        self.readers: Final[defaultdict[str, list[onnx.NodeProto]]] = defaultdict(list)
        for node in graph.node:
            for name in dict.fromkeys((*node.input, *captured(node))):
                if name:
                    self.readers[name].append(node)

    def maker(self, name: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor, None for inputs and constants."""
        return self.makers.get(name)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """Return the one node that reads a tensor; None where there are others, or it is an output."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def array(self, name: str) -> npt.NDArray[np.generic] | None:
        """Return a constant's value, None where the tensor is none."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def dequantized(self, name: str) -> onnx.NodeProto | None:
        """Return the DequantizeLinear that makes a tensor, if one does."""
        maker = self.maker(name)
        return maker if maker is not None and maker.op_type == DEQUANTIZE else None

    def constant(self, name: str) -> bool:
        """Return whether a tensor is constant, quantized or not."""
        source = self.dequantized(name)
        return (name if source is None else source.input[0]) in self.constants


def name_of(node: onnx.NodeProto, place: int) -> str:
    """Return what a node is called: by its place in the graph where it has no name."""
    return node.name or f"{node.op_type}.{place}"


def captured(node: onnx.NodeProto) -> Iterable[str]:
    """Yield the names that a node's subgraphs read."""
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for child in inner.node:
                yield from child.input
                yield from captured(child)
            yield from (x.name for x in inner.output)


def attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    """Return an integer attribute."""
    return next((x.i for x in node.attribute if x.name == name), default)


def channel_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """Return the axis of the weights that TensorRT scales channel by channel; None where it has one scale.

    TensorRT documentation, explicit quantization: the output channels, K of a convolution's KCRS and of a
    deconvolution's CKRS; grouped deconvolutions mix them.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB") else 1
    return rank - 1 if node.op_type == "MatMul" and rank == 2 else None  # noqa: PLR2004 - a matrix
