"""Arithmetic, element by element."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np

from compiler.mil.registry import Converter, Node, converts
from compiler.mil.values import Value, emit, is_float, kind_of, scalar

#: ONNX operators on one tensor that Core ML has under another name.
_UNARY: Final = {
    "Abs": "abs",
    "Acos": "acos",
    "Asin": "asin",
    "Atan": "atan",
    "Atanh": "atanh",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Exp": "exp",
    "Floor": "floor",
    "Round": "round",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Sqrt": "sqrt",
    "Tan": "tan",
}
#: Those on two.
_BINARY: Final = {"Add": "add", "Mul": "mul", "Sub": "sub"}
#: Those on any number.
_VARIADIC: Final = {"Max": "maximum", "Min": "minimum", "Sum": "add"}


def _unary(operation: str) -> Converter:
    return lambda node: emit(operation, x=node.value())


def _binary(operation: str) -> Converter:
    return lambda node: emit(operation, x=node.value(0), y=node.value(1))


def _folded(operation: str) -> Converter:
    return lambda node: functools.reduce(lambda x, y: emit(operation, x=x, y=y), node.values())


for _operator, _operation in _UNARY.items():
    converts(_operator)(_unary(_operation))
for _operator, _operation in _BINARY.items():
    converts(_operator)(_binary(_operation))
for _operator, _operation in _VARIADIC.items():
    converts(_operator)(_folded(_operation))


@converts("Mean")
def _mean(node: Node) -> Value:
    values = node.values()
    total = functools.reduce(lambda x, y: emit("add", x=x, y=y), values)
    return emit("mul", x=total, y=scalar(1 / len(values), total))


@converts("Neg")
def _neg(node: Node) -> Value:
    return emit("mul", x=node.value(), y=scalar(-1, node.value()))


@converts("Reciprocal")
def _reciprocal(node: Node) -> Value:
    """Core ML's `inverse` adds an epsilon, so a division it is."""
    return emit("real_div", x=scalar(1.0, node.value()), y=node.value())


@converts("Log")
def _log(node: Node) -> Value:
    return emit("log", x=node.value(), epsilon=np.float32(0.0))


@converts("Div")
def _div(node: Node) -> Value:
    """ONNX divides integers towards zero, Core ML downwards."""
    x, y = node.value(0), node.value(1)
    if is_float(x):
        return emit("real_div", x=x, y=y)
    size = emit("floor_div", x=emit("abs", x=x), y=emit("abs", x=y))
    return emit("mul", x=size, y=emit("mul", x=emit("sign", x=x), y=emit("sign", x=y)))


@converts("Pow")
def _pow(node: Node) -> Value:
    """ONNX takes an exponent of another type."""
    x, y = node.value(0), node.value(1)
    if isinstance(y, np.ndarray):
        if y.size == 1 and float(y.reshape(())) == 2.0 and y.ndim <= node.rank():  # noqa: PLR2004 - a square
            return emit("mul", x=x, y=x)
        return emit("pow", x=x, y=y.astype(kind_of(x)))
    if kind_of(x) != kind_of(y):
        y = emit("cast", x=y, dtype="fp32" if is_float(x) else "int32")
    return emit("pow", x=x, y=y)


@converts("Mod")
def _mod(node: Node) -> Value:
    """The remainder has the divisor's sign; with `fmod` the dividend's."""
    x, y = node.value(0), node.value(1)
    if not node.integer("fmod", 0):
        return emit("mod", x=x, y=y)
    rest = emit("mod", x=emit("abs", x=x), y=emit("abs", x=y))
    return emit("mul", x=emit("sign", x=x), y=rest)


@converts("CumSum")
def _cumsum(node: Node) -> Value:
    return emit(
        "cumsum",
        x=node.value(),
        axis=node.axis(node.numbers(1)[0]),
        exclusive=bool(node.integer("exclusive", 0)),
        reverse=bool(node.integer("reverse", 0)),
    )
