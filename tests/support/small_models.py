"""A small classifier made on the spot, with its data: for tests that must run without any model file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10
SIDE = 8
_CHANNELS = 12

Floats = npt.NDArray[np.float32]


class SmallModel(NamedTuple):
    """The files of a model."""

    model: Path
    calibration: Path
    evaluation: Path


def samples(count: int, seed: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return noisy pictures `[N, 1, 8, 8]` of ten patterns, and which pattern each is."""
    patterns = np.random.default_rng(7).normal(size=(CLASSES, SIDE * SIDE))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    pictures = patterns[labels] + rng.normal(scale=1.6, size=(count, SIDE * SIDE))
    return pictures.astype(np.float32).reshape(count, 1, SIDE, SIDE), labels


def _convolved(pictures: Floats, kernel: Floats) -> Floats:
    padded = np.pad(pictures[:, 0], ((0, 0), (1, 1), (1, 1)))
    found = np.zeros((len(pictures), _CHANNELS, SIDE, SIDE), np.float32)
    for i in range(3):
        for j in range(3):
            window = padded[:, None, i : i + SIDE, j : j + SIDE]
            found += kernel[:, 0, i, j][None, :, None, None] * window
    return np.maximum(found, np.float32(0)).reshape(len(pictures), -1)


def graph() -> onnx.ModelProto:
    """Return the classifier: a fixed convolution, and a layer fitted by least squares."""
    kernel = np.random.default_rng(1).normal(scale=0.4, size=(_CHANNELS, 1, 3, 3)).astype(np.float32)
    pictures, labels = samples(2000, 2)
    features = _convolved(pictures, kernel).astype(np.float64)
    ridge = features.T @ features + 50.0 * np.eye(features.shape[1])
    weights = np.linalg.solve(ridge, features.T @ np.eye(CLASSES)[labels]).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["picture", "kernel"], ["convolved"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["convolved"], ["positive"], name="relu"),
        helper.make_node("Flatten", ["positive"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"], name="dense"),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
            [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(weights, "weights")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def write(folder: Path, *, labels: bool = True) -> SmallModel:
    """Write model and data into a folder."""
    files = SmallModel(folder / "small.onnx", folder / "calibration.npz", folder / "evaluation.npz")
    onnx.save(graph(), files.model)
    for path, count, seed in ((files.calibration, 96, 3), (files.evaluation, 400, 4)):
        pictures, classes = samples(count, seed)
        np.savez(path, **({"picture": pictures, "labels": classes} if labels else {"picture": pictures}))
    return files
