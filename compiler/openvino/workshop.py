"""One model being compiled to OpenVINO IR: converted once, quantized for each candidate."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from compiler.artifacts import Artifact
from compiler.candidates import Candidate, Scheme
from compiler.errors import CompileError, NothingQuantizedError
from compiler.openvino import half, library, quantize, saving
from compiler.openvino.library import Model
from compiler.ports import Job
from compiler.quantizing import refining

RUNTIME: Final = "openvino"
#: Operators with weights that NNCF leaves as they are.
RECURRENT: Final = ("LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell", "RNNCell")
#: Operators that say that a graph is a transformer's, or like one.
_ATTENTION: Final = frozenset(
    {"LayerNormalization", "Attention", "MultiHeadAttention", "SkipLayerNormalization"}
)
_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})
#: So many dense layers are more than a classifier's head.
_MANY: Final = 3

FLOAT: Final = Candidate(name="openvino-float", precision="float32", scheme=Scheme.FLOAT)
HALF: Final = Candidate(name="openvino-float16", precision="float16", scheme=Scheme.HALF)
WEIGHT_ONLY: Final = Candidate(
    name="openvino-weight-only", precision="int8", scheme=Scheme.WEIGHT_ONLY, per_channel=True
)


def _static(recipe: str, calibration: str) -> Candidate:
    return Candidate(
        name=f"openvino-{recipe}-{calibration}",
        precision="int8",
        scheme=Scheme.STATIC,
        recipe=recipe,
        per_channel=True,
        calibration=calibration,
    )


PERCENTILE: Final = _static("mixed", "percentile")


class OpenVinoWorkshop:
    """Makes IR candidates for a CPU or an NPU."""

    def __init__(self, job: Job, backend: str, device: str = "") -> None:
        """Take the model; nothing is computed yet.

        Args:
            job: the model and its data.
            backend: the name that candidates carry.
            device: "NPU", or "" for the CPU.
        """
        self._job: Final = job
        self._backend: Final = backend
        self._device: Final = device
        self._feed: Final = job.calibration.feed(0)

    @functools.cached_property
    def _model(self) -> Model:
        """The float model; with static shapes where the device needs them."""
        shapes = {name: x.shape for name, x in self._feed.items()} if self._device else None
        names = [x.name for x in self._job.model.graph.output]
        model = library.convert(self._job.source, names, shapes)
        if self._device and model.is_dynamic():
            wide = [x.get_any_name() for x in model.outputs if x.get_partial_shape().is_dynamic]
            raise CompileError(
                f"the {self._device} needs static shapes; got a shape that depends on values"
                + (f", as that of {', '.join(wide)}" if wide else "")
            )
        if self._device:
            half.check(model, self._job.calibration)  # what is not int8 there is float16
        return model

    def plan(self) -> Sequence[Candidate]:
        """Return int8 candidates of several recipes, weight-only, half and float ones."""
        return [msgspec.structs.replace(x, backend=self._backend) for x in self._planned()]

    def _planned(self) -> list[Candidate]:
        try:
            self._model  # noqa: B018 - to see whether it can be converted at all
        except CompileError:
            return [HALF] if self._device else [FLOAT]  # it fails, and says why
        static = [_static("mixed", "minmax")]
        if self._device:
            static += [PERCENTILE, _static("symmetric", "minmax")]
        if self._like_transformer():
            static.append(_static("transformer", "minmax"))
        return [*static, HALF] if self._device else [*static, WEIGHT_ONLY, HALF, FLOAT]

    def refine(self, best: Candidate, distance: Callable[[Artifact], float]) -> Sequence[Candidate]:
        """Return variants of the best one whose most sensitive nodes stay in float.

        On a CPU, where other tool-chains have candidates too, percentiles come only now: NNCF takes as long
        for them as for all the rest.
        """
        quantized = quantize.quantize(self._model, best, self._job.calibration, self._device)
        nodes = quantize.quantized_nodes(quantized)
        trial = self._job.scratch / "trial"
        trial.mkdir(exist_ok=True)

        def alone(kept: tuple[str, ...]) -> float:
            model = quantize.bypassed(quantized, frozenset(nodes) - frozenset(kept))
            return -distance(self._saved(model, best, trial))

        later = [] if self._device else [msgspec.structs.replace(PERCENTILE, backend=self._backend)]
        return [*later, *(refining.left(best, x) for x in refining.choices(nodes, alone))]

    def build(self, candidate: Candidate, folder: Path) -> Artifact:
        """Write the candidate's artifact.

        Raises:
            CompileError: it cannot be built, or nothing in it is quantized.
        """
        model = self._model
        if candidate.scheme is Scheme.STATIC:
            model = quantize.quantize(model, candidate, self._job.calibration, self._device)
            if not quantize.quantized_nodes(model):
                raise NothingQuantizedError(f"{candidate.name}: nothing can be quantized this way")
        if candidate.scheme is Scheme.WEIGHT_ONLY:
            model = quantize.compress(model, candidate)
        return self._saved(model, candidate, folder)

    def _saved(self, model: Model, candidate: Candidate, folder: Path) -> Artifact:
        short = candidate.scheme is Scheme.HALF
        return saving.save(model, folder, runtime=RUNTIME, device=self._device, half=short)

    def notes(self, candidate: Candidate) -> list[str]:
        """Return warnings about operators with weights that stay in float, and what was not checked."""
        found = []
        if candidate.scheme in {Scheme.STATIC, Scheme.WEIGHT_ONLY}:
            counts = Counter(x.get_type_name() for x in self._model.get_ordered_ops())
            found += [f"{counts[x]} {x} not quantized: it stays in float" for x in RECURRENT if counts[x]]
        if self._device:
            found.append(
                f"checked in OpenVINO {library.version()} on this CPU, not on the {self._device}: "
                "its compiler and its arithmetic are not on this machine"
            )
        return found

    def _like_transformer(self) -> bool:
        """Return whether the graph looks like one of attention and dense layers."""
        nodes = self._job.model.graph.node
        weights = {x.name for x in self._job.model.graph.initializer}
        products = [x for x in nodes if x.op_type in _PRODUCTS]
        computed = any(weights.isdisjoint(x.input) for x in products if x.op_type == "MatMul")
        return computed or len(products) >= _MANY or any(x.op_type in _ATTENTION for x in nodes)
