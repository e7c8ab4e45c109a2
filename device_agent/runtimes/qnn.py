"""QNN: context binaries on the NPU of a Qualcomm chip, through ONNX Runtime's execution provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from device_agent import chips
from device_agent.errors import RuntimeFailure
from device_agent.ports import Array, LoadedModel
from fleet.bundle import htp_stamp
from fleet.errors import BundleError

PROVIDER: Final = "QNNExecutionProvider"


class QnnModel:
    """One inference session. A context binary takes one sample at a time, so several are run in turn."""

    def __init__(self, session: Any) -> None:  # noqa: ANN401 - the library carries no annotations
        """Serve this session."""
        self._session: Final = session
        self._shapes: Final = {x.name: tuple(x.shape) for x in session.get_inputs()}
        self._outputs: Final = [x.name for x in session.get_outputs()]

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            RuntimeFailure: the session refuses the inputs or fails.
        """
        try:
            samples = self._samples(inputs)
            if samples == 1:
                return self._run(inputs)
            rows = [self._run({k: x[i : i + 1] for k, x in inputs.items()}) for i in range(samples)]
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeFailure(f"qnn: {_line(error)}") from error
        return {name: np.concatenate([row[name] for row in rows]) for name in self._outputs}

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))

    def _samples(self, inputs: Mapping[str, Array]) -> int:
        """Return how many samples there are, where every input is one sample of a batch; else 1."""
        counts = set()
        for name, x in inputs.items():
            shape = self._shapes.get(name, ())
            batch = shape[:1] == (1,) and x.ndim == len(shape) and x.shape[1:] == shape[1:]
            counts.add(len(x) if batch else 1)
        return counts.pop() if len(counts) == 1 else 1

    def close(self) -> None:
        """Free nothing: the session's memory goes with its last reference."""


class QnnRuntime:
    """Loads context binaries, wrapped in ONNX, that were compiled for this device's chip."""

    name = "qnn"

    def __init__(self, ort: Any, package: Any, system: Path) -> None:  # noqa: ANN401 - as above
        """Register the provider.

        Args:
            ort: the module `onnxruntime`.
            package: the module `onnxruntime_qnn`.
            system: where the operating system's files begin.

        Raises:
            RuntimeFailure: ONNX Runtime does not load the provider.
        """
        self._ort: Final = ort
        self._htp: Final = str(package.get_qnn_htp_path())
        self._system: Final = system
        try:
            if not self._devices():
                ort.register_execution_provider_library(PROVIDER, package.get_library_path())
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeFailure(f"qnn: {_line(error)}") from error
        if not self._devices():
            raise RuntimeFailure(f"qnn: expected the provider {PROVIDER}, got none")

    def load(self, artifact: Path, *, threads: int) -> LoadedModel:
        """Load a model.

        Args:
            artifact: the `.onnx` file that holds the context binary.
            threads: for what surrounds the NPU's work; 0 lets the library choose.

        Raises:
            RuntimeFailure: it is for another chip, or cannot be loaded.
        """
        self._check(artifact)
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            options.add_provider_for_devices(self._devices(), {"backend_path": self._htp})
            session = self._ort.InferenceSession(str(artifact), options)
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeFailure(f"qnn: {_line(error)}") from error
        return QnnModel(session)

    def _devices(self) -> list[Any]:
        return [x for x in self._ort.get_ep_devices() if x.ep_name == PROVIDER]

    def _check(self, artifact: Path) -> None:
        """Compare the chips ourselves: the libraries run a binary of another one, slowly or wrongly."""
        try:
            stamp = htp_stamp.read(artifact.read_bytes())
        except (OSError, BundleError) as error:
            raise RuntimeFailure(f"qnn: {_line(error)}") from error
        chip = chips.accelerator(self._system)
        if chip is None:
            where = self._system / chips.ID
            raise RuntimeFailure(f"qnn: expected the chip {stamp.chip}, got one that {where} does not tell")
        ours = htp_stamp.HtpStamp(
            chip=chip.chip, arch=int(chip.version.removeprefix("v")), vtcm_mib=chip.vtcm_mib
        )
        if stamp != ours:
            raise RuntimeFailure(f"qnn: expected a context binary for {ours}, got one for {stamp}")


def connect(system: Path = Path("/")) -> QnnRuntime:
    """Return the runtime.

    Raises:
        RuntimeFailure: the provider's package is not installed.
    """
    try:
        import onnxruntime
        import onnxruntime_qnn
    except ModuleNotFoundError as error:
        # No extra brings it: its libraries are Qualcomm's, whose terms each user accepts.
        raise RuntimeFailure(
            "qnn: expected the package onnxruntime-qnn (under the Qualcomm AI Stack licence), got none: "
            "pip install 'onnxruntime-qnn>=2.7'"
        ) from error
    return QnnRuntime(onnxruntime, onnxruntime_qnn, system)


def _line(error: Any) -> str:  # noqa: ANN401 - any error at all
    return " ".join(str(error).split())[:300]
