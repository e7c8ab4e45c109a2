"""What a placement needs to know of a Core ML package. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import numpy as np

from compiler.mil.program import Operation, Output, Program, Reference
from compiler.placement import cost
from compiler.placement.facts import GraphFacts, NodeFact, TensorFact, Value
from fleet.wire.tensors import NAMES

#: In this order, so that formulas and rules find data first and weights second.
_FIRST: Final = ("x", "input", "data", "weight", "y", "weight_ih", "weight_hh", "bias")
_FORMULAS: Final = {
    "conv": cost.convolution(),
    "conv_transpose": cost.transposed(),
    "linear": cost.convolution(),
    "matmul": cost.product,
}
_SMALL: Final = 64


def facts(program: Program, weights_bytes: int) -> GraphFacts:
    """Return the facts of a program; weights that it stores compressed are no nodes of their own.

    Args:
        program: of a package.
        weights_bytes: of its weights file.
    """
    known = {x.name: _tensor(x) for x in program.inputs}
    nodes = []
    for operation in program.operations:
        outputs = [_tensor(x) for x in operation.outputs]
        if operation.kind.startswith("constexpr"):
            stored = _stored(operation)
            known |= {x.name: msgspec.structs.replace(x, dtype=stored, constant=True) for x in outputs}
            continue
        nodes.append(_node(operation, outputs, known))
        known |= {x.name: x for x in outputs}
        if operation.kind == "dequantize":  # what reads it computes with the integers
            known[outputs[0].name] = msgspec.structs.replace(outputs[0], dtype=nodes[-1].inputs[0].dtype)
    return GraphFacts(
        nodes=tuple(nodes),
        inputs=tuple(x.name for x in program.inputs),
        outputs=tuple(x.feature for x in program.ports.outputs),
        weights_bytes=weights_bytes,
    )


def _tensor(output: Output) -> TensorFact:
    return TensorFact(name=output.name, dtype=_dtype(output.kind), shape=output.shape)


def _dtype(kind: str) -> str:
    return NAMES.get(np.dtype(kind), "") if kind else ""


def _stored(operation: Operation) -> str:
    """Return the type that a compressed weight is stored in; Core ML has no name for a palette's indices."""
    if operation.kind == "constexpr_affine_dequantize":
        return "INT8"
    palette = operation.inputs["lut"][0]
    return "INT4" if isinstance(palette, np.ndarray) and palette.size <= 16 else "INT8"  # noqa: PLR2004 - 4 bits


def _node(operation: Operation, outputs: Iterable[TensorFact], known: Mapping[str, TensorFact]) -> NodeFact:
    order = sorted(operation.inputs, key=lambda x: _FIRST.index(x) if x in _FIRST else len(_FIRST))
    inputs = []
    attributes: dict[str, Value] = {}
    for name in order:
        for given in operation.inputs[name]:
            if isinstance(given, Reference):
                inputs.append(known.get(given.name, TensorFact(name=given.name)))
            elif isinstance(given, str):
                attributes[name] = given
            elif name in _FIRST or given.size > _SMALL:
                kind = NAMES.get(given.dtype, "")
                inputs.append(
                    TensorFact(name=f"{operation.name}.{name}", dtype=kind, shape=given.shape, constant=True)
                )
            else:
                values = tuple(x.item() for x in given.reshape(-1))
                attributes[name] = values if given.ndim else values[0]
    node = NodeFact(
        name=operation.name or operation.outputs[0].name,
        operator=operation.kind,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        attributes=attributes,
        weight_bytes=sum(x.size for x in inputs if x.constant),
    )
    return msgspec.structs.replace(node, macs=_macs(node))


def _macs(node: NodeFact) -> int | None:
    if node.operator == "lstm":
        steps, batch = (node.inputs[0].shape or (0, 0))[:2]
        matrices = [x.shape for x in node.inputs if x.constant and x.shape and len(x.shape) > 1]
        return steps * batch * sum(map(math.prod, matrices))
    formula = _FORMULAS.get(node.operator)
    return formula(node) if formula else 0
