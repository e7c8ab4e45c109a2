"""Comparisons and logic."""

from __future__ import annotations

from typing import Final

import numpy as np

from compiler.mil.registry import Converter, Node, converts
from compiler.mil.values import Value, emit, kind_of

_COMPARISONS: Final = {
    "Equal": "equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
}
_LOGIC: Final = {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor"}


def _numeric(value: Value) -> Value:
    """Core ML compares no booleans."""
    if kind_of(value) != np.bool_:
        return value
    return value.astype(np.int32) if isinstance(value, np.ndarray) else emit("cast", x=value, dtype="int32")


def _compared(operation: str) -> Converter:
    return lambda node: emit(operation, x=_numeric(node.value(0)), y=_numeric(node.value(1)))


def _joined(operation: str) -> Converter:
    return lambda node: emit(operation, x=node.value(0), y=node.value(1))


for _operator, _operation in _COMPARISONS.items():
    converts(_operator)(_compared(_operation))
for _operator, _operation in _LOGIC.items():
    converts(_operator)(_joined(_operation))


@converts("Not")
def _not(node: Node) -> Value:
    return emit("logical_not", x=node.value())


@converts("IsNaN")
def _is_nan(node: Node) -> Value:
    return emit("not_equal", x=node.value(), y=node.value())


@converts("Where")
def _where(node: Node) -> Value:
    return emit("select", cond=node.value(0), a=node.value(1), b=node.value(2))
