"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import onnxruntime

from device_agent.errors import RuntimeFailure
from device_agent.ports import Array, LoadedModel


class OnnxModel:
    """One inference session."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        """Serve this session."""
        self._session: Final = session
        self._outputs: Final = [output.name for output in session.get_outputs()]

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            RuntimeFailure: the session refuses the inputs or fails.
        """
        try:
            return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeFailure(f"onnxruntime: {_line(error)}") from error

    def close(self) -> None:
        """Free nothing: the session's memory goes with its last reference."""


class OnnxRuntime:
    """Loads ONNX files."""

    name = "onnxruntime"

    def load(self, artifact: Path, *, threads: int) -> LoadedModel:
        """Load a model.

        Args:
            artifact: the `.onnx` file.
            threads: for one request's operators; 0 lets the library choose.

        Raises:
            RuntimeFailure: it cannot be loaded.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin between requests would heat a device that mostly waits.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeFailure(f"onnxruntime: {_line(error)}") from error
        return OnnxModel(session)


def connect() -> OnnxRuntime:
    """Return the runtime."""
    return OnnxRuntime()


def _line(error: Any) -> str:  # noqa: ANN401 - any error at all
    return " ".join(str(error).split())[:300]
