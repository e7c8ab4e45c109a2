"""The table of converters: one small function per ONNX operator, registered by the operator's name."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx

from compiler.errors import ModelRefusedError
from compiler.mil.values import Value, constant_of, shape_of
from compiler.mil.weights import Weights
from compiler.tensors import Array

#: Domains of ONNX's own operators.
DOMAINS: Final = frozenset({"", "ai.onnx"})
_FOLDER: Final = "compiler.mil.operators"


class Node:
    """One node of the ONNX graph, with the values of its inputs.

    Attributes:
        kind: the operator's name.
        name: the node's.
        inputs: None where an optional one is left out.
        outputs: names of its outputs, "" where one is left out.
        opset: version of ONNX's operator set.
    """

    def __init__(
        self, proto: onnx.NodeProto, inputs: Sequence[Value | None], opset: int, weights: Weights
    ) -> None:
        """Read the node."""
        self.kind: Final = proto.op_type
        self.name: Final = proto.name or (proto.output[0] if proto.output else "")
        self.inputs: Final = tuple(inputs)
        self.outputs: Final = tuple(proto.output)
        self.opset: Final = opset
        self._weights: Final = weights
        self._attributes: Final = {x.name: x for x in proto.attribute}

    def has(self, index: int) -> bool:
        """Return whether there is such an input."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int = 0) -> Value:
        """Return an input.

        Raises:
            ModelRefusedError: it is left out.
        """
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise self.refusal(f"input {index}", "nothing")
        return found

    def values(self) -> list[Value]:
        """Return all inputs that there are."""
        return [x for x in self.inputs if x is not None]

    def constant(self, index: int) -> Array:
        """Return a constant input's value.

        Raises:
            ModelRefusedError: it is computed at run time.
        """
        found = constant_of(self.value(index))
        if found is None:
            raise self.refusal(f"a constant as input {index}", "one that is computed")
        return found

    def numbers(self, index: int) -> list[int]:
        """Return a constant input of integers as a list."""
        return [int(x) for x in self.constant(index).reshape(-1)]

    def weight(self, index: int, axis: int, *, transposed: bool = False) -> Value:
        """Return an input that is multiplied, stored as the candidate stores weights.

        Args:
            index: which input.
            axis: the axis of output channels, after transposing.
            transposed: swap the last two axes.
        """
        value = self.value(index)
        if isinstance(value, np.ndarray):
            return self._weights.store(value.swapaxes(-1, -2) if transposed else value, axis)
        return value

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Return an input's shape."""
        return shape_of(self.value(index))

    def rank(self, index: int = 0) -> int:
        """Return an input's rank."""
        return len(self.shape(index))

    def given(self, name: str) -> bool:
        """Return whether an attribute is given."""
        return name in self._attributes

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        return int(self._attributes[name].i) if name in self._attributes else default

    def number(self, name: str, default: float) -> float:
        """Return a float attribute."""
        return float(self._attributes[name].f) if name in self._attributes else default

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        return str(self._attributes[name].s.decode()) if name in self._attributes else default

    def texts(self, name: str) -> list[str]:
        """Return an attribute of strings, none where it is left out."""
        return [x.decode() for x in self._attributes[name].strings] if name in self._attributes else []

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """Return an attribute of integers."""
        return list(self._attributes[name].ints) if name in self._attributes else list(default)

    def tensor(self, name: str) -> Array | None:
        """Return a tensor attribute, None where it is left out."""
        return onnx.numpy_helper.to_array(self._attributes[name].t) if name in self._attributes else None

    def axis(self, value: int, rank: int | None = None) -> int:
        """Return an axis counted from the front.

        Raises:
            ModelRefusedError: there is no such axis.
        """
        rank = self.rank() if rank is None else rank
        if not -rank <= value < rank:
            raise self.refusal(f"an axis from {-rank} to {rank - 1}", str(value))
        return value % rank

    def refusal(self, expected: str, got: str) -> ModelRefusedError:
        """Return the error that says what a node has that Core ML or this front-end does not."""
        return ModelRefusedError(f"{self.kind} {self.name!r}: for Core ML expected {expected}; got {got}")


#: Returns the node's outputs; several where the operator has several.
Converter = Callable[[Node], "Value | Sequence[Value]"]
_table: Final[dict[str, Converter]] = {}


def converts(*operators: str) -> Callable[[Converter], Converter]:
    """Register a converter under the names of the operators that it converts."""

    def register(converter: Converter) -> Converter:
        for operator in operators:
            if operator in _table:
                raise ValueError(f"expected one converter of {operator}; got two")
            _table[operator] = converter
        return converter

    return register


@functools.cache
def table() -> MappingProxyType[str, Converter]:
    """Return every converter by its operator's name, from all modules of `compiler.mil.operators`."""
    package = importlib.import_module(_FOLDER)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{_FOLDER}.{module.name}")
    return MappingProxyType(_table)


def check(model: onnx.ModelProto) -> None:
    """Check that there is a converter for each operator.

    Raises:
        ModelRefusedError: lists all operators that have none.
    """
    counts: dict[str, int] = {}
    for node in model.graph.node:
        name = node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}"
        if node.domain not in DOMAINS or node.op_type not in table():
            counts[name] = counts.get(name, 0) + 1
    if counts:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
        raise ModelRefusedError(f"for Core ML expected operators that it has; got also: {listed}")
