"""Bringing an ONNX graph to fixed shapes, with everything computed beforehand that can be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime

from compiler.errors import CompileError


def fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Return a copy whose inputs have these shapes; what depends on them is left to inference."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in shapes:
            _set(value, shapes[value.name])
    for value in fixed.graph.output:
        if any(not x.HasField("dim_value") for x in value.type.tensor_type.shape.dim):
            value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    return fixed


def _set(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    dims = value.type.tensor_type.shape.dim
    del dims[:]
    for size in shape:
        dims.add().dim_value = size


def fold(model: onnx.ModelProto, scratch: Path) -> onnx.ModelProto:
    """Return the model with its constant parts computed, by ONNX Runtime's basic optimizations.

    They keep to ONNX's own operators, and give the same bytes each time.

    Raises:
        CompileError: ONNX Runtime cannot load it.
    """
    out = scratch / "folded.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        raise CompileError(f"ONNX Runtime cannot load the model: {' '.join(str(error).split())[:300]}") from error
    return onnx.load(out)
