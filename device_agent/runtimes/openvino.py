"""OpenVINO: IR files, on the processor that the file itself names."""

from __future__ import annotations

import queue
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from device_agent.errors import RuntimeFailure
from device_agent.ports import Array, LoadedModel

# Importing OpenVINO sends usage data to its maker and writes to the home folder, unless that part is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None bars the import

try:
    from openvino import Core, Tensor
except ImportError:  # in 2022.3, the last one for Movidius, they lie elsewhere
    from openvino.runtime import Core, Tensor

#: Where the compiler writes in an IR which processor it is for.
DEVICE: Final = ["kedge", "device"]
DEFAULT_DEVICE: Final = "CPU"


class OpenVinoModel:
    """A compiled model. A request belongs to one caller at a time, so idle ones wait in a pool."""

    def __init__(self, compiled: Any) -> None:  # noqa: ANN401 - the library has no stubs for its C++ part
        """Serve this compiled model."""
        self._compiled: Final = compiled
        self._inputs: Final = {name: i for i, x in enumerate(compiled.inputs) for name in x.get_names()}
        self._types: Final = [np.dtype(x.get_element_type().to_dtype()) for x in compiled.inputs]
        self._outputs: Final = [x.get_any_name() for x in compiled.outputs]
        self._idle: Final[queue.SimpleQueue[Any]] = queue.SimpleQueue()

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            RuntimeFailure: the model refuses the inputs or fails.
        """
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            held = {}  # the request reads these arrays until it has run
            for index, value in self._in_order(inputs).items():
                held[index] = np.require(value, self._types[index], ("C", "W"))  # what the library asks for
                request.set_input_tensor(index, Tensor(held[index], shared_memory=True))
            request.infer()
            outputs = {name: request.get_output_tensor(i).data.copy() for i, name in enumerate(self._outputs)}
        except RuntimeFailure:
            raise
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeFailure(f"openvino: {_line(error)}") from error
        self._idle.put(request)
        return outputs

    def _in_order(self, inputs: Mapping[str, Array]) -> dict[int, Array]:
        found = {self._inputs[name]: value for name, value in inputs.items() if name in self._inputs}
        if not len(found) == len(inputs) == len(self._types):
            wanted, got = ", ".join(self._inputs), ", ".join(inputs) or "none"
            raise RuntimeFailure(f"openvino: expected the inputs {wanted}, got {got}")
        return found

    def close(self) -> None:
        """Free nothing: the model's memory goes with its last reference."""


class OpenVinoRuntime:
    """Loads IR files."""

    name = "openvino"

    def __init__(self) -> None:
        """Look which processors there are."""
        self._core: Final = Core()

    def load(self, artifact: Path, *, threads: int) -> LoadedModel:
        """Load a model.

        Args:
            artifact: the `.xml` file; its weights lie beside it.
            threads: for one request's operators; 0 lets the library choose.

        Raises:
            RuntimeFailure: it cannot be loaded, or this device has no such processor.
        """
        try:
            model = self._core.read_model(str(artifact))
            device = self._device(model)
            return OpenVinoModel(self._core.compile_model(model, device, _options(device, threads)))
        except RuntimeFailure:
            raise
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeFailure(f"openvino: {_line(error)}") from error

    def _device(self, model: Any) -> str:  # noqa: ANN401 - no stubs
        if not model.has_rt_info(DEVICE):
            return DEFAULT_DEVICE
        value = model.get_rt_info(DEVICE)
        device = str(getattr(value, "value", value))  # 2022.3 gives the text itself
        found = self._core.available_devices
        if device not in {x.split(".")[0] for x in found}:  # several of a kind are numbered
            raise RuntimeFailure(f"openvino: expected a device {device}, got {', '.join(found)}")
        return device


def _options(device: str, threads: int) -> dict[str, str]:
    if device != DEFAULT_DEVICE:
        return {"PERFORMANCE_HINT": "LATENCY"}
    # As the compiler measured it: one request at a time, on any core that is free, and no shorter floats.
    return {
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": "NO",
        "INFERENCE_PRECISION_HINT": "f32",
    }


def connect() -> OpenVinoRuntime:
    """Return the runtime."""
    return OpenVinoRuntime()


def _line(error: Any) -> str:  # noqa: ANN401 - any error at all
    return " ".join(str(error).split())[:300]
