"""Core ML on macOS: packages, on CPU and Neural Engine as the system decides."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from device_agent.errors import RuntimeFailure
from device_agent.ports import Array, LoadedModel
from fleet.bundle import features
from fleet.bundle.features import Ports
from fleet.errors import BundleError

#: Takes features of one sample by name, and returns those of the answer.
Predict = Callable[[dict[str, Array]], Mapping[str, Array]]


class CoreMlModel:
    """A loaded package. It takes one sample; several are answered one after the other."""

    def __init__(self, predict: Predict, ports: Ports) -> None:
        """Serve this model."""
        self._predict: Final = predict
        self._ports: Final = ports
        self._turn: Final = threading.Lock()

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            RuntimeFailure: the model refuses the inputs or fails.
        """
        try:
            answers = [self._one(x) for x in self._samples(inputs)]
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeFailure(f"coreml: {_line(error)}") from error
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([x[name] for x in answers]) for name in answers[0]}

    def _samples(self, inputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        batched = {x.name for x in self._ports.inputs if x.shape[:1] == (1,) and x.name in inputs}
        counts = {len(inputs[x]) for x in batched if inputs[x].ndim}
        if not counts or counts == {1}:
            return [dict(inputs)]
        if len(counts) > 1:
            raise BundleError(f"expected as many samples of each input; got {sorted(counts)}")
        return [
            {name: x[i : i + 1] if name in batched else x for name, x in inputs.items()}
            for i in range(counts.pop())
        ]

    def _one(self, sample: Mapping[str, Array]) -> dict[str, Array]:
        given = features.inward(self._ports, sample)
        with self._turn:  # that predictions may run side by side is not documented
            found = self._predict(given)
        return features.outward(self._ports, found)

    def close(self) -> None:
        """Free nothing: the model's memory goes with its last reference."""


class CoreMlRuntime:
    """Loads packages."""

    name = "coreml"

    def load(self, artifact: Path, *, threads: int) -> LoadedModel:  # noqa: ARG002 - Core ML decides
        """Load a package; Core ML compiles it for this machine.

        Args:
            artifact: the `.mlpackage` folder.
            threads: not used: Core ML has no such choice.

        Raises:
            RuntimeFailure: it cannot be loaded, or Kedge did not write it.
        """
        import coremltools

        try:
            units = coremltools.ComputeUnit.CPU_AND_NE
            model = coremltools.models.MLModel(str(artifact), compute_units=units)
            ports = features.decode(model.user_defined_metadata[features.KEY])
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeFailure(f"coreml: {_line(error)}") from error
        return CoreMlModel(model.predict, ports)


def connect() -> CoreMlRuntime:
    """Return the runtime.

    Raises:
        RuntimeFailure: this is no macOS.
    """
    if sys.platform != "darwin":
        raise RuntimeFailure(f"coreml: expected macOS, got {sys.platform}")
    import coremltools  # noqa: F401 - it is missing now, or not when a model comes

    return CoreMlRuntime()


def _line(error: Any) -> str:  # noqa: ANN401 - any error at all
    return " ".join(str(error).split())[:300]
