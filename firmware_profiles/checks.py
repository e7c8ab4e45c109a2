"""Conditions on a node that a program can check, as data: the closed vocabulary of `[[operators]]` rules.

Each is a table with the key `check`, such as `{ check = "data-type", one_of = ["INT8", "UINT8"] }`; an
unknown check or key is refused. Data types are named as the Open Inference Protocol names them. A shape,
type or value that is not known fails the check.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Scalar = bool | int | float | str
#: Which tensors of a node a check is about: weights are the constants, activations all others.
Tensors = Literal["inputs", "outputs", "activations", "weights", "all"]


class _Check(msgspec.Struct, frozen=True, kw_only=True, tag_field="check", forbid_unknown_fields=True):
    """What all checks have in common."""


class DataType(_Check, frozen=True, kw_only=True, tag="data-type"):
    """The tensors have one of these types."""

    one_of: tuple[str, ...]
    of: Tensors = "activations"


class Rank(_Check, frozen=True, kw_only=True, tag="rank"):
    """The tensors have so many dimensions."""

    least: int = 0
    most: int
    of: Tensors = "activations"


class Innermost(_Check, frozen=True, kw_only=True, tag="innermost"):
    """Only so many of the innermost dimensions are above 1."""

    dimensions: int
    of: Tensors = "activations"


class StaticShape(_Check, frozen=True, kw_only=True, tag="static-shape"):
    """Every dimension is known when the model is compiled."""

    of: Tensors = "activations"


class Dimension(_Check, frozen=True, kw_only=True, tag="dimension"):
    """One dimension of the tensors, where they have it, lies in a range; axis -1 is the last."""

    axis: int
    least: int = 1
    most: int
    of: Tensors = "activations"


class Elements(_Check, frozen=True, kw_only=True, tag="elements"):
    """The tensors have at most so many elements."""

    most: int
    of: Tensors = "outputs"


class Constant(_Check, frozen=True, kw_only=True, tag="constant"):
    """These inputs, by position, are constants where the node has them."""

    inputs: tuple[int, ...]


class AttributeIs(_Check, frozen=True, kw_only=True, tag="attribute"):
    """An attribute has one of these values, each of its numbers where it is a list.

    Attributes:
        default: what an absent attribute means; without it, absent passes.
    """

    name: str
    one_of: tuple[Scalar, ...]
    default: Scalar | None = None


class AttributeWithin(_Check, frozen=True, kw_only=True, tag="attribute-range"):
    """An attribute lies in a range, each of its numbers where it is a list; absent passes."""

    name: str
    least: float | None = None
    most: float | None = None


class EqualAttributes(_Check, frozen=True, kw_only=True, tag="equal"):
    """All numbers of these attributes are the same; absent ones do not count."""

    names: tuple[str, ...]


class NotOverBatch(_Check, frozen=True, kw_only=True, tag="not-over-batch"):
    """The axes that the node works along leave out the first, which counts samples.

    Attributes:
        name: the attribute that holds the axes, if one does.
        input: the position of the constant input that holds them, if one does.
        every: no axes at all means every axis, as for a reduction.
    """

    name: str = ""
    input: int | None = None
    every: bool = True


class OperatorSet(_Check, frozen=True, kw_only=True, tag="operator-set"):
    """The operator is of this version range of its operator set."""

    least: int = 0
    most: int


Check = (
    DataType
    | Rank
    | Innermost
    | StaticShape
    | Dimension
    | Elements
    | Constant
    | AttributeIs
    | AttributeWithin
    | EqualAttributes
    | NotOverBatch
    | OperatorSet
)
