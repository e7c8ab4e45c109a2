"""Qualcomm Hexagon NPUs: HTP context binaries, compiled and emulated by Qualcomm's own tools."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import onnx
import onnxruntime

from compiler import toolchains
from compiler.artifacts import Artifact
from compiler.onnx_session import Session, observed
from compiler.placement import onnx_graph
from compiler.placement.summary import Placement
from compiler.ports import Backend, Job, Runner, Workshop
from compiler.qnn import compiling, contexts, placing
from compiler.qnn.compiling import Operator
from compiler.qnn.workshop import HtpWorkshop, placed_file


def backend() -> Backend:
    """Make the backend, for the registry that finds this module by its name."""
    return Qnn()


class Qnn:
    """The backend."""

    timed: Final = False
    runs_in: Final = "Qualcomm's emulation of the Hexagon NPU"
    toolchains: Final = (compiling.TOOLCHAIN,)

    def versions(self) -> dict[str, str]:
        """Return the tools that make the artifact, with their versions."""
        theirs = toolchains.environment(compiling.TOOLCHAIN).versions[compiling.PACKAGE]
        # It is our own ONNX Runtime that quantizes.
        ours = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
        return {**ours, compiling.PACKAGE: theirs}

    def open(self, job: Job) -> Workshop:
        """Prepare a model for compiling."""
        return HtpWorkshop(job)

    def vet(self, artifact: Artifact) -> None:
        """See that it is one context binary, and that it says what it is for."""
        contexts.read(artifact.path)

    def requires(self, artifact: Artifact) -> dict[str, str]:
        """Return the HTP's architecture, and the oldest provider: QNN loads what older ones made."""
        version = toolchains.environment(compiling.TOOLCHAIN).versions[compiling.PACKAGE]
        stamp = contexts.read(artifact.path).stamp
        return {"htp-arch": f"=={stamp.arch}", "qnn": f">={version}"}

    def load(self, artifact: Artifact) -> Runner:
        """Load an artifact in the emulation of the HTP."""
        return compiling.Emulation(artifact.path)

    def load_reference(self, artifact: Artifact) -> Runner:
        """Load the quantized model in ONNX Runtime, computing as it is written."""
        return Session(artifact.twin, plain=True) if artifact.twin else self.load(artifact)

    def placement(self, artifact: Artifact, job: Job) -> Placement:
        """Return which operators of the HTP the compiler has made of the model's."""
        model = onnx.load(artifact.twin or job.source)
        graph = onnx_graph.read(model, observed(model, job.calibration.feed(0), job.scratch))
        return placing.placement(job.profile, graph, _operators(artifact.twin))


def _operators(twin: Path | None) -> tuple[Operator, ...]:
    if twin is None:
        return ()
    return msgspec.json.decode(placed_file(twin).read_bytes(), type=tuple[Operator, ...])
