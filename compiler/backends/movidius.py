"""OpenVINO 2022 on the Myriad X: float16 IR in old operators, verified on this CPU."""

from __future__ import annotations

from typing import Final

import onnx

from compiler.artifacts import Artifact
from compiler.openvino import graph, library, myriad
from compiler.openvino.myriad import MyriadWorkshop
from compiler.openvino.saving import vet
from compiler.placement.summary import Placement, by_rules
from compiler.ports import Backend, Job, Runner, Workshop


def backend() -> Backend:
    """Make the backend, for the registry that finds this module by its name."""
    return Movidius()


class Movidius:
    """The backend."""

    #: Nothing here computes as the Myriad X does.
    timed: Final = False
    runs_in: Final = "OpenVINO on this CPU, in place of the Myriad X"
    #: The checker needs Python 3.10: it is used where it is, and missed by name where it is not.
    toolchains: Final[tuple[str, ...]] = ()

    def versions(self) -> dict[str, str]:
        """Return the tools that make and check the artifact, with their versions."""
        found = {"onnx": onnx.__version__, "openvino": library.version()}
        old = myriad.checker()
        return {**found, myriad.TOOLCHAIN: old} if old else found

    def open(self, job: Job) -> Workshop:
        """Prepare a model for compiling."""
        return MyriadWorkshop(job)

    def vet(self, artifact: Artifact) -> None:
        """Check an IR's structure."""
        vet(artifact)

    def requires(self, artifact: Artifact) -> dict[str, str]:
        """Return nothing beyond the profile: every IR here is for the same OpenVINO."""
        del artifact
        return {}

    def load(self, artifact: Artifact) -> Runner:
        """Load an artifact in today's OpenVINO, on the CPU."""
        return library.Request(library.compiled(library.read(artifact.path)))

    def load_reference(self, artifact: Artifact) -> Runner:
        """Load an artifact without fusions; there are no integers in it."""
        return library.Request(library.compiled(library.read(artifact.path), library.PLAIN))

    def placement(self, artifact: Artifact, job: Job) -> Placement:
        """Return where the profile's rules say that the nodes run."""
        return by_rules(job.profile, graph.read(library.read(artifact.path), half=True))
