"""Models quantized with ONNX Runtime's tool and ranges of our own: QDQ, dynamic and weight-only."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from compiler.artifacts import Artifact
from compiler.candidates import FLOAT, Candidate, Scheme
from compiler.errors import CompileError, NothingQuantizedError, one_line
from compiler.models import copies, tidying
from compiler.ports import Job
from compiler.quantizing import activations, calibration, refining, weight_only

#: Operators whose cost is in their weights: quantizing these alone is the cautious choice.
HEAVY: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: Operators that ONNX Runtime's tool quantizes, but those that give probabilities: eight bits of them tie.
QUANTIZABLE: Final = tuple(sorted({*QDQRegistry, *QLinearOpsRegistry} - {"Softmax", "ArgMax"}))
#: What has a kernel worth its name for ranges found while it runs: that of convolutions is several times as
#: slow as float.
DYNAMIC: Final = ("MatMul", "Gather", "Attention", "EmbedLayerNormalization")
#: Operators that become one of these.
DENSE: Final = frozenset({"MatMul", "Gemm", "Attention"})
#: What candidates that do so end in.
CAUTIOUS: Final = "-heavy"
#: Operators with weights that no recipe here quantizes.
RECURRENT: Final = ("LSTM", "GRU", "RNN")
FILE: Final = "model.onnx"
RUNTIME: Final = "onnxruntime"
_TYPES: Final = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


class QdqWorkshop:
    """One model being quantized: calibrates once, and builds each candidate from the same histograms."""

    def __init__(self, job: Job) -> None:
        """Take the model; nothing is computed yet."""
        self._profile: Final = job.profile
        self._scratch: Final = job.scratch
        self._job: Final = job
        self._source: Final = job.source
        self._names: Final = tidying.names(job.model)
        self._histograms: dict[str, calibration.Histogram] | None = None

    @functools.cached_property
    def _model(self) -> onnx.ModelProto:
        """The model folded and fused, so that the quantizer sees what will run."""
        return activations.folded(self._source, self._scratch)

    def plan(self) -> Sequence[Candidate]:
        """Return static, dynamic, weight-only and float candidates."""
        if not self._profile.quantization.weights:
            return [FLOAT]
        types = {x.op_type for x in self._model.graph.node}
        static = [
            Candidate(
                name=f"static-{'channel' if per_channel else 'tensor'}-{method}",
                precision="int8",
                scheme=Scheme.STATIC,
                per_channel=per_channel,
                calibration=method,
            )
            for per_channel, method in (
                (True, "minmax"),
                (True, "percentile"),
                (True, "mse"),
                (False, "minmax"),
                (False, "percentile"),
            )
        ]
        if types & set(HEAVY) and (types - set(HEAVY)) & set(QUANTIZABLE):
            static += [_only(x, HEAVY, CAUTIOUS) for x in static[1:3]]
        dynamic = Candidate(name="dynamic", precision="int8", scheme=Scheme.DYNAMIC, per_channel=True)
        weights = Candidate(name="weight-only", precision="int8", scheme=Scheme.WEIGHT_ONLY, per_channel=True)
        return [*static, *([dynamic] if types & DENSE else []), weights, FLOAT]

    def refine(self, best: Candidate, distance: Callable[[Artifact], float]) -> Sequence[Candidate]:
        """Return variants of the best one whose most sensitive nodes, of any type, stay in float."""
        every = msgspec.structs.replace(best, name=best.name.removesuffix(CAUTIOUS), operators=())
        nodes = [x.name for x in self._model.graph.node if x.op_type in QUANTIZABLE]
        trial = self._scratch / "trial"
        trial.mkdir()
        return refining.variants(every, nodes, lambda x: distance(self.build(x, trial)))

    def build(self, candidate: Candidate, folder: Path) -> Artifact:
        """Write the candidate's artifact.

        Raises:
            CompileError: it cannot be built, or nothing in it is quantized.
        """
        out = folder / FILE
        try:
            model = self._built(candidate, out)
        except CompileError:
            raise
        except Exception as error:  # the quantizer raises anything; the search goes on without the candidate
            raise CompileError(f"{candidate.name}: {one_line(error)}") from error
        quantized = any(
            x.op_type == "DequantizeLinear" or x.op_type.endswith("Integer") for x in model.graph.node
        )
        if candidate.scheme is not Scheme.FLOAT and not quantized:
            raise NothingQuantizedError(f"{candidate.name}: nothing in the model can be quantized this way")
        tidying.slim(model)
        tidying.shorten(model, self._names)
        onnx.save(model, out)
        quantized_kind = self._profile.artifact if self._profile.runtime == RUNTIME else "onnx-qdq"
        kind = "onnx" if candidate.scheme is Scheme.FLOAT else quantized_kind
        return Artifact(folder=folder, main=FILE, kind=kind, runtime=RUNTIME)

    def _built(self, candidate: Candidate, out: Path) -> onnx.ModelProto:
        if candidate.scheme is Scheme.FLOAT:
            return onnx.load(self._source)
        if candidate.scheme is Scheme.WEIGHT_ONLY:
            return weight_only.quantize(copies.copy(self._model))
        if candidate.scheme is Scheme.DYNAMIC:
            quantize_dynamic(
                copies.copy(self._model),
                out,
                per_channel=candidate.per_channel,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(DYNAMIC),
            )
            return onnx.load(out)
        return self._static(candidate)

    def _static(self, candidate: Candidate) -> onnx.ModelProto:
        rules = self._profile.quantization
        read = calibration.METHODS[candidate.calibration]
        ranges = {
            name: tuple(np.float32(x) for x in read(histogram))
            for name, histogram in self._calibrated().items()
        }
        quantizer = QDQQuantizer(
            copies.copy(self._model),
            candidate.per_channel,
            False,  # reduce_range: weights keep their 8 bits
            _TYPES[rules.weights],
            _TYPES[rules.activations],
            TensorsData(CalibrationMethod.MinMax, ranges),
            [],
            list(candidate.left_float),
            list(candidate.operators or QUANTIZABLE),
            {"ActivationSymmetric": rules.symmetric, "WeightSymmetric": True, "QuantizeBias": rules.bias},
        )
        quantizer.quantize_model()
        model: onnx.ModelProto = quantizer.model.model
        return model

    def _calibrated(self) -> dict[str, calibration.Histogram]:
        if self._histograms is None:
            self._histograms = activations.histograms(self._model, self._job)
        return self._histograms

    def notes(self, candidate: Candidate) -> list[str]:
        """Return warnings about operators with weights that stay in float."""
        if candidate.scheme is Scheme.FLOAT:
            return []
        return unquantized(self._model)


def unquantized(model: onnx.ModelProto, stays: str = "float") -> list[str]:
    """Return warnings about operators with weights that no recipe quantizes."""
    counts = Counter(x.op_type for x in tidying.nodes(model.graph) if x.op_type in RECURRENT)
    return [f"{count} {kind} not quantized: it stays in {stays}" for kind, count in sorted(counts.items())]


def _only(candidate: Candidate, operators: tuple[str, ...], suffix: str) -> Candidate:
    return msgspec.structs.replace(candidate, name=candidate.name + suffix, operators=operators)
