"""What flows between MIL operations, and the one door to coremltools' untyped builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

import numpy as np

from compiler.tensors import Array

#: Core ML has no tensor of higher rank (Core ML documentation, ML Program).
HIGHEST_RANK: Final = 5
_INT32: Final = np.iinfo(np.int32)
_FLOATS: Final = (np.float64, np.float32)


class Maker(Protocol):
    """The operation that makes a variable."""

    @property
    def op_type(self) -> str:
        """Its kind."""
        ...


class Var(Protocol):
    """A variable of a MIL program, as coremltools has it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def val(self) -> Array | None:
        """Its value, where it is constant."""
        ...

    @property
    def dtype(self) -> type:
        """Its MIL type."""
        ...

    @property
    def op(self) -> Maker | None:
        """What makes it, None for an input."""
        ...


#: A constant stays a numpy array until an operation takes it.
Value = Var | Array


def _builder(name: str) -> Callable[..., object]:
    from coremltools.converters.mil import Builder

    return cast("Callable[..., object]", getattr(Builder, name))


def emit(operation: str, **inputs: object) -> Var:
    """Add a MIL operation with one output to the program being built."""
    return cast("Var", _builder(operation)(**_present(inputs)))


def emit_many(operation: str, **inputs: object) -> tuple[Var, ...]:
    """Add a MIL operation with several outputs to the program being built."""
    found = _builder(operation)(**_present(inputs))
    return tuple(cast("Sequence[Var]", found)) if isinstance(found, (list, tuple)) else (cast("Var", found),)


def _present(inputs: dict[str, object]) -> dict[str, object]:
    return {
        name: portable(x) if isinstance(x, np.ndarray) else x for name, x in inputs.items() if x is not None
    }


def portable(array: Array) -> Array:
    """Return a constant in a type that Core ML has: 64 bits become 32, beyond their range the end of it."""
    if array.dtype == np.int64:
        return np.clip(array, _INT32.min, _INT32.max).astype(np.int32)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def shape_of(value: Value) -> tuple[int, ...]:
    """Return a value's shape."""
    return tuple(int(x) for x in value.shape)


def constant_of(value: Value) -> Array | None:
    """Return a constant's value, None where it is computed."""
    if isinstance(value, np.ndarray):
        return value
    return None if value.val is None else np.asarray(value.val)


def is_stored(value: Value) -> bool:
    """Return whether a value is a constant, be it compressed."""
    if isinstance(value, np.ndarray):
        return True
    maker = value.op
    return maker is not None and maker.op_type.startswith("constexpr")


def kind_of(value: Value) -> np.dtype[Any]:  # the type of a tensor is known only at run time
    """Return the numpy type that a value has in Core ML."""
    if isinstance(value, np.ndarray):
        return portable(value[:0] if value.ndim else value).dtype
    from coremltools.converters.mil.mil.types import nptype_from_builtin

    return np.dtype(nptype_from_builtin(value.dtype))


def is_float(value: Value) -> bool:
    """Return whether a value is of floats."""
    return bool(np.issubdtype(kind_of(value), np.floating))


def scalar(value: float, like: Value) -> Array:
    """Return a constant of the type of another value."""
    return np.array(value, dtype=kind_of(like))
