"""Reductions, and the largest and smallest."""

from __future__ import annotations

from typing import Final

import numpy as np

from compiler.mil.registry import Converter, Node, converts
from compiler.mil.values import Value, emit, emit_many, shape_of

_REDUCTIONS: Final = {
    "ReduceL1": "reduce_l1_norm",
    "ReduceL2": "reduce_l2_norm",
    "ReduceLogSum": "reduce_log_sum",
    "ReduceLogSumExp": "reduce_log_sum_exp",
    "ReduceMax": "reduce_max",
    "ReduceMean": "reduce_mean",
    "ReduceMin": "reduce_min",
    "ReduceProd": "reduce_prod",
    "ReduceSum": "reduce_sum",
    "ReduceSumSquare": "reduce_sum_square",
}


def _reduction(operation: str) -> Converter:
    def convert(node: Node) -> Value:
        axes = node.numbers(1) if node.has(1) else node.integers("axes")
        if not axes and node.integer("noop_with_empty_axes", 0):
            return node.value()
        axes = [node.axis(x) for x in axes] or list(range(node.rank()))
        return emit(operation, x=node.value(), axes=axes, keep_dims=bool(node.integer("keepdims", 1)))

    return convert


for _operator, _operation in _REDUCTIONS.items():
    converts(_operator)(_reduction(_operation))


def _extreme(operation: str) -> Converter:
    def convert(node: Node) -> Value:
        x, axis = node.value(), node.axis(node.integer("axis", 0))
        last = bool(node.integer("select_last_index", 0))
        if last:
            x = emit("reverse", x=x, axes=[axis])
        found = emit(operation, x=x, axis=axis, keep_dims=bool(node.integer("keepdims", 1)))
        return emit("sub", x=np.int32(shape_of(x)[axis] - 1), y=found) if last else found

    return convert


converts("ArgMax")(_extreme("reduce_argmax"))
converts("ArgMin")(_extreme("reduce_argmin"))


@converts("TopK")
def _top_k(node: Node) -> list[Value]:
    return list(
        emit_many(
            "topk",
            x=node.value(),
            k=np.int32(node.numbers(1)[0]),
            axis=node.axis(node.integer("axis", -1)),
            ascending=not node.integer("largest", 1),
        )
    )
