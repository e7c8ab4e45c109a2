"""Quantizing float TensorFlow Lite files with ai-edge-quantizer, and ranges of our own.

Its own calibration is a moving average, which clips; ours are exact (`compiler.quantizing.calibration`).
Activations get int8 and a zero point, weights int8 with a scale per output channel, and biases int32, as in
TensorFlow's "8-bit quantization specification". Fully connected layers get one scale: the specification had
no other when `edgetpu_compiler` was made.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np

from compiler.errors import CompileError, one_line
from compiler.tflite.model import EXTRA
from fleet.errors import MissingExtraError

Ranges = Mapping[str, tuple[float, float]]
_PER_TENSOR: Final = "FULLY_CONNECTED"


def quantize(model: bytes, ranges: Ranges, left_float: Collection[str] = ()) -> bytes:
    """Return the model in int8, its inputs and outputs too.

    Args:
        model: the float file.
        ranges: smallest and largest value of each float tensor that is no constant, by name.
        left_float: names of the tensors whose operators stay in float.

    Raises:
        CompileError: the tool fails.
        MissingExtraError: it is not installed.
    """
    tool, recipes = _tool()
    rules = recipes.static_wi8_ai8()
    rules.append(_per_tensor(rules[0]))
    rules += [_float(rules[0], name) for name in left_float]
    statistics = {
        name: {"min": np.array(low, np.float32), "max": np.array(high, np.float32)}
        for name, (low, high) in ranges.items()
    }
    try:
        # It prints a summary, and warns of its own use of LiteRT.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = tool.Quantizer(model, rules).quantize(statistics).quantized_model
    except Exception as error:  # it raises anything; the search goes on without the candidate
        raise CompileError(f"ai-edge-quantizer: {type(error).__name__}: {one_line(error)}") from error
    return bytes(made)


def _tool() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about libraries that only other uses of it need
            from ai_edge_quantizer import quantizer, recipe
    except ModuleNotFoundError as error:
        raise MissingExtraError("ai-edge-quantizer", EXTRA) from error
    return quantizer, recipe


def _per_tensor(rule: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(rule)
    found["operation"] = _PER_TENSOR
    found["op_config"]["weight_tensor_config"]["granularity"] = "TENSORWISE"
    return found


def _float(rule: dict[str, Any], name: str) -> dict[str, Any]:
    # A rule names operators by their outputs, each followed by a semicolon.
    return {
        "regex": f"^{re.escape(name)};",
        "operation": rule["operation"],
        "algorithm_key": "no_quantize",
        "op_config": rule["op_config"],
    }
