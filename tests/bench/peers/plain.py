"""What a person would write with ONNX Runtime alone: one recipe, nothing measured, nothing packaged.

`python plain.py MODEL CALIBRATION OUT`
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Feed = dict[str, npt.NDArray[np.generic]]


class Reader(CalibrationDataReader):  # type: ignore[misc]  # it carries no annotations
    """Samples of a data file, one by one."""

    def __init__(self, file: str) -> None:
        """Read the file."""
        self._samples = self._all(file)

    def get_next(self) -> Feed | None:
        """Return the next sample, None after the last."""
        return next(self._samples, None)

    @staticmethod
    def _all(file: str) -> Iterator[Feed]:
        arrays = {name: x for name, x in np.load(file).items() if name != "labels"}
        for i in range(len(next(iter(arrays.values())))):
            yield {name: x[i : i + 1] for name, x in arrays.items()}


def quantize(model: str, calibration: str, out: str) -> None:
    """Quantize with the recipe that serves convolution networks on CPUs best."""
    quant_pre_process(model, f"{out}.pre")
    quantize_static(
        f"{out}.pre",
        out,
        Reader(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


if __name__ == "__main__":
    quantize(*sys.argv[1:])
