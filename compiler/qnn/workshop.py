"""One model being compiled for the HTP: calibrated once, quantized once per recipe, compiled for one chip.

Only the last step knows the chip. The quantized model is kept as the artifact's twin: ONNX Runtime computes
on it in a millisecond what takes the emulation ten.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import onnx

from compiler.artifacts import Artifact
from compiler.candidates import Candidate, Scheme
from compiler.errors import CompileError, ModelRefusedError, one_line
from compiler.models import normalise
from compiler.onnx_session import Session
from compiler.placement import onnx_graph
from compiler.placement.facts import GraphFacts
from compiler.placement.rules import Unit, decide
from compiler.ports import Job
from compiler.qnn import compiling, quantizing, recipes
from compiler.qnn.contexts import Context
from compiler.quantizing import activations, refining
from compiler.quantizing.calibration import Histogram
from compiler.sharing import digest
from firmware_profiles.profile import Precision
from fleet.bundle.description import TensorSpec

KIND: Final = "qnn-context"
RUNTIME: Final = "qnn"
FILE: Final = "model.onnx"
_MEASURED: Final = (
    "chosen among candidates in ONNX Runtime; accuracy, golden vectors and thresholds are those of the "
    "context binary in Qualcomm's HTP emulation; nothing was measured on the chip itself"
)
#: Multiply-accumulates that a person waits for: some minutes of emulation.
EMULATED: Final = 2**36
#: So many samples are golden: fewer are no proof.
FEWEST: Final = 8


class HtpWorkshop:
    """The workshop."""

    def __init__(self, job: Job) -> None:
        """Take the model; nothing is computed yet."""
        self._job: Final = job
        self._twins: Final = job.scratch / "twins"
        self._twins.mkdir()

    @functools.cached_property
    def _fixed(self) -> tuple[onnx.ModelProto, list[str]]:
        feed = self._job.calibration.feed(0)
        return quantizing.fixed(self._job.model, {**feed, **Session(self._job.source).run(feed)})

    @functools.cached_property
    def _float(self) -> onnx.ModelProto:
        return quantizing.prepared(self._fixed[0], self._job.scratch)

    @functools.cached_property
    def _histograms(self) -> Mapping[str, Histogram]:
        return activations.histograms(self._float, self._job)

    @functools.cached_property
    def _graph(self) -> GraphFacts:
        return onnx_graph.read(self._float)

    @property
    def _macs(self) -> int:
        return sum(x.macs or 0 for x in self._graph.nodes)

    def plan(self) -> Sequence[Candidate]:
        """Return candidates of every number format that the chip computes in.

        Raises:
            ModelRefusedError: the HTP takes some operators in no number format.
        """
        nodes = self._graph.nodes
        found = zip(nodes, decide(self._job.profile, nodes), strict=True)
        refused = {node.name: (node.operator, x) for node, x in found if x.unit is not Unit.ACCELERATOR}
        if refused:
            kinds = {name: operator for name, (operator, _) in refused.items()}
            source = next(x.source for _, x in refused.values())
            raise ModelRefusedError(
                f"{self._job.profile.name}: expected operators that the HTP takes; "
                f"got {compiling.listed(kinds)} [{source}]"
            )
        return recipes.plan(self._job.profile.precisions)

    def refine(self, best: Candidate, distance: Callable[[Artifact], float]) -> Sequence[Candidate]:
        """Return variants of the best one whose most sensitive nodes compute in float16, if the chip can."""
        if Precision.FLOAT16 not in self._job.profile.precisions:
            return []
        nodes = [x.name for x in self._float.graph.node if x.name]
        return refining.variants(best, nodes, lambda x: distance(self._described(self._twins, self._twin(x))))

    def build(self, candidate: Candidate, folder: Path) -> Artifact:
        """Quantize, compile for the chip, and check the stamp.

        Raises:
            CompileError: it cannot be built.
        """
        twin = self._twin(candidate)
        accelerator, limits = self._job.profile.accelerator, self._job.limits
        with tempfile.TemporaryDirectory(dir=self._job.scratch) as scratch:
            context, operators = compiling.compile_model(
                twin, folder / FILE, accelerator, Path(scratch), limits
            )
        placed_file(twin).write_bytes(msgspec.json.encode(operators))
        return self._described(folder, twin, context)

    def _twin(self, candidate: Candidate) -> Path:
        """Write the model that is compiled, as ONNX Runtime can run it too."""
        try:
            model = self._quantized(candidate) if candidate.scheme is Scheme.STATIC else self._float
        except CompileError:
            raise
        except Exception as error:  # the quantizer raises anything; the search goes on without the candidate
            raise CompileError(f"{candidate.name}: {one_line(error)}") from error
        twin = self._twins / f"{candidate.name}.onnx"
        onnx.save(model, twin)
        return twin

    def _quantized(self, candidate: Candidate) -> onnx.ModelProto:
        """Quantize, unless it was done for another chip: none has a part in it."""
        recipe = (candidate.precision, candidate.per_channel, candidate.calibration, candidate.left_float)
        parts = (KIND, digest(self._float), str(self._job.calibration.digest), *recipe)
        return self._job.sharing.model(
            parts, lambda: quantizing.quantized(self._float, self._histograms, candidate)
        )

    def _described(self, folder: Path, twin: Path, context: Context | None = None) -> Artifact:
        inputs, outputs = map(_batches, normalise.tensors(self._fixed[0]), normalise.tensors(self._job.model))
        return Artifact(
            folder=folder,
            main=FILE,
            kind=KIND,
            runtime=RUNTIME,
            inputs=inputs,
            outputs=outputs,
            facts=_facts(context) if context else {},
            twin=twin,
            affordable=max(FEWEST, EMULATED // max(1, self._macs)),
        )

    def notes(self, candidate: Candidate) -> list[str]:
        """Return what was fixed, and where accuracy comes from."""
        del candidate
        return [*self._fixed[1], _MEASURED]


def placed_file(twin: Path) -> Path:
    """Return where the operators of a context binary are listed, beside its twin."""
    return twin.with_suffix(".placed.json")


def _facts(context: Context) -> dict[str, str]:
    return {
        "chip": context.stamp.chip,
        "htp-arch": str(context.stamp.arch),
        "vtcm-mib": str(context.stamp.vtcm_mib),
        "qnn-sdk": context.sdk,
    }


def _batches(fixed: tuple[TensorSpec, ...], source: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return tensors of fixed shapes, and any number of samples where the source takes it: each is run."""
    return tuple(
        msgspec.structs.replace(x, shape=(y.shape[0], *x.shape[1:])) if x.batched and y.batched else x
        for x, y in zip(fixed, source, strict=True)
    )
