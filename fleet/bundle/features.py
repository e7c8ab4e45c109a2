"""Which feature of a Core ML model is which tensor of the source model: a text in the package's own metadata.

Core ML's features have names of a narrower form, no 64-bit integers or booleans, and at least one dimension.
An application feeds the source model's tensors; whoever runs the package turns the one into the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from fleet.errors import BundleError

#: The key in the package's user-defined metadata.
KEY: Final = "kedge.ports"
_FLOATS: Final = frozenset({"float16", "float32", "float64"})

Array = npt.NDArray[Any]


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output.

    Attributes:
        name: in the source model.
        feature: in the Core ML model.
        datatype: numpy's name of the type in the source model.
        shape: in the source model, with one sample.
    """

    name: str
    feature: str
    datatype: str
    shape: tuple[int, ...]


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """All inputs and outputs, in the source model's order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def encode(ports: Ports) -> str:
    """Return the text."""
    return msgspec.json.encode(ports).decode()


def decode(text: str) -> Ports:
    """Read the text.

    Raises:
        BundleError: it is another.
    """
    try:
        return msgspec.json.decode(text, type=Ports)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{KEY}: expected the ports of a package that Kedge wrote; {error}") from error


def inward(ports: Ports, sample: Mapping[str, Array]) -> dict[str, Array]:
    """Return one sample as Core ML takes it.

    Raises:
        BundleError: a tensor is missing, not known or of another shape.
    """
    if set(sample) != {x.name for x in ports.inputs}:
        wanted = ", ".join(x.name for x in ports.inputs)
        raise BundleError(f"expected the inputs {wanted}; got {', '.join(sample) or 'none'}")
    found = {}
    for port in ports.inputs:
        value = sample[port.name]
        if value.shape != port.shape:
            raise BundleError(f"{port.name!r}: expected shape {list(port.shape)}; got {list(value.shape)}")
        kind = np.float32 if port.datatype in _FLOATS else np.int32
        found[port.feature] = value.astype(kind).reshape(port.shape or (1,))
    return found


def outward(ports: Ports, features: Mapping[str, Array]) -> dict[str, Array]:
    """Return one sample's answer as the source model gives it."""
    return {
        x.name: np.asarray(features[x.feature]).astype(x.datatype).reshape(x.shape) for x in ports.outputs
    }
