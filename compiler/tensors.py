"""What goes into a model and comes out of it: names, types, shapes, and which dimension counts samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from compiler.errors import ModelRefusedError
from fleet.bundle.description import TensorSpec
from fleet.wire.tensors import DTYPES, NAMES

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]
Outputs = Mapping[str, Array]


def datatype(kind: np.dtype[np.generic], tensor: str) -> str:
    """Return the protocol's name of a numpy type.

    Raises:
        ModelRefusedError: the protocol has none.
    """
    name = NAMES.get(kind)
    if name is None:
        raise ModelRefusedError(f"tensor {tensor!r}: expected a type of {', '.join(DTYPES)}; got {kind}")
    return name


def spec(name: str, kind: np.dtype[np.generic], shape: tuple[int, ...]) -> TensorSpec:
    """Return the description of a model's input or output; -1 stands for a dynamic dimension."""
    batched = bool(shape) and shape[0] in {-1, 1}
    return TensorSpec(name=name, datatype=datatype(kind, name), shape=shape, batched=batched)


def sample_shape(tensor: TensorSpec) -> tuple[int, ...]:
    """Return the shape that one sample has in a data file, without the axis that counts samples."""
    return tensor.shape[1:] if tensor.batched else tensor.shape


class Rows(Protocol):
    """Samples along the first axis, in memory or elsewhere."""

    def __getitem__(self, index: int, /) -> Array:
        """Return one sample."""
        ...


def feed(arrays: Mapping[str, Rows], tensors: tuple[TensorSpec, ...], index: int) -> Arrays:
    """Return what the model takes for one sample."""
    found = {x.name: np.asarray(arrays[x.name][index]) for x in tensors}
    return {x.name: found[x.name][None] if x.batched else found[x.name] for x in tensors}
