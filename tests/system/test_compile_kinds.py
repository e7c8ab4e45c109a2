"""Models of every kind go through a whole compilation; each fault in it is survived or told."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

import model_kinds
import outlier_model
import small_models
from compiler import client
from compiler.bundle import layout
from compiler.errors import ModelRefusedError
from compiler.requests import CompileRequest, CompileResult, Progress
from processes import KEDGE
from small_models import SmallModel


def compile_(
    files: SmallModel,
    out: Path,
    tell: Callable[[Progress], None] = lambda _: None,
    *,
    max_drop: float = 0.5,
    time_budget_s: float = 0.0,
    candidate: str = "",
) -> CompileResult:
    """Compile for a target that runs ONNX Runtime."""
    request = CompileRequest(
        model=str(files.model),
        target="raspberry-pi5",
        calibration=str(files.calibration),
        evaluation=str(files.evaluation),
        out=str(out),
        name="kind",
        max_drop=max_drop,
        time_budget_s=time_budget_s,
        candidate=candidate,
    )
    return client.compile_model(request, tell)


@pytest.mark.parametrize("kind", model_kinds.KINDS)
def test_a_model_of_this_kind_becomes_a_bundle(kind: str, tmp_path: Path) -> None:
    files = model_kinds.write(tmp_path, kind)
    result = compile_(files, tmp_path / "b", max_drop=4.0, candidate="static-channel-mse")
    assert result.accuracy.agreement >= 0.96
    assert result.chosen.precision == "int8"
    about = layout.read(tmp_path / "b").description
    original = onnx.load(tmp_path / "kind.onnx").graph
    weights = {x.name for x in original.initializer}
    assert [x.name for x in about.inputs] == [x.name for x in original.input if x.name not in weights]
    assert [x.name for x in about.outputs] == [x.name for x in original.output]


def test_what_was_done_to_an_old_export_is_said(tmp_path: Path) -> None:
    """Its answers are compared with those of the file as it was given: the converter may err silently."""
    files = model_kinds.write(tmp_path, "operator set 9")
    result = compile_(files, tmp_path / "b", max_drop=4.0, candidate="static-channel-mse")
    assert "model: operator set raised from 9 to 13" in result.warnings
    assert "model: 7 weights were listed as inputs; no longer" in result.warnings


def test_an_old_operator_that_cannot_be_raised_exactly_is_refused(tmp_path: Path) -> None:
    """The converter leaves Hardmax as it is, which since operator set 13 works along one axis only."""
    files = model_kinds.write(tmp_path, "any length")
    model = model_kinds.long_or_short()
    model.opset_import[0].version = 11
    model.graph.node.insert(0, helper.make_node("Hardmax", ["steps"], ["peaks"], axis=1))
    model.graph.node[1].input[0] = "peaks"
    onnx.save(model, files.model)
    with pytest.raises(ModelRefusedError, match="expected the same answers after"):
        compile_(files, tmp_path / "b")


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Samples for ONNX Runtime's own quantizer."""

    def __init__(self, texts: npt.NDArray[np.int64]) -> None:
        self._rows = iter(texts[:, None])

    def get_next(self) -> dict[str, npt.NDArray[np.int64]] | None:
        row = next(self._rows, None)
        return None if row is None else {"text": row}


def test_a_model_that_naive_quantization_ruins_comes_out_whole(tmp_path: Path) -> None:
    """Its outliers leave the others one step of int8: by chance it would be right one time in sixteen."""
    files = outlier_model.write(tmp_path)
    data = np.load(files.evaluation)

    def accuracy(model: bytes) -> float:
        scores = onnxruntime.InferenceSession(model).run(None, {"text": data["text"]})[0]
        return float((np.asarray(scores).argmax(axis=1) == data["labels"]).mean())

    quantize_static(
        files.model,
        tmp_path / "naive.onnx",
        _Reader(np.load(files.calibration)["text"]),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    whole = accuracy(files.model.read_bytes())
    assert whole > 0.95
    assert accuracy((tmp_path / "naive.onnx").read_bytes()) < 0.15

    result = compile_(files, tmp_path / "b")
    assert result.chosen.precision == "int8"
    assert result.chosen.scheme == "static"
    assert result.chosen.runtime == "onnxruntime"
    artifact = layout.read(tmp_path / "b").bytes_of("model.onnx")
    assert whole - accuracy(artifact) <= 0.005
    assert any(x.startswith("left in float: down") for x in result.warnings)
    assert result.size_bytes.compiled < result.size_bytes.original
    integers = [x for x in onnx.load_from_string(artifact).graph.initializer if x.data_type == 3]
    assert any(numpy_helper.to_array(x).ndim > 1 for x in integers)


def test_a_candidate_that_ends_the_process_costs_only_itself(tmp_path: Path) -> None:
    """A tool-chain's native code crashed on one candidate: the others are tried without it."""
    files = small_models.write(tmp_path)
    killed: list[str] = []

    def crash(step: Progress) -> None:
        if step.stage == "try candidates" and not killed:
            killed.append(step.detail)
            os.kill(worker_of(os.getpid()), signal.SIGSEGV)

    result = compile_(files, tmp_path / "b", crash)
    (lost,) = [x for x in result.candidates if x.status == "crashed"]
    assert lost.reason == "it ended the process (SIGSEGV)"
    assert result.chosen.precision == "int8"
    assert lost.name != result.chosen.name


def worker_of(parent: int) -> int:
    """Return the process that a process started."""
    children = Path(f"/proc/{parent}/task").glob("*/children")
    return int("".join(x.read_text() for x in children).split()[0])


def test_out_of_time_the_best_so_far_is_taken(tmp_path: Path) -> None:
    """A tenth of a second is enough for float, which is then the answer; what was not tried is listed."""
    files = small_models.write(tmp_path)
    result = compile_(files, tmp_path / "b", time_budget_s=0.1)
    untried = {x.name for x in result.candidates if x.status == "not tried"}
    assert untried >= {"dynamic", "weight-only"}
    assert all(x.reason == "time budget" for x in result.candidates if x.status == "not tried")
    assert any(x.startswith("not tried, for want of time: ") for x in result.warnings)
    assert result.chosen.name not in untried


def test_a_bundle_made_in_a_hurry_can_be_verified(tmp_path: Path) -> None:
    """Building it again leaves out what there was no time for then, however much there is now."""
    files = small_models.write(tmp_path)
    data = ("--calibration", files.calibration, "--evaluation", files.evaluation)
    hurried = ("--target", "raspberry-pi5", "--time-budget", "0.1", "--out", tmp_path / "b", "--no-cache")
    kedge("compile", files.model, *data, *hurried)
    assert kedge("compile", files.model, *data, "--verify", tmp_path / "b").startswith("same ")


def kedge(*arguments: object) -> str:
    """Run kedge, which must do it; return what it prints."""
    done = subprocess.run([KEDGE, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_data_is_an_error_that_names_the_models_inputs(tmp_path: Path) -> None:
    files = small_models.write(tmp_path)
    done = subprocess.run(
        [KEDGE, "compile", str(files.model), "--target", "raspberry-pi5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "numpy.savez('calibration.npz', picture=…), picture float32 [N, 1, 8, 8]" in done.stderr
    assert done.stderr.count("\n") == 1
