"""One of Kedge's candidates, and nothing else: what stands beside `plain.py` to measure its cost.

`python candidate.py MODEL CALIBRATION OUT`
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnx

from compiler import backends
from compiler.data import datasets
from compiler.models import guard, normalise
from compiler.ports import Job
from firmware_profiles import registry


def build(model: Path, calibration: Path, out: Path) -> None:
    """Read the model and the data, and build the first static candidate for a laptop."""
    profile = registry.load("laptop-x86")
    normal = normalise.normalise(guard.read(model).model)[0]
    inputs, _ = normalise.tensors(normal)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source.onnx"
        onnx.save(normal, source)
        data = datasets.load(calibration, inputs)
        job = Job(model=normal, source=source, calibration=data, profile=profile, scratch=Path(scratch))
        workshop = backends.load("onnxruntime").open(job)
        first = next(x for x in workshop.plan() if x.name == "static-channel-minmax")
        folder = Path(scratch) / "artifact"
        folder.mkdir()
        out.write_bytes(workshop.build(first, folder).path.read_bytes())


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:]))
