"""The Vitis AI execution provider on AMD Ryzen AI: QDQ ONNX by AMD's rules, verified on a CPU."""

from __future__ import annotations

from typing import Final

import onnx

from compiler.artifacts import Artifact
from compiler.backends.onnxruntime import OnnxRuntime
from compiler.onnx_session import observed
from compiler.placement import onnx_graph
from compiler.placement.summary import Placement, by_rules
from compiler.ports import Backend, Job, Runner, Workshop
from compiler.quantizing import rounding
from compiler.vitisai.workshop import FLOAT, VitisAiWorkshop


def backend() -> Backend:
    """Make the backend, for the registry that finds this module by its name."""
    return VitisAi()


class VitisAi:
    """The backend: as ONNX Runtime's, but for what is built and where it goes."""

    #: The NPU is not a CPU: what a file takes here says nothing about it.
    timed: Final = False
    runs_in: Final = "ONNX Runtime on this CPU, in place of the NPU"
    toolchains: Final[tuple[str, ...]] = ()

    def __init__(self) -> None:
        """Stand on ONNX Runtime."""
        self._cpu: Final = OnnxRuntime()

    def versions(self) -> dict[str, str]:
        """Return the tools that make the artifact, with their versions."""
        return self._cpu.versions()

    def open(self, job: Job) -> Workshop:
        """Prepare a model for compiling."""
        return VitisAiWorkshop(job)

    def vet(self, artifact: Artifact) -> None:
        """Apply the import guard to an artifact."""
        self._cpu.vet(artifact)

    def requires(self, artifact: Artifact) -> dict[str, str]:
        """Return the oldest ONNX Runtime that reads the artifact's operator set."""
        return self._cpu.requires(artifact)

    def load(self, artifact: Artifact) -> Runner:
        """Load an artifact in ONNX Runtime on the CPU, floats rounded as the NPU rounds them."""
        return rounding.session(artifact.path, bfloat16=artifact.kind == FLOAT)

    def load_reference(self, artifact: Artifact) -> Runner:
        """Load an artifact so that other kernels compute it: how far they differ, a device's may."""
        return rounding.reference(artifact.path, bfloat16=artifact.kind == FLOAT)

    def placement(self, artifact: Artifact, job: Job) -> Placement:
        """Return where the profile's rules say that the nodes run."""
        model = onnx.load(artifact.path)
        return by_rules(
            job.profile, onnx_graph.read(model, observed(model, job.calibration.feed(0), job.scratch))
        )
