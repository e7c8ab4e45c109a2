"""Bundles of one model in several versions, large enough that a delta pays, and fit to run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from packed_bundles import Proof, pack

TARGET = "laptop-x86"
MODEL = "dense"


def network(seed: int, tuned: float = 0.0) -> bytes:
    """Return a network of 280 k parameters; the same seed, tuned, is its next version."""
    rng, change = np.random.default_rng(seed), np.random.default_rng(1)
    shapes = {"w1": (4, 256), "w2": (256, 1024), "w3": (1024, 2)}
    weights = {name: rng.standard_normal(shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}
    if tuned:
        weights = {name: w + tuned * change.standard_normal(w.shape) for name, w in weights.items()}
    nodes, last = [], "x"
    for k, name in enumerate(shapes):
        out = "y" if k == 2 else f"h{k}"
        nodes.append(helper.make_node("MatMul", [last, name], [out if k == 2 else f"m{k}"]))
        if k < 2:
            nodes.append(helper.make_node("Relu", [f"m{k}"], [out]))
        last = out
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", w]) for n, w in (("x", 4), ("y", 2))]
    initializers = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, MODEL, ports[:1], ports[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def layout(folder: Path, model: bytes) -> Path:
    """Write a bundle of a network as an OCI image layout; return its folder."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = np.random.default_rng(5).standard_normal((2, 4)).astype(np.float32)
    outputs = session.run(None, {"x": inputs})[0]
    onnx.checker.check_model(model)
    return pack(model, model=MODEL, target=TARGET, proof=Proof(inputs, outputs, 1e-4)).layout(folder)
