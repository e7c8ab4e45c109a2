"""Whether the QNN execution provider compiles a model for a Hexagon NPU."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import onnx
import onnxruntime
import onnxruntime_qnn
from onnx import TensorProto, helper

_PROVIDER = "QNNExecutionProvider"


def call(request: dict[str, object]) -> dict[str, object]:
    """Compile a quantized model of one operator into a context binary."""
    del request
    Path("health.onnx").write_bytes(_model())
    onnxruntime.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    devices = [x for x in onnxruntime.get_ep_devices() if x.ep_name == _PROVIDER]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("ep.context_enable", "1")
    options.add_session_config_entry("ep.context_file_path", "health.ctx.onnx")
    backend = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": "57", "htp_arch": "75"}
    options.add_provider_for_devices(devices, backend)
    onnxruntime.InferenceSession("health.onnx", options)
    if not Path("health.ctx.onnx").is_file():
        raise RuntimeError("expected a context binary; got none")
    tools = ("onnxruntime", "onnxruntime-qnn")
    return {"versions": {x: metadata.version(x) for x in tools}, "python": platform.python_version()}


def _model() -> bytes:
    scales = [helper.make_tensor(f"scale{i}", TensorProto.FLOAT, [], [0.1]) for i in range(2)]
    zeros = [helper.make_tensor(f"zero{i}", TensorProto.UINT8, [], [128]) for i in range(2)]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale0", "zero0"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "scale0", "zero0"], ["xf"]),
        helper.make_node("Add", ["xf", "xf"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "scale1", "zero1"], ["y8"]),
        helper.make_node("DequantizeLinear", ["y8", "scale1", "zero1"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 16]) for x in ("x", "y")]
    graph = helper.make_graph(nodes, "health", ends[:1], ends[1:], [*scales, *zeros])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
