"""Coral Edge TPU: int8 TensorFlow Lite files, compiled with `edgetpu_compiler` where it is installed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from compiler import calibration, toolchains
from compiler.artifacts import Artifact
from compiler.candidates import Candidate, Scheme
from compiler.datasets import spread
from compiler.errors import ModelRefusedError
from compiler.placement import summary
from compiler.placement.summary import Placement
from compiler.ports import Backend, Job, Runner, Workshop
from compiler.tensors import Arrays
from compiler.tflite import convert, edgetpu_compiler, facts, guard, quantize
from compiler.tflite import model as tflite
from compiler.tflite.convert import Converted
from compiler.tflite.running import LiteRt, Watched
from firmware_profiles.profile import Profile
from fleet.bundle import interface
from fleet.bundle.interface import Interface
from fleet.errors import BundleError, MissingExtraError

NAME: Final = "edgetpu"
FILE: Final = "model.tflite"
RUNTIME: Final = "tflite"
COMPILED: Final = "edgetpu_compiled"
CALIBRATION_SAMPLES: Final = 256
#: Operators that hold the weights: how many of the last ones may stay in float, with all that follows them.
HEAVY: Final = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"})
TAILS: Final = (1, 2, 4)
_INTERFACE_LIMIT: Final = 1 << 20


def backend() -> Backend:
    """Return the backend.

    Raises:
        MissingExtraError: its libraries are not installed.
    """
    for library in ("ai-edge-litert", "ai-edge-quantizer"):
        try:
            metadata.version(library)
        except metadata.PackageNotFoundError as error:
            raise MissingExtraError(f"target coral-edgetpu: {library}", tflite.EXTRA) from error
    return EdgeTpu()


class EdgeTpu:
    """The backend."""

    timed: Final = False
    toolchains: Final = (convert.TOOLCHAIN,)

    def versions(self) -> dict[str, str]:
        """Return the tools that make the artifact, with their versions."""
        found = {x: metadata.version(x) for x in ("ai-edge-litert", "ai-edge-quantizer")}
        found |= {
            name: version
            for name, version in toolchains.environment(convert.TOOLCHAIN).versions.items()
            if name == convert.TOOLCHAIN
        }
        program = edgetpu_compiler.find()
        if program:
            found["edgetpu-compiler"] = edgetpu_compiler.version(program)
        return found

    def open(self, job: Job) -> Workshop:
        """Prepare a model for compiling."""
        return TfliteWorkshop(job)

    def vet(self, artifact: Artifact) -> None:
        """Apply the guard to both model files, and see that the interface belongs to them."""
        ports = _interface(artifact)
        graph = guard.read(artifact.path)
        if (len(ports.inputs), len(ports.outputs)) != (len(graph.inputs), len(graph.outputs)):
            raise ModelRefusedError(f"{interface.PATH}: expected as many tensors as {artifact.main} has")
        if ports.accelerated:
            guard.read(artifact.folder / ports.accelerated, custom={edgetpu_compiler.OPERATOR})

    def requires(self, artifact: Artifact) -> dict[str, str]:
        """Return what the compiled file needs: the library that speaks with the Edge TPU."""
        return {"libedgetpu": ">=16"} if _interface(artifact).accelerated else {}

    def load(self, artifact: Artifact) -> Runner:
        """Load the file that any CPU can run: no Edge TPU is emulated."""
        return LiteRt(artifact.path, _interface(artifact))

    def load_reference(self, artifact: Artifact) -> Runner:
        """Load the same with the reference kernels, whose rounding a device's are nearest to."""
        return LiteRt(artifact.path, _interface(artifact), plain=True)

    def placement(self, artifact: Artifact, job: Job) -> Placement:
        """Return where Coral's rules say that the operators run."""
        return placed(artifact.path, job.profile, artifact.facts)


def placed(path: Path, profile: Profile, known: Mapping[str, str]) -> Placement:
    """Return where the rules say that a file's operators run, once `edgetpu_compiler` has compiled it."""
    graph = facts.facts(tflite.parse(path.read_bytes()))
    said = known.get("edgetpu_operators", "")
    note = (
        f"edgetpu_compiler mapped {said} operators to the Edge TPU"
        if said
        else "not compiled: all of it runs on the CPU until edgetpu_compiler has compiled it"
    )
    return summary.by_rules(profile, graph, note=note)


def _interface(artifact: Artifact) -> Interface:
    path = artifact.folder / interface.PATH
    try:
        if path.stat().st_size > _INTERFACE_LIMIT:
            raise ModelRefusedError(f"{interface.PATH}: expected at most {_INTERFACE_LIMIT} bytes; got more")
        return interface.decode(path.read_bytes())
    except (OSError, BundleError) as error:
        raise ModelRefusedError(f"{interface.PATH} beside {artifact.main}: {error}") from error


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
                backend=NAME,
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
                    backend=NAME,
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
        path.write_bytes(tflite.pack(tflite.unpack(data)))
        ports, known = self._converted.interface, {COMPILED: "false"}
        program = edgetpu_compiler.find()
        if program:
            made = edgetpu_compiler.compile_file(program, path, self._job.limits.wall_s)
            ports = Interface(inputs=ports.inputs, outputs=ports.outputs, accelerated=made.path.name)
            known = {COMPILED: "true"}
            if made.on_tpu is not None and made.on_cpu is not None:
                known["edgetpu_operators"] = f"{made.on_tpu} of {made.on_tpu + made.on_cpu}"
        (folder / interface.PATH).write_bytes(interface.encode(ports))
        return Artifact(
            folder=folder, main=FILE, kind=self._job.profile.artifact, runtime=RUNTIME, facts=known
        )

    def notes(self, candidate: Candidate) -> list[str]:
        """Return what a person should know: that nothing is compiled yet, or what stays on the CPU."""
        found = []
        if not edgetpu_compiler.find():
            found.append(
                "not compiled for the Edge TPU ({}=false), so it runs on the device's CPU: install "
                "edgetpu_compiler ({}) and run the same command again, which then runs `{}`".format(
                    COMPILED, edgetpu_compiler.GUIDE, edgetpu_compiler.command(FILE)
                )
            )
        if candidate.left_float:
            found.append("the last operators stay in float and run on the CPU")
        return found
