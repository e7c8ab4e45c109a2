"""Loads an IR in OpenVINO 2022.3, the last line that Movidius devices have, and runs it on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino.runtime import Core

Arrays = dict[str, npt.NDArray[np.generic]]

#: One thread that may run on any core, and floats as they are.
_OPTIONS = {
    "NUM_STREAMS": "1",
    "INFERENCE_NUM_THREADS": "1",
    "AFFINITY": "NONE",
    "INFERENCE_PRECISION_HINT": "f32",
}


def serve(request: dict[str, Any]) -> Callable[[Arrays], Arrays]:
    """Load a model, and return what runs it.

    Args:
        request: `model`, an IR's XML file.
    """
    core = Core()
    session = core.compile_model(core.read_model(request["model"]), "CPU", _OPTIONS).create_infer_request()
    names = [x.get_any_name() for x in session.model_outputs]

    def run(feed: Arrays) -> Arrays:
        found = list(session.infer(feed).values())
        return {name: np.array(value) for name, value in zip(names, found, strict=True)}

    return run
