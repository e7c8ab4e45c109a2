"""From the float model to the one that the HTP compiler takes; the chip has no part in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from compiler.candidates import Candidate
from compiler.errors import one_line
from compiler.models import copies
from compiler.quantizing import activations, calibration
from compiler.quantizing.calibration import Histogram
from compiler.tensors import Arrays
from firmware_profiles.profile import Precision

logger = logging.getLogger(__name__)

_ACTIVATIONS: Final = {Precision.INT8.value: QuantType.QUInt8, Precision.INT16.value: QuantType.QUInt16}


def fixed(model: onnx.ModelProto, sample: Arrays) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model with fixed shapes, since the HTP takes no others, and which inputs had to be fixed.

    Args:
        model: the float model.
        sample: one sample's inputs and outputs.
    """
    copy = copies.copy(model)
    moving = [
        x
        for x in (*copy.graph.input, *copy.graph.output)
        if any(dim.dim_value <= 0 for dim in x.type.tensor_type.shape.dim)
    ]
    for value in moving:
        for dim, size in zip(value.type.tensor_type.shape.dim, sample[value.name].shape, strict=True):
            dim.dim_value = size
    inputs = {x.name for x in copy.graph.input}
    return copy, [
        f"input {x.name!r} has the fixed shape {list(sample[x.name].shape)}"
        for x in moving
        if x.name in inputs
    ]


def prepared(model: onnx.ModelProto, scratch: Path) -> onnx.ModelProto:
    """Return the float model folded, fused as the HTP likes it, and with the shapes of all tensors."""
    source = scratch / "fixed.onnx"
    onnx.save(model, source)
    ready = activations.folded(source, scratch)
    del ready.metadata_props[:]  # the next tool stumbles over those of the last
    ready = onnx.shape_inference.infer_shapes(_fused(ready, scratch / "fused.onnx"))
    del ready.metadata_props[:]
    return ready


def _fused(model: onnx.ModelProto, out: Path) -> onnx.ModelProto:
    """Return the model with what the HTP has single operators for, such as Gelu, fused into those."""
    try:
        changed = qnn_preprocess_model(copies.copy(model), out)  # a copy: it moves the weights to a file
    except Exception as error:  # noqa: BLE001 - the tool raises anything; the model works without
        logger.warning("not fused for QNN: %s", one_line(error))
        return model
    return onnx.load(out) if changed else model


def quantized(
    model: onnx.ModelProto, histograms: Mapping[str, Histogram], candidate: Candidate
) -> onnx.ModelProto:
    """Return the model with Q/DQ nodes, by ONNX Runtime's recipe for QNN and ranges of our own.

    Args:
        model: prepared.
        histograms: of its activations.
        candidate: static.
    """
    copy = copies.copy(model)
    activation = _ACTIVATIONS[candidate.precision]
    # Scales per channel need zero points of 0, so signed integers; the HTP takes those for nothing else.
    weight = QuantType.QInt8 if candidate.per_channel else QuantType.QUInt8
    config = get_qnn_qdq_config(
        copy,
        None,
        activation_type=activation,
        weight_type=weight,
        per_channel=candidate.per_channel,
        init_overrides=_products(copy) if candidate.per_channel else None,
    )
    read = calibration.METHODS[candidate.calibration]
    ranges = {name: tuple(np.float32(x) for x in read(found)) for name, found in histograms.items()}
    quantizer = QDQQuantizer(
        copy,
        candidate.per_channel,
        False,  # reduce_range: weights keep their 8 bits
        weight,
        activation,
        TensorsData(CalibrationMethod.MinMax, ranges),
        [],
        list(candidate.left_float),
        sorted(config.op_types_to_quantize),
        config.extra_options,
    )
    quantizer.quantize_model()
    made: onnx.ModelProto = quantizer.model.model
    del made.metadata_props[:], made.graph.value_info[:]
    return made


def _products(model: onnx.ModelProto) -> dict[str, list[dict[str, object]]]:
    """Return the type of constant operands of MatMul: the HTP takes only unsigned ones, with one scale."""
    weights = {x.name for x in model.graph.initializer}
    return {
        name: [{"quant_type": QuantType.QUInt8, "symmetric": False}]
        for node in model.graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in weights
    }
