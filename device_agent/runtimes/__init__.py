"""Device runtimes: one module each, found by the name that a bundle requires."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from typing import Final

from device_agent.errors import RuntimeFailure
from device_agent.ports import Runtime
from fleet.errors import MissingExtraError

#: The distributions that bring a runtime, where they are not called like it.
_DISTRIBUTIONS: Final = {
    "coreml": ("coremltools",),
    "qnn": ("onnxruntime-qnn",),
    "tflite": ("tflite-runtime", "ai-edge-litert"),
}


def names() -> list[str]:
    """Return the runtimes that this agent knows, installed or not."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Runtime:
    """Return a runtime, ready to load models.

    Raises:
        RuntimeFailure: the agent knows no runtime of that name.
        MissingExtraError: it does, but the library is not installed.
    """
    if name not in names():
        raise RuntimeFailure(f"runtime: expected one of {', '.join(names())}, got {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{name}")
        runtime: Runtime = module.connect()
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"runtime {name}", name) from error
    return runtime


def installed() -> dict[str, str]:
    """Return the runtimes whose library is installed, with its version."""
    return {name: version for name in names() if (version := _version(name))}


def _version(name: str) -> str:
    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return ""
