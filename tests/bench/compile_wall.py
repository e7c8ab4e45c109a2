"""How long compiling takes, all candidates and measurements included, against one plain quantization."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import small_models
from processes import KEDGE

NAMES = ("compile.wall",)
RUNS = 3
SHARED = Path(__file__).parents[3] / "shared" / "models" / "image_classification"

#: What a person would write with ONNX Runtime alone: one recipe, nothing measured, nothing packaged.
PLAIN = """
import sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

model, data, out = sys.argv[1:]
arrays = {name: x for name, x in np.load(data).items() if name != "labels"}

class Reader(CalibrationDataReader):
    def __init__(self):
        count = len(next(iter(arrays.values())))
        self.samples = iter([{k: x[i : i + 1] for k, x in arrays.items()} for i in range(count)])
    def get_next(self):
        return next(self.samples, None)

quant_pre_process(model, out + ".pre")
quantize_static(out + ".pre", out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
"""


def _files(folder: Path) -> small_models.SmallModel:
    model = SHARED / "resnet8_cifar10_fp32.onnx"
    if model.is_file():
        return small_models.SmallModel(model, SHARED / "calibration.npz", SHARED / "evaluation.npz")
    return small_models.write(folder)


def _seconds(arguments: Sequence[object]) -> float:
    started = time.perf_counter()
    subprocess.run([str(x) for x in arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def measure() -> list[dict[str, object]]:
    """Return the wall time of `kedge compile`, and of the peer in a process of its own, alternating."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = _files(folder)
        for run in range(RUNS):
            ours.append(
                _seconds(
                    [
                        *(KEDGE, "compile", files.model, "--target", "laptop-x86", "--no-cache"),
                        *("--calibration", files.calibration, "--evaluation", files.evaluation),
                        *("--out", folder / f"{run}.bundle"),
                    ]
                )
            )
            plain = (sys.executable, "-c", PLAIN, files.model, files.calibration, folder / f"{run}.onnx")
            theirs.append(_seconds(plain))
    value, peer = statistics.median(ours), statistics.median(theirs)
    return [
        {
            "name": "compile.wall",
            "value": value,
            "unit": "s",
            "better": "lower",
            "peer": "onnxruntime quantize_static",
            "peer_value": peer,
            "ratio": value / peer,
            "runs": RUNS,
            "spread": (max(ours) - min(ours)) / 2 / value,
        }
    ]
