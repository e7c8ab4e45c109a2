"""Small models of the kinds that real exports come in, each with its data: for whole compilations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from small_models import SmallModel

WIDTH = 16
CLASSES = 4
HIDDEN = 12

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]


def _weights(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(scale=shape[0] ** -0.5, size=shape).astype(np.float32)


def _value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: Mapping[str, npt.NDArray[Any]],
    opset: int = 17,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(x, name) for name, x in weights.items()]
    graph = helper.make_graph(nodes, "kind", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _samples(count: int, seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def two_inputs() -> onnx.ModelProto:
    """Return a classifier of a sound and a picture at once."""
    nodes = [
        helper.make_node("MatMul", ["sound", "a"], ["heard"]),
        helper.make_node("MatMul", ["picture", "b"], ["seen"]),
        helper.make_node("Concat", ["heard", "seen"], ["both"], axis=1),
        helper.make_node("Relu", ["both"], ["positive"]),
        helper.make_node("MatMul", ["positive", "c"], ["scores"]),
    ]
    weights = {"a": _weights(1, WIDTH, 32), "b": _weights(2, 8, 32), "c": _weights(3, 64, CLASSES)}
    inputs = [_value("sound", "n", WIDTH), _value("picture", "n", 8)]
    return _model(nodes, inputs, [_value("scores", "n", CLASSES)], weights)


def two_outputs() -> onnx.ModelProto:
    """Return a classifier that also says where: class scores and a box."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("MatMul", ["positive", "b"], ["scores"]),
        helper.make_node("MatMul", ["positive", "c"], ["box"]),
    ]
    weights = {"a": _weights(1, WIDTH, 64), "b": _weights(2, 64, CLASSES), "c": _weights(3, 64, 4)}
    outputs = [_value("scores", "n", CLASSES), _value("box", "n", 4)]
    return _model(nodes, [_value("x", "n", WIDTH)], outputs, weights)


def stateful() -> onnx.ModelProto:
    """Return a recurrent cell that takes its state and gives the next: one step of a stream."""
    nodes = [
        helper.make_node("Concat", ["x", "state"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "a"], ["moved"]),
        helper.make_node("Tanh", ["moved"], ["next_state"]),
        helper.make_node("MatMul", ["next_state", "b"], ["scores"]),
    ]
    weights = {"a": _weights(1, WIDTH + HIDDEN, HIDDEN), "b": _weights(2, HIDDEN, CLASSES)}
    inputs = [_value("x", 1, WIDTH), _value("state", 1, HIDDEN)]
    outputs = [_value("scores", 1, CLASSES), _value("next_state", 1, HIDDEN)]
    return _model(nodes, inputs, outputs, weights)


def long_or_short() -> onnx.ModelProto:
    """Return a classifier of sequences of any length, by their mean."""
    nodes = [
        helper.make_node("MatMul", ["steps", "a"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("ReduceMean", ["positive"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "b"], ["scores"]),
    ]
    weights = {"a": _weights(1, WIDTH, 64), "b": _weights(2, 64, CLASSES)}
    return _model(nodes, [_value("steps", "n", "length", WIDTH)], [_value("scores", "n", CLASSES)], weights)


def old() -> onnx.ModelProto:
    """Return an export of operator set 9: weights among the inputs, a linear Upsample, an old Dropout."""
    nodes = [
        helper.make_node("Upsample", ["image", "scales"], ["large"], mode="linear"),
        helper.make_node("Conv", ["large", "first"], ["edges"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["edges", "kernel"], ["convolved"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["convolved", "one", "zero", "zero", "one"], ["normal"]),
        helper.make_node("Dropout", ["normal"], ["same"], ratio=0.5),
        helper.make_node("Relu", ["same"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "bias"], ["scores"]),
    ]
    weights = {
        "scales": np.array([1, 1, 1.5, 1.5], np.float32),
        "first": _weights(3, 16, 1, 3, 3),
        "kernel": _weights(1, 16, 16, 3, 3),
        "one": np.ones(16, np.float32),
        "zero": np.zeros(16, np.float32),
        "dense": _weights(2, 16, CLASSES),
        "bias": np.zeros(CLASSES, np.float32),
    }
    model = _model(nodes, [_value("image", "n", 1, 8, 8)], [_value("scores", "n", CLASSES)], weights, opset=9)
    model.graph.input.extend(_value(name, *x.shape) for name, x in weights.items())
    model.ir_version = 3
    return model


def half_trained() -> onnx.ModelProto:
    """Return an export in training mode: its dropout draws lots at each run."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["hidden"]),
        helper.make_node("Dropout", ["hidden", "ratio", "training"], ["some"]),
        helper.make_node("MatMul", ["some", "b"], ["scores"]),
    ]
    weights = {
        "a": _weights(1, WIDTH, 64),
        "b": _weights(2, 64, CLASSES),
        "ratio": np.array(0.5, np.float32),
        "training": np.array(True),
    }
    return _model(nodes, [_value("x", "n", WIDTH)], [_value("scores", "n", CLASSES)], weights)


def masked() -> onnx.ModelProto:
    """Return causal attention: what a step must not see is hidden by infinity, as exporters write it."""
    nodes = [
        helper.make_node("MatMul", ["steps", "a"], ["hidden"]),
        helper.make_node("Transpose", ["hidden"], ["keys"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["hidden", "keys"], ["near"]),
        helper.make_node("Where", ["later", "never", "near"], ["seen"]),
        helper.make_node("Softmax", ["seen"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "hidden"], ["attended"]),
        helper.make_node("ReduceMean", ["attended"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "b"], ["scores"]),
    ]
    weights = {
        "a": _weights(1, WIDTH, 64),
        "b": _weights(2, 64, CLASSES),
        "later": np.triu(np.ones((6, 6), np.bool_), 1)[None],
        "never": np.array(-np.inf, np.float32),
    }
    return _model(nodes, [_value("steps", "n", 6, WIDTH)], [_value("scores", "n", CLASSES)], weights)


#: Kind to its model, and what its samples are: shapes by input.
KINDS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, tuple[int, ...]]]] = {
    "two inputs": (two_inputs, {"sound": (WIDTH,), "picture": (8,)}),
    "two outputs": (two_outputs, {"x": (WIDTH,)}),
    "state in and out": (stateful, {"x": (WIDTH,), "state": (HIDDEN,)}),
    "any length": (long_or_short, {"steps": (20, WIDTH)}),
    "operator set 9": (old, {"image": (1, 8, 8)}),
    "training mode": (half_trained, {"x": (WIDTH,)}),
    "masked attention": (masked, {"steps": (6, WIDTH)}),
}


def write(folder: Path, kind: str) -> SmallModel:
    """Write a model of a kind and data without labels into a folder."""
    make, shapes = KINDS[kind]
    files = SmallModel(folder / "kind.onnx", folder / "calibration.npz", folder / "evaluation.npz")
    onnx.save(make(), files.model)
    for path, count, seed in ((files.calibration, 64, 3), (files.evaluation, 400, 4)):
        arrays: Arrays = {name: _samples(count, seed + i, *x) for i, (name, x) in enumerate(shapes.items())}
        np.savez(path, **arrays)
    return files
