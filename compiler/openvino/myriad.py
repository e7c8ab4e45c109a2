"""One model being compiled for the Myriad X: float16 IR in operators that OpenVINO 2022 knows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from compiler import toolchains
from compiler.artifacts import Artifact
from compiler.candidates import Candidate
from compiler.data.datasets import spread
from compiler.errors import CompileError
from compiler.measuring.evaluate import snr
from compiler.openvino import graph, half, library, lowering, saving
from compiler.openvino.library import Model
from compiler.openvino.workshop import HALF, RUNTIME
from compiler.placement.rules import Unit, decide
from compiler.ports import Job
from compiler.toolchains.errors import MissingToolchainError

BACKEND: Final = "movidius"
DEVICE: Final = "MYRIAD"
#: The newest operator set of OpenVINO 2022.3, the last one with the MYRIAD plugin.
OPSET: Final = 10
TOOLCHAIN: Final = "openvino-2022"
WORKER: Final = "openvino_2022"
#: Samples on which the old and the new OpenVINO are compared.
SAMPLES: Final = 8
#: Two CPU kernels of the same float operators differ by no more than this, in dB.
FAITHFUL: Final = 60.0
_NAMED: Final = 4


class MyriadWorkshop:
    """Makes the one candidate that the Myriad X can run."""

    def __init__(self, job: Job) -> None:
        """Take the model; nothing is computed yet."""
        self._job: Final = job
        self._rewritten: list[str] = []

    @functools.cached_property
    def _model(self) -> Model:
        job = self._job
        shapes = {name: x.shape for name, x in job.calibration.feed(0).items()}
        model = library.convert(job.source, [x.name for x in job.model.graph.output], shapes)
        if model.is_dynamic():
            raise CompileError("the Myriad X needs static shapes; got a shape that depends on values")
        self._rewritten = lowering.lower(model, OPSET)
        if newer := lowering.newer(model, OPSET):
            raise CompileError(
                f"expected operators of operator set {OPSET} or older, the newest that OpenVINO 2022.3 "
                f"reads; got {_some(newer)}"
            )
        facts = graph.read(model, half=True)
        refused = [
            f"{node.operator} {node.name!r} ({decision.rule})"
            for node, decision in zip(facts.nodes, decide(job.profile, facts.nodes), strict=True)
            if decision.unit is not Unit.ACCELERATOR
        ]
        if refused:
            raise CompileError(f"the Myriad X does not run {_some(refused)}")
        half.check(model, job.calibration)
        return model

    def plan(self) -> Sequence[Candidate]:
        """Return the float16 candidate: the Myriad X computes in nothing else."""
        return [msgspec.structs.replace(HALF, backend=BACKEND)]

    def refine(self, best: Candidate, distance: Callable[[Artifact], float]) -> Sequence[Candidate]:
        """Return none: there is nothing to leave in float."""
        del best, distance
        return []

    def build(self, candidate: Candidate, folder: Path) -> Artifact:
        """Write the candidate's artifact.

        Raises:
            CompileError: the Myriad X could not run it; names operator and rule.
        """
        del candidate
        artifact = saving.save(self._model, folder, runtime=RUNTIME, device=DEVICE, half=True)
        self._check_in_2022(artifact)
        return artifact

    def _check_in_2022(self, artifact: Artifact) -> None:
        """Load and run the IR in OpenVINO 2022.3, where that is installed.

        Raises:
            CompileError: it refuses the IR, or computes something else.
        """
        try:
            environment = toolchains.environment(TOOLCHAIN)
        except MissingToolchainError:
            return
        job, runner = self._job, library.Request(library.compiled(library.read(artifact.path)))
        data = job.calibration.take(spread(job.calibration, SAMPLES))
        with environment.serve(
            WORKER, {"model": str(artifact.path)}, scratch=job.scratch, limits=job.limits
        ) as old:
            for i in range(len(data)):
                want, got = runner.run(data.feed(i)), old.run(data.feed(i))
                worst = min(snr(want[name], got[name]) for name in want)
                if worst < FAITHFUL:
                    raise CompileError(
                        f"OpenVINO 2022.3 computes something else: expected {FAITHFUL:g} dB or more; "
                        f"got {worst:.1f}"
                    )

    def notes(self, candidate: Candidate) -> list[str]:
        """Return what was rewritten, and in what it was checked."""
        del candidate
        found = (
            [f"operators written in an older set: {', '.join(self._rewritten)}"] if self._rewritten else []
        )
        old = checker()
        by = f"OpenVINO {library.version()} and {old}" if old else f"OpenVINO {library.version()} only"
        found.append(
            f"checked in {by}, on a CPU in float32: the MYRIAD plugin, which computes in float16, is in no "
            "package that can be installed here"
        )
        return found


def checker() -> str:
    """Return the version of the OpenVINO that Movidius devices have, if it is here to check with; else ""."""
    try:
        return toolchains.environment(TOOLCHAIN).versions["openvino"]
    except MissingToolchainError:
        return ""


def _some(found: Sequence[str]) -> str:
    rest = len(found) - _NAMED
    return ", ".join(found[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
