"""Sessions on the QNN execution provider: what the workers for Hexagon share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import onnxruntime
import onnxruntime_qnn

PROVIDER: Final = "QNNExecutionProvider"
ERROR: Final = 3
FATAL: Final = 4


def session(
    model: Path, htp: Mapping[str, str], settings: Mapping[str, str], *, severity: int = FATAL
) -> onnxruntime.InferenceSession:
    """Return a session in which nothing runs on the CPU.

    Args:
        model: the ONNX file; it is given as bytes: its path would enter the names inside a binary.
        htp: options of the provider for the HTP.
        settings: of the session.
        severity: of what is logged, `ERROR` or `FATAL`.
    """
    onnxruntime.disable_telemetry_events()
    onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    devices = [x for x in onnxruntime.get_ep_devices() if x.ep_name == PROVIDER]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = severity
    for key, value in {"session.disable_cpu_ep_fallback": "1", **settings}.items():
        options.add_session_config_entry(key, value)
    options.add_provider_for_devices(devices, {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **htp})
    return onnxruntime.InferenceSession(model.read_bytes(), options)
