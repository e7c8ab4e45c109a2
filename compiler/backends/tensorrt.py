"""TensorRT on NVIDIA Jetson: ONNX models that keep its rules, and plans by which devices build engines.

TensorRT itself cannot run here: what is checked here are its rules, and the numbers, in ONNX Runtime on the
CPU.
"""

from __future__ import annotations

from typing import Final

import onnx
import onnxruntime

from compiler import guard, rounding
from compiler.artifacts import Artifact
from compiler.errors import CompileError, ModelRefusedError
from compiler.onnx_session import observed
from compiler.placement import onnx_graph
from compiler.placement.facts import GraphFacts
from compiler.placement.summary import Placement, by_rules
from compiler.ports import Backend, Job, Runner, Workshop
from compiler.tensorrt import producer, rules
from compiler.tensorrt.workshop import TensorRtWorkshop
from fleet.bundle import engine_plan
from fleet.errors import BundleError


def backend() -> Backend:
    """Return the backend."""
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
        return by_rules(job.profile, graph, note=_units(job, graph))


def _units(job: Job, graph: GraphFacts) -> str:
    """Return in words how much of the graph the chip's other accelerators would take."""
    found = []
    for unit in job.profile.units:
        there = by_rules(job.profile, graph, unit=unit.name)
        taken, nodes = there.units().get("accelerator", 0), there.operators
        share = (
            f", {there.accelerated_macs:.0%} of the multiply-accumulates" if there.accelerated_macs else ""
        )
        versions = " or ".join(", ".join(f"{x} {y}" for x, y in each.items()) for each in unit.software)
        found.append(f"on the {unit.name} {taken} of {nodes} nodes{share} (where there is {versions})")
    return "; ".join(found)
