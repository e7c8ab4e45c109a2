"""A byte classifier that quantizing every operator ruins: outliers as those of trained transformers.

Two channels of its residual stream are a thousand times as large as the others, which layer normalization
hides from all that is computed; one hidden unit is stuck at a large value, which reaches nothing. In float
both are harmless. In int8 they take the whole range: of the others one or two steps are left.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from small_models import SmallModel

CLASSES = 16
WIDTH = 96
HIDDEN = 192
LENGTH = 40
_LOUD = [5, 40]
_STUCK = 3

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def samples(count: int, seed: int) -> tuple[Integers, Integers]:
    """Return texts `[N, 40]` of bytes that each class draws by its own frequencies, and their classes."""
    shares = np.random.default_rng(99).dirichlet(np.full(256, 0.15), size=CLASSES).cumsum(axis=1)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    draws = rng.random((count, LENGTH))
    texts = [np.searchsorted(shares[label], draw) for label, draw in zip(labels, draws, strict=True)]
    return np.stack(texts).clip(0, 255).astype(np.int64), labels


def _weights() -> dict[str, Floats]:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(256, WIDTH))
    table[:, _LOUD] = 1000.0 * (1 + 0.2 * rng.normal(size=(256, 2))) * np.array([1, -1])
    gain, bias = np.full(WIDTH, 200.0), np.zeros(HIDDEN)
    gain[_LOUD] = 0.0
    bias[_STUCK] = 4000.0
    second = rng.normal(size=(HIDDEN, WIDTH)) / 2
    second[_STUCK] = 0.0
    found = {
        "table": table,
        "gain": gain,
        "shift": np.zeros(WIDTH),
        "first": rng.normal(size=(WIDTH, HIDDEN)) / 8,
        "bias": bias,
        "second": second,
    }
    return {name: x.astype(np.float32) for name, x in found.items()}


def _normal(values: Floats, weights: dict[str, Floats]) -> Floats:
    mean, variance = values.mean(-1, keepdims=True), values.var(-1, keepdims=True)
    found: Floats = (values - mean) / np.sqrt(variance + 1e-5) * weights["gain"] + weights["shift"]
    return found


def _features(texts: Integers, weights: dict[str, Floats]) -> Floats:
    stream = weights["table"][texts]
    hidden = np.maximum(_normal(stream, weights) @ weights["first"] + weights["bias"], 0)
    stream = stream + hidden @ weights["second"]
    found: Floats = np.maximum(_normal(stream, weights), 0).mean(axis=1)
    return found


def graph() -> onnx.ModelProto:
    """Return the classifier; its last layer is fitted by least squares."""
    weights = _weights()
    texts, labels = samples(3000, 1)
    features = _features(texts, weights).astype(np.float64)
    ridge = features.T @ features + 200.0 * np.eye(WIDTH)
    weights["head"] = np.linalg.solve(ridge, features.T @ np.eye(CLASSES)[labels]).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "text"], ["stream"]),
        helper.make_node("LayerNormalization", ["stream", "gain", "shift"], ["calm"]),
        helper.make_node("MatMul", ["calm", "first"], ["up"]),
        helper.make_node("Add", ["up", "bias"], ["biased"]),
        helper.make_node("Relu", ["biased"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["down"], name="down"),
        helper.make_node("Add", ["stream", "down"], ["later"]),
        helper.make_node("LayerNormalization", ["later", "gain", "shift"], ["calm_again"]),
        helper.make_node("Relu", ["calm_again"], ["positive"]),
        helper.make_node("ReduceMean", ["positive"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["scores"]),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "outliers",
            [helper.make_tensor_value_info("text", TensorProto.INT64, ["batch", LENGTH])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
            [numpy_helper.from_array(x, name) for name, x in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def write(folder: Path) -> SmallModel:
    """Write model and data into a folder."""
    files = SmallModel(folder / "outliers.onnx", folder / "calibration.npz", folder / "evaluation.npz")
    onnx.save(graph(), files.model)
    for path, count, seed in ((files.calibration, 128, 3), (files.evaluation, 800, 4)):
        texts, labels = samples(count, seed)
        np.savez(path, text=texts, labels=labels)
    return files
