"""One model on its way to Core ML: integers from a QDQ model, compressed weights, float16 and float32."""

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
from compiler.mil import convert, package, prepare, program, registry
from compiler.mil.package import Content
from compiler.mil.weights import Int8, Palette
from compiler.models import copies, normalise
from compiler.ports import Job
from compiler.quantizing.qdq import HEAVY, QdqWorkshop, unquantized
from fleet.bundle.description import TensorSpec
from fleet.bundle.features import Port

NAME: Final = "coreml"
FILE: Final = "model.mlpackage"
_INT8: Final = "int8"
FLOAT16: Final = Candidate(name="float16", precision="float16", scheme=Scheme.HALF, backend=NAME)
FLOAT32: Final = Candidate(name="float32", precision="float32", scheme=Scheme.FLOAT, backend=NAME)
#: Candidates whose weights are compressed, with the bits of a palette's indices; 0 for int8 with scales.
COMPRESSED: Final = {
    Candidate(
        name=name, precision=precision, scheme=Scheme.WEIGHT_ONLY, backend=NAME, per_channel=not bits
    ): bits
    for name, precision, bits in (
        ("int8-weights", _INT8, 0),
        ("palette-6", "palette6", 6),
        ("palette-4", "palette4", 4),
    )
}
_MEASURED: Final = (
    "measured in Kedge's evaluation of the saved package; Core ML, which runs on Apple's systems only, has "
    "not run it, and where it will run is estimated"
)
_NOT_NEURAL: Final = "float32 runs on CPU and GPU only: the Neural Engine computes in float16"


class MilWorkshop:
    """The workshop."""

    def __init__(self, job: Job) -> None:
        """Fix the shapes, and compute beforehand what can be.

        Raises:
            ModelRefusedError: lists all operators that Core ML's front-end does not have.
        """
        self._job: Final = job
        feed = job.calibration.feed(0)
        shapes = {name: x.shape for name, x in feed.items()}
        self._model: Final = prepare.fold(copies.fixed(job.model, shapes), job.scratch)
        registry.check(self._model)
        prepare.turn_weights(self._model)
        self._source: Final = job.scratch / "fixed.onnx"
        onnx.save(self._model, self._source)

    @functools.cached_property
    def _quantizer(self) -> QdqWorkshop:
        scratch = self._job.scratch / "qdq"
        scratch.mkdir()
        return QdqWorkshop(
            msgspec.structs.replace(self._job, model=self._model, source=self._source, scratch=scratch)
        )

    def plan(self) -> Sequence[Candidate]:
        """Return what the chip profits from: integers where it multiplies them, else compressed weights."""
        static = []
        if self._job.profile.quantization.activations:
            for method in ("minmax", "percentile", "mse"):
                whole = Candidate(
                    name=f"w8a8-{method}",
                    precision=_INT8,
                    scheme=Scheme.STATIC,
                    backend=NAME,
                    per_channel=True,
                    calibration=method,
                )
                static += [whole, msgspec.structs.replace(whole, name=f"{whole.name}-heavy", operators=HEAVY)]
        return [*static, *COMPRESSED, FLOAT16, FLOAT32]

    def refine(self, best: Candidate, distance: Callable[[Artifact], float]) -> Sequence[Candidate]:
        """Return variants of the best one whose most sensitive nodes stay in float16."""

        def asked(artifact: Artifact) -> float:
            return distance(msgspec.structs.replace(artifact, twin=artifact.path))

        return [msgspec.structs.replace(x, backend=NAME) for x in self._quantizer.refine(best, asked)]

    @functools.cached_property
    def _half(self) -> Content:
        return convert.convert(self._model)

    def build(self, candidate: Candidate, folder: Path) -> Artifact:
        """Write the candidate's package.

        Raises:
            CompileError: it cannot be built, or integers make it no smaller than float16.
        """
        content = self._content(candidate)
        if candidate.scheme is Scheme.STATIC and content.size >= self._half.size:
            raise CompileError(
                f"{candidate.name}: expected fewer than float16's {self._half.size} bytes; got {content.size}"
            )
        package.write(content, folder / FILE)
        ports = program.read(folder / FILE).ports
        declared = normalise.tensors(self._job.model)
        return Artifact(
            folder=folder,
            main=FILE,
            kind="mlpackage",
            runtime=NAME,
            inputs=_specs(ports.inputs, declared[0]),
            outputs=_specs(ports.outputs, declared[1]),
        )

    def _content(self, candidate: Candidate) -> Content:
        if candidate.scheme is Scheme.HALF:
            return self._half
        if candidate.scheme is Scheme.FLOAT:
            return convert.convert(self._model, half=False)
        if candidate.scheme is Scheme.STATIC:
            return convert.convert(self._quantized(candidate))
        bits = COMPRESSED[candidate]
        weights = Palette(bits) if bits else Int8()
        content = convert.convert(self._model, weights=weights)
        if not weights.stored:
            raise NothingQuantizedError(f"{candidate.name}: no weight is large enough to be compressed")
        return content

    def _quantized(self, candidate: Candidate) -> onnx.ModelProto:
        folder = self._job.scratch / f"{candidate.name}.qdq"
        folder.mkdir(exist_ok=True)
        return onnx.load(self._quantizer.build(candidate, folder).path)

    def notes(self, candidate: Candidate) -> list[str]:
        """Return what stays as it was, and where the numbers come from."""
        found = [_MEASURED]
        if candidate.scheme is Scheme.FLOAT:
            found.append(_NOT_NEURAL)
        if candidate.scheme in {Scheme.STATIC, Scheme.WEIGHT_ONLY}:
            found += unquantized(self._model, "float16")
        return found


def _specs(ports: Sequence[Port], declared: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return tensors of fixed shapes, and any number of samples where the source takes it: each is run."""
    found = []
    for port, source in zip(ports, declared, strict=True):
        shape = (source.shape[0], *port.shape[1:]) if source.batched else port.shape
        found.append(msgspec.structs.replace(source, shape=shape))
    return tuple(found)
