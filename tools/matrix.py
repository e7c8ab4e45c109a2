"""Compile every test model for every target, and write what was measured to `docs/reference/matrix.md`.

Run by `make matrix`; it takes a while. The models lie beside the project, in `../shared/models`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import wave
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

ROOT: Final = Path(__file__).resolve().parent.parent
MODELS: Final = ROOT.parent / "shared" / "models"
PAGE: Final = ROOT / "docs" / "reference" / "matrix.md"
KEDGE: Final = Path(sys.executable).with_name("kedge")

#: Model's name to its file.
FILES: Final = {
    "digits": "digits/digits_cnn.onnx",
    "kws": "kws/kws_dscnn_fp32.onnx",
    "image_classification": "image_classification/resnet8_cifar10_fp32.onnx",
    "silero_vad": "silero_vad/silero_vad_16k_op15.onnx",
    "ultraface": "ultraface/version-slim-320.onnx",
}
ABOUT: Final = {
    "digits": "A small convolutional net for handwritten digits",
    "kws": "MLPerf Tiny keyword spotting, depthwise convolutions",
    "image_classification": "MLPerf Tiny ResNet8 on CIFAR-10",
    "silero_vad": "Voice activity: If, LSTM, state in and out; no labels",
    "ultraface": "Face detector, operator set 9, two outputs; no labels",
}
HEAD: Final = """\
<!-- Written by `make matrix`; do not edit. -->

# Targets and models, measured
Every row is one `kedge compile` on one machine that has none of the accelerators: *verified in* says what
computed the numbers. Accuracy is that of the half of the evaluation data that took no part in choosing,
float's and then the artifact's; lost points are paired on it. Without labels, agreement is what counts: the
share of samples on which float and the artifact give the same answer. Size and latency are shares of the
float model's; latency stands only where this machine's says something about the device. MACs: the share of
multiply-accumulates that is placed on the accelerator, and on what that stands. What cannot be had says why.
"""
COLUMNS: Final = (
    *("target", "candidate", "accuracy", "points lost", "agreement", "size", "latency"),
    *("MACs on the accelerator", "verified in"),
)


def main() -> None:
    """Write the page."""
    if not MODELS.is_dir():
        sys.exit("matrix: expected the test models in ../shared/models; got none")
    sections = []
    with tempfile.TemporaryDirectory(prefix="kedge-matrix-") as name:
        for model, file in FILES.items():
            folder = Path(name) / model
            folder.mkdir()
            calibration, evaluation = data(model, folder)
            sections.append(section(model, compiled(MODELS / file, model, calibration, evaluation, folder)))
            print(f"{model}: done", file=sys.stderr)
    PAGE.write_text("\n".join([HEAD, *sections]))


def compiled(
    file: Path, model: str, calibration: Path, evaluation: Path, folder: Path
) -> list[dict[str, Any]]:
    """Compile a model for all targets and return their outcomes."""
    done = subprocess.run(
        [
            *(KEDGE, "compile", file, "--name", model.replace("_", "-"), "--target", "*", "--json"),
            *("--calibration", calibration, "--evaluation", evaluation, "--out", folder),
        ],
        # Empty at the start: what targets share is made once, and nothing is from before.
        env={**os.environ, "KEDGE_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        check=False,
    )
    outcomes: list[dict[str, Any]] = json.loads(done.stdout)["targets"]
    return outcomes


def section(model: str, outcomes: list[dict[str, Any]]) -> str:
    """Return a model's part of the page."""
    lines = [
        f"## {model}",
        f"{ABOUT[model]}.\n",
        f"| {' | '.join(COLUMNS)} |",
        "| --- " * len(COLUMNS) + "|",
    ]
    lines += [row(x) for x in outcomes]
    return "\n".join(lines) + "\n"


def row(outcome: dict[str, Any]) -> str:
    """Return a target's line."""
    if "result" not in outcome:
        why = outcome["error"].replace("|", "/")
        return f"| `{outcome['target']}` | none | {why}" + " |" * (len(COLUMNS) - 2)
    x = outcome["result"]
    accuracy, latency, placement = x["accuracy"], x["latency_ms"], x["placement"]
    share = placement["accelerated_macs"]
    cells = (
        f"`{x['target']}`",
        x["chosen"]["name"],
        ""
        if accuracy["float"] is None
        else f"{100 * accuracy['float']:.2f} to {100 * accuracy['compiled']:.2f} %",
        "" if accuracy["drop_points"] is None else f"{accuracy['drop_points']:+.2f}",
        f"{100 * accuracy['agreement']:.2f} %",
        f"{x['size_bytes']['compiled'] / x['size_bytes']['float']:.2f}",
        "" if not latency["compiled"] else f"{latency['compiled'] / latency['float']:.2f}",
        "" if share is None else f"{100 * share:.0f} % ({placement['basis']})",
        x["parity"]["ran_in"],
    )
    return "| " + " | ".join(cells) + " |"


def data(model: str, folder: Path) -> tuple[Path, Path]:
    """Return calibration and evaluation data of a model: its own, or made of other real data."""
    own = MODELS / model
    if (own / "evaluation.npz").is_file():
        return own / "calibration.npz", own / "evaluation.npz"
    arrays = speech() if model == "silero_vad" else pictures()
    for name, part in (("calibration", slice(0, None, 2)), ("evaluation", slice(1, None, 2))):
        np.savez(folder / f"{name}.npz", **{x: values[part] for x, values in arrays.items()})
    return folder / "calibration.npz", folder / "evaluation.npz"


def speech() -> dict[str, np.ndarray[Any, Any]]:
    """Return frames of real speech, each with the state that the float model had there."""
    with wave.open(str(MODELS / "silero_vad" / "test.wav")) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    session = onnxruntime.InferenceSession(MODELS / FILES["silero_vad"])
    rate, state = np.array(16000, np.int64), np.zeros((2, 1, 128), np.float32)
    sounds, states = [], []
    for start in range(0, 400 * 512, 512):
        frame = np.concatenate([sound[max(0, start - 64) : start], sound[start : start + 512]])
        frame = np.pad(frame, (576 - len(frame), 0))
        sounds.append(frame)
        states.append(state)
        state = np.asarray(session.run(None, {"input": frame[None], "state": state, "sr": rate})[1])
    return {"input": np.stack(sounds), "state": np.stack(states), "sr": np.full(len(sounds), 16000, np.int64)}


def pictures() -> dict[str, np.ndarray[Any, Any]]:
    """Return real photographs, enlarged to what the face detector takes."""
    with np.load(MODELS / "image_classification" / "evaluation.npz") as archive:
        small = archive["input_1"][:64].astype(np.float32)
    large = np.repeat(np.repeat(small, 8, axis=1)[:, :240], 10, axis=2)
    return {"input": np.ascontiguousarray(((large - 127) / 128).transpose(0, 3, 1, 2))}


if __name__ == "__main__":
    main()
