"""Operations element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from compiler.mil.kernels import Floats, Inputs, Kernel, computes
from compiler.tensors import Array

#: A numpy function; its types depend on its arguments.
_Function = Callable[..., Any]

_UNARY: Final[dict[str, _Function]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "identity": np.asarray,
    "logical_not": np.logical_not,
    "round": np.rint,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}
_BINARY: Final[dict[str, _Function]] = {
    "add": np.add,
    "equal": np.equal,
    "floor_div": np.floor_divide,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.mod,
    "mul": np.multiply,
    "not_equal": np.not_equal,
    "pow": np.power,
    "real_div": np.divide,
    "sub": np.subtract,
}
_CASTS: Final = {"fp16": np.float32, "fp32": np.float32, "bool": np.bool_}
_SQRT2: Final = np.float32(np.sqrt(2.0))


def _unary(function: _Function) -> Kernel:
    return lambda i: np.asarray(function(i.array()))


def _binary(function: _Function) -> Kernel:
    return lambda i: np.asarray(function(i.array("x"), i.array("y")))


for _name, _function in _UNARY.items():
    computes(_name)(_unary(_function))
for _name, _function in _BINARY.items():
    computes(_name)(_binary(_function))


@computes("relu")
def _relu(i: Inputs) -> Array:
    return np.maximum(i.floats(), np.float32(0))


@computes("relu6")
def _relu6(i: Inputs) -> Array:
    return np.clip(i.floats(), np.float32(0), np.float32(6))


@computes("clip")
def _clip(i: Inputs) -> Array:
    return np.clip(i.floats(), i.number("alpha", 0), i.number("beta", 0))


@computes("leaky_relu")
def _leaky_relu(i: Inputs) -> Array:
    x = i.floats()
    return np.where(x >= 0, x, x * i.number("alpha", 0.01)).astype(np.float32)


@computes("prelu")
def _prelu(i: Inputs) -> Array:
    x = i.floats()
    slope = i.floats("alpha").reshape(1, -1, *[1] * (x.ndim - 2))
    return np.where(x >= 0, x, x * slope).astype(np.float32)


@computes("thresholded_relu")
def _thresholded_relu(i: Inputs) -> Array:
    x = i.floats()
    return np.where(x > i.number("alpha", 1.0), x, np.float32(0))


@computes("elu")
def _elu(i: Inputs) -> Array:
    x = i.floats()
    return np.where(x > 0, x, i.number("alpha", 1.0) * np.expm1(np.minimum(x, 0))).astype(np.float32)


@computes("sigmoid")
def _sigmoid_kernel(i: Inputs) -> Array:
    return sigmoid(i.floats())


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + e^-x), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(x * np.float32(0.5))), np.float32)


@computes("silu")
def _silu(i: Inputs) -> Array:
    return i.floats() * sigmoid(i.floats())


@computes("sigmoid_hard")
def _sigmoid_hard(i: Inputs) -> Array:
    x = i.floats() * i.number("alpha", 0.2) + i.number("beta", 0.5)
    return np.clip(x, np.float32(0), np.float32(1))


@computes("softplus")
def _softplus(i: Inputs) -> Array:
    return np.logaddexp(i.floats(), np.float32(0))


@computes("softsign")
def _softsign(i: Inputs) -> Array:
    return i.floats() / (1 + np.abs(i.floats()))


@computes("erf")
def _erf_kernel(i: Inputs) -> Array:
    return erf(i.floats())


def erf(x: Floats) -> Floats:
    """Return the error function: Abramowitz and Stegun 7.1.6 near 0, elsewhere 7.1.14."""
    z = np.abs(x.astype(np.float64))
    small = np.minimum(z, 2.5)
    term = total = small.copy()
    for n in range(1, 48):
        term = term * 2 * small * small / (2 * n + 1)
        total = total + term
    near = 2 / np.sqrt(np.pi) * np.exp(-small * small) * total
    large = np.maximum(z, 2.5)
    fraction = large.copy()
    for n in range(24, 0, -1):
        fraction = large + n / 2 / fraction
    far = 1 - np.exp(-large * large) / np.sqrt(np.pi) / fraction
    return np.asarray(np.sign(x) * np.where(z < 2.5, near, far), np.float32)  # noqa: PLR2004 - where both converge


@computes("gelu")
def _gelu(i: Inputs) -> Array:
    x, mode = i.floats(), i.text("mode", "EXACT")
    if mode == "TANH_APPROXIMATION":
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
        return np.asarray(0.5 * x * (1 + np.tanh(inner)), np.float32)
    if mode == "SIGMOID_APPROXIMATION":
        return x * sigmoid(np.float32(1.702) * x)
    return np.asarray(0.5 * x * (1 + erf(x / _SQRT2)), np.float32)


@computes("log")
def _log(i: Inputs) -> Array:
    return np.asarray(np.log(i.floats() + i.number("epsilon", 1e-45)))


@computes("rsqrt")
def _rsqrt(i: Inputs) -> Array:
    return np.asarray(1 / np.sqrt(i.floats() + i.number("epsilon", 1e-12)), np.float32)


@computes("inverse")
def _inverse(i: Inputs) -> Array:
    return np.float32(1) / (i.floats() + i.number("epsilon", 1e-4))


@computes("select")
def _select(i: Inputs) -> Array:
    return np.where(i.array("cond").astype(np.bool_), i.array("a"), i.array("b"))


@computes("cast")
def _cast(i: Inputs) -> Array:
    kind = i.text("dtype")
    x = i.array()
    if np.issubdtype(x.dtype, np.floating) and kind not in _CASTS:
        x = np.trunc(x)
    return x.astype(_CASTS.get(kind, kind))
