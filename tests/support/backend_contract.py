"""One backend on the small model, for some targets; prints what it gave as one line of JSON.

Arguments: the backend, a folder to work in, targets.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import onnx

import small_models
from compiler import backends
from compiler.artifacts import Artifact
from compiler.candidates import Candidate
from compiler.data import datasets
from compiler.data.datasets import Dataset, spread
from compiler.measuring.evaluate import answering, compare, outputs
from compiler.models import normalise
from compiler.onnx_session import Session
from compiler.ports import Backend, Job
from firmware_profiles import registry
from fleet.errors import UserError

SAMPLES = 40


def digest(artifact: Artifact) -> str:
    """Return a digest of all of an artifact's files."""
    found = hashlib.sha256()
    for name, path in artifact.files().items():
        found.update(name.encode() + path.read_bytes())
    return found.hexdigest()


def prepared(folder: Path, target: str) -> tuple[Job, Dataset]:
    """Return the small model as a job, and samples to compare on."""
    folder.mkdir()
    files = small_models.write(folder)
    model, _ = normalise.normalise(onnx.load(files.model))
    inputs, _ = normalise.tensors(model)
    source, scratch = folder / "source.onnx", folder / "scratch"
    onnx.save(model, source)
    scratch.mkdir()
    job = Job(
        model=model,
        source=source,
        calibration=datasets.load(files.calibration, inputs),
        profile=registry.load(target),
        scratch=scratch,
    )
    evaluation = datasets.load(files.evaluation, inputs)
    return job, evaluation.take(spread(evaluation, SAMPLES))


def tried(backend: Backend, job: Job, candidate: Candidate, data: Dataset, folder: Path) -> dict[str, Any]:
    """Build a candidate twice, in workshops of their own; return what came of it."""
    made = []
    for name in ("once", "twice"):
        (folder / name / "scratch").mkdir(parents=True)
        (folder / name / "artifact").mkdir()
        alone = Job(
            model=job.model,
            source=job.source,
            calibration=job.calibration,
            profile=job.profile,
            scratch=folder / name / "scratch",
        )
        made.append(backend.open(alone).build(candidate, folder / name / "artifact"))
    artifact = made[0]
    backend.vet(artifact)
    floats = outputs(Session(job.source), data)
    got = outputs(backend.load(artifact), data)
    placement = backend.placement(artifact, job)
    how = answering(floats, data.labels)
    return {
        "name": candidate.name,
        "precision": candidate.precision,
        "agreement": compare(floats, got, how, data.labels).agreement,
        "same_again": digest(made[0]) == digest(made[1]),
        "operators": placement.operators,
        "placed": len(placement.nodes),
        "runtime": artifact.runtime,
        "outputs": list(got),
        "requires": backend.requires(artifact),
    }


def main() -> None:
    """Work through the targets."""
    name, folder, *targets = sys.argv[1:]
    results: dict[str, dict[str, Any]] = {}
    for target in targets:
        results[target] = there(name, Path(folder) / target, target)
    print(json.dumps(results))


def there(name: str, folder: Path, target: str) -> dict[str, Any]:
    """Return what a backend gave, or which tool-chain is not installed."""
    try:
        return of(backends.load(name), name, folder, target)
    except UserError as error:
        return {"missing": str(error)}


def of(backend: Backend, name: str, folder: Path, target: str) -> dict[str, Any]:
    """Try one candidate of each number format and scheme that the backend plans."""
    job, data = prepared(folder, target)
    seen: dict[tuple[str, str], Candidate] = {}
    for candidate in backend.open(job).plan():
        seen.setdefault((candidate.precision, candidate.scheme.value), candidate)
    assert all(x.backend == name for x in seen.values())
    return {"candidates": [tried(backend, job, x, data, folder / x.name) for x in seen.values()]}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
