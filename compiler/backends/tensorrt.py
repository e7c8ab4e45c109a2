"""TensorRT on NVIDIA Jetson: ONNX models that keep its rules, and plans by which devices build engines.

TensorRT itself cannot run here: what is checked here are its rules, and the numbers, in ONNX Runtime on the
CPU.
"""

from __future__ import annotations

from typing import Final

import msgspec
import onnx
import onnxruntime

from compiler.artifacts import Artifact
from compiler.errors import CompileError, ModelRefusedError
from compiler.models import guard
from compiler.onnx_session import observed
from compiler.placement import onnx_graph
from compiler.placement.summary import Placement, beside, by_rules
from compiler.ports import Backend, Job, Runner, Workshop
from compiler.quantizing import rounding
from compiler.tensorrt import producer, rules
from compiler.tensorrt.workshop import TensorRtWorkshop
from firmware_profiles.profile import ExtraUnit
from fleet.bundle import engine_plan
from fleet.errors import BundleError


def backend() -> Backend:
    """Make the backend, for the registry that finds this module by its name."""
    return TensorRt()


class TensorRt:
    """The backend."""

    #: A symmetric file runs slower than float on a CPU, and a Jetson is none.
    timed: Final = False
    runs_in: Final = "ONNX Runtime on this CPU, in place of TensorRT on the GPU"
    toolchains: Final[tuple[str, ...]] = ()

    def versions(self) -> dict[str, str]:
        """Return the tools that make the artifact, with their versions."""
        found = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
        return {**found, **({producer.PACKAGE: x} if (x := producer.installed()) else {})}

    def open(self, job: Job) -> Workshop:
        """Prepare a model for compiling."""
        return TensorRtWorkshop(job)

    def vet(self, artifact: Artifact) -> None:
        """Apply the import guard and TensorRT's rules to an artifact.

        Raises:
            ModelRefusedError: hostile, without a plan of its own, or against the rules.
        """
        read = guard.read(artifact.path)
        broken = rules.check(read.model)
        if broken:
            raise ModelRefusedError(f"{artifact.main}: {broken[0]}")
        try:
            plan = engine_plan.decode((artifact.folder / engine_plan.PATH).read_bytes())
        except (OSError, BundleError) as error:
            raise ModelRefusedError(f"{engine_plan.PATH}: {error}") from error
        if plan.model != str(read.digest):
            raise ModelRefusedError(
                f"{engine_plan.PATH}: expected a plan for {read.digest}; got {plan.model}"
            )

    def requires(self, artifact: Artifact) -> dict[str, str]:  # noqa: ARG002 - the port's
        """Return nothing: the profile says which TensorRT is needed."""
        return {}

    def load(self, artifact: Artifact) -> Runner:
        """Load an artifact in ONNX Runtime on the CPU, float16 rounded as it is written."""
        return rounding.session(artifact.path)

    def load_reference(self, artifact: Artifact) -> Runner:
        """Load an artifact so that other kernels compute it: how far they differ, a device's may."""
        return rounding.reference(artifact.path)

    def placement(self, artifact: Artifact, job: Job) -> Placement:
        """Return where the profile's rules say that the nodes run."""
        model = onnx.load(artifact.path)
        try:
            seen = observed(model, job.calibration.feed(0), job.scratch)
        except CompileError:  # a CPU may lack a kernel that a GPU has
            seen = {}
        graph = onnx_graph.read(model, seen)
        placed = beside(job.profile, graph, by_rules(job.profile, graph))
        notes = "; ".join([placed.note, *(_share(placed, x) for x in job.profile.units)])
        return msgspec.structs.replace(placed, note=notes)


def _share(placed: Placement, unit: ExtraUnit) -> str:
    """Return in words how much of the model another accelerator of the chip would take."""
    taken = [x for x in placed.nodes if any(y.unit == unit.name and y.takes for y in x.elsewhere)]
    share = sum(x.macs or 0 for x in taken) / placed.macs if placed.macs else 0.0
    versions = " or ".join(", ".join(f"{x} {y}" for x, y in each.items()) for each in unit.software)
    count = f"on the {unit.name} {len(taken)} of {placed.operators} nodes"
    return f"{count}, {share:.0%} of the multiply-accumulates (with {versions})"
