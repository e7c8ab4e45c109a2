"""How much memory a graph's tensors take at once, by their inferred shapes, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import onnx

from compiler.errors import ModelRefusedError

#: Bytes of intermediate tensors that a model may hold at once, beside what it takes on disk.
ACTIVATION_LIMIT: Final = 384 * 1024**2
#: A model's bytes on disk buy so many times as many of intermediate tensors.
PER_BYTE: Final = 4


def check(inferred: onnx.ModelProto, file_size: int) -> None:
    """Check that one sample's intermediate tensors fit in memory; an unknown dimension counts as 1.

    A few bytes of shape can ask for gigabytes; runtimes also compute what is constant when they load.

    Args:
        inferred: the model with inferred shapes.
        file_size: its bytes on disk.

    Raises:
        ModelRefusedError: names the largest tensor alive where they do not.
    """
    limit = ACTIVATION_LIMIT + PER_BYTE * file_size
    size, name = _peak(inferred.graph)
    if size > limit:
        raise ModelRefusedError(
            f"tensor {name[:80]!r}: expected at most {limit} bytes of intermediate tensors at once; "
            f"got {size}"
        )


def _peak(graph: onnx.GraphProto) -> tuple[int, str]:
    """Return the most bytes alive at one node, those of its subgraphs included, and the largest tensor."""
    sizes = {x.name: _size(x) for x in (*graph.value_info, *graph.output, *graph.input)}
    last = {name: place for place, node in enumerate(graph.node) for name in _read(node)}
    last |= {x.name: len(graph.node) for x in graph.output}
    alive: dict[str, int] = {x.name: sizes[x.name] for x in graph.input}
    ends: dict[int, list[str]] = {}
    for name, place in last.items():
        ends.setdefault(place, []).append(name)
    total, worst = sum(alive.values()), (0, "")
    for place, node in enumerate(graph.node):
        for name in node.output:
            alive[name] = sizes.get(name, 0)
            total += alive[name]
        inner = max((_peak(x) for x in _subgraphs(node)), default=(0, ""))
        if total + inner[0] > worst[0]:
            largest = max(alive, key=alive.__getitem__, default="")
            worst = (total + inner[0], inner[1] if inner[0] > alive.get(largest, 0) else largest)
        for name in (*ends.get(place, ()), *(x for x in node.output if x not in last)):
            total -= alive.pop(name, 0)
    return worst


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, also from inside its subgraphs."""
    yield from node.input
    for graph in _subgraphs(node):
        for inner in graph.node:
            yield from _read(inner)
        yield from (x.name for x in graph.output)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _size(value: onnx.ValueInfoProto) -> int:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or tensor.elem_type in {0, onnx.TensorProto.STRING}:
        return 0
    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    except KeyError:
        return 0
    size: int = width * math.prod(x.dim_value for x in tensor.shape.dim if x.dim_value > 0)
    return size
