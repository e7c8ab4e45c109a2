"""Whether OpenVINO 2022.3 compiles and runs a model."""

from __future__ import annotations

import platform
from importlib import metadata

import numpy as np
from openvino.runtime import Core, Model, opset8


def call(request: dict[str, object]) -> dict[str, object]:
    """Build, compile and run a model of one operator."""
    del request
    data = opset8.parameter([1, 4], np.float32)
    model = Model([opset8.relu(data)], [data], "health")
    found = Core().compile_model(model, "CPU")([np.array([[-1, 0, 1, 2]], np.float32)])
    if next(iter(found.values())).tolist() != [[0, 0, 1, 2]]:
        raise RuntimeError(f"expected relu's answer; got {found}")
    return {"versions": {"openvino": metadata.version("openvino")}, "python": platform.python_version()}
