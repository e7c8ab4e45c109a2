"""ONNX Runtime on CPUs: QDQ models, quantized with ONNX Runtime's own tool."""

from __future__ import annotations

from typing import Final

import onnx
import onnxruntime

from compiler.artifacts import Artifact
from compiler.models import guard
from compiler.onnx_session import Session, observed, optimized
from compiler.placement import onnx_graph
from compiler.placement.summary import Placement, on_cpu
from compiler.ports import Backend, Job, Runner, Workshop
from compiler.quantizing.qdq import QdqWorkshop

#: Operator set to the first ONNX Runtime that reads it (ONNX Runtime documentation, compatibility).
OPSET_RELEASES: Final = ((20, "1.17"), (21, "1.18"), (22, "1.21"))
NEWEST_RELEASE: Final = "1.23"


def backend() -> Backend:
    """Make the backend, for the registry that finds this module by its name."""
    return OnnxRuntime()


class OnnxRuntime:
    """The backend."""

    timed: Final = True
    runs_in: Final = "ONNX Runtime, the device's own runtime, on this CPU"
    toolchains: Final[tuple[str, ...]] = ()

    def versions(self) -> dict[str, str]:
        """Return the tools that make the artifact, with their versions."""
        return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}

    def open(self, job: Job) -> Workshop:
        """Prepare a model for compiling."""
        return QdqWorkshop(job)

    def vet(self, artifact: Artifact) -> None:
        """Apply the import guard to an artifact."""
        guard.read(artifact.path)

    def requires(self, artifact: Artifact) -> dict[str, str]:
        """Return the oldest ONNX Runtime that reads the artifact's operator set."""
        opsets = onnx.load(artifact.path, load_external_data=False).opset_import
        newest = max(x.version for x in opsets if x.domain in {"", "ai.onnx"})
        release = next((x for opset, x in OPSET_RELEASES if newest <= opset), NEWEST_RELEASE)
        return {"onnxruntime": f">={release}"}

    def load(self, artifact: Artifact) -> Runner:
        """Load an artifact as the device will."""
        return Session(artifact.path)

    def load_reference(self, artifact: Artifact) -> Runner:
        """Load an artifact without integer kernels and fusions."""
        return Session(artifact.path, plain=True)

    def placement(self, artifact: Artifact, job: Job) -> Placement:
        """Ask the runtime which nodes remain after its optimizations."""
        model = optimized(artifact.path, job.scratch / "optimized.onnx", extended=True)
        graph = onnx_graph.read(model, observed(model, job.calibration.feed(0), job.scratch))
        return on_cpu(job.profile, graph, "CPUExecutionProvider")
