"""`kedge/bundle.json`: what the compiled model is, needs, and has proven."""

from __future__ import annotations

from typing import Final

import msgspec

from fleet.errors import BundleError, WireError
from fleet.ids import Name, plain
from fleet.wire.tensors import dtype_of

SCHEMA: Final = 1


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output.

    Attributes:
        datatype: the Open Inference Protocol's name: "FP32", "FP16", "INT64", "INT8", "UINT8", "BOOL", ...
        shape: -1 for a dynamic dimension.
        batched: the first dimension counts samples.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    batched: bool


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How far an output may be from its golden value: |got - want| <= atol + rtol * |want|."""

    atol: float
    rtol: float


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """Golden vectors: inputs whose outputs the device must reproduce before a bundle is committed.

    Attributes:
        inputs, outputs: files in the bundle (`.npz`, arrays by tensor name).
        samples: how many.
        tolerance: by output name.
    """

    inputs: str
    outputs: str
    samples: int
    tolerance: dict[str, Tolerance]


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on evaluation data that took no part in choosing.

    Attributes:
        original, compiled: shares between 0 and 1 of correct answers, of the float model ("float" in JSON)
            and of the compiled one; None where there are no labels.
        drop_points: percentage points lost against float; None where there are no labels.
        agreement: share of samples on which float and compiled give the same answer.
        interval: 95 % confidence interval of the drop in percentage points (of 1 - agreement in points
            where there are no labels).
        samples: how many.
    """

    original: float | None = msgspec.field(name="float")
    compiled: float | None
    drop_points: float | None
    agreement: float
    interval: tuple[float, float]
    samples: int


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """A calibrated confidence threshold: answer alone at or above it.

    Attributes:
        guarantee: "conformal-risk-control" or "learn-then-test".
        statement: the guarantee in words, with its numbers.
        alpha: the bounded risk; delta: its failure probability, 0 where the guarantee is in expectation.
        threshold: on the calibrated score, 0 to 1; above 1 means: offload everything.
        offloaded: share of the calibration set below it.
        samples: size of the calibration set.
    """

    guarantee: str
    statement: str
    alpha: float
    delta: float
    threshold: float
    offloaded: float
    samples: int


class OffloadCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """When a request is hard, calibrated on the compiled model.

    Attributes:
        output: name of the output that holds class scores.
        activation: "softmax" when the output holds logits, "none" when it holds probabilities.
        temperature: logits are divided by it before the softmax.
        thresholds: the first is the default.
    """

    output: str
    activation: str
    temperature: float
    thresholds: tuple[Threshold, ...]


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """What a device must have.

    Attributes:
        runtime: the device runtime's name, such as "onnxruntime".
        firmware: part to version range, such as {"onnxruntime": ">=1.17"} (PEP 440 specifiers).
        memory_bytes: an estimate of what the loaded model takes.
    """

    runtime: str
    firmware: dict[str, str] = {}
    memory_bytes: int = 0


class BundleDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What the compiled model is, needs, and has proven.

    Attributes:
        model: the model's name, which releases and devices use.
        artifact: the file in the bundle that the runtime loads.
        kind: what the file is, such as "onnx-qdq", "onnx".
        baseline: file with the histograms of the calibration data, for drift, or "".
        labels: class names, where known.
        source_digest: digest of the model that was compiled.
        compiler: name and version.
        backend: the compiler's tool-chain that made it.
        facts: what else there is to know about the artifact, such as {"edgetpu_compiled": "false"}.
    """

    schema: int = SCHEMA
    model: str
    target: str
    kind: str
    artifact: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    requires: Requirements
    golden: Golden
    accuracy: Accuracy | None = None
    offload: OffloadCalibration | None = None
    baseline: str = ""
    labels: tuple[str, ...] = ()
    licence: str = ""
    source_digest: str = ""
    compiler: str = ""
    backend: str = ""
    facts: dict[str, str] = {}


def encode(description: BundleDescription) -> bytes:
    """Return the file's bytes: the same description always gives the same bytes."""
    return (
        msgspec.json.format(msgspec.json.encode(description, order="deterministic", enc_hook=plain), indent=1)
        + b"\n"
    )


def decode(data: bytes) -> BundleDescription:
    """Read the file.

    Raises:
        BundleError: malformed, of a newer schema, or with a bad name or type.
    """
    try:
        description = msgspec.json.decode(data, type=BundleDescription)
        Name(description.model)
        Name(description.target)
        for tensor in (*description.inputs, *description.outputs):
            dtype_of(tensor.datatype)
    except (ValueError, RecursionError, WireError) as error:
        raise BundleError(f"bundle.json: {error}") from error
    if description.schema != SCHEMA:
        raise BundleError(f"bundle.json: expected schema {SCHEMA}, got {description.schema}")
    return description
