"""Coral Edge TPU: int8 TensorFlow Lite files, compiled with `edgetpu_compiler` where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

import onnx
import onnxruntime

from compiler import toolchains
from compiler.artifacts import Artifact
from compiler.errors import ModelRefusedError
from compiler.placement import summary
from compiler.placement.summary import Placement
from compiler.ports import Backend, Job, Runner, Workshop
from compiler.tflite import convert, edgetpu_compiler, facts, guard
from compiler.tflite import model as tflite
from compiler.tflite.running import LiteRt
from compiler.tflite.workshop import MAPPED, TfliteWorkshop
from firmware_profiles.profile import Profile
from fleet.bundle import interface
from fleet.bundle.interface import Interface
from fleet.errors import BundleError, MissingExtraError

_INTERFACE_LIMIT: Final = 1 << 20


def backend() -> Backend:
    """Return the backend.

    Raises:
        MissingExtraError: its libraries are not installed.
    """
    try:
        _libraries()
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError(f"target coral-edgetpu: {error.name}", tflite.EXTRA) from error
    return EdgeTpu()


def _libraries() -> dict[str, str]:
    return {x: metadata.version(x) for x in ("ai-edge-litert", "ai-edge-quantizer")}


class EdgeTpu:
    """The backend."""

    timed: Final = False
    runs_in: Final = "LiteRT on this CPU, in place of the Edge TPU"
    toolchains: Final = (convert.TOOLCHAIN,)

    def versions(self) -> dict[str, str]:
        """Return the tools that make the artifact, with their versions."""
        ours = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
        found = (
            ours
            | _libraries()
            | {
                name: version
                for name, version in toolchains.environment(convert.TOOLCHAIN).versions.items()
                if name == convert.TOOLCHAIN
            }
        )
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
        """Return nothing: the runtime itself tells whether the device has an Edge TPU and its library."""
        del artifact
        return {}

    def load(self, artifact: Artifact) -> Runner:
        """Load the file that any CPU can run, with a device's kernels: no Edge TPU is emulated."""
        return LiteRt(artifact.path, _interface(artifact))

    def load_reference(self, artifact: Artifact) -> Runner:
        """Load the same with XNNPACK's kernels, which LiteRT takes on larger devices."""
        return LiteRt(artifact.path, _interface(artifact), fast=True)

    def placement(self, artifact: Artifact, job: Job) -> Placement:
        """Return where Coral's rules say that the operators run."""
        return placed(artifact.path, job.profile, artifact.facts)


def placed(path: Path, profile: Profile, known: Mapping[str, str]) -> Placement:
    """Return where the rules say that a file's operators run, once `edgetpu_compiler` has compiled it."""
    graph = facts.facts(tflite.parse(path.read_bytes()))
    said = known.get(MAPPED, "")
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
