"""The small model on the way to a Hexagon NPU, for tests of compiler and agent."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest

import small_models
from compiler import backends
from compiler.artifacts import Artifact
from compiler.candidates import Candidate
from compiler.data import datasets
from compiler.models import normalise
from compiler.ports import Backend, Job
from compiler.qnn import recipes
from compiler.qnn.workshop import HtpWorkshop
from compiler.toolchains import Environment
from firmware_profiles import registry


def backend() -> Backend:
    """Return the backend."""
    return backends.load("qnn")


def job(folder: Path, target: str, model: onnx.ModelProto | None = None) -> Job:
    """Return a job in a folder of its own, on the small model where no other is given."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    files = small_models.write(folder)
    normal, _ = normalise.normalise(model or onnx.load(files.model))
    onnx.save(normal, folder / "source.onnx")
    return Job(
        model=normal,
        source=folder / "source.onnx",
        calibration=datasets.load(files.calibration, normalise.tensors(normal)[0]),
        profile=registry.load(target),
        scratch=scratch,
    )


def candidate(target: str, name: str) -> Candidate:
    """Return one of the target's candidates by its name."""
    return next(x for x in recipes.plan(registry.load(target).precisions) if x.name == name)


def built(folder: Path, target: str, name: str) -> tuple[Job, Artifact]:
    """Build the small model for a target, and return it with its job."""
    given = job(folder, target)
    out = folder / "out"
    out.mkdir()
    return given, HtpWorkshop(given).build(candidate(target, name), out)


def packages(environment: Environment) -> Path:
    """Return the folder of a tool-chain's packages, where this Python can import them; else skip the test."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = environment.folder / "lib" / version / "site-packages"
    if not found.is_dir():
        pytest.skip(f"needs the tool-chain {environment.name} installed for {version}")
    return found
