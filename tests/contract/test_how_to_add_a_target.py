"""The how-to "Add a target or a tool-chain": its files work as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import small_models
from small_models import SmallModel

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "add-a-target.md"
PACKAGES = ("kedge", "compiler", "firmware_profiles", "fleet")
RUN = "from kedge.cli import main; main()"


def block(language: str) -> str:
    """Return the page's block of code in a language."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the packages, so that files can be added to it."""
    folder = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_models.write(tmp_path_factory.mktemp("model"))


def kedge(tree: Path, *arguments: object) -> dict[str, Any]:
    """Run the copy's kedge."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments), "--json"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compiled(tree: Path, files: SmallModel, out: Path) -> dict[str, Any]:
    data = ("--calibration", files.calibration, "--evaluation", files.evaluation)
    return kedge(tree, "compile", files.model, "--target", "acme-gateway", *data, "--out", out)


def test_a_board_is_one_toml(tree: Path, files: SmallModel, tmp_path: Path) -> None:
    (tree / "firmware_profiles" / "targets" / "acme-gateway.toml").write_text(block("toml"))
    result = compiled(tree, files, tmp_path / "b")
    assert result["target"] == "acme-gateway"
    assert result["chosen"]["precision"] == "int8"


def test_a_tool_chain_is_one_file(tree: Path, files: SmallModel, tmp_path: Path) -> None:
    profile = block("toml")
    changes = (
        ('backends = ["onnxruntime"]', 'backends = ["ortformat"]'),
        ('runtime = "onnxruntime"', 'runtime = "onnxruntime-minimal"'),
        ('artifact = "onnx-qdq"', 'artifact = "ort"'),
    )
    for old, new in changes:
        assert old in profile
        assert new in PAGE.read_text()
        profile = profile.replace(old, new, 1)
    (tree / "firmware_profiles" / "targets" / "acme-gateway.toml").write_text(profile)
    (tree / "compiler" / "backends" / "ortformat.py").write_text(block("python"))
    result = compiled(tree, files, tmp_path / "b")
    assert result["chosen"]["name"] == "int8-ort"
    assert result["accuracy"]["drop_points"] <= 0.5
    about = kedge(tree, "inspect", tmp_path / "b")["description"]
    assert (about["artifact"], about["kind"]) == ("model.ort", "ort")
    run = kedge(tree, "run", tmp_path / "b", "--input", files.evaluation, "--output", tmp_path / "o.npz")
    assert run["samples"] > 0
