"""Whether NVIDIA ModelOpt quantizes a model on the processor."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from modelopt.onnx.quantization import quantize
from onnx import TensorProto, helper, numpy_helper


def call(request: dict[str, object]) -> dict[str, object]:
    """Quantize a model of one convolution."""
    del request
    random = np.random.default_rng(0)
    weight = random.standard_normal((16, 16, 3, 3)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 6, 6])
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3])
    graph = helper.make_graph([node], "health", [x], [y], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "in.onnx")
    quantize(
        str(Path("in.onnx").absolute()),
        quantize_mode="int8",
        calibration_data={"x": random.standard_normal((4, 16, 8, 8)).astype(np.float32)},
        calibration_eps=["cpu"],
        output_path=str(Path("out.onnx").absolute()),
        high_precision_dtype="fp32",
    )
    kinds = {node.op_type for node in onnx.load("out.onnx").graph.node}
    if "DequantizeLinear" not in kinds:
        raise RuntimeError(f"expected a quantized model; got one of {sorted(kinds)}")
    tools = ("nvidia-modelopt", "onnxruntime", "torch")
    return {"versions": {x: metadata.version(x) for x in tools}, "python": platform.python_version()}
