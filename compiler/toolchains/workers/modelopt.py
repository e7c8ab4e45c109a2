"""Quantizes a model with NVIDIA ModelOpt, on the processor, with the calibration data that it is given."""

from __future__ import annotations

import numpy as np
from modelopt.onnx.quantization import quantize


def call(request: dict[str, object]) -> dict[str, object]:
    """Quantize to int8, all else in float32.

    Args:
        request: `model` and `out` (ONNX files), `data` (an `.npz` by input name).

    Raises:
        ValueError: there are no calibration data: ModelOpt would invent some.
    """
    with np.load(str(request["data"])) as archive:
        data = {name: archive[name] for name in archive.files}
    if not data or any(not len(x) for x in data.values()):
        raise ValueError("expected calibration data; got none")
    quantize(
        str(request["model"]),
        quantize_mode="int8",
        calibration_data=data,
        calibration_method="max",
        calibration_eps=["cpu"],
        output_path=str(request["out"]),
        high_precision_dtype="fp32",
    )
    return {}
