"""Core ML on Apple's chips: ML Programs, made by a front-end of our own and evaluated in numpy.

Core ML runs on Apple's systems only: what is checked here are graph, weights and numbers of the package as it
was saved. Where Core ML places an operation is its own choice, and here an estimate.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Final

import onnx
import onnxruntime

from compiler.artifacts import Artifact
from compiler.errors import ModelRefusedError
from compiler.mil import evaluate, package, program
from compiler.mil.evaluate import Evaluator
from compiler.mil.facts import facts
from compiler.mil.workshop import MilWorkshop
from compiler.placement.summary import Placement, by_rules
from compiler.ports import Backend, Job, Runner, Workshop
from fleet.errors import MissingExtraError

_LIBRARY: Final = "coremltools"
#: Version of the specification to the macOS that brought it (coremltools reference, `target`).
SYSTEMS: Final = {8: "14", 9: "15"}


def backend() -> Backend:
    """Return the backend.

    Raises:
        MissingExtraError: coremltools is not installed.
    """
    if importlib.util.find_spec(_LIBRARY) is None:
        raise MissingExtraError("compiling for Apple's chips", "compiler-coreml")
    return CoreMl()


class CoreMl:
    """The backend."""

    #: A numpy evaluation says nothing about a device.
    timed: Final = False
    runs_in: Final = "a numpy evaluation of the saved package, in place of Core ML"
    toolchains: Final[tuple[str, ...]] = ()

    def versions(self) -> dict[str, str]:
        """Return the tools that make the artifact, with their versions."""
        return {
            _LIBRARY: importlib.metadata.version(_LIBRARY),
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        }

    def open(self, job: Job) -> Workshop:
        """Prepare a model for compiling.

        Raises:
            ModelRefusedError: lists all operators that Core ML's front-end does not have.
        """
        return MilWorkshop(job)

    def vet(self, artifact: Artifact) -> None:
        """Read a package without Core ML, and check that it holds only what Kedge writes.

        Raises:
            ModelRefusedError: malformed, or with other operations.
        """
        loaded = program.read(artifact.path)
        if loaded.version not in SYSTEMS:
            raise ModelRefusedError(f"{artifact.main}: expected specification 8 or 9; got {loaded.version}")
        evaluate.check(loaded)

    def requires(self, artifact: Artifact) -> dict[str, str]:
        """Return the macOS that reads the package's specification; iOS 17 came with the same as macOS 14."""
        return {"macos": f">={SYSTEMS[program.read(artifact.path).version]}"}

    def load(self, artifact: Artifact) -> Runner:
        """Load a package, float16 rounded as it is written."""
        return Evaluator(artifact.path)

    def load_reference(self, artifact: Artifact) -> Runner:
        """Load a package so that it computes in float32 throughout."""
        return Evaluator(artifact.path, half=False)

    def placement(self, artifact: Artifact, job: Job) -> Placement:
        """Return where the profile's rules guess that the operations run."""
        weights = artifact.path / package.WEIGHTS
        size = weights.stat().st_size if weights.is_file() else 0
        return by_rules(job.profile, facts(program.read(artifact.path), size))
