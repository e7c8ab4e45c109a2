"""Tidying up models that a quantizer has written: in order, without leftovers, with short names."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

import onnx

from compiler.models import topology
from compiler.models.normalise import lower_ir

CONVERSIONS: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def names(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the source's inputs, outputs and intermediate tensors."""
    graph = model.graph
    made = (x for node in graph.node for x in node.output)
    return frozenset([*(x.name for x in graph.input), *(x.name for x in graph.output), *made])


def nodes(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    """Yield the nodes of a graph and of those inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from nodes(inner)


def slim(model: onnx.ModelProto) -> None:
    """Drop what only the tools needed, and shorten the names they made: it would travel to every device."""
    del model.metadata_props[:], model.graph.value_info[:], model.graph.metadata_props[:]
    lower_ir(model)
    topology.sort(model.graph)
    used = {x.domain for x in nodes(model.graph)} | {""}
    opsets = [x for x in model.opset_import if x.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    for node in nodes(model.graph):
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in model.graph.initializer:
        tensor.doc_string = ""


def shorten(model: onnx.ModelProto, keep: frozenset[str]) -> None:
    """Give the quantizer's own tensors and nodes short names; those of the source model stay."""
    inner = any(x.HasField("g") or x.graphs for node in model.graph.node for x in node.attribute)
    if inner:
        return
    found = dict.fromkeys(x.name for x in model.graph.initializer)
    found |= dict.fromkeys(x for node in model.graph.node for x in (*node.input, *node.output))
    free = (x for x in map("q{}".format, itertools.count()) if x not in keep)
    short = dict(zip((x for x in found if x and x not in keep), free, strict=False))  # names never run out
    for tensor in model.graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in model.graph.node:
        if node.op_type in CONVERSIONS:
            node.name = ""
        node.input[:] = [short.get(x, x) for x in node.input]
        node.output[:] = [short.get(x, x) for x in node.output]
