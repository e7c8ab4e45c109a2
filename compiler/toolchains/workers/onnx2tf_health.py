"""Whether onnx2tf converts a model, and LiteRT runs what comes out."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx2tf
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, save


def call(request: dict[str, object]) -> dict[str, object]:
    """Convert and run a model of one operator."""
    del request
    ends = [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 3, 8, 8]) for x in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "health", ends[:1], ends[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "health.onnx")
    onnx2tf.convert(
        input_onnx_file_path="health.onnx",
        output_folder_path="health",
        tflite_backend="flatbuffer_direct",
        non_verbose=True,
    )
    interpreter = Interpreter(str(next(Path("health").glob("*_float32.tflite"))))
    interpreter.allocate_tensors()
    ask, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.set_tensor(ask["index"], np.full(ask["shape"], -1, np.float32))
    interpreter.invoke()
    if interpreter.get_tensor(answer["index"]).any():
        raise RuntimeError("expected relu's answer; got something else")
    tools = ("onnx2tf", "ai-edge-litert")
    return {"versions": {x: metadata.version(x) for x in tools}, "python": platform.python_version()}
