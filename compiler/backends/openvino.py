"""OpenVINO on CPUs: IR, quantized with NNCF."""

from __future__ import annotations

import importlib.util
from typing import Final

import onnx

from compiler.artifacts import Artifact
from compiler.openvino import graph, library, quantize
from compiler.openvino.library import Model
from compiler.openvino.saving import vet
from compiler.openvino.workshop import OpenVinoWorkshop
from compiler.placement.facts import GraphFacts
from compiler.placement.rules import Decision, Unit
from compiler.placement.summary import RULES, Placement, summarise
from compiler.ports import Backend, Job, Runner, Workshop
from fleet.errors import MissingExtraError

NAME: Final = "openvino"
#: The oldest OpenVINO that the reader of what is written here was tried with, beside Movidius's own.
OLDEST: Final = ">=2025.3"


def backend() -> Backend:
    """Return the backend.

    Raises:
        MissingExtraError: NNCF is not installed.
    """
    need_nncf()
    return OpenVino()


def need_nncf() -> None:
    """Check that NNCF is there, without the seconds that importing it takes.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("nncf") is None:
        raise MissingExtraError("quantizing for OpenVINO", library.EXTRA)


class OpenVino:
    """The backend."""

    timed: bool = True
    runs_in: str = "OpenVINO on this CPU"
    toolchains: tuple[str, ...] = ()

    def versions(self) -> dict[str, str]:
        """Return the tools that make the artifact, with their versions."""
        return {"nncf": quantize.version(), "onnx": onnx.__version__, "openvino": library.version()}

    def open(self, job: Job) -> Workshop:
        """Prepare a model for compiling."""
        return OpenVinoWorkshop(job, NAME)

    def vet(self, artifact: Artifact) -> None:
        """Check an IR's structure."""
        vet(artifact)

    def requires(self, artifact: Artifact) -> dict[str, str]:
        """Return the oldest OpenVINO that reads the artifact."""
        return {artifact.runtime: OLDEST}

    def load(self, artifact: Artifact) -> Runner:
        """Load an artifact as the device will."""
        return library.Request(library.compiled(library.read(artifact.path)))

    def load_reference(self, artifact: Artifact) -> Runner:
        """Load an artifact so that integers are computed as they are written, in float."""
        return library.Request(library.compiled(library.read(artifact.path), library.PLAIN))

    def placement(self, artifact: Artifact, job: Job) -> Placement:
        """Return the number formats that the IR asks for: which kernels run is each CPU's own choice."""
        facts = facts_of(artifact, job)
        told = [Decision(unit=Unit.CPU, rule="the only processor")] * len(facts.nodes)
        return summarise(job.profile, facts, told, "CPU", RULES, "number formats as the IR asks for them")


def facts_of(artifact: Artifact, job: Job, *, half: bool = False) -> GraphFacts:
    """Return the facts of an artifact's graph, for one sample; half for a device without float32."""
    model: Model = library.read(artifact.path)
    model.reshape({name: x.shape for name, x in job.calibration.feed(0).items()})
    return graph.read(model, half=half)
