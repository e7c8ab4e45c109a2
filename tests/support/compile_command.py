"""`kedge compile` as a person runs it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from processes import KEDGE

MODELS = Path(__file__).parents[3] / "shared" / "models"


def shared_model(name: str) -> Path:
    """Return a real model's file, or skip the test by the file's name where it is absent."""
    file = MODELS / name
    if not file.is_file():
        pytest.skip(f"needs the test model {file.name} in ../shared/models")
    return file


def compile_for(
    target: str, model: Path, out: Path, data: Path | None = None, *, toolchains: Path | None = None
) -> dict[str, Any]:
    """Compile a model, and return what the command prints.

    Args:
        target: what for.
        model: the ONNX file.
        out: folder of the bundle.
        data: folder of `calibration.npz` and `evaluation.npz`; the model's, if none is named.
        toolchains: where tool-chains are, instead of this machine's.
    """
    folder = data or model.parent
    done = subprocess.run(
        [
            *(KEDGE, "compile", model, "--target", target, "--out", out, "--json"),
            *("--calibration", folder / "calibration.npz", "--evaluation", folder / "evaluation.npz"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KEDGE_TOOLCHAINS": str(toolchains)} if toolchains else None,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
