"""Bringing a model's operator set between what float16 pairs need and what TensorRT's parser reads. Pure."""

from __future__ import annotations

from typing import Final

import onnx
from onnx import version_converter

from compiler.errors import CompileError, one_line

#: The newest that the ONNX parser of TensorRT 10.3 reads (onnx-tensorrt 10, supported operators).
NEWEST: Final = 20
#: QuantizeLinear and DequantizeLinear know float16 from here on.
FLOAT16_PAIRS: Final = 19


def between(model: onnx.ModelProto, least: int, most: int = NEWEST) -> onnx.ModelProto:
    """Return the model, in another operator set where its own lies outside the range.

    Raises:
        CompileError: it cannot be converted; names both.
    """
    before = next(x.version for x in model.opset_import if x.domain in {"", "ai.onnx"})
    if least <= before <= most:
        return model
    wanted = least if before < least else most
    try:
        return version_converter.convert_version(model, wanted)
    except Exception as error:  # the converter raises errors of C++ that share no base
        raise CompileError(f"expected operator set {wanted}; got {before}: {one_line(error)}") from error
