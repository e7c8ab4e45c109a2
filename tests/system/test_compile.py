"""`kedge compile`, `inspect`, `run` and `targets` as a person uses them, on a small model."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import small_models
from compiler.bundle import archive, layout
from fleet.errors import BundleError
from processes import KEDGE, wait_until
from small_models import SmallModel


def kedge(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run kedge and check how it ends."""
    done = subprocess.run([KEDGE, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def compile_(files: SmallModel, out: Path, *more: str, target: str = "laptop-x86") -> dict[str, Any]:
    """Compile, and return what `--json` prints: one object and nothing else."""
    done = kedge(
        *("compile", files.model, "--target", target, "--calibration", files.calibration),
        *("--evaluation", files.evaluation, "--out", out, "--json", *more),
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_models.write(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def compiled(files: SmallModel) -> tuple[Path, dict[str, Any]]:
    """Return a bundle and what compiling it said."""
    out = files.model.parent / "small.bundle"
    return out, compile_(files, out)


def test_the_small_model_becomes_int8_within_the_budget(
    files: SmallModel, compiled: tuple[Path, dict[str, Any]]
) -> None:
    _, result = compiled
    assert result["chosen"]["precision"] == "int8"
    assert result["accuracy"]["drop_points"] <= 0.5
    assert result["accuracy"]["float"] > 0.9
    assert result["accuracy"]["samples"] == 200
    low, high = result["accuracy"]["interval"]
    assert low <= result["accuracy"]["drop_points"] <= high
    assert result["size_bytes"]["compiled"] < 0.5 * result["size_bytes"]["float"]
    assert result["size_bytes"]["float"] == files.model.stat().st_size
    assert result["latency_ms"]["float"] > 0
    assert result["placement"]["by_precision"]["int8"] > 0
    assert len([x for x in result["candidates"] if x["status"] == "chosen"]) == 1


def test_the_report_says_where_it_runs_how_near_it_is_and_what_costs_most(
    compiled: tuple[Path, dict[str, Any]],
) -> None:
    """`--json` and the report in the bundle agree, but for what a clock told."""
    folder, result = compiled
    report = json.loads(layout.read(folder).bytes_of("report.json"))
    for part in ("placement", "parity", "sensitivity"):
        assert report[part] == result[part]
    assert {x["unit"] for x in report["placement"]["nodes"]} == {"cpu"}
    assert report["placement"]["macs"] == 12 * 64 * 9 + 7680
    assert report["placement"]["memory"]["weights_bytes"] < 10_000
    (scores,) = report["parity"]["outputs"]
    assert scores["agreement"] == result["accuracy"]["agreement"]
    assert scores["sqnr_db"] > 20
    assert "ONNX Runtime" in report["parity"]["ran_in"]
    assert {x["name"] for x in report["sensitivity"]["nodes"]} == {"conv", "dense"}
    assert report["data"]["calibration"] == 96
    assert all(x["latency_ms"] is None for x in report["verdicts"])


def test_the_same_inputs_give_the_same_digest(
    files: SmallModel, compiled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Two processes, two folders, other timings: the same bytes."""
    again = compile_(files, tmp_path / "again.bundle", "--no-cache")
    assert again["bundle"]["digest"] == compiled[1]["bundle"]["digest"]


def test_inspect_verifies_and_shows(compiled: tuple[Path, dict[str, Any]]) -> None:
    folder, result = compiled
    facts = json.loads(kedge("inspect", folder, "--json").stdout)
    assert facts["digest"] == result["bundle"]["digest"]
    assert {x["path"] for x in facts["files"]} == {
        "kedge/bundle.json",
        "model.onnx",
        "golden/inputs.npz",
        "golden/outputs.npz",
        "baseline.json",
        "report.json",
        "report.html",
        "sbom.cdx.json",
        "provenance.json",
    }
    offload = facts["description"]["offload"]
    assert offload["output"] == "scores"
    assert offload["activation"] == "softmax"
    assert all(0 <= x["offloaded"] <= 1 for x in offload["thresholds"])


def test_a_flipped_bit_anywhere_is_found(compiled: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A disk or a person changed one bit of one blob: nothing is shown of the bundle."""
    blobs = sorted(x.name for x in (compiled[0] / "blobs" / "sha256").iterdir())
    for name in blobs:
        copy = tmp_path / name[:8]
        shutil.copytree(compiled[0], copy)
        target = copy / "blobs" / "sha256" / name
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
        with pytest.raises(BundleError, match="expected sha256:"):
            layout.verify(copy, layout.read(copy))
    assert "expected sha256:" in kedge("inspect", tmp_path / blobs[0][:8], code=2).stderr


def test_a_file_that_nothing_names_is_found(compiled: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(compiled[0], copy)
    (copy / "blobs" / "sha256" / "extra").write_bytes(b"x")
    assert "nothing in the manifest names" in kedge("inspect", copy, code=2).stderr


def test_running_the_bundle_reproduces_its_golden_outputs(
    compiled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    bundle = layout.read(compiled[0])
    golden = bundle.description.golden
    (tmp_path / "in.npz").write_bytes(bundle.bytes_of(golden.inputs))
    out = tmp_path / "out.npz"
    facts = json.loads(
        kedge("run", compiled[0], "--input", tmp_path / "in.npz", "--output", out, "--json").stdout
    )
    assert facts["samples"] == golden.samples
    got, want = archive.decode(out.read_bytes()), archive.decode(bundle.bytes_of(golden.outputs))
    for name, tolerance in golden.tolerance.items():
        assert got[name].shape == want[name].shape
        off = np.abs(got[name].astype(np.float64) - want[name].astype(np.float64))
        assert (off <= tolerance.atol + tolerance.rtol * np.abs(want[name].astype(np.float64))).all()


def test_the_golden_tolerance_tells_another_model_apart(compiled: tuple[Path, dict[str, Any]]) -> None:
    """Golden vectors with room for any model would prove nothing: halved answers must fail."""
    bundle = layout.read(compiled[0])
    golden = bundle.description.golden
    want = archive.decode(bundle.bytes_of(golden.outputs))["scores"].astype(np.float64)
    tolerance = golden.tolerance["scores"]
    assert (np.abs(0.5 * want - want) > tolerance.atol + tolerance.rtol * np.abs(want)).any()


def test_the_measured_accuracy_is_true(files: SmallModel, compiled: tuple[Path, dict[str, Any]]) -> None:
    """Somebody else, with plain ONNX Runtime, counts right answers on all evaluation data."""
    data = np.load(files.evaluation)
    artifact = layout.read(compiled[0]).bytes_of("model.onnx")
    scores = onnxruntime.InferenceSession(artifact).run(None, {"picture": data["picture"]})[0]
    whole = float((np.asarray(scores).argmax(axis=1) == data["labels"]).mean())
    assert whole == pytest.approx(compiled[1]["accuracy"]["compiled"], abs=0.05)


def test_the_page_needs_no_network(compiled: tuple[Path, dict[str, Any]]) -> None:
    page = layout.read(compiled[0]).bytes_of("report.html").decode()
    assert "prefers-color-scheme: dark" in page
    assert "<svg" in page
    assert "http" not in page.replace("https://mlcommons.org", "")
    assert (compiled[0] / "measurements" / "report.html").is_file()


def test_bill_of_materials_and_provenance_name_what_is_in_the_bundle(
    compiled: tuple[Path, dict[str, Any]],
) -> None:
    bundle = layout.read(compiled[0])
    bill = json.loads(bundle.bytes_of("sbom.cdx.json"))
    model = bill["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    digest = bundle.manifest.file("model.onnx").digest.removeprefix("sha256:")
    assert model["hashes"][0]["content"] == digest
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    statement = json.loads(bundle.bytes_of("provenance.json"))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    subjects = {x["name"]: x["digest"]["sha256"] for x in statement["subject"]}
    assert subjects["model.onnx"] == digest


def test_without_labels_agreement_is_the_budget(tmp_path: Path) -> None:
    result = compile_(small_models.write(tmp_path, labels=False), tmp_path / "b")
    assert result["accuracy"]["drop_points"] is None
    assert result["accuracy"]["agreement"] >= 0.995
    assert any("no labels" in x for x in result["warnings"])


def test_a_budget_of_nothing_keeps_float_where_int8_would_lose(tmp_path: Path) -> None:
    """Only float agrees with itself on every sample of a hard set: keep it, and say so."""
    files = small_models.write(tmp_path, labels=False)
    noise = np.random.default_rng(5).normal(scale=0.01, size=(1200, 1, 8, 8)).astype(np.float32)
    np.savez(files.evaluation, picture=noise)
    result = compile_(files, tmp_path / "b", "--max-drop", "0")
    assert result["chosen"]["precision"] in {"float32", "float16"}
    assert any("keep float" in x for x in result["warnings"])


def test_asking_for_what_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    files = small_models.write(tmp_path, labels=False)
    noise = np.random.default_rng(5).normal(scale=0.01, size=(1200, 1, 8, 8)).astype(np.float32)
    np.savez(files.evaluation, picture=noise)
    done = kedge(
        *("compile", files.model, "--target", "laptop-x86", "--calibration", files.calibration),
        *(
            "--evaluation",
            files.evaluation,
            "--out",
            tmp_path / "b",
            "--max-drop",
            "0",
            "--precision",
            "int8",
        ),
        code=2,
    )
    assert "no int8 candidate keeps the budget of 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_earlier_choice_can_be_repeated_by_name(files: SmallModel, tmp_path: Path) -> None:
    result = compile_(files, tmp_path / "b", "--candidate", "dynamic")
    assert result["chosen"]["name"] == "dynamic"


def test_a_target_of_another_machine_says_where_latency_was_measured(
    files: SmallModel, tmp_path: Path
) -> None:
    result = compile_(files, tmp_path / "b", target="laptop-arm64")
    assert result["target"] == "laptop-arm64"
    said = any("latency was measured on" in x for x in result["warnings"])
    assert said == (platform.machine() != "aarch64")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--target", "laptop"], "expected one of"),
        (["--target", "laptop-x86", "--max-drop", "-1"], "max-drop"),
        (["--target", "laptop-x86", "--candidate", "magic"], "expected a precision or candidate"),
        (["--target", "laptop-x86", "--name", "Bad Name"], "name"),
        (["--target", "laptop-x86", "--calibration", "none.npz"], "none.npz"),
        (["--target", "laptop-x86", "--classes", "cat,dog"], "expected 10 names; got 2"),
        (["--target", "laptop-x86", "--time-limit", "0.1", "--no-cache"], "within 0.1 s"),
        (["--target", "laptop-x86", "--out", "/proc/nowhere/b"], "/proc/nowhere/b"),
        (["--target", "laptop-x86", "--max-drop", "nan"], "--max-drop"),
        (["--target", "laptop-x86", "--memory-limit", "nan"], "--memory-limit"),
        (["--target", "laptop-x86", "--licence", "ours"], "expected an SPDX expression"),
        (["--target", "laptop-x86", "--colour", "red"], "--colour"),
        (["--target"], "--target"),
    ],
)
def test_bad_options_end_in_one_line(
    files: SmallModel, tmp_path: Path, arguments: list[str], word: str
) -> None:
    done = kedge(
        *("compile", files.model, "--calibration", files.calibration, "--evaluation", files.evaluation),
        *("--out", tmp_path / "b", *arguments),
        code=2,
    )
    assert word in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_a_folder_named_compiler_in_the_current_folder_is_not_run(files: SmallModel, tmp_path: Path) -> None:
    """Python looks in the current folder first: a repository of somebody else's would run in the worker."""
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler" / "__init__.py").write_text("raise SystemExit(99)")
    done = subprocess.run(
        [
            *(KEDGE, "compile", files.model, "--target", "laptop-x86", "--calibration", files.calibration),
            *("--evaluation", files.evaluation, "--candidate", "dynamic"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small-laptop-x86.bundle" / "index.json").is_file()


def test_a_folder_of_something_else_is_never_replaced(files: SmallModel, tmp_path: Path) -> None:
    """`--out .` in a project's root must not delete the project."""
    (tmp_path / "precious.txt").write_text("x")
    done = kedge(
        *("compile", files.model, "--target", "laptop-x86", "--calibration", files.calibration),
        *("--evaluation", files.evaluation, "--out", tmp_path),
        code=2,
    )
    assert "holds something else" in done.stderr
    assert (tmp_path / "precious.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_stopped_in_the_middle_it_leaves_nothing_behind(
    files: SmallModel, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Even killed, as a pipeline's runner does it, which leaves tidying up to the worker."""
    process = subprocess.Popen(
        [
            *(KEDGE, "compile", files.model, "--target", "laptop-x86", "--calibration", files.calibration),
            *("--evaluation", files.evaluation, "--out", tmp_path / "b", "--no-cache"),
        ],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: list(tmp_path.glob("kedge-compile-*/*")), "the worker works")
    process.send_signal(number)
    assert process.wait(20) == code
    wait_until(lambda: not list(tmp_path.iterdir()), "nothing is left")


def test_onnx_runtime_does_not_report_to_its_maker(
    files: SmallModel, compiled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Its telemetry begins when it is imported, by writing the id of a session to the temporary folder."""
    done = subprocess.run(
        [KEDGE, "run", compiled[0], "--input", files.evaluation, "--output", tmp_path / "o.npz"],
        env={name: x for name, x in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert [x.name for x in tmp_path.iterdir()] == ["o.npz"]


def test_a_full_disk_is_no_bug() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([KEDGE, "targets"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: kedge: No space left on device\n")


def test_targets_lists_them_all() -> None:
    listed = json.loads(kedge("targets", "--json").stdout)["targets"]
    available = {x["name"] for x in listed if x["available"]}
    assert len(listed) >= 18
    assert len(available) == len(listed)
    assert kedge("targets").stdout.count("\n") == len(listed)


def test_the_script_compile_is_the_same_command() -> None:
    script = Path(KEDGE).with_name("compile")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert "--max-drop" in done.stdout
