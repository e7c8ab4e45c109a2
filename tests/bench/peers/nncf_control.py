"""NNCF's quantization with accuracy control, for OpenVINO.

`python nncf_control.py MODEL CALIBRATION SELECTION PRESET OUT` with labels in the selection data.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # None bars the import: nothing is sent

import nncf  # noqa: E402 - after the line above
import openvino as ov  # noqa: E402 - after the line above

POINTS = 0.005  # accuracy that may be lost


def main(model: str, calibration: str, selection: str, preset: str, out: str) -> None:
    """Quantize, and give layers back to float until the accuracy is kept."""
    made = nncf.quantize_with_accuracy_control(
        ov.convert_model(model),
        calibration_dataset=nncf.Dataset(_samples(calibration), lambda x: x[0]),
        validation_dataset=nncf.Dataset(_samples(selection), lambda x: x[0]),
        validation_fn=_validator(_samples(selection)),
        max_drop=POINTS,
        drop_type=nncf.DropType.ABSOLUTE,
        preset=nncf.QuantizationPreset(preset),
    )
    ov.save_model(made, out, compress_to_fp16=False)


def _samples(file: str) -> list[tuple[dict[str, Any], int]]:
    arrays = dict(np.load(file))
    labels = arrays.pop("labels", np.zeros(len(next(iter(arrays.values()))), np.int64))
    return [({k: x[i : i + 1] for k, x in arrays.items()}, int(y)) for i, y in enumerate(labels)]


def _validator(samples: list[tuple[dict[str, Any], int]]) -> Any:  # noqa: ANN401 - NNCF's own contract
    def validate(compiled: ov.CompiledModel, _: Iterable[Any]) -> tuple[float, list[float]]:
        right = [float(compiled(feed)[0].argmax() == label) for feed, label in samples]
        return float(np.mean(right)), right

    return validate


if __name__ == "__main__":
    main(*sys.argv[1:])
