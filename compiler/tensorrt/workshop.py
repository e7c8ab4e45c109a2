"""One model on its way to TensorRT: int8 by its rules, float16 as it types it, a plan for the engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import onnx

from compiler.artifacts import Artifact
from compiler.candidates import Candidate, Scheme
from compiler.errors import CompileError, NothingQuantizedError
from compiler.models import copies, normalise, tidying
from compiler.models.graphs import DEQUANTIZE, WEIGHTED, Graph
from compiler.ports import Job
from compiler.quantizing import activations, refining, symmetric
from compiler.quantizing.qdq import unquantized
from compiler.sharing import digest
from compiler.tensorrt import half, insertion, opsets, plans, producer, rules
from fleet.bundle import engine_plan

NAME: Final = "tensorrt"
FILE: Final = "model.onnx"
INT8: Final = "int8"
MIXED: Final = "int8-float16"
FLOAT16: Final = Candidate(name="float16", precision="float16", scheme=Scheme.HALF, backend=NAME)
FLOAT32: Final = Candidate(name="float32", precision="float32", scheme=Scheme.FLOAT, backend=NAME)
VERIFIED: Final = "verified in ONNX Runtime on a CPU; TensorRT was never run"
_METHODS: Final = ("minmax", "percentile", "mse")
#: The one that ModelOpt finds itself.
MODELOPT: Final = producer.TOOLCHAIN
_KINDS: Final = {Scheme.STATIC: "onnx-qdq-symmetric", Scheme.HALF: "onnx-float16", Scheme.FLOAT: "onnx"}


class TensorRtWorkshop:
    """Calibrates once, and builds each candidate from the same histograms."""

    def __init__(self, job: Job) -> None:
        """Take the model; nothing is computed yet."""
        self._job: Final = job
        self._names: Final = tidying.names(job.model)
        self._folded: Final = activations.Folded(job)

    def _magnitudes(self, method: str) -> dict[str, float]:
        read = symmetric.METHODS[method]
        return {name: read(histogram) for name, histogram in self._folded.histograms.items()}

    @functools.cached_property
    def _modelopt(self) -> onnx.ModelProto:
        job, model = self._job, self._folded.model
        parts = (producer.PACKAGE, producer.installed(), digest(model), str(job.calibration.digest))
        return job.sharing.model(
            parts, lambda: producer.quantized(model, job.calibration, job.scratch, job.limits)
        )

    def plan(self) -> Sequence[Candidate]:
        """Return int8 with float16 or float32 between, float16 and float32; what takes long comes last."""
        ours = [_static(precision, method) for precision in (MIXED, INT8) for method in _METHODS]
        theirs = [_static(x, MODELOPT) for x in (MIXED, INT8)] if producer.installed() else []
        return [*ours, *self._wide(ours), FLOAT16, FLOAT32, *theirs]

    def _wide(self, static: Sequence[Candidate]) -> list[Candidate]:
        """Return variants that leave the operators in float that int8 gains nothing for."""
        names = insertion.narrow(Graph(self._folded.model))
        weighted = sum(x.op_type in WEIGHTED for x in self._folded.model.graph.node)
        if not 0 < len(names) < weighted:
            return []
        ours = [x for x in static if x.precision == MIXED and x.calibration in _METHODS[1:]]
        return [msgspec.structs.replace(x, name=f"{x.name}-wide", left_float=names) for x in ours]

    def refine(self, best: Candidate, distance: Callable[[Artifact], float]) -> Sequence[Candidate]:
        """Return variants of the best one, of ours, whose most sensitive operators stay in float."""
        if best.calibration == MODELOPT:
            best = _static(best.precision, _METHODS[-1])
        there = set(best.left_float)
        weighted = [
            x.name for x in self._folded.model.graph.node if x.op_type in WEIGHTED and x.name not in there
        ]
        trial = self._job.scratch / "trial"
        trial.mkdir(exist_ok=True)
        return refining.variants(best, weighted, lambda x: distance(self.build(x, trial)))

    def build(self, candidate: Candidate, folder: Path) -> Artifact:
        """Write the candidate's model and the plan for its engine.

        Raises:
            CompileError: it cannot be built, or breaks a rule of TensorRT's.
        """
        try:
            model = opsets.between(self._typed(candidate), 1)
        except NothingQuantizedError:
            raise
        except CompileError as error:
            raise CompileError(f"{candidate.name}: {error}") from error
        return finish(self._job, self._names, model, candidate, folder)

    def _typed(self, candidate: Candidate) -> onnx.ModelProto:
        if candidate.scheme is Scheme.FLOAT:
            return onnx.load(self._job.source)
        produced = candidate.calibration == MODELOPT
        model = copies.copy(self._modelopt if produced else self._folded.model)
        if candidate.scheme is Scheme.STATIC and not produced:
            insertion.quantize(model, self._magnitudes(candidate.calibration), candidate.left_float)
            if not any(x.op_type == DEQUANTIZE for x in model.graph.node):
                raise NothingQuantizedError(
                    f"{candidate.name}: nothing in the model can be quantized this way"
                )
        if candidate.precision in {MIXED, FLOAT16.precision}:
            model = half.convert(model, self._magnitudes("minmax"))
        return model

    def notes(self, candidate: Candidate) -> list[str]:
        """Return warnings about operators with weights that stay in float, and what was run where."""
        if candidate.scheme is not Scheme.STATIC:
            return [VERIFIED]
        return [*unquantized(self._folded.model), VERIFIED]


def _static(precision: str, method: str) -> Candidate:
    return Candidate(
        name=f"{method}-{precision}" if method == MODELOPT else f"{precision}-{method}",
        precision=precision,
        scheme=Scheme.STATIC,
        backend=NAME,
        per_channel=True,
        calibration=method,
    )


def finish(
    job: Job, names: frozenset[str], model: onnx.ModelProto, candidate: Candidate, folder: Path
) -> Artifact:
    """Tidy a model up, prove that it keeps the rules, and write it with the plan for its engine.

    Raises:
        CompileError: it breaks a rule; names node and rule.
    """
    tidying.slim(model)
    tidying.shorten(model, names)
    broken = rules.check(model)
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise CompileError(f"{candidate.name}: {broken[0]}{more}")
    data = model.SerializeToString(deterministic=True)
    (folder / FILE).write_bytes(data)
    inputs, _ = normalise.tensors(job.model)
    sample = {name: x.shape for name, x in job.calibration.feed(0).items()}
    plan = plans.make(job.profile, data, candidate.precision, inputs, sample)
    (folder / engine_plan.PATH).write_bytes(engine_plan.encode(plan))
    return Artifact(folder=folder, main=FILE, kind=_KINDS[candidate.scheme], runtime=NAME)
