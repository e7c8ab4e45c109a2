"""What a tool-chain must offer, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import onnx

from compiler.artifacts import Artifact
from compiler.candidates import Candidate
from compiler.data.datasets import Dataset
from compiler.limits import COMPILE_LIMITS, Limits
from compiler.placement.summary import Placement
from compiler.sharing import Sharing
from compiler.tensors import Arrays
from firmware_profiles.profile import Profile


class Runner(Protocol):
    """A loaded artifact."""

    def run(self, feed: Arrays) -> Arrays:
        """Return the outputs for one sample."""
        ...


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A model to be compiled.

    Attributes:
        model: in the normal form (`compiler.models.normalise`).
        source: the same as a file: the float reference.
        calibration: samples that ranges are found on.
        profile: of the target.
        scratch: a folder for intermediate files, this backend's alone.
        limits: for processes that the backend starts.
        sharing: keeps what other targets need too.
    """

    model: onnx.ModelProto
    source: Path
    calibration: Dataset
    profile: Profile
    scratch: Path
    limits: Limits = COMPILE_LIMITS
    sharing: Sharing = Sharing()


class Workshop(Protocol):
    """A model being compiled: it keeps what candidates share, such as calibrated ranges."""

    def plan(self) -> Sequence[Candidate]:
        """Return the candidates to try first."""
        ...

    def refine(self, best: Candidate, distance: Callable[[Artifact], float]) -> Sequence[Candidate]:
        """Return candidates to try where none of the first keeps the budget.

        Args:
            best: the most faithful of those that do not.
            distance: how far an artifact's answers are from float's, on calibration data.
        """
        ...

    def build(self, candidate: Candidate, folder: Path) -> Artifact:
        """Make the candidate's artifact in an empty folder.

        Raises:
            CompileError: it cannot be made; the search goes on without it.
        """
        ...

    def notes(self, candidate: Candidate) -> list[str]:
        """Return warnings about what a candidate leaves as it was."""
        ...


class Backend(Protocol):
    """A tool-chain.

    Attributes:
        timed: latency measured on this machine says something about the device.
        runs_in: what `load` runs artifacts in, here: the device's own runtime, or what stands in for it.
        toolchains: environments that it needs (`compiler.toolchains`).
    """

    @property
    def timed(self) -> bool:
        """Whether latency measured on this machine says something about the device."""
        ...

    @property
    def runs_in(self) -> str:
        """What `load` runs artifacts in, here: the device's own runtime, or what stands in for it."""
        ...

    @property
    def toolchains(self) -> tuple[str, ...]:
        """Environments that it needs (`compiler.toolchains`)."""
        ...

    def versions(self) -> dict[str, str]:
        """Return the tools that make the artifact, with their versions."""
        ...

    def open(self, job: Job) -> Workshop:
        """Prepare a model for compiling."""
        ...

    def vet(self, artifact: Artifact) -> None:
        """Check an artifact that somebody else may have made, before it is loaded.

        Raises:
            ModelRefusedError: malformed or hostile.
        """
        ...

    def requires(self, artifact: Artifact) -> dict[str, str]:
        """Return what the artifact needs of the device's software, beyond the profile: part to versions."""
        ...

    def load(self, artifact: Artifact) -> Runner:
        """Load an artifact in the runtime that the device will use, or the nearest that runs here."""
        ...

    def load_reference(self, artifact: Artifact) -> Runner:
        """Load an artifact so that it computes with plain kernels, to see how far kernels differ."""
        ...

    def placement(self, artifact: Artifact, job: Job) -> Placement:
        """Return where the operators of an artifact run."""
        ...
