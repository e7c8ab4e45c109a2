"""One model on its way to a Ryzen AI NPU: XINT8, A8W8 and A16W8 with ONNX Runtime's quantizer, bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry

from compiler.artifacts import Artifact
from compiler.candidates import Candidate, Scheme
from compiler.errors import CompileError, NothingQuantizedError, one_line
from compiler.models import copies, tidying
from compiler.models.graphs import DEQUANTIZE, WEIGHTED
from compiler.ports import Job
from compiler.quantizing import activations, refining, symmetric
from compiler.quantizing.calibration import Histogram, bounds
from compiler.quantizing.qdq import unquantized
from compiler.vitisai import fusion, rules

NAME: Final = "vitisai"
FILE: Final = "model.onnx"
XINT8: Final = "xint8"
#: Kinds of artifacts.
QDQ: Final = "onnx-qdq"
FLOAT: Final = "onnx"
_TYPES: Final = {"xint8": QuantType.QInt8, "int8": QuantType.QInt8, "int16": QuantType.QInt16}
#: The execution provider makes bfloat16 of a float32 file (Ryzen AI documentation, FP32 to BF16 conversion).
BFLOAT16: Final = Candidate(name="bfloat16", precision="bfloat16", scheme=Scheme.FLOAT, backend=NAME)


def _static(name: str, precision: str, method: str) -> Candidate:
    return Candidate(name=name, precision=precision, scheme=Scheme.STATIC, backend=NAME, calibration=method)


class VitisAiWorkshop:
    """Calibrates once, and builds each candidate from the same histograms."""

    def __init__(self, job: Job) -> None:
        """Take the model; nothing is computed yet."""
        self._job: Final = job
        self._names: Final = tidying.names(job.model)
        self._folded: Final = activations.Folded(job)

    def plan(self) -> Sequence[Candidate]:
        """Return AMD's formats in the order in which AMD advises to try them."""
        return [
            _static("xint8", XINT8, "power-of-two"),
            *(_static(f"a8w8-{x}", "int8", x) for x in ("minmax", "percentile", "mse")),
            _static("a16w8-minmax", "int16", "minmax"),
            BFLOAT16,
        ]

    def refine(self, best: Candidate, distance: Callable[[Artifact], float]) -> Sequence[Candidate]:
        """Return variants of the best one whose most sensitive operators stay in float."""
        nodes = [x.name for x in self._folded.model.graph.node if x.op_type in QDQRegistry]
        trial = self._job.scratch / "trial"
        trial.mkdir(exist_ok=True)
        return refining.variants(best, nodes, lambda x: distance(self.build(x, trial)))

    def build(self, candidate: Candidate, folder: Path) -> Artifact:
        """Write the candidate's model.

        Raises:
            CompileError: it cannot be built, or breaks a rule of AMD's.
        """
        if candidate.scheme is Scheme.FLOAT:
            model = onnx.load(self._job.source)
        else:
            model = self._quantized(candidate)
        tidying.slim(model)
        tidying.shorten(model, self._names)
        if candidate.scheme is not Scheme.FLOAT:
            if not any(x.op_type == DEQUANTIZE for x in model.graph.node):
                raise NothingQuantizedError(
                    f"{candidate.name}: nothing in the model can be quantized this way"
                )
            broken = rules.check(model, candidate.precision)
            if broken:
                raise CompileError(f"{candidate.name}: {broken[0]}")
        onnx.save(model, folder / FILE)
        kind = FLOAT if candidate.scheme is Scheme.FLOAT else QDQ
        return Artifact(folder=folder, main=FILE, kind=kind, runtime=self._job.profile.runtime)

    def _quantized(self, candidate: Candidate) -> onnx.ModelProto:
        read = symmetric.METHODS[candidate.calibration]
        ranges = {x: read(histogram) for x, histogram in self._folded.histograms.items()}
        model = self._folded.model
        overrides = {"TensorQuantOverrides": _weights(model)} if candidate.precision == XINT8 else {}
        quantizer = QDQQuantizer(
            copies.copy(model),
            False,  # per_channel: one scale per tensor
            False,  # reduce_range: weights keep their 8 bits
            QuantType.QInt8,
            _TYPES[candidate.precision],
            TensorsData(
                CalibrationMethod.MinMax, {x: (np.float32(-y), np.float32(y)) for x, y in ranges.items()}
            ),
            [],
            list(candidate.left_float),
            list(QDQRegistry),
            {
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": True,
                **overrides,
            },
        )
        try:
            quantizer.quantize_model()
        except Exception as error:  # the quantizer raises anything; the search goes on without the candidate
            raise CompileError(f"{candidate.name}: {one_line(error)}") from error
        quantized: onnx.ModelProto = quantizer.model.model
        return fusion.fuse(quantized)

    def notes(self, candidate: Candidate) -> list[str]:
        """Return warnings about what stays in float, and what was run where."""
        found = [] if candidate.scheme is Scheme.FLOAT else unquantized(self._folded.model)
        return [*found, "verified in ONNX Runtime on a CPU; the NPU was never run"]


def _weights(model: onnx.ModelProto) -> dict[str, list[dict[str, object]]]:
    """Return a power-of-two scale for each constant that the quantizer may take for a weight."""
    constants = {x.name: x for x in model.graph.initializer if x.data_type == onnx.TensorProto.FLOAT}
    biases = {x for node in model.graph.node if node.op_type in WEIGHTED for x in node.input[2:]}
    read: Iterable[str] = dict.fromkeys(x for node in model.graph.node for x in node.input)
    found: dict[str, list[dict[str, object]]] = {}
    for name in read:
        if name in constants and name not in biases:
            values = numpy_helper.to_array(constants[name])
            scale = symmetric.power_of_two(_histogram(values)) / symmetric.LARGEST
            found[name] = [{"scale": np.float32(scale), "zero_point": np.int8(0)}]
    return found


def _histogram(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Histogram:
    low, high = bounds(values) or (0.0, 0.0)
    histogram = Histogram(min(low, 0.0), max(high, 0.0))
    histogram.add(values)
    return histogram
