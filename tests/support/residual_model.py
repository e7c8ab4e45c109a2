"""A small residual network, and what a tool-chain's workshop is given for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.data import datasets
from compiler.models import normalise
from compiler.ports import Job
from firmware_profiles import registry

CHANNELS = 16
SIDE = 8
CLASSES = 20


def graph(*, opset: int = 17, gemm: str = "Gemm") -> onnx.ModelProto:
    """Return conv-relu, a residual block, average pooling, a dense layer and a softmax."""
    rng = np.random.default_rng(5)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(scale=0.3, size=shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["sum"], name="skip"),
        helper.make_node("Relu", ["sum"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node(gemm, ["flat", "w3"], ["dense"], name="dense"),
        helper.make_node("Softmax", ["dense"], ["y"], name="softmax"),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "residual",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, SIDE, SIDE])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
            [
                weights("w1", CHANNELS, CHANNELS, 3, 3),
                weights("b1", CHANNELS),
                weights("w2", CHANNELS, CHANNELS, 3, 3),
                weights("b2", CHANNELS),
                weights("w3", CHANNELS, CLASSES),
            ],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


def job(model: onnx.ModelProto, target: str, folder: Path, samples: int = 16) -> Job:
    """Return what a workshop is given, with noise as calibration data."""
    inputs, _ = normalise.tensors(model)
    rng = np.random.default_rng(6)
    arrays = {
        x.name: rng.normal(size=(samples, *(abs(y) for y in x.shape[1:]))).astype(np.float32) for x in inputs
    }
    np.savez(folder / "calibration.npz", **arrays)
    onnx.save(model, folder / "source.onnx")
    return Job(
        model=model,
        source=folder / "source.onnx",
        calibration=datasets.load(folder / "calibration.npz", inputs),
        profile=registry.load(target),
        scratch=folder,
    )
