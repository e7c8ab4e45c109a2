"""`kedge compile` for a Hexagon NPU as a person uses it, up to an agent's own check of the chip."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import small_models
import toolchains_here
from compiler.bundle import layout
from fleet.bundle import htp_stamp
from processes import KEDGE
from small_models import SmallModel

MODELS = Path(__file__).parents[3] / "shared" / "models"


def compile_(
    files: SmallModel, target: str, out: Path, *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(KEDGE, "compile", files.model, "--target", target, "--calibration", files.calibration),
            *("--evaluation", files.evaluation, "--out", out, "--json", "--no-cache"),
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_without_the_tool_chain_one_line_names_the_command_that_accepts_its_terms(tmp_path: Path) -> None:
    """It is never installed behind anyone's back: its libraries stand under terms of their own."""
    files = small_models.write(tmp_path)
    nowhere = {"KEDGE_TOOLCHAINS": str(tmp_path / "none")}
    done = compile_(files, "snapdragon-8gen3", tmp_path / "b", **nowhere)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "kedge toolchain install qnn --accept-licence" in done.stderr
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").glob("qnn-*"))


def test_a_real_model_becomes_a_binary_for_the_chip_within_half_a_point(tmp_path: Path) -> None:
    """Keyword spotting, measured in the emulation; the bundle says what a device must be."""
    toolchains_here.needs("qnn")
    folder = MODELS / "kws"
    if not folder.is_dir():
        pytest.skip("needs the test model kws in ../shared/models")
    files = SmallModel(folder / "kws_dscnn_fp32.onnx", folder / "calibration.npz", folder / "evaluation.npz")
    done = compile_(files, "snapdragon-8gen3", tmp_path / "b", "--candidate", "a8w8-channel-percentile")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["chosen"]["precision"] == "int8"
    assert result["accuracy"]["drop_points"] <= 0.5
    assert result["accuracy"]["float"] > 0.85
    assert result["latency_ms"]["compiled"] is None
    assert result["placement"]["accelerated_macs"] == 1.0
    assert any("HTP emulation" in x for x in result["warnings"])

    bundle = layout.read(tmp_path / "b")
    assert bundle.description.requires.runtime == "qnn"
    assert bundle.description.requires.firmware["htp-arch"] == "==75"
    assert htp_stamp.read(bundle.bytes_of(bundle.description.artifact)).chip == "SM8650"
