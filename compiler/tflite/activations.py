"""Activations said with operators that the Edge TPU takes and the quantizer knows. Every rewriting is exact.

Else each of them would end the part of the graph that the Edge TPU runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

#: The largest value of RELU6, the only bounded activation that is fused into other operators.
_SIX: Final = 6.0
#: Relative precision of single-precision floats.
_SINGLE: Final = 2.0**-23


class Draft:
    """Nodes that take the place of one."""

    def __init__(self, node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> None:
        """Take the node, and the constants of its graph."""
        self.node: Final = node
        self.known: Final = known
        self.nodes: Final[list[onnx.NodeProto]] = []
        self.constants: Final[list[onnx.TensorProto]] = []
        self._name: Final = node.output[0]

    def attribute(self, name: str, default: float) -> float:
        """Return one of the node's attributes."""
        return float(next((x.f for x in self.node.attribute if x.name == name), default))

    def constant(self, value: npt.ArrayLike) -> str:
        """Add a constant; return its name."""
        name = f"{self._name}:c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def add(self, operator: str, *inputs: str) -> str:
        """Add a node; return its output."""
        name = f"{self._name}:{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name))
        return name

    def bounded(self, value: str) -> str:
        """Add RELU6."""
        return self.add("Clip", value, self.constant(0.0), self.constant(_SIX))

    def end(self) -> None:
        """Let the last node have the name of what they replace."""
        self.nodes[-1].output[0] = self._name


def _leaky_relu(draft: Draft) -> bool:
    """The larger of x and a fraction of it."""
    alpha, x = draft.attribute("alpha", 0.01), draft.node.input[0]
    if not 0.0 <= alpha <= 1.0:
        return False
    draft.add("Max", x, draft.add("Mul", x, draft.constant(alpha)))
    return True


def _hard_sigmoid(draft: Draft) -> bool:
    """Six times the line, bounded by six, divided by six; HardSwish has become one times x before."""
    alpha, beta = draft.attribute("alpha", 0.2), draft.attribute("beta", 0.5)
    scaled = draft.node.input[0]
    if not math.isclose(_SIX * alpha, 1.0, rel_tol=_SINGLE):
        scaled = draft.add("Mul", scaled, draft.constant(_SIX * alpha))
    gate = draft.bounded(draft.add("Add", scaled, draft.constant(_SIX * beta)))
    draft.add("Mul", gate, draft.constant(1.0 / _SIX))
    return True


def _prelu(draft: Draft) -> bool:
    """The slope times x, and the rest of the slope to one times its positive part."""
    x, slope = draft.node.input[:2]
    if slope not in draft.known:
        return False
    rest = draft.constant(1.0 - numpy_helper.to_array(draft.known[slope]))
    draft.add("Add", draft.add("Mul", x, slope), draft.add("Mul", draft.add("Relu", x), rest))
    return True


#: By the ONNX operator that each rewrites.
REWRITINGS: Final[dict[str, Callable[[Draft], bool]]] = {
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
}


def rewrite(model: onnx.ModelProto) -> None:
    """Rewrite the activations of a graph, in place."""
    graph = model.graph
    known = {x.name: x for x in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        draft = Draft(node, known)
        if node.op_type in REWRITINGS and REWRITINGS[node.op_type](draft):
            draft.end()
            nodes += draft.nodes
            graph.initializer.extend(draft.constants)
        else:
            nodes.append(node)
    copies = [onnx.NodeProto.FromString(x.SerializeToString()) for x in nodes]
    del graph.node[:]
    graph.node.extend(copies)
