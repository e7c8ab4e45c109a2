"""Real models from the folder of test models beside the project; skipped where that is absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from compile_command import compile_for, shared_model
from compiler.bundle import layout


@pytest.mark.parametrize(
    ("model", "input_"),
    [
        ("digits/digits_cnn.onnx", "image"),
        ("kws/kws_dscnn_fp32.onnx", "features"),
        ("image_classification/resnet8_cifar10_fp32.onnx", "input_1"),
    ],
)
def test_a_real_model_becomes_int8_within_half_a_point(model: str, input_: str, tmp_path: Path) -> None:
    """By the report, and by plain ONNX Runtime on all of the evaluation data."""
    file = shared_model(model)
    result = compile_for("laptop-x86", file, tmp_path / "b")
    assert result["chosen"]["precision"] == "int8"
    assert result["accuracy"]["drop_points"] <= 0.5
    assert result["size_bytes"]["compiled"] < 0.4 * result["size_bytes"]["float"]

    data = np.load(file.parent / "evaluation.npz")
    artifact = layout.read(tmp_path / "b").bytes_of("model.onnx")

    def accuracy(source: bytes) -> float:
        scores = onnxruntime.InferenceSession(source).run(None, {input_: data[input_]})[0]
        return float((np.asarray(scores).argmax(axis=1) == data["labels"]).mean())

    assert 100 * (accuracy(file.read_bytes()) - accuracy(artifact)) <= 0.5


def test_a_face_detector_of_operator_set_9_without_labels(tmp_path: Path) -> None:
    """Weights listed as inputs, several outputs, a fixed batch of one."""
    file = shared_model("ultraface/version-slim-320.onnx")
    rng = np.random.default_rng(0)
    for name in ("calibration", "evaluation"):
        coarse = rng.normal(scale=0.5, size=(8, 3, 8, 10))
        pictures = np.kron(coarse, np.ones((1, 1, 30, 32))).clip(-1, 1).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", input=pictures)
    result = compile_for("laptop-x86", file, tmp_path / "b", data=tmp_path)
    assert result["accuracy"]["agreement"] >= 0.995
    assert any("listed as inputs" in x for x in result["warnings"])
    assert any("raised from 9" in x for x in result["warnings"])


def test_a_recurrent_model_with_state_and_a_scalar(tmp_path: Path) -> None:
    """Naive dynamic quantization flips most answers of this one; its LSTM stays in float, and it says so."""
    file = shared_model("silero_vad/silero_vad_16k_op15.onnx")
    session = onnxruntime.InferenceSession(file)
    rng, state = np.random.default_rng(0), np.zeros((2, 1, 128), np.float32)
    rate = np.array(16000, np.int64)
    sounds, states = [], []
    for i in range(96):
        loud = 0.3 * float(np.sin(i / 5) > 0)
        tone = np.sin(np.arange(576) * rng.uniform(0.02, 0.3))
        sound = (loud * tone + rng.normal(scale=0.01, size=576)).astype(np.float32)
        sounds.append(sound)
        states.append(state)
        state = np.asarray(session.run(None, {"input": sound[None], "state": state, "sr": rate})[1])
    for name, part in (("calibration", slice(0, None, 3)), ("evaluation", slice(1, None, 3))):
        count = len(sounds[part])
        np.savez(
            tmp_path / f"{name}.npz",
            input=np.stack(sounds[part]),
            state=np.stack(states[part]),
            sr=np.full(count, 16000, np.int64),
        )
    result = compile_for("laptop-x86", file, tmp_path / "b", data=tmp_path)
    assert result["accuracy"]["agreement"] >= 0.99
    assert result["chosen"]["precision"] == "float32" or any("LSTM" in x for x in result["warnings"])
