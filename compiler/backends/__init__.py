"""Tool-chains: one file each, found by the name that a profile gives; a new one is a new file.

A backend's module has a function `backend() -> Backend`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec
import onnx

from compiler.candidates import Candidate
from compiler.datasets import Dataset
from compiler.errors import NoBackendError
from compiler.tensors import Arrays
from firmware_profiles import registry
from firmware_profiles.profile import Profile


class Runner(Protocol):
    """A loaded artifact."""

    def run(self, feed: Arrays) -> Arrays:
        """Return the outputs for one sample."""
        ...


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where the operators of an artifact run.

    Attributes:
        device: what runs them.
        operators: how many there are after the runtime's own optimizations.
        by_precision: how many compute in which number format.
        float_operators: types of those that compute in float, with their counts.
        note: what to know about it.
    """

    device: str
    operators: int
    by_precision: dict[str, int]
    float_operators: dict[str, int]
    note: str = ""


class Workshop(Protocol):
    """A model being compiled: it keeps what candidates share, such as calibrated ranges."""

    def plan(self) -> Sequence[Candidate]:
        """Return the candidates to try first, float among them."""
        ...

    def refine(self, best: Candidate, distance: Callable[[Path], float]) -> Sequence[Candidate]:
        """Return candidates to try where none of the first keeps the budget.

        Args:
            best: the most faithful of those that do not.
            distance: how far an artifact's answers are from float's, on calibration data.
        """
        ...

    def build(self, candidate: Candidate, out: Path) -> None:
        """Write the candidate's artifact."""
        ...

    def notes(self, candidate: Candidate) -> list[str]:
        """Return warnings about what a candidate leaves as it was."""
        ...


class Backend(Protocol):
    """A tool-chain."""

    def versions(self) -> dict[str, str]:
        """Return the tools that make the artifact, with their versions."""
        ...

    def open(self, model: onnx.ModelProto, calibration: Dataset, profile: Profile, scratch: Path) -> Workshop:
        """Prepare a model for compiling; scratch is a folder for intermediate files."""
        ...

    def vet(self, artifact: Path) -> None:
        """Check an artifact that somebody else may have made, before it is loaded.

        Raises:
            ModelRefusedError: malformed or hostile.
        """
        ...

    def requires(self, artifact: Path) -> dict[str, str]:
        """Return what the artifact needs of the device's software, beyond the profile: part to versions."""
        ...

    def load(self, artifact: Path) -> Runner:
        """Load an artifact in the runtime that the device will use."""
        ...

    def load_reference(self, artifact: Path) -> Runner:
        """Load an artifact so that it computes with plain kernels, to see how far kernels differ."""
        ...

    def placement(self, artifact: Path, scratch: Path) -> Placement:
        """Return where the operators of an artifact run."""
        ...


def names() -> frozenset[str]:
    """Return the names of the backends that there are."""
    return frozenset(x.name for x in pkgutil.iter_modules(__path__) if not x.name.startswith("_"))


def require(profile: Profile) -> None:
    """Check that something compiles for the target, importing nothing.

    Raises:
        NoBackendError: nothing does.
    """
    if profile.backend not in names():
        able = [x for x in registry.names() if registry.load(x).backend in names()]
        raise NoBackendError(profile.name, profile.backend, ", ".join(able))


def load(profile: Profile) -> Backend:
    """Return the target's backend.

    Raises:
        NoBackendError: there is none.
    """
    require(profile)
    module: Any = importlib.import_module(f"{__name__}.{profile.backend}")  # a module has no type
    return cast("Backend", module.backend())
