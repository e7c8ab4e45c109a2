"""Runs a context binary in Qualcomm's emulation of the HTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import qnn_provider

Arrays = dict[str, npt.NDArray[np.generic]]


def serve(request: dict[str, Any]) -> Callable[[Arrays], Arrays]:
    """Load a context binary, wrapped in ONNX, and return what runs it.

    Args:
        request: `model`, a file.
    """
    session = qnn_provider.session(Path(request["model"]), {}, {})
    names = [x.name for x in session.get_outputs()]

    def run(feed: Arrays) -> Arrays:
        return dict(zip(names, session.run(None, feed), strict=True))

    return run
