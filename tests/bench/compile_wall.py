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

#: What a person would write with ONNX Runtime alone.
PLAIN = Path(__file__).parent / "peers" / "plain.py"


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
            plain = (sys.executable, PLAIN, files.model, files.calibration, folder / f"{run}.onnx")
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
