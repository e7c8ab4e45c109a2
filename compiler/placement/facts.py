"""What there is to know of an artifact's graph, whatever its format: each backend fills these in. Pure."""

from __future__ import annotations

import math
from typing import Final

import msgspec

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]

#: Bytes of one element, by the Open Inference Protocol's names, and by those that it has none for.
ELEMENT_BYTES: Final = {
    "BOOL": 1.0,
    "INT4": 0.5,
    "UINT4": 0.5,
    "INT8": 1.0,
    "UINT8": 1.0,
    "FP8": 1.0,
    "INT16": 2.0,
    "UINT16": 2.0,
    "FP16": 2.0,
    "BF16": 2.0,
    "INT32": 4.0,
    "UINT32": 4.0,
    "FP32": 4.0,
    "INT64": 8.0,
    "UINT64": 8.0,
    "FP64": 8.0,
}


class TensorFact(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a graph.

    Attributes:
        name: in the artifact.
        dtype: as in `ELEMENT_BYTES`; "" where it is not known.
        shape: -1 for a dynamic dimension; None where not even the rank is known.
        constant: stored in the artifact, so a weight and no activation.
        value: of small integer constants, such as axes.
    """

    name: str
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    constant: bool = False
    value: tuple[int, ...] | None = None

    @property
    def elements(self) -> int | None:
        """Number of elements, None where a dimension is not known."""
        if self.shape is None or min(self.shape, default=0) < 0:
            return None
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes; 0 where type or shape is not known."""
        return math.ceil((self.elements or 0) * ELEMENT_BYTES.get(self.dtype, 0.0))


class NodeFact(msgspec.Struct, frozen=True, kw_only=True):
    """One node of a graph.

    Attributes:
        name: in the artifact, or made from its place where it has none.
        operator: in the artifact's own operator set.
        version: of that operator set, 0 where it has none.
        inputs, outputs: in order; an optional input that is left out has the name "".
        macs: multiply-accumulates for one sample; None where they cannot be told.
        weight_bytes: of its constants.
    """

    name: str
    operator: str
    version: int = 0
    inputs: tuple[TensorFact, ...] = ()
    outputs: tuple[TensorFact, ...] = ()
    attributes: dict[str, Value] = {}
    macs: int | None = 0
    weight_bytes: int = 0


class GraphFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A whole graph, its nodes in the order in which they run.

    Attributes:
        inputs, outputs: names of its tensors.
        weights_bytes: of all constants, each counted once.
    """

    nodes: tuple[NodeFact, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights_bytes: int
