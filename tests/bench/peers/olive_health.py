"""Whether Olive starts."""

from __future__ import annotations

import os
import platform
from importlib import metadata


def call(request: dict[str, object]) -> dict[str, object]:
    """Import what the benchmark calls."""
    del request
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    from olive.engine import Engine

    Engine()
    tools = ("olive-ai", "onnxruntime")
    return {"versions": {x: metadata.version(x) for x in tools}, "python": platform.python_version()}
