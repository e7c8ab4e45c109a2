"""A real model becomes a Core ML package: within the budget, and it runs here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.bundle import layout
from fleet.bundle import manifest
from processes import KEDGE

pytest.importorskip("coremltools", reason="the package coremltools is not installed")
MODEL = Path(__file__).parents[3] / "shared" / "models" / "digits" / "digits_cnn.onnx"


def kedge(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [KEDGE, *map(str, arguments), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_real_model_becomes_a_package_that_runs_here(tmp_path: Path) -> None:
    if not MODEL.is_file():
        pytest.skip(f"needs the test model {MODEL.name} in ../shared/models")
    data = MODEL.parent / "evaluation.npz"
    result = kedge(
        *("compile", MODEL, "--target", "apple-ane", "--out", tmp_path / "a", "--no-cache"),
        *("--calibration", MODEL.parent / "calibration.npz", "--evaluation", data),
    )
    assert result["chosen"]["name"] == "int8-weights"
    assert result["accuracy"]["drop_points"] <= 0.5
    assert result["latency_ms"]["compiled"] is None
    assert result["placement"]["basis"] == "estimated"
    assert result["parity"]["ran_in"] == "a numpy evaluation of the saved package, in place of Core ML"

    bundle = layout.read(tmp_path / "a")
    parts = {x.path for x in bundle.manifest.layers if x.annotations.get(manifest.ROLE) == "model"}
    assert bundle.description.artifact == "model.mlpackage"
    assert len(parts) == 3
    assert all(x.startswith("model.mlpackage/") for x in parts)
    assert bundle.description.requires.firmware["macos"] == ">=14"

    kedge("run", tmp_path / "a", "--input", data, "--output", tmp_path / "o.npz")
    scores = np.load(tmp_path / "o.npz")["logits"]
    assert float(np.mean(scores.argmax(axis=1) == np.load(data)["labels"])) >= 0.98
