"""Taking out the Q/DQ pairs between an operator and its activation, which the NPU computes as one. Pure."""

from __future__ import annotations

from typing import Final

import onnx

from compiler.models.graphs import QUANTIZE, Graph

#: As AMD Quark does ("remove QuantizeLinear & DequantizeLinear on certain operations, such as conv-relu").
BEFORE: Final = ("Add", "Conv", "ConvTranspose", "Gemm")
ACTIVATIONS: Final = ("Clip", "LeakyRelu", "Relu")


def fuse(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take the pairs out, in place, and return the model."""
    graph = Graph(model)
    gone: set[int] = set()
    for node in graph.nodes:
        dequantize = graph.dequantized(node.input[0]) if node.op_type in ACTIVATIONS else None
        quantize = graph.maker(dequantize.input[0]) if dequantize is not None else None
        if dequantize is None or quantize is None or quantize.op_type != QUANTIZE:
            continue
        before = graph.maker(quantize.input[0])
        alone = graph.only_reader(dequantize.output[0]) and graph.only_reader(quantize.output[0])
        if before is not None and before.op_type in BEFORE and alone is not None:
            node.input[0] = quantize.input[0]
            gone |= {id(dequantize), id(quantize)}
    kept = [x for x in graph.nodes if id(x) not in gone]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model
