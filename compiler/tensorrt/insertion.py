"""Placing Q/DQ pairs by TensorRT's rules. Pure.

The rules (TensorRT documentation, "Q/DQ layer-placement recommendations"): quantize all inputs of weighted
operators, not their outputs; let an activation stay fused with what is before it; of a residual addition
quantize the skip input, so that addition and convolution become one int8 kernel; quantize average pooling
where int8 goes on behind it. Biases stay in float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from compiler.models import topology
from compiler.models.graphs import (
    COMMUTING,
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED,
    Graph,
    attribute,
    captured,
    channel_axis,
)
from compiler.quantizing import weight_only

POOLS: Final = ("AveragePool", "GlobalAveragePool")
LARGEST: Final = 127
NARROW: Final = 16
_MATRIX: Final = 2

Ends = list[tuple[onnx.NodeProto, int]]


def quantize(
    model: onnx.ModelProto, magnitudes: Mapping[str, float], left_float: Sequence[str] = ()
) -> onnx.ModelProto:
    """Insert Q/DQ pairs, in place, and return the model.

    Args:
        model: folded and fused; its nodes have names.
        magnitudes: the largest absolute value of each activation that is represented.
        left_float: names of nodes that stay as they are.
    """
    writer = _Writer(model, magnitudes)
    for node, position in ends(Graph(model), magnitudes, frozenset(left_float)):
        writer.quantize(node, position)
    writer.finish()
    return model


def narrow(graph: Graph) -> tuple[str, ...]:
    """Return the names of weighted operators with so few channels that int8 gains nothing.

    Int8 kernels work on packs of channels, and pad what is missing (NVIDIA TensorRT documentation,
    "Optimizing for Tensor Cores"); such operators stand at a network's ends, where they cost the most.
    """
    found = []
    for node in graph.nodes:
        weights = graph.constants.get(node.input[1]) if node.op_type in WEIGHTED else None
        if weights is not None and attribute(node, "group", 1) == 1 and min(weights.dims[:2]) < NARROW:
            found.append(node.name)
    return tuple(found)


def ends(graph: Graph, known: Mapping[str, float], left_float: frozenset[str]) -> Ends:
    """Return which inputs of which nodes get a Q/DQ pair: (node, position)."""
    weighted = [
        x for x in graph.nodes if x.op_type in WEIGHTED and x.name not in left_float and _can(graph, x, known)
    ]
    found = [(node, position) for node in weighted for position in (0, 1)]
    fused = {id(x) for x in weighted}
    for node in graph.nodes:
        if node.op_type == "Add" and node.name not in left_float:
            skip = _skip(graph, node, fused)
            if skip is not None and node.input[skip] in known:
                found.append((node, skip))
    quantized = {node.input[position] for node, position in found}
    found += [
        (node, 0)
        for node in graph.nodes
        if node.op_type in POOLS
        and node.name not in left_float
        and node.input[0] in known
        and node.input[0] not in graph.inputs
        and _goes_on(graph, node.output[0], quantized)
    ]
    return found


def _can(graph: Graph, node: onnx.NodeProto, known: Mapping[str, float]) -> bool:
    """Return whether both inputs of a weighted operator can be quantized."""
    first, second = node.input[:2]
    if first in graph.constants or first not in known:
        return False
    weights = graph.constants.get(second)
    if weights is None:
        return node.op_type in {"MatMul", "Gemm"} and second in known
    rank = len(weights.dims)
    return weights.data_type == onnx.TensorProto.FLOAT and (
        node.op_type in {"Conv", "ConvTranspose"} or rank == _MATRIX
    )


def _skip(graph: Graph, node: onnx.NodeProto, fused: set[int]) -> int | None:
    """Return which input of an addition is the skip connection's; None where nothing is fused with it."""
    if any(x in graph.constants for x in node.input):
        return None
    fed = [_fed(graph, name, fused) for name in node.input]
    if not any(fed):
        return None
    return 0 if all(fed) else fed.index(False)


def _fed(graph: Graph, name: str, fused: set[int]) -> bool:
    """Return whether a tensor is a quantized operator's output, its bias added, for one reader alone."""
    maker = graph.maker(name)
    if maker is None or graph.only_reader(name) is None:
        return False
    if id(maker) in fused:
        return True
    biased = maker.op_type == "Add" and any(x in graph.constants for x in maker.input)
    return biased and any(_fed(graph, x, fused) for x in maker.input if x not in graph.constants)


def _goes_on(graph: Graph, name: str, quantized: set[str]) -> bool:
    """Return whether a tensor is quantized, also behind operators that only move values."""
    if name in quantized:
        return True
    through = [x for x in graph.readers[name] if x.op_type in COMMUTING and x.input[0] == name]
    return any(_goes_on(graph, x.output[0], quantized) for x in through)


class _Writer:
    """Adds the nodes: one Q per tensor, and a DQ for each reader, so that each is fused with its own."""

    def __init__(self, model: onnx.ModelProto, magnitudes: Mapping[str, float]) -> None:
        self._graph: Final = model.graph
        self._weights: Final = {x.name: x for x in model.graph.initializer}
        self._magnitudes: Final = magnitudes
        self._quantized: Final[set[str]] = set()
        self._nodes: Final[list[onnx.NodeProto]] = []
        self._used = 0

    def quantize(self, node: onnx.NodeProto, position: int) -> None:
        name = node.input[position]
        weights = self._weights.get(name)
        axis = None if weights is None else channel_axis(node, len(weights.dims))
        parts = self._activation(name) if weights is None else self._weight(weights, axis)
        self._used += 1
        out = f"{name}_dq{self._used}"
        dequantize = helper.make_node(DEQUANTIZE, parts, [out], name=f"{node.name}_dq{position}")
        if axis is not None:
            dequantize.attribute.append(helper.make_attribute("axis", axis))
        self._nodes.append(dequantize)
        node.input[position] = out

    def _activation(self, name: str) -> list[str]:
        parts = [f"{name}_q", f"{name}_scale", f"{name}_zero"]
        if name not in self._quantized:
            self._quantized.add(name)
            self._constant(parts[1], np.array(self._magnitudes[name] / LARGEST, np.float32))
            self._constant(parts[2], np.array(0, np.int8))
            self._nodes.append(helper.make_node(QUANTIZE, [name, *parts[1:]], parts[:1], name=f"{name}_q"))
        return parts

    def _weight(self, weights: onnx.TensorProto, axis: int | None) -> list[str]:
        stem = weights.name if axis is None else f"{weights.name}_axis{axis}"
        parts = [f"{stem}_q", f"{stem}_scale", f"{stem}_zero"]
        if stem not in self._quantized:
            self._quantized.add(stem)
            values = numpy_helper.to_array(weights).astype(np.float32)
            if axis is None:  # one scale for all: the only index of an axis put before them
                integers, scales = (x[0] for x in weight_only.per_channel(values[None], 0))
            else:
                integers, scales = weight_only.per_channel(values, axis)
            self._constant(parts[0], integers)
            self._constant(parts[1], scales)
            self._constant(parts[2], np.zeros(scales.shape, np.int8))
        return parts

    def _constant(self, name: str, value: npt.NDArray[np.generic] | np.generic) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))

    def finish(self) -> None:
        self._graph.node.extend(self._nodes)
        read = {x for node in self._graph.node for x in (*node.input, *captured(node))}
        read |= {x.name for x in self._graph.output}
        unused = [x for x in self._weights.values() if x.name not in read]
        for tensor in unused:
            self._graph.initializer.remove(tensor)
        topology.sort(self._graph)
