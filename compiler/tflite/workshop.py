"""One model on its way to int8 TensorFlow Lite."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from compiler.artifacts import Artifact
from compiler.candidates import Candidate, Scheme
from compiler.data.datasets import spread
from compiler.ports import Job
from compiler.quantizing import calibration
from compiler.tensors import Arrays
from compiler.tflite import convert, edgetpu_compiler, quantize
from compiler.tflite import model as tflite
from compiler.tflite.convert import Converted
from compiler.tflite.running import Watched
from fleet.bundle import interface
from fleet.bundle.description import TensorSpec
from fleet.bundle.interface import Interface

BACKEND: Final = "edgetpu"
FILE: Final = "model.tflite"
RUNTIME: Final = "tflite"
#: Facts about an artifact: whether it is compiled, and how many operators the program mapped.
COMPILED: Final = "edgetpu_compiled"
MAPPED: Final = "edgetpu_operators"
CALIBRATION_SAMPLES: Final = 256
#: Operators that hold the weights: how many of the last ones may stay in float, with all that follows them.
HEAVY: Final = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"}
)
TAILS: Final = (1, 2, 4)


class TfliteWorkshop:
    """One model being quantized: converted and calibrated once, then one rewriting for each candidate."""

    def __init__(self, job: Job) -> None:
        """Take the model; nothing is computed yet."""
        self._job: Final = job

    @functools.cached_property
    def _converted(self) -> Converted:
        return convert.convert(self._job)

    @functools.cached_property
    def _histograms(self) -> dict[str, calibration.Histogram]:
        watched = Watched(self._converted.path, self._converted.interface)
        data = self._job.calibration
        rows = spread(data, CALIBRATION_SAMPLES).tolist()

        def samples() -> Iterable[Arrays]:
            for row in rows:
                yield watched.run(data.feed(row))

        return calibration.collect(samples)

    def plan(self) -> Sequence[Candidate]:
        """Return int8 candidates that differ in how ranges are found: the Edge TPU computes in nothing else.

        Raises:
            CompileError: the model cannot be converted.
        """
        _ = self._converted
        return [
            Candidate(
                name=f"int8-{method}",
                precision="int8",
                scheme=Scheme.STATIC,
                backend=BACKEND,
                per_channel=True,
                calibration=method,
            )
            for method in calibration.METHODS
        ]

    def refine(self, best: Candidate, _distance: Callable[[Artifact], float]) -> Sequence[Candidate]:
        """Return variants of the best one whose end stays in float, on the CPU.

        Only an end: the Edge TPU runs a prefix, so one float operator sends all after it to the CPU anyway.
        """
        graph = self._converted.graph
        heavy = [i for i, x in enumerate(graph.operators) if x.kind in HEAVY]
        found = []
        for count in (x for x in TAILS if x < len(heavy)):
            rest = graph.operators[heavy[-count] :]
            tail = tuple(graph.tensors[i].name for x in rest for i in x.outputs)
            found.append(
                Candidate(
                    name=f"{best.name}-tail{count}",
                    precision=best.precision,
                    scheme=best.scheme,
                    backend=BACKEND,
                    per_channel=best.per_channel,
                    calibration=best.calibration,
                    left_float=tail,
                )
            )
        return found

    def build(self, candidate: Candidate, folder: Path) -> Artifact:
        """Make the candidate's artifact in an empty folder.

        Raises:
            CompileError: it cannot be made.
        """
        read = calibration.METHODS[candidate.calibration]
        ranges = {name: read(x) for name, x in self._histograms.items()}
        data = quantize.quantize(self._converted.path.read_bytes(), ranges, candidate.left_float)
        path = folder / FILE
        path.write_bytes(tflite.inlined(data))
        ports, known = self._converted.interface, {COMPILED: "false"}
        program = edgetpu_compiler.find()
        if program:
            made = edgetpu_compiler.compile_file(program, path, self._job.limits.wall_s)
            ports = Interface(inputs=ports.inputs, outputs=ports.outputs, accelerated=made.path.name)
            known = {COMPILED: "true"}
            if made.on_tpu is not None and made.on_cpu is not None:
                known[MAPPED] = f"{made.on_tpu} of {made.on_tpu + made.on_cpu}"
        (folder / interface.PATH).write_bytes(interface.encode(ports))
        return Artifact(
            folder=folder,
            main=FILE,
            kind=self._job.profile.artifact,
            runtime=RUNTIME,
            inputs=self._inputs,
            facts=known,
        )

    @functools.cached_property
    def _inputs(self) -> tuple[TensorSpec, ...]:
        """The source model's inputs, every dimension fixed but the one that counts samples.

        Whoever runs the file answers several samples one after the other.
        """
        shapes = {name: x.shape for name, x in self._job.calibration.feed(0).items()}
        return tuple(
            msgspec.structs.replace(
                x, shape=(*x.shape[:1], *shapes[x.name][1:]) if x.batched else shapes[x.name]
            )
            for x in self._job.calibration.tensors
        )

    def notes(self, candidate: Candidate) -> list[str]:
        """Return what a person should know: that nothing is compiled yet, or what stays on the CPU."""
        found = [
            f"input {now.name!r}: fixed to {list(now.shape)}, the shape of the calibration data"
            for before, now in zip(self._job.calibration.tensors, self._inputs, strict=True)
            if before.shape != now.shape
        ]
        if not edgetpu_compiler.find():
            found.append(
                f"not compiled for the Edge TPU ({COMPILED}=false), so it runs on the device's CPU: install "
                f"{edgetpu_compiler.PROGRAM} ({edgetpu_compiler.GUIDE}) and run the same command again, "
                f"which then runs `{edgetpu_compiler.command(FILE)}`"
            )
        if candidate.left_float:
            found.append("the last operators stay in float and run on the CPU")
        return found
