"""What is tried: one candidate is one way to make an artifact for the target."""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Scheme(str, enum.Enum):
    """How a candidate's numbers are represented, in the order in which a device profits."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight-only"
    HALF = "half"
    FLOAT = "float"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to make an artifact.

    Attributes:
        name: what the user and the report call it.
        precision: number format of the arithmetic or, for weight-only, of the weights.
        backend: the tool-chain that makes it.
        per_channel: weights have a scale per output channel.
        calibration: how ranges of activations are found, for static ones.
        operators: only these operator types are quantized; () for all that can be.
        left_float: nodes that stay in float.
        recipe: the tool-chain's own way to quantize, where it has several.
    """

    name: str
    precision: str
    scheme: Scheme
    backend: str = "onnxruntime"
    per_channel: bool = False
    calibration: str = ""
    operators: tuple[str, ...] = ()
    left_float: tuple[str, ...] = ()
    recipe: str = ""


#: The model as it is, in ONNX Runtime: the measure of all others and, where a target runs it, the last
#: resort.
FLOAT: Final = Candidate(name="float", precision="float32", scheme=Scheme.FLOAT)
